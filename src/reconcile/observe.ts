import {access} from 'node:fs/promises'
import {named, type Rooms} from '../attach/rooms.js'
import type {ObservedSession} from '../initiators/driver.js'
import type {AttachmentRecord} from '../state/store.js'
import type {PortalState} from '../targets/portals.js'
import type {Disk, ObservedTarget, Volume} from '../types.js'
import type {UnusablePool} from '../volumes/pools.js'
import {type AttachmentState, attachmentState} from './plan.js'

/** What the world holds now. It is never stored: the next look may differ. */
export interface Observed {
  /** Null where this look has not asked for them: then nothing is known of volumes. */
  volumes: Volume[] | null
  /** Pools of which nobody can say what they hold. */
  unusablePools: UnusablePool[]
  /** Null where this look has not asked for them: then `outOfPlace` says which exports are missing. */
  targets: ObservedTarget[] | null
  /** Exports that the target driver knows not to be in place, by IQN. */
  outOfPlace: ReadonlySet<string>
  portals: PortalState[]
  /** Disks by domain UUID; null where the domain is unknown to libvirt. Absent as a whole where libvirt does not answer. */
  disks: Map<string, Disk[] | null> | null
  /** Sessions of this host's kernel; null where this look has not asked for them. */
  sessions: ObservedSession[] | null
  /** What could not be looked at, and why. */
  unseen: {part: 'pools' | 'targets' | 'sessions'; reason: string}[]
}

/** A look takes at most this part of the time, whatever the node holds. */
const shareOfTime = 1 / 500
/** tgtd does no I/O while it writes a listing, so on a node with more exports than this only an occasion asks for one. */
const mostForListing = 500
/** Domains of which nothing was heard are looked at anyway, so many at each look. */
const domainsPerLook = 2
/** A guest waits for a session that is lost, so sessions are looked at this often whatever that costs. */
const sessionsLookMs = 15_000

/** Something that is looked at no more often than its cost allows. */
class Paced<T> {
  readonly #take: () => Promise<T>
  readonly #longestMs: number
  #nextAt = 0
  /** Why the last attempt has given nothing. */
  failure: string | null = null

  /** `longestMs`: it is looked at this often even where that costs more than its share. */
  constructor(take: () => Promise<T>, longestMs = Number.POSITIVE_INFINITY) {
    this.#take = take
    this.#longestMs = longestMs
  }

  /** Null where it is too early, unless it `must` be. */
  async due(must: boolean): Promise<T | null> {
    const began = performance.now()
    if (!must && began < this.#nextAt) return null
    try {
      const taken = await this.#take()
      this.failure = null
      const ended = performance.now()
      this.#nextAt = ended + Math.min(this.#longestMs, (ended - began) / shareOfTime)
      return taken
    } catch (error) {
      this.failure = (error as Error).message
      return null
    }
  }
}

/**
 * Looks at the pools, the target daemon, the kernel's sessions and the domains that have attachments. A full look asks for
 * everything; another one leaves out what would cost more than it may, and of the domains looks at those alone of which an
 * event or an attachment says that something has changed.
 */
export class Observer {
  readonly #rooms: Rooms
  readonly #volumes: Paced<Awaited<ReturnType<Rooms['volumes']['list']>>>
  readonly #targets: Paced<ObservedTarget[]>
  readonly #sessions: Paced<ObservedSession[]>
  /** What was seen of a domain, and the attachments that it had then. */
  readonly #domains = new Map<string, {disks: Disk[] | null; attachments: string}>()

  constructor(rooms: Rooms) {
    this.#rooms = rooms
    this.#volumes = new Paced(() => rooms.volumes.list())
    this.#targets = new Paced(() => rooms.targets.list())
    this.#sessions = new Paced(() => rooms.host.sessions(), sessionsLookMs)
  }

  /** Something has happened in that domain, or in any. */
  domainChanged(uuid?: string): void {
    if (uuid === undefined) this.#domains.clear()
    else this.#domains.delete(uuid)
  }

  async observe({full}: {full: boolean}): Promise<Observed> {
    const {store, volumes, targets} = this.#rooms
    if (full) this.domainChanged()
    const mayList = full || store.exports.size <= mostForListing || this.#targets.failure !== null
    const [listed, shown, disks, sessions] = await Promise.all([
      this.#volumes.due(full),
      mayList ? this.#targets.due(full) : null,
      this.#disks(),
      this.#sessions.due(full),
    ])
    const iqns = [...store.exports.values()].map(({iqn}) => iqn)
    return {
      volumes: listed?.volumes ?? null,
      unusablePools: listed?.unusable ?? volumes.unusable(),
      targets: shown,
      outOfPlace: new Set(iqns.filter(iqn => !targets.isInPlace(iqn))),
      portals: targets.portalStates(),
      disks,
      sessions,
      unseen: [
        ...this.#unseen('pools', this.#volumes),
        ...this.#unseen('targets', this.#targets),
        ...this.#unseen('sessions', this.#sessions),
      ],
    }
  }

  #unseen(part: Observed['unseen'][number]['part'], {failure}: Paced<unknown>): Observed['unseen'] {
    return failure === null ? [] : [{part, reason: failure}]
  }

  async #disks(): Promise<Observed['disks']> {
    const {attachments} = this.#rooms.store
    const wanted = new Map<string, string>()
    for (const {id, domainUuid} of attachments.values()) wanted.set(domainUuid, `${wanted.get(domainUuid) ?? ''} ${id}`)
    for (const [uuid, {attachments: then}] of this.#domains) if (wanted.get(uuid) !== then) this.#domains.delete(uuid)
    // The first in the map are those that were looked at longest ago.
    for (const uuid of [...this.#domains.keys()].slice(0, domainsPerLook)) this.#domains.delete(uuid)
    const unknown = [...wanted.keys()].filter(uuid => !this.#domains.has(uuid))
    if (unknown.length > 0) {
      const found = await observeDisks(this.#rooms, unknown)
      if (found === null) return null
      for (const [uuid, disks] of found) this.#domains.set(uuid, {disks, attachments: wanted.get(uuid)!})
    }
    return new Map([...this.#domains].map(([uuid, {disks}]) => [uuid, disks]))
  }
}

/** The disks of these domains, one call a domain; by default of all that have attachments. Null where libvirt does not answer. */
export async function observeDisks(
  {store, compute}: Pick<Rooms, 'store' | 'compute'>,
  uuids: Iterable<string> = new Set([...store.attachments.values()].map(({domainUuid}) => domainUuid)),
): Promise<Observed['disks']> {
  const disks = new Map<string, Disk[] | null>()
  try {
    const known = new Set((await compute.domains()).map(({uuid}) => uuid))
    for (const uuid of uuids) disks.set(uuid, known.has(uuid) ? await compute.disks(uuid) : null)
    return disks
  } catch {
    return null
  }
}

/** True where the file or device of a volume is there. */
export async function isThere(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  )
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
