import type {ComputeDriver} from '../compute/driver.js'
import type {HostInitiator, SessionInitiator} from '../initiators/driver.js'
import type {Journal} from '../state/journal.js'
import type {Store} from '../state/store.js'
import type {TargetDriver} from '../targets/driver.js'
import type {LunIdentity, Portal, Volume, VolumeId} from '../types.js'
import type {Pools} from '../volumes/pools.js'

/** What a user-space login right before an attach must prove. */
export interface ProbeSpec {
  portal: Portal
  iqn: string
  lun: number
  initiatorName: string
  auth?: {incoming: {user: string; secret: string}; outgoing?: {user: string; secret: string}}
}

/**
 * An attachment with the name that its domain has now. Its record has the name of when it was made, which serves while
 * libvirt is away: what identifies a domain is its UUID.
 */
export function named<T extends {domain: string; domainUuid: string}>({compute}: Pick<Rooms, 'compute'>, record: T): T {
  return {...record, domain: compute.nameOf(record.domainUuid) ?? record.domain}
}

/** Who logs in for a guest's disk: QEMU itself, or this host's kernel. */
export type Route = 'qemu' | 'host'

/** The drivers that the daemon has chosen, and the desired state. */
export interface Rooms {
  store: Store
  journal: Journal
  volumes: Pools
  importVolume(path: string, id: VolumeId): Promise<Volume>
  targets: TargetDriver
  initiator: SessionInitiator & {
    probe(
      spec: ProbeSpec,
      expected: Pick<LunIdentity, 'wwid' | 'serial' | 'sizeBytes'>,
      timeoutMs: number,
    ): Promise<LunIdentity>
  }
  /** The kernel's initiator, for the host route. */
  host: HostInitiator
  compute: ComputeDriver
  /** Prefix of the targets' names; a colon and the volume's id follow. */
  iqnPrefix: string
  /** The name that QEMU and the probe log in with on this node. */
  initiatorName: string
  /** Who logs in for a disk where the request does not say. */
  route: Route
  /** Milliseconds for the login that proves an export right before its attach. */
  probeTimeoutMs: number
}
