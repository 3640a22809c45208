import {lstatSync, readdirSync, readFileSync, readlinkSync, realpathSync} from 'node:fs'
import {basename, dirname, join} from 'node:path'

export interface ScannableOptions {
  /** IQNs of targets on whose disks pools may lie: a SAN, never what is exported to guests. */
  sanTargets?: readonly string[]
  /** Paths of block devices that guests have, asked for at each look: imported volumes. */
  guestDevices?: () => readonly string[]
  /** Default /sys. */
  sysfs?: string
}

/** What LVM may look at. */
export interface Scannable {
  /** Sorted. */
  paths: string[]
  /** How many of them are disks that turn, or lie on such. */
  rotational: number
}

interface Known {
  inode: number
  scannable: boolean
  rotational: boolean
}

/**
 * Which block devices LVM may look at, from sysfs alone: all but disks of iSCSI sessions, logical volumes, imported
 * devices, and what lies on those. They hold what guests write, LVM's labels included, and a disk whose target is gone
 * answers nobody. Nothing is opened, so a dead disk holds nothing up.
 */
export class ScannableDevices {
  readonly #sanTargets: ReadonlySet<string>
  readonly #guestDevices: () => readonly string[]
  readonly #sysfs: string
  #guests = new Set<string>()
  readonly #known = new Map<string, Known>()
  /** The last answer, and the number of the kernel's last event before it. */
  #last: {event: string; found: Scannable} | undefined

  constructor({sanTargets = [], guestDevices = () => [], sysfs = '/sys'}: ScannableOptions = {}) {
    this.#sanTargets = new Set(sanTargets)
    this.#guestDevices = guestDevices
    this.#sysfs = sysfs
  }

  /**
   * Synchronous, since it comes before each command: one read where nothing has changed, else some microseconds for each
   * device.
   */
  look(): Scannable {
    // Each device that comes, goes or gets another table is an event, and the number of the last one is read before the
    // look (lib/kobject_uevent.c).
    const event = this.#read('kernel/uevent_seqnum')
    const guests = new Set(this.#guestDevices().map(nameOf))
    const sameGuests = guests.size === this.#guests.size && [...guests].every(name => this.#guests.has(name))
    if (sameGuests && this.#last !== undefined && this.#last.event === event) return this.#last.found
    const names = readdirSync(join(this.#sysfs, 'class/block')).sort()
    const there = new Set(names)
    for (const name of this.#known.keys()) if (!sameGuests || !there.has(name)) this.#known.delete(name)
    this.#guests = guests
    // The kernel has `!` where a device's name has `/` (Documentation/ABI/stable/sysfs-block).
    const scannable = names.filter(name => this.#isScannable(name) === true)
    const found = {
      paths: scannable.map(name => `/dev/${name.replaceAll('!', '/')}`),
      rotational: scannable.filter(name => this.#known.get(name)?.rotational).length,
    }
    this.#last = event === undefined ? undefined : {event, found}
    return found
  }

  /** Undefined: not known yet. Names come again, for other devices; the inode of an object in sysfs does not. */
  #isScannable(name: string): boolean | undefined {
    try {
      const inode = lstatSync(this.#path(name)).ino
      const known = this.#known.get(name)
      if (known?.inode === inode) return known.scannable
      const scannable = this.#examine(name)
      if (scannable !== undefined) this.#known.set(name, {inode, scannable, rotational: this.#isRotational(name)})
      return scannable
    } catch {
      // It went while this looked.
      return undefined
    }
  }

  /** A device of device-mapper or an array that lies on nothing yet may become anything. */
  #examine(name: string): boolean | undefined {
    if (this.#guests.has(name)) return false
    const isMap = name.startsWith('dm-')
    if (isMap && this.#readOf(name, 'dm/uuid')?.startsWith('LVM-')) return false
    const place = readlinkSync(this.#path(name))
    // drivers/scsi/scsi_transport_iscsi.c: a disk's place in the tree of devices has its session.
    const session = /\/(session\d+)\//.exec(place)?.[1]
    if (session !== undefined) return this.#sanTargets.has(this.#targetName(session))
    if (this.#readOf(name, 'partition') !== undefined) return this.#isScannable(basename(dirname(place)))
    const below = this.#below(name).map(one => this.#isScannable(one))
    if (below.includes(false)) return false
    if (below.includes(undefined) || (below.length === 0 && (isMap || name.startsWith('md')))) return undefined
    return true
  }

  /** A partition's queue is that of the directory above: its disk's (Documentation/ABI/stable/sysfs-block). */
  #isRotational(name: string): boolean {
    const rotational = this.#readOf(name, 'queue/rotational') ?? this.#read(`class/block/${name}/../queue/rotational`)
    return rotational === '1'
  }

  #below(name: string): string[] {
    try {
      return readdirSync(this.#path(name, 'slaves'))
    } catch {
      return []
    }
  }

  #targetName(session: string): string {
    return readFileSync(join(this.#sysfs, 'class/iscsi_session', session, 'targetname'), 'utf8').trim()
  }

  #readOf(name: string, attribute: string): string | undefined {
    return this.#read(join('class/block', name, attribute))
  }

  #read(path: string): string | undefined {
    try {
      // Not by join(), which would take `..` for the directory that has the link.
      return readFileSync(`${this.#sysfs}/${path}`, 'utf8').trim()
    } catch {
      return undefined
    }
  }

  #path(name: string, attribute = ''): string {
    return join(this.#sysfs, 'class/block', name, attribute)
  }
}

/** The kernel's name of a device; any other for what is not there. */
function nameOf(path: string): string {
  try {
    return realpathSync(path).slice('/dev/'.length).replaceAll('/', '!')
  } catch {
    return ''
  }
}

/** `devices/filter` of lvm.conf(5): these and no others. A device passes where one of its names does. */
export function lvmFilter(devices: readonly string[]): string {
  // LVM's expressions know no class for "any of these letters" but brackets, which take every other letter literally.
  const literal = (path: string) => path.replaceAll(/[^A-Za-z0-9/_-]/g, '[$&]')
  return `[ ${[...devices.map(path => `"a|^${literal(path)}$|"`), '"r|.*|"'].join(', ')} ]`
}
