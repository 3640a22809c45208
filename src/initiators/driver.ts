import type {ChapAuth, Device, KernelSession, LunIdentity, Portal} from '../types.js'
import type {Identity} from './block-identity.js'
import type {ConnectionCounters} from './kernel-io.js'
import type {NodeRecord, RecordOwner} from './node-record.js'

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
  /** A page of vital product data as the target gives it, header included (SPC-4, 7.8). */
  page(page: number): Promise<Buffer>
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

/** What the kernel's initiator is to log in to. */
export interface ConnectSpec {
  iqn: string
  lun: number
  /** Each becomes a session. `tpgt` is the target portal group tag that the target has there; default 1. */
  portals: (Portal & {tpgt?: number})[]
  /** Default: the node's own name, of /etc/iscsi/initiatorname.iscsi. */
  initiatorName?: string
  auth?: ChapAuth
  /** What the disk must be. Without it the disk is taken as it is. */
  expected?: Partial<Identity>
  /** Who asks: a session of `attach` is logged out by the reconciler where no attachment needs it. Default `attach`. */
  owner?: RecordOwner
  /** True: a node record of another tool, or its lost session that nobody uses, makes room. */
  force?: boolean
  /** Milliseconds for the login; default 5,000. */
  timeoutMs?: number
}

/** A session of the kernel, and whose it is. */
export interface ObservedSession extends KernelSession {
  /** From its node record: lunpath's for an attachment or for a person, or another's; `unknown` where it has no record. */
  owner: RecordOwner | 'other' | 'unknown'
  /** Why it could not be logged out, where that was tried and given up; else null. */
  stuck: string | null
}

/**
 * The kernel's initiator: a volume becomes a block device of this node. Every method means "ensure" and has a deadline.
 * Calls for one target run one after the other.
 */
export interface HostInitiator {
  readonly name: string
  /** Looks at what is installed. Never fails: what is missing is said by the call that needs it. */
  open(): Promise<void>

  /**
   * Logs in at each portal where there is no session yet, finds the disk and compares it with what is expected. One portal
   * that answers is enough. What was made is taken back before an error is thrown. A disk, a session or a node record that
   * was there before stays as it was; only a lost session of lunpath's whose disk nobody uses makes room for a new one. A
   * session of another tool's serves as it is; a node record of another tool's is in the way, unless by force.
   * @throws IDENTITY_MISMATCH (a disk that this call brought was removed and looked for once more), DEVICE_IN_USE (the only
   * session is lost, and somebody uses its disk), NODE_FOREIGN (another tool's record or lost session), AUTH_FAILED, TIMEOUT, INITIATOR_FAILED,
   * INITIATOR_UNAVAILABLE, DEPENDENCY_MISSING
   */
  connect(spec: ConnectSpec): Promise<Device>

  /**
   * Asks the disk again who it is, rather than the kernel's memory of it: to be called right before the device is handed on.
   * The device that it gives may have another path than before. @throws IDENTITY_MISMATCH: the disk stays until disconnect()
   */
  verify(device: Device, expected: Partial<Identity>): Promise<Device>

  /** Waits until udev shows the device under its stable path. @throws TIMEOUT */
  awaitStablePath(device: Device, timeoutMs?: number): Promise<string>

  /** Lets the kernel see that the disk has grown. @throws IDENTITY_MISMATCH where it has another size afterwards; it stays */
  rescan(device: Device, sizeBytes: number): Promise<Device>

  /**
   * Flush, removal of the disk, logout, removal of the node record. A target without session and record is success. A
   * disk without a path is not flushed: that would hang. A session that cannot be logged out is `stuck` from then on,
   * and calling again tries again.
   * Node records of other tools stay.
   * @param options.force takes the disk away also where it is mounted, held or open for writing, and logs out sessions
   * that are not lunpath's
   * @param options.owner takes away what was made for that owner alone, and leaves all else without a word
   * @returns whether what was written is known to be durable
   * @throws NODE_FOREIGN (a session that lunpath has not made), DEVICE_IN_USE, INITIATOR_UNAVAILABLE, INITIATOR_FAILED, TIMEOUT
   */
  disconnect(iqn: string, options?: {force?: boolean; owner?: RecordOwner}): Promise<{flushed: boolean}>

  /** All sessions of the kernel, also those of others. */
  sessions(): Promise<ObservedSession[]>
  /** Bytes and PDUs of all sessions, counted since their login. */
  counters(): Promise<(ConnectionCounters & {iqn: string; initiator: string})[]>
  /** All node records, also those of others. */
  nodes(): Promise<NodeRecord[]>
  /** @throws NOT_FOUND, TARGET_IN_USE while a session is logged in */
  deleteNode(iqn: string, portal?: Portal): Promise<NodeRecord[]>
  close(): Promise<void>
}
