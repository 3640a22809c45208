import {type ChildProcess, spawn} from 'node:child_process'
import {createHash} from 'node:crypto'
import {once} from 'node:events'
import {closeSync, openSync} from 'node:fs'
import {mkdir, mkdtemp, open, readdir, readFile, rm, stat, writeFile} from 'node:fs/promises'
import {createConnection} from 'node:net'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {run} from '../../src/exec.js'
import {packageRoot} from '../../src/native.js'
import {compiled} from '../fixtures/compiled.js'

/** Of both the module and the daemon, as they give it themselves; `trunk` is 1.4.20.3+svn. */
export type IetVersion = '1.4.18' | '1.4.19' | '1.4.20' | '1.4.20.1' | '1.4.20.2' | 'trunk'

export interface IetOptions {
  /** Default 1.4.20.2. */
  version?: IetVersion
  /** The text of ietd.conf: Target, Lun, IncomingUser and OutgoingUser count. Default none. */
  configuration?: string
  /** With ietd.conf and initiators.allow; default one of the double's own. One that is given stays when it stops. */
  configDir?: string
  /** Default one in a directory of the double's own. */
  pidFile?: string
  /** False: the module alone. Default true. */
  daemon?: boolean
}

/** What the module keeps, its traps' traces included. */
export interface ModuleState {
  version: string
  /** Of the control device, by anybody, ietd included. */
  opens: number
  releases: number
  /** Releases that deleted targets. */
  wipes: number
  /** Calls that would have crashed the kernel: ADD_CONN and ADD_SESSION. Their callers were killed. */
  oopses: number
  /** A call holds the lock and does not come back. */
  hanging: boolean
  /** Calls behind it. */
  waiting: number
  /** How often each request was served, by its name. */
  calls: Record<string, number>
  targets: ModuleTarget[]
}

export interface ModuleTarget {
  tid: number
  name: string
  /** What REPORT LUNS would go by: other than the number of volumes in state 0 after a LUN was deleted twice. */
  lunCount: number
  volumes: ModuleVolume[]
  /** `asked` is the name at the login: another one than the target's where a number was given out twice. */
  sessions: {sid: string; initiator: string; asked: string; params: number[]; cids: number[]}[]
  sessionParams: number[]
  targetParams: number[]
}

export interface ModuleVolume {
  lun: number
  state: number
  type: string
  mode: string
  path: string
  blocks: number
  blockSize: number
  /** In hexadecimal. */
  scsiId: string
  scsiSn: string
}

export interface DaemonState {
  version: string
  pid: number
  /** Requests of others than root. */
  refused: number
  /** How often each rcmnd was served. */
  requests: Record<string, number>
  targets: {tid: number; name: string; redirect: string}[]
  /** Newest first. Direction 0 is incoming, 1 outgoing. */
  accounts: {tid: number; direction: number; name: string}[]
}

/** Of what ietd writes to the socket. `echo`: of another request; `never`: neither answer nor end; `huge`: 64 MiB more. */
export type Manner = 'normal' | 'short' | 'long' | 'echo' | 'huge' | 'close' | 'never'

/**
 * The double of IET in the lab: a module (CUSE device /dev/ietctl and two listings) and an ietd. iet/README.md says what
 * it does as IET does it and what not. One at a time; `stop()` takes all of it away.
 */
export class Iet {
  /** For the setting `iet.procDir`. */
  readonly procDir: string
  /** With ietd.conf and initiators.allow, which need not exist: then nothing is configured, and all may log in. */
  readonly configDir: string
  readonly pidFile: string
  readonly device = '/dev/ietctl'
  readonly version: IetVersion
  readonly #directory: string
  readonly #programs: Programs
  #module: ChildProcess | undefined

  private constructor(directory: string, programs: Programs, options: IetOptions) {
    this.#directory = directory
    this.#programs = programs
    this.version = options.version ?? '1.4.20.2'
    this.procDir = join(directory, 'proc')
    this.configDir = options.configDir ?? join(directory, 'etc')
    this.pidFile = options.pidFile ?? join(directory, 'ietd.pid')
  }

  static async start(options: IetOptions = {}): Promise<Iet> {
    const {configuration, daemon = true} = options
    const programs = await ietPrograms()
    await run('modprobe', ['cuse'])
    const iet = new Iet(await mkdtemp(join(tmpdir(), 'iet-')), programs, options)
    try {
      await mkdir(iet.procDir)
      await mkdir(iet.configDir, {recursive: true})
      if (configuration !== undefined) await writeFile(join(iet.configDir, 'ietd.conf'), configuration)
      await iet.#startModule()
      if (daemon) await iet.startDaemon()
      return iet
    } catch (error) {
      await iet.stop()
      throw error
    }
  }

