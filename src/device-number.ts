import {readdir, readFile} from 'node:fs/promises'

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

/** The number as sysfs and /proc write it. */
export function formatDeviceNumber(device: number): string {
  const {major, minor} = deviceNumber(device)
  return `${major}:${minor}`
}

/** A file of sysfs or procfs; empty where there is none, or where it cannot be read. */
export function attributeText(path: string): Promise<string> {
  return readFile(path, 'utf8').catch(() => '')
}

/** The entries of a directory of sysfs or procfs; none where there is no such directory. */
export function entriesOf(directory: string): Promise<string[]> {
  return readdir(directory).catch(() => [])
}
