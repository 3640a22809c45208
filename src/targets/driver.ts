import {StorageError} from '../errors.js'
import type {Export, ExportSpec, ObservedTarget, Portal, TakenTarget, TargetSession} from '../types.js'
import type {PortalState} from './portals.js'

/** tgt keeps LUN 0 for its controller, so the first disk is LUN 1 on every target of every driver. */
export const firstLun = 1

export interface TargetSupports {
  /** Initiators can log in and do I/O (false for a test double without a data path). */
  dataPath: boolean
  accessRules: boolean
  /** Rules by address beside `ALL`; without them such a rule is refused with UNSUPPORTED. */
  addressRules: boolean
  chap: boolean
  mutualChap: boolean
  /** Two exports may give one CHAP user two secrets; else the second is refused with CONFLICT. */
  chapUserPerTarget: boolean
  ipv6: boolean
  /** An export can say how its volume is kept (`ioType`); else that is refused with UNSUPPORTED. */
  ioTypes: boolean
  /** resize() works under sessions: initiators see the new size when they ask again. */
  resizeInUse: boolean
  /** Number, address and counters also of a session that no rule by name has let in. */
  sessionsOfAnybody: boolean
  /** counters() knows the bytes of a session; else it is empty. */
  byteCounters: boolean
  /** Commands and errors are counted, not bytes alone. */
  commandCounters: boolean
}

/**
 * Bytes and commands of one LUN in one session, as counted by the target since the session began; null where the target
 * does not count it. `initiator` is `ALL` for sessions that the target's counters do not tell apart.
 */
export interface LunCounters {
  iqn: string
  lun: number
  sid: string
  initiator: string
  readBytes: number
  writtenBytes: number
  readCommands: number | null
  writeCommands: number | null
  errors: number | null
}

export type ParameterValue = boolean | number | string

/** By their names in RFC 7143, 13, and ietd.conf(5). */
export interface TargetParameters {
  session: Record<string, ParameterValue>
  target: Record<string, ParameterValue>
}

/** The logical unit of a target that is not lunpath's, its ids left out. */
export interface ForeignUnit
  extends Omit<TakenTarget, 'wwid' | 'scsiId' | 'scsiSn'>,
    Pick<ExportSpec, 'writeCache' | 'readOnly'> {
  volume: Omit<ExportSpec['volume'], 'id'>
}

/** A target that is not lunpath's, and what of it the target daemon tells. */
export interface ForeignTarget {
  iqn: string
  tid: number
  /** Sessions that are logged in. */
  sessions: number
  /** Names of its CHAP users; their secrets are not read. */
  accounts: {incoming: string[]; outgoing: string[]}
  /** Null where lunpath cannot take it over: then `refused` says why. */
  unit: ForeignUnit | null
  parameters: Record<string, ParameterValue>
  refused: string | null
}

/** Pages 0x80 and 0x83 of vital product data, headers included, as an initiator reads them. */
export interface IdentityPages {
  serial: Buffer
  identification: Buffer
}

/**
 * `restarted`: the daemon came back empty, or another tool had removed targets, and what was lost is in place again; `lost`: it
 * does not answer, or exports are gone; `mended`: rules or portals that another tool had taken away are back, or a portal that
 * could not be opened is open.
 */
export type TargetEvent = 'restarted' | 'lost' | 'mended'

/**
 * A target daemon that offers volumes over iSCSI. Every method means "ensure". Targets that are not in the specs given
 * to this driver are foreign: they are listed, never changed.
 */
export interface TargetDriver {
  readonly name: string
  readonly supports: TargetSupports

  /**
   * Gets the daemon ready and its index of what runs there; where the driver starts the daemon itself, it starts it
   * here, without an open portal. @throws TARGET_UNAVAILABLE, PORTAL_IN_USE, DEPENDENCY_MISSING
   */
  open(): Promise<void>

  /**
   * Puts all `specs` in place, then opens the portals. Called once after open() and by the driver itself whenever the
   * daemon has restarted: initiators that retry must meet whole targets, so the portals come last.
   */
  restore(specs: ExportSpec[]): Promise<void>

  /**
   * Refuses an export that this driver could not keep, before anything is made for it; export() refuses the same. The target
   * daemon is not asked. @throws NAME_INVALID, SIZE_INVALID, INVALID_ARGUMENT, UNSUPPORTED, CONFLICT (see `chapUserPerTarget`)
   */
  check(spec: ExportSpec): void

