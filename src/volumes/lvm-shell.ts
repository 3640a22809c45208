import {type ChildProcess, spawn} from 'node:child_process'
import {EventEmitter, once} from 'node:events'
import type {Readable, Writable} from 'node:stream'
import {hasCode, StorageError} from '../errors.js'
import {leftFacts, leftWords, run} from '../exec.js'
import type {LvmSystem} from './lvm-config.js'
import {shellLine} from './lvm-grammar.js'
import {LvmDocuments, type LvmReply, lvmFailure, lvmSuccess, parseLvmDocument} from './lvm-report.js'

export interface LvmShellOptions {
  /** LVM_SYSTEM_DIR, with a configuration of our own; it is refreshed before each command. */
  system: LvmSystem
  /** The program; default `lvm` of the PATH. */
  program?: string
  /** Milliseconds for one command, from when its turn has come; default 60,000. */
  timeoutMs?: number
  /**
   * Called after a shell was lost in mid-command, before any other command runs: what the command left behind is to be
   * cleared up. `run` runs commands in the new shell.
   */
  recover?: (run: LvmRun) => Promise<void>
}

export type LvmRun = (args: readonly string[], options?: {timeoutMs?: number}) => Promise<LvmReply>

interface Events {
  /** The shell was lost; a new one takes over. */
  lost: [facts: {reason: string; command: string | null}]
  /** No shell can be had: from now on each command is a process of its own. */
  fallback: [facts: {reason: string}]
  /** What was to be cleared up after a loss could not be. */
  unrecovered: [error: unknown]
}

interface Command {
  args: readonly string[]
  line: string
  timeoutMs: number
  resolve: (reply: LvmReply) => void
  reject: (error: unknown) => void
}

/** A start of LVM reads all devices, and the first command is slow. */
const startTimeoutMs = 60_000
const killGraceMs = 2000
const stderrTailBytes = 2000
/** Shells that end without an answer, one after the other, before there is none to be had. */
const maxStarts = 3

/**
 * A long-lived `lvm` process: commands go in as lines, answers come back as JSON on descriptor 3 (LVM_REPORT_FD,
 * lvmreport(7)). Many may be under way: they are written at once and run one after the other, each with an answer of its
 * own. A spawn per command takes five to seven times as long (bench lvm).
 *
 * A shell that dies, or misses the deadline and is killed, fails the one command that was running: `info.interrupted`
 * says that nobody knows whether it took effect. Those behind it had not begun; they run in the next shell.
 */
export class LvmShell extends EventEmitter<Events> {
  readonly #program: string
  readonly #timeoutMs: number
  readonly #environment: Record<string, string>
  readonly #system: LvmSystem
  readonly #recover: LvmShellOptions['recover']
  readonly #waiting: Command[] = []
  #sent: Command[] = []
  #child: ChildProcess | undefined
  #starting: Promise<void> | undefined
  #ready = false
  #spawning = false
  #spawned: Promise<unknown> = Promise.resolve()
  #timer: NodeJS.Timeout | undefined
  /** Why the running command is being killed. */
  #overdue: string | undefined
  #lostCommand = false
  #closed = false

  constructor({system, program = 'lvm', timeoutMs = 60_000, recover}: LvmShellOptions) {
    super()
    this.#system = system
    this.#program = program
    this.#timeoutMs = timeoutMs
    this.#recover = recover
    this.#environment = {LVM_SYSTEM_DIR: system.directory, LVM_SUPPRESS_FD_WARNINGS: '1'}
  }

  /** `shell`, or `spawn` where each command is a process of its own. */
  get mode(): 'shell' | 'spawn' {
    return this.#spawning ? 'spawn' : 'shell'
  }

  /** The shell's process, while there is one. */
  get pid(): number | undefined {
    return this.#child?.pid
  }

