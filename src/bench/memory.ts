import {readFile} from 'node:fs/promises'
import {join, relative} from 'node:path'
import {formatSize} from '../size.js'
import type {NativeJob, NativeTarget} from './native.js'
import {flushes, invalid} from './workload.js'

/** What a run takes, in bytes. */
export interface MemoryNeed {
  /** At its start: buffers, and what each thread and each target keeps. */
  atOnceBytes: number
  buffersBytes: number
  /** The tables of all blocks that verify, had each been written. They grow with the blocks that are. */
  tablesBytes: number
}

/** What this process may still take, and who says so. */
export interface MemoryRoom {
  bytes: number
  limit: string
}

const pageBytes = 4096
/** native/bench/histogram.h: Histogram::kBytes. */
const histogramBytes = 32 * 1024
/** Of a thread: what it touches of its stack, the kernel's part, its ring; more for each I/O in flight. */
const threadBytes = 64 * 1024
const slotBytes = 512
/** Of a target: histograms of samples that are merged, handed over and summed up, beside those of its threads. */
const histogramsPerTarget = 16
/** Generations: native/bench/verify.h. */
const tableEntryBytes = 4

/** `sizes`: of each target's device, in bytes. */
export function memoryNeed({targets}: Pick<NativeJob, 'targets'>, sizes: readonly number[]): MemoryNeed {
  let [buffersBytes, otherBytes, tablesBytes] = [0, 0, 0]
  for (const [index, target] of targets.entries()) {
    const {iodepth, numjobs, mix, verify} = target
    const directions = Object.values(mix).filter(percent => percent > 0).length + (flushes(target) ? 1 : 0)
    buffersBytes += numjobs * iodepth * Math.ceil(largestBlock(target) / pageBytes) * pageBytes
    // Of ramp and runtime two histograms for each direction; two for reading back.
    const ofThread = threadBytes + iodepth * slotBytes + (4 * directions + 2) * histogramBytes
    otherBytes += numjobs * ofThread + directions * histogramsPerTarget * histogramBytes
    if (verify !== 'none') tablesBytes += (rangeBytes(target, sizes[index]!) / largestBlock(target)) * tableEntryBytes
  }
  return {atOnceBytes: buffersBytes + otherBytes, buffersBytes, tablesBytes: Math.ceil(tablesBytes)}
}

function largestBlock({blockSizes}: NativeTarget): number {
  return Math.max(...Object.values(blockSizes).flatMap(sizes => sizes.map(({bytes}) => bytes)))
}

function rangeBytes({offsetBytes, sizeBytes}: NativeTarget, deviceBytes: number): number {
  return sizeBytes === 0 ? Math.max(0, deviceBytes - offsetBytes) : sizeBytes
}

/** Runs of this process whose memory is not all in the kernel's figures yet. */
const reserved = new Set<Reservation>()

/** The memory of a run that is on. */
export class Reservation {
  /** For the tables of each thread that verifies; 0 where they need no limit. */
  readonly tableBytesPerThread: number
  #bytes: number
  readonly #tablesBytes: number

  constructor(need: MemoryNeed, {tablesBytes, verifyingThreads}: {tablesBytes: number; verifyingThreads: number}) {
    this.#tablesBytes = tablesBytes
    this.#bytes = need.atOnceBytes + tablesBytes
    this.tableBytesPerThread = verifyingThreads === 0 ? 0 : Math.floor(tablesBytes / verifyingThreads)
    reserved.add(this)
  }

  get bytes(): number {
    return this.#bytes
  }

  /** The run has begun: the kernel counts its buffers now. */
  begun(): void {
    this.#bytes = this.#tablesBytes
  }

  release(): void {
    reserved.delete(this)
  }
}

/**
 * Makes sure that a run fits into what this process may use, since the kernel would kill the process in the middle of it,
 * and with it all that the daemon has to do. Tables that may not all fit get what is left; a run that fills its own ends.
 * @throws StorageError INVALID_ARGUMENT
 */
export async function reserveMemory(job: NativeJob, sizes: readonly number[]): Promise<Reservation> {
  const need = memoryNeed(job, sizes)
  const room = await memoryRoom()
  const taken = [...reserved].reduce((sum, {bytes}) => sum + bytes, 0)
  const freeBytes = Math.max(0, room.bytes - taken)
  if (need.atOnceBytes > freeBytes) {
    throw invalid(
      `This job needs ${formatSize(need.atOnceBytes)} of memory, ${formatSize(need.buffersBytes)} of it for bs × iodepth × numjobs of all targets, and this process may use ${formatSize(freeBytes)} more (${room.limit}). Lower bs, iodepth or numjobs, or give fewer targets`,
      {...need, freeBytes, limit: room.limit},
    )
  }
  const verifying = job.targets.filter(({verify}) => verify !== 'none')
  const verifyingThreads = verifying.reduce((sum, {numjobs}) => sum + numjobs, 0)
  const tablesBytes = Math.min(need.tablesBytes, Math.floor((freeBytes - need.atOnceBytes) / 2))
  if (verifyingThreads > 0 && tablesBytes < Math.min(need.tablesBytes, verifyingThreads * leastTableBytes)) {
    throw invalid(
      `verify keeps ${tableEntryBytes} bytes for each block that it has written, and this process may use ${formatSize(freeBytes)} more (${room.limit}). Lower bs × iodepth × numjobs or the number of targets`,
      {...need, freeBytes, limit: room.limit},
    )
  }
  return new Reservation(need, {tablesBytes, verifyingThreads})
}

