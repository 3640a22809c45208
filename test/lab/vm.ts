import {spawn} from 'node:child_process'
import {existsSync} from 'node:fs'
import {type FileHandle, mkdtemp, open, rm, statfs} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import type {Duplex} from 'node:stream'
import {stripVTControlCharacters} from 'node:util'
import {packageRoot} from '../../src/native.js'

export interface LabOptions {
  /** Default 1024. */
  memoryMiB?: number
  /** The guest's processors; default 1, since emulated ones cost each other more than they bring on a busy machine. */
  cpus?: number
  /** An empty virtio disk for each, /dev/vda first, with the serial `lab-disk-1` and so on. Sparse, gone afterwards. */
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
  /** The command runs on a terminal that is connected with these, and not with onStdout and onStderr. */
  terminal?: {input: NodeJS.ReadableStream; output: NodeJS.WritableStream; rows: number; columns: number}
}

export type LabErrorCode = 'LAB_MISSING' | 'LAB_CRASHED' | 'LAB_SETUP' | 'LAB_DEADLINE' | 'LAB_CANCELLED'

/**
 * What went wrong with the VM itself. LAB_MISSING: no image or no QEMU on this machine. LAB_CRASHED: the guest's kernel
 * or QEMU ended before the command did. LAB_SETUP: the guest could not be put together. LAB_DEADLINE, LAB_CANCELLED.
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

const qemu = '/usr/bin/qemu-system-x86_64'
const consoleTailBytes = 4096
/** What the command wrote is passed on within this time after its end, unless a process cannot be killed. */
const drainMs = 5000

// Without its mitigations and its zeroing of memory the emulated kernel needs half the time for small requests.
// With oops=panic and panic=-1 a crash ends the machine at once, and -no-reboot QEMU with it.
const kernelCommandLine =
  'console=ttyS0 quiet panic=-1 oops=panic mitigations=off init_on_alloc=0 no_timer_check random.trust_cpu=on'

/**
 * Runs a command in a VM with Debian's kernel and this machine's files: it sees all that is here and can write anywhere,
 * but nothing that it writes comes back. /tmp, /run and /dev are its own; no network but loopback, no udevd, no systemd.
 * The VM runs under emulation (TCG), so it needs no /dev/kvm. When the command has ended, so have all processes that it
 * left in the VM. The VM dies with this process.
 * @returns the command's exit code; 128 + n where signal n ended it; 127 and 126 as env(1) gives them
 * @throws LabError
 */
export async function runInLab(command: readonly string[], options: LabOptions = {}): Promise<number> {
  const {deadlineMs = 600_000, signal, terminal} = options
  const image = labImage()
  if (signal?.aborted) throw new LabError('LAB_CANCELLED', 'The lab was cancelled before it started')
  const disks = await emptyDisks(options.disksBytes ?? [])
  try {
    return await new Promise<number>((resolve, reject) => {
      const args = qemuArguments(image, options, {command, disks})
      const channels = terminal ? 5 : 4
      const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', qemu, ...args], {
        // A group of its own: Ctrl-C is for us, who then end it.
        detached: true,
        stdio: ['ignore', 'pipe', 'pipe', ...Array(channels).fill('pipe'), ...disks.map(({fd}) => fd)],
      })
      const [console, control, stdout, stderr, tty] = child.stdio.slice(firstChannel) as Duplex[]
      let tail = Buffer.alloc(0)
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
        if (word === 'error') fail('LAB_SETUP', `The lab could not be set up: ${rest}`)
        if (word === 'drained') kill()
        if (word === 'exit') {
          code = Number(rest)
          after(drainMs, kill)
        }
      })
      if (terminal && tty) {
        terminal.input.pipe(tty)
        tty.pipe(terminal.output, {end: false})
      }
      // Writing to a machine that has ended.
      for (const stream of child.stdio) stream?.on('error', () => undefined)

      after(deadlineMs, () => fail('LAB_DEADLINE', `The lab did not end within ${deadlineMs} ms`))
      const cancel = () => fail('LAB_CANCELLED', 'The lab was cancelled')
      signal?.addEventListener('abort', cancel, {once: true})

      child.once('error', cause => {
        failure ??= new LabError('LAB_MISSING', `QEMU could not be started: ${cause.message}`)
        finish()
      })
      // All that was written has been read by then.
      child.once('close', finish)

      function finish() {
        for (const timer of timers) clearTimeout(timer)
        signal?.removeEventListener('abort', cancel)
        if (terminal && tty) terminal.input.unpipe(tty)
        if (code !== undefined && !failure) return resolve(code)
        const error = failure ?? new LabError('LAB_CRASHED', `The lab crashed before ${command[0]} had ended`)
        const said = readable(tail)
        reject(said ? new LabError(error.code, error.message, said) : error)
      }
    })
  } finally {
    await Promise.all(disks.map(disk => disk.close()))
  }
}

