import type {Stats} from 'node:fs'
import {constants} from 'node:fs'
import {open} from 'node:fs/promises'
import {backingOf} from '../backing.js'
import {type BenchTarget, workloadOf} from '../bench/job.js'
import type {JobSpec, TargetSpec} from '../bench/job-schema.js'
import type {TargetFacts} from '../bench/result.js'
import {checkIdentity, type WriteTo} from '../bench/safety.js'
import {settleWorkload, writes} from '../bench/workload.js'
import {StorageError} from '../errors.js'
import {signatureOf} from '../signatures.js'
import {parseSize} from '../size.js'
import type {ExportRecord, VolumeRecord} from '../state/store.js'
import {claimOf, ownLuns} from './claims.js'
import {named, type Rooms} from './rooms.js'
import {firstPortal} from './steps.js'

/** What a written-down job measures, looked up in the store. */
export interface ResolvedTargets {
  targets: BenchTarget[]
  facts: TargetFacts[]
  /** Volumes that the job writes to: nothing else may happen to them meanwhile, and each has to be proven. */
  written: WrittenVolume[]
}

export interface WrittenVolume {
  volume: VolumeRecord
  exported: ExportRecord
  writeTo: WriteTo | undefined
}

const op = 'bench.start'

/**
 * Finds the targets that a job names.
 * @throws VOLUME_NOT_FOUND, EXPORT_NOT_FOUND, INVALID_ARGUMENT, SIZE_INVALID
 */
export function resolveTargets(rooms: Rooms, job: JobSpec): ResolvedTargets {
  const {target, volume, filename, ioengine, direct, sync, sizeBytes, writeTo} = job
  const own = {volume, filename, ioengine, direct, sync, sizeBytes, writeTo}
  const isNamed = volume !== undefined || filename !== undefined || ioengine === 'null'
  if (isNamed === (target !== undefined)) {
    throw new StorageError(
      'INVALID_ARGUMENT',
      'Say what to measure: a volume, a filename, ioengine null, or a list of targets',
      {op},
    )
  }
  if (target) checkUnused(own, 'A job with a list of targets', 'say it for each target')
  const resolved: ResolvedTargets = {targets: [], facts: [], written: []}
  for (const spec of target ?? [withoutUndefined(own)]) {
    const {volume, filename, ioengine, writeTo: repeated, ...workload} = spec
    const given = [volume, filename, ioengine === 'null' || undefined].filter(one => one !== undefined)
    if (given.length !== 1) {
      throw new StorageError('INVALID_ARGUMENT', 'A target has one of volume, filename and ioengine null', {op})
    }
    const {direct, sync, sizeBytes, ...words} = workload
    if (volume !== undefined) checkUnused({ioengine, direct, sync, sizeBytes}, 'A volume', 'it is measured over iSCSI')
    else if (filename === undefined) checkUnused({direct, sync}, 'ioengine null', 'it opens nothing')
    else checkUnused({sizeBytes}, 'A filename', 'its range is size')
    const writeTo = repeated && {identity: repeated.identity, sizeBytes: parseSize(String(repeated.size))}
    if (volume !== undefined) {
      const changes = writes(settleWorkload(workloadOf(job, workload)))
      const {found, exported} = lookUp(rooms, volume)
      if (resolved.written.some(one => one.volume.id === found.id) || (changes && isNamedBefore(resolved, found))) {
        throw new StorageError('INVALID_ARGUMENT', `The job writes to ${found.id} and has it as a target twice`, {op})
      }
      if (changes) resolved.written.push({volume: found, exported, writeTo})
      resolved.targets.push({...volumeTarget(rooms, found, exported), ...words, writeTo})
      resolved.facts.push({volume: found.name ?? found.id, driver: exported.driver})
    } else {
      resolved.targets.push(
        filename === undefined
          ? {...words, ioengine: 'null', sizeBytes}
          : {...words, filename, ioengine: ioengine as Exclude<TargetSpec['ioengine'], 'null'>, direct, sync, writeTo},
      )
      resolved.facts.push({})
    }
  }
  return resolved
}

