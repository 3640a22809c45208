import {StorageError} from '../errors.js'
import type {AttachmentRecord, ExportRecord, Store} from '../state/store.js'
import {refuseWhileInUse} from './attach.js'
import type {Asked, Operations, Wanted} from './operations.js'
import {named, type Rooms} from './rooms.js'
import type {Answer} from './run.js'

// A guest that is awake needs some tenths of a second.
const releaseTimeoutMs = 20_000

/** The attachment of a volume (id or name), or of an attachment's own id, or of DOMAIN and TARGET. */
export type AttachmentChoice = {id: string} | {domain: string; target: string}

/**
 * The path back: the guest releases the disk, then the export that the attach had made is taken down. The volume stays,
 * always. `force` ends whoever is still logged in to that export when the guest has let go.
 * @throws DETACH_PENDING where the guest keeps the disk, or somebody is still logged in: the request stands and can be repeated
 */
export function detach(
  operations: Operations,
  asked: AttachmentChoice & {timeoutMs?: number; force?: boolean},
  options: Asked = {},
): Promise<Answer> {
  return operations.perform('detach', asked, {...options, timeoutMs: asked.timeoutMs ?? releaseTimeoutMs}, () => {
    const {store, journal} = operations.rooms
    const {id, madeExport, route} = findAttachment(
      operations.rooms,
      asked,
      journal.unfinishedOn('id' in asked ? asked.id : '')?.kind === 'detach',
    )
    const plan: Wanted['plan'] = route === 'host' ? ['device', 'disk'] : ['disk']
    if (madeExport && store.exports.has(id)) plan.unshift('export')
    return {
      kind: 'detach',
      direction: 'unmake',
      subject: id,
      plan,
      request: {timeoutMs: asked.timeoutMs, force: asked.force ?? false},
    }
  })
}

/** `export delete`: refused while a session is logged in, unless forced. */
export function deleteExport(
  operations: Operations,
  asked: {export: string; force?: boolean},
  options: Asked = {},
): Promise<Answer> {
  return operations.perform('export.delete', asked, options, () => {
    const {store} = operations.rooms
    const {volumeId, iqn} = findExport(store, asked.export)
    const record = store.attachments.get(volumeId)
    if (record) {
      const attachment = named(operations.rooms, record)
      throw new StorageError(
        'TARGET_IN_USE',
        `${iqn} feeds the disk ${attachment.target} of ${attachment.domain}. First run: lunpath detach ${volumeId}`,
        {
          info: {iqn, id: volumeId, domain: attachment.domain},
        },
      )
    }
    return {
      kind: 'export.delete',
      direction: 'unmake',
      subject: volumeId,
      plan: ['export'],
      request: {force: asked.force ?? false},
    }
  })
}

/** `volume delete`: the only thing that removes a volume. An imported one is only forgotten. */
export function deleteVolume(operations: Operations, asked: {volume: string}, options: Asked = {}): Promise<Answer> {
  return operations.perform('volume.delete', asked, options, () => {
    const {id} = operations.rooms.store.volume(asked.volume)
    refuseWhileInUse(operations.rooms, id, 'deleted')
    return {kind: 'volume.delete', direction: 'unmake', subject: id, plan: ['volume'], request: {}}
  })
}

function findExport(store: Store, key: string): ExportRecord {
  const all = () => [...store.exports.values()]
  const found =
    store.exports.get(key) ??
    store.exportOf(key) ??
    all().find(({volumeId}) => store.volumes.get(volumeId)?.name === key)
  if (!found)
    throw new StorageError('EXPORT_NOT_FOUND', `There is no export ${JSON.stringify(key)}`, {info: {export: key}})
  return found
}

function findAttachment(
  {store, compute}: Pick<Rooms, 'store' | 'compute'>,
  asked: AttachmentChoice,
  standing: boolean,
): Pick<AttachmentRecord, 'id' | 'madeExport' | 'route'> {
  const all = [...store.attachments.values()].map(record => named({compute}, record))
  const found =
    'id' in asked
      ? (store.attachments.get(asked.id) ??
        all.find(({volumeId}) => volumeId !== null && store.volumes.get(volumeId)?.name === asked.id))
      : all.find(
          ({domain, domainUuid, target}) =>
            (domain === asked.domain || domainUuid === asked.domain) && target === asked.target,
        )
  if (found) return found
  if (standing && 'id' in asked) return {id: asked.id, madeExport: false}
  const what = 'id' in asked ? JSON.stringify(asked.id) : `${asked.domain} ${asked.target}`
  throw new StorageError('ATTACHMENT_NOT_FOUND', `There is no attachment ${what}: see lunpath attachment list`, {
    info: {...asked},
  })
}
