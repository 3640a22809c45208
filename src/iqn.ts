import {isIP} from 'node:net'
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

/** Returns `name` where it is an iSCSI name. @throws StorageError NAME_INVALID */
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

/** Parses `ADDRESS[:PORT]`, `[IPv6]:PORT` or a bare IPv6 address. The default port is 3260. @throws NAME_INVALID */
export function parsePortal(text: string): Portal {
  const bracketed = /^\[([^\]]+)\](?::(\d{1,5}))?$/.exec(text)
  const plain = /^([^:]+)(?::(\d{1,5}))?$/.exec(text)
  const address = isIP(text) === 6 ? text : (bracketed?.[1] ?? plain?.[1] ?? '')
  const port = Number((isIP(text) === 6 ? undefined : (bracketed ?? plain)?.[2]) ?? 3260)
  if (isIP(address) === 0 || port < 1 || port > 65535) {
    throw new StorageError(
      'NAME_INVALID',
      `${JSON.stringify(text)} is not a portal: expected ADDRESS[:PORT] or [IPv6][:PORT]`,
      {
        info: {portal: text},
      },
    )
  }
  return {address, port}
}

/** Parses `PORTAL[,TPGT]`, as iscsiadm takes and shows it. @throws NAME_INVALID */
export function parseTaggedPortal(text: string): Portal & {tpgt?: number} {
  const [, portal, tag] = /^([^,]*)(?:,(\d{1,5}))?$/.exec(text) ?? []
  const parsed = parsePortal(portal ?? text)
  return tag === undefined ? parsed : {...parsed, tpgt: Number(tag)}
}

/** `ADDRESS:PORT`, IPv6 in brackets. */
export function formatPortal({address, port}: Portal): string {
  return isIP(address) === 6 ? `[${address}]:${port}` : `${address}:${port}`
}

/** An access rule by address: `ALL`, an IPv4 or IPv6 address, or a prefix (`10.0.0.0/8`). @throws NAME_INVALID */
export function checkAddressRule(rule: string): string {
  const [address, bits, ...rest] = rule.split('/')
  const family = isIP(address ?? '')
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
