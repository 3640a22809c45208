import {randomUUID} from 'node:crypto'
import {readFile, realpath, rm, stat} from 'node:fs/promises'
import {isIP, isIPv6} from 'node:net'
import {join} from 'node:path'
import {StorageError} from '../errors.js'
import {nameKey} from '../iqn.js'
import {loadAddon} from '../native.js'
import type {AccessRules} from '../types.js'
import {nameSpellings, ruleAddress} from './spec.js'

/**
 * initiators.allow, IET's only access rules. ietd reads it anew at each login: the first line that names the target, or
 * ALL, decides. lunpath's lines are in a block at the top, above every line for ALL; all else is left as it is.
 */

const begin = '# lunpath begin: lunpath writes all lines from here to its end'
const end = '# lunpath end'
/** Where the file was not there at all, everybody could log in to all targets, and that stays so for those of others. */
const allForAll = 'ALL ALL'
/** In place of a target's name: all of them. */
const all = 'ALL'
/** ietd skips a line that is longer, and goes on to the next one. */
const maxLineBytes = 8191
const closedPrefix = 'lunpath-closed-'

export const accessDirectories = ['/etc/iet', '/etc'] as const
const allowName = 'initiators.allow'
const denyName = 'initiators.deny'

/** Who may log in; `closed` is nobody. */
export type Rule = AccessRules | 'closed'

/** What the file says of one target. */
export interface Found {
  /** Null where there is no file. */
  file: string | null
  ours: boolean
  access: AccessRules
}

interface Parsed {
  block: Map<string, string>
  hasAllForAll: boolean
  /** Every byte outside the block. */
  rest: string
}

export class IetAccess {
  readonly #directories: readonly string[]
  /** What our block is to say. */
  readonly #lines = new Map<string, string>()
  #changed = 0
  #written = 0
  #writing: Promise<void> | undefined
  /** The file's version at the last look that found our lines in it. */
  #looked: string | undefined
  /** The file as the last write left it. */
  #known: AllowFile | undefined
  readonly #replacer = new (loadAddon<{FileReplacer: new () => FileReplacer}>('file').FileReplacer)()

  constructor(directories: readonly string[] = accessDirectories) {
    this.#directories = directories
  }

  /** Takes over the block that an earlier process has left. @throws TARGET_UNAVAILABLE */
  async load(): Promise<void> {
    await this.#refuseDenyFile()
    const {text} = await this.#read()
    for (const [iqn, line] of parse(text ?? '').block) this.#lines.set(iqn, line)
  }

  /** True where our block has a line for the target: it is one of ours, of this process or an earlier one. */
  has(iqn: string): boolean {
    return this.#lines.has(iqn)
  }