  /**
   * Offers the volume: target, LUN 1, serial and SCSI id, accounts, and the access rule last, so that nobody sees a
   * half-made target. A failure removes what this call made.
   * @throws NAME_INVALID, UNSUPPORTED (a rule or an ioType that the driver cannot keep), TARGET_EXISTS (a foreign target has that
   * name), TARGET_FAILED, TARGET_UNAVAILABLE
   */
  export(spec: ExportSpec): Promise<Export>

  /**
   * Takes the offer back. With sessions logged in it is refused unless `force`, which first closes them.
   * A target that is gone already is success. @throws TARGET_IN_USE, TARGET_FAILED
   */
  unexport(iqn: string, options?: {force?: boolean}): Promise<void>

  /**
   * After the backing volume has grown. Where the driver cannot do that under sessions (`resizeInUse`), the LUN is added
   * anew with its new size where no session is logged in. @throws TARGET_IN_USE with what to do
   */
  resize(spec: ExportSpec): Promise<Export>

  /** Where initiators log in, now or soon: addresses that can be dialled (dialledPortals() in portals.ts). */
  portals(): Portal[]
  /** The portals as they are configured, and which of them initiators can reach, as the last look has found them. */
  portalStates(): PortalState[]
  /**
   * True for an export that the daemon had at the last look, or was put back. The driver looks by itself every few seconds, at
   * bounded cost; what cannot be put back stays out of place until export() succeeds.
   */
  isInPlace(iqn: string): boolean

  /** Everything that the daemon holds, foreign targets included. Costs a full listing: not for hot paths. */
  list(): Promise<ObservedTarget[]>
  /** One target, without a listing of all; undefined where it is absent. */
  get(iqn: string): Promise<ObservedTarget | undefined>
  sessions(): Promise<TargetSession[]>
  counters(): Promise<LunCounters[]>

  /**
   * Closes one session of any target, and waits until it is gone; its initiator may log in again. Absent where the driver
   * has no such thing. @throws NOT_FOUND, TIMEOUT
   */
  deleteSession?(iqn: string, sid: string): Promise<void>

  /** Parameters of a target, or those that one of its sessions has agreed on. IET alone. @throws EXPORT_NOT_FOUND */
  parameters?(iqn: string, options?: {sid?: string}): Promise<TargetParameters>
  /**
   * Sets some of them, and gives all. @throws INVALID_ARGUMENT, EXPORT_NOT_FOUND, TARGET_FAILED where other values are kept
   */
  setParameters?(
    iqn: string,
    asked: Record<string, ParameterValue>,
    options?: {sid?: string},
  ): Promise<TargetParameters>
  /** Sends initiators that log in to another portal; null ends that. IET alone. @throws EXPORT_NOT_FOUND */
  redirect?(iqn: string, portal: Portal | null): Promise<void>

  /**
   * Targets that are not lunpath's, looked at and not touched. An export() with `taken` then makes one lunpath's: it puts the
   * target back as it was, should it go, and else changes nothing of it; unexport() forgets it. IET alone.
   */
  foreign?(): Promise<ForeignTarget[]>
  /** The ids of a logical unit of a foreign target. @throws UNSUPPORTED where IET could not be given them again */
  identify?(target: {iqn: string; lun: number}, pages: IdentityPages): Pick<TakenTarget, 'scsiId' | 'scsiSn'>
  /** Numbers of the exports by IQN, where a driver keeps them. */
  numbers?(): Map<string, number>

  /** Closes what open() opened; ends the daemon only where this driver started it. Safe to call twice and before open. */
  close(): Promise<void>

  on(event: TargetEvent, listener: (facts: Record<string, unknown>) => void): void
}

/** What only some drivers have. */
type Optional = 'deleteSession' | 'parameters' | 'setParameters' | 'redirect' | 'foreign' | 'identify'

/** The driver with methods that not every one has. @throws UNSUPPORTED where this one has not */
export function offered<K extends Optional>(
  targets: TargetDriver,
  ...methods: K[]
): TargetDriver & Required<Pick<TargetDriver, K>> {
  const missing = methods.find(method => targets[method] === undefined)
  if (missing === undefined) return targets as TargetDriver & Required<Pick<TargetDriver, K>>
  throw new StorageError('UNSUPPORTED', `Targets by ${targets.name} cannot do that: it takes targets.driver = "iet"`, {
    info: {driver: targets.name, method: missing},
  })
}
