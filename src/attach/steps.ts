import {stat} from 'node:fs/promises'
import {setTimeout as sleep} from 'node:timers/promises'
import type {AttachSpec} from '../compute/driver.js'
import {writerOf} from '../device-use.js'
import {hasCode, StorageError} from '../errors.js'
import type {ConnectSpec} from '../initiators/driver.js'
import type {Operation, StepName} from '../state/journal.js'
import type {AttachmentRecord, Change, ExportRecord, VolumeRecord} from '../state/store.js'
import type {
  AccessRules,
  Device,
  Disk,
  DiskSource,
  Export,
  ExportSpec,
  Portal,
  TakenTarget,
  TargetSession,
  Volume,
  VolumeId,
} from '../types.js'
import {importOffered} from '../volumes/imported.js'
import {confirmDevice} from './devices.js'
import {named, type Rooms, type Route} from './rooms.js'
import {describeSessions, lastingSessions, refuseStrangers, sessionsOf} from './sessions.js'

/** Where the volume of a make operation comes from. */
export type VolumeOrigin =
  | {from: 'create'; id: VolumeId; name: string | null; sizeBytes: number; preallocate?: boolean; pool?: string}
  | {from: 'clone'; id: VolumeId; name: string | null; sourceId: VolumeId; sizeBytes: number; pool?: string}
  | {from: 'snapshot'; id: VolumeId; name: string | null; sourceId: VolumeId}
  | {from: 'import'; id: VolumeId; name: string | null; path: string}
  | ({from: 'target'; id: VolumeId; name: null} & Pick<Volume, 'path' | 'kind' | 'sizeBytes'>)
  | {from: 'existing'; id: VolumeId}
  | {
      from: 'device'
      id: VolumeId
      source: DiskSource
      /** What was found at the path. Absent in requests of older daemons. */
      identity?: string
    }

export interface ExportRequest {
  iqn: string
  access: AccessRules
  writeCache: 'through' | 'back'
  readOnly: boolean
  ioType?: ExportSpec['ioType']
  /** Of a target that is taken over. */
  taken?: TakenTarget
  tid?: number
  parameters?: ExportSpec['parameters']
}

export interface DiskRequest {
  domain: string
  domainUuid: string
  bus: 'virtio' | 'scsi'
  target?: string
  readOnly: boolean
  /** Others may have the same bytes: the caller answers for that. */
  shared?: boolean
  persistent: boolean
  live?: boolean
  /** On the host route: another tool's node record, or its lost session that nobody uses, makes room. */
  force?: boolean
  /** Who logs in. Absent in requests of before the host route, and for `--device`: `qemu`. */
  route?: Route
}

/** The settled request of a make operation. CHAP secrets are not in it: they lie in the store's own table. */
export interface MakeRequest {
  volume: VolumeOrigin
  export?: ExportRequest
  disk?: DiskRequest
  /** The new size of an extend. */
  sizeBytes?: number
}

/** The settled request of an unmake operation. */
export interface UnmakeRequest {
  /** Close sessions that are still logged in; of a detach: those that stay after the guest's release. */
  force?: boolean
  /** Milliseconds to wait for the guest's release. */
  timeoutMs?: number
}

/** The nouns that have been reached so far. Each step adds the next one. */
export interface Path {
  volume?: Volume
  export?: Export
  device?: Device
  disk?: Disk
}

/** What a running operation may use besides its request. */
export interface StepContext {
  rooms: Rooms
  operation: Operation
  signal?: AbortSignal
  onProgress?: (progress: {copiedBytes: number; totalBytes: number}) => void
  /** Milliseconds to wait for a guest's release, where it is not the request's own. */
  releaseTimeoutMs?: number
  /** An earlier run has begun this step, and was cut off. */
  recovering?: boolean
}

/**
 * One room's part of the path. `make` and `unmake` both mean "ensure", so a recovery may repeat them. `made` and
 * `unmade` are the rows of the desired state that the journal commits together with the step's end.
 */
export interface Step {
  name: StepName
  /** Codes of a `make` that has found somebody else there and touched nothing: an undo must not take that away. */
  refusals: readonly string[]
  make(context: StepContext, path: Path): Promise<Path>
  made(context: StepContext, path: Path): Change[]
  unmake(context: StepContext): Promise<Unmade | undefined>
  unmade(context: StepContext): Change[]
  /** After `make` has failed: rows that must follow what the world holds now. */
  failed?(context: StepContext): Promise<Change[]>
}

