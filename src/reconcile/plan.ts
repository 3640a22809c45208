import {formatPortal} from '../iqn.js'
import type {Operation} from '../state/journal.js'
import type {AttachmentRecord, ExportRecord, VolumeRecord} from '../state/store.js'
import {covers, type PortalState} from '../targets/portals.js'
import type {Disk, Volume} from '../types.js'
import type {UnusablePool} from '../volumes/pools.js'
import type {Observed} from './observe.js'

export interface Desired {
  volumes: Iterable<VolumeRecord>
  exports: Iterable<ExportRecord>
  attachments: Iterable<AttachmentRecord>
  /** Operations that a crash or a dead daemon has left unfinished, oldest first. */
  unfinished: Operation[]
}

export type Action =
  | {do: 'resume'; operation: Operation}
  /** The target daemon lacks the export, or its LUN. */
  | {do: 'restore'; volumeId: string}
  /** An attachment of the host route whose session is gone, or has waited in vain for its target. */
  | {do: 'connect'; attachmentId: string}
  /** A session of ours that no attachment needs. */
  | {do: 'disconnect'; iqn: string}
  /** Cannot be mended by lunpath: said in log and metrics. */
  | {do: 'report'; problem: Problem}

export interface Problem {
  problem:
    | 'pool-unusable'
    | 'look-failed'
    | 'portal-closed'
    | 'volume-missing'
    | 'volume-unknown'
    | 'export-missing'
    | 'export-unknown'
    | 'disk-absent'
    | 'disk-stale'
    | 'disk-unknown-to-libvirt'
    | 'disk-portal-changed'
    | 'session-lost'
    | 'session-stuck'
  subject: string
  /** What is wrong, and the command or the event that ends it. */
  message: string
}

export type AttachmentState = 'attached' | 'detaching' | 'absent' | 'unknown'

/**
 * What to do so that the world is again what was asked for. A pure function: all it knows is in its arguments.
 * Things in the world that nobody asked for are reported, never removed: only an operation removes, and it says what.
 */
export function plan(
  desired: Desired,
  observed: Observed,
  ours: (iqn: string) => boolean,
  {giveUpFailed = false}: {giveUpFailed?: boolean} = {},
): Action[] {
  const unfinished = new Set(desired.unfinished.map(({subject}) => subject))
  const settled = <T>(items: Iterable<T>, id: (item: T) => string) =>
    [...items].filter(item => !unfinished.has(id(item)))
  const volumes = settled(desired.volumes, ({id}) => id)
  const exports = settled(desired.exports, ({volumeId}) => volumeId)
  const attachments = settled(desired.attachments, ({id}) => id)

  const lunsOf = observed.targets && new Map(observed.targets.map(({iqn, luns}) => [iqn, luns]))
  const isOnline = ({iqn, lun}: ExportRecord) =>
    !observed.outOfPlace.has(iqn) && (!lunsOf || (lunsOf.get(iqn)?.some(one => one.lun === lun) ?? false))
  const exported = new Set(exports.map(({iqn}) => iqn))
  // A target that was taken over has a name of somebody else's.
  const volumeIds = new Map([...desired.exports].map(({iqn, volumeId}) => [iqn, volumeId]))
  const names: Names = {
    isOurs: iqn => ours(iqn) || volumeIds.has(iqn),
    isUnfinished: iqn => unfinished.has(volumeIds.get(iqn) ?? iqn.slice(-16)),
  }
  const unseen = new Set(observed.unusablePools.map(({pool}) => pool))
  const wanted = new Set(volumes.map(({id}) => id))

  return [
    ...exports.filter(record => !isOnline(record)).map(({volumeId}): Action => ({do: 'restore', volumeId})),
    ...sessionActions(attachments, observed, names, giveUpFailed),
    ...desired.unfinished.map((operation): Action => ({do: 'resume', operation})),
    ...desired.unfinished.flatMap(waitingForSomebody),
    ...observed.unusablePools.map(poolUnusable),
    ...observed.unseen.map(lookFailed),
    ...observed.portals.filter(({open}) => !open).map(portalClosed),
    ...(observed.volumes === null ? [] : volumeProblems(observed.volumes)),
    ...(observed.targets ?? [])
      .filter(({iqn}) => names.isOurs(iqn) && !exported.has(iqn) && !names.isUnfinished(iqn))
      .map(({iqn}) => exportUnknown(iqn)),
    ...attachments
      .filter(attachment => attachmentState(attachment, observed.disks, false) === 'absent')
      .map(diskAbsent),
    ...attachments.flatMap(attachment => portalChanged(attachment, observed)),
  ]

  function volumeProblems(found: Volume[]): Action[] {
    const inPool = new Set(found.map(({id}) => id))
    return [
      ...volumes.filter(({id, imported, pool}) => !imported && !inPool.has(id) && !unseen.has(pool)).map(volumeMissing),
      ...settled(found, ({id}) => id)
        .filter(({id}) => !wanted.has(id))
        .map(volumeUnknown),
    ]
  }
}

