import {constants, type Stats} from 'node:fs'
import {open, realpath, stat} from 'node:fs/promises'
import {backingOf, loopDevices, overlap} from './backing.js'
import {
  type DeviceNumber,
  deviceNumber,
  formatDeviceNumber,
  entriesOf as names,
  attributeText as text,
} from './device-number.js'

/** Who uses a file or a block device, as far as the kernel tells it cheaply. */
export interface Use {
  /** For a sentence: `is the backing file of /dev/loop3`. */
  how: string
  info: Record<string, unknown>
}

/**
 * Who uses a regular file: a loop device over it, whole or in part (sysfs, block/loopN/loop), swap (/proc/swaps), or
 * a process that holds a lock on it (/proc/locks, proc(5)); QEMU locks the images it has open. An open descriptor without a
 * lock is not seen: see `writerOf`.
 */
export async function fileUse(path: string, stats: Stats): Promise<Use | undefined> {
  const [loop, swap, lock] = await Promise.all([loopDeviceOver(path, stats), isSwap(stats), lockOf(stats)])
  if (loop) return {how: `is the backing file of ${loop}`, info: {loopDevice: loop}}
  if (swap) return {how: 'is swap space', info: {swap: path}}
  return lock
}

/**
 * Who uses a block device, its partitions, or the disk that it is a partition of: a mount (/proc/self/mountinfo), swap,
 * or a holder such as device-mapper or md (sysfs, block/…/holders). A loop device over it counts too.
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
  const loop = stats && (await loopDeviceOver(path, stats))
  return loop ? {how: `is under ${loop}`, info: {loopDevice: loop}} : undefined
}

/**
 * Who uses a file or block device in any way that can be seen, down to a process that has it open for writing and a target
 * of the kernel's that offers it. The kernel lets one holder open a block device with O_EXCL (open(2)), so a mount of another
 * namespace shows too. The look at all processes costs some milliseconds for each hundred of them.
 */
export async function anyUse(path: string, stats: Stats): Promise<Use | undefined> {
  if (!stats.isBlockDevice()) return (await fileUse(path, stats)) ?? (await writerOf(stats))
  const use = await blockDeviceUse(path, deviceNumber(stats.rdev))
  return use ?? (await exclusiveHolder(path)) ?? (await writerOf(stats))
}

async function exclusiveHolder(path: string): Promise<Use | undefined> {
  try {
    await (await open(path, constants.O_RDONLY | constants.O_EXCL | constants.O_NONBLOCK)).close()
    return undefined
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EBUSY') throw error
    return {how: 'is claimed by another part of the kernel', info: {}}
  }
}

/**
 * The process, this one apart, that has a file or block device open for writing, by /proc/PID/fd and fdinfo (proc(5)):
 * tgtd and QEMU claim nothing. Processes that this one may not look into are not seen: it is meant for root. What the kernel
 * itself offers, by LIO or IET, is in no process and counts too.
 */
export async function writerOf(stats: Stats): Promise<Use | undefined> {
  const target = await kernelTargetOf(stats)
  if (target) return target
  const pids = (await names('/proc')).filter(name => /^\d+$/.test(name) && Number(name) !== process.pid)
  return firstFound(pids, async pid => {
    if (!(await firstFound(await names(`/proc/${pid}/fd`), fd => isOpenForWriting(stats, {pid, fd})))) return undefined
    const command = (await text(`/proc/${pid}/comm`)).trim()
    return {how: `is open for writing in process ${pid} (${command})`, info: {pid: Number(pid), command}}
  })
}

async function isOpenForWriting(stats: Stats, {pid, fd}: {pid: string; fd: string}): Promise<true | undefined> {
  const opened = await stat(`/proc/${pid}/fd/${fd}`).catch(() => undefined)
  if (!opened || !isSame(opened, stats)) return undefined
  const flags = /^flags:\s*([0-7]+)$/m.exec(await text(`/proc/${pid}/fdinfo/${fd}`))?.[1] ?? '0'
  return (Number.parseInt(flags, 8) & (constants.O_WRONLY | constants.O_RDWR)) !== 0 || undefined
}

const looksAtOnce = 32

/**
 * What `look` finds first, in the order of `items`. Some are looked at at once: one look is a few system calls, and costs
 * less than the change of threads before and after it.
 */
async function firstFound<T, R>(
  items: readonly T[],
  look: (item: T) => Promise<R | undefined>,
): Promise<R | undefined> {
  for (let from = 0; from < items.length; from += looksAtOnce) {
    const found = await Promise.all(items.slice(from, from + looksAtOnce).map(look))
    const first = found.find(one => one !== undefined)
    if (first !== undefined) return first
  }
  return undefined
}

/** The same file, or the same device by whatever node. */
function isSame(one: Stats, other: Stats): boolean {
  if (one.isBlockDevice() && other.isBlockDevice()) return one.rdev === other.rdev
  return one.dev === other.dev && one.ino === other.ino
}

/** A loop device that shows any of these bytes: the same file by another hard link, or a part of the disk. */
async function loopDeviceOver(path: string, stats: Stats): Promise<string | undefined> {
  const loops = await loopDevices()
  if (loops.length === 0) return undefined
  const own = await backingOf(path, stats)
  // A loop device that this one is, or lies on, is no user of it.
  const isBelow = (number: string) => [...own.same, ...own.under].some(({base}) => base === `device ${number}`)
  return loops.find(({number, backing}) => !isBelow(number) && overlap(backing, own))?.device
}

/**
 * A target of this kernel that offers the file or device. LIO shows what a backstore was given (target_core_configfs.c:
 * `udev_path`, and `File: …` in a fileio's `info`), IET prints `path:…` for each volume.
 */
async function kernelTargetOf(stats: Stats): Promise<Use | undefined> {
  const core = '/sys/kernel/config/target/core'
  const hbas = (await names(core)).filter(name => /^(fileio|iblock|rd_mcp|pscsi)_\d+$/.test(name))
  for (const hba of hbas) {
    for (const name of await names(`${core}/${hba}`)) {
      const [device, info] = await Promise.all([
        text(`${core}/${hba}/${name}/udev_path`),
        text(`${core}/${hba}/${name}/info`),
      ])
      const paths = [device.trim(), /\bFile: (.+?)\s+Size: /.exec(info)?.[1] ?? '']
      if (await anyIs(paths, stats))
        return {how: `is offered by LIO as ${hba}/${name}`, info: {backstore: `${hba}/${name}`}}
    }
  }
  const paths = [...(await text('/proc/net/iet/volume')).matchAll(/ path:(.+)$/gm)].map(([, path]) => path!)
  return (await anyIs(paths, stats)) ? {how: 'is offered by IET', info: {}} : undefined
}

async function anyIs(paths: string[], stats: Stats): Promise<boolean> {
  for (const path of paths.filter(one => one !== '')) {
    const found = await stat(path).catch(() => undefined)
    if (found && isSame(found, stats)) return true
  }
  return false
}

/** The first column of /proc/swaps, with its octal escapes (seq_path in the kernel's fs/seq_file.c) undone. */
async function swapPaths(): Promise<string[]> {
  const lines = (await text('/proc/swaps')).split('\n').slice(1)
  return lines.map(line => unescapeOctal(/^(\S+)/.exec(line)?.[1] ?? '')).filter(path => path !== '')
}

async function isSwap(stats: Stats): Promise<boolean> {
  return anyIs(await swapPaths(), stats)
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
  return stats?.isBlockDevice() ? formatDeviceNumber(stats.rdev) : undefined
}

function unescapeOctal(field: string): string {
  return field.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)))
}