/** What there is to say of a step that was taken back. */
export interface Unmade {
  /** False: the disk took no flush, and what this host had not written yet may be lost. */
  flushed?: boolean
}

const logoutMs = 3_000

const makeRequest = (operation: Operation) => operation.request as MakeRequest
const unmakeRequest = (operation: Operation) =>
  operation.direction === 'unmake' ? (operation.request as UnmakeRequest) : ({} satisfies UnmakeRequest)

const volumeStep: Step = {
  name: 'volume',
  refusals: ['VOLUME_EXISTS'],
  async make({rooms, operation, signal, onProgress}, path) {
    const origin = makeRequest(operation).volume
    switch (origin.from) {
      case 'create':
        return {...path, volume: await rooms.volumes.create(origin)}
      case 'clone': {
        const {id, sizeBytes, pool} = origin
        const source = rooms.store.volume(origin.sourceId)
        return {...path, volume: await rooms.volumes.clone(source, {id, sizeBytes, pool, signal, onProgress})}
      }
      case 'snapshot':
        return {...path, volume: await rooms.volumes.snapshot(rooms.store.volume(origin.sourceId), origin.id)}
      case 'import':
        return {...path, volume: await rooms.importVolume(origin.path, origin.id)}
      case 'target':
        return {...path, volume: await importOffered(origin)}
      case 'existing':
      case 'device':
        throw new StorageError('INTERNAL', `A volume that exists is not made again: ${operation.kind}`)
    }
  },
  made({operation}, path) {
    const origin = makeRequest(operation).volume
    const name = 'name' in origin ? origin.name : null
    const value: VolumeRecord = {...path.volume!, name, createdAt: operation.startedAt}
    return [{table: 'volumes', id: value.id, value}]
  },
  async unmake({rooms, operation}) {
    const volume = rooms.store.volumes.get(operation.subject) ?? (await rooms.volumes.get(operation.subject))
    if (volume && !volume.imported) await rooms.volumes.delete(volume)
  },
  unmade({operation}) {
    return [{table: 'volumes', id: operation.subject, value: null}]
  },
}

/** The volume's export as the target driver is asked for it: from the request while it is made, else from the store. */
export function exportSpec(
  rooms: Rooms,
  record: ExportRequest & Pick<ExportRecord, 'volumeId' | 'redirect'>,
  volume: Volume,
): ExportSpec {
  const {iqn, access, writeCache, readOnly, ioType, parameters, redirect, taken, tid} = record
  const auth = rooms.store.secrets.get(record.volumeId)
  return {
    ...{volume, iqn, access, writeCache, readOnly},
    ...(auth && {auth}),
    ...(ioType && {ioType}),
    ...(parameters && {parameters}),
    ...(redirect !== undefined && {redirect}),
    ...(taken && {taken}),
    ...(tid !== undefined && {tid}),
  }
}

const exportStep: Step = {
  name: 'export',
  refusals: ['TARGET_EXISTS'],
  async make({rooms, operation}, path) {
    const request = makeRequest(operation).export!
    const spec = exportSpec(rooms, {...request, volumeId: operation.subject}, path.volume!)
    return {...path, export: await rooms.targets.export(spec)}
  },
  made({rooms, operation}, path) {
    const {iqn: _asked, ...request} = makeRequest(operation).export!
    const hasAuth = rooms.store.secrets.has(operation.subject)
    const value: ExportRecord = {...request, ...path.export!, hasAuth, createdAt: operation.startedAt}
    return [{table: 'exports', id: operation.subject, value}]
  },
  async unmake({rooms, operation}) {
    const record = rooms.store.exports.get(operation.subject)
    const iqn = record?.iqn ?? makeRequest(operation).export?.iqn
    if (iqn === undefined) return
    if (!record && !(await adopted(rooms, operation))) return
    const {force} = unmakeRequest(operation)
    if (force || !operation.plan.includes('disk')) {
      await rooms.targets.unexport(iqn, {force})
      return
    }
    await closeAfterDisk(rooms, iqn, operation)
  },
  unmade({operation}) {
    return [
      {table: 'exports', id: operation.subject, value: null},
      {table: 'secrets', id: operation.subject, value: null},
    ]
  },
}

