import {spawn} from 'node:child_process'
import {type FileHandle, mkdtemp, open, rm, statfs} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import type {Duplex} from 'node:stream'
import {stripVTControlCharacters} from 'node:util'
import {packageRoot} from '../../src/native.js'
import {type ChannelName, firstChannel, type Machine, type MachineName} from './machine.js'
import {candidates} from './machines.js'

export interface LabOptions {
  /** Default: the one that suits (machines.ts). */
  machine?: MachineName
  /** Default 1024. */
  memoryMiB?: number
  /** Its processors; default 1. For more it takes QEMU, whose emulated ones cost each other more than they bring. */
  cpus?: number
  /** An empty disk for each, /dev/ubda or /dev/vda first, with the serial `lab-disk-1` and so on. Sparse, gone afterwards. */
  disksBytes?: readonly number[]
  /** Kernel modules to load before the command runs, with what they need. */
  modules?: readonly string[]
  /** For the command, beside a small environment of PATH, HOME, LANG and TERM; the caller's own is not passed on. */
  environment?: Readonly<Record<string, string>>
  /** Where the command runs; default the checkout. */
  directory?: string
  /** From the start to the command's end; default 10 minutes, Infinity for none. */
  deadlineMs?: number
  /** Ends the VM at once. */
  signal?: AbortSignal
  onStdout?: (chunk: Buffer) => void
  onStderr?: (chunk: Buffer) => void
  /** The kernel's messages as they come; their end is in a LabError anyway. */
  onConsole?: (chunk: Buffer) => void
  /** Which machine runs the command, and why it is not the one that is tried first. */
  onMachine?: (title: string, reason?: string) => void
  /** The command runs on a terminal that is connected with these, and not with onStdout and onStderr. */
  terminal?: {input: NodeJS.ReadableStream; output: NodeJS.WritableStream; rows: number; columns: number}
  /** The command's standard input and output are connected with these; neither ends while the machine runs. */
  conversation?: {input: NodeJS.ReadableStream; output: NodeJS.WritableStream}
  /** A network interface, cable0, whose frames go to a UDP port of this machine (cable.ts), with its address as 10.0.0.1/24. */
  cable?: {port: number; address: string}
}

export type LabErrorCode = 'LAB_MISSING' | 'LAB_CRASHED' | 'LAB_SETUP' | 'LAB_DEADLINE' | 'LAB_CANCELLED'

/**
 * What went wrong with the machine itself. LAB_MISSING: none comes up here. LAB_CRASHED: its kernel, or the program that
 * runs it, ended before the command did. LAB_SETUP: it could not be put together. LAB_DEADLINE, LAB_CANCELLED.
 */
export class LabError extends Error {
  override readonly name = 'LabError'
  readonly code: LabErrorCode
  /** The last of what the guest's kernel and QEMU said. */
  readonly console: string

  constructor(code: LabErrorCode, message: string, consoleTail = '') {
    super(consoleTail ? `${message}\n${consoleTail}` : message)
    this.code = code
    this.console = consoleTail
  }
}

const consoleTailBytes = 4096
/** What the command wrote is passed on within this time after its end, unless a process cannot be killed. */
const drainMs = 5000

/**
 * Runs a command in a machine with a kernel of its own and this machine's files: it sees all that is here and can write
 * anywhere, but nothing that it writes comes back. /tmp, /run and /dev are its own; no network but loopback, no udevd, no
 * systemd. The kernel is User Mode Linux, or Debian's generic one in a VM (machines.ts says which and why). When the command
 * has ended, so have all processes that it left there. The machine dies with this process.
 * @returns the command's exit code; 128 + n where signal n ended it; 127 and 126 as env(1) gives them
 * @throws LabError
 */
export async function runInLab(command: readonly string[], options: LabOptions = {}): Promise<number> {
  let reason: string | undefined
  for (const machine of candidates(options)) {
    try {
      return await runOn(machine, command, {...options, onMachine: title => options.onMachine?.(title, reason)})
    } catch (error) {
      if (!(error instanceof LabError && error.code === 'LAB_MISSING')) throw error
      reason = reason === undefined ? error.message : `${reason}\n${error.message}`
    }
  }
  throw new LabError('LAB_MISSING', reason!)
}

