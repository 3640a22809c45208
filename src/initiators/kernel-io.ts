import {readFile} from 'node:fs/promises'
import {CallSlots} from '../call-slots.js'
import {StorageError} from '../errors.js'
import {lackAs, loadAddon} from '../native.js'

/** Counters of one connection, counted by the kernel since its login. */
export interface ConnectionCounters {
  sid: number
  cid: number
  sentBytes: number
  receivedBytes: number
  commandPdus: number
  responsePdus: number
  digestErrors: number
  timeoutErrors: number
}

interface NativeKernelInitiator {
  stats(handle: bigint, connections: number[], timeoutMs: number): Promise<ConnectionCounters[]>
  writeAttribute(path: string, text: string): Promise<void>
  flush(path: string): Promise<void>
  close(): void
}

interface NetAddon {
  KernelInitiator: new () => NativeKernelInitiator
}

const handlePath = 'class/iscsi_transport/tcp/handle'

/** The addon's threads but one, which is left for the counters (kThreads in native/net/binding.cc). */
const threads = 16
/** A target that hangs takes no more of them than this, so that the other targets are still served. */
const threadsPerTarget = 4

export interface DeviceCall {
  /** The target that the call may hang on. */
  iqn: string
  timeoutMs: number
}

/**
 * What the kernel's initiator is asked for natively, on threads of the addon: a device whose target is gone may keep a
 * caller for minutes, and libuv has four threads for all files of the daemon. A call that has not begun by its deadline
 * never begins. One that has begun and does not end is reported and left behind.
 */
export class KernelIo {
  readonly #sysfs: string
  readonly #slots = new CallSlots({total: threads, perKey: threadsPerTarget})
  #native: NativeKernelInitiator | undefined

  constructor(sysfs = '/sys') {
    this.#sysfs = sysfs
  }

  /** @throws DEPENDENCY_MISSING where the addon is not built */
  get #addon(): NativeKernelInitiator {
    this.#native ??= new (loadAddon<NetAddon>('net').KernelInitiator)()
    return this.#native
  }

  /** Bytes and PDUs of each connection (netlink, ISCSI_UEVENT_GET_STATS); one that is gone is left out. */
  async counters(connections: {sid: number; cid: number}[], timeoutMs = 2_000): Promise<ConnectionCounters[]> {
    if (connections.length === 0) return []
    const handle = BigInt((await readFile(`${this.#sysfs}/${handlePath}`, 'utf8')).trim())
    const numbers = connections.flatMap(({sid, cid}) => [sid, cid])
    // Netlink waits for no target. The addon itself ends the call by its deadline.
    return this.#addon.stats(handle, numbers, timeoutMs)
  }

  /** One write to an attribute in sysfs. @throws TIMEOUT, and Node's error with its errno */
  writeAttribute(path: string, text: string, call: DeviceCall): Promise<void> {
    return this.#call(call, `write ${text} to ${path}`, addon => addon.writeAttribute(path, text))
  }

  /** Makes durable what was written to a block device that nobody has mounted. @throws TIMEOUT; EBUSY, EIO … */
  flush(path: string, call: DeviceCall): Promise<void> {
    return this.#call(call, `flush ${path}`, addon => addon.flush(path))
  }

  async #call<T>(
    {iqn, timeoutMs}: DeviceCall,
    what: string,
    begin: (addon: NativeKernelInitiator) => Promise<T>,
  ): Promise<T> {
    const addon = this.#addon
    const waiting = new AbortController()
    let begun = false
    let timer: NodeJS.Timeout | undefined
    const deadline = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        waiting.abort()
        const why = begun
          ? 'the call is left behind'
          : `earlier calls on ${iqn} have not returned, so this one was not begun`
        const message = `The kernel did not ${what} within ${timeoutMs} ms; ${why}`
        reject(new StorageError('TIMEOUT', message, {op: 'initiator.device', info: {iqn, timeoutMs}}))
      }, timeoutMs)
    })
    const call = this.#slots.run(iqn, waiting.signal, () => {
      begun = true
      return begin(addon)
    })
    try {
      return await Promise.race([call, deadline])
    } catch (error) {
      throw lackAs('INITIATOR_UNAVAILABLE', 'initiator.device', error)
    } finally {
      clearTimeout(timer)
    }
  }

  /** Waits for nothing: a call that hangs does not keep the process. */
  close(): void {
    this.#native?.close()
    this.#native = undefined
  }
}