/**
 * Takes an export down whose disk has left its domain. libvirt tells of the removal a little before QEMU logs out. A session
 * that stays belongs to somebody else as far as anybody can tell: the domain on another host after a migration, for example,
 * which has the same initiator name. @throws DETACH_PENDING where it stays: its end, or `--force`, is waited for
 */
async function closeAfterDisk(rooms: Rooms, iqn: string, {subject}: Operation): Promise<void> {
  const deadline = performance.now() + logoutMs
  for (;;) {
    try {
      return await rooms.targets.unexport(iqn)
    } catch (error) {
      if (!hasCode(error, 'TARGET_IN_USE')) throw error
      if (performance.now() < deadline) await sleep(100)
      else {
        const who = await sessionsOf(rooms, iqn)
        const message = `The disk has left its domain, and ${describeSessions(who)} logged in to ${iqn}. The request stands: the export goes when that session ends. To end it at the target: lunpath detach ${subject} --force`
        throw new StorageError('DETACH_PENDING', message, {
          op: 'target.unexport',
          info: {iqn, initiators: who.map(({initiator}) => initiator)},
          cause: error,
        })
      }
    }
  }
}

/**
 * After an export that broke off, and perhaps a restart, the driver may not know the target as ours, and it removes no
 * other's. Exporting once more makes it ours, whole; where that is refused, nothing of ours is there.
 */
async function adopted(rooms: Rooms, operation: Operation): Promise<boolean> {
  const volume = rooms.store.volumes.get(operation.subject)
  if (!volume) return false
  try {
    await rooms.targets.export(exportSpec(rooms, {...makeRequest(operation).export!, volumeId: volume.id}, volume))
    return true
  } catch (error) {
    if (hasCode(error, 'TARGET_UNAVAILABLE', 'TIMEOUT')) throw error
    return false
  }
}

/**
 * The portal that the compute node uses: the first, as all are the same target portal group. It is the driver's present one: what a
 * record says is that of the day on which the export was made.
 */
export function firstPortal({targets}: Pick<Rooms, 'targets'>, iqn: string): Portal {
  const [portal] = targets.portals()
  if (!portal) {
    throw new StorageError('TARGET_UNAVAILABLE', `${iqn} has no portal: configure targets.portals`, {info: {iqn}})
  }
  return portal
}

/** The kernel's login to an export, and what its disk must be. */
export function connectSpec(rooms: Rooms, {volumeId, iqn, lun, wwid, serial, sizeBytes}: Export): ConnectSpec {
  const auth = rooms.store.secrets.get(volumeId)
  const {initiatorName, probeTimeoutMs: timeoutMs} = rooms
  const expected = {wwid, serial, sizeBytes}
  const portals = rooms.targets.portals()
  return {iqn, lun, portals, initiatorName, expected, owner: 'attach', timeoutMs, ...(auth ? {auth} : {})}
}

/** On the host route: the export becomes a block device of this host, proven to be the volume. */
const deviceStep: Step = {
  name: 'device',
  refusals: ['TARGET_IN_USE', 'NODE_FOREIGN'],
  async make({rooms, operation}, path) {
    const {shared, force} = makeRequest(operation).disk!
    if (!shared) await refuseStrangers(rooms, path.export!)
    return {...path, device: await rooms.host.connect({...connectSpec(rooms, path.export!), force})}
  },
  made: () => [],
  async unmake({rooms, operation}) {
    const {attachments, exports} = rooms.store
    const iqn =
      attachments.get(operation.subject)?.iqn ??
      exports.get(operation.subject)?.iqn ??
      makeRequest(operation).export?.iqn
    if (iqn !== undefined) return rooms.host.disconnect(iqn, {owner: 'attach'})
  },
  unmade: () => [],
}

