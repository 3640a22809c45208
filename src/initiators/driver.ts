import type {ChapAuth, LunIdentity, Portal} from '../types.js'

export interface DiscoveredTarget {
  iqn: string
  /** `address:port,tpgt` as SendTargets reports it (RFC 7143, appendix C), parsed. */
  portals: (Portal & {tpgt: number})[]
}

export interface LoginSpec {
  portal: Portal
  iqn: string
  lun: number
  /** The initiator's own IQN. */
  initiatorName: string
  auth?: ChapAuth
  /** Milliseconds for the whole login; default 5,000. */
  timeoutMs?: number
  /** Milliseconds for each read, write and flush, a login again included; default 10,000. */
  commandTimeoutMs?: number
  /**
   * Where the connection is lost, log in again within the command's deadline, check that it is still the same logical
   * unit (else IDENTITY_MISMATCH) and repeat the command. Default false: a lost session stays lost.
   */
  reconnect?: boolean
}

/** A session of a user-space initiator with one logical unit. Every call has a deadline and rejects after close(). */
export interface IscsiSession {
  readonly identity: LunIdentity
  /** Reads whole blocks; `offsetBytes` and `lengthBytes` are multiples of the block size, at most 1 MiB a call. */
  read(offsetBytes: number, lengthBytes: number): Promise<Buffer>
  write(offsetBytes: number, data: Uint8Array): Promise<void>
  /** SYNCHRONIZE CACHE (10). */
  flush(): Promise<void>
  /** Logs out; waits for pending calls; can be called twice. */
  close(): Promise<void>
}

/** The user-space initiator. */
export interface SessionInitiator {
  readonly name: string
  /** SendTargets discovery. @throws INITIATOR_FAILED, AUTH_FAILED, TIMEOUT */
  discover(
    portal: Portal,
    options: {initiatorName: string; auth?: ChapAuth; timeoutMs?: number},
  ): Promise<DiscoveredTarget[]>
  /** Logs in and reads the identity (INQUIRY VPD 0x80 and 0x83, READ CAPACITY). @throws INITIATOR_FAILED, AUTH_FAILED, TIMEOUT */
  connect(spec: LoginSpec): Promise<IscsiSession>
}
