import {deviceNumber} from '../device-number.js'
import type {VolumeId} from '../types.js'
import {isVolumeId} from './id.js'
import type {LvmRow} from './lvm-report.js'

/**
 * What a group is to us, which its tag alone says: `pool create` is at work on it, has made it, or `pool delete` is at
 * work. LVM changes tags as a whole: `making` and `deleted` hold nobody's data.
 */
export type GroupRole = 'making' | 'made' | 'deleted'

/** What LVM says of the volume group. */
export interface VolumeGroup {
  name: string
  /** Undefined: it is not ours. */
  role: GroupRole | undefined
  uuid: string
  sizeBytes: number
  freeBytes: number
  extentBytes: number
  /** Its smallest metadata area, which holds two copies of the metadata, and how much longer a copy may become. */
  metadataAreaBytes: number
  metadataAreaFreeBytes: number
  missingDevices: number
  /** Why nothing can be made in it; undefined where it can. */
  unfit: string | undefined
}

/** A thin pool's size and how full it is. */
export interface ThinPool {
  name: string
  sizeBytes: number
  metadataBytes: number
  dataPercent: number
  metadataPercent: number
  /** LVM's word where something is wrong with it (`lv_health_status`, lvs(8)); empty where not. */
  health: string
}

/** What a logical volume is to us, which its tags alone say. One change of tags moves it from one to the next. */
export type Role = 'id' | 'making' | 'deleted'

export interface LogicalVolume {
  name: string
  uuid: string
  sizeBytes: number
  /** Undefined: not ours. */
  role: Role | undefined
  id: VolumeId | undefined
  /** Which command made it. */
  made: string | undefined
  thin: boolean
  /** It has classic (copy-on-write) snapshots, which live on it. */
  hasSnapshots: boolean
  /** Its device, `253:7`; `-1:-1` where it is not active. */
  device: string
  /** Somebody has its device open. */
  isOpen: boolean
}

export const groupFields =
  'vg_name,vg_uuid,vg_tags,vg_size,vg_free,vg_extent_size,vg_mda_size,vg_mda_free,vg_missing_pv_count,vg_permissions,vg_exported,vg_shared,vg_clustered'
export const volumeFields =
  'lv_name,lv_uuid,lv_size,lv_tags,lv_layout,lv_role,lv_kernel_major,lv_kernel_minor,lv_device_open'
export const thinFields = 'lv_name,lv_size,lv_metadata_size,lv_layout,data_percent,metadata_percent,lv_health_status'
/** Sizes as bare numbers of bytes. */
export const inBytes = ['--units', 'b', '--nosuffix']

export function tag(role: Role | 'made', value: string): string {
  return `lunpath:${role}=${value}`
}

export function groupTag(role: GroupRole): string {
  return `lunpath:group=${role}`
}

/** Names of what is being made or removed: no volume of anybody's has such a name. */
export function hiddenName(role: Exclude<Role, 'id'>, id: VolumeId, random: string): string {
  return `lunpath-${role}-${id}-${random}`
}

/** The names that this driver gives, whatever the tags say. */
export function isOurName(name: string): boolean {
  return isVolumeId(name) || /^lunpath-(making|deleted)-[0-9a-f]{16}-[0-9a-f]{8}$/.test(name)
}

export function readGroup(row: LvmRow): VolumeGroup {
  const roles = (row.vg_tags ?? '')
    .split(',')
    .flatMap(text => /^lunpath:group=(making|made|deleted)$/.exec(text)?.[1] ?? [])
  // Two of them were not set by us.
  const role = roles.length === 1 ? (roles[0] as GroupRole) : undefined
  const unfit =
    row.vg_exported === 'exported'
      ? 'it is exported (vgimport gives it back)'
      : row.vg_permissions === 'read-only'
        ? 'it is read-only (vgchange --permission rw)'
        : row.vg_shared === 'shared' || row.vg_clustered === 'clustered'
          ? 'it is shared by several hosts, and a group of lunpath has one writer'
          : role === 'making'
            ? 'lunpath pool create was interrupted: run the same command again, or lunpath pool delete with the name of the group'
            : role === 'deleted'
              ? 'lunpath pool delete was interrupted: run it again'
              : undefined
  return {
    name: row.vg_name!,
    role,
    uuid: row.vg_uuid!,
    sizeBytes: Number(row.vg_size),
    freeBytes: Number(row.vg_free),
    extentBytes: Number(row.vg_extent_size),
    metadataAreaBytes: Number(row.vg_mda_size),
    metadataAreaFreeBytes: Number(row.vg_mda_free),
    missingDevices: Number(row.vg_missing_pv_count),
    unfit,
  }
}

export function readVolume(row: LvmRow): LogicalVolume {
  const tags = (row.lv_tags ?? '').split(',')
  const ours = tags.flatMap(text => /^lunpath:(id|making|deleted)=([0-9a-f]{16})$/.exec(text)?.slice(1, 3) ?? [])
  // Two of them were not set by us: such a volume is left alone.
  const [role, id] = ours.length === 2 ? ours : []
  const layout = (row.lv_layout ?? '').split(',')
  const roles = (row.lv_role ?? '').split(',')
  return {
    name: row.lv_name!,
    uuid: row.lv_uuid!,
    sizeBytes: Number(row.lv_size),
    role: role as Role | undefined,
    id,
    made: tags.map(text => /^lunpath:made=([0-9a-f]{8})$/.exec(text)?.[1]).find(value => value !== undefined),
    thin: layout.includes('thin') && layout.includes('sparse'),
    hasSnapshots: roles.includes('origin') && !roles.includes('thinorigin'),
    device: `${row.lv_kernel_major}:${row.lv_kernel_minor}`,
    isOpen: row.lv_device_open === 'open',
  }
}

export function readThinPool(row: LvmRow): ThinPool {
  return {
    name: row.lv_name!,
    sizeBytes: Number(row.lv_size),
    metadataBytes: Number(row.lv_metadata_size),
    dataPercent: Number(row.data_percent),
    metadataPercent: Number(row.metadata_percent),
    health: row.lv_health_status ?? '',
  }
}

/** `253:7` of a device as stat(2) gives it. */
export function deviceName(rdev: number): string {
  const {major, minor} = deviceNumber(rdev)
  return `${major}:${minor}`
}
