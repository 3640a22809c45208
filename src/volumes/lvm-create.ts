import {realpath, stat} from 'node:fs/promises'
import {type ClaimedDevice, claimEmptyDevice} from '../device-claim.js'
import {StorageError} from '../errors.js'
import {formatSize} from '../size.js'
import {type LvmSystem, writeLvmSystemDirectory} from './lvm-config.js'
import {type Lvm, removeGroup} from './lvm-delete.js'
import type {ScannableOptions} from './lvm-devices.js'
import {deviceName, groupFields, groupTag, inBytes, readGroup, type VolumeGroup} from './lvm-facts.js'
import {checkLvmName} from './lvm-grammar.js'
import {LvmShell} from './lvm-shell.js'
import {checkBackingPath} from './path.js'

export interface GroupSpec {
  group: string
  /** Empty where the group exists: it is taken as it is, and may get a thin pool. */
  devices: readonly string[]
  /** Make a thin pool of this name in it. */
  thinPool?: string
  /** Bytes of the thin pool; default: nine tenths of what is free. */
  thinBytes?: number
  /** For LVM's configuration. */
  systemDirectory: string
  /** Which devices LVM may look at: src/volumes/lvm-devices.ts. */
  scan?: ScannableOptions
}

/** The thin pool that `pool create --thin` makes. */
export const defaultThinPool = 'thin'

/**
 * The area on each device that holds the group's metadata: two copies, so that half of it is what 10,000 volumes have
 * (volumeMetadataBytes in lvm.ts). LVM's default of 1 MiB is full at some 1,000. It cannot be made larger later.
 */
const metadataArea = '16m'

/** Left for the thin pool's metadata, its spare copy and its growth. */
const thinShare = 0.9

/**
 * Makes a volume group of devices that are empty and that nobody has, and a thin pool in it where one is asked for. All
 * devices are looked at and claimed before the first is written to; what was made is taken back where a later part fails.
 * Where the process was killed, the same call begins anew with what it had made, which a tag tells (GroupRole).
 * @throws DEVICE_IN_USE, VOLUME_EXISTS (there is such a group), POOL_UNUSABLE (LVM refused), POOL_FULL, NAME_INVALID
 */
export async function createGroup({
  group,
  devices,
  thinPool,
  thinBytes,
  systemDirectory,
  scan,
}: GroupSpec): Promise<VolumeGroup> {
  checkLvmName(group, 'volume group')
  if (thinPool !== undefined) checkLvmName(thinPool, 'thin pool')
  const system = await writeLvmSystemDirectory({...scan, directory: systemDirectory})
  const shell = new LvmShell({system})
  const lvm: Lvm = async (...args) => (await shell.run(args)).rows
  const groups = async () => (await lvm('vgs', ...inBytes, '-o', groupFields)).map(readGroup)
  try {
    let existing = (await groups()).find(({name}) => name === group)
    if (existing?.role === 'making' && devices.length > 0 && (await isMadeOf(lvm, group, devices))) {
      // A daemon that was killed has left it half made. Nothing is in it yet, so it is made anew.
      await removeGroup(lvm, existing, {thinPool: thinPool ?? defaultThinPool, system})
      existing = undefined
    }
    if (existing?.unfit) {
      throw new StorageError('POOL_UNUSABLE', `The volume group ${group} cannot be a pool: ${existing.unfit}`, {
        op: 'pool.create',
        info: {group},
      })
    }
    // One that we have made of these very devices, and of which no record was kept, is taken as it is too.
    const ours = existing?.role === 'made' && (await isMadeOf(lvm, group, devices))
    if (existing && devices.length > 0 && !ours) {
      throw new StorageError('VOLUME_EXISTS', `There is a volume group ${group} already: it is not changed`, {
        op: 'pool.create',
        info: {group},
      })
    }
    if (!existing && devices.length === 0) {
      throw new StorageError('NOT_FOUND', `There is no volume group ${group}: name the devices to make it of`, {
        op: 'pool.create',
        info: {group},
      })
    }
    if (existing) {
      await makeThinPool(lvm, existing, {thinPool, thinBytes})
    } else {
      const paths = await examine(devices, system)
      try {
        await lvm('vgcreate', '--metadatasize', metadataArea, '--addtag', groupTag('making'), group, ...paths)
        const made = (await groups()).find(({name}) => name === group)!
        await makeThinPool(lvm, made, {thinPool, thinBytes})
        await lvm('vgchange', '--addtag', groupTag('made'), '--deltag', groupTag('making'), group)
      } catch (error) {
        const left = (await groups().catch(() => [])).find(({name}) => name === group)
        if (left?.role === 'making') await removeGroup(lvm, left, {thinPool, system}).catch(() => undefined)
        // A vgcreate that has failed leaves its labels.
        if (!left) await lvm('pvremove', ...paths).catch(() => undefined)
        throw error
      }
    }
    return (await groups()).find(({name}) => name === group)!
  } catch (error) {
    if (!(error instanceof StorageError) || error.code !== 'COMMAND_FAILED') throw error
    throw new StorageError('POOL_UNUSABLE', `LVM refused: ${error.message}`, {
      op: 'pool.create',
      info: {group, ...error.info},
      cause: error,
    })
  } finally {
    await shell.close()
  }
}

