import {StorageError} from '../errors.js'
import {formatPortal} from '../iqn.js'
import {type IscsiLogin, type NativeLogin, nativeLogin, sessionError} from '../iscsi-login.js'
import {loadAddon} from '../native.js'
import type {ChapAuth, LunIdentity, Portal} from '../types.js'
import type {DiscoveredTarget, IscsiSession, LoginSpec, SessionInitiator} from './driver.js'

interface NativeSession {
  discover(): Promise<{iqn: string; portals: string[]}[]>
  login(): Promise<LunIdentity>
  read(offsetBytes: number, lengthBytes: number): Promise<Buffer>
  write(offsetBytes: number, data: Uint8Array): Promise<void>
  flush(): Promise<void>
  page(page: number): Promise<Buffer>
  close(): Promise<void>
}

interface IscsiAddon {
  Session: new (login: NativeLogin) => NativeSession
}

/** Most bytes of one read or write. */
const maxTransferBytes = 2 ** 20

/** The user-space initiator: libiscsi on a thread per session. Needs no kernel module and no privilege. */
export class LibiscsiInitiator implements SessionInitiator {
  readonly name = 'libiscsi'

  async discover(
    portal: Portal,
    options: {initiatorName: string; auth?: ChapAuth; timeoutMs?: number},
  ): Promise<DiscoveredTarget[]> {
    const session = open({portal, ...options})
    try {
      const targets = await session.discover()
      return targets.map(({iqn, portals}) => ({iqn, portals: portals.flatMap(parseTargetAddress)}))
    } catch (cause) {
      throw discoveryError(cause, formatPortal(portal))
    } finally {
      await session.close()
    }
  }

  async connect(spec: LoginSpec): Promise<IscsiSession> {
    const session = open(spec)
    try {
      return new LibiscsiSession(session, spec, await session.login())
    } catch (cause) {
      await session.close()
      throw failure(cause, 'connect', spec)
    }
  }

  /**
   * Logs in, compares the logical unit with what it is expected to be, and logs out: the check right before somebody
   * else opens the target who can neither check nor wait with a deadline (QEMU opens iSCSI disks in its main loop, so a
   * portal that does not answer freezes the guest).
   * @throws StorageError IDENTITY_MISMATCH, AUTH_FAILED, TIMEOUT, INITIATOR_FAILED
   */
  async probe(
    spec: LoginSpec,
    expected: Partial<Pick<LunIdentity, 'wwid' | 'serial' | 'sizeBytes'>>,
    timeoutMs: number = spec.timeoutMs ?? 5_000,
  ): Promise<LunIdentity> {
    const session = await this.connect({...spec, timeoutMs})
    try {
      for (const key of ['serial', 'wwid', 'sizeBytes'] as const) {
        if (expected[key] !== undefined && expected[key] !== session.identity[key]) {
          throw new StorageError(
            'IDENTITY_MISMATCH',
            `LUN ${spec.lun} of ${spec.iqn} at ${formatPortal(spec.portal)} has ${key} ${session.identity[key]}, expected ${expected[key]}`,
            {op: 'initiator.probe', info: {iqn: spec.iqn, lun: spec.lun, expected, found: session.identity}},
          )
        }
      }
      return session.identity
    } finally {
      await session.close()
    }
  }
}

class LibiscsiSession implements IscsiSession {
  readonly identity: LunIdentity
  readonly #session: NativeSession
  readonly #spec: LoginSpec
  #closed: Promise<void> | undefined

  constructor(session: NativeSession, spec: LoginSpec, identity: LunIdentity) {
    this.#session = session
    this.#spec = spec
    this.identity = identity
  }

  async read(offsetBytes: number, lengthBytes: number): Promise<Buffer> {
    this.#checkRange(offsetBytes, lengthBytes)
    return this.#run('read', session => session.read(offsetBytes, lengthBytes))
  }

  async write(offsetBytes: number, data: Uint8Array): Promise<void> {
    if (!(data instanceof Uint8Array)) throw new TypeError('write() takes a Buffer or Uint8Array')
    this.#checkRange(offsetBytes, data.byteLength)
    await this.#run('write', session => session.write(offsetBytes, data))
  }

  async flush(): Promise<void> {
    await this.#run('flush', session => session.flush())
  }

  async page(page: number): Promise<Buffer> {
    return this.#run('page', session => session.page(page))
  }

  close(): Promise<void> {
    this.#closed ??= this.#session.close()
    return this.#closed
  }

  async #run<T>(op: string, call: (session: NativeSession) => Promise<T>): Promise<T> {
    try {
      return await call(this.#session)
    } catch (cause) {
      throw failure(cause, op, this.#spec)
    }
  }

  #checkRange(offsetBytes: number, lengthBytes: number): void {
    const {blockSizeBytes, sizeBytes} = this.identity
    const whole = (value: number) => Number.isSafeInteger(value) && value % blockSizeBytes === 0
    const valid =
      whole(offsetBytes) &&
      whole(lengthBytes) &&
      offsetBytes >= 0 &&
      lengthBytes > 0 &&
      lengthBytes <= maxTransferBytes &&
      offsetBytes + lengthBytes <= sizeBytes
    if (!valid) {
      throw new StorageError(
        'INVALID_ARGUMENT',
        `Not a range of this logical unit: ${lengthBytes} bytes at ${offsetBytes}; blocks have ${blockSizeBytes} bytes, the unit ${sizeBytes}, and one call moves at most ${maxTransferBytes}`,
        {op: 'initiator.range', info: {offsetBytes, lengthBytes, blockSizeBytes, sizeBytes}},
      )
    }
  }
}

function open(login: IscsiLogin): NativeSession {
  return new (loadAddon<IscsiAddon>('iscsi').Session)(nativeLogin(login))
}

function failure(cause: unknown, op: string, {portal, iqn, lun}: LoginSpec): StorageError {
  return sessionError(cause, {op: `initiator.${op}`, info: {portal: formatPortal(portal), iqn, lun}})
}

/** While tgtd has no target at all, it closes each connection at once (usr/iscsi/iscsi_tcp.c, accept_connection). */
function discoveryError(cause: unknown, portal: string): StorageError {
  const {code = '', errno, message} = cause as {code?: string; errno?: number; message: string}
  const details = {op: 'initiator.discover', info: {portal}, cause}
  if (!['SESSION_LOST', 'ECONNRESET', 'EPIPE'].includes(code)) return sessionError(cause, details)
  const why = `${portal} offers no targets to this initiator: it closed the connection unanswered, as tgtd does while it has no target. Make one there, or see that this is an iSCSI portal that lets this host in (${message})`
  return new StorageError('INITIATOR_FAILED', why, {...details, info: {portal, reason: code, status: errno}})
}

/** `ADDRESS:PORT,TPGT` (RFC 7143, appendix C). An address that is a host name is kept as it is. */
function parseTargetAddress(text: string): DiscoveredTarget['portals'] {
  const match = /^(?:\[([^\]]+)\]|([^:,[\]]+))(?::(\d{1,5}))?(?:,(\d{1,5}))?$/.exec(text)
  if (!match) return []
  return [{address: match[1] ?? match[2]!, port: Number(match[3] ?? 3260), tpgt: Number(match[4] ?? 1)}]
}
