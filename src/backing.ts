import type {Stats} from 'node:fs'
import {realpath, stat} from 'node:fs/promises'
import {basename, dirname} from 'node:path'
import {attributeText, entriesOf, formatDeviceNumber} from './device-number.js'
import {nameKey} from './iqn.js'
import {sectorBytes} from './size.js'

/** A run of bytes of one file, device or logical unit. `end` is the first byte behind it. */
export interface Extent {
  /** `file DEV:INODE`, `device MAJOR:MINOR`, `wwid …`, or `lun IQN LUN`. */
  base: string
  start: number
  end: number
}

/** Where the bytes behind a path lie, whatever the path is called. */
export interface Backing {
  /** The bytes themselves. Each extent is the same bytes by another address, as a loop device and its file are. */
  same: Extent[]
  /** What the bytes lie on without being all of it: the disks under a logical volume, for example. */
  under: Extent[]
}

/** The file or device that a logical unit of this node's own targets is made of. */
export type OwnLun = (iqn: string, lun: number) => string | undefined

/** Nested deeper than any real stack of devices: a unit of ours could lie on a session with itself. */
const deepest = 12

/** True where a write to one can change bytes of the other. */
export function overlap(one: Backing, other: Backing): boolean {
  return anyShared(one.same, other.same) || anyShared(one.same, other.under) || anyShared(other.same, one.under)
}

function anyShared(some: Extent[], others: Extent[]): boolean {
  return some.some(({base, start, end}) =>
    others.some(other => base === other.base && start < other.end && other.start < end),
  )
}

/**
 * Which bytes a file or block device is: by device and inode, by device number, and through loop devices, partitions,
 * device-mapper, md, the paths of a multipath device and sessions of the kernel's initiator (sysfs, `block/…`). Only what is
 * known to be the same is said to be: a network block device, for example, has a number and nothing else.
 * @param ownLun leads from a logical unit of this node's own targets to what it is made of
 */
export async function backingOf(path: string, stats: Stats, ownLun?: OwnLun): Promise<Backing> {
  return new Resolver(ownLun).ofStats(stats, path, 0)
}

/** The same for a path; undefined where nothing is there. */
export async function backingAt(path: string, ownLun?: OwnLun): Promise<Backing | undefined> {
  const stats = await stat(path).catch(() => undefined)
  return stats && backingOf(path, stats, ownLun)
}

/** The bytes of a logical unit, whoever logs in to it and at whichever portal: a target's name is unique (RFC 7143, 4.2.7). */
export async function backingOfLun(iqn: string, lun: number, ownLun?: OwnLun): Promise<Backing> {
  return new Resolver(ownLun).ofLun(iqn, lun, 0)
}

/** A SCSI device by its address, as libvirt names one that it hands on: `host:channel:target:lun`. */
export async function backingOfScsi(address: string, ownLun?: OwnLun): Promise<Backing | undefined> {
  const [device] = await entriesOf(`/sys/class/scsi_device/${address}/device/block`)
  const number = device && (await attributeText(`/sys/class/block/${device}/dev`)).trim()
  return number ? new Resolver(ownLun).ofDevice(number, 0) : undefined
}

/** Loop devices that are set up, with what they lead to. */
export async function loopDevices(): Promise<{device: string; number: string; backing: Backing}[]> {
  const found = await Promise.all(
    (await entriesOf('/sys/block'))
      .filter(name => /^loop\d+$/.test(name))
      .map(async name => {
        const number = (await attributeText(`/sys/block/${name}/dev`)).trim()
        // Only a loop device in use has the directory. To ask for a device that is not there costs more.
        const isBound = number !== '' && (await entriesOf(`/sys/block/${name}/loop`)).length > 0
        return isBound ? {device: `/dev/${name}`, number, backing: await new Resolver().ofDevice(number, 0)} : undefined
      }),
  )
  return found.filter(one => one !== undefined)
}

class Resolver {
  readonly #ownLun: OwnLun

  constructor(ownLun: OwnLun = () => undefined) {
    this.#ownLun = ownLun
  }

  async ofStats(stats: Stats, path: string, depth: number): Promise<Backing> {
    if (stats.isBlockDevice()) return this.ofDevice(formatDeviceNumber(stats.rdev), depth)
    if (stats.isFile()) return {same: [whole(`file ${formatDeviceNumber(stats.dev)} ${stats.ino}`)], under: []}
    return {same: [whole(`path ${path}`)], under: []}
  }