async function numberOf(device: string): Promise<string> {
  const stats = await stat(device).catch(() => undefined)
  return stats?.isBlockDevice() ? deviceName(stats.rdev) : ''
}

async function isMadeOf(lvm: Lvm, group: string, devices: readonly string[]): Promise<boolean> {
  const numbers = new Set(await Promise.all(devices.map(numberOf)))
  const volumes = await lvm('pvs', '-o', 'pv_major,pv_minor,vg_name')
  const its = volumes.filter(({vg_name}) => vg_name === group)
  return its.length === numbers.size && its.every(row => numbers.has(`${row.pv_major}:${row.pv_minor}`))
}

/**
 * All devices are claimed at once, then given back for LVM, which claims them itself: where somebody has mounted one in
 * between, LVM refuses.
 */
async function examine(devices: readonly string[], {isScannable}: LvmSystem): Promise<string[]> {
  const claimed: ClaimedDevice[] = []
  try {
    for (const device of devices) {
      // Before it is opened: a disk whose target is gone would not come back from that.
      const path = await realpath(device).catch(() => undefined)
      const isBlockDevice = path !== undefined && (await stat(path)).isBlockDevice()
      if (isBlockDevice && !isScannable(path)) throw guestsDevice(path)
    }
    for (const device of devices) claimed.push(await claimEmptyDevice(checkBackingPath(device), {op: 'pool.create'}))
    return claimed.map(({path}) => path)
  } finally {
    for (const {handle} of claimed) await handle.close()
  }
}

function guestsDevice(path: string): StorageError {
  return new StorageError(
    'DEVICE_IN_USE',
    `${path} cannot be taken: it is a disk of an iSCSI session, a logical volume or an imported device, or lies on one, and guests write there. Where it is a SAN's, name its target in volumes.sanTargets`,
    {op: 'pool.create', info: {path}},
  )
}

async function makeThinPool(
  lvm: Lvm,
  {name, freeBytes, extentBytes}: VolumeGroup,
  {thinPool, thinBytes}: Pick<GroupSpec, 'thinPool' | 'thinBytes'>,
): Promise<void> {
  if (thinPool === undefined) return
  const volumes = await lvm('lvs', '-o', 'lv_name,lv_layout', name)
  const there = volumes.find(({lv_name}) => lv_name === thinPool)
  if (there?.lv_layout === 'thin,pool') return
  if (there) {
    throw new StorageError('VOLUME_EXISTS', `${name}/${thinPool} exists and is no thin pool`, {
      op: 'pool.create',
      info: {group: name, thinPool},
    })
  }
  const wanted = thinBytes ?? freeBytes * thinShare
  const sizeBytes = Math.floor(wanted / extentBytes) * extentBytes
  if (sizeBytes <= 0 || sizeBytes > freeBytes) {
    throw new StorageError(
      'POOL_FULL',
      `${name} has ${formatSize(freeBytes)} free: no thin pool of ${formatSize(wanted)} fits`,
      {
        op: 'pool.create',
        info: {group: name, freeBytes, wantedBytes: wanted},
      },
    )
  }
  // A pool without space fails writes at once: by default it holds them for a minute, and a target's threads with them.
  await lvm('lvcreate', '--type', 'thin-pool', '--size', `${sizeBytes}b`, '--name', thinPool, name)
  await lvm('lvchange', '--errorwhenfull', 'y', `${name}/${thinPool}`)
}
