// The titles of all tests, without running one:
//   npm run --silent test:titles [CHECKOUT]                       a line for each test of a built checkout, by default this one
//   npm run --silent test:titles -- --compare BEFORE AFTER        what two such lists, in files, have different
// By this a rearrangement of tests shows that it has lost none.
import {execFile} from 'node:child_process'
import {readdirSync, readFileSync, writeSync} from 'node:fs'
import {createRequire} from 'node:module'
import {availableParallelism} from 'node:os'
import {join, relative, resolve} from 'node:path'
import {fileURLToPath, pathToFileURL} from 'node:url'
import {promisify} from 'node:util'
import {packageRoot} from '../../src/native.js'

const self = fileURLToPath(import.meta.url)
const usage = 'Usage: npm run --silent test:titles -- [CHECKOUT | --compare BEFORE AFTER]'

/** A test as its line in a list names it: its compiled file below dist/test, and its title. */
export interface Named {
  file: string
  title: string
}

/** Between file and title; no name of a file has blanks. */
const separator = ' › '

/** @returns the tests of a built checkout, files sorted, titles in the order in which they are declared */
export async function testsOf(checkout: string): Promise<Named[]> {
  const top = join(checkout, 'dist', 'test')
  const names = readdirSync(top, {recursive: true, encoding: 'utf8'}).filter(name => name.endsWith('.test.js'))
  const files = names.sort().map(name => join(top, name))
  const tests = new Map<string, Named[]>()
  const queue = [...files]
  const work = async () => {
    for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
      const name = relative(top, file).replace(/\.test\.js$/, '')
      const titles = await titlesOf(checkout, file)
      tests.set(
        file,
        titles.map(title => ({file: name, title})),
      )
    }
  }
  await Promise.all(Array.from({length: availableParallelism()}, work))
  return files.flatMap(file => tests.get(file)!)
}

/** Each file in a process of its own, as ava has it: what one does when it is loaded is not seen by another. */
async function titlesOf(checkout: string, file: string): Promise<string[]> {
  const args = [self, '--declare', checkout, file]
  // A title may name the seed of its test.
  const env = {...process.env, LUNPATH_TEST_SEED: '1'}
  const {stdout} = await promisify(execFile)(process.execPath, args, {cwd: checkout, env, maxBuffer: 2 ** 26})
  return JSON.parse(stdout) as string[]
}

interface Metadata {
  type: string
}

interface ParsedArgs {
  title: {value: string}
}

/**
 * Loads a test file with a `test` that notes titles and runs nothing, and prints them as JSON. It stands for
 * lib/worker/base.js of ava 7, as test/lab/inside.ts does.
 */
async function declare(checkout: string, file: string): Promise<void> {
  process.stdout.write = process.stderr.write.bind(process.stderr)
  // By this ava's main module tells that it runs in a worker.
  process.send = () => true
  const library = join(checkout, 'node_modules', 'ava', 'lib')
  const require = createRequire(join(library, 'runner.js'))
  const load = (name: string) => import(pathToFileURL(join(library, name)).href)
  const {default: createChain} = await load('create-chain.js')
  const {default: parse} = (await load('parse-test-args.js')) as {default: (args: unknown[]) => ParsedArgs}
  require(join(library, 'worker', 'options.cjs')).set({})
  const titles: string[] = []
  const note = ({type}: Metadata, args: unknown[]) => {
    if (type === 'test') titles.push(parse(args).title.value)
  }
  require(join(library, 'worker', 'state.cjs')).refs.runnerChain = createChain(
    note,
    {},
    {file: pathToFileURL(file).href},
  )
  await import(pathToFileURL(file).href)
  writeSync(1, JSON.stringify(titles))
  process.exit()
}

export function asLine({file, title}: Named): string {
  return `${file}${separator}${title}`
}

export interface Difference {
  /** Tests whose title no file has instead. */
  gone: Named[]
  /** Tests whose title another file has now and had not before. */
  moved: {from: Named; to: string}[]
}

/** @param before and after lines of lists */
export function difference(before: readonly string[], after: readonly string[]): Difference {
  const known = new Set(before)
  const kept = new Set(after)
  const arrived = after.filter(line => !known.has(line)).map(named)
  const result: Difference = {gone: [], moved: []}
  for (const from of before.filter(line => !kept.has(line)).map(named)) {
    const at = arrived.findIndex(({title}) => title === from.title)
    // Each that has arrived stands for one that has left.
    if (at < 0) result.gone.push(from)
    else result.moved.push({from, to: arrived.splice(at, 1)[0]!.file})
  }
  return result
}

function named(line: string): Named {
  const at = line.indexOf(separator)
  if (at < 0) throw new TypeError(`${JSON.stringify(line)} is no line of a list of titles`)
  return {file: line.slice(0, at), title: line.slice(at + separator.length)}
}

const linesOf = (file: string) => readFileSync(file, 'utf8').split('\n').filter(Boolean)

/** @returns the exit code */
function compare(beforeFile: string, afterFile: string): number {
  const [before, after] = [linesOf(beforeFile), linesOf(afterFile)]
  const {gone, moved} = difference(before, after)
  for (const test of gone) console.log(`gone: ${asLine(test)}`)
  for (const {from, to} of moved) console.log(`moved: ${asLine(from)} (to ${to})`)
  console.log(`${before.length} titles before, ${after.length} after; ${gone.length} gone, ${moved.length} moved`)
  return gone.length > 0 ? 1 : 0
}

async function main(args: string[]): Promise<number> {
  const [first, ...rest] = args
  if (first === '--declare') await declare(rest[0]!, rest[1]!)
  if (first === '--compare' && rest.length === 2) return compare(rest[0]!, rest[1]!)
  if (first?.startsWith('-') || rest.length > 0) {
    console.error(usage)
    return 2
  }
  for (const test of await testsOf(resolve(first ?? packageRoot()))) console.log(asLine(test))
  return 0
}

// Not awaited: a test file that is loaded here may import this module.
if (process.argv[1] === self) {
  void main(process.argv.slice(2)).then(code => {
    process.exitCode = code
  })
}
