import {execFile} from 'node:child_process'
import {EventEmitter, once} from 'node:events'
import {accessSync, constants, existsSync} from 'node:fs'
import {readFile, rename, stat, writeFile} from 'node:fs/promises'
import {connect, type Socket} from 'node:net'
import {release} from 'node:os'
import {join} from 'node:path'
import {createInterface} from 'node:readline'
import {setTimeout as sleep} from 'node:timers/promises'
import {StorageError} from '../errors.js'
import {packageRoot} from '../native.js'
import {buildXml} from '../xml.js'
import type {PrivateLibvirtd} from './libvirtd.js'

/** A disk as the guest's kernel sees it. */
export interface GuestDisk {
  /** The guest's own name: `vda`, `sdb`. */
  dev: string
  sizeBytes: number
  serial: string
  /** On the scsi bus. */
  wwid?: string
}

export interface GuestStats {
  /** Disks kept open by hold(), with the reads that worked and those that failed. */
  holds: {serial: string; reads: number; errors: number}[]
  /** The lines of the guest's kernel log that speak of I/O errors, since it booted. */
  kernelIoErrors: string[]
}

export interface GuestOptions {
  libvirtd: PrivateLibvirtd
  name: string
  /** Holds kernel and initrd.img; default .cache/guest, as scripts/guest-image makes it. */
  imageDirectory?: string
  memoryMiB?: number
  /** Without a persistent definition: gone once it is shut off. Default false. */
  transient?: boolean
  /** `kvm` or `qemu` (emulation); by default the one that works here. */
  accelerator?: 'kvm' | 'qemu'
  /** The processor runs only where nobody else wants to (SCHED_IDLE of sched(7)). Default false. */
  idlePriority?: boolean
}

const channelName = 'org.lunpath.guest.0'
const smallestImageMiB = 96

/**
 * A small virtual machine (Debian's kernel, busybox) that tells what disks it sees and reads and writes them on our
 * word, over a virtio-serial channel. scripts/guest-init is its other half and says how the two talk.
 */
export class Guest {
  readonly name: string
  readonly #libvirtd: PrivateLibvirtd
  readonly #options: GuestOptions
  readonly #channelPath: string
  readonly #changes = new EventEmitter()
  readonly #waiting = new Map<number, (answer: Record<string, unknown>) => void>()
  #socket: Socket | undefined
  #lastId = 0
  #disks: GuestDisk[] = []

  constructor(options: GuestOptions) {
    if (!/^[A-Za-z0-9][A-Za-z0-9_.-]{0,15}$/.test(options.name)) {
      throw new StorageError('NAME_INVALID', `${JSON.stringify(options.name)} is no name for a guest`)
    }
    this.name = options.name
    this.#libvirtd = options.libvirtd
    this.#options = options
    this.#channelPath = join(options.libvirtd.directory, 'run', `${options.name}.sock`)
    this.#changes.setMaxListeners(0)
  }

  /** Defines and starts the domain; waitReady() tells when its kernel runs. @throws DEPENDENCY_MISSING */
  async boot(): Promise<void> {
    const {connection} = this.#libvirtd
    const xml = await this.#domainXml()
    if (this.#options.transient) {
      await connection.createXml(xml)
    } else {
      await connection.defineXml(xml)
      await connection.start(this.name)
    }
  }

  /** Starts the defined domain again after it was shut off. */
  async start(): Promise<void> {
    this.#hangUp()
    await this.#libvirtd.connection.start(this.name)
  }

  /** Waits until the guest answers. @throws TIMEOUT, or the signal's reason */
  async waitReady({timeoutMs = 60_000, signal}: {timeoutMs?: number; signal?: AbortSignal} = {}): Promise<void> {
    const deadline = performance.now() + timeoutMs
    while (!this.#socket) {
      signal?.throwIfAborted()
      try {
        await this.#dial()
      } catch (cause) {
        if (performance.now() > deadline) throw this.#timeout('its channel does not open', cause)
        await sleep(50)
      }
    }
    await this.#ask('ping', [], deadline - performance.now())
    const {disks} = await this.#ask('disks', [])
    this.#note(disks as GuestDisk[])
  }

  /** The disks as the guest last told; it tells each change by itself. */
  disks(): GuestDisk[] {
    return this.#disks
  }

  /** The disk with this serial, as soon as the guest has it. @throws TIMEOUT */
  async waitForDisk(serial: string, options: {timeoutMs?: number; sizeBytes?: number} = {}): Promise<GuestDisk> {
    const matches = (disk: GuestDisk) =>
      disk.serial === serial && disk.sizeBytes === (options.sizeBytes ?? disk.sizeBytes)
    await this.#until(() => this.#disks.some(matches), `no disk with serial ${serial} appears`, options.timeoutMs)
    return this.#disks.find(matches)!
  }