  /**
   * Runs one command: its name, then its arguments.
   * @throws COMMAND_FAILED (`info.errors` has what LVM said; with `info.interrupted` it may have taken effect), TIMEOUT,
   * DEPENDENCY_MISSING (there is no such program)
   */
  run(args: readonly string[], {timeoutMs = this.#timeoutMs}: {timeoutMs?: number} = {}): Promise<LvmReply> {
    if (this.#closed) return Promise.reject(closedError())
    return new Promise((resolve, reject) => {
      this.#waiting.push({args, line: shellLine(args), timeoutMs, resolve, reject})
      this.#proceed()
    })
  }

  /** Waits for what was asked for, then ends the shell. Safe to call twice. */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    while (this.#starting || this.#sent.length + this.#waiting.length > 0)
      await new Promise(resolve => setTimeout(resolve, 5))
    await this.#spawned
    const child = this.#child
    if (!child) return
    this.#child = undefined
    const ended = once(child, 'close')
    child.stdin!.end()
    const timer = setTimeout(() => child.kill('SIGKILL'), killGraceMs)
    await ended
    clearTimeout(timer)
  }

  #proceed(): void {
    if (this.#spawning) {
      this.#proceedBySpawns()
      return
    }
    if (this.#ready) {
      for (const command of this.#waiting.splice(0)) this.#send(command)
      return
    }
    this.#starting ??= this.#start().finally(() => {
      this.#starting = undefined
      if (this.#waiting.length > 0) this.#proceed()
    })
  }

  /** Brings a shell up and clears up after the last one. Never rejects: where there is no shell, commands are spawned. */
  async #start(): Promise<void> {
    for (let starts = 1; ; starts++) {
      try {
        this.#launch()
        await this.#direct(['version'], {timeoutMs: startTimeoutMs})
        break
      } catch (error) {
        if (hasCode(error, 'DEPENDENCY_MISSING')) return this.#failAll(error)
        if (starts < maxStarts) continue
        this.#spawning = true
        this.emit('fallback', {reason: (error as Error).message})
        break
      }
    }
    if (this.#lostCommand && this.#recover) {
      const direct: LvmRun = this.#spawning
        ? args => this.#spawn(args, this.#timeoutMs)
        : (args, options) => this.#direct(args, options)
      try {
        await this.#recover(direct)
        this.#lostCommand = false
      } catch (error) {
        this.emit('unrecovered', error)
        if (!this.#child && !this.#spawning) this.#failAll(error)
      }
    }
    this.#ready = !this.#spawning && this.#child !== undefined
  }

  /** Runs a command before those that wait. */
  #direct(args: readonly string[], {timeoutMs = this.#timeoutMs}: {timeoutMs?: number} = {}): Promise<LvmReply> {
    return new Promise((resolve, reject) => {
      if (!this.#child) throw new StorageError('COMMAND_FAILED', 'The LVM shell is gone')
      this.#send({args, line: shellLine(args), timeoutMs, resolve, reject})
    })
  }

  #send(command: Command): void {
    try {
      this.#system.refresh()
    } catch (error) {
      command.reject(error)
      return
    }
    this.#sent.push(command)
    if (this.#sent.length === 1) this.#startTimer(command)
    this.#child!.stdin!.write(`${command.line}\n`)
  }

  #launch(): void {
    const child = spawn(this.#program, [], {
      // A group of its own: Ctrl-C ends the daemon, which ends the shell between two commands.
      detached: true,
      stdio: ['pipe', 'ignore', 'pipe', 'pipe'],
      env: {...environment(), ...this.#environment, LVM_REPORT_FD: '3'},
    })
    this.#child = child
    const documents = new LvmDocuments()
    let stderr = ''
    let failure: Error | undefined
    child.once('error', error => {
      failure = error
    })
    for (const stream of [child.stdin, child.stderr, child.stdio[3]]) stream?.on('error', () => undefined)
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      stderr = (stderr + text).slice(-stderrTailBytes)
    })
    ;(child.stdio[3] as Readable).setEncoding('utf8').on('data', (text: string) => {
      for (const document of documents.add(text)) this.#answered(child, document)
    })
    // All that it wrote has been read by then.
    child.once('close', (code, signal) => {
      if (failure) return this.#lose(child, startError(this.#program, failure))
      const how = signal === null ? `ended with status ${code}` : `was ended by ${signal}`
      this.#lose(child, `the LVM shell ${how}${stderr.trim() && `: ${stderr.trim()}`}`)
    })
  }

  #answered(child: ChildProcess, document: string): void {
    if (child !== this.#child) return
    const command = this.#sent.shift()
    clearTimeout(this.#timer)
    if (this.#sent[0]) this.#startTimer(this.#sent[0])
    if (!command) return
    try {
      const reply = parseLvmDocument(document)
      if (reply.code === lvmSuccess) command.resolve(reply)
      else command.reject(lvmFailure(command.args, reply))
    } catch (error) {
      command.reject(error)
    }
  }

  #startTimer({timeoutMs, args}: Command): void {
    const child = this.#child
    this.#timer = setTimeout(() => {
      if (!child || child !== this.#child) return
      this.#overdue = `${args[0]} did not end within ${timeoutMs} ms`
      child.kill('SIGKILL')
      // A process in state D takes no notice; it is left behind.
      const timer = setTimeout(() => this.#lose(child, 'it does not end'), killGraceMs)
      child.once('close', () => clearTimeout(timer))
    }, timeoutMs)
  }

  /** The shell is gone. The command at work fails; those that had not begun wait for the next shell. */
  #lose(child: ChildProcess, why: string | StorageError): void {
    if (child !== this.#child) return
    clearTimeout(this.#timer)
    const overdue = this.#overdue
    const wasReady = this.#ready
    this.#child = undefined
    this.#overdue = undefined
    this.#ready = false
    for (const stream of [child.stdin, child.stderr, child.stdio[3]]) (stream as Readable | Writable | null)?.destroy()
    child.unref()
    const [running, ...untouched] = this.#sent
    this.#sent = []
    const reason = overdue ?? (typeof why === 'string' ? why : why.message)
    if (running) {
      if (why instanceof StorageError) running.reject(why)
      else void interruption(running, child, {reason, isOverdue: overdue !== undefined}).then(running.reject)
    }
    if (!wasReady) {
      // These belong to a start or to a recovery, which has failed with the first of them.
      for (const command of untouched) command.reject(new StorageError('COMMAND_FAILED', reason))
      return
    }
    this.#waiting.unshift(...untouched)
    if (running) this.#lostCommand = true
    this.emit('lost', {reason, command: running?.args[0] ?? null})
    // What the lost command has left behind does not wait for the next request.
    if (running || untouched.length > 0) this.#proceed()
  }

  #failAll(error: unknown): void {
    for (const command of this.#waiting.splice(0)) command.reject(error)
  }

  #proceedBySpawns(): void {
    for (const {args, timeoutMs, resolve, reject} of this.#waiting.splice(0)) {
      const result = this.#spawned.then(() => this.#spawn(args, timeoutMs))
      this.#spawned = result.catch(() => undefined)
      result.then(resolve, reject)
    }
  }

  /** One command as a process of its own, which exits with 5 where the command has failed (lvm(8)). */
  async #spawn(args: readonly string[], timeoutMs: number): Promise<LvmReply> {
    const [command, ...words] = shellLine(args).split(' ')
    this.#system.refresh()
    try {
      const {stdout, code} = await run(this.#program, [command!, ...words], {
        timeoutMs,
        env: this.#environment,
        accept: [0, 1, 2, 3, 4, 5],
        maxOutputBytes: 64 * 2 ** 20,
      })
      const reply = parseLvmDocument(stdout, code)
      if (reply.code !== lvmSuccess) throw lvmFailure(args, reply)
      return reply
    } catch (error) {
      // A process that a signal or the deadline has ended has said nothing of what it did.
      const interrupted = hasCode(error, 'TIMEOUT') || (hasCode(error, 'COMMAND_FAILED') && error.info.exitSignal)
      if (interrupted) {
        Object.assign((error as StorageError).info, {interrupted: true})
        await this.#recover?.(args => this.#spawn(args, this.#timeoutMs)).catch(cause =>
          this.emit('unrecovered', cause),
        )
      }
      throw error
    }
  }
}