const diskStep: Step = {
  name: 'disk',
  refusals: ['ATTACHMENT_EXISTS', 'TARGET_IN_USE'],
  async make({rooms, operation, recovering}, path) {
    const {disk: request, volume} = makeRequest(operation)
    const {bus, target, readOnly, shared, persistent} = request!
    const live = recovering ? await liveAfterAll(rooms, request!) : request!.live
    const spec = {domain: request!.domainUuid, id: operation.subject, bus, target, readOnly, shared, persistent, live}
    if (request!.route === 'host') return attachDevice(rooms, spec, path)
    if (volume.from === 'device') {
      const confirm = async () => {
        await confirmDevice(volume, {shared})
        return volume.source
      }
      return {...path, disk: await rooms.compute.attach({...spec, source: volume.source, confirm})}
    }
    const source = await proveExport(rooms, path.export!)
    const confirm = async () => {
      if (!shared) await refuseStrangers(rooms, path.export!)
      return source
    }
    return {...path, disk: await rooms.compute.attach({...spec, source, confirm})}
  },
  made({operation}, path) {
    const {volume, disk: request} = makeRequest(operation)
    const {source, ...disk} = path.disk!
    const value: AttachmentRecord = {
      id: operation.subject,
      volumeId: volume.from === 'device' ? null : operation.subject,
      iqn: path.export?.iqn ?? null,
      domain: disk.domain,
      domainUuid: request!.domainUuid,
      target: disk.target,
      bus: disk.bus,
      source: path.device
        ? {type: 'block', path: path.device.stablePath}
        : withoutSecret(source.type === 'other' ? (volume as {source: DiskSource}).source : source),
      route: request!.route ?? 'qemu',
      persistent: request!.persistent,
      readOnly: request!.readOnly,
      madeExport: operation.plan.includes('export'),
      createdAt: operation.startedAt,
    }
    return [{table: 'attachments', id: value.id, value}]
  },
  async unmake({rooms, operation, releaseTimeoutMs}) {
    const record = rooms.store.attachments.get(operation.subject)
    const domain = record?.domainUuid ?? makeRequest(operation).disk?.domainUuid
    if (domain === undefined) return
    await rooms.compute.detach(domain, operation.subject, {
      timeoutMs: releaseTimeoutMs ?? unmakeRequest(operation).timeoutMs,
      persistent: record?.persistent ?? makeRequest(operation).disk?.persistent,
    })
    if (operation.direction === 'make') await proveUnknownToNobody(rooms, operation)
  },
  unmade({operation}) {
    return [{table: 'attachments', id: operation.subject, value: null}]
  },
}

/**
 * Gives the domain the block device, which is asked once more who it is when the domain's turn has come. A running domain
 * takes the node that was just looked at; a definition that is kept, and our own record, hold the name that udev gives it.
 */
async function attachDevice(rooms: Rooms, spec: Omit<AttachSpec, 'source'>, path: Path): Promise<Path> {
  const {wwid, serial, sizeBytes} = path.export!
  let device = path.device!
  const confirm = async (): Promise<DiskSource> => {
    if (!spec.shared) await refuseStrangers(rooms, path.export!)
    device = await rooms.host.verify(device, {wwid, serial, sizeBytes})
    return {type: 'block', path: spec.persistent ? await rooms.host.awaitStablePath(device) : device.path}
  }
  const disk = await rooms.compute.attach({...spec, source: {type: 'block', path: device.path}, confirm})
  await rooms.host.awaitStablePath(device)
  return {...path, device, disk}
}

/**
 * Whether a recovered attach still changes the running domain. One that was to be in the definition too, of a domain that has
 * shut off meanwhile, has nothing left to do there: the definition alone counts.
 */
async function liveAfterAll(
  {compute}: Rooms,
  {domainUuid, persistent, live}: DiskRequest,
): Promise<boolean | undefined> {
  if (!live || !persistent) return live
  return (await compute.domain(domainUuid)).id !== null
}

/**
 * libvirt that dies in the middle of an attach can leave QEMU with a disk that its XML does not show: for libvirt the disk is
 * gone, and the guest has it. The target, or the open device, tells. @throws DETACH_PENDING
 */
async function proveUnknownToNobody(rooms: Rooms, {subject, request, finished}: Operation): Promise<void> {
  const {disk, volume} = request as MakeRequest
  if (disk?.shared || volume.from === 'device') return
  const holder = disk?.route === 'host' ? await writerOfDevice(finished.device as Device | undefined) : undefined
  const iqn = rooms.store.exports.get(subject)?.iqn
  const isOurs = ({initiator}: TargetSession) => initiator === rooms.initiatorName
  const sessions = disk?.route === 'host' || iqn === undefined ? [] : await lastingSessions(rooms, iqn, isOurs)
  if (holder === undefined && sessions.length === 0) return
  const who = holder ?? describeSessions(sessions)
  const {domain} = named(rooms, disk!)
  const message = `${domain} no longer shows the disk ${subject}, and ${who} still there: a QEMU process may have the disk without libvirt's knowledge. The volume and its export stay. Shut the domain off to end that`
  throw new StorageError('DETACH_PENDING', message, {
    op: 'compute.detach',
    info: {id: subject, domain, iqn, problem: 'disk-unknown-to-libvirt'},
  })
}

