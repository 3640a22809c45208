import {isIP} from 'node:net'
import {familyOf, isLinkLocal, isWildcard, splitZone} from './address.js'
import {StorageError} from './errors.js'
import type {Portal} from './types.js'

/**
 * The grammar of an iSCSI name (RFC 7143, 4.2.7.2 and 4.2.7.3; RFC 3722 for its characters): `iqn.`, a year and month, a
 * reversed domain name, then optionally a colon and a string of the naming authority's choice; or `eui.` with 16 hex
 * digits; or `naa.` with 16 or 32. At most 223 bytes. Only the ASCII subset that RFC 3722's preparation leaves
 * unchanged is accepted: lowercase letters, digits, `-`, `.`, `:`.
 */
const iqnPattern =
  /^iqn\.\d{4}-(0[1-9]|1[0-2])\.[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*(:[a-z0-9.:-]+)?$/
const euiPattern = /^eui\.[0-9a-f]{16}$/
const naaPattern = /^naa\.([0-9a-f]{16}|[0-9a-f]{32})$/
const maxNameBytes = 223

/** Returns `name` where it is an iSCSI name that lunpath may make. @throws StorageError NAME_INVALID */
export function checkIscsiName(name: string): string {
  const valid =
    name.length <= maxNameBytes &&
    !name.includes('..') &&
    (iqnPattern.test(name) || euiPattern.test(name) || naaPattern.test(name))
  if (!valid) {
    throw new StorageError(
      'NAME_INVALID',
      `${JSON.stringify(name.slice(0, 80))} is not an iSCSI name: expected iqn.YYYY-MM.reversed.domain[:string] in lowercase (RFC 7143, 4.2.7)`,
      {info: {name: name.slice(0, 256)}},
    )
  }
  return name
}

/**
 * Returns a name of lunpath's own in the form that it has on the wire: RFC 3722 folds the case of iSCSI names.
 * @throws StorageError NAME_INVALID
 */
export function foldIscsiName(name: string): string {
  return checkIscsiName(name.toLowerCase())
}

/**
 * Returns `name` where it can be the name of a target or an initiator that somebody else has made: whatever RFC 3722 says of it,
 * it is taken as it is spelled there. Refused is only what breaks the interfaces that it goes through: "/" and the names `.` and `..`
 * lead elsewhere in open-iscsi's directory of node records, a line break or a blank ends a value there and in the kernel's
 * listings, and a comma ends one in a text key of iSCSI (RFC 7143, 6.1). @throws StorageError NAME_INVALID
 */
export function checkForeignName(name: string): string {
  const bytes = Buffer.from(name)
  const isText = bytes.toString() === name && !/[\p{C}\p{Z}/,]/u.test(name)
  if (isText && bytes.length <= maxNameBytes && /^(iqn|eui|naa)\../i.test(name)) return name
  throw new StorageError(
    'NAME_INVALID',
    `${JSON.stringify(name.slice(0, 80))} is no iSCSI name: expected iqn., eui. or naa. and more, at most ${maxNameBytes} bytes without blanks, control characters, "/" and commas (RFC 7143, 4.2.7)`,
    {info: {name: name.slice(0, 256)}},
  )
}

/** By what names are compared: those that differ in their case alone are one (RFC 3722), and whoever made them chose how they are spelled. */
export function nameKey(name: string): string {
  return name.toLowerCase()
}

/** Parses `ADDRESS[:PORT]`, `[IPv6]:PORT` or a bare IPv6 address. The default port is 3260. @throws NAME_INVALID */
export function parsePortal(text: string): Portal {
  const {address, port} = splitPortal(text)
  if (familyOf(address) === 0 || port < 1 || port > 65535) {
    throw noPortal(text, 'is not a portal: expected ADDRESS[:PORT] or [IPv6][:PORT]')
  }
  const [plain, zone] = splitZone(address)
  if (zone !== undefined && !isLinkLocal(plain)) {
    throw noPortal(
      text,
      `is not a portal: only a link-local address (fe80::/10) takes an interface, and ${plain} is none`,
    )
  }
  return {address, port}
}

/**
 * A portal that others are told of: a target portal group and a guest's disk carry addresses that are the same on every host,
 * and an interface's name is not (RFC 4007, 11). @throws NAME_INVALID
 */
export function parseOfferedPortal(text: string): Portal {
  const portal = parsePortal(text)
  if (!isLinkLocal(portal.address)) return portal
  throw noPortal(
    text,
    'is a link-local address, which each host reaches by an interface of its own: targets and guests cannot be told of it (RFC 4007). Name an address that is valid beyond its link',
  )
}

/** Where the initiators of a target are sent to: an address that each of them can dial. @throws NAME_INVALID */
export function parseDestination(text: string): Portal {
  const portal = parseOfferedPortal(text)
  if (!isWildcard(portal.address)) return portal
  throw noPortal(text, 'stands for all addresses of a host that listens: name one that initiators reach')
}

/**
 * A portal to log in to: `HOST[:PORT]`, where the host is an address or a name, which src/resolve.ts turns into one.
 * @throws NAME_INVALID
 */
export function parseRemotePortal(text: string): Portal {
  const {address, port} = splitPortal(text)
  if (isHostName(address) && port >= 1 && port <= 65535) return {address, port}
  if (familyOf(address) === 0) throw noPortal(text, 'is not a portal: expected HOST[:PORT] or [IPv6][:PORT]')
  const portal = parsePortal(text)
  if (isWildcard(address)) {
    throw noPortal(text, 'stands for all addresses of a host that listens: name the one to log in to')
  }
  if (isLinkLocal(address) && splitZone(address)[1] === undefined) {
    throw noPortal(text, `is a link-local address: name the interface that leads to it, as [${address}%eth0]:${port}`)
  }
  return portal
}

/** Parses `PORTAL[,TPGT]`, as iscsiadm takes and shows it; its host may be a name. @throws NAME_INVALID */
export function parseTaggedPortal(text: string): Portal & {tpgt?: number} {
  const [, portal, tag] = /^([^,]*)(?:,(\d{1,5}))?$/.exec(text) ?? []
  const parsed = parseRemotePortal(portal ?? text)
  return tag === undefined ? parsed : {...parsed, tpgt: Number(tag)}
}

/** A host name (RFC 1123, 2.1), which is no number: `127.0.0` is a mistyped address. */
export function isHostName(text: string): boolean {
  if (text.length > 253 || !/[a-z]/i.test(text.replace(/\.$/, '').split('.').at(-1)!)) return false
  return /^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?$/i.test(text)
}

function splitPortal(text: string): Portal {
  if (familyOf(text) === 6) return {address: text, port: 3260}
  const [, bracketed, plain, port = '3260'] = /^(?:\[([^\]]+)\]|([^:[\]]+))(?::(\d{1,5}))?$/.exec(text) ?? []
  // No host name is in brackets.
  const address = bracketed !== undefined && familyOf(bracketed) === 0 ? '' : (bracketed ?? plain ?? '')
  return {address, port: Number(port)}
}

