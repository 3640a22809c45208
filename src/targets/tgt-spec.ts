import {isIP, isIPv4} from 'node:net'
import {isAbsolute} from 'node:path'
import {StorageError} from '../errors.js'
import {checkIscsiName} from '../iqn.js'
import type {ChapCredentials, ExportSpec} from '../types.js'

/**
 * What an export must look like before a byte of it goes to tgtd, and how tgt writes its parts.
 */

// tgtd's parameters are one `key=value,key=value` string without quoting, so these cannot be passed at all.
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const unsafe = /[\u0000-\u001f\u007f,]/

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
  return [...new Set([...access.addresses.map(ruleAddress), ...access.names])]
}

/** @throws StorageError NAME_INVALID, INVALID_ARGUMENT */
export function checkSpec(spec: ExportSpec): void {
  if (!/^[0-9a-f]{16}$/.test(spec.volume.id)) {
    throw invalid('NAME_INVALID', `${quote(spec.volume.id)} is not a volume id: expected 16 lowercase hex digits`)
  }
  checkIscsiName(spec.iqn)
  checkPath(spec.volume.path)
  for (const name of spec.access.names) checkIscsiName(name)
  for (const address of spec.access.addresses) ruleAddress(address)
  if (spec.auth) {
    const {incoming, outgoing} = spec.auth
    checkCredentials(incoming, 'incoming')
    if (outgoing) {
      checkCredentials(outgoing, 'outgoing')
      // tgtd has one list of accounts, and RFC 7143, 12.1.4 forbids the same secret in both directions.
      if (outgoing.user === incoming.user) {
        throw invalid('INVALID_ARGUMENT', 'The incoming and the outgoing CHAP user must have different names for tgt')
      }
      if (outgoing.secret === incoming.secret) {
        throw invalid('INVALID_ARGUMENT', 'The incoming and the outgoing CHAP secret must differ (RFC 7143, 12.1.4)')
      }
    }
  }
}

function checkPath(path: string): void {
  if (!isAbsolute(path)) throw invalid('NAME_INVALID', `The path ${quote(path)} of the volume is not absolute`)
  if (unsafe.test(path) || path.trim() !== path) {
    throw invalid(
      'NAME_INVALID',
      `The path ${quote(path)} cannot be exported by tgt: tgtd takes no comma, control character or blank at the end in it`,
    )
  }
  if (Buffer.byteLength(path) > 4095) throw invalid('NAME_INVALID', 'The path of the volume is longer than 4,095 bytes')
}

function checkCredentials({user, secret}: ChapCredentials, direction: string): void {
  if (!/^[\u0021-\u007e]{1,128}$/.test(user) || unsafe.test(user)) {
    throw invalid(
      'NAME_INVALID',
      `The ${direction} CHAP user ${quote(user)} must be 1 to 128 printable ASCII characters without blank and comma`,
    )
  }
  // 96 bits at least on a channel without IPsec: RFC 7143, 9.2.1.
  if (!/^[\u0021-\u007e]{12,128}$/.test(secret) || unsafe.test(secret)) {
    throw invalid(
      'INVALID_ARGUMENT',
      `The ${direction} CHAP secret must be 12 to 128 printable ASCII characters without blank and comma`,
    )
  }
}

/**
 * An address rule in the form in which tgtd matches it: a prefix needs zeros behind it and may not span all bits, so
 * `10.1.2.3/8` becomes `10.0.0.0/8` and `10.1.2.3/32` becomes `10.1.2.3`. @throws NAME_INVALID
 */
export function ruleAddress(address: string): string {
  if (address === 'ALL' || isIP(address)) return address
  const [host = '', prefix = '', ...rest] = address.split('/')
  const bits = Number(prefix)
  const width = isIPv4(host) ? 32 : 128
  if (!isIP(host) || !/^\d{1,3}$/.test(prefix) || rest.length > 0 || bits > width || bits === 0) {
    throw invalid(
      'NAME_INVALID',
      `${quote(address)} is not an access rule: expected ALL, an IP address, or ADDRESS/PREFIX with a prefix of at least 1`,
    )
  }
  if (bits === width) return host
  if (width === 128) return address
  const mask = (0xffffffff << (32 - bits)) >>> 0
  const number = host.split('.').reduce((sum, part) => sum * 256 + Number(part), 0)
  const network = (number & mask) >>> 0
  return `${[24, 16, 8, 0].map(shift => (network >>> shift) & 255).join('.')}/${bits}`
}

function quote(text: string): string {
  return JSON.stringify(text.slice(0, 256))
}

function invalid(code: 'NAME_INVALID' | 'INVALID_ARGUMENT', message: string): StorageError {
  return new StorageError(code, message, {op: 'target.export'})
}
