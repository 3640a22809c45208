import {stat} from 'node:fs/promises'
import {deviceNumber} from '../device-number.js'
import {blockDeviceUse, type Use, writerOf} from '../device-use.js'
import type {KernelSession} from '../types.js'
import type {IscsiSysfs} from './iscsi-sysfs.js'

/** A device that multipathd has made, by its UUID: it takes paths without using what is on them. */
const multipathUuid = /^mpath-/

/** What multipathd has made of a disk, and what else lies on it. */
export async function holdersOf(sysfs: IscsiSysfs, device: string): Promise<{joined?: string; others: string[]}> {
  const holders = await sysfs.holders(device)
  const joined = holders.find(({uuid}) => multipathUuid.test(uuid))?.device
  return {joined, others: holders.flatMap(holder => (holder.device === joined ? [] : [holder.device]))}
}

/**
 * Who would lose a disk if it left the kernel: a mount, swap, another layer, or a process that has it or a partition of it
 * open for writing. What only other mount namespaces know is found by opening the disk exclusively, which a flush does.
 */
export async function diskUse(sysfs: IscsiSysfs, device: string): Promise<Use | undefined> {
  const {joined, others} = await holdersOf(sysfs, device)
  if (joined !== undefined && others.length === 0) return diskUse(sysfs, joined)
  const path = `/dev/${device}`
  const stats = await stat(path).catch(() => undefined)
  if (!stats?.isBlockDevice()) return undefined
  const use = await blockDeviceUse(path, deviceNumber(stats.rdev))
  if (use) return use
  for (const name of [device, ...(await sysfs.partitions(device))]) {
    const node = await stat(`/dev/${name}`).catch(() => undefined)
    const writer = node?.isBlockDevice() ? await writerOf(node) : undefined
    if (writer) return writer
  }
  return undefined
}

/** The first disk of a session that somebody uses. */
export async function sessionUse(
  sysfs: IscsiSysfs,
  {devices}: KernelSession,
): Promise<{device: string; how: string} | undefined> {
  for (const {device} of devices) {
    const use = await diskUse(sysfs, device)
    if (use) return {device, how: use.how}
  }
  return undefined
}
