import {readdir, readFile, readlink} from 'node:fs/promises'
import {isIP, isIPv4} from 'node:net'
import {canonicalAddress, splitZone} from './address.js'
import type {Portal} from './types.js'

/** A listening TCP socket of this network namespace and who has it. */
export interface PortHolder {
  /** IPv6 without brackets; `0.0.0.0` and `::` are all addresses. */
  address: string
  port: number
  /** Processes with a descriptor of the socket, as far as this process may look. */
  processes: {pid: number; command: string}[]
}

const listenState = '0A'

/**
 * Who listens on a TCP port: /proc/net/tcp and tcp6 name the socket's inode (proc(5)), /proc/PID/fd the processes that
 * have it. A listener without a process belongs to the kernel (LIO makes its sockets there), to another user where this
 * process is not root, or to another PID namespace.
 */
export async function portHolders(port: number): Promise<PortHolder[]> {
  const listeners = (await Promise.all(['tcp', 'tcp6'].map(table => listenersIn(table)))).flat()
  const wanted = listeners.filter(listener => listener.port === port)
  if (wanted.length === 0) return []
  const processes = await processesByInode(new Set(wanted.map(({inode}) => inode)))
  return wanted.map(({address, inode}) => ({address, port, processes: processes.get(inode) ?? []}))
}

/**
 * Processes that listen in a way that keeps others from this portal: on its address or on the wildcard of its family.
 * With `dualStack` a listener on `::` counts for IPv4 too, which is right unless it has set IPV6_V6ONLY; that cannot be
 * seen. Without root only one's own processes can be named: `[]` does not mean that the port is free.
 */
export async function portalHolders(
  portal: Portal,
  {dualStack}: {dualStack: boolean},
): Promise<{pid: number; command: string}[]> {
  // A socket's address has no zone in these tables.
  const wanted = plainAddress(portal.address)
  const wildcards = isIPv4(wanted) ? ['0.0.0.0', ...(dualStack ? ['::'] : [])] : ['::']
  const inTheWay = ({address}: PortHolder) =>
    address === wanted || wildcards.includes(address) || (wildcards.includes(wanted) && isIP(address) === isIP(wanted))
  return (await portHolders(portal.port)).filter(inTheWay).flatMap(({processes}) => processes)
}

/** True where somebody listens on this portal's address or on the wildcard of its family, in this network namespace. */
export async function isListenedOn(portal: Portal): Promise<boolean> {
  const listeners = (await Promise.all(['tcp', 'tcp6'].map(table => listenersIn(table)))).flat()
  const wanted = plainAddress(portal.address)
  const addresses = [wanted, '::', ...(isIPv4(wanted) ? ['0.0.0.0'] : [])]
  return listeners.some(({address, port}) => port === portal.port && addresses.includes(address))
}

async function listenersIn(table: string): Promise<{address: string; port: number; inode: string}[]> {
  const text = await readFile(`/proc/net/${table}`, 'utf8').catch(() => '')
  return text.split('\n').flatMap(line => {
    const fields = line.trim().split(/\s+/)
    const [address, port] = (fields[1] ?? '').split(':')
    if (fields[3] !== listenState || !address || !port) return []
    return [{address: readAddress(address), port: Number.parseInt(port, 16), inode: fields[9] ?? ''}]
  })
}

/** The kernel prints an address as 32-bit words of this machine's byte order (net/ipv4/tcp_ipv4.c, get_openreq4). */
function readAddress(hex: string): string {
  const words = hex.match(/.{8}/g) ?? []
  const bytes = words.flatMap(word => {
    const buffer = Buffer.alloc(4)
    if (littleEndian) buffer.writeUInt32LE(Number.parseInt(word, 16))
    else buffer.writeUInt32BE(Number.parseInt(word, 16))
    return [...buffer]
  })
  if (bytes.length === 4) return bytes.join('.')
  const groups = Array.from({length: 8}, (_, index) => (bytes[2 * index]! * 256 + bytes[2 * index + 1]!).toString(16))
  return canonicalAddress(groups.join(':'))
}

function plainAddress(address: string): string {
  return canonicalAddress(splitZone(address)[0])
}

const littleEndian = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1

async function processesByInode(inodes: Set<string>): Promise<Map<string, {pid: number; command: string}[]>> {
  const found = new Map<string, {pid: number; command: string}[]>()
  const pids = (await readdir('/proc')).filter(name => /^\d+$/.test(name))
  for (const pid of pids) {
    const descriptors = await readdir(`/proc/${pid}/fd`).catch(() => [])
    const links = await Promise.all(descriptors.map(fd => readlink(`/proc/${pid}/fd/${fd}`).catch(() => '')))
    const owned = new Set(links.flatMap(link => /^socket:\[(\d+)\]$/.exec(link)?.[1] ?? []))
    for (const inode of inodes) {
      if (!owned.has(inode)) continue
      const command = (await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '')).trim()
      found.set(inode, [...(found.get(inode) ?? []), {pid: Number(pid), command}])
    }
  }
  return found
}
