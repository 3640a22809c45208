import {checkChap} from '../chap.js'
import {StorageError} from '../errors.js'
import {nameKey} from '../iqn.js'
import {type ForeignTarget, type ForeignUnit, type IdentityPages, offered} from '../targets/driver.js'
import type {ChapAuth, LunIdentity, TakenTarget} from '../types.js'
import {freshId, secretChanges, wanted} from './attach.js'
import {refuseClaimed} from './claims.js'
import type {Asked, Operations} from './operations.js'
import type {Rooms} from './rooms.js'
import {describe} from './run.js'

/** Pages of vital product data (SPC-4, 7.8). */
const serialPage = 0x80
const identificationPage = 0x83

export interface ImportTargetsAsked {
  /** Absent: all targets that are not lunpath's. */
  iqns?: string[]
  /** Looks, logs in and reads, and changes nothing. */
  dryRun?: boolean
  /** Of those targets among them that have CHAP accounts. */
  auth?: ChapAuth
}

export interface ImportedTargets {
  taken: (Pick<ForeignTarget, 'iqn' | 'tid' | 'sessions'> &
    Pick<TakenTarget, 'lun' | 'wwid'> & {path: string; sizeBytes: number; serial: string; volumeId: string | null})[]
  refused: {iqn: string; code: string; message: string}[]
}

/** A foreign target of which all is known that it takes to make it again. */
interface Known {
  target: ForeignTarget
  unit: ForeignUnit
  taken: TakenTarget
  auth: ChapAuth | undefined
}

/**
 * `import iet`: targets that somebody else has made become lunpath's to show, to attach and to put back. Nothing of them is
 * changed, and their sessions go on; a login of lunpath's own reads their ids. What cannot be read is refused, target by target.
 */
export async function importTargets(
  operations: Operations,
  asked: ImportTargetsAsked,
  {signal}: Pick<Asked, 'signal'> = {},
): Promise<ImportedTargets> {
  const {rooms} = operations
  const foreign = await offered(rooms.targets, 'foreign').foreign()
  if (asked.auth) checkChap(asked.auth)
  const answer: ImportedTargets = {taken: [], refused: []}
  for (const iqn of new Set(asked.iqns ?? foreign.map(({iqn}) => iqn))) {
    if (signal?.aborted) throw new StorageError('CANCELLED', 'The request was cancelled', {op: 'target.import'})
    try {
      const known = await read(rooms, iqn, named(foreign, iqn), asked.auth)
      const {target, unit, taken} = known
      const volumeId = asked.dryRun ? null : await take(operations, known, signal)
      const {path, sizeBytes} = unit.volume
      const {tid, sessions} = target
      const {lun, wwid, scsiSn: serial} = taken
      answer.taken.push({iqn: target.iqn, tid, lun, path, sizeBytes, serial, wwid, sessions, volumeId})
    } catch (error) {
      const {code, message} = describe(error)
      answer.refused.push({iqn, code, message})
    }
  }
  return answer
}

/** Whoever names a target may spell it in another case than the target itself. */
function named(targets: ForeignTarget[], iqn: string): ForeignTarget | undefined {
  return targets.find(target => target.iqn === iqn) ?? targets.find(target => nameKey(target.iqn) === nameKey(iqn))
}

