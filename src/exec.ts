import {type ChildProcess, spawn} from 'node:child_process'
import {readFile} from 'node:fs/promises'
import {basename} from 'node:path'
import {StorageError} from './errors.js'

export interface RunOptions {
  /** Milliseconds until the process group is ended; default 30,000. */
  timeoutMs?: number
  signal?: AbortSignal
  /** Written to standard input, which is then closed. The place for a secret: arguments are visible to everybody. */
  input?: string | Buffer
  /** Added to a small environment (PATH, HOME, LC_ALL=C); the caller's own environment is not passed on. */
  env?: Record<string, string>
  /** Most bytes of standard output and of standard error; default 1 MiB each. More ends the process group. */
  maxOutputBytes?: number
  /** Exit codes that are an answer and not a failure; default only 0. */
  accept?: readonly number[]
}

export interface RunResult {
  stdout: string
  stderr: string
  code: number
}

/** After SIGTERM, and again after SIGKILL, the process group gets this long. */
const graceMs = 1000
const sbin = ['/usr/local/sbin', '/usr/sbin', '/sbin']

/**
 * Runs a program without a shell and waits for its end: the only place in lunpath that spawns one to get an answer.
 * The child leads a process group of its own. At the deadline, on abort and on too much output the group gets SIGTERM,
 * then SIGKILL. A child that SIGKILL does not end (state D: it waits for a device) is reported and left behind.
 * @throws DEPENDENCY_MISSING (no such program), COMMAND_FAILED (another exit code than accepted, a signal, too much
 * output), TIMEOUT, CANCELLED. `info` has file, args, exitCode or exitSignal, and the end of standard error.
 */
export async function run(file: string, args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  const {timeoutMs = 30_000, signal, input, maxOutputBytes = 2 ** 20, accept = [0]} = options
  if (args.some(argument => argument.includes('\0'))) throw new TypeError('An argument holds a NUL character')
  const name = basename(file)
  const facts: Record<string, unknown> = {file, args: [...args]}
  if (signal?.aborted) throw new StorageError('CANCELLED', `${name} was cancelled before it ran`, {info: facts})

  const child = spawn(file, args, {
    detached: true,
    shell: false,
    stdio: ['pipe', 'pipe', 'pipe'],
    env: {...baseEnvironment(), ...options.env, LC_ALL: 'C'},
  })
  const ended = ending(child)
  // A child that closes its standard input early is no failure; its exit code says what matters.
  child.stdin.on('error', () => undefined)
  child.stdin.end(input)

  let stop: ((reason: 'timeout' | 'abort' | 'output') => void) | undefined
  const stopped = new Promise<'timeout' | 'abort' | 'output'>(resolve => {
    stop = resolve
  })
  const stdout = collect(child.stdout, maxOutputBytes, () => stop?.('output'))
  const stderr = collect(child.stderr, maxOutputBytes, () => stop?.('output'))
  const timer = setTimeout(() => stop?.('timeout'), timeoutMs)
  const onAbort = () => stop?.('abort')
  signal?.addEventListener('abort', onAbort, {once: true})

  try {
    const outcome = await Promise.race([ended, stopped])
    if (typeof outcome === 'string') {
      await endGroup(child, ended, facts)
      facts.stderr = tail(stderr())
      throw stopError(outcome, {name, timeoutMs, maxOutputBytes, facts})
    }
    if (outcome.error) throw startError(outcome.error, name, facts)
    const {code, exitSignal} = outcome
    if (code !== null && accept.includes(code)) return {stdout: stdout(), stderr: stderr(), code}
    Object.assign(facts, {exitCode: code, exitSignal, stderr: tail(stderr())})
    const how = code === null ? `was ended by ${exitSignal}` : `exited with status ${code}`
    throw new StorageError('COMMAND_FAILED', `${name} ${how}: ${tail(stderr()) || 'it said nothing'}`, {info: facts})
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', onAbort)
  }
}

interface Ending {
  code: number | null
  exitSignal: NodeJS.Signals | null
  error?: Error
}

/** Resolves when the child has ended and its pipes are drained. */
function ending(child: ChildProcess): Promise<Ending> {
  return new Promise(resolve => {
    child.once('error', error => resolve({code: null, exitSignal: null, error}))
    child.once('close', (code, exitSignal) => resolve({code, exitSignal}))
  })
}

function collect(stream: NodeJS.ReadableStream, limitBytes: number, onOverflow: () => void): () => string {
  const chunks: Buffer[] = []
  let bytes = 0
  stream.on('data', (chunk: Buffer) => {
    if (bytes > limitBytes) return
    bytes += chunk.length
    if (bytes > limitBytes) return onOverflow()
    chunks.push(chunk)
  })
  return () => Buffer.concat(chunks).toString('utf8')
}

