import {readdir, readFile, readlink} from 'node:fs/promises'
import {isIPv4} from 'node:net'
import type {Portal} from '../types.js'

export interface PortHolder {
  pid: number
  /** Name of the process, as in /proc/PID/comm. */
  name: string
}

/** proc(5), /proc/net/tcp: state 0A is LISTEN. */
const listenState = '0A'

/**
 * Processes that listen on a TCP port in a way that keeps others from this address: on the address itself or on the
 * wildcard. With `dualStack` a listener on `::` counts for IPv4 too, which is right unless it has set IPV6_V6ONLY; that
 * cannot be seen. Without root only one's own processes can be named: `[]` does not mean that the port is free.
 */
export async function portHolders({address, port}: Portal, {dualStack}: {dualStack: boolean}): Promise<PortHolder[]> {
  const family = isIPv4(address) ? 'tcp' : 'tcp6'
  const listeners = await listenersOn(family, port)
  const wanted = hexOf(address)
  const inodes = listeners.filter(({host}) => isWildcard(host) || isWildcard(wanted) || host === wanted)
  if (dualStack && family === 'tcp') {
    inodes.push(...(await listenersOn('tcp6', port)).filter(({host}) => isWildcard(host)))
  }
  return inodes.length === 0 ? [] : processesWithSockets(new Set(inodes.map(({inode}) => inode)))
}

async function listenersOn(family: 'tcp' | 'tcp6', port: number): Promise<{host: string; inode: string}[]> {
  const rows = (await readFile(`/proc/net/${family}`, 'utf8').catch(() => '')).split('\n').slice(1)
  return rows.flatMap(row => {
    const columns = row.trim().split(/\s+/)
    const [host = '', hexPort = ''] = (columns[1] ?? '').split(':')
    const listens = columns[3] === listenState && Number.parseInt(hexPort, 16) === port
    return listens ? [{host, inode: columns[9] ?? ''}] : []
  })
}

function isWildcard(hex: string): boolean {
  return /^0+$/.test(hex)
}

/** An address as /proc/net/tcp and tcp6 write it: its 32-bit words, each in the machine's (little-endian) order. */
function hexOf(address: string): string {
  const bytes = isIPv4(address) ? address.split('.').map(Number) : ipv6Bytes(address)
  const words: number[][] = []
  for (let i = 0; i < bytes.length; i += 4) words.push(bytes.slice(i, i + 4).reverse())
  return words
    .flat()
    .map(byte => byte.toString(16).padStart(2, '0').toUpperCase())
    .join('')
}

function ipv6Bytes(address: string): number[] {
  const dotted = address.replace(/\d+\.\d+\.\d+\.\d+$/, ipv4 => {
    const [a = 0, b = 0, c = 0, d = 0] = ipv4.split('.').map(Number)
    return `${(a * 256 + b).toString(16)}:${(c * 256 + d).toString(16)}`
  })
  const [head = '', tail] = dotted.split('::')
  const left = head === '' ? [] : head.split(':')
  const right = !tail ? [] : tail.split(':')
  const groups = [...left, ...Array(tail === undefined ? 0 : 8 - left.length - right.length).fill('0'), ...right]
  return groups.map(group => Number.parseInt(group, 16)).flatMap(group => [group >> 8, group & 255])
}

async function processesWithSockets(inodes: Set<string>): Promise<PortHolder[]> {
  const holders: PortHolder[] = []
  for (const entry of await readdir('/proc')) {
    if (!/^\d+$/.test(entry)) continue
    // A process may end while it is looked at, and others' descriptors are theirs.
    const descriptors = await readdir(`/proc/${entry}/fd`).catch(() => [])
    for (const descriptor of descriptors) {
      const link = await readlink(`/proc/${entry}/fd/${descriptor}`).catch(() => '')
      const inode = /^socket:\[(\d+)\]$/.exec(link)?.[1]
      if (!inode || !inodes.has(inode)) continue
      const name = (await readFile(`/proc/${entry}/comm`, 'utf8').catch(() => '')).trim()
      holders.push({pid: Number(entry), name})
      break
    }
  }
  return holders
}
