// Lists every test without running one: npm run test:titles [-- --since FILE]. Each line is a file and a title. With a
// list of before it prints what has moved to another file since then, and what is gone; the latter is an error.
import {execFile} from 'node:child_process'
import {readdirSync, readFileSync} from 'node:fs'
import {availableParallelism} from 'node:os'
import {join} from 'node:path'
import {fileURLToPath} from 'node:url'
import {parseArgs, promisify} from 'node:util'
import {packageRoot} from '../../src/native.js'

export interface Titled {
  file: string
  title: string
}

export interface Difference {
  gone: Titled[]
  moved: {title: string; from: string; to: string}[]
}

/** A title that left one file and came to another has moved; one that came to none is gone, even if a third has it. */
export function differenceOf(before: readonly Titled[], after: readonly Titled[]): Difference {
  const filesBefore = filesByTitle(before)
  const filesAfter = filesByTitle(after)
  const difference: Difference = {gone: [], moved: []}
  for (const [title, files] of filesBefore) {
    const there = filesAfter.get(title) ?? []
    const arrived = there.filter(file => !files.includes(file))
    for (const from of files.filter(file => !there.includes(file))) {
      const to = arrived.shift()
      if (to === undefined) difference.gone.push({file: from, title})
      else difference.moved.push({title, from, to})
    }
  }
  return difference
}

function filesByTitle(titles: readonly Titled[]): Map<string, string[]> {
  const files = new Map<string, string[]>()
  for (const {file, title} of titles) files.set(title, [...(files.get(title) ?? []), file])
  return files
}

export function formatTitles(titles: readonly Titled[]): string {
  return titles.map(({file, title}) => `${file}\t${title}\n`).join('')
}

export function parseTitles(text: string): Titled[] {
  return text
    .split('\n')
    .filter(Boolean)
    .map(line => {
      const [file = '', title = ''] = line.split('\t')
      return {file, title}
    })
}

/** What the compiled test files declare, each in a process of its own as under ava. */
export async function titlesOf(files: readonly string[]): Promise<Titled[]> {
  const declare = fileURLToPath(new URL('declare.js', import.meta.url))
  const titles = new Map<string, Titled[]>()
  const waiting = [...files]
  const worker = async () => {
    for (let file = waiting.shift(); file; file = waiting.shift()) {
      const {stdout} = await promisify(execFile)(process.execPath, [declare, join(packageRoot(), file)])
      titles.set(file, parseTitles(stdout))
    }
  }
  await Promise.all(Array.from({length: availableParallelism()}, worker))
  return files.flatMap(file => titles.get(file) ?? [])
}

function compiledTests(): string[] {
  const directory = join(packageRoot(), 'dist/test')
  const names = readdirSync(directory, {recursive: true, encoding: 'utf8'}).filter(name => name.endsWith('.test.js'))
  return names.map(name => join('dist/test', name)).sort()
}

async function main(): Promise<void> {
  const {values, positionals} = parseArgs({options: {since: {type: 'string'}}, allowPositionals: true})
  const titles = await titlesOf(positionals.length > 0 ? positionals : compiledTests())
  if (values.since === undefined) {
    process.stdout.write(formatTitles(titles))
    return
  }
  const before = parseTitles(readFileSync(values.since, 'utf8'))
  const {gone, moved} = differenceOf(before, titles)
  for (const {title, from, to} of moved) process.stdout.write(`moved: ${title}: ${from} → ${to}\n`)
  for (const {file, title} of gone) process.stdout.write(`gone: ${title}: ${file}\n`)
  process.stdout.write(
    `${before.length} titles before, ${titles.length} now, ${moved.length} moved, ${gone.length} gone\n`,
  )
  if (gone.length > 0) process.exitCode = 1
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main()
