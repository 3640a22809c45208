import {StorageError} from '../errors.js'
import type {ExportSpec} from '../types.js'
import {checkExportSpec, nameSpellings, refuseIoType, ruleAddress} from './spec.js'

/** How tgt writes the parts of an export. */

/** VPD page 0x83 of a LUN whose scsi_id is `id`: tgt puts the id's hex digits behind an NAA type of 6 and zeros. */
export function tgtWwid(id: string): string {
  return `naa.6000000000000000${id}`
}

/** Parameters that give a LUN its identity and cache mode; set before any access rule lets an initiator in. */
export function lunParameters({volume, readOnly, writeCache}: ExportSpec): Record<string, string> {
  return {
    vendor_id: 'LUNPATH',
    product_id: 'VOLUME',
    scsi_id: volume.id,
    scsi_sn: volume.id,
    readonly: readOnly ? '1' : '0',
    mode_page: cachingPages[writeCache],
  }
}

/**
 * The caching mode page (SBC-3, 6.4.5) as tgt takes it: page, subpage, length, bytes. With WCE clear in its first byte
 * tgtd's rdwr store calls fdatasync after every WRITE, before it answers, and initiators read that there is no volatile
 * cache. (The other bytes are tgt's own defaults. WRITE SAME alone is not synced by tgtd 1.0.85; the next WRITE or
 * SYNCHRONIZE CACHE of the LUN covers it.)
 */
function cachingPage(writeCache: ExportSpec['writeCache']): string {
  const discontinuity = 0x10
  const writeCacheEnable = 0x04
  const first = writeCache === 'back' ? discontinuity | writeCacheEnable : discontinuity
  const rest = [0, 0xff, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x80, 0x14, 0, 0, 0, 0, 0, 0]
  return ['8', '0', '18', ...[first, ...rest].map(byte => `0x${byte.toString(16)}`)].join(':')
}

const cachingPages = {through: cachingPage('through'), back: cachingPage('back')}

/** All access rules, as tgtd lists them. */
export function ruleTexts({access}: Pick<ExportSpec, 'access'>): string[] {
  return [...new Set([...access.addresses.map(ruleAddress), ...access.names.flatMap(nameSpellings)])]
}

/** @throws StorageError NAME_INVALID, INVALID_ARGUMENT, UNSUPPORTED */
export function checkSpec(spec: ExportSpec): void {
  checkExportSpec(spec)
  refuseIoType('tgt', spec)
  const {incoming, outgoing} = spec.auth ?? {}
  // tgtd has one list of accounts.
  if (outgoing && outgoing.user === incoming?.user) {
    throw new StorageError(
      'INVALID_ARGUMENT',
      'The incoming and the outgoing CHAP user must have different names for tgt',
      {op: 'target.export'},
    )
  }
}