  /** Waits until no disk has this serial. @throws TIMEOUT */
  async waitForDiskGone(serial: string, {timeoutMs}: {timeoutMs?: number} = {}): Promise<void> {
    await this.#until(() => !this.#disks.some(disk => disk.serial === serial), `disk ${serial} stays`, timeoutMs)
  }

  /** The digest, in hex, of bytes as they are on the disk (not in the guest's page cache). */
  async sha256(
    serial: string,
    {offsetBytes, lengthBytes}: {offsetBytes: number; lengthBytes: number},
  ): Promise<string> {
    const answer = await this.#ask('sha256', [serial, offsetBytes, lengthBytes])
    return answer.sha256 as string
  }

  /** Writes and fsyncs. At most 48 KiB. */
  async write(serial: string, offsetBytes: number, data: Uint8Array): Promise<void> {
    if (data.length === 0 || data.length > 48 * 1024) throw new TypeError('write() takes 1 to 49152 bytes')
    await this.#ask('write', [serial, offsetBytes, Buffer.from(data).toString('base64')])
  }

  /** The guest opens the disk and reads its first block about 20 times a second, until unhold(). */
  async hold(serial: string): Promise<void> {
    await this.#ask('hold', [serial])
  }

  async unhold(serial: string): Promise<void> {
    await this.#ask('unhold', [serial])
  }

  async stats(): Promise<GuestStats> {
    const {holds, kernelIoErrors} = await this.#ask('stats', [])
    return {holds, kernelIoErrors} as GuestStats
  }

  /** The guest powers itself off; settles when it has agreed, which is before it is off. */
  async powerOff(): Promise<void> {
    await this.#ask('poweroff', [])
  }

  /** Ends the domain at once and removes its definition. Safe to call twice. */
  async stop(): Promise<void> {
    this.#hangUp()
    const {connection} = this.#libvirtd
    for (const end of [connection.destroy, connection.undefine]) {
      await end.call(connection, this.name).catch((error: {errno?: number}) => {
        if (error.errno !== noDomain && error.errno !== operationInvalid) throw error
      })
    }
  }

