import {constants, existsSync, type Stats} from 'node:fs'
import {readdir, readFile, realpath, stat} from 'node:fs/promises'

/** Who uses a file or a block device, as far as the kernel tells it cheaply. */
export interface Use {
  /** For a sentence: `is the backing file of /dev/loop3`. */
  how: string
  info: Record<string, unknown>
}

/**
 * Who uses a regular file: a loop device (sysfs, block/loopN/loop/backing_file), swap (/proc/swaps), or a process that
 * holds a lock on it (/proc/locks, proc(5)); QEMU locks the images it has open. An open descriptor without a lock is
 * not seen: exports and sessions are the caller's knowledge.
 */
export async function fileUse(path: string, stats: Stats): Promise<Use | undefined> {
  const [loop, swap, lock] = await Promise.all([loopDeviceOf(path, stats), swapOf(path), lockOf(stats)])
  if (loop) return {how: `is the backing file of ${loop}`, info: {loopDevice: loop}}
  if (swap) return {how: 'is swap space', info: {swap: path}}
  return lock
}

/**
 * Who uses a block device, its partitions, or the disk that it is a partition of: a mount (/proc/self/mountinfo), swap,
 * or a holder such as device-mapper or md (sysfs, block/…/holders). A loop device over the device itself counts too.
 */
export async function blockDeviceUse(path: string, {major, minor}: DeviceNumber): Promise<Use | undefined> {
  const numbers = await relatedDevices({major, minor})
  const [mounts, swaps] = await Promise.all([mountsByDevice(), swapsByDevice()])
  for (const number of numbers) {
    const mount = mounts.get(number)
    if (mount) return {how: `is mounted at ${mount}`, info: {device: number, mountPoint: mount}}
    if (swaps.has(number)) return {how: 'is swap space', info: {device: number}}
    const holders = await names(`/sys/dev/block/${number}/holders`)
    if (holders.length > 0) return {how: `is held by ${holders.join(', ')}`, info: {device: number, holders, path}}
  }
  const stats = await stat(path).catch(() => undefined)
  const loop = stats && (await loopDeviceOf(path, stats))
  return loop ? {how: `is under ${loop}`, info: {loopDevice: loop}} : undefined
}

/**
 * The process, this one apart, that has a file or block device open for writing, by /proc/PID/fd and fdinfo (proc(5)):
 * tgtd and QEMU claim nothing. Processes that this one may not look into are not seen: it is meant for root.
 */
export async function writerOf(stats: Stats): Promise<Use | undefined> {
  const pids = (await names('/proc')).filter(name => /^\d+$/.test(name) && Number(name) !== process.pid)
  for (const pid of pids) {
    for (const fd of await names(`/proc/${pid}/fd`)) {
      const opened = await stat(`/proc/${pid}/fd/${fd}`).catch(() => undefined)
      if (!opened || !isSame(opened, stats)) continue
      const flags = /^flags:\s*([0-7]+)$/m.exec(await text(`/proc/${pid}/fdinfo/${fd}`))?.[1] ?? '0'
      if ((Number.parseInt(flags, 8) & (constants.O_WRONLY | constants.O_RDWR)) === 0) continue
      const command = (await text(`/proc/${pid}/comm`)).trim()
      return {how: `is open for writing in process ${pid} (${command})`, info: {pid: Number(pid), command}}
    }
  }
  return undefined
}

/** The same file, or the same device by whatever node. */
function isSame(one: Stats, other: Stats): boolean {
  if (one.isBlockDevice() && other.isBlockDevice()) return one.rdev === other.rdev
  return one.dev === other.dev && one.ino === other.ino
}

export interface DeviceNumber {
  major: number
  minor: number
}

/** Splits a dev_t as stat(2) gives it; the layout is glibc's gnu_dev_makedev (sys/sysmacros.h). */
export function deviceNumber(device: number): DeviceNumber {
  const bits = BigInt(device)
  return {
    major: Number(((bits >> 8n) & 0xfffn) | ((bits >> 32n) & 0xfffff000n)),
    minor: Number((bits & 0xffn) | ((bits >> 12n) & 0xffffff00n)),
  }
}