/** @throws INVALID_ARGUMENT for a word that would change nothing of what is measured */
function checkUnused(words: Record<string, unknown>, what: string, why: string): void {
  const [word] = Object.entries(words).find(([, value]) => value !== undefined) ?? []
  if (word !== undefined)
    throw new StorageError('INVALID_ARGUMENT', `${what} has no ${word} of its own: ${why}`, {
      op,
      info: {[word]: words[word]},
    })
}

/** Who has the bytes of a path that a job wants to write to, in lunpath or in a domain. */
export async function ownerOf(rooms: Rooms, path: string, stats: Stats): Promise<string | undefined> {
  const claim = await claimOf(rooms, await backingOf(path, stats, ownLuns(rooms.store)))
  if (claim?.code !== 'VOLUME_EXISTS') return claim?.how
  return `${claim.how}: export it and name the volume, not its path`
}

function lookUp({store}: Rooms, name: string): {found: VolumeRecord; exported: ExportRecord} {
  const byIqn = store.exportOf(name)
  const found = store.volume(byIqn?.volumeId ?? name)
  const exported = store.exports.get(found.id)
  if (exported) return {found, exported}
  throw new StorageError(
    'EXPORT_NOT_FOUND',
    `${found.id} is not exported: run lunpath export create --volume ${found.id} first`,
    {info: {id: found.id}},
  )
}

function volumeTarget(rooms: Rooms, volume: VolumeRecord, exported: ExportRecord) {
  const {store, initiatorName} = rooms
  const {iqn, lun, wwid, serial, sizeBytes} = exported
  const auth = store.secrets.get(volume.id)
  return {
    name: volume.name ?? volume.id,
    portal: firstPortal(rooms, iqn),
    iqn,
    lun,
    initiatorName,
    auth,
    expect: {wwid, serial, sizeBytes},
  }
}

/**
 * Proves that a volume may be written to: by a benchmark that has locked it.
 * @throws VOLUME_IN_USE (attached), TARGET_IN_USE (a session is logged in), DEVICE_IN_USE (it holds something),
 * UNSUPPORTED (exported read-only), INVALID_ARGUMENT and IDENTITY_MISMATCH (what it is has to be repeated)
 */
export async function proveWritable(
  {store, targets, compute}: Rooms,
  {volume, exported, writeTo}: WrittenVolume,
): Promise<void> {
  const {iqn, serial, sizeBytes, readOnly, ioType} = exported
  const name = volume.name ?? volume.id
  const refuse = (code: 'VOLUME_IN_USE' | 'TARGET_IN_USE' | 'DEVICE_IN_USE' | 'UNSUPPORTED', why: string, info = {}) =>
    new StorageError(code, `A benchmark must not write to ${name}: ${why}`, {op, info: {id: volume.id, iqn, ...info}})
  if (readOnly) throw refuse('UNSUPPORTED', 'it is exported read-only')
  const attached = [...store.attachments.values()].find(({volumeId}) => volumeId === volume.id)
  if (attached) {
    const {domain, target} = named({compute}, attached)
    throw refuse('VOLUME_IN_USE', `it is attached to ${domain} as ${target}`)
  }
  const session = (await targets.sessions()).find(one => one.iqn === iqn)
  if (session) throw refuse('TARGET_IN_USE', `${session.initiator} is logged in`, {initiator: session.initiator})
  // Writes to nullio reach no volume.
  const signature = ioType === 'nullio' ? null : await signatureAt(volume.path)
  if (signature) throw refuse('DEVICE_IN_USE', `it holds ${signature.type} (${signature.usage})`, {signature})
  checkIdentity({given: name, path: name, identity: serial, sizeBytes}, writeTo)
}

async function signatureAt(path: string) {
  const handle = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  try {
    return await signatureOf(handle.fd)
  } finally {
    await handle.close()
  }
}

function isNamedBefore({facts}: ResolvedTargets, {id, name}: VolumeRecord): boolean {
  return facts.some(({volume}) => volume === (name ?? id))
}

function withoutUndefined(spec: TargetSpec): TargetSpec {
  return Object.fromEntries(Object.entries(spec).filter(([, value]) => value !== undefined))
}