  async #domainXml(): Promise<string> {
    const image = await guestImage(this.#options)
    const accelerator = this.#options.accelerator ?? (await findAccelerator(this.#options))
    return buildXml({
      domain: {
        '@type': accelerator,
        name: this.name,
        memory: {'@unit': 'MiB', '#text': String(this.#options.memoryMiB ?? 128)},
        vcpu: '1',
        ...(this.#options.idlePriority ? {cputune: {vcpusched: {'@vcpus': '0', '@scheduler': 'idle'}}} : {}),
        os: {
          type: {'@arch': 'x86_64', '@machine': 'pc', '#text': 'hvm'},
          kernel: image.kernel,
          initrd: image.initrd,
          cmdline: 'console=ttyS0 quiet',
        },
        // Without ACPI the guest takes no notice of a disk's arrival or removal.
        features: {acpi: {}},
        on_poweroff: 'destroy',
        on_reboot: 'destroy',
        on_crash: 'destroy',
        devices: {
          controller: [
            // Predefined: one that comes with the first disk cannot leave again with the last.
            {'@type': 'scsi', '@index': '0', '@model': 'virtio-scsi'},
            {'@type': 'usb', '@model': 'none'},
          ],
          channel: {
            '@type': 'unix',
            source: {'@mode': 'bind', '@path': this.#channelPath},
            target: {'@type': 'virtio', '@name': channelName},
          },
          console: {'@type': 'file', source: {'@path': join(this.#libvirtd.directory, 'run', `${this.name}.log`)}},
          memballoon: {'@model': 'none'},
        },
      },
    })
  }

  async #dial(): Promise<void> {
    const socket = connect(this.#channelPath)
    await once(socket, 'connect')
    this.#socket = socket
    socket.on('error', () => {})
    socket.on('close', () => {
      if (this.#socket === socket) this.#hangUp()
    })
    createInterface({input: socket}).on('line', line => this.#hear(line))
  }

  #hear(line: string): void {
    const message = parseMessage(line)
    if (!message) return
    if (message.event === 'disks') this.#note(message.disks as GuestDisk[])
    this.#waiting.get(message.id as number)?.(message)
  }

  #note(disks: GuestDisk[]): void {
    this.#disks = disks
    this.#changes.emit('disks')
  }

  #hangUp(): void {
    this.#socket?.destroy()
    this.#socket = undefined
    this.#disks = []
    for (const settle of this.#waiting.values()) settle({ok: false, error: 'the guest has hung up'})
  }

  async #ask(command: string, args: (string | number)[], timeoutMs = 30_000): Promise<Record<string, unknown>> {
    if (!this.#socket) await this.#dial()
    const id = ++this.#lastId
    const answer = await new Promise<Record<string, unknown>>((resolve, reject) => {
      const timer = setTimeout(() => reject(this.#timeout(`no answer to ${command}`)), timeoutMs)
      this.#waiting.set(id, message => {
        clearTimeout(timer)
        resolve(message)
      })
      this.#socket!.write(`${[id, command, ...args].join(' ')}\n`)
    }).finally(() => this.#waiting.delete(id))
    if (answer.ok !== true) {
      throw new StorageError('COMPUTE_FAILED', `Guest ${this.name}: ${command}: ${answer.error}`, {
        op: 'sandbox.guest',
        info: {guest: this.name, command},
      })
    }
    return answer
  }

  async #until(holds: () => boolean, otherwise: string, timeoutMs = 20_000): Promise<void> {
    const signal = AbortSignal.timeout(timeoutMs)
    while (!holds()) {
      try {
        await once(this.#changes, 'disks', {signal})
      } catch {
        throw this.#timeout(otherwise)
      }
    }
  }

  #timeout(what: string, cause?: unknown): StorageError {
    return new StorageError('TIMEOUT', `Guest ${this.name}: ${what}`, {
      op: 'sandbox.guest',
      info: {guest: this.name, console: join(this.#libvirtd.directory, 'run', `${this.name}.log`)},
      cause,
    })
  }
}

// libvirt/virterror.h
const noDomain = 42
const operationInvalid = 55

async function guestImage({imageDirectory}: Pick<GuestOptions, 'imageDirectory'>) {
  const directory = imageDirectory ?? join(packageRoot(), '.cache', 'guest')
  const image = {directory, kernel: join(directory, 'kernel'), initrd: join(directory, 'initrd.img')}
  if (!existsSync(image.kernel) || !existsSync(image.initrd)) {
    throw new StorageError('DEPENDENCY_MISSING', `There is no guest in ${directory}. Run: scripts/guest-image`, {
      op: 'sandbox.guest',
      info: {directory},
    })
  }
  return image
}

const qemu = '/usr/bin/qemu-system-x86_64'

/**
 * `kvm` where it really boots the guest's kernel, else `qemu`. A /dev/kvm that opens proves nothing: under some
 * hypervisors QEMU starts with it and the guest's kernel never gets anywhere. So it is tried once, for up to 4 s, and the
 * finding is kept beside the image for as long as kernel and QEMU stay the same.
 */
export async function findAccelerator(options: Pick<GuestOptions, 'imageDirectory'> = {}): Promise<'kvm' | 'qemu'> {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK)
  } catch {
    return 'qemu'
  }
  const image = await guestImage(options)
  const {mtimeMs, size} = await stat(qemu)
  const circumstances = JSON.stringify([release(), mtimeMs, size])
  const record = join(image.directory, 'accelerator.json')
  const known = await readFile(record, 'utf8')
    .then(text => JSON.parse(text) as {circumstances: string; accelerator: 'kvm' | 'qemu'})
    .catch(() => undefined)
  if (known?.circumstances === circumstances) return known.accelerator
  const accelerator = (await bootsUnderKvm(image)) ? 'kvm' : 'qemu'
  await writeFile(`${record}.${process.pid}`, JSON.stringify({circumstances, accelerator}))
    .then(() => rename(`${record}.${process.pid}`, record))
    .catch(() => {})
  return accelerator
}

async function bootsUnderKvm(image: {kernel: string; initrd: string}): Promise<boolean> {
  const args = ['-nodefaults', '-no-reboot', '-display', 'none', '-serial', 'stdio', '-machine', 'pc', '-accel', 'kvm']
  args.push('-m', String(smallestImageMiB), '-kernel', image.kernel, '-initrd', image.initrd)
  args.push('-append', 'console=ttyS0 quiet lunpath_probe=1')
  return await new Promise(resolve => {
    const child = execFile(qemu, args, {timeout: 4_000, killSignal: 'SIGKILL'}, (_error, stdout) =>
      resolve(stdout.includes('lunpath guest runs')),
    )
    child.stdin?.end()
  })
}

function parseMessage(line: string): Record<string, unknown> | undefined {
  try {
    return JSON.parse(line)
  } catch {
    // The tail of a line that was cut when a client before us hung up.
    return undefined
  }
}
