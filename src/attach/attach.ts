import {checkChap} from '../chap.js'
import {StorageError} from '../errors.js'
import {checkAddressRule, checkForeignName, checkIscsiName} from '../iqn.js'
import {checkSize} from '../size.js'
import type {Change} from '../state/store.js'
import type {AccessRules, ChapAuth, IoType, VolumeId} from '../types.js'
import {newVolumeId} from '../volumes/id.js'
import {
  checkDiskTarget,
  checkExport,
  checkGrown,
  checkPlaces,
  checkPortals,
  refuseIdleOptions,
  refuseReadOnly,
} from './checks.js'
import {refuseClaimed, refuseOtherUsers} from './claims.js'
import {type DeviceAsked, deviceOrigin, refuseUsedDevice} from './devices.js'
import type {Asked, Operations, Wanted} from './operations.js'
import {named, type Rooms, type Route} from './rooms.js'
import type {Answer} from './run.js'
import {refuseStrangers} from './sessions.js'
import type {DiskRequest, ExportRequest, MakeRequest, VolumeOrigin} from './steps.js'

export interface NewVolume {
  /** Bytes, a positive multiple of 512. */
  sizeBytes: number
  name?: string
  /** True: all its space is reserved. False: it is to be thin, or not made at all. Else as its pool makes volumes. */
  preallocate?: boolean
  /** Default: the node's default pool. */
  pool?: string
}

/** How an export is asked for; all of it has defaults. */
export interface ExportOptions {
  access?: AccessRules
  auth?: ChapAuth
  writeCache?: 'through' | 'back'
  readOnly?: boolean
  /** IET alone. */
  ioType?: IoType
  /** Others on this host may have the volume too. */
  shared?: boolean
}

/** Exactly one of a volume that exists (id or name) and a size for a new one. */
export type VolumeChoice = {volume: string} | NewVolume

export type AttachAsked = {
  /** Name or UUID. */
  domain: string
  bus?: 'virtio' | 'scsi'
  target?: string
  readOnly?: boolean
  /** Others may have the same bytes: who asks answers for that. */
  shared?: boolean
  persistent?: boolean
  live?: boolean
  auth?: ChapAuth
  writeCache?: 'through' | 'back'
  /** Who logs in; default as configured. */
  route?: Route
  /** On the host route: another tool's node record, or its lost session that nobody uses, makes room. */
  force?: boolean
} & (VolumeChoice | {device: string; format?: DeviceAsked['format']})

/** `volume create`: intent, then the volume. */
export function createVolume(operations: Operations, asked: NewVolume, options: Asked = {}): Promise<Answer> {
  return operations.perform('volume.create', asked, options, async () => {
    await operations.rooms.volumes.ready(asked.pool)
    const volume = newVolume(operations.rooms, asked)
    return wanted('volume.create', {volume}, ['volume'])
  })
}

/** `volume import PATH`: a file or device that lunpath exports, and never wipes, resizes or removes. */
export function importVolume(
  operations: Operations,
  asked: {path: string; name?: string},
  options: Asked = {},
): Promise<Answer> {
  return operations.perform('volume.import', asked, options, () => {
    const volume: VolumeOrigin = {
      from: 'import',
      id: freshId(operations.rooms),
      name: checkName(operations.rooms, asked.name),
      path: asked.path,
    }
    const check = () => refuseClaimed(operations.rooms, asked.path, 'volume.import')
    return {...wanted('volume.import', {volume}, ['volume']), check, claims: true}
  })
}

/** `volume clone`: a full copy of a volume that no operation is changing. */
export function cloneVolume(
  operations: Operations,
  asked: {volume: string; name?: string; sizeBytes?: number; pool?: string},
  options: Asked = {},
): Promise<Answer> {
  return operations.perform('volume.clone', asked, options, async () => {
    if (asked.pool !== undefined) await operations.rooms.volumes.ready(asked.pool)
    const source = operations.rooms.store.volume(asked.volume)
    const sizeBytes = checkSize(asked.sizeBytes ?? source.sizeBytes)
    if (sizeBytes < source.sizeBytes) {
      throw new StorageError(
        'SIZE_INVALID',
        `A clone of ${source.id} needs at least its ${source.sizeBytes} bytes, not ${sizeBytes}`,
        {
          info: {sizeBytes, sourceBytes: source.sizeBytes},
        },
      )
    }
    refuseWhileInUse(operations.rooms, source.id, 'cloned')
    if (asked.pool !== undefined) operations.rooms.volumes.pool(asked.pool)
    const volume: VolumeOrigin = {
      from: 'clone',
      id: freshId(operations.rooms),
      name: checkName(operations.rooms, asked.name),
      sourceId: source.id,
      sizeBytes,
      pool: asked.pool,
    }
    return wanted('volume.clone', {volume}, ['volume'])
  })
}

