// Loads a compiled test file with a runner of ava's that never starts, and prints what it declares: for titles.ts, which
// says the form. It stands for lib/worker/base.js of ava 7, as test/lab/inside.ts does.
import {writeFileSync} from 'node:fs'
import {createRequire} from 'node:module'
import {join, relative} from 'node:path'
import {pathToFileURL} from 'node:url'
import {packageRoot} from '../../src/native.js'

interface Runner {
  chain: unknown
  start(): void
  on(event: 'stateChange', listener: (change: {type: string; title?: string}) => void): void
}

const [file] = process.argv.slice(2)
if (!file) throw new TypeError('A compiled test file is needed')

// By this ava's main module tells that it runs in a worker.
process.send = () => true
const library = join(packageRoot(), 'node_modules', 'ava', 'lib')
const require = createRequire(import.meta.url)
require(join(library, 'worker', 'options.cjs')).set({})
const load = (name: string) => import(pathToFileURL(join(library, name)).href)
;(await load('chalk.js')).set({level: 0})
const {default: AvaRunner} = await load('runner.js')
const runner: Runner = new AvaRunner({file, projectDir: packageRoot()})
runner.start = () => undefined
require(join(library, 'worker', 'state.cjs')).refs.runnerChain = runner.chain

const source = relative(join(packageRoot(), 'dist'), file).replace(/\.js$/, '.ts')
const lines: string[] = []
runner.on('stateChange', ({type, title}) => {
  if (type === 'declared-test') lines.push(`${source}\t${title}\n`)
})
await import(pathToFileURL(file).href)
// The runner tells of a declaration in a later turn; and the file may have started what would go on.
setImmediate(() => {
  writeFileSync(1, lines.join(''))
  process.exit()
})
