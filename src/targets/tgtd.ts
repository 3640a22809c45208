import {type ChildProcess, spawn} from 'node:child_process'
import {access, mkdir, open, readFile, readlink, rm, writeFile} from 'node:fs/promises'
import {basename, delimiter, join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {StorageError} from '../errors.js'
import {formatPortal} from '../iqn.js'
import {request, type TgtControl} from './tgt-control.js'
import {parsePortals} from './tgt-show.js'

export interface TgtdOptions {
  /** Directory of its own for the control socket, the pid file and the log; made with mode 0700. */
  directory: string
  /** Program; default: `tgtd` from PATH or /usr/sbin. */
  binary?: string
  /** Threads that do the I/O of one LUN. tgtd's own default of 16 makes 16,000 threads of 1,000 LUNs. */
  threads?: number
  /** Kill tgtd when this process dies (prctl(2), PR_SET_PDEATHSIG): for demos and tests. */
  dieWithParent?: boolean
}

// Not 0, the control port of the system's tgtd.
const controlPort = 1
const startDeadlineMs = 10_000

/** Path of the control socket that a tgtd in this directory has. */
export function tgtdSocketPath(directory: string): string {
  return join(directory, `control.${controlPort}`)
}

/**
 * A tgtd of our own. It runs in its own session and outlives a crash of this process: guests do their I/O through it,
 * and the next start finds it by its socket.
 */
export class Tgtd {
  readonly #options: TgtdOptions
  readonly #control: TgtControl
  #child: ChildProcess | undefined
  #pid = 0
  /** Called when the process that this object started has ended. */
  onExit: (() => void) | undefined

  constructor(options: TgtdOptions, control: TgtControl) {
    this.#options = options
    this.#control = control
  }

  /** Process id of the tgtd that runs, 0 where none is known. */
  get pid(): number {
    return this.#pid
  }

  /**
   * Takes over the tgtd that listens at our socket, else starts one. Returns when it answers. A fresh one has no portal.
   * @throws DEPENDENCY_MISSING, TARGET_UNAVAILABLE
   */
  async start(): Promise<{pid: number; adopted: boolean}> {
    await mkdir(this.#options.directory, {recursive: true, mode: 0o700})
    const running = await this.#adopt()
    if (running) return {pid: running, adopted: true}
    const pid = await this.#spawn()
    await this.#waitUntilItAnswers(pid)
    await this.#closeFirstPortal(pid)
    // For people; the socket's peer is what counts.
    await writeFile(this.#pidFile, `${pid}\n`)
    return {pid, adopted: false}
  }

  /** False once the process is gone; a zombie is gone. */
  async alive(): Promise<boolean> {
    if (this.#child) return this.#child.exitCode === null && this.#child.signalCode === null
    return this.#pid !== 0 && (await isTgtd(this.#pid))
  }

  /** Ends it. tgtd ignores SIGTERM while it has targets, so the caller deletes those first and this kills. */
  async kill(): Promise<void> {
    this.onExit = undefined
    if (this.#pid === 0 || !(await this.alive())) return
    const pid = this.#pid
    try {
      process.kill(pid, 'SIGKILL')
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
    }
    while (await this.alive()) await sleep(5)
    this.#pid = 0
    for (const file of [this.#control.socketPath, `${this.#control.socketPath}.lock`, this.#pidFile]) {
      await rm(file, {force: true})
    }
  }

  get #pidFile(): string {
    return join(this.#options.directory, 'tgtd.pid')
  }

  get #logFile(): string {
    return join(this.#options.directory, 'tgtd.log')
  }

  /** The directory is ours alone, so who listens there was started by us; still it must be a tgtd. */
  async #adopt(): Promise<number | undefined> {
    const {pid, failure} = await this.#control.run([[request.showPortals()]], {timeoutMs: 2_000})
    if (failure && pid === 0) return undefined
    if (failure) {
      throw new StorageError(
        'TARGET_UNAVAILABLE',
        `The tgtd at ${this.#control.socketPath} (process ${pid}) is stuck`,
        {
          op: 'target.open',
          info: {pid, socket: this.#control.socketPath},
          cause: failure,
        },
      )
    }
    if (!(await isTgtd(pid))) {
      throw new StorageError(
        'TARGET_UNAVAILABLE',
        `Process ${pid} listens at ${this.#control.socketPath} and is not a tgtd`,
        {op: 'target.open', info: {pid, socket: this.#control.socketPath}},
      )
    }
    this.#pid = pid
    return pid
  }

  async #spawn(): Promise<number> {
    const binary = await this.#findBinary()
    const {threads = 1, dieWithParent = false} = this.#options
    const command = [
      ...(dieWithParent ? ['setpriv', '--pdeathsig', 'KILL', '--'] : []),
      binary,
      ...['-f', '-C', String(controlPort), '-t', String(threads)],
      // Without a portal here tgtd opens 3260 on every address. Port 0 takes any free port of loopback, for the moment
      // until we close it.
      ...['--iscsi', 'portal=127.0.0.1:0'],
    ]
    const log = await open(this.#logFile, 'a', 0o600)
    try {
      const child = spawn(command[0]!, command.slice(1), {
        stdio: ['ignore', log.fd, log.fd],
        detached: true,
        cwd: '/',
        env: {PATH: process.env.PATH, LC_ALL: 'C', TGT_IPC_SOCKET: join(this.#options.directory, 'control')},
      })
      await new Promise<void>((resolve, reject) => child.once('spawn', resolve).once('error', reject))
      child.unref()
      child.on('exit', () => {
        if (this.#child === child) this.onExit?.()
      })
      this.#child = child
      this.#pid = child.pid!
      return child.pid!
    } catch (cause) {
      throw new StorageError('TARGET_UNAVAILABLE', `Cannot start ${command[0]}: ${(cause as Error).message}`, {
        op: 'target.open',
        cause,
      })
    } finally {
      await log.close()
    }
  }

  async #findBinary(): Promise<string> {
    const {binary} = this.#options
    const directories = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin']
    const candidates = binary?.includes('/') ? [binary] : directories.map(path => join(path, binary ?? 'tgtd'))
    for (const candidate of candidates) {
      const found = await access(candidate).then(
        () => true,
        () => false,
      )
      if (found) return candidate
    }
    throw new StorageError('DEPENDENCY_MISSING', 'tgtd is not installed: apt-get install tgt', {
      op: 'target.open',
      info: {package: 'tgt', binary: binary ?? 'tgtd'},
    })
  }

  async #waitUntilItAnswers(pid: number): Promise<void> {
    const deadline = Date.now() + startDeadlineMs
    for (;;) {
      const {failure} = await this.#control.run([[request.showPortals()]], {timeoutMs: 1_000, expectedPid: pid})
      if (!failure) return
      if (!(await this.alive()) || Date.now() > deadline) {
        const log = await readFile(this.#logFile, 'utf8').catch(() => '')
        const last = log.trim().split('\n').slice(-3).join('; ')
        throw new StorageError('TARGET_UNAVAILABLE', `tgtd does not start: ${last || failure.message}`, {
          op: 'target.open',
          info: {log: this.#logFile},
          cause: failure,
        })
      }
      await sleep(2)
    }
  }

  async #closeFirstPortal(pid: number): Promise<void> {
    const {replies} = await this.#control.run([[request.showPortals()]], {timeoutMs: 2_000, expectedPid: pid})
    const portals = parsePortals(replies[0]?.[0]?.text ?? '')
    await this.#control.run(
      portals.map(portal => [request.deletePortal(formatPortal(portal))]),
      {timeoutMs: 2_000, expectedPid: pid},
    )
  }
}

/** True for a process whose program is named tgtd. */
async function isTgtd(pid: number): Promise<boolean> {
  const name = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '')
  if (name.trim() !== 'tgtd') return false
  // A zombie keeps its name and loses its program.
  const program = await readlink(`/proc/${pid}/exe`).catch(() => '')
  return basename(program).startsWith('tgtd')
}
