import {readFile} from 'node:fs/promises'
import {StorageError} from '../errors.js'
import {loadAddon} from '../native.js'

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

/**
 * What the kernel's initiator is asked for natively, on threads of the addon: a device whose target is gone may keep a
 * caller for minutes, and libuv has four threads for all files of the daemon. A call that does not end by its deadline
 * is reported and left behind.
 */
export class KernelIo {
  readonly #sysfs: string
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
    return this.#addon.stats(
      handle,
      connections.flatMap(({sid, cid}) => [sid, cid]),
      timeoutMs,
    )
  }

  /** One write to an attribute in sysfs. @throws TIMEOUT, and Node's error with its errno */
  writeAttribute(path: string, text: string, timeoutMs: number): Promise<void> {
    return withDeadline(this.#addon.writeAttribute(path, text), `write ${text} to ${path}`, timeoutMs)
  }

  /** Makes durable what was written to a block device that nobody has mounted. @throws TIMEOUT; EBUSY, EIO … */
  flush(path: string, timeoutMs: number): Promise<void> {
    return withDeadline(this.#addon.flush(path), `flush ${path}`, timeoutMs)
  }

  /** Waits for nothing: a call that hangs does not keep the process. */
  close(): void {
    this.#native?.close()
    this.#native = undefined
  }
}

async function withDeadline<T>(call: Promise<T>, what: string, timeoutMs: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const message = `The kernel did not ${what} within ${timeoutMs} ms; the call is left behind`
      reject(new StorageError('TIMEOUT', message, {op: 'initiator.device', info: {timeoutMs}}))
    }, timeoutMs)
  })
  try {
    return await Promise.race([call, late])
  } finally {
    clearTimeout(timer)
    call.catch(() => undefined)
  }
}
