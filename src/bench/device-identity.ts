import type {Stats} from 'node:fs'
import {readFile, realpath} from 'node:fs/promises'
import {dirname} from 'node:path'
import {deviceNumber} from '../device-number.js'

/**
 * By what a person tells one block device or file from another: the serial number, with `-partN` for a partition, and for
 * device-mapper its uuid. Where there is none it is `MAJOR:MINOR`, and `inode:N` for a file. Reads sysfs.
 */
export async function identityOf(stats: Stats): Promise<string> {
  if (!stats.isBlockDevice()) return `inode:${stats.ino}`
  const {major, minor} = deviceNumber(stats.rdev)
  const number = `${major}:${minor}`
  const directory = await realpath(`/sys/dev/block/${number}`).catch(() => undefined)
  if (directory === undefined) return number
  const partition = await attribute(directory, 'partition')
  const serial = await serialOf(partition === '' ? directory : dirname(directory))
  if (serial === '') return number
  return partition === '' ? serial : `${serial}-part${partition}`
}

/** virtio-blk, NVMe, device-mapper and SCSI keep it in different places (Documentation/ABI in the kernel's source). */
async function serialOf(directory: string): Promise<string> {
  for (const name of ['serial', 'device/serial', 'dm/uuid']) {
    const value = await attribute(directory, name)
    if (value !== '') return value
  }
  // VPD page 0x80 (SPC-4, 7.8.15): four bytes of header with the length, then ASCII.
  const page = await readFile(`${directory}/device/vpd_pg80`).catch(() => Buffer.alloc(0))
  if (page.length < 4) return ''
  const text = page.toString('latin1', 4, 4 + page.readUInt16BE(2))
  return text.replaceAll('\0', ' ').trim()
}

function attribute(directory: string, name: string): Promise<string> {
  return readFile(`${directory}/${name}`, 'utf8').then(
    text => text.trim(),
    () => '',
  )
}