/** `volume snapshot`: what a volume holds now, as another volume. It may be in use meanwhile. */
export function snapshotVolume(
  operations: Operations,
  asked: {volume: string; name?: string},
  options: Asked = {},
): Promise<Answer> {
  return operations.perform('volume.snapshot', asked, options, () => {
    const source = operations.rooms.store.volume(asked.volume)
    if (source.imported) {
      throw new StorageError('VOLUME_IMPORTED', `${source.id} is an imported volume and has no snapshots: clone it`, {
        info: {id: source.id},
      })
    }
    const volume: VolumeOrigin = {
      from: 'snapshot',
      id: freshId(operations.rooms),
      name: checkName(operations.rooms, asked.name),
      sourceId: source.id,
    }
    return wanted('volume.snapshot', {volume}, ['volume'])
  })
}

/** `volume extend`: the volume, its LUN where no session would miss the change, and the disk of the domain that has it. */
export function extendVolume(
  operations: Operations,
  asked: {volume: string; sizeBytes: number},
  options: Asked = {},
): Promise<Answer> {
  return operations.perform('volume.extend', asked, options, async () => {
    const {store, targets} = operations.rooms
    const {id, sizeBytes, imported} = store.volume(asked.volume)
    if (imported) {
      throw new StorageError(
        'VOLUME_IMPORTED',
        `${id} is an imported volume: lunpath never resizes it. Grow its file or device yourself and import it anew`,
        {
          info: {id},
        },
      )
    }
    checkSize(asked.sizeBytes)
    if (asked.sizeBytes < sizeBytes) {
      throw new StorageError(
        'SIZE_INVALID',
        `${id} has ${sizeBytes} bytes, and a volume never shrinks to ${asked.sizeBytes}`,
        {
          info: {id, sizeBytes: asked.sizeBytes, currentBytes: sizeBytes},
        },
      )
    }
    const exported = store.exports.get(id)
    const sessions = exported ? ((await targets.get(exported.iqn))?.sessions ?? []) : []
    if (sessions.length > 0 && !targets.supports.resizeInUse) {
      throw new StorageError(
        'TARGET_IN_USE',
        `${id} cannot grow while an initiator is logged in to ${exported!.iqn}: the target would keep the old size. Detach it or log out first`,
        {info: {id, initiators: sessions.map(({initiator}) => initiator)}},
      )
    }
    // The look at the target took its time: the volume may be gone by now.
    checkGrown(operations.rooms, store.volume(id), asked.sizeBytes)
    return {
      ...wanted('volume.extend', {volume: {from: 'existing', id}, sizeBytes: asked.sizeBytes}, ['size']),
      subject: id,
    }
  })
}

/** `export create`: a volume, made here where a size is given, is offered over iSCSI. */
export function createExport(
  operations: Operations,
  asked: VolumeChoice & ExportOptions,
  options: Asked = {},
): Promise<Answer> {
  return operations.perform('export.create', asked, options, async () => {
    const {rooms} = operations
    if (!('volume' in asked)) await rooms.volumes.ready(asked.pool)
    const volume = chooseVolume(rooms, asked)
    const known = rooms.store.exports.get(volume.id)
    if (known)
      throw new StorageError('EXPORT_EXISTS', `${volume.id} is exported already as ${known.iqn}`, {
        info: {id: volume.id, iqn: known.iqn},
      })
    refuseIdleOptions(rooms, asked)
    if (volume.from === 'existing' && !asked.readOnly && asked.ioType !== 'nullio') {
      await refuseReadOnly(rooms.store.volume(volume.id).path, {what: volume.id, verb: 'export'})
    }
    const request = {volume, export: exportRequest(rooms, volume.id, asked)}
    checkExport(rooms, volume, request.export, asked.auth)
    const plan = volume.from === 'existing' ? (['export'] as const) : (['volume', 'export'] as const)
    const check = async () => {
      if (asked.shared || volume.from !== 'existing') return
      await refuseOtherUsers(rooms, rooms.store.volume(volume.id), {op: 'export.create', except: {id: volume.id}})
    }
    return {...wanted('export.create', request, [...plan]), check, changes: secretChanges(volume.id, asked.auth)}
  })
}

