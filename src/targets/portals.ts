import {isIPv4} from 'node:net'
import {networkInterfaces} from 'node:os'
import type {Portal} from '../types.js'

/** A portal and whether initiators can reach it now. */
export interface PortalState extends Portal {
  open: boolean
  /** Why it is not open; null where it is. */
  reason: string | null
}

export const noSuchAddress = 'it is no address of this machine'

/** True where this machine, in this network namespace, has the address now. The wildcards count, and all of 127.0.0.0/8. */
export function isLocalAddress(address: string): boolean {
  if (address === '0.0.0.0' || address === '::' || address.startsWith('127.')) return true
  const wanted = canonical(address)
  return Object.values(networkInterfaces()).some(found => found?.some(one => canonical(one.address) === wanted))
}

/** True where what listens on `open` receives what is sent to the wanted portal. */
export function covers(open: Portal, wanted: Portal): boolean {
  if (open.port !== wanted.port) return false
  const wildcard = wanted.address.includes(':') ? '::' : '0.0.0.0'
  return canonical(open.address) === canonical(wanted.address) || open.address === wildcard
}

/** URL writes an IPv6 address in its shortest form (RFC 5952). */
function canonical(address: string): string {
  const [plain = ''] = address.split('%')
  return isIPv4(plain) ? plain : new URL(`http://[${plain}]`).hostname.slice(1, -1)
}
