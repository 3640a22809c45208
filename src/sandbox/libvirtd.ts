import {type ChildProcess, execFile, spawn} from 'node:child_process'
import {once} from 'node:events'
import {existsSync, mkdtempSync} from 'node:fs'
import {chmod, chown, mkdir, open, readdir, readFile, rm, symlink, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {dirname, join, resolve} from 'node:path'
import {createInterface} from 'node:readline'
import {setTimeout as sleep} from 'node:timers/promises'
import {promisify} from 'node:util'
import {type LibvirtConnection, newConnection} from '../compute/connection.js'
import {StorageError} from '../errors.js'
import {packageRoot} from '../native.js'

export interface PrivateLibvirtdOptions {
  /**
   * Directory for sockets, definitions and the log: at most 50 characters, because libvirt's sockets below it must stay
   * under 108 bytes. Default: a new one in the system's temporary directory, removed by stop().
   */
  directory?: string
  /** Where libvirt keeps what it learnt about QEMU, worth some seconds at the next start. Default: .cache/libvirt. */
  cacheDirectory?: string
  /**
   * `namespace`: in user and process namespaces of its own; the default where the kernel allows it. `plain`: without,
   * and as user nobody where the caller is root, since root's libvirtd would be the system's.
   */
  isolation?: 'namespace' | 'plain'
}

const longestDirectory = 50
const nobody = 65534
const searchPath = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

// With any uid but 0, libvirtd runs as a session's daemon, with all its paths under HOME and XDG_*. It wants a user record
// for its uid: `nobody` is on every machine.
const namespaces = [
  '--user',
  '--map-user=65534',
  '--map-group=65534',
  '--pid',
  '--mount',
  '--mount-proc',
  '--fork',
  '--kill-child=KILL',
]

// bash starts and kills libvirtd on our word and reaps its orphaned QEMUs. Its input ends when we stop or die. It ends
// all QEMUs then; as process 1 of a namespace its own end would do.
const supervisor = `
while read -r word; do
  case $word in
    start) libvirtd </dev/null >>"$1" 2>&1 & daemon=$! ;;
    kill) kill -KILL "$daemon"; wait "$daemon" ;;
  esac
  echo "$word"
done
kill -KILL "$daemon"
for file in "$XDG_RUNTIME_DIR"/libvirt/qemu/run/*.pid; do
  qemu=$(<"$file")
  kill -KILL "$qemu" && while kill -0 "$qemu"; do sleep 0.02; done
done
`

/**
 * A libvirtd of our own, with its sockets, domains and QEMUs in one directory: nothing of the system's is touched, and
 * all of it ends with this process, however that ends. Works as root and as an ordinary user.
 */
export class PrivateLibvirtd {
  readonly directory: string
  readonly #ownsDirectory: boolean
  readonly #cacheDirectory: string
  #isolation: 'namespace' | 'plain' | undefined
  #process: ChildProcess | undefined
  #answers: AsyncIterator<string> | undefined
  #connection: LibvirtConnection | undefined

  constructor({directory, cacheDirectory, isolation}: PrivateLibvirtdOptions = {}) {
    this.#ownsDirectory = directory === undefined
    this.directory = directory ? resolve(directory) : mkdtempSync(join(tmpdir(), 'lp-virt-'))
    this.#cacheDirectory = cacheDirectory ?? join(packageRoot(), '.cache', 'libvirt')
    this.#isolation = isolation
    if (this.directory.length > longestDirectory || !/^[\w./-]+$/.test(this.directory)) {
      throw new StorageError(
        'INVALID_ARGUMENT',
        `The directory of a private libvirtd must be a plain path of at most ${longestDirectory} characters, so that its sockets stay under 108 bytes: ${this.directory}`,
        {op: 'sandbox.libvirtd', info: {directory: this.directory}},
      )
    }
  }

  /** What to give to clients, in this process or another. */
  get uri(): string {
    return `qemu+unix:///session?socket=${this.directory}/run/libvirt/libvirt-sock`
  }

  /** Our own connection, for the sandbox's domains. Lost by kill(); start() makes a new one. */
  get connection(): LibvirtConnection {
    if (!this.#connection) {
      throw new StorageError('COMPUTE_UNAVAILABLE', 'The private libvirtd is not running', {op: 'sandbox.libvirtd'})
    }
    return this.#connection
  }

  /** User and group that QEMU's files must be readable for, where that is not the caller. */
  get runsAs(): {uid: number; gid: number} | undefined {
    return this.#isolation === 'plain' && process.getuid?.() === 0 ? {uid: nobody, gid: nobody} : undefined
  }

  get logFile(): string {
    return join(this.directory, 'libvirtd.log')
  }

  /**
   * Starts libvirtd and waits until it answers. After kill() it finds the domains that are still running.
   * @throws DEPENDENCY_MISSING, COMPUTE_UNAVAILABLE with the end of the log
   */
  async start(): Promise<void> {
    if (this.#connection) return
    if (!this.#process) await this.#launch()
    try {
      await this.#tell('start')
      this.#connection = await this.#connect(15_000)
    } catch (error) {
      await this.stop()
      throw error
    }
  }

  /** SIGKILL for libvirtd alone: its QEMUs go on. */
  async kill(): Promise<void> {
    await this.#tell('kill')
    const connection = this.#connection
    this.#connection = undefined
    await connection?.close()
  }

  /** Ends libvirtd and all its domains, and removes the directory where it was made here. Safe to call twice. */
  async stop(): Promise<void> {
    const {stdin} = this.#process ?? {}
    const child = this.#process
    this.#connection?.abandon()
    this.#connection = undefined
    this.#process = undefined
    if (child && child.exitCode === null && child.signalCode === null) {
      const exited = once(child, 'exit')
      stdin?.end()
      const deadline = setTimeout(() => child.kill('SIGKILL'), 5_000)
      await exited
      clearTimeout(deadline)
    }
    if (this.#ownsDirectory) await rm(this.directory, {recursive: true, force: true})
  }

  async #launch(): Promise<void> {
    await checkPackages()
    this.#isolation ??= (await canUseNamespaces()) ? 'namespace' : 'plain'
    await this.#prepareDirectory()
    const script = ['bash', '-c', supervisor, 'libvirtd-supervisor', this.logFile]
    const [command, ...args] =
      this.#isolation === 'namespace'
        ? ['unshare', ...namespaces, ...script]
        : this.runsAs
          ? ['setpriv', `--reuid=${nobody}`, `--regid=${nobody}`, '--clear-groups', ...script]
          : script
    const log = await open(this.logFile, 'a')
    try {
      const child = spawn(command!, args, {
        cwd: this.directory,
        env: {
          PATH: searchPath,
          LC_ALL: 'C',
          HOME: this.directory,
          XDG_RUNTIME_DIR: join(this.directory, 'run'),
          XDG_CONFIG_HOME: join(this.directory, 'config'),
          XDG_CACHE_HOME: join(this.directory, 'cache'),
          XDG_DATA_HOME: join(this.directory, 'data'),
        },
        stdio: ['pipe', 'pipe', log.fd],
        // Ctrl-C in a terminal goes to the whole process group; ours is the process that decides when this one ends.
        detached: true,
      })
      child.stdin!.on('error', () => {})
      child.on('error', () => {})
      this.#process = child
      this.#answers = createInterface({input: child.stdout!})[Symbol.asyncIterator]()
    } finally {
      await log.close()
    }
  }

  async #prepareDirectory(): Promise<void> {
    // Left by a run that did not end well: definitions and sockets of domains that are no more.
    for (const name of ['run', 'config']) await rm(join(this.directory, name), {recursive: true, force: true})
    const qemuConfig = join(this.directory, 'config', 'libvirt')
    const directories = [join(this.directory, 'run'), join(this.directory, 'config'), qemuConfig]
    const qemuCache = join(this.directory, 'cache', 'libvirt', 'qemu', 'cache')
    directories.push(
      join(this.directory, 'data'),
      join(this.directory, 'cache'),
      dirname(dirname(qemuCache)),
      dirname(qemuCache),
      qemuCache,
    )
    for (const directory of directories) await mkdir(directory, {recursive: true, mode: 0o700})
    if (!this.runsAs) {
      // What libvirt learnt about QEMU outlives us; its logs lie in the same tree and do not.
      await mkdir(this.#cacheDirectory, {recursive: true})
      await rm(join(qemuCache, 'capabilities'), {recursive: true, force: true})
      await symlink(this.#cacheDirectory, join(qemuCache, 'capabilities'))
    }
    // virtlogd and a security driver would be the system's.
    const settings = join(qemuConfig, 'qemu.conf')
    await writeFile(settings, 'stdio_handler = "file"\nsecurity_driver = "none"\n')
    await writeFile(this.logFile, '')
    if (this.runsAs) {
      const {uid, gid} = this.runsAs
      await chmod(this.directory, 0o755)
      for (const path of [...directories, settings, this.logFile]) await chown(path, uid, gid)
    }
  }

  async #tell(word: 'start' | 'kill'): Promise<void> {
    this.#process?.stdin?.write(`${word}\n`)
    const answer = await this.#answers?.next()
    if (answer?.value !== word) throw await this.#failure('its supervisor has ended')
  }

  async #connect(timeoutMs: number): Promise<LibvirtConnection> {
    const deadline = performance.now() + timeoutMs
    for (;;) {
      const connection = newConnection(() => {})
      try {
        await connection.open(this.uri)
        return connection
      } catch (cause) {
        await connection.close()
        if (this.#process?.exitCode !== null) throw await this.#failure('it ended at once', cause)
        if (performance.now() > deadline) throw await this.#failure('it does not answer', cause)
        await sleep(20)
      }
    }
  }

  async #failure(reason: string, cause?: unknown): Promise<StorageError> {
    const log = await readFile(this.logFile, 'utf8').catch(() => '')
    const last = log.trimEnd().split('\n').slice(-5).join('\n')
    return new StorageError('COMPUTE_UNAVAILABLE', `The private libvirtd failed: ${reason}. Its log ends: ${last}`, {
      op: 'sandbox.libvirtd',
      info: {directory: this.directory, isolation: this.#isolation},
      cause,
    })
  }
}

async function canUseNamespaces(): Promise<boolean> {
  try {
    await promisify(execFile)('unshare', [...namespaces, 'true'], {env: {PATH: searchPath}, timeout: 5_000})
    return true
  } catch {
    return false
  }
}

/** @throws DEPENDENCY_MISSING with the packages to install */
async function checkPackages(): Promise<void> {
  const onPath = (name: string) => searchPath.split(':').some(directory => existsSync(join(directory, name)))
  const libraries = await readdir('/usr/lib').catch(() => [])
  // QEMU is built with its block drivers as modules; iscsi comes in a package of its own.
  const hasIscsi = ['.', ...libraries].some(name => existsSync(join('/usr/lib', name, 'qemu', 'block-iscsi.so')))
  const missing = [
    ...(onPath('libvirtd') ? [] : ['libvirt-daemon']),
    ...(libraries.some(name => existsSync(join('/usr/lib', name, 'libvirt/connection-driver/libvirt_driver_qemu.so')))
      ? []
      : ['libvirt-daemon-driver-qemu']),
    ...(onPath('qemu-system-x86_64') ? [] : ['qemu-system-x86']),
    ...(hasIscsi ? [] : ['qemu-block-extra']),
    ...(onPath('unshare') && onPath('setpriv') ? [] : ['util-linux']),
  ]
  if (missing.length > 0) {
    throw new StorageError('DEPENDENCY_MISSING', `A private libvirtd needs: apt-get install ${missing.join(' ')}`, {
      op: 'sandbox.libvirtd',
      info: {packages: missing},
    })
  }
}