async function runOn(machine: Machine, command: readonly string[], options: LabOptions): Promise<number> {
  const {deadlineMs = 600_000, signal} = options
  const talk = options.terminal ?? options.conversation
  const missing = machine.missing()
  if (missing) throw new LabError('LAB_MISSING', missing)
  const job = jobText(machine, command, options)
  if (signal?.aborted) throw new LabError('LAB_CANCELLED', 'The lab was cancelled before it started')
  let release: (() => void) | undefined
  const disks = await emptyDisks(options.disksBytes ?? [])
  try {
    const channels: ChannelName[] = ['console', 'control', 'stdout', 'stderr', ...(talk ? ['duplex' as const] : [])]
    const firstDisk = firstChannel + channels.length
    const started = await machine.start(options, {channels, disks: disks.map((_, i) => firstDisk + i)})
    release = started.release
    const {file, args, environment} = started
    return await new Promise<number>((resolve, reject) => {
      const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', file, ...args], {
        // A group of its own: Ctrl-C is for us, who then end it.
        detached: true,
        env: environment ?? process.env,
        stdio: ['ignore', 'pipe', 'pipe', ...channels.map(() => 'pipe' as const), ...disks.map(({fd}) => fd)],
      })
      const [console, control, stdout, stderr, duplex] = child.stdio.slice(firstChannel) as Duplex[]
      let tail = Buffer.alloc(0)
      let ready = false
      let code: number | undefined
      let failure: LabError | undefined
      const kill = () => child.kill('SIGKILL')
      const fail = (errorCode: LabErrorCode, message: string) => {
        failure ??= new LabError(errorCode, message)
        kill()
      }
      const timers: NodeJS.Timeout[] = []
      const after = (ms: number, act: () => void) => {
        if (Number.isFinite(ms)) timers.push(setTimeout(act, ms))
      }
      const note = (chunk: Buffer) => {
        tail = Buffer.concat([tail, chunk]).subarray(-consoleTailBytes)
        options.onConsole?.(chunk)
      }
      for (const stream of [child.stdout, child.stderr, console]) stream?.on('data', note)
      stdout?.on('data', (chunk: Buffer) => options.onStdout?.(chunk))
      stderr?.on('data', (chunk: Buffer) => options.onStderr?.(chunk))
      onLines(control!, line => {
        const [word, rest = ''] = splitOnce(line)
        if (word === 'ready') {
          ready = true
          options.onMachine?.(machine.title)
          control!.write(`${Buffer.from(job).toString('base64')}\n`)
        }
        if (word === 'open') talk?.input.pipe(duplex!)
        if (word === 'error') fail('LAB_SETUP', `The lab could not be set up: ${rest}`)
        if (word === 'drained') kill()
        if (word === 'exit') {
          code = Number(rest)
          after(drainMs, kill)
        }
      })
      if (talk) duplex!.pipe(talk.output, {end: false})
      // Writing to a machine that has ended.
      for (const stream of child.stdio) stream?.on('error', () => undefined)

      after(machine.readyMs, () => {
        if (!ready) fail('LAB_MISSING', `${machine.title} did not come up within ${machine.readyMs} ms`)
      })
      after(deadlineMs, () => fail('LAB_DEADLINE', `The lab did not end within ${deadlineMs} ms`))
      const cancel = () => fail('LAB_CANCELLED', 'The lab was cancelled')
      signal?.addEventListener('abort', cancel, {once: true})

      child.once('error', cause => {
        failure ??= new LabError('LAB_MISSING', `${machine.title} could not be started: ${cause.message}`)
        finish()
      })
      // All that was written has been read by then.
      child.once('close', finish)

      function finish() {
        for (const timer of timers) clearTimeout(timer)
        signal?.removeEventListener('abort', cancel)
        if (talk && duplex) talk.input.unpipe(duplex)
        if (code !== undefined && !failure) return resolve(code)
        const crash = ready
          ? new LabError('LAB_CRASHED', `The lab crashed before ${command[0]} had ended`)
          : new LabError('LAB_MISSING', `${machine.title} ended before it had come up`)
        const error = failure ?? crash
        const said = readable(tail)
        reject(said ? new LabError(error.code, error.message, said) : error)
      }
    })
  } finally {
    release?.()
    await Promise.all(disks.map(disk => disk.close()))
  }
}