/** A disk that QEMU itself logs in for has its portal in the domain's definition, where nobody changes it. */
function portalChanged(attachment: AttachmentRecord, {disks, portals}: Observed): Action[] {
  const {id, domain, domainUuid, target, persistent} = attachment
  const found = disks?.get(domainUuid)?.find(({serial, alias}) => serial === id || alias.endsWith(id))
  if (found?.source.type !== 'iscsi' || attachment.volumeId === null) return []
  const {portal} = found.source
  if (portals.some(one => covers(one, portal))) return []
  const again = `lunpath attach ${domain} --volume ${id}${persistent ? ' --persistent' : ''}`
  const message = `The disk ${target} (${id}) of ${domain} logs in to ${formatPortal(portal)}, which is no portal of this node any more. Run: lunpath detach ${id}, then ${again}`
  return [report('disk-portal-changed', id, message)]
}

/** What a target's name says. */
interface Names {
  isOurs: (iqn: string) => boolean
  /** An operation is under way on what it is named for. */
  isUnfinished: (iqn: string) => boolean
}

/**
 * The kernel's sessions. One that is `FAILED` is left to iscsid, which tries to bring it back, with the guest's I/O waiting
 * for it; `FREE` is what it becomes when that has failed. Where its target has been back for long (`giveUpFailed`) iscsid
 * has given up without a word, as it does at times. A session of somebody else is nobody's business here.
 */
function sessionActions(
  attachments: AttachmentRecord[],
  {sessions, disks}: Observed,
  {isOurs, isUnfinished}: Names,
  giveUpFailed: boolean,
): Action[] {
  if (sessions === null) return []
  const onHost = attachments.filter(({route}) => route === 'host')
  const needed = new Set(onHost.map(({iqn}) => iqn))
  const surplus = sessions.filter(
    ({iqn, owner}) => owner === 'attach' && isOurs(iqn) && !needed.has(iqn) && !isUnfinished(iqn),
  )
  const lost = onHost.filter(({iqn}) => {
    const own = sessions.filter(session => session.iqn === iqn)
    return own.every(({state}) => state === 'FREE' || (giveUpFailed && state === 'FAILED'))
  })
  const stale = onHost.filter(({id, iqn, domainUuid}) => {
    const disk = disks?.get(domainUuid)?.find(({serial, live}) => live && serial === id)
    const path = disk?.source.type === 'block' ? disk.source.path : ''
    const present = sessions.flatMap(session => (session.iqn === iqn ? session.devices : []))
    return /^\/dev\/sd[a-z]+$/.test(path) && !present.some(({device}) => path === `/dev/${device}`)
  })
  return [
    ...[...new Set(surplus.map(({iqn}) => iqn))].map((iqn): Action => ({do: 'disconnect', iqn})),
    ...lost.map(({id}): Action => ({do: 'connect', attachmentId: id})),
    ...stale.map(diskStale),
    ...sessions
      .filter(({iqn, stuck}) => stuck !== null && isOurs(iqn))
      .map(({iqn, stuck}) =>
        report(
          'session-stuck',
          iqn,
          `The session with ${iqn} could not be logged out: ${stuck}. It ends when the kernel lets the session go`,
        ),
      ),
  ]
}

/** What is seen of an attachment now. */
export function attachmentState(
  {id, domainUuid}: Pick<AttachmentRecord, 'id' | 'domainUuid'>,
  disks: Map<string, Disk[] | null> | null,
  detaching: boolean,
): AttachmentState {
  if (detaching) return 'detaching'
  if (disks === null) return 'unknown'
  return disks.get(domainUuid)?.some(({serial, alias}) => serial === id || alias.endsWith(id)) ? 'attached' : 'absent'
}

function report(problem: Problem['problem'], subject: string, message: string): Action {
  return {do: 'report', problem: {problem, subject, message}}
}

function poolUnusable({pool, reason}: UnusablePool): Action {
  return report('pool-unusable', pool, `The pool ${pool} cannot be used: ${reason}. It is tried again every 15 s`)
}

function volumeMissing({id, path}: VolumeRecord): Action {
  const message = `The volume ${id} is gone: ${path} is not there. It ends when that is back; where the data are gone for good, run: lunpath volume delete ${id}`
  return report('volume-missing', id, message)
}

function volumeUnknown({id, path}: Volume): Action {
  const message = `${path} has the form of a volume, and the store has none with that id. Move it out of the pool, or remove it`
  return report('volume-unknown', id, message)
}

function exportUnknown(iqn: string): Action {
  const message = `The target ${iqn} has a name of lunpath's, and no export in the store has it. Remove it with the tool that made it`
  return report('export-unknown', iqn, message)
}

function lookFailed({part, reason}: Observed['unseen'][number]): Action {
  const message = `What the ${part} hold cannot be seen: ${reason}. It is tried again every few seconds`
  return report('look-failed', part, message)
}

function portalClosed(portal: PortalState): Action {
  const text = formatPortal(portal)
  const message = `Nobody can log in at the portal ${text}: ${portal.reason}. It is tried again every few seconds; where it is wrong, mend targets.portals and restart the daemon`
  return report('portal-closed', text, message)
}

/** An operation that goes on when somebody has acted, and says what for. */
function waitingForSomebody({subject, waits}: Operation): Action[] {
  return waits?.problem ? [report(waits.problem, subject, waits.message)] : []
}

function diskStale({id, domain, target}: AttachmentRecord): Action {
  const message = `The disk ${target} (${id}) of ${domain} is that of a session that has ended. Run: lunpath detach ${id}, then attach it again`
  return report('disk-stale', id, message)
}

function diskAbsent({id, domain, target}: AttachmentRecord): Action {
  return report('disk-absent', id, `The disk ${target} (${id}) is no longer in ${domain}. Run: lunpath detach ${id}`)
}
