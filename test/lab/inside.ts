// Runs a test file in the lab's VM: node dist/test/lab/inside.js FILE. Each outcome is a line of JSON on standard output,
// and what the file itself writes goes to standard error.
//
// ava's own runner runs the tests, without the command around it: that takes four times as long to start under
// emulation. So this stands for lib/worker/base.js of ava 7.
import {existsSync, readFileSync, writeSync} from 'node:fs'
import {createRequire} from 'node:module'
import {join} from 'node:path'
import {pathToFileURL} from 'node:url'
import {packageRoot} from '../../src/native.js'
import {logFile} from '../run/logs.js'

export interface Outcome {
  title: string
  passed: boolean
  message?: string
  /** What differs, where it happened. */
  details?: string[]
  logs?: string[]
}

interface SerializedError {
  message?: string
  stack?: string
  assertion?: string
  formattedDetails?: {label: string; formatted: string}[]
  formattedError?: string
}

interface StateChange {
  type: string
  title?: string
  err?: SerializedError
  logs?: string[]
}

interface Runner {
  chain: unknown
  on(event: 'stateChange', listener: (change: StateChange) => void): void
  on(event: 'error', listener: (error: Error) => void): void
  on(event: 'finish', listener: () => void): void
}

const [file] = process.argv.slice(2)
if (file && process.env.LUNPATH_INSIDE_LAB === '1') await run(file)

async function run(testFile: string): Promise<void> {
  process.stdout.write = process.stderr.write.bind(process.stderr)
  // By this ava's main module tells that it runs in a worker.
  process.send = () => true
  const library = join(packageRoot(), 'node_modules', 'ava', 'lib')
  const require = createRequire(import.meta.url)
  const load = (name: string) => import(pathToFileURL(join(library, name)).href)
  require(join(library, 'worker', 'options.cjs')).set({})
  ;(await load('chalk.js')).set({level: 0})
  const {default: AvaRunner} = await load('runner.js')
  const runner: Runner = new AvaRunner({
    file: testFile,
    projectDir: packageRoot(),
    serial: true,
    checkSelectedByLineNumbers: () => true,
  })
  require(join(library, 'worker', 'state.cjs')).refs.runnerChain = runner.chain

  let finished = false
  runner.on('stateChange', change => {
    if (change.type === 'test-passed') report({title: change.title!, passed: true, logs: change.logs})
    if (change.type === 'test-failed' || change.type === 'hook-failed') report(failureOf(change))
  })
  runner.on('error', error => crash('ava', error))
  runner.on('finish', () => {
    finished = true
    // An unhandled rejection is noticed after the last test.
    setImmediate(() => process.exit())
  })
  process.on('uncaughtException', error => crash('uncaught exception', error))
  process.on('unhandledRejection', error => crash('unhandled rejection', error as Error))
  process.on('exit', code => {
    if (!finished && code === 0) process.exitCode = 1
  })
  process.env.LUNPATH_TEST_FILE = testFile
  await import(pathToFileURL(testFile).href)
}

const logTailLines = 40

/** The end of the daemon's log, which is gone with the machine. */
function daemonLog(): string[] {
  const path = logFile('daemon')
  if (!existsSync(path) || path === '/dev/null') return []
  const lines = readFileSync(path, 'utf8').trimEnd().split('\n')
  return [`The daemon's log ends:\n${lines.slice(-logTailLines).join('\n')}`]
}

function failureOf({title, err = {}, logs = []}: StateChange): Outcome {
  const details = (err.formattedDetails ?? []).map(({label, formatted}) => `${label}\n${formatted}`)
  if (err.formattedError) details.push(err.formattedError)
  if (err.stack) details.push(err.stack)
  const message = err.message || err.assertion || 'failed'
  return {title: title!, passed: false, message, details, logs: [...logs, ...daemonLog()]}
}

function report(outcome: Outcome): void {
  writeSync(1, `${JSON.stringify(outcome)}\n`)
}

function crash(title: string, error: Error): never {
  report({title, passed: false, message: String(error?.message ?? error), details: [String(error?.stack ?? '')]})
  process.exit(1)
}