function noPortal(text: string, why: string): StorageError {
  return new StorageError('NAME_INVALID', `${JSON.stringify(text.slice(0, 256))} ${why}`, {
    info: {portal: text.slice(0, 256)},
  })
}

/** `ADDRESS:PORT`, IPv6 in brackets. */
export function formatPortal({address, port}: Portal): string {
  return familyOf(address) === 6 ? `[${address}]:${port}` : `${address}:${port}`
}

/** An access rule by address: `ALL`, an IPv4 or IPv6 address, or a prefix (`10.0.0.0/8`). @throws NAME_INVALID */
export function checkAddressRule(rule: string): string {
  const [address, bits, ...rest] = rule.split('/')
  // Node takes an address with a zone for one; a rule has none.
  const family = address?.includes('%') ? 0 : isIP(address ?? '')
  const prefixFits = bits === undefined || (/^\d{1,3}$/.test(bits) && Number(bits) <= (family === 6 ? 128 : 32))
  if (rule === 'ALL' || (family !== 0 && rest.length === 0 && prefixFits)) return rule
  throw new StorageError(
    'NAME_INVALID',
    `${JSON.stringify(rule.slice(0, 80))} is not an address rule: expected ALL, an address or a prefix as 10.0.0.0/8`,
    {
      info: {rule: rule.slice(0, 256)},
    },
  )
}
