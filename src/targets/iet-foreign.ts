import {createHash} from 'node:crypto'
import {stat} from 'node:fs/promises'
import {StorageError} from '../errors.js'
import {nameKey} from '../iqn.js'
import type {ExportSpec, TakenTarget} from '../types.js'
import type {ForeignTarget, ForeignUnit, IdentityPages, ParameterValue} from './driver.js'
import {accountLists} from './iet-accounts.js'
import type {Link} from './iet-link.js'
import {settleParameters} from './iet-parameters.js'
import type {IetTargetSessions, IetTargetVolumes} from './iet-procfs.js'
import {describeChanged, readParameters} from './iet-settings.js'

/** Targets that ietadm or ietd.conf has made: what lunpath can put back of them, and what not. */

/** Bytes of a ScsiId, and of the vendor before it in its designator. */
const scsiIdBytes = 16
const vendorBytes = 8
const maxSerialBytes = 32
/** What an argument of ADD_VOLUME can hold: no blank, no comma. */
const argument = /^[\u0021-\u002b\u002d-\u007e]+$/

/** Designators of page 0x83 (SPC-4, 7.8.6): what is said of the logical unit itself, in the vendor's own words. */
const ofLogicalUnit = 0
const t10Vendor = 1

/** What there is to know of `targets`; `refuse` throws where lunpath could not have such an export. */
export async function foreignTargets(
  link: Link,
  {targets, sessions}: {targets: IetTargetVolumes[]; sessions: IetTargetSessions[]},
  refuse: (spec: ExportSpec) => void,
): Promise<ForeignTarget[]> {
  const tids = targets.map(({tid}) => tid)
  const accounts = await accountLists(link, tids)
  const found: ForeignTarget[] = []
  const spellings = new Map<string, number>()
  for (const {iqn} of targets) spellings.set(nameKey(iqn), (spellings.get(nameKey(iqn)) ?? 0) + 1)
  for (const target of targets) {
    const {iqn, tid} = target
    const [incoming = [], outgoing = []] = accounts.get(tid)!
    const [session, own] = await readParameters(link, tid, 0n, iqn)
    const parameters = {...describeChanged('session', session!), ...describeChanged('target', own!)}
    const isOneOfTwo = spellings.get(nameKey(iqn))! > 1
    const unit = isOneOfTwo
      ? 'to ietd it is one with another target, whose name differs in its case alone'
      : await foreignUnit(target)
    found.push({
      iqn,
      tid,
      sessions: sessions.find(one => one.tid === tid && one.iqn === iqn)?.sessions.length ?? 0,
      accounts: {incoming, outgoing},
      unit: typeof unit === 'string' ? null : unit,
      parameters,
      refused: typeof unit === 'string' ? unit : whyNot(iqn, unit, parameters, refuse),
    })
  }
  return found
}

function whyNot(
  iqn: string,
  {volume, readOnly, writeCache, ...taken}: ForeignUnit,
  parameters: Record<string, ParameterValue>,
  refuse: (spec: ExportSpec) => void,
): string | null {
  try {
    refuse({
      ...{iqn, readOnly, writeCache, access: {addresses: [], names: []}},
      volume: {...volume, id: '0'.repeat(16)},
      taken: {...taken, wwid: '', scsiId: null, scsiSn: ''},
    })
    settleParameters(parameters)
    return null
  } catch (error) {
    return (error as Error).message
  }
}

