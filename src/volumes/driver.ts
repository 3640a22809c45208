import type {Volume, VolumeId} from '../types.js'

export interface PoolCapacity {
  pool: string
  driver: string
  /** Bytes of the file system or volume group below. */
  totalBytes: number
  /** Bytes that could still be written to it. */
  freeBytes: number
  /** Sum of the volumes' sizes. */
  provisionedBytes: number
  /** Most that may be provisioned: totalBytes × the pool's over-commit ratio, which counts for thin space alone in LVM. */
  limitBytes: number
  /** The thin pool, where the pool has one: how much of its data and of its metadata space is in use. */
  thin?: {name: string; totalBytes: number; dataPercent: number; metadataPercent: number}
  /**
   * LVM: the area on each device that holds the group's metadata, some hundred bytes for each volume. It holds two copies;
   * `freeBytes` is how much longer one may become.
   */
  metadataArea?: {sizeBytes: number; freeBytes: number}
}

export interface CreateVolume {
  id: VolumeId
  /** Bytes, a positive multiple of 512. A pool that has larger units (extents) rounds up: the volume says its size. */
  sizeBytes: number
  /** True: reserve all space now. False: sparse (thin), or not at all. Default: as the pool is made. */
  preallocate?: boolean
}

export interface CloneVolume {
  id: VolumeId
  /** Bytes; at least the source's size, which is the default. */
  sizeBytes?: number
  onProgress?: (progress: {copiedBytes: number; totalBytes: number}) => void
  signal?: AbortSignal
}

/**
 * A pool of volumes. Every method means "ensure": called twice with the same arguments it is the same as called once,
 * so that a recovery after a crash may repeat it. A method that fails leaves nothing half-made behind.
 * The driver keeps no state of its own: what the pool holds is the truth.
 */
export interface VolumeDriver {
  readonly name: string
  readonly pool: string

  /**
   * Checks that the pool is usable (exists, writable, known file system) and finishes deletions that a crash
   * interrupted. @throws POOL_UNUSABLE
   */
  open(): Promise<void>

  /**
   * @throws SIZE_INVALID, POOL_FULL (over the limit, or the space ran out), VOLUME_EXISTS (same id, other size),
   * UNSUPPORTED (sparse in a pool that cannot)
   */
  create(spec: CreateVolume): Promise<Volume>

  /** A full copy, independent of its source, by reflink where the file system can. @throws as create; CANCELLED */
  clone(source: Volume, spec: CloneVolume): Promise<Volume>

  /**
   * What the volume holds at this moment, as a volume of its own that lives without its source. At once, and of a source
   * in use as well: what its user has in flight is not in it. @throws as create; VOLUME_MISSING; UNSUPPORTED where this
   * volume or its file system cannot (a clone can)
   */
  snapshot(source: Volume, id: VolumeId): Promise<Volume>

  /** Grows to `sizeBytes`. @throws SIZE_INVALID where it would shrink, POOL_FULL, VOLUME_MISSING */
  extend(volume: Volume, sizeBytes: number): Promise<Volume>

  /**
   * Removes the volume: renames it into quarantine (the commit point: from here a crash is followed by completion, never
   * by the volume's return), then frees its space. A volume that is gone already is success.
   * The caller has made sure that nothing exports or uses it; the driver refuses what the kernel can tell it:
   * open elsewhere, loop device, mount. @throws VOLUME_IN_USE
   */
  delete(volume: Volume): Promise<void>

  /** All volumes of the pool, foreign files left out. */
  list(): Promise<Volume[]>
  get(id: VolumeId): Promise<Volume | undefined>
  capacity(): Promise<PoolCapacity>

  /** From open() to close(), also where the pool was lost since. */
  readonly isOpen: boolean

  /**
   * Looks whether what open() has opened is still there, at the cost of one call or one report however many volumes there
   * are. @throws POOL_UNUSABLE with what to do
   */
  look(): Promise<void>

  /** Waits until the space of the volumes deleted so far is free. */
  settled(): Promise<void>

  /** Waits for what runs and closes what open() opened. Safe to call twice and before open. */
  close(): Promise<void>
}
