import {readdir, rmdir, unlink} from 'node:fs/promises'
import {join} from 'node:path'
import {ignoreErrno, StorageError} from '../errors.js'
import {run} from '../exec.js'
import {type MappedDevice, mappedDevices, mappedName} from './device-mapper.js'
import {type LvmSystem, writeLvmSystemDirectory} from './lvm-config.js'
import type {ScannableOptions} from './lvm-devices.js'
import {groupFields, groupTag, inBytes, readGroup, readVolume, type VolumeGroup, volumeFields} from './lvm-facts.js'
import type {LvmRow} from './lvm-report.js'
import {LvmShell} from './lvm-shell.js'

export interface DeletedGroup {
  group: string
  /** The thin pool that was made with it. */
  thinPool?: string
  /** For LVM's configuration. */
  systemDirectory: string
  /** Which devices LVM may look at. */
  scan?: ScannableOptions
}

export type Lvm = (...args: string[]) => Promise<LvmRow[]>

/**
 * Takes a volume group away that `pool create` has made of devices: its thin pool, the group, and LVM's labels on the
 * devices. A group that was there before stays as it is. Safe to repeat: the change of its tag is the commit point.
 * @returns `removed`; `kept`: not made by us; `absent`: there is none
 * @throws POOL_IN_USE (a volume is in it, whoever made it; in one that stays: a volume of ours), POOL_UNUSABLE (LVM
 * refused)
 */
export async function deleteGroup({
  group,
  thinPool,
  systemDirectory,
  scan,
}: DeletedGroup): Promise<'removed' | 'kept' | 'absent'> {
  const system = await writeLvmSystemDirectory({...scan, directory: systemDirectory})
  const shell = new LvmShell({system})
  const lvm: Lvm = async (...args) => (await shell.run(args)).rows
  try {
    const found = (await lvm('vgs', ...inBytes, '-o', groupFields)).map(readGroup).find(({name}) => name === group)
    if (found?.role === undefined) {
      if (found) await refuseOurs(lvm, group)
      return found ? 'kept' : 'absent'
    }
    if (found.role === 'made') {
      await refuseVolumes(lvm, found, thinPool)
      await lvm('vgchange', '--addtag', groupTag('deleted'), '--deltag', groupTag('made'), group)
    }
    await removeGroup(lvm, found, {thinPool, system})
    return 'removed'
  } catch (error) {
    if (!(error instanceof StorageError) || error.code !== 'COMMAND_FAILED') throw error
    throw new StorageError('POOL_UNUSABLE', `LVM refused: ${error.message}`, {
      op: 'pool.delete',
      info: {group, ...error.info},
      cause: error,
    })
  } finally {
    await shell.close()
  }
}

/** One that is still being wiped would never be, once the pool is forgotten. */
async function refuseOurs(lvm: Lvm, group: string): Promise<void> {
  const volumes = (await lvm('lvs', ...inBytes, '-o', volumeFields, group)).map(readVolume)
  const ours = volumes.filter(({role}) => role !== undefined).map(({name}) => name)
  if (ours.length > 0) throw inUse(group, ours)
}

/**
 * Removes a group in which nothing is but a thin pool without volumes, whole or half made. No command that removes
 * answers LVM's questions: where somebody has made a volume meanwhile, LVM asks, nobody answers, and it stays.
 * @throws POOL_IN_USE, COMMAND_FAILED
 */
export async function removeGroup(
  lvm: Lvm,
  group: Pick<VolumeGroup, 'name' | 'uuid' | 'role'>,
  {thinPool, system}: {thinPool: string | undefined; system: LvmSystem},
): Promise<void> {
  const {name} = group
  const parts = await refuseVolumes(lvm, group, thinPool)
  const devices = await lvm('pvs', '-o', 'pv_name,vg_name')
  await deactivate(lvm, group, parts)
  const unanswered = async (command: string, ...args: string[]) => {
    system.refresh()
    const env = {LVM_SYSTEM_DIR: system.directory, LVM_SUPPRESS_FD_WARNINGS: '1'}
    await run('lvm', [command, ...args], {env, timeoutMs: 60_000})
  }
  // What is hidden goes with its pool, and a spare copy of metadata with the group.
  for (const part of parts) if (!part.hidden) await unanswered('lvremove', `${name}/${part.name}`)
  await unanswered('vgremove', name)
  for (const {pv_name, vg_name} of devices) if (vg_name === name) await lvm('pvremove', pv_name!)
}

