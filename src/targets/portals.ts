import {type NetworkInterfaceInfo, networkInterfaces} from 'node:os'
import {canonicalAddress, familyOf, isLinkLocal, isWildcard, samePortal} from '../address.js'
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
  if (isWildcard(address) || address.startsWith('127.')) return true
  const wanted = canonicalAddress(address)
  return Object.values(networkInterfaces()).some(found => found?.some(one => canonicalAddress(one.address) === wanted))
}

/**
 * Where to log in to what listens at these portals: nobody can dial `0.0.0.0` or `::`, so an address that this machine has now
 * takes its place: the first of its family, in the order of its interfaces, that other hosts can reach too; loopback where
 * there is no other.
 */
export function dialledPortals(
  listening: readonly Portal[],
  interfaces?: NodeJS.Dict<NetworkInterfaceInfo[]>,
): Portal[] {
  if (!listening.some(({address}) => isWildcard(address))) return listening.map(portal => ({...portal}))
  const all = Object.values(interfaces ?? networkInterfaces()).flatMap(found => found ?? [])
  const addressFor = (address: string) => {
    if (!isWildcard(address)) return address
    const family = familyOf(address)
    const own = all.find(one => familyOf(one.address) === family && !one.internal && !isLinkLocal(one.address))
    return own?.address ?? (family === 4 ? '127.0.0.1' : '::1')
  }
  const portals = listening.map(({address, port}) => ({address: addressFor(address), port}))
  return portals.filter((portal, index) => portals.findIndex(other => samePortal(other, portal)) === index)
}

/** True where what listens on `open` receives what is sent to the wanted portal. */
export function covers(open: Portal, wanted: Portal): boolean {
  const isOfAll = isWildcard(open.address) && familyOf(open.address) === familyOf(wanted.address)
  return samePortal(open, wanted) || (open.port === wanted.port && isOfAll)
}