  /** Names of all targets of our block. */
  names(): string[] {
    return [...this.#lines.keys()]
  }

  /**
   * Sets the lines of these targets, null for none, all with one write. Resolves when the file has them, which is when ietd
   * goes by them. @throws UNSUPPORTED for a line that ietd would skip; TARGET_UNAVAILABLE
   */
  async set(rules: Iterable<readonly [iqn: string, rule: Rule | null]>): Promise<void> {
    const lines = [...rules].map(([iqn, rule]) => [iqn, rule === null ? null : this.#line(iqn, rule)] as const)
    if (lines.every(([iqn, line]) => (this.#lines.get(iqn) ?? null) === line)) return this.#settled()
    const before = lines.map(([iqn]) => [iqn, this.#lines.get(iqn)] as const)
    for (const [iqn, line] of lines) {
      if (line === null) this.#lines.delete(iqn)
      else this.#lines.set(iqn, line)
    }
    try {
      await this.#flush()
    } catch (error) {
      for (const [iqn, line] of before) {
        if (line === undefined) this.#lines.delete(iqn)
        else this.#lines.set(iqn, line)
      }
      throw error
    }
  }

  /** What the file says now. */
  async look(): Promise<(iqn: string) => Found> {
    const {text, file} = await this.#read()
    if (text === undefined) return () => ({file: null, ours: false, access: {addresses: ['ALL'], names: []}})
    const {block} = parse(text)
    const lines = text
      .split('\n')
      .slice(0, -1)
      .filter(line => Buffer.byteLength(line) <= maxLineBytes - 1)
    // The first line of each name. ietd finds the target of a line by the name, whatever its case (usr/plain.c, match).
    const first = new Map<string, {at: number; entries: string[]}>()
    for (const [at, line] of lines.entries()) {
      const [name, entries] = words(line)
      const key = name === all ? all : nameKey(name)
      if (!first.has(key)) first.set(key, {at, entries: entries.split(',')})
    }
    const ofAll = first.get(all)
    return iqn => {
      const own = first.get(nameKey(iqn))
      const found = own && (!ofAll || own.at < ofAll.at) ? own : ofAll
      return {file, ours: block.has(iqn), access: readEntries(found?.entries ?? [])}
    }
  }

  /** Writes our lines again where somebody has changed or removed them. Gives the names of the targets concerned. */
  async mend(): Promise<string[]> {
    await this.#settled()
    if (this.#lines.size === 0) return []
    const present = await this.#find()
    if (present && present.version?.key === this.#looked) return []
    const {text} = await this.#read()
    if (this.#writing !== undefined) return []
    const {block} = parse(text ?? '')
    const changed = [...this.#lines].filter(([iqn, line]) => block.get(iqn) !== line).map(([iqn]) => iqn)
    if (changed.length === 0) this.#looked = present?.version?.key
    // Where that fails, the next look tries again.
    else if (
      !(await this.#flush()
        .then(() => true)
        .catch(() => false))
    )
      return []
    return changed
  }

  async #find(): Promise<{file: string; version: Version | undefined} | undefined> {
    for (const directory of this.#directories) {
      // Where it is a link, the file that it names is replaced.
      const file = await realpath(join(directory, allowName)).catch(() => undefined)
      if (file !== undefined) return {file, version: await versionOf(file)}
    }
    return undefined
  }

  #line(iqn: string, rule: Rule): string {
    const present = this.#lines.get(iqn)
    return rule === 'closed' && present !== undefined && isClosed(present) ? present : ruleLine(iqn, rule)
  }

  /** What is asked for may be in a write that has not ended. */
  async #settled(): Promise<void> {
    while (this.#writing !== undefined) await this.#writing
  }

  /** One write takes all changes that have come until it begins. */
  async #flush(): Promise<void> {
    const wanted = ++this.#changed
    while (this.#written < wanted) {
      this.#writing ??= this.#write().finally(() => {
        this.#writing = undefined
      })
      await this.#writing
    }
  }

  async #write(): Promise<void> {
    // What comes in this turn of the event loop comes along.
    await new Promise(resolve => setImmediate(resolve))
    const covers = this.#changed
    try {
      while (!(await this.#replace())) {
        // Somebody else has written meanwhile: once more, from what is there now.
      }
    } catch (cause) {
      if (cause instanceof StorageError) throw cause
      throw unavailable(`${allowName} cannot be written: ${(cause as Error).message}`, cause)
    }
    this.#written = covers
  }

  /** False where somebody has changed the file between our reading and our writing. */
  async #replace(): Promise<boolean> {
    const known = this.#known
    const {file, text, version} = known ?? (await this.#read())
    const {rest, hasAllForAll} = parse(text ?? '')
    const openToAll = (text === undefined || hasAllForAll) && rest.trim() === ''
    const isToGo = this.#lines.size === 0 && openToAll
    const content = compose(this.#lines, {rest, openToAll})
    if (isToGo || content === text) {
      this.#known = undefined
      // What is remembered may not be there any more.
      if (known) return false
      await this.#refuseDenyFile()
      if (isToGo && text !== undefined) await rm(file)
      return true
    }
    // ietd goes by the name, so that the rename is all that counts for it; and a crash of the machine takes all targets along,
    // before which the next start writes our lines anew. The lines of others alone must not be lost in one: without the
    // sync the name could be that of an empty file then.
    const durable = rest.trim() !== ''
    const outcome = await this.#replacer.replace(
      this.#directories.map(directory => join(directory, allowName)),
      file,
      this.#directories.map(directory => join(directory, denyName)),
      version?.key ?? '',
      content,
      durable,
    )
    if ('forbidden' in outcome) throw denied(outcome.forbidden)
    const isWritten = 'written' in outcome
    const key = isWritten ? outcome.written : ''
    this.#known = key === '' ? undefined : {file, text: content, version: {key}}
    return isWritten
  }

  /** The file that ietd reads, or the one that it would. */
  async #read(): Promise<AllowFile> {
    const present = await this.#find()
    if (present) return {...present, text: await readFile(present.file, 'utf8')}
    const existing = await Promise.all(
      this.#directories.map(directory =>
        stat(directory).then(
          found => (found.isDirectory() ? directory : undefined),
          () => undefined,
        ),
      ),
    )
    const directory = existing.find(one => one !== undefined)
    if (directory === undefined) {
      throw unavailable(`There is no directory for ${allowName}: ${this.#directories.join(', ')}`)
    }
    return {file: join(directory, allowName), text: undefined, version: undefined}
  }

  async #refuseDenyFile(): Promise<void> {
    for (const directory of this.#directories) {
      const file = join(directory, denyName)
      if (!(await stat(file).catch(() => undefined))) continue
      throw denied(file)
    }
  }
}

/** What native/file/replace.cc says of a version; the text must have been read from it. */
interface Version {
  key: string
}

interface AllowFile {
  file: string
  text: string | undefined
  version: Version | undefined
}

interface FileReplacer {
  replace(
    paths: string[],
    fresh: string,
    forbidden: string[],
    version: string,
    text: string,
    durable: boolean,
  ): Promise<{written: string} | {forbidden: string} | {changed: true}>
}

async function versionOf(file: string): Promise<Version | undefined> {
  const found = await stat(file, {bigint: true}).catch(() => undefined)
  if (!found) return undefined
  const {ino, mtimeNs, ctimeNs, size} = found
  return {key: `${ino} ${mtimeNs} ${ctimeNs} ${size}`}
}

function parse(text: string): Parsed {
  const block = new Map<string, string>()
  const rest: string[] = []
  let inside = false
  let hasAllForAll = false
  for (const line of text.split(/(?<=\n)/)) {
    const bare = line.replace(/\n$/, '')
    if (bare === begin) inside = true
    else if (bare === end && inside) inside = false
    else if (!inside) rest.push(line)
    else if (bare === allForAll) hasAllForAll = true
    else if (words(bare)[0] !== '') block.set(words(bare)[0], bare)
  }
  return {block, hasAllForAll, rest: rest.join('')}
}

function compose(lines: ReadonlyMap<string, string>, {rest, openToAll}: {rest: string; openToAll: boolean}): string {
  if (lines.size === 0) return rest
  const block = [begin, ...lines.values(), ...(openToAll ? [allForAll] : []), end]
  return `${block.join('\n')}\n${rest}`
}

function ruleLine(iqn: string, rule: Rule): string {
  const entries =
    rule === 'closed' ? [] : [...rule.addresses.map(addressEntry), ...rule.names.flatMap(nameSpellings).map(nameEntry)]
  // Nobody can have that name: ietd has no word for nobody, and a target without a line may have one for ALL.
  const closed = `${closedPrefix}${randomUUID()}`
  const line = `${iqn} ${[...new Set(entries.length === 0 ? [closed] : entries)].join(', ')}`
  if (Buffer.byteLength(line) + 1 > maxLineBytes) {
    throw new StorageError(
      'UNSUPPORTED',
      `IET takes access rules of at most ${maxLineBytes} bytes for a target: ${iqn} has more; use prefixes, or ALL and CHAP`,
      {op: 'target.export', info: {iqn}},
    )
  }
  return line
}

function addressEntry(given: string): string {
  const address = ruleAddress(given)
  const [host = '', prefix] = address.split('/')
  if (!isIPv6(host)) return address
  return prefix === undefined ? `[${host}]` : `[${host}]/${prefix}`
}

/** A basic regular expression that matches this name alone (POSIX.1, 9.3). */
function nameEntry(name: string): string {
  return name.replaceAll(/[.*[\\^$]/g, '\\$&')
}

function nameOf(entry: string): string {
  return entry.replaceAll(/\\([.*[\\^$])/g, '$1')
}

function isClosed(line: string): boolean {
  return words(line)[1].startsWith(closedPrefix)
}

/** A line's first word, and the rest. */
function words(line: string): [string, string] {
  const [, first = '', rest = ''] = /^\s*(\S*)\s*(.*?)\s*$/.exec(line) ?? []
  return [first, rest]
}

function readEntries(entries: string[]): AccessRules {
  const access: AccessRules = {addresses: [], names: []}
  for (const entry of entries.map(one => one.trim())) {
    const address = entry.replace(/^\[(.*)\]/, '$1')
    if (entry === 'ALL' || isIP(address.split('/')[0]!) !== 0) access.addresses.push(address)
    else if (entry !== '' && !entry.startsWith(closedPrefix)) access.names.push(nameOf(entry))
  }
  return access
}

function denied(file: string): StorageError {
  return unavailable(
    `${file} is there: with it ietd lets in everybody whom it does not name, whatever ${allowName} says. Remove it (IET has given it up), or set iet.accessFiles = false and use CHAP`,
  )
}

function unavailable(message: string, cause?: unknown): StorageError {
  return new StorageError('TARGET_UNAVAILABLE', message, {op: 'target.access', cause})
}
