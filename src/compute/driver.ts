import type {ChapCredentials, Disk, DiskSource, Domain, Feed, VolumeId} from '../types.js'

export interface AttachSpec {
  /** Name or UUID of the domain. */
  domain: string
  /** What identifies the disk: alias `ua-lunpath-<id>` and `<serial>`. */
  id: VolumeId
  source: DiskSource
  /**
   * Called when the domain's turn has come, right before it is changed: looks once more at what the disk is fed from. What it
   * gives takes the place of `source`; what it throws ends the attach.
   */
  confirm?: () => Promise<DiskSource>
  bus: 'virtio' | 'scsi'
  /** `vdb`, `sdc`; the first free name of the bus where none is given. */
  target?: string
  readOnly?: boolean
  /** Others may have the source too; else a second disk of the domain with it is refused. */
  shared?: boolean
  /** Also in the persistent definition, so that it is there after the domain's next start. Default false. */
  persistent?: boolean
  /** Default true for an active domain. With `live: false` and `persistent: true` only the definition changes. */
  live?: boolean
}

export interface DetachOptions {
  /** Milliseconds to wait for the guest's release; default 20,000. */
  timeoutMs?: number
  persistent?: boolean
}

/** Block statistics of one disk, counted by QEMU since the disk was attached. */
export interface DiskCounters {
  readBytes: number
  writtenBytes: number
  readRequests: number
  writeRequests: number
  errors: number
}

/**
 * A hypervisor. Every method means "ensure". Calls that change a domain are queued per domain, because libvirt
 * serialises them and gives up a waiter after 30 s.
 */
export interface ComputeDriver {
  readonly name: string
  open(): Promise<void>
  domains(): Promise<Domain[]>
  /** @throws DOMAIN_NOT_FOUND */
  domain(nameOrUuid: string): Promise<Domain>
  disks(domain: string): Promise<Disk[]>
  /** What feeds all domains, running or not: asked of the hypervisor now. @throws COMPUTE_UNAVAILABLE */
  feeds(): Promise<Feed[]>
  /** What the domain with this UUID is called, as far as is known without asking. */
  nameOf(uuid: string): string | undefined

  /**
   * Attaches a disk. The same id attached already to this domain is adopted and returned.
   * @throws DOMAIN_NOT_FOUND, DOMAIN_INACTIVE, DISK_TARGET_IN_USE, ATTACHMENT_EXISTS (same source under another id),
   * COMPUTE_FAILED, COMPUTE_UNAVAILABLE
   */
  attach(spec: AttachSpec): Promise<Disk>

  /**
   * Asks the guest to release the disk and waits for its release. A domain, or a disk, that is gone is success.
   * @throws DETACH_PENDING where the guest has not released it by the deadline: the request stands, and calling again
   * waits again.
   */
  detach(domain: string, id: VolumeId, options?: DetachOptions): Promise<void>

  /**
   * Keeps the CHAP credentials of a target and gives them to the hypervisor now and after each reconnect: a domain whose
   * definition needs them starts only while the hypervisor has them. @throws COMPUTE_UNAVAILABLE: they are kept all the same
   */
  rememberSecret(iqn: string, credentials: ChapCredentials): Promise<void>

  /** After a volume has grown (virDomainBlockResize). */
  resize(domain: string, id: VolumeId, sizeBytes: number): Promise<void>
  counters(domain: string, id: VolumeId): Promise<DiskCounters>
  close(): Promise<void>

  /**
   * `connected` after each (re)connect; `lost` when the connection ends; `removed` when a disk has left a domain,
   * asked for or not; `domain` when a domain changed its state.
   */
  on(event: 'connected' | 'lost' | 'removed' | 'domain', listener: (facts: Record<string, unknown>) => void): void
}