/** Descriptors 0 to 2 are QEMU's own, then come the channels, then the disks. */
const firstChannel = 3

function qemuArguments(
  image: LabImage,
  options: LabOptions,
  {command, disks}: {command: readonly string[]; disks: readonly FileHandle[]},
): string[] {
  const {memoryMiB = 1024, cpus = 1, terminal} = options
  const args = ['-nodefaults', '-nographic', '-no-reboot', '-no-user-config', '-machine', 'q35', '-cpu', 'max']
  args.push('-accel', 'tcg,thread=multi', '-smp', `${cpus}`, '-m', `${memoryMiB}`)
  args.push('-kernel', image.kernel, '-initrd', image.initrd, '-append', kernelCommandLine)
  const job = Buffer.from(jobText(command, options)).toString('base64')
  args.push('-fw_cfg', `name=opt/org.lunpath.lab,string=${job}`)

  for (const [id, path] of [
    ['host', '/'],
    ['lab', image.directory],
  ] as const) {
    // Two file systems below one share can have the same inode numbers.
    args.push('-fsdev', `local,id=${id},path=${commasDoubled(path)},security_model=none,readonly=on,multidevs=remap`)
    args.push('-device', `virtio-9p-pci,fsdev=${id},mount_tag=${id}`)
  }

  const channels = ['console', 'control', 'stdout', 'stderr', ...(terminal ? ['terminal'] : [])]
  for (const [i, name] of channels.entries()) args.push('-chardev', `socket,id=${name},fd=${firstChannel + i}`)
  args.push('-serial', 'chardev:console')
  if (terminal) args.push('-serial', 'chardev:terminal')
  args.push('-device', 'virtio-serial-pci')
  for (const name of ['control', 'stdout', 'stderr']) {
    args.push('-device', `virtserialport,chardev=${name},name=org.lunpath.lab.${name}`)
  }

  for (const i of disks.keys()) {
    const fd = firstChannel + channels.length + i
    args.push(
      '-blockdev',
      `driver=raw,node-name=disk${i},discard=unmap,cache.no-flush=on,file.driver=file,file.filename=/dev/fd/${fd},file.locking=off`,
    )
    args.push('-device', `virtio-blk-pci,drive=disk${i},serial=lab-disk-${i + 1}`)
  }
  return args
}

/** What scripts/lab-init obeys, which says what the lines mean. */
function jobText(
  command: readonly string[],
  {terminal, modules = [], disksBytes = [], ...options}: LabOptions,
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
  if (terminal) lines.push(['terminal', `${terminal.rows} ${terminal.columns}`])
  if (disksBytes.length > 0) lines.push(['module', 'virtio_blk'])
  for (const module of modules) lines.push(['module', module])
  for (const [name, value] of Object.entries(environment)) lines.push(['environment', `${name}=${value}`])
  for (const argument of command) lines.push(['argument', argument])
  if (lines.some(([, value]) => value!.includes('\0'))) throw new TypeError('An argument holds a NUL character')
  return lines.map(([word, value]) => `${word} ${Buffer.from(value!).toString('base64')}\n`).join('')
}

interface LabImage {
  directory: string
  kernel: string
  initrd: string
}

function labImage(): LabImage {
  const directory = join(packageRoot(), '.cache', 'lab')
  const image = {directory, kernel: join(directory, 'kernel'), initrd: join(directory, 'initrd.img')}
  if (!existsSync(image.kernel) || !existsSync(image.initrd)) {
    throw new LabError('LAB_MISSING', `There is no lab in ${directory}. Run: scripts/lab-image`)
  }
  if (!existsSync(qemu)) throw new LabError('LAB_MISSING', `${qemu} is missing: apt-get install qemu-system-x86`)
  return image
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

/** In an option of QEMU's a comma within a value is written twice. */
function commasDoubled(value: string): string {
  return value.replaceAll(',', ',,')
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
