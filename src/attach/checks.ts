import {constants} from 'node:fs'
import {access, stat} from 'node:fs/promises'
import {checkTarget} from '../compute/disk-xml.js'
import {attributeText, formatDeviceNumber} from '../device-number.js'
import {StorageError} from '../errors.js'
import type {ExportRecord, VolumeRecord} from '../state/store.js'
import type {ChapAuth, Domain, ExportSpec} from '../types.js'
import type {Rooms} from './rooms.js'
import {type DiskRequest, type ExportRequest, exportSpec, type VolumeOrigin} from './steps.js'

/**
 * What a request is refused for before its first effect: not even its intent is written then. Each check asks whoever would
 * refuse it later, when a volume or an export had been made for it.
 */

/** What a request is about: a volume that it makes, one that exists, one that is exported already, or a device. */
type Choice = 'new' | 'existing' | 'exported' | 'device'

/** Options of `attach` and `export create` that mean something with some choices only, and what they say. */
const optionChoices: Record<string, {goesWith: Choice[]; of: string}> = {
  name: {goesWith: ['new'], of: 'a new volume'},
  pool: {goesWith: ['new'], of: 'a new volume'},
  preallocate: {goesWith: ['new'], of: 'a new volume'},
  access: {goesWith: ['new', 'existing'], of: 'an export'},
  auth: {goesWith: ['new', 'existing'], of: 'an export'},
  writeCache: {goesWith: ['new', 'existing'], of: 'an export'},
  ioType: {goesWith: ['new', 'existing'], of: 'an export'},
  format: {goesWith: ['device'], of: 'a device'},
  shared: {goesWith: ['existing', 'exported', 'device'], of: 'something that others can have'},
  force: {goesWith: ['existing', 'exported'], of: 'a volume that this host has logged in to before'},
  route: {goesWith: ['new', 'existing', 'exported'], of: 'a login to an export'},
}

const chosen: Record<Choice, string> = {
  new: 'makes a new volume',
  existing: 'names a volume that exists',
  exported: 'names a volume that is exported already',
  device: 'names a device, which is attached as it is',
}

/**
 * An option that could only be ignored is refused. What an export has already may be said again.
 * @throws INVALID_ARGUMENT, EXPORT_EXISTS, VOLUME_NOT_FOUND
 */
export function refuseIdleOptions({store}: Rooms, asked: object): void {
  const {volume: named, device} = asked as {volume?: string; device?: string}
  const volume = named === undefined ? undefined : store.volume(named)
  const exported = volume && store.exports.get(volume.id)
  const choice = device !== undefined ? 'device' : exported ? 'exported' : volume ? 'existing' : 'new'
  for (const [option, value] of Object.entries(asked)) {
    const {goesWith, of} = optionChoices[option] ?? {}
    if (value === undefined || !goesWith || goesWith.includes(choice)) continue
    if (!exported || of !== 'an export') {
      throw new StorageError('INVALID_ARGUMENT', `${option} is for ${of}, and this request ${chosen[choice]}`, {
        info: {option},
      })
    }
    if (value !== exported[option as keyof ExportRecord]) throw hasOtherSettings(exported, option)
  }
}

function hasOtherSettings({volumeId, iqn}: ExportRecord, option: string): StorageError {
  return new StorageError(
    'EXPORT_EXISTS',
    `${volumeId} is exported already as ${iqn}, with settings of its own: attach it without ${option}, or first run: lunpath export delete ${volumeId}`,
    {info: {id: volumeId, iqn, option}},
  )
}

/**
 * A disk that cannot be written is a guest's for reading alone: QEMU opens none such for writing, and where it does the kernel
 * fails each write later. @throws UNSUPPORTED
 */
export async function refuseReadOnly(path: string, {what, verb}: {what: string; verb: string}): Promise<void> {
  if (!(await isReadOnly(path))) return
  throw new StorageError(
    'UNSUPPORTED',
    `${what} is read-only, and cannot be ${verb}ed for writing: ${verb} it with --read-only, or make ${path} writable first`,
    {op: verb === 'attach' ? 'attach' : 'export.create', info: {path}},
  )
}

/** False also for what is not there: whoever opens it says so. */
async function isReadOnly(path: string): Promise<boolean> {
  const stats = await stat(path).catch(() => undefined)
  // The kernel opens some read-only devices for writing all the same, loop devices among them.
  if (stats?.isBlockDevice()) {
    return (await attributeText(`/sys/dev/block/${formatDeviceNumber(stats.rdev)}/ro`)).trim() === '1'
  }
  const refusal: NodeJS.ErrnoException | undefined = await access(path, constants.W_OK).then(
    () => undefined,
    error => error,
  )
  return ['EROFS', 'EACCES', 'EPERM'].includes(refusal?.code ?? '')
}

