import {constants} from 'node:fs'
import {type FileHandle, open, readdir, readFile, realpath, stat} from 'node:fs/promises'
import {deviceNumber} from './device-number.js'
import {blockDeviceUse} from './device-use.js'
import {StorageError} from './errors.js'
import {signatureOf} from './signatures.js'

/** A block device that is empty and that nobody else can claim while `handle` is open. */
export interface ClaimedDevice {
  /** Without symbolic links. */
  path: string
  sizeBytes: number
  handle: FileHandle
}

export interface ClaimOptions {
  /** Who asks, for the error: `pool.create`. */
  op: string
}

/**
 * Makes sure that a block device may be overwritten, and claims it: a block device, not read-only, without mount, swap,
 * holder, partition or any signature that libblkid knows, and nobody else has it open exclusively. The caller closes
 * `handle`, which gives the claim back. @throws DEVICE_IN_USE, UNSUPPORTED, VOLUME_MISSING
 */
export async function claimEmptyDevice(given: string, {op}: ClaimOptions): Promise<ClaimedDevice> {
  const inUse = (path: string, how: string, info: Record<string, unknown>, cause?: unknown) =>
    new StorageError('DEVICE_IN_USE', `${path} cannot be taken: it ${how}`, {op, info: {path, ...info}, cause})
  const path = await realpath(given).catch(cause => {
    throw new StorageError('VOLUME_MISSING', `${given} cannot be reached: ${(cause as Error).message}`, {
      info: {path: given},
      cause,
    })
  })
  const handle = await open(path, constants.O_RDWR | constants.O_EXCL | constants.O_NONBLOCK).catch(async cause => {
    const {code, message} = cause as NodeJS.ErrnoException
    if (code === 'EBUSY') {
      const use = await blockDeviceUse(path, deviceNumber((await stat(path)).rdev))
      throw inUse(path, use?.how ?? 'is claimed by another part of the kernel', use?.info ?? {}, cause)
    }
    if (code === 'EROFS' || code === 'EACCES') throw inUse(path, 'is read-only', {}, cause)
    throw new StorageError('VOLUME_MISSING', `${path} cannot be opened: ${message}`, {op, info: {path}, cause})
  })
  try {
    const stats = await handle.stat()
    if (!stats.isBlockDevice()) {
      throw new StorageError('UNSUPPORTED', `${path} is no block device`, {info: {path}})
    }
    const number = deviceNumber(stats.rdev)
    const use = await blockDeviceUse(path, number)
    if (use) throw inUse(path, use.how, use.info)
    const directory = await realpath(`/sys/dev/block/${number.major}:${number.minor}`)
    // The kernel opens some read-only devices for writing all the same, loop devices among them, and fails the writes.
    if ((await readFile(`${directory}/ro`, 'utf8')).trim() !== '0') throw inUse(path, 'is read-only', {})
    const partitions = await partitionsOf(directory)
    if (partitions.length > 0) throw inUse(path, `has partitions: ${partitions.join(', ')}`, {partitions})
    const signature = await signatureOf(handle.fd)
    if (signature) {
      throw inUse(
        path,
        `holds ${signature.type} (${signature.usage}). If that may go for good, remove it first: wipefs --all ${path}`,
        {signature},
      )
    }
    // In sectors of 512 bytes, whatever the logical block size (block/blk.h, SECTOR_SHIFT).
    const sizeBytes = Number(await readFile(`${directory}/size`, 'utf8')) * 512
    return {path, sizeBytes, handle}
  } catch (error) {
    await handle.close()
    throw error
  }
}

/** The kernel's partitions of a disk, whatever is left of the table on it. */
async function partitionsOf(directory: string): Promise<string[]> {
  const entries = await readdir(directory)
  const isPartition = (name: string) =>
    readFile(`${directory}/${name}/partition`, 'utf8').then(
      () => true,
      () => false,
    )
  const are = await Promise.all(entries.map(isPartition))
  return entries.filter((_, index) => are[index])
}
