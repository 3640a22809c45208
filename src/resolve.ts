import {connect} from 'node:net'
import {setTimeout as sleep} from 'node:timers/promises'
import {familyOf, samePortal} from './address.js'
import {hasCode, StorageError} from './errors.js'
import {run} from './exec.js'
import {formatPortal} from './iqn.js'
import type {Portal} from './types.js'

export interface ResolveOptions {
  /** Milliseconds for the name service, and again for finding out which of several addresses answers; default 5,000. */
  timeoutMs?: number
  /** Of several addresses one of these is taken: a second login to the same target goes where the first one went. */
  preferred?: readonly Portal[]
}

/** Before the next address is tried beside one that has not answered (RFC 8305, 5). */
const nextAddressMs = 250

/**
 * A portal whose host may be a name, by its address. Of several the first one that takes a connection is chosen, and the
 * system's first choice where none does: the login then tells why. @throws INITIATOR_FAILED, TIMEOUT
 */
export async function resolvePortal<P extends Portal>(portal: P, options: ResolveOptions = {}): Promise<P> {
  if (familyOf(portal.address) !== 0) return portal
  const {timeoutMs = 5_000, preferred = []} = options
  const addresses = await resolveHost(portal.address, timeoutMs)
  const portals = addresses.map(address => ({...portal, address}))
  const known = portals.find(one => preferred.some(other => samePortal(one, other)))
  return known ?? (portals.length === 1 ? portals[0]! : await firstAnswering(portals, timeoutMs))
}

/**
 * The addresses of a host as this system knows them, the preferred one first. Node's own lookup has no deadline, and holds one
 * of libuv's few threads for as long as a name server is silent; a process can be ended.
 */
async function resolveHost(host: string, timeoutMs: number): Promise<string[]> {
  const info = {host}
  const {stdout} = await run('getent', ['ahosts', host], {timeoutMs, accept: [0, 2]}).catch(cause => {
    if (!hasCode(cause, 'TIMEOUT')) throw cause
    const message = `No name server has told the address of ${host} within ${timeoutMs} ms: give the address itself, or see getent ahosts ${host}`
    throw new StorageError('TIMEOUT', message, {op: 'initiator.resolve', info: {...info, timeoutMs}, cause})
  })
  const addresses = stdout.split('\n').flatMap(line => (/\bSTREAM\b/.test(line) ? [line.split(/\s+/)[0]!] : []))
  const usable = [...new Set(addresses)].filter(address => familyOf(address) !== 0)
  if (usable.length > 0) return usable
  throw new StorageError(
    'INITIATOR_FAILED',
    `This host knows no address of ${host}: see getent ahosts ${host}, or give the address itself`,
    {op: 'initiator.resolve', info},
  )
}

async function firstAnswering<P extends Portal>(portals: P[], timeoutMs: number): Promise<P> {
  const ended = new AbortController()
  const {signal} = ended
  const attempts = portals.map(async (portal, index) => {
    await sleep(index * nextAddressMs, undefined, {signal})
    await takesConnection(portal, timeoutMs, signal)
    return portal
  })
  try {
    return await Promise.any(attempts).catch(() => portals[0]!)
  } finally {
    ended.abort()
  }
}

function takesConnection({address: host, port}: Portal, timeoutMs: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = connect({host, port, signal, timeout: timeoutMs})
    socket.once('connect', () => {
      socket.destroy()
      resolve()
    })
    socket.once('timeout', () => socket.destroy(new Error(`${formatPortal({address: host, port})} is silent`)))
    socket.once('error', reject)
  })
}