/**
 * The path, from a volume to a disk in a running VM: volume → export → proven login → disk. Each part that exists already
 * (the volume, its export) is used and stays when this attach fails or is taken back.
 */
export function attach(operations: Operations, asked: AttachAsked, options: Asked = {}): Promise<Answer> {
  return operations.perform('attach', asked, options, async () => {
    const {rooms} = operations
    const disk = await diskRequest(rooms, asked)
    if (!('volume' in asked) && !('device' in asked)) await rooms.volumes.ready(asked.pool)
    refuseIdleOptions(rooms, asked)
    const locks = disk.target === undefined ? [] : [`disk ${disk.target} of ${disk.domainUuid}`]
    if ('device' in asked) {
      const origin = await deviceOrigin({path: asked.device, format: asked.format})
      const volume = {from: 'device' as const, id: freshId(rooms), ...origin}
      if (!disk.readOnly) await refuseReadOnly(asked.device, {what: asked.device, verb: 'attach'})
      const check = async () => {
        if (!disk.shared && 'path' in origin.source) await refuseUsedDevice(rooms, origin.source.path)
      }
      return {...wanted('attach', {volume, disk}, ['disk'], locks), check, claims: true}
    }
    checkPortals(rooms)
    const volume = chooseVolume(rooms, asked)
    const record = rooms.store.attachments.get(volume.id)
    if (record) {
      const attached = named(rooms, record)
      throw new StorageError(
        'ATTACHMENT_EXISTS',
        `${volume.id} is attached already: to ${attached.domain} as ${attached.target}`,
        {
          info: {id: volume.id, domain: attached.domain, target: attached.target},
        },
      )
    }
    const exported = rooms.store.exports.get(volume.id)
    if (exported?.readOnly && !disk.readOnly) {
      throw new StorageError(
        'UNSUPPORTED',
        `${volume.id} is exported read-only (${exported.iqn}), and cannot be attached for writing: attach it with --read-only; or run lunpath export delete ${volume.id}, then attach it, which exports it for writing`,
        {op: 'attach', info: {id: volume.id, iqn: exported.iqn}},
      )
    }
    if (!exported && volume.from === 'existing' && !disk.readOnly) {
      await refuseReadOnly(rooms.store.volume(volume.id).path, {what: volume.id, verb: 'attach'})
    }
    if (exported?.ioType === 'nullio') {
      throw new StorageError(
        'UNSUPPORTED',
        `${volume.id} is exported with nullio, which keeps nothing that a guest writes: it is not attached. First run: lunpath export delete ${volume.id}`,
        {op: 'attach', info: {id: volume.id, iqn: exported.iqn, ioType: exported.ioType}},
      )
    }
    const access = {addresses: [], names: [rooms.initiatorName]}
    const route = asked.route ?? rooms.route
    if (asked.force && route !== 'host') {
      throw new StorageError(
        'INVALID_ARGUMENT',
        'force is for the host route (--route host): where QEMU logs in, no node record of this host is in the way',
        {op: 'attach', info: {option: 'force', route}},
      )
    }
    const request: MakeRequest = {
      volume,
      disk: {...disk, route, ...(asked.force ? {force: true} : {})},
      export: exportRequest(rooms, volume.id, {...asked, access}),
    }
    if (!exported) checkExport(rooms, volume, request.export!, asked.auth)
    const plan: Wanted['plan'] = route === 'host' ? ['device', 'disk'] : ['disk']
    if (!exported) plan.unshift('export')
    if (volume.from !== 'existing') plan.unshift('volume')
    const check = async () => {
      if (disk.shared || volume.from !== 'existing') return
      if (exported) await refuseStrangers(rooms, exported)
      await refuseOtherUsers(rooms, rooms.store.volume(volume.id), {
        op: 'attach',
        except: {id: volume.id, domainUuid: disk.domainUuid},
      })
    }
    const changes = exported ? [] : secretChanges(volume.id, asked.auth)
    return {...wanted('attach', request, plan, locks), check, changes}
  })
}

export function wanted(kind: string, request: MakeRequest, plan: Wanted['plan'], locks: string[] = []): Wanted {
  const all = [...locksOf(request.volume), ...locks]
  return {kind, direction: 'make', subject: request.volume.id, plan, request, locks: all}
}

