// Runs the tests: node dist/test/run/main.js [--quick] [--record] [ava's arguments]. Standard output is ava's; what is said
// here goes to standard error.
import {type ChildProcess, spawn} from 'node:child_process'
import {once} from 'node:events'
import {chmod, mkdir, mkdtemp, readdir, rm} from 'node:fs/promises'
import {join} from 'node:path'
import {packageRoot} from '../../src/native.js'
import {endProcesses, mark, removeLeftovers, removeRun, runPrefix, runVariable} from './leftovers.js'
import {quickFiles} from './quick.js'
import {readNotes, record} from './seconds.js'

const say = (text: string) => process.stderr.write(`${text}\n`)
const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const
/** After so long without a file that has ended, those that run are named. */
const silenceMs = 30_000
const slowestShown = 10

async function main(args: string[]): Promise<number> {
  const own = ['--quick', '--record']
  const [quick, recording] = own.map(flag => args.includes(flag))
  const avaArgs = args.filter(arg => !own.includes(arg))
  if (quick) avaArgs.push(...quickFiles())
  // Short, since the paths of unix sockets below it must stay under 108 bytes (unix(7)). What must lie on a tmpfs lies in the
  // second: sparse files of many TiB, the files of loop devices.
  const folders = ['/tmp', '/dev/shm']
  for (const folder of folders) {
    for (const directory of await removeLeftovers(folder))
      say(`${directory}: removed, a run that was killed had left it`)
  }
  const made: string[] = []
  const logs = join(packageRoot(), '.cache', 'test-logs', `${Date.now()}-${process.pid}`)
  try {
    for (const folder of folders) {
      const directory = await mkdtemp(join(folder, runPrefix))
      made.push(directory)
      await mark(directory)
      await chmod(directory, 0o755)
    }
    const [scratch, tmpfs] = made as [string, string]
    await mkdir(logs, {recursive: true})
    const times = join(scratch, 'times')
    const environment = {
      ...process.env,
      [runVariable]: scratch,
      TMPDIR: scratch,
      LUNPATH_TEST_TMPFS: tmpfs,
      LUNPATH_TEST_TIMES: times,
      LUNPATH_TEST_LOGS: logs,
    }
    const code = await runAva(avaArgs, environment, times)
    await endProcesses(scratch)
    const {ended} = readNotes(times)
    sayTimes(ended)
    if (recording) say(`test/seconds.json has the seconds of ${record(ended)} files now`)
    if (code === 0) await rm(logs, {recursive: true, force: true})
    else await sayLogs(logs)
    return code
  } finally {
    for (const directory of made) await removeRun(directory)
  }
}

/** @returns ava's exit code, or 128 + n where signal n ended it or us */
async function runAva(args: string[], env: NodeJS.ProcessEnv, times: string): Promise<number> {
  const ava = join(packageRoot(), 'node_modules', 'ava', 'entrypoints', 'cli.mjs')
  const command = ['--pdeathsig', 'KILL', '--', process.execPath, ava, ...args]
  const child = spawn('setpriv', command, {cwd: packageRoot(), env, stdio: 'inherit'})
  const stop = forwardSignals(child)
  const follower = follow(times)
  try {
    const [code, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null]
    const ending = stop() ?? signal
    return ending ? 128 + signalNumbers[ending]! : code!
  } finally {
    clearInterval(follower)
  }
}

const signalNumbers: Partial<Record<NodeJS.Signals, number>> = {SIGHUP: 1, SIGINT: 2, SIGKILL: 9, SIGTERM: 15}

/** @returns a function that ends it and tells the signal that came, if any */
function forwardSignals(child: ChildProcess): () => NodeJS.Signals | undefined {
  let came: NodeJS.Signals | undefined
  const forward = (signal: NodeJS.Signals) => {
    // A second one is for those who do not want to wait.
    child.kill(came ? 'SIGKILL' : signal)
    came = signal
  }
  for (const signal of signals) process.on(signal, forward)
  return () => {
    for (const signal of signals) process.off(signal, forward)
    return came
  }
}

/** Tells of each file that ends how long it took, and after a silence which files run. */
function follow(times: string): NodeJS.Timeout {
  let told = 0
  let lastMs = performance.now()
  return setInterval(() => {
    const {ended, running} = readNotes(times)
    const news = ended.slice(told)
    told = ended.length
    for (const [name, seconds] of news) say(`# ${seconds.toFixed(1).padStart(6)} s  ${name}`)
    const now = performance.now()
    if (news.length > 0) lastMs = now
    else if (running.length > 0 && now - lastMs > silenceMs) {
      say(`# runs: ${running.join(', ')}`)
      lastMs = now
    }
  }, 500)
}

function sayTimes(ended: readonly [string, number][]): void {
  const slowest = [...ended].sort(([, a], [, b]) => b - a).slice(0, slowestShown)
  if (slowest.length < 2) return
  say(`# the slowest ${slowest.length} of ${ended.length} files:`)
  for (const [name, seconds] of slowest) say(`# ${seconds.toFixed(1).padStart(6)} s  ${name}`)
}

async function sayLogs(logs: string): Promise<void> {
  const names = await readdir(logs)
  if (names.length === 0) {
    await rm(logs, {recursive: true, force: true})
    return
  }
  say(`# the daemons' logs, one for each test file that had one, are in ${logs}`)
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
