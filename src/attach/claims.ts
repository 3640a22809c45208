import type {Stats} from 'node:fs'
import {stat} from 'node:fs/promises'
import {type Backing, backingAt, backingOf, backingOfLun, backingOfScsi, type OwnLun, overlap} from '../backing.js'
import {deviceNumber} from '../device-number.js'
import {blockDeviceUse, fileUse, type Use} from '../device-use.js'
import {type ErrorCode, hasCode, StorageError} from '../errors.js'
import type {Operation} from '../state/journal.js'
import type {Store, VolumeRecord} from '../state/store.js'
import type {DiskSource, Feed, VolumeId} from '../types.js'
import {named, type Rooms} from './rooms.js'
import type {MakeRequest} from './steps.js'

/** Somebody who has the bytes that a request is about. */
export interface Claim extends Use {
  code: ErrorCode
}

export interface ClaimQuery {
  /** The request's own volume, and the domain that is to have it: that one may have the disk from an earlier run. */
  except?: {id: VolumeId; domainUuid?: string}
}

/** A volume is looked up by what it is. At most this many are looked up at once: each look is some system calls. */
const batchSize = 64

/**
 * Who has any of these bytes, by whatever name: a volume, a disk that was attached by its path, an operation that is under
 * way, or a disk of any domain. Hypervisors that do not answer are passed over: a storage node may have none.
 */
export async function claimOf(rooms: Rooms, backing: Backing, query: ClaimQuery = {}): Promise<Claim | undefined> {
  return (
    (await volumeClaim(rooms.store, backing, query)) ??
    (await deviceClaim(rooms, backing, query)) ??
    (await intentClaim(rooms, backing, query)) ??
    (await domainClaim(rooms, backing, query))
  )
}

/** From a LUN of this node's own targets to its volume. */
export function ownLuns(store: Store): OwnLun {
  return (iqn, lun) => {
    const exported = store.exportOf(iqn)
    return exported?.lun === lun ? store.volumes.get(exported.volumeId)?.path : undefined
  }
}

/** The bytes of a volume, and of its LUN where it is exported. */
export async function backingOfVolume(store: Store, volume: Pick<VolumeRecord, 'id' | 'path'>): Promise<Backing> {
  const own = (await backingAt(volume.path)) ?? {same: [], under: []}
  const exported = store.exports.get(volume.id)
  if (!exported) return own
  const unit = await backingOfLun(exported.iqn, exported.lun)
  return {same: [...own.same, ...unit.same], under: own.under}
}

async function volumeClaim(store: Store, backing: Backing, {except}: ClaimQuery): Promise<Claim | undefined> {
  const others = [...store.volumes.values()].filter(({id}) => id !== except?.id)
  const found = await firstOverlap(others, volume => backingOfVolume(store, volume), backing)
  if (!found) return undefined
  const {id, name, path} = found
  const how = `is the volume ${name ?? id} already (${path})`
  return {code: 'VOLUME_EXISTS', how, info: {id, path}}
}

async function deviceClaim(rooms: Rooms, backing: Backing, {except}: ClaimQuery): Promise<Claim | undefined> {
  const {store} = rooms
  const byPath = [...store.attachments.values()].filter(({id, volumeId}) => volumeId === null && id !== except?.id)
  const found = await firstOverlap(byPath, ({source}) => backingOfSource(source, ownLuns(store)), backing)
  if (!found) return undefined
  const {id, domain, target} = named(rooms, found)
  return {
    code: 'ATTACHMENT_EXISTS',
    how: `is attached already: to ${domain} as ${target}. First run: lunpath detach ${id}`,
    info: {id, domain, target},
  }
}

/** An import or an attach by path claims its bytes with its intent: its row comes later. */
async function intentClaim(
  {store, journal}: Rooms,
  backing: Backing,
  {except}: ClaimQuery,
): Promise<Claim | undefined> {
  const intents = journal.unfinished().filter(({subject, direction}) => direction === 'make' && subject !== except?.id)
  const found = await firstOverlap(intents, operation => backingOfIntent(operation, store), backing)
  if (!found) return undefined
  const {kind, subject, id} = found
  return {
    code: 'CONFLICT',
    how: `is what the operation ${kind} on ${subject} is at work on`,
    info: {subject, operation: id},
  }
}