async function writerOfDevice(device: Device | undefined): Promise<string | undefined> {
  const stats = device && (await stat(device.path).catch(() => undefined))
  const use = stats && (await writerOf(stats))
  return use && `${device!.path} ${use.how}, so it is`
}

function withoutSecret(source: DiskSource): DiskSource {
  if (source.type !== 'iscsi') return source
  const {auth: _secret, ...rest} = source
  return rest
}

/**
 * QEMU opens an iSCSI disk synchronously in its main loop, so a portal that is dead or another volume behind the name
 * would freeze or mislead the guest. A login of our own with a deadline proves the export first.
 */
async function proveExport(rooms: Rooms, exported: Export): Promise<DiskSource> {
  const {iqn, lun, wwid, serial, sizeBytes, volumeId} = exported
  const portal = firstPortal(rooms, iqn)
  const auth = rooms.store.secrets.get(volumeId)
  const {initiatorName} = rooms
  await rooms.initiator.probe(
    {portal, iqn, lun, initiatorName, ...(auth ? {auth} : {})},
    {wwid, serial, sizeBytes},
    rooms.probeTimeoutMs,
  )
  return {type: 'iscsi', iqn, lun, portal, initiatorName, ...(auth ? {auth: auth.incoming} : {})}
}

/** Growing a volume: the file, then the target's LUN, then the guest's disk, each only where there is one. */
const sizeStep: Step = {
  name: 'size',
  refusals: [],
  async make({rooms, operation}, path) {
    const record = rooms.store.exports.get(operation.subject)
    const volume = await rooms.volumes.extend(path.volume!, makeRequest(operation).sizeBytes!)
    if (!record) return {...path, volume}
    const grown = await rooms.targets.resize(exportSpec(rooms, record, volume))
    const attachment = rooms.store.attachments.get(operation.subject)
    if (attachment) await growDisk(rooms, attachment, grown)
    return {...path, volume, export: grown}
  },
  made({rooms, operation}, path) {
    const volume: VolumeRecord = {...rooms.store.volume(operation.subject), sizeBytes: path.volume!.sizeBytes}
    const changes: Change[] = [{table: 'volumes', id: volume.id, value: volume}]
    const exported = rooms.store.exports.get(operation.subject)
    if (exported && path.export) {
      changes.push({table: 'exports', id: volume.id, value: {...exported, sizeBytes: path.export.sizeBytes}})
    }
    return changes
  },
  // A volume cannot be shrunk back: where its target or its disk could not follow, the records follow the world.
  async failed({rooms, operation}) {
    const {id, ...volume} = rooms.store.volume(operation.subject)
    const exported = rooms.store.exports.get(id)
    const changes: Change[] = []
    const found = await rooms.volumes.get(id)
    if (found) changes.push({table: 'volumes', id, value: {...volume, id, sizeBytes: found.sizeBytes}})
    const lun = exported && (await rooms.targets.get(exported.iqn))?.luns.find(one => one.lun === exported.lun)
    if (lun) changes.push({table: 'exports', id, value: {...exported, sizeBytes: lun.sizeBytes}})
    return changes
  },
  async unmake() {},
  unmade: () => [],
}

/** An attached disk follows its LUN: on the host route the kernel looks at it again; then a running guest is told. */
async function growDisk(rooms: Rooms, {id, domainUuid, route}: AttachmentRecord, exported: Export): Promise<void> {
  const {wwid, serial, sizeBytes} = exported
  if (route === 'host') {
    const device = await rooms.host.connect({...connectSpec(rooms, exported), expected: {wwid, serial}})
    await rooms.host.rescan(device, sizeBytes)
  }
  try {
    await rooms.compute.resize(domainUuid, id, sizeBytes)
  } catch (error) {
    // It is in no running domain: the next start reads the size anew.
    if (!hasCode(error, 'ATTACHMENT_NOT_FOUND', 'DOMAIN_NOT_FOUND')) throw error
  }
}

/** The table of steps, in the order of making. Attach runs down it, detach runs up it, so does a failed attach. */
export const steps: readonly Step[] = [volumeStep, exportStep, deviceStep, diskStep, sizeStep]