  async #startModule(): Promise<void> {
    const args = ['--listings', this.procDir, '--steering', this.#moduleSocket, '--version', this.version]
    const log = openSync(this.#log, 'a')
    this.#module = spawn(this.#programs.module, args, {stdio: ['ignore', log, log]})
    closeSync(log)
    const ready = async () => {
      const present = await Promise.all([stat(this.device), stat(join(this.procDir, 'volume'))]).catch(() => undefined)
      return present !== undefined
    }
    for (let waited = 0; !(await ready()); waited++) {
      if (this.#module.exitCode !== null || waited > 1200) throw new Error(`No module: ${await this.log()}`)
      await sleep(25)
    }
  }

  get #moduleSocket(): string {
    return join(this.#directory, 'module.sock')
  }

  get #daemonSocket(): string {
    return join(this.#directory, 'ietd.sock')
  }

  get #log(): string {
    return join(this.#directory, 'log')
  }

  /** What the two programs wrote: why they could not start. */
  async log(): Promise<string> {
    return readFile(this.#log, 'utf8')
  }

  /** Returns when it can be asked. Rejects where ietd does not start, as when another runs. */
  async startDaemon(): Promise<void> {
    await this.#launch(this.pidFile, this.#daemonSocket)
  }

  /** A second one beside that which runs, which must end at once; resolves when it has. */
  async startSecondDaemon(): Promise<void> {
    const started = this.#launch(join(this.#directory, 'second.pid'), join(this.#directory, 'second.sock'))
    const error = await started.then(
      () => new Error('Two daemons run'),
      () => undefined,
    )
    if (error) throw error
  }

  async #launch(pidFile: string, steering: string): Promise<void> {
    const args = ['--device', this.device, '--config', this.configDir, '--pid-file', pidFile]
    args.push('--steering', steering, '--module', this.#moduleSocket, '--version', this.version)
    const log = openSync(this.#log, 'a')
    const child = spawn(this.#programs.daemon, args, {stdio: ['ignore', log, log]})
    closeSync(log)
    const [code] = await once(child, 'exit')
    if (code !== 0) throw new Error(`ietd did not start: ${await this.log()}`)
  }

  /** Of ietd, by its pid file. */
  async pid(): Promise<number> {
    return Number(await readFile(this.pidFile, 'utf8'))
  }

  /** Ends ietd, and with its descriptor of the device all targets. Resolves when it is gone. */
  async killDaemon(signal: 'SIGKILL' | 'SIGTERM' = 'SIGKILL'): Promise<void> {
    const pid = await this.pid()
    process.kill(pid, signal)
    await rm(this.pidFile)
    while (await runs(pid)) await sleep(10)
  }

  async restartDaemon(): Promise<void> {
    await this.killDaemon()
    await this.startDaemon()
  }

  /** Opens and closes the control device, as anybody can by `cat`. Resolves when the module has seen it, but where it hangs. */
  async wipe(): Promise<void> {
    const {releases} = await this.moduleState()
    const device = await open(this.device, 'r+')
    await device.close()
    // The close does not wait for the module's answer.
    for (let left = 500; left > 0; left--) {
      const now = await this.moduleState()
      if (now.releases > releases || now.hanging) return
      await sleep(2)
    }
  }

  async moduleState(): Promise<ModuleState> {
    const state = (await this.#toModule('state')) as ModuleState
    for (const target of state.targets) {
      for (const volume of target.volumes) {
        // What the kernel makes of the target's name and the LUN where it was not told.
        const made = createHash('md5').update(target.name).update(littleEndian(volume.lun)).digest('hex')
        volume.scsiId ??= made
        volume.scsiSn = volume.scsiSn ? Buffer.from(volume.scsiSn, 'hex').toString('latin1') : made
      }
    }
    return state
  }

  async daemonState(): Promise<DaemonState> {
    return (await ask(this.#daemonSocket, 'state')) as DaemonState
  }

  /** A session, as if an initiator were there. Its connections are added one by one. */
  async addSession(tid: number, {sid, initiator}: {sid: bigint; initiator: string}): Promise<void> {
    await this.#toModule(`session ${tid} ${sid} ${initiator}`)
  }

  /** `address` is IPv4, or IPv6 without brackets. */
  async addConnection(
    tid: number,
    sid: bigint,
    {cid = 0, address = '127.0.0.1', state = 'active', headerDigest = 'none', dataDigest = 'none'} = {},
  ): Promise<void> {
    await this.#toModule(`connection ${tid} ${sid} ${cid} ${address} ${state} ${headerDigest} ${dataDigest}`)
  }

  /** The initiator leaves. */
  async endSession(tid: number, sid: bigint): Promise<void> {
    await this.#toModule(`logout ${tid} ${sid}`)
  }

  /** From now on the LUN has commands in flight, so that a deletion leaves it in state 1 until it is idle. */
  async setBusy(tid: number, lun: number, busy: boolean): Promise<void> {
    await this.#toModule(`${busy ? 'busy' : 'idle'} ${tid} ${lun}`)
  }

  /** The next ioctl of that name holds the module's lock and returns after `resume()`, whatever its caller gets. */
  async hangNext(request: string): Promise<void> {
    await this.#toModule(`hang ${request}`)
  }

  async resume(): Promise<void> {
    await this.#toModule('resume')
  }

  /** Each ioctl takes this long, one after another; 0 ends that. */
  async slowModule(delayMs: number): Promise<void> {
    await this.#toModule(`slow ${delayMs}`)
  }

  /** What the next `count` answers of ietd are like. A delay blocks it whole. */
  async answer(manner: Manner, {count = 1, delayMs = 0} = {}): Promise<void> {
    await ask(this.#daemonSocket, `answer ${manner} ${count} ${delayMs}`)
  }

  /**
   * A login as ietd would answer it: `ok`, 0x0201 (no access for want of the right account, or ietd lists a target that
   * the module does not have), 0x0203 (ietd lists no such target), `denied` by initiators.allow, or `redirect ADDRESS`.
   */
  async login(
    iqn: string,
    {initiator, address = '127.0.0.1', user = '', secret = ''}: Initiator,
  ): Promise<{status: string; tid?: number; sid?: string}> {
    const answer = await ask(this.#daemonSocket, `login ${iqn} ${initiator} ${address} ${user} ${secret}`)
    return answer as {status: string; tid?: number; sid?: string}
  }

  /** The names that a discovery session would see. */
  async discover({initiator, address = '127.0.0.1', user = '', secret = ''}: Initiator): Promise<string[]> {
    return (await ask(this.#daemonSocket, `discover ${initiator} ${address} ${user} ${secret}`)) as string[]
  }

  async #toModule(line: string): Promise<unknown> {
    return ask(this.#moduleSocket, line)
  }

  async stop(): Promise<void> {
    const hangs = await this.moduleState().then(
      ({hanging, waiting}) => hanging || waiting > 0,
      () => false,
    )
    if (hangs) await this.resume()
    if (await stat(this.pidFile).catch(() => undefined)) await this.killDaemon()
    if (this.#module && this.#module.exitCode === null && this.#module.signalCode === null) {
      const ended = once(this.#module, 'exit')
      this.#module.kill('SIGKILL')
      await ended
    }
    this.#module = undefined
    await run('umount', ['--lazy', this.procDir], {accept: [0, 1, 32]})
    await rm(this.#directory, {recursive: true, force: true})
  }
}

export interface Initiator {
  initiator: string
  address?: string
  user?: string
  secret?: string
}

function littleEndian(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes
}

async function runs(pid: number): Promise<boolean> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => undefined)
  return text !== undefined && !/\) [ZX] /.test(text)
}

/** One line to a part of the double, and its answer. */
async function ask(socket: string, line: string): Promise<unknown> {
  const connection = createConnection({path: socket})
  connection.end(`${line}\n`)
  const chunks: Buffer[] = []
  for await (const chunk of connection) chunks.push(chunk as Buffer)
  const answer = JSON.parse(Buffer.concat(chunks).toString('utf8')) as {error?: string}
  if (answer.error !== undefined) throw new Error(`${line}: ${answer.error}`)
  return answer
}

interface Programs {
  module: string
  daemon: string
  raw: string
}

/**
 * Compiles the double's programs with the system's compilers into .cache/lab-iet, unless they are newer than their
 * sources. To be called in a hook of the test file, which runs outside the lab first: under emulation it takes a minute.
 */
export async function ietPrograms(): Promise<Programs> {
  const sources = join(packageRoot(), 'test', 'lab', 'iet')
  const named = (await readdir(sources)).map(name => join(sources, name))
  const build = (program: string, compiler: 'cc' | 'c++', ...args: string[]) =>
    compiled(join(packageRoot(), '.cache', 'lab-iet', program), {
      compiler,
      args: ['-O1', '-Werror', ...args],
      sources: named,
    })
  return {
    module: await build('iet-module', 'c++', '-std=c++20', join(sources, 'module.cc')),
    daemon: await build('ietd', 'c++', '-std=c++20', join(sources, 'ietd.cc')),
    raw: await build('iet-raw', 'cc', join(sources, 'raw.c')),
  }
}