/**
 * Asks the target driver whether it can keep the export of a volume that may be still to be made.
 * @throws what the driver's check() throws
 */
export function checkExport(rooms: Rooms, origin: VolumeOrigin, request: ExportRequest, auth?: ChapAuth): void {
  rooms.targets.check({...request, volume: expectedVolume(rooms, origin), ...(auth && {auth})})
}

/** The same of an export whose volume is to grow, which cannot be taken back. @throws what the driver's check() throws */
export function checkGrown(rooms: Rooms, volume: VolumeRecord, sizeBytes: number): void {
  const exported = rooms.store.exports.get(volume.id)
  if (!exported) return
  const grown = {...volume, sizeBytes: volume.driver === 'lvm' ? wholeExtents(sizeBytes) : sizeBytes}
  rooms.targets.check(exportSpec(rooms, exported, grown))
}

function expectedVolume({store, volumes}: Rooms, origin: VolumeOrigin): ExportSpec['volume'] {
  if (origin.from !== 'create') return store.volume(origin.id)
  const {id, pool, sizeBytes} = origin
  // Where its file or device will lie is the pool's own affair.
  const path = `/${id}`
  return volumes.pool(pool).name === 'lvm'
    ? {id, path, kind: 'block', sizeBytes: wholeExtents(sizeBytes)}
    : {id, path, kind: 'file', sizeBytes}
}

/** A pool in LVM gives whole extents, and those are whole blocks of any target's (4,096 bytes at most). */
function wholeExtents(sizeBytes: number): number {
  const blockBytes = 4096
  return Math.ceil(sizeBytes / blockBytes) * blockBytes
}

/** @throws TARGET_UNAVAILABLE where nobody could log in to an export */
export function checkPortals({targets}: Rooms): void {
  if (targets.portals().length > 0) return
  throw new StorageError('TARGET_UNAVAILABLE', 'Exports have no portal: configure targets.portals', {op: 'attach'})
}

/** @throws INVALID_ARGUMENT, DOMAIN_INACTIVE */
export function checkPlaces(
  {name, state, persistent: isKept}: Domain,
  {live, persistent}: Pick<DiskRequest, 'live' | 'persistent'>,
): void {
  const info = {domain: name, state}
  const op = 'compute.attach'
  if (live && state === 'shutoff') {
    throw new StorageError('DOMAIN_INACTIVE', `The domain ${name} is shut off: start it, or attach without live`, {
      op,
      info,
    })
  }
  if (!live && !persistent) {
    if (state !== 'shutoff') {
      throw new StorageError('INVALID_ARGUMENT', 'Without live the disk is for the next start: give persistent', {
        op,
        info,
      })
    }
    throw new StorageError(
      'DOMAIN_INACTIVE',
      `The domain ${name} is shut off: start it, or attach with --persistent for its next start`,
      {op, info},
    )
  }
  if (persistent && !isKept) {
    throw new StorageError(
      'INVALID_ARGUMENT',
      `The domain ${name} is transient and has no definition that could keep the disk: attach without --persistent`,
      {op, info},
    )
  }
}

/** The name that the disk is to have in its domain. @throws INVALID_ARGUMENT, DISK_TARGET_IN_USE */
export async function checkDiskTarget(
  {compute}: Rooms,
  {domain, domainUuid, target, bus, live, persistent}: DiskRequest,
): Promise<void> {
  if (target === undefined) return
  checkTarget(target, bus)
  const disks = await compute.disks(domainUuid)
  const holder = disks.find(disk => disk.target === target && ((live && disk.live) || (persistent && disk.persistent)))
  if (!holder) return
  throw new StorageError('DISK_TARGET_IN_USE', `Domain ${domain} has a disk ${target} already`, {
    op: 'compute.attach',
    info: {domain, target},
  })
}

/** @throws INVALID_ARGUMENT */
export function checkNewPool({thin, thinBytes}: {thin?: boolean; thinBytes?: number}): void {
  if (thinBytes === undefined || thin) return
  throw new StorageError('INVALID_ARGUMENT', 'thinBytes (--thin-size) is for a thin pool: give thin (--thin) too', {
    op: 'pool.create',
  })
}