/** What scripts/lab-init obeys, which says what the lines mean. */
function jobText(
  machine: Machine,
  command: readonly string[],
  {terminal, conversation, cable, modules = [], disksBytes = [], ...options}: LabOptions,
): string {
  const [file] = command
  if (!file || file.includes('=')) throw new TypeError(`${JSON.stringify(file)} is no command`)
  const environment = {
    PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    HOME: process.env.HOME ?? '/root',
    LANG: 'C.UTF-8',
    TERM: terminal ? (process.env.TERM ?? 'vt100') : 'dumb',
    ...options.environment,
  }
  const lines = [['directory', options.directory ?? packageRoot()]]
  if (conversation) lines.push(['conversation', ''])
  if (cable) lines.push(['cable', cable.address])
  if (terminal) lines.push(['terminal', `${terminal.rows} ${terminal.columns}`])
  if (disksBytes.length > 0) modules = [...machine.diskModules, ...modules]
  if (cable) modules = [...machine.networkModules, ...modules]
  for (const module of modules) lines.push(['module', module])
  for (const [name, value] of Object.entries(environment)) lines.push(['environment', `${name}=${value}`])
  for (const argument of command) lines.push(['argument', argument])
  if (lines.some(([, value]) => value!.includes('\0'))) throw new TypeError('An argument holds a NUL character')
  return lines.map(([word, value]) => `${word} ${Buffer.from(value!).toString('base64')}\n`).join('')
}

/** Sparse files that have no name any more, so that they go with their last descriptor, whatever happens. */
async function emptyDisks(sizesBytes: readonly number[]): Promise<FileHandle[]> {
  if (sizesBytes.length === 0) return []
  const sumBytes = sizesBytes.reduce((sum, size) => sum + size, 0)
  const directory = await mkdtemp(join((await hasRoom(sharedMemory, sumBytes)) ? sharedMemory : tmpdir(), 'lp-lab-'))
  const disks: FileHandle[] = []
  try {
    for (const [i, sizeBytes] of sizesBytes.entries()) {
      const disk = await open(join(directory, `${i}`), 'wx+', 0o600)
      disks.push(disk)
      await disk.truncate(sizeBytes)
    }
  } catch (error) {
    await Promise.all(disks.map(disk => disk.close()))
    throw error
  } finally {
    await rm(directory, {recursive: true, force: true})
  }
  return disks
}

/** A machine whose disk is slow or busy holds up no write there, for which a command in the VM would wait unkillably. */
const sharedMemory = '/dev/shm'

async function hasRoom(directory: string, bytes: number): Promise<boolean> {
  const facts = await statfs(directory).catch(() => undefined)
  return facts !== undefined && facts.bavail * facts.bsize > bytes
}

/** Calls back for each whole line; the rest at the end of the stream is no line. */
export function onLines(stream: NodeJS.ReadableStream, onLine: (line: string) => void): void {
  let rest = ''
  stream.setEncoding('utf8')
  stream.on('data', (chunk: string) => {
    const lines = (rest + chunk).split('\n')
    rest = lines.pop()!
    for (const line of lines) onLine(line)
  })
}

function splitOnce(line: string): [string, string?] {
  const at = line.indexOf(' ')
  return at < 0 ? [line] : [line.slice(0, at), line.slice(at + 1)]
}

/** Without the firmware's colours and the carriage returns of a serial line. */
function readable(bytes: Buffer): string {
  return stripVTControlCharacters(bytes.toString('utf8')).replaceAll('\r', '').trim()
}