async function backingOfIntent({request}: Operation, store: Store): Promise<Backing | undefined> {
  const {volume} = request as MakeRequest
  if (volume.from === 'import' || volume.from === 'target') return backingAt(volume.path)
  return volume.from === 'device' ? backingOfSource(volume.source, ownLuns(store)) : undefined
}

async function domainClaim(rooms: Rooms, backing: Backing, {except}: ClaimQuery): Promise<Claim | undefined> {
  const feeds = await rooms.compute.feeds().catch((error: unknown): Feed[] => {
    if (hasCode(error, 'COMPUTE_UNAVAILABLE', 'DEPENDENCY_MISSING')) return []
    throw error
  })
  const isOwn = ({alias, domainUuid}: Feed) =>
    except !== undefined && domainUuid === except.domainUuid && alias.endsWith(except.id)
  const others = feeds.filter(feed => !isOwn(feed))
  const found = await firstOverlap(others, ({source}) => backingOfSource(source, ownLuns(rooms.store)), backing)
  if (!found) return undefined
  const {domain, domainUuid, device} = found
  return {
    code: 'ATTACHMENT_EXISTS',
    how: `is a disk of the domain ${domain} already: ${device}`,
    info: {domain, domainUuid, device},
  }
}

async function backingOfSource(source: DiskSource | Feed['source'], ownLun: OwnLun): Promise<Backing | undefined> {
  switch (source.type) {
    case 'iscsi':
      return backingOfLun(source.iqn, source.lun, ownLun)
    case 'scsi':
      return backingOfScsi(source.address, ownLun)
    case 'block':
    case 'file':
      return backingAt(source.path, ownLun)
  }
}

async function firstOverlap<T>(
  items: T[],
  look: (item: T) => Promise<Backing | undefined>,
  backing: Backing,
): Promise<T | undefined> {
  for (let begin = 0; begin < items.length; begin += batchSize) {
    const batch = items.slice(begin, begin + batchSize)
    const found = await Promise.all(batch.map(look))
    const index = found.findIndex(one => one !== undefined && overlap(one, backing))
    if (index >= 0) return batch[index]
  }
  return undefined
}

/**
 * Makes sure that a volume which exists is used by nobody but those who are asked to: no disk of any domain, no mount, holder,
 * swap, loop device or lock on this host. @throws ATTACHMENT_EXISTS, DEVICE_IN_USE
 */
export async function refuseOtherUsers(
  rooms: Rooms,
  volume: VolumeRecord,
  {op, except}: ClaimQuery & {op: string},
): Promise<void> {
  const claim = await domainClaim(rooms, await backingOfVolume(rooms.store, volume), {except})
  if (claim) throw refusal(volume.name ?? volume.id, claim, op)
  const stats = await stat(volume.path).catch(() => undefined)
  const use = stats && (await kernelUse(volume.path, stats))
  if (use) throw refusal(volume.name ?? volume.id, {code: 'DEVICE_IN_USE', ...use}, op)
}

function kernelUse(path: string, stats: Stats): Promise<Use | undefined> {
  return stats.isBlockDevice() ? blockDeviceUse(path, deviceNumber(stats.rdev)) : fileUse(path, stats)
}

/** The bytes of a path that somebody wants to have for himself. @throws VOLUME_EXISTS, ATTACHMENT_EXISTS, CONFLICT */
export async function refuseClaimed(rooms: Rooms, path: string, op: string): Promise<void> {
  const stats = await stat(path).catch(() => undefined)
  const claim = stats && (await claimOf(rooms, await backingOf(path, stats, ownLuns(rooms.store))))
  if (claim) throw refusal(path, claim, op)
}

function refusal(what: string, {code, how, info}: Claim, op: string): StorageError {
  return new StorageError(code, `${what} ${how}`, {op, info: {...info}})
}
