import {named, type Rooms} from '../attach/rooms.js'
import type {ObservedSession} from '../initiators/driver.js'
import type {AttachmentRecord} from '../state/store.js'
import type {Disk, ObservedTarget, Volume} from '../types.js'
import type {UnusablePool} from '../volumes/pools.js'
import {type AttachmentState, attachmentState} from './plan.js'

/** What the world holds now. It is never stored: the next look may differ. */
export interface Observed {
  volumes: Volume[]
  /** Pools of which nobody can say what they hold. */
  unusablePools: UnusablePool[]
  targets: ObservedTarget[]
  /** Disks by domain UUID; null where the domain is unknown to libvirt. Absent as a whole where libvirt does not answer. */
  disks: Map<string, Disk[] | null> | null
  /** Sessions of this host's kernel. */
  sessions: ObservedSession[]
}

/** Looks at the pool, the target daemon, the kernel's sessions and the domains that have attachments. */
export async function observe(rooms: Rooms): Promise<Observed> {
  const [{volumes, unusable}, targets, disks, sessions] = await Promise.all([
    rooms.volumes.list(),
    rooms.targets.list(),
    observeDisks(rooms),
    rooms.host.sessions(),
  ])
  return {volumes, unusablePools: unusable, targets, disks, sessions}
}

/** The disks of all domains with attachments, one call a domain; null where libvirt does not answer. */
export async function observeDisks(rooms: Rooms): Promise<Observed['disks']> {
  const uuids = new Set([...rooms.store.attachments.values()].map(({domainUuid}) => domainUuid))
  const disks = new Map<string, Disk[] | null>()
  try {
    const known = new Set((await rooms.compute.domains()).map(({uuid}) => uuid))
    for (const uuid of uuids) disks.set(uuid, known.has(uuid) ? await rooms.compute.disks(uuid) : null)
    return disks
  } catch {
    return null
  }
}

/** All attachments with their states, from what `disks` says. */
export function shownAttachments(
  {store, journal, compute}: Pick<Rooms, 'store' | 'journal' | 'compute'>,
  disks: Observed['disks'],
): (AttachmentRecord & {state: AttachmentState})[] {
  return [...store.attachments.values()].map(record => ({
    ...named({compute}, record),
    state: attachmentState(record, disks, journal.unfinishedOn(record.id)?.kind === 'detach'),
  }))
}
