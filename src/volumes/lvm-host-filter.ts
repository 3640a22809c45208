import {readFileSync} from 'node:fs'
import {join} from 'node:path'

/** The keys of lvm.conf(5), section `devices`, that hold a filter. A device must pass both. */
export const filterKeys = ['filter', 'global_filter'] as const
export type FilterKey = (typeof filterKeys)[number]

/** What one filter of lvm.conf(5) says of a device, by all names that the device has. */
export type DeviceFilter = (names: readonly string[]) => boolean

/**
 * The filters in a configuration as lvmconfig(8) prints it, evaluated as LVM does (lib/filters/filter-regex.c): for each
 * name the first pattern that matches decides, a device passes by any name that is accepted, and one of which no name
 * matches anything passes too.
 */
export function hostFilters(configuration: string): Map<FilterKey, DeviceFilter> {
  const found = new Map<FilterKey, DeviceFilter>()
  for (const key of filterKeys) {
    const value = new RegExp(`^\\s*${key}=(.*)$`, 'm').exec(configuration)?.[1]
    if (value !== undefined) found.set(key, readFilter(value))
  }
  return found
}

function readFilter(value: string): DeviceFilter {
  const strings = [...value.matchAll(/"((?:[^"\\]|\\.)*)"/g)].map(([, text]) => text!.replaceAll(/\\(.)/g, '$1'))
  const patterns = strings.map(text => ({
    accepts: text.startsWith('a'),
    matches: new RegExp(translate(text.slice(2, -1))),
  }))
  return names => {
    const verdicts = names.flatMap(name => patterns.find(({matches}) => matches.test(name))?.accepts ?? [])
    return verdicts.length === 0 || verdicts.includes(true)
  }
}

/** An expression of libdevmapper (libdm/regex/parse_rx.c) as one of JavaScript: LVM's has no braces and no classes by letter. */
function translate(pattern: string): string {
  let text = ''
  for (let at = 0; at < pattern.length; at++) {
    const letter = pattern[at]!
    if (letter === '\\') text += literal(pattern[++at] ?? '', {escaped: true})
    else if (letter === '[') {
      const end = endOfSet(pattern, at + 1)
      text += readSet(pattern.slice(at + 1, end))
      at = end
    } else if (letter === '.') text += '[^\\r\\n]'
    else if (letter === '(') text += '(?:'
    else if ('*+?'.includes(letter)) text = repeat(text, letter)
    else text += ')|^$'.includes(letter) ? letter : literal(letter)
  }
  return text
}

/** Two repetitions in a row are one to LVM, and to JavaScript an error or something else. */
function repeat(text: string, letter: string): string {
  const last = /(?:^|[^\\])([*+?])$/.exec(text)?.[1]
  if (last === undefined) return text + letter
  return last === letter ? text : `${text.slice(0, -1)}*`
}

function literal(letter: string, {escaped = false} = {}): string {
  const control = escaped ? {n: '\\n', r: '\\r', t: '\\t'}[letter] : undefined
  return control ?? (/[\w/]/.test(letter) ? letter : `\\u${letter.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

function endOfSet(pattern: string, start: number): number {
  for (let at = start; at < pattern.length; at++) {
    if (pattern[at] === '\\') at++
    else if (pattern[at] === ']') return at
  }
  return pattern.length
}

function readSet(content: string): string {
  const negated = content.startsWith('^')
  let set = ''
  for (let at = negated ? 1 : 0; at < content.length; at++) {
    const letter = content[at]!
    if (letter === '\\') set += literal(content[++at] ?? '', {escaped: true})
    else set += letter === '-' && set !== '' && at + 1 < content.length ? '-' : literal(letter)
  }
  // An empty set matches nothing, in both.
  return `[${negated ? '^' : ''}${set}]`
}

/**
 * The names that LVM knows a block device by: its node, its name in device-mapper, and the links that udev has made, which
 * udev's database lists.
 */
export function namesOf(path: string, {sysfs = '/sys', udev = '/run/udev/data'} = {}): string[] {
  const kernelName = path.slice('/dev/'.length).replaceAll('/', '!')
  const block = join(sysfs, 'class/block', kernelName)
  const mapped = read(join(block, 'dm/name'))
  const number = read(join(block, 'dev'))
  const database = number === undefined ? undefined : read(join(udev, `b${number}`))
  const links = (database ?? '').split('\n').flatMap(line => (line.startsWith('S:') ? `/dev/${line.slice(2)}` : []))
  return [path, ...(mapped === undefined ? [] : [`/dev/mapper/${mapped}`]), ...links]
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch {
    return undefined
  }
}