/** True where nobody knows whether the command took effect. */
export function wasInterrupted(error: unknown): boolean {
  return error instanceof StorageError && error.info.interrupted === true
}

function environment(): Record<string, string> {
  return {PATH: `${process.env.PATH ?? '/usr/bin:/bin'}:/usr/local/sbin:/usr/sbin:/sbin`, LC_ALL: 'C'}
}

async function interruption(
  {args}: Command,
  child: ChildProcess,
  {reason, isOverdue}: {reason: string; isOverdue: boolean},
): Promise<StorageError> {
  const left = child.exitCode === null && child.signalCode === null ? await leftFacts(child.pid!) : undefined
  const message = `${args[0]} was interrupted: ${reason}${left ? leftWords(left) : ''}`
  return new StorageError(isOverdue ? 'TIMEOUT' : 'COMMAND_FAILED', message, {
    info: {args: [...args], interrupted: true, ...left},
  })
}

function startError(program: string, cause: Error): StorageError {
  return new StorageError(
    'DEPENDENCY_MISSING',
    `The program ${program} cannot be run: ${cause.message}. Install it: apt-get install lvm2`,
    {
      info: {file: program, package: 'lvm2'},
      cause,
    },
  )
}

function closedError(): StorageError {
  return new StorageError('POOL_UNUSABLE', 'The LVM shell is closed', {op: 'volume.lvm'})
}