async function loopDeviceOf(path: string, stats: Stats): Promise<string | undefined> {
  const loops = (await names('/sys/block')).filter(name => /^loop\d+$/.test(name))
  // Only a loop device in use has the attribute. Asking sysfs does not block and is many times cheaper than a failed read.
  const bound = loops.filter(name => existsSync(`/sys/block/${name}/loop/backing_file`))
  const found = await Promise.all(
    bound.map(async name => {
      const backing = (await text(`/sys/block/${name}/loop/backing_file`)).replace(/\n$/, '')
      // By another hard link or device node it is the same thing; a path of another mount namespace may lead elsewhere.
      const backed = await stat(backing).catch(() => undefined)
      return backing === path || (backed && isSame(backed, stats)) ? `/dev/${name}` : undefined
    }),
  )
  return found.find(name => name !== undefined)
}

/** The first column of /proc/swaps, with its octal escapes (seq_path in the kernel's fs/seq_file.c) undone. */
async function swapPaths(): Promise<string[]> {
  const lines = (await text('/proc/swaps')).split('\n').slice(1)
  return lines.map(line => unescapeOctal(/^(\S+)/.exec(line)?.[1] ?? '')).filter(path => path !== '')
}

async function swapOf(path: string): Promise<boolean> {
  return (await swapPaths()).includes(path)
}

async function lockOf({dev, ino}: Stats): Promise<Use | undefined> {
  const {major, minor} = deviceNumber(dev)
  for (const line of (await text('/proc/locks')).split('\n')) {
    const match = /^\d+: (?:-> )?\S+\s+\S+\s+\S+\s+(-?\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) /.exec(line)
    if (!match) continue
    const [, pid, lockMajor, lockMinor, inode] = match
    const same =
      Number.parseInt(lockMajor!, 16) === major && Number.parseInt(lockMinor!, 16) === minor && Number(inode) === ino
    // An open file description lock, QEMU's kind, has no process: the kernel shows -1.
    if (same) return {how: `is locked by ${pid === '-1' ? 'a process' : `process ${pid}`}`, info: {pid: Number(pid)}}
  }
  return undefined
}

/** The device, its partitions, and the disk it is a partition of, as `major:minor`. */
async function relatedDevices({major, minor}: DeviceNumber): Promise<string[]> {
  const own = `${major}:${minor}`
  const directory = await realpath(`/sys/dev/block/${own}`).catch(() => undefined)
  if (directory === undefined) return [own]
  const entries = await names(directory)
  const partitions = await Promise.all(
    entries.map(async name => ((await text(`${directory}/${name}/partition`)) ? text(`${directory}/${name}/dev`) : '')),
  )
  const whole = entries.includes('partition') ? await text(`${directory}/../dev`) : ''
  return [own, ...partitions, whole].map(number => number.trim()).filter(number => number !== '')
}

async function mountsByDevice(): Promise<Map<string, string>> {
  const mounts = new Map<string, string>()
  for (const line of (await text('/proc/self/mountinfo')).split('\n')) {
    const [left, right] = line.split(' - ')
    const fields = left?.split(' ') ?? []
    const mountPoint = unescapeOctal(fields[4] ?? '')
    if (fields[2]) mounts.set(fields[2], mountPoint)
    // btrfs mounts carry an anonymous device number; their source column names the real device.
    const source = unescapeOctal(right?.split(' ')[1] ?? '')
    const number = source.startsWith('/dev/') ? await numberOf(source) : undefined
    if (number) mounts.set(number, mountPoint)
  }
  return mounts
}

async function swapsByDevice(): Promise<Set<string>> {
  const numbers = await Promise.all((await swapPaths()).map(numberOf))
  return new Set(numbers.filter(number => number !== undefined))
}

async function numberOf(path: string): Promise<string | undefined> {
  const stats = await stat(path).catch(() => undefined)
  if (!stats?.isBlockDevice()) return undefined
  const {major, minor} = deviceNumber(stats.rdev)
  return `${major}:${minor}`
}

function unescapeOctal(field: string): string {
  return field.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)))
}

function text(path: string): Promise<string> {
  return readFile(path, 'utf8').catch(() => '')
}

function names(directory: string): Promise<string[]> {
  return readdir(directory).catch(() => [])
}