/** Names, paths and clone sources that two operations at once must not share. */
function locksOf(origin: VolumeOrigin): string[] {
  const locks = 'name' in origin && origin.name !== null ? [`name ${origin.name}`] : []
  if (origin.from === 'clone' || origin.from === 'snapshot') locks.push(origin.sourceId)
  if (origin.from === 'import' || origin.from === 'target') locks.push(`path ${origin.path}`)
  return locks
}

function chooseVolume(rooms: Rooms, asked: VolumeChoice): VolumeOrigin {
  return 'volume' in asked ? {from: 'existing', id: rooms.store.volume(asked.volume).id} : newVolume(rooms, asked)
}

function newVolume(rooms: Rooms, {sizeBytes, name, preallocate, pool}: NewVolume): VolumeOrigin {
  rooms.volumes.pool(pool)
  return {
    from: 'create',
    id: freshId(rooms),
    name: checkName(rooms, name),
    sizeBytes: checkSize(sizeBytes),
    preallocate,
    pool,
  }
}

export function freshId(rooms: Rooms): VolumeId {
  const {store} = rooms
  for (;;) {
    const id = newVolumeId()
    if (!store.volumes.has(id) && !store.attachments.has(id)) return id
  }
}

/** A volume's own name: letters, digits, `.`, `_`, `-`; not the form of an id, so that the two are never mixed up. */
function checkName(rooms: Rooms, name: string | undefined): string | null {
  if (name === undefined) return null
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(name) || name.includes('..') || /^[0-9a-f]{16}$/.test(name)) {
    throw new StorageError(
      'NAME_INVALID',
      `${JSON.stringify(name.slice(0, 80))} is not a volume name: 1 to 63 letters, digits, ".", "_" or "-", beginning with a letter or digit, not 16 hex digits`,
      {info: {name: name.slice(0, 256)}},
    )
  }
  const holder = [...rooms.store.volumes.values()].find(volume => volume.name === name)
  if (holder)
    throw new StorageError('VOLUME_EXISTS', `The name ${name} belongs to the volume ${holder.id}`, {
      info: {name, id: holder.id},
    })
  return name
}

function exportRequest(
  rooms: Rooms,
  id: VolumeId,
  {access, auth, writeCache, readOnly, ioType}: ExportOptions,
): ExportRequest {
  const rules = access ?? {addresses: [], names: [rooms.initiatorName]}
  for (const name of rules.names) checkForeignName(name)
  for (const address of rules.addresses) checkAddressRule(address)
  if (auth) checkChap(auth)
  return {
    iqn: checkIscsiName(`${rooms.iqnPrefix}:${id}`),
    access: rules,
    writeCache: writeCache ?? 'through',
    readOnly: readOnly ?? false,
    ...(ioType && {ioType}),
  }
}

/** Secrets are committed with the intent, so that a resumed export has them; the request itself never holds them. */
export function secretChanges(id: VolumeId, auth: ChapAuth | undefined): Change[] {
  return auth ? [{table: 'secrets', id, value: auth}] : []
}

async function diskRequest(rooms: Rooms, asked: AttachAsked): Promise<DiskRequest> {
  const domain = await rooms.compute.domain(asked.domain)
  const persistent = asked.persistent ?? false
  const live = asked.live ?? domain.state !== 'shutoff'
  checkPlaces(domain, {live, persistent})
  const disk = {
    domain: domain.name,
    domainUuid: domain.uuid,
    bus: asked.bus ?? 'virtio',
    target: asked.target,
    readOnly: asked.readOnly ?? false,
    ...(asked.shared ? {shared: true} : {}),
    persistent,
    live,
  }
  await checkDiskTarget(rooms, disk)
  return disk
}

/** @throws VOLUME_IN_USE where an export or an attachment could change the volume meanwhile */
export function refuseWhileInUse(rooms: Rooms, id: VolumeId, verb: string): void {
  const record = rooms.store.attachments.get(id)
  const attachment = record && named(rooms, record)
  const exported = rooms.store.exports.get(id)
  if (!attachment && !exported) return
  const [use, remedy] = attachment
    ? [`attached to ${attachment.domain}`, `lunpath detach ${id}`]
    : [`exported as ${exported!.iqn}`, `lunpath export delete ${id}`]
  throw new StorageError('VOLUME_IN_USE', `${id} cannot be ${verb}: it is ${use}. First run: ${remedy}`, {
    info: {id, domain: attachment?.domain, iqn: exported?.iqn},
  })
}