  async ofDevice(number: string, depth: number): Promise<Backing> {
    const own = {same: [whole(`device ${number}`)], under: []}
    const directory = await realpath(`/sys/dev/block/${number}`).catch(() => undefined)
    if (directory === undefined || depth > deepest) return own
    const entries = await entriesOf(directory)
    if (entries.includes('partition')) return this.#ofPartition(directory, own, depth)
    if (entries.includes('loop')) return joined([own, await this.#ofLoop(directory, depth)])
    const [disk, slaves] = await Promise.all([
      entries.includes('device') ? this.#ofDisk(directory, depth) : own,
      this.#slaves(directory, depth),
    ])
    const isMultipath = (await attributeText(`${directory}/dm/uuid`)).startsWith('mpath-')
    if (isMultipath) return joined([own, disk, ...slaves])
    return joined([own, disk, {same: [], under: slaves.flatMap(({same, under}) => [...same, ...under])}])
  }

  /** A logical unit at whichever portal, and what it is made of where the target is this node's own. */
  async ofLun(iqn: string, lun: number, depth: number): Promise<Backing> {
    const unit = {same: [whole(`lun ${nameKey(iqn)} ${lun}`)], under: []}
    const path = this.#ownLun(iqn, lun)
    const stats = path === undefined ? undefined : await stat(path).catch(() => undefined)
    if (!stats || depth > deepest) return unit
    return joined([unit, await this.ofStats(stats, path!, depth + 1)])
  }

  async #ofPartition(directory: string, own: Backing, depth: number): Promise<Backing> {
    const [start, size, parent] = await Promise.all(
      ['start', 'size', '../dev'].map(name => attributeText(`${directory}/${name}`)),
    )
    const disk = await this.ofDevice(parent!.trim(), depth + 1)
    // In sectors of 512 bytes, whatever the logical block size (block/blk.h, SECTOR_SHIFT).
    return joined([own, within(disk, Number(start) * sectorBytes, Number(size) * sectorBytes)])
  }

  async #ofLoop(directory: string, depth: number): Promise<Backing> {
    const [file, offset, limit] = await Promise.all(
      ['backing_file', 'offset', 'sizelimit'].map(name => attributeText(`${directory}/loop/${name}`)),
    )
    const path = file!.replace(/\n$/, '')
    const stats = await stat(path).catch(() => undefined)
    if (!stats) return {same: [], under: []}
    const length = Number(limit) > 0 ? Number(limit) : Number.POSITIVE_INFINITY
    return within(await this.ofStats(stats, path, depth + 1), Number(offset), length)
  }

  /** What a disk says of itself: two paths to one disk have two numbers and one WWID. */
  async #ofDisk(directory: string, depth: number): Promise<Backing> {
    const [device, ...wwids] = await Promise.all([
      realpath(`${directory}/device`).catch(() => ''),
      attributeText(`${directory}/device/wwid`),
      attributeText(`${directory}/wwid`),
    ])
    const same = wwids.map(one => one.trim().replace(/\s+/g, ' ')).filter(one => one !== '')
    const unit = await this.#ofSession(device, depth)
    return joined([{same: same.map(wwid => whole(`wwid ${wwid}`)), under: []}, unit])
  }

  /** `…/sessionN/targetH:C:T/H:C:T:L` is a disk of the kernel's own initiator (drivers/scsi/scsi_transport_iscsi.c). */
  async #ofSession(device: string, depth: number): Promise<Backing> {
    const session = /\/(session\d+)\//.exec(device)?.[1]
    const lun = Number(basename(device).split(':')[3])
    if (session === undefined || !Number.isInteger(lun)) return {same: [], under: []}
    const iqn = (await attributeText(`/sys/class/iscsi_session/${session}/targetname`)).trim()
    return iqn === '' ? {same: [], under: []} : this.ofLun(iqn, lun, depth)
  }

  async #slaves(directory: string, depth: number): Promise<Backing[]> {
    const names = await entriesOf(`${directory}/slaves`)
    return Promise.all(
      names.map(async name => {
        const number = (await attributeText(`${dirname(directory)}/${name}/dev`)).trim()
        const found = number === '' ? (await attributeText(`/sys/class/block/${name}/dev`)).trim() : number
        return found === '' ? {same: [], under: []} : this.ofDevice(found, depth + 1)
      }),
    )
  }
}

function whole(base: string): Extent {
  return {base, start: 0, end: Number.POSITIVE_INFINITY}
}

function within({same, under}: Backing, offset: number, length: number): Backing {
  const cut = ({base, start, end}: Extent): Extent => ({
    base,
    start: start + offset,
    end: Math.min(end, start + offset + length),
  })
  return {same: same.map(cut), under}
}

function joined(backings: Backing[]): Backing {
  return {same: backings.flatMap(({same}) => same), under: backings.flatMap(({under}) => under)}
}