async function read(
  rooms: Rooms,
  given: string,
  target: ForeignTarget | undefined,
  givenAuth: ChapAuth | undefined,
): Promise<Known> {
  const iqn = target?.iqn ?? given
  const exported = rooms.store.exportOf(iqn)
  if (exported) {
    throw new StorageError('EXPORT_EXISTS', `${iqn} is lunpath's already: volume ${exported.volumeId}`, {
      info: {iqn, id: exported.volumeId},
    })
  }
  if (!target) throw new StorageError('NOT_FOUND', `There is no target ${iqn}`, {info: {iqn}})
  const {unit} = target
  if (!unit || target.refused !== null) throw refusal(iqn, target.refused ?? 'it has no logical unit')
  const {path} = unit.volume
  await refuseClaimed(rooms, path, 'target.import')
  const auth = accountsOf(target, givenAuth)
  const {identity, pages} = await inquire(rooms, {iqn, lun: unit.lun}, auth)
  if (identity.sizeBytes !== unit.volume.sizeBytes || identity.blockSizeBytes !== unit.blockSizeBytes) {
    throw refusal(
      iqn,
      `who logs in finds ${identity.sizeBytes} bytes in blocks of ${identity.blockSizeBytes}, and IET lists ${unit.volume.sizeBytes} in blocks of ${unit.blockSizeBytes}: another target answers at the portal`,
    )
  }
  const {lun, ioType, blockSizeBytes} = unit
  const ids = offered(rooms.targets, 'identify').identify({iqn, lun}, pages)
  return {target, unit, auth, taken: {lun, wwid: identity.wwid, ...ids, ioType, blockSizeBytes}}
}

/** The credentials that go with the target's accounts. Whether the secrets are right is seen at the login. */
function accountsOf({iqn, accounts}: ForeignTarget, given: ChapAuth | undefined): ChapAuth | undefined {
  const {incoming, outgoing} = accounts
  if (incoming.length + outgoing.length === 0) return undefined
  if (incoming.length > 1) throw refusal(iqn, `it has ${incoming.length} CHAP users, and lunpath's targets have one`)
  if (incoming.length === 0) throw refusal(iqn, 'it has a CHAP user of its own, and none for initiators')
  const isGiven = given?.incoming.user === incoming[0] && (given?.outgoing?.user ?? '') === (outgoing[0] ?? '')
  if (given && isGiven) return given
  const users = [...incoming, ...outgoing.map(user => `${user} (outgoing)`)].join(', ')
  throw refusal(iqn, `it asks for CHAP, users ${users}: give their secrets (--chap-file), so that it can be put back`)
}

/** A session beside those that are there: RFC 7143, 6.3.5, reinstates one only for the same ISID, and this one's is random. */
async function inquire(
  rooms: Rooms,
  {iqn, lun}: {iqn: string; lun: number},
  auth: ChapAuth | undefined,
): Promise<{identity: LunIdentity; pages: IdentityPages}> {
  const {initiatorName, probeTimeoutMs: timeoutMs} = rooms
  const [portal] = rooms.targets.portals()
  if (!portal) throw refusal(iqn, 'there is no portal to read its ids at: configure targets.portals')
  const login = {portal, iqn, lun, initiatorName, timeoutMs, commandTimeoutMs: timeoutMs}
  const session = await rooms.initiator.connect({...login, ...(auth && {auth})})
  try {
    const serial = await session.page(serialPage)
    return {identity: session.identity, pages: {serial, identification: await session.page(identificationPage)}}
  } finally {
    await session.close()
  }
}

/** Volume and export, in one operation: after a crash it goes on, or nothing of it is there. */
async function take(
  operations: Operations,
  {target: {iqn, tid, parameters}, unit, taken, auth}: Known,
  signal: AbortSignal | undefined,
): Promise<string> {
  const {volume, writeCache, readOnly} = unit
  const answer = await operations.perform('target.import', {iqn}, {signal}, () => {
    const id = freshId(operations.rooms)
    const request = {
      volume: {from: 'target' as const, id, name: null, ...volume},
      export: {iqn, tid, access: {addresses: [], names: []}, writeCache, readOnly, parameters, taken},
    }
    const settled = wanted('target.import', request, ['volume', 'export'])
    const check = () => refuseClaimed(operations.rooms, volume.path, 'target.import')
    const locks = [...(settled.locks ?? []), `target ${nameKey(iqn)}`]
    return {...settled, locks, check, claims: true, changes: secretChanges(id, auth)}
  })
  return answer.volume!.id
}

function refusal(iqn: string, why: string): StorageError {
  return new StorageError('UNSUPPORTED', `${iqn} stays as it is: ${why}`, {op: 'target.import', info: {iqn}})
}
