// Runs the tests: node dist/test/run/main.js [--quick] [--record] [ava's arguments]. Standard output is ava's, with what
// observe.ts adds; what is said here goes to standard error.
import {type ChildProcess, spawn} from 'node:child_process'
import {once} from 'node:events'
import {chmod, mkdtemp} from 'node:fs/promises'
import {join} from 'node:path'
import {packageRoot} from '../../src/native.js'
import {endProcesses, mark, removeLeftovers, removeRun, runPrefix, runVariable} from './leftovers.js'
import {logsVariable, makeLogs, removeIfEmpty} from './logs.js'
import {recordVariable} from './observe.js'
import {quickFiles} from './quick.js'

const say = (text: string) => process.stderr.write(`${text}\n`)
const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const
const patienceMs = 1000

async function main(args: string[]): Promise<number> {
  const own = ['--quick', '--record']
  const [quick, recording] = own.map(flag => args.includes(flag))
  const avaArgs = args.filter(arg => !own.includes(arg))
  if (recording && avaArgs.some(arg => /^(-m|--match)/.test(arg))) {
    say('--record: the seconds of a file are those of all its tests. Leave out --match')
    return 2
  }
  if (quick) avaArgs.push(...quickFiles())
  // Short, since the paths of unix sockets below it must stay under 108 bytes (unix(7)). What must lie on a tmpfs lies in the
  // second: sparse files of many TiB, the files of loop devices.
  const folders = ['/tmp', '/dev/shm']
  for (const folder of folders) {
    for (const directory of await removeLeftovers(folder))
      say(`${directory}: removed, a run that was killed had left it`)
  }
  const made: string[] = []
  const logs = makeLogs()
  try {
    for (const folder of folders) {
      const directory = await mkdtemp(join(folder, runPrefix))
      made.push(directory)
      await mark(directory)
      await chmod(directory, 0o755)
    }
    const [scratch, tmpfs] = made as [string, string]
    const environment = {
      ...process.env,
      [runVariable]: scratch,
      TMPDIR: scratch,
      LUNPATH_TEST_TMPFS: tmpfs,
      [logsVariable]: logs,
      [recordVariable]: recording ? '1' : '',
    }
    const code = await runAva(avaArgs, environment)
    await endProcesses(scratch)
    return code
  } finally {
    for (const directory of made) await removeRun(directory)
    removeIfEmpty(logs)
  }
}

/** @returns ava's exit code, or 128 + n where signal n ended it or us */
async function runAva(args: string[], env: NodeJS.ProcessEnv): Promise<number> {
  const ava = join(packageRoot(), 'node_modules', 'ava', 'entrypoints', 'cli.mjs')
  const command = ['--pdeathsig', 'KILL', '--', process.execPath, ava, ...args]
  const child = spawn('setpriv', command, {cwd: packageRoot(), env, stdio: 'inherit'})
  const stop = forwardSignals(child)
  const [code, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null]
  const ending = stop() ?? signal
  return ending ? 128 + signalNumbers[ending]! : code!
}

const signalNumbers: Partial<Record<NodeJS.Signals, number>> = {SIGHUP: 1, SIGINT: 2, SIGKILL: 9, SIGTERM: 15}

/** @returns a function that ends it and tells the signal that came, if any */
function forwardSignals(child: ChildProcess): () => NodeJS.Signals | undefined {
  let came: NodeJS.Signals | undefined
  let cameMs = 0
  const forward = (signal: NodeJS.Signals) => {
    // Ctrl-C comes from the terminal and from npm. A later one is for those who do not want to wait.
    if (came && performance.now() - cameMs < patienceMs) return
    // For SIGINT alone ava ends its workers and says what ran.
    child.kill(came ? 'SIGKILL' : 'SIGINT')
    came = signal
    cameMs = performance.now()
  }
  for (const signal of signals) process.on(signal, forward)
  return () => {
    for (const signal of signals) process.off(signal, forward)
    return came
  }
}

main(process.argv.slice(2)).then(
  code => {
    process.exitCode = code
  },
  error => {
    say(error.stack ?? String(error))
    process.exitCode = 1
  },
)
