import {isIP} from 'node:net'
import type {Portal} from './types.js'

/** IP addresses, as they are compared. An IPv6 address may have a zone, the interface that it is valid on (RFC 4007, 11). */

const zonePattern = /^[^\s/:%,[\]]{1,15}$/

/** 4 or 6; 0 for what is no IP address. */
export function familyOf(address: string): 0 | 4 | 6 {
  const [plain, zone] = splitZone(address)
  const family = isIP(plain) as 0 | 4 | 6
  if (zone === undefined) return family
  // Linux gives an interface at most 15 characters, any but blanks, "/" and ":" (net/core/dev.c, dev_valid_name).
  return family === 6 && zonePattern.test(zone) ? 6 : 0
}

/** `fe80::1%eth0` is `fe80::1` and `eth0`. */
export function splitZone(address: string): [plain: string, zone: string | undefined] {
  const at = address.indexOf('%')
  return at < 0 ? [address, undefined] : [address.slice(0, at), address.slice(at + 1)]
}

/** fe80::/10: the address of one link, which may be there on every link (RFC 4291, 2.5.6). */
export function isLinkLocal(address: string): boolean {
  return familyOf(address) === 6 && /^fe[89ab]/.test(canonicalAddress(address))
}

/** All addresses of a host: it can be listened on, and not dialled. */
export function isWildcard(address: string): boolean {
  return ['0.0.0.0', '::', '::ffff:0:0'].includes(canonicalAddress(address))
}

/** An IPv6 address in its shortest form (RFC 5952), its zone behind it; all else as it is. */
export function canonicalAddress(address: string): string {
  const [plain, zone] = splitZone(address)
  if (isIP(plain) !== 6) return address
  const shortest = new URL(`http://[${plain}]`).hostname.slice(1, -1)
  return zone === undefined ? shortest : `${shortest}%${zone}`
}

/** However their addresses are written. Where only one of them has a zone, as sysfs has none, that one says nothing. */
export function samePortal(a: Portal, b: Portal): boolean {
  const [plainA, zoneA] = splitZone(canonicalAddress(a.address))
  const [plainB, zoneB] = splitZone(canonicalAddress(b.address))
  const isSameZone = zoneA === undefined || zoneB === undefined || zoneA === zoneB
  return a.port === b.port && plainA === plainB && isSameZone
}