/** Of a thread: for some hundred blocks far from each other. */
const leastTableBytes = 2 ** 20
/** Of what is free: the rest of the process goes on too. */
const share = 0.9

/** The least that any limit leaves: the machine's, and those of the memory cgroups that this process is in. */
export async function memoryRoom(): Promise<MemoryRoom> {
  const rooms = [await machineRoom(), ...(await cgroupRooms())]
  const least = rooms.reduce((one, other) => (other.bytes < one.bytes ? other : one))
  return {...least, bytes: Math.floor(Math.max(0, least.bytes) * share)}
}

/** MemAvailable, proc_meminfo(5): what can be had without swapping. */
async function machineRoom(): Promise<MemoryRoom> {
  const kib = /^MemAvailable:\s+(\d+) kB$/m.exec(await textOf('/proc/meminfo'))?.[1]
  return {
    bytes: kib === undefined ? Number.POSITIVE_INFINITY : Number(kib) * 1024,
    limit: 'MemAvailable of /proc/meminfo',
  }
}

async function cgroupRooms(): Promise<MemoryRoom[]> {
  const [own, mounts] = await Promise.all([textOf('/proc/self/cgroup'), textOf('/proc/self/mountinfo')])
  const rooms = memoryCgroups(own, mounts).map(cgroup => roomIn(cgroup))
  return (await Promise.all(rooms)).filter(room => room !== undefined)
}

export interface MemoryCgroup {
  directory: string
  version: 1 | 2
}

/**
 * The memory cgroups of this process, its own and those above it as far as they can be seen (cgroups(7)), from the text of
 * /proc/self/cgroup and /proc/self/mountinfo.
 */
export function memoryCgroups(own: string, mountinfo: string): MemoryCgroup[] {
  const paths = own.split('\n').flatMap((line): {version: 1 | 2; path: string}[] => {
    const [, controllers, path] = /^\d+:([^:]*):(.*)$/.exec(line) ?? []
    if (path === undefined) return []
    if (controllers === '') return [{version: 2, path}]
    return controllers!.split(',').includes('memory') ? [{version: 1, path}] : []
  })
  return paths.flatMap(({version, path}) => {
    const mount = mountinfo.split('\n').flatMap(line => {
      const [left, right] = line.split(' - ')
      const [, , , root, mountPoint] = left!.split(' ')
      const [type, , options = ''] = right?.split(' ') ?? []
      const matches = version === 2 ? type === 'cgroup2' : type === 'cgroup' && options.split(',').includes('memory')
      return matches ? [{root: root!, mountPoint: mountPoint!}] : []
    })[0]
    return mount ? upwards(mount.mountPoint, relative(mount.root, path)).map(directory => ({directory, version})) : []
  })
}

/** The directory and those above it, up to `top`; `top` alone where the path leads out of it. */
function upwards(top: string, below: string): string[] {
  const names = below.startsWith('..') ? [] : below.split('/').filter(name => name !== '')
  return [...names.keys(), names.length].map(count => join(top, ...names.slice(0, count)))
}

async function roomIn({directory, version}: MemoryCgroup): Promise<MemoryRoom | undefined> {
  const names =
    version === 2
      ? {limits: ['memory.max', 'memory.high'], usage: 'memory.current', total: ''}
      : {limits: ['memory.limit_in_bytes'], usage: 'memory.usage_in_bytes', total: 'total_'}
  const read = (name: string) => textOf(join(directory, name))
  const [usage, stat, ...limits] = await Promise.all([
    read(names.usage),
    read('memory.stat'),
    ...names.limits.map(read),
  ])
  // The page cache is given back before anybody is killed.
  const cached = ['inactive_file', 'active_file'].map(name =>
    Number(new RegExp(`^${names.total}${name} (\\d+)$`, 'm').exec(stat)?.[1] ?? 0),
  )
  const used = Number(usage) - cached.reduce((sum, bytes) => sum + bytes, 0)
  const rooms = limits.flatMap((text, index) => {
    const limit = /^\d+$/.test(text.trim()) ? Number(text) : undefined
    return limit === undefined ? [] : [{bytes: limit - used, limit: `${names.limits[index]} of ${directory}`}]
  })
  return rooms.sort((one, other) => one.bytes - other.bytes)[0]
}

/** Empty where there is no such file: another version of cgroups, the root. */
function textOf(path: string): Promise<string> {
  return readFile(path, 'utf8').catch(() => '')
}
