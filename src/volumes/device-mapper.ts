import {existsSync} from 'node:fs'
import {run} from '../exec.js'

/** A device of device-mapper. */
export interface MappedDevice {
  /** `VG-LV`, in which each `-` of a name is written twice. */
  name: string
  /** `LVM-`, the group's and the volume's UUID without their dashes, and a suffix for a layer below a volume. */
  uuid: string
  suspended: boolean
  /** `253:7` */
  number: string
}

/** A logical volume as the metadata of its group has it. */
export interface KnownVolume {
  name: string
  uuid: string
}

/**
 * All devices of device-mapper (dmsetup(8)). Not by sysfs: a device that has no table yet, as a killed command leaves it,
 * is not there since Linux 5.15 (drivers/md/dm.c, dm_setup_md_queue), and LVM calls its volume active all the same.
 */
export async function mappedDevices(): Promise<MappedDevice[]> {
  // dmsetup fails where the kernel has no device-mapper.
  if (!existsSync('/sys/class/misc/device-mapper')) return []
  const args = ['info', '--columns', '--noheadings', '--separator', '\t', '-o', 'name,uuid,suspended,devno']
  const {stdout} = await run('dmsetup', args, {timeoutMs: 30_000})
  return stdout.split('\n').flatMap(line => {
    // Without devices it says so in words.
    const [name, uuid, suspended, number] = line.trim().split('\t')
    return number === undefined ? [] : {name: name!, uuid: uuid!, suspended: suspended === 'Suspended', number}
  })
}

/** The name that device-mapper has for a volume of a group. */
export function mappedName(group: string, volume: string): string {
  return [group, volume].map(name => name.replaceAll('-', '--')).join('-')
}

/**
 * Devices that a killed LVM command has left behind: of this group by UUID, of no volume that the metadata knows, and
 * with a name that only our volumes have. Those of others are theirs to clear up. Layers come after what lies on them.
 */
export function orphanedDevices(
  devices: readonly MappedDevice[],
  {
    group,
    groupUuid,
    known,
    isOurs,
  }: {group: string; groupUuid: string; known: readonly KnownVolume[]; isOurs: (name: string) => boolean},
): MappedDevice[] {
  const prefix = `LVM-${compact(groupUuid)}`
  const ids = new Set(known.map(({uuid}) => compact(uuid)))
  const namePrefix = mappedName(group, '')
  return devices
    .filter(({name, uuid}) => {
      if (!uuid.startsWith(prefix) || ids.has(uuid.slice(prefix.length, prefix.length + 32))) return false
      if (!name.startsWith(namePrefix)) return false
      // `ID-real` and `ID-cow` are layers of the volume ID.
      const [volume] = name.slice(namePrefix.length).split(/(?<!-)-(?!-)/)
      return isOurs(volume!.replaceAll('--', '-'))
    })
    .sort((a, b) => layer(a) - layer(b))
}

/** The volumes of the group, by name, that have a suspended device: all I/O to them waits. */
export function suspendedVolumes(
  devices: readonly MappedDevice[],
  {groupUuid, known}: {groupUuid: string; known: readonly KnownVolume[]},
): string[] {
  const prefix = `LVM-${compact(groupUuid)}`
  const names = new Map(known.map(({name, uuid}) => [compact(uuid), name]))
  const found = devices.flatMap(({uuid, suspended}) => {
    if (!suspended || !uuid.startsWith(prefix)) return []
    return names.get(uuid.slice(prefix.length, prefix.length + 32)) ?? []
  })
  return [...new Set(found)]
}

function compact(uuid: string): string {
  return uuid.replaceAll('-', '')
}

/** 0 for a volume, 1 for a layer below one. */
function layer({uuid}: MappedDevice): number {
  return /^LVM-.{64}-/.test(uuid) ? 1 : 0
}