interface Part {
  name: string
  uuid: string
  isThinPool: boolean
  /** LVM writes the names of such volumes in brackets. */
  hidden: boolean
}

/** The parts of the thin pool, itself first. @throws POOL_IN_USE where the group has anything else */
async function refuseVolumes(
  lvm: Lvm,
  {name, role}: Pick<VolumeGroup, 'name' | 'role'>,
  thinPool: string | undefined,
): Promise<Part[]> {
  const rows = await lvm('lvs', '-a', '-o', 'lv_name,lv_uuid,lv_layout', name)
  const volumes = rows.map(({lv_name, lv_uuid, lv_layout}) => ({
    name: lv_name!.replace(/^\[(.*)\]$/, '$1'),
    uuid: lv_uuid!,
    isThinPool: lv_layout === 'thin,pool',
    hidden: lv_name!.startsWith('['),
  }))
  const others = volumes.filter(volume => !isPart(volume, {thinPool, role}))
  if (others.length > 0) {
    throw inUse(
      name,
      others.map(other => other.name),
    )
  }
  return volumes.sort((a, b) => Number(a.hidden) - Number(b.hidden))
}

/** What a thin pool consists of, and what a killed lvcreate leaves of one. */
function isPart(
  {name, hidden, isThinPool}: Part,
  {thinPool, role}: {thinPool: string | undefined; role: VolumeGroup['role']},
): boolean {
  if (hidden) return [`${thinPool}_tdata`, `${thinPool}_tmeta`].includes(name) || /^lvol\d+_pmspare$/.test(name)
  if (name === thinPool) return isThinPool || role === 'making'
  // What becomes the spare copy of metadata has LVM's default name while it is zeroed.
  return role === 'making' && /^lvol\d+$/.test(name)
}

/**
 * A killed lvcreate may have left parts of a pool active whose pool is not: each is deactivated by its own name then. It
 * is LVM that does it: a device that dmsetup removes leaves its link behind.
 */
async function deactivate(lvm: Lvm, {name, uuid}: Pick<VolumeGroup, 'name' | 'uuid'>, parts: Part[]): Promise<void> {
  let devices = await mappedDevices()
  for (const part of parts) {
    const prefix = `LVM-${uuid}${part.uuid}`.replaceAll('-', '')
    if (!devices.some(device => device.uuid.replaceAll('-', '').startsWith(prefix))) continue
    await lvm('lvchange', '--activate', 'n', `${name}/${part.name}`)
    devices = await mappedDevices()
  }
  await removeStaleNodes(name, devices)
}

/**
 * Removes the links and nodes that a group has in /dev of volumes without a device. LVM, killed, leaves those of a volume
 * that its metadata no longer has; nothing of LVM takes them away later, and vgcreate refuses a name of which there is a
 * directory in /dev. Where a udevd runs there are none: it removes them.
 */
async function removeStaleNodes(group: string, devices: readonly MappedDevice[]): Promise<void> {
  const directory = join('/dev', group)
  const links = (await readdir(directory, {withFileTypes: true}).catch(ignoreErrno('ENOENT'))) ?? []
  const mapped = new Set(devices.map(({name}) => name))
  for (const link of links) {
    const name = mappedName(group, link.name)
    if (!link.isSymbolicLink() || mapped.has(name)) continue
    await unlink(join(directory, link.name))
    await unlink(join('/dev/mapper', name)).catch(ignoreErrno('ENOENT'))
  }
  await rmdir(directory).catch(ignoreErrno('ENOENT', 'ENOTEMPTY'))
}

function inUse(group: string, volumes: string[]): StorageError {
  return new StorageError('POOL_IN_USE', `The group ${group} has volumes: ${volumes.join(', ')}`, {
    op: 'pool.delete',
    info: {group, volumes},
  })
}
