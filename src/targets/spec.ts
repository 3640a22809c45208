import {stat} from 'node:fs/promises'
import {isIP, isIPv4} from 'node:net'
import {isAbsolute} from 'node:path'
import {StorageError} from '../errors.js'
import {checkForeignName, checkIscsiName, nameKey} from '../iqn.js'
import type {ChapCredentials, ExportSpec} from '../types.js'

/** What an export must look like before any target driver does something about it. */

// tgtd's parameters, and those of LIO's devices, are one `key=value,key=value` string without quoting, so these cannot be
// passed at all.
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const unsafe = /[\u0000-\u001f\u007f,]/

/** @throws StorageError NAME_INVALID, INVALID_ARGUMENT */
export function checkExportSpec(spec: ExportSpec): void {
  if (!/^[0-9a-f]{16}$/.test(spec.volume.id)) {
    throw invalid('NAME_INVALID', `${quote(spec.volume.id)} is not a volume id: expected 16 lowercase hex digits`)
  }
  if (spec.taken) checkForeignName(spec.iqn)
  else checkIscsiName(spec.iqn)
  checkPath(spec.volume.path)
  for (const name of spec.access.names) checkForeignName(name)
  for (const address of spec.access.addresses) ruleAddress(address)
  if (spec.auth) {
    const {incoming, outgoing} = spec.auth
    checkCredentials(incoming, 'incoming')
    if (outgoing) {
      checkCredentials(outgoing, 'outgoing')
      if (outgoing.secret === incoming.secret) {
        throw invalid('INVALID_ARGUMENT', 'The incoming and the outgoing CHAP secret must differ (RFC 7143, 12.1.4)')
      }
    }
  }
}

/**
 * How the initiator that a rule names may spell its name. Names are the same whatever their case (RFC 3722), but an initiator
 * sends its name as it was given it, and tgt (usr/iscsi/target.c, iqn_match) and IET (plain.c, initiator_match) compare
 * bytes. LIO folds what it is sent (iscsi_target_nego.c, iscsi_target_locate_portal), so that there only the first one counts.
 */
export function nameSpellings(name: string): string[] {
  return [...new Set([nameKey(name), name])]
}

/**
 * For targets that serve whatever they find at a volume's path: LIO makes a file that is not there and reads zeros behind
 * the end of one that is too short, IET exports the short one as it is. A file may be longer than its volume where the
 * target is told the size. @throws StorageError TARGET_FAILED
 */
export async function refuseUnfitVolume(
  {iqn, volume, ioType}: ExportSpec,
  {target, isToldSize}: {target: string; isToldSize: boolean},
): Promise<void> {
  // The volume is never looked at.
  if (ioType === 'nullio') return
  const refuse = (why: string, cause?: unknown) =>
    new StorageError('TARGET_FAILED', `${target} cannot export ${volume.path} as ${iqn}: ${why}`, {
      op: 'target.export',
      info: {iqn, path: volume.path},
      cause,
    })
  const found = await stat(volume.path).catch(cause => {
    throw refuse((cause as Error).message, cause)
  })
  if (volume.kind === 'block' && !found.isBlockDevice()) throw refuse('it is no block device')
  if (volume.kind !== 'file') return
  if (!found.isFile()) throw refuse('it is no regular file')
  if (found.size < volume.sizeBytes || (found.size > volume.sizeBytes && !isToldSize)) {
    throw refuse(`it has ${found.size} bytes, the volume ${volume.sizeBytes}`)
  }
}

/** For a driver that leaves no choice of how a volume is kept. @throws StorageError UNSUPPORTED */
export function refuseIoType(driver: string, {ioType}: Pick<ExportSpec, 'ioType'>): void {
  if (ioType === undefined) return
  throw new StorageError(
    'UNSUPPORTED',
    `The target driver ${driver} has no ${ioType}: only IET lets an export choose how its volume is kept`,
    {op: 'target.export', info: {ioType}},
  )
}

function checkPath(path: string): void {
  if (!isAbsolute(path)) throw invalid('NAME_INVALID', `The path ${quote(path)} of the volume is not absolute`)
  if (unsafe.test(path) || path.trim() !== path) {
    throw invalid(
      'NAME_INVALID',
      `The path ${quote(path)} cannot be exported: a target takes no comma, control character or blank at the end in it`,
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
 * An address rule in its shortest form, which is the one that tgtd matches: a prefix needs zeros behind it and may not span
 * all bits, so `10.1.2.3/8` becomes `10.0.0.0/8` and `10.1.2.3/32` becomes `10.1.2.3`. @throws NAME_INVALID
 */
export function ruleAddress(address: string): string {
  if (address === 'ALL' || (isIP(address) && !address.includes('%'))) return address
  const [host = '', prefix = '', ...rest] = address.split('/')
  const bits = Number(prefix)
  const width = isIPv4(host) ? 32 : 128
  if (!isIP(host) || host.includes('%') || !/^\d{1,3}$/.test(prefix) || rest.length > 0 || bits > width || bits === 0) {
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