/** The unit of a target as IET lists it, or why lunpath leaves the target to whoever made it. */
async function foreignUnit({iqn, volumes}: IetTargetVolumes): Promise<ForeignUnit | string> {
  const [volume] = volumes
  if (!volume) return 'it has no logical unit'
  if (volumes.length > 1) return `it has ${volumes.length} logical units, and lunpath's targets have one`
  const {lun, deleted, ioType, ioMode, blocks, blockSizeBytes, path} = volume
  if (deleted) return 'its logical unit is being deleted'
  if (ioType === 'nullio') return 'its logical unit has no data (nullio)'
  if (blocks === undefined || blockSizeBytes === undefined) return 'IET does not show its size'
  const found = await stat(path).catch((error: Error) => error)
  if (found instanceof Error) return `${path} cannot be looked at: ${found.message}`
  const kind = found.isBlockDevice() ? ('block' as const) : ('file' as const)
  if (kind === 'file' && !found.isFile()) return `${path} is neither a regular file nor a block device`
  const sizeBytes = blocks * blockSizeBytes
  if (kind === 'file' && found.size !== sizeBytes) {
    return `${path} has ${found.size} bytes, and ${iqn} offers ${sizeBytes}: made again it would have another size`
  }
  return {
    lun,
    ioType,
    blockSizeBytes,
    volume: {path, kind, sizeBytes},
    writeCache: ioMode === 'wb' ? 'back' : 'through',
    readOnly: ioMode === 'ro',
  }
}

/**
 * ScsiId and ScsiSN as they have to be given to IET so that initiators read the same again. @throws UNSUPPORTED where there
 * is no such argument, or where the pages are not those of an IET
 */
export function identityOf(
  {iqn, lun}: {iqn: string; lun: number},
  {serial, identification}: IdentityPages,
): Pick<TakenTarget, 'scsiId' | 'scsiSn'> {
  const refuse = (what: string) =>
    new StorageError('UNSUPPORTED', `LUN ${lun} of ${iqn} has ids that lunpath could not give it again: ${what}`, {
      op: 'target.identify',
      info: {iqn, lun},
    })
  const scsiSn = bytesOf(serial).toString('latin1').replace(/\0+$/, '').trim()
  if (!argument.test(scsiSn) || scsiSn.length > maxSerialBytes) {
    throw refuse(`its serial number ${JSON.stringify(scsiSn.slice(0, 80))} is no argument of IET's`)
  }
  const ids = designators(identification).filter(({association, type}) => {
    return association === ofLogicalUnit && type === t10Vendor
  })
  const [{bytes} = {bytes: Buffer.alloc(0)}, another] = ids
  const vendor = bytes
    .subarray(0, vendorBytes)
    .toString('latin1')
    .replace(/[\0 ]+$/, '')
  if (another || vendor !== 'IET' || bytes.length !== vendorBytes + scsiIdBytes) {
    throw refuse('its page 0x83 is not that of an IET')
  }
  const id = bytes.subarray(vendorBytes)
  if (id.equals(defaultScsiId({iqn, lun}))) return {scsiId: null, scsiSn}
  const scsiId = id.toString('latin1').replace(/\0+$/, '')
  if (!argument.test(scsiId)) throw refuse(`its ScsiId ${id.toString('hex')} is neither text nor the one of its name`)
  return {scsiId, scsiSn}
}

/** What IET makes where it is given no ScsiId: the MD5 of the target's name and the LUN in four bytes, the lowest first. */
function defaultScsiId({iqn, lun}: {iqn: string; lun: number}): Buffer {
  const number = Buffer.alloc(4)
  number.writeUInt32LE(lun)
  return createHash('md5').update(iqn).update(number).digest()
}

/** What is behind a page's header, as long as the header says. */
function bytesOf(page: Buffer): Buffer {
  return page.length < 4 ? Buffer.alloc(0) : page.subarray(4, 4 + page.readUInt16BE(2))
}

function designators(page: Buffer): {association: number; type: number; bytes: Buffer}[] {
  const found: {association: number; type: number; bytes: Buffer}[] = []
  const all = bytesOf(page)
  for (let at = 0; at + 4 <= all.length; ) {
    const length = all[at + 3]!
    const bytes = all.subarray(at + 4, at + 4 + length)
    if (bytes.length < length) break
    found.push({association: (all[at + 1]! >> 4) & 3, type: all[at + 1]! & 15, bytes})
    at += 4 + length
  }
  return found
}