/** Ends the child's whole group; what SIGKILL cannot end is noted in `facts` and let go. */
async function endGroup(child: ChildProcess, ended: Promise<Ending>, facts: Record<string, unknown>): Promise<void> {
  for (const how of ['SIGTERM', 'SIGKILL'] as const) {
    signalGroup(child, how)
    if (await settlesWithin(ended, graceMs)) {
      // A grandchild that closed its pipes is still in the group.
      signalGroup(child, 'SIGKILL')
      return
    }
  }
  if (child.exitCode === null && child.signalCode === null) {
    Object.assign(facts, await leftFacts(child.pid!))
  } else {
    facts.outputHeld = true
  }
  for (const stream of [child.stdin, child.stdout, child.stderr]) stream?.destroy()
  child.unref()
}

function signalGroup(child: ChildProcess, how: NodeJS.Signals): void {
  if (child.pid === undefined) return
  try {
    process.kill(-child.pid, how)
  } catch {
    // ESRCH: nobody of the group is left.
  }
}

async function settlesWithin(promise: Promise<unknown>, ms: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<boolean>(resolve => {
    timer = setTimeout(() => resolve(false), ms)
  })
  const settled = await Promise.race([promise.then(() => true), late])
  clearTimeout(timer)
  return settled
}

/** What is known of a process that SIGKILL does not end. */
export interface LeftFacts {
  leftPid: number
  /** D: an uninterruptible sleep. */
  leftState?: string
  /** The kernel's functions that it is in, innermost first; only root can ask. */
  leftIn?: string[]
}

/** Source: proc(5), /proc/pid/stat and /proc/pid/stack. */
export async function leftFacts(pid: number): Promise<LeftFacts> {
  // Empty where it has ended after all, or where that is not ours to know.
  const read = (name: string) => readFile(`/proc/${pid}/${name}`, 'utf8').catch(() => '')
  const [stat, stack] = await Promise.all([read('stat'), read('stack')])
  // The name before the state may hold blanks and brackets.
  const state = /^\) ([A-Za-z]) /.exec(stat.slice(stat.lastIndexOf(')')))?.[1]
  const functions = [...stack.matchAll(/^\[<\w+>\] (\w+)/gm)].map(([, name]) => name!)
  return {leftPid: pid, ...(state && {leftState: state}), ...(functions.length > 0 && {leftIn: functions})}
}

/** For a message, after what did not end. */
export function leftWords({leftPid, leftState, leftIn}: LeftFacts): string {
  const where = leftIn ? ` (${leftIn.slice(0, 8).join(' < ')})` : ''
  return `; process ${leftPid} is left in state ${leftState ?? 'unknown'}${where}`
}

function startError(cause: Error, name: string, info: Record<string, unknown>): StorageError {
  const {code} = cause as NodeJS.ErrnoException
  if (code === 'ENOENT' || code === 'EACCES') {
    return new StorageError('DEPENDENCY_MISSING', `The program ${name} cannot be run: ${code}`, {info, cause})
  }
  return new StorageError('COMMAND_FAILED', `${name} could not be started: ${cause.message}`, {info, cause})
}

function stopError(
  reason: 'timeout' | 'abort' | 'output',
  {
    name,
    timeoutMs,
    maxOutputBytes,
    facts,
  }: {
    name: string
    timeoutMs: number
    maxOutputBytes: number
    facts: Record<string, unknown>
  },
): StorageError {
  const stuck = facts.leftPid === undefined ? '' : leftWords(facts as unknown as LeftFacts)
  const left = facts.outputHeld ? '; it has ended, but a descendant holds its output open' : stuck
  if (reason === 'timeout') {
    return new StorageError('TIMEOUT', `${name} did not end within ${timeoutMs} ms${left}`, {info: facts})
  }
  if (reason === 'abort') return new StorageError('CANCELLED', `${name} was cancelled${left}`, {info: facts})
  return new StorageError('COMMAND_FAILED', `${name} wrote more than ${maxOutputBytes} bytes${left}`, {info: facts})
}

function baseEnvironment(): Record<string, string> {
  const path = (process.env.PATH ?? '/usr/bin:/bin').split(':')
  const environment: Record<string, string> = {
    PATH: [...path, ...sbin.filter(directory => !path.includes(directory))].join(':'),
  }
  if (process.env.HOME !== undefined) environment.HOME = process.env.HOME
  return environment
}

/** The last lines of what a program said on standard error: enough to name the cause, short enough for a message. */
function tail(text: string): string {
  return text.trim().slice(-500)
}
