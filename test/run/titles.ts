// The titles of all tests, without running them: node dist/test/run/titles.js [CHECKOUT]. With the directory of another built
// checkout, those of its titles that are no more here; the exit code is 1 if there are any.
//
// Each file is loaded in a process of its own with a runner of ava's that is never started: what stands for a worker of ava 7
// is as in test/lab/inside.ts.
import {execFile} from 'node:child_process'
import {readdirSync} from 'node:fs'
import {createRequire} from 'node:module'
import {join, resolve} from 'node:path'
import {fileURLToPath, pathToFileURL} from 'node:url'
import {promisify} from 'node:util'
import {packageRoot} from '../../src/native.js'

interface Tasks {
  [kind: string]: {title: string}[]
}

async function declare(root: string, file: string): Promise<void> {
  const print = process.stdout.write.bind(process.stdout)
  process.stdout.write = process.stderr.write.bind(process.stderr)
  process.send = () => true
  const library = join(root, 'node_modules', 'ava', 'lib')
  const require = createRequire(join(root, 'package.json'))
  require(join(library, 'worker', 'options.cjs')).set({})
  const load = (name: string) => import(pathToFileURL(join(library, name)).href)
  const {default: Runner} = await load('runner.js')
  const runner = new Runner({file, projectDir: root, serial: true, checkSelectedByLineNumbers: () => true}) as {
    chain: unknown
    tasks: Tasks
  }
  require(join(library, 'worker', 'state.cjs')).refs.runnerChain = runner.chain
  await import(pathToFileURL(file).href)
  const kinds = ['serial', 'concurrent', 'todo']
  const titles = kinds.flatMap(kind => (runner.tasks[kind] ?? []).map(({title}) => title))
  print(JSON.stringify(titles), () => process.exit())
}

/** All titles of a built checkout, sorted, with the file that each is in. */
async function titlesOf(root: string): Promise<Map<string, string>> {
  const top = join(root, 'dist', 'test')
  const files = readdirSync(top, {recursive: true, encoding: 'utf8'}).filter(name => name.endsWith('.test.js'))
  const all = new Map<string, string>()
  for (const name of files.sort()) {
    const args = [fileURLToPath(import.meta.url), '--declare', root, join(top, name)]
    const {stdout} = await promisify(execFile)(process.execPath, args, {cwd: root, maxBuffer: 2 ** 24})
    // A seed differs each time.
    for (const title of JSON.parse(stdout) as string[])
      all.set(title.replace(/seed \d+/, 'seed N'), name.replace(/\.test\.js$/, ''))
  }
  return all
}

async function main([first, ...rest]: string[]): Promise<void> {
  if (first === '--declare') return declare(rest[0]!, rest[1]!)
  const here = await titlesOf(packageRoot())
  if (first === undefined) {
    for (const [title, file] of here) console.log(`${file} › ${title}`)
    return
  }
  const gone = [...(await titlesOf(resolve(first)))].filter(([title]) => !here.has(title))
  for (const [title, file] of gone) console.log(`gone: ${file} › ${title}`)
  console.log(`${here.size} titles here, ${gone.length} gone`)
  process.exitCode = gone.length > 0 ? 1 : 0
}

await main(process.argv.slice(2))
