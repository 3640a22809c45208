import type {Stats} from 'node:fs'
import {lstat, readdir, readFile, realpath} from 'node:fs/promises'
import {dirname, join} from 'node:path'
import {deviceNumber} from '../device-number.js'
import {anyUse, type Use} from '../device-use.js'
import {StorageError} from '../errors.js'
import {imageFormatAt} from '../image-format.js'
import {sectorBytes} from '../size.js'
import type {Volume, VolumeId} from '../types.js'
import {poolMarker} from './file.js'
import {checkVolumeId} from './id.js'
import {checkBackingPath} from './path.js'

/** `Volume.driver` and `Volume.pool` of what was imported: no driver owns it. */
export const importedDriver = 'imported'

/**
 * Takes an existing regular file or block device as a volume: looked at, never changed. The volume's path has no
 * symbolic links, except that a block device gets a name of /dev/disk/by-id where udev gave it one, because sdX names
 * another disk after a reboot.
 * @throws NAME_INVALID (the path, or the id), VOLUME_MISSING, SIZE_INVALID, UNSUPPORTED (another kind of file),
 * VOLUME_EXISTS (a file of a pool), DEVICE_IN_USE (mounted, swap, a loop device's backing file, held by device-mapper or
 * md, claimed exclusively, or locked by a process)
 */
export async function openImported(path: string, id: VolumeId): Promise<Volume> {
  checkVolumeId(id, 'volume.import')
  checkBackingPath(path)
  const {real, stats} = await resolve(path)
  if (stats.isFile()) return importFile(real, stats, id)
  if (stats.isBlockDevice()) return importBlockDevice(real, stats, id)
  throw importError('UNSUPPORTED', real, 'is neither a regular file nor a block device')
}

/**
 * Takes what a target offers already as a volume: in use as it is, and looked at alone.
 * @throws VOLUME_MISSING, VOLUME_EXISTS (a file of a pool)
 */
export async function importOffered({
  id,
  path,
  kind,
  sizeBytes,
}: Pick<Volume, 'id' | 'path' | 'kind' | 'sizeBytes'>): Promise<Volume> {
  const {real, stats} = await resolve(path)
  if (stats.isFile() && (await isInPool(real))) {
    throw importError('VOLUME_EXISTS', path, 'belongs to a pool of lunpath already')
  }
  const allocation = kind === 'block' || stats.blocks * 512 >= sizeBytes ? 'preallocated' : 'sparse'
  return {...imported(id, path), kind, sizeBytes, allocation}
}

async function importFile(path: string, stats: Stats, id: VolumeId): Promise<Volume> {
  if (await isInPool(path)) throw importError('VOLUME_EXISTS', path, 'belongs to a pool of lunpath already')
  checkImportSize(path, stats.size)
  await checkFree(path, stats)
  const allocation = stats.blocks * 512 >= stats.size ? 'preallocated' : 'sparse'
  return {...imported(id, path), kind: 'file', sizeBytes: stats.size, allocation}
}

async function importBlockDevice(path: string, stats: Stats, id: VolumeId): Promise<Volume> {
  const number = deviceNumber(stats.rdev)
  // sysfs counts a device's size in sectors of 512 bytes, whatever its logical block size (block/blk.h, SECTOR_SHIFT).
  const sectors = await readFile(`/sys/dev/block/${number.major}:${number.minor}/size`, 'utf8').catch(() => '')
  const sizeBytes = Number(sectors) * sectorBytes
  checkImportSize(path, sizeBytes)
  await checkFree(path, stats)
  return {...imported(id, await stableName(path)), kind: 'block', sizeBytes, allocation: 'preallocated'}
}

function imported(id: VolumeId, path: string) {
  return {id, driver: importedDriver, pool: dirname(path), path, imported: true}
}

async function resolve(path: string): Promise<{real: string; stats: Stats}> {
  try {
    const real = checkBackingPath(await realpath(path))
    return {real, stats: await lstat(real)}
  } catch (error) {
    if (error instanceof StorageError) throw error
    throw importError('VOLUME_MISSING', path, `cannot be reached: ${(error as Error).message}`, error)
  }
}

function checkImportSize(path: string, sizeBytes: number): void {
  if (sizeBytes > 0 && sizeBytes % sectorBytes === 0) return
  throw importError('SIZE_INVALID', path, `has ${sizeBytes} bytes: expected a positive multiple of ${sectorBytes}`)
}

async function isInPool(path: string): Promise<boolean> {
  return lstat(join(dirname(path), poolMarker)).then(
    () => true,
    () => false,
  )
}

/** Nobody uses it, it can be read, and its bytes are what a guest is to find on its disk. */
async function checkFree(path: string, stats: Stats): Promise<void> {
  const unreadable = (error: unknown) =>
    importError('VOLUME_MISSING', path, `cannot be opened: ${(error as Error).message}`, error)
  const use = await anyUse(path, stats).catch(error => {
    throw unreadable(error)
  })
  if (use) throw inUse(path, use)
  const format = await imageFormatAt(path).catch(error => {
    throw unreadable(error)
  })
  if (format === undefined) return
  const remedy = `convert it first: qemu-img convert -O raw ${path} ${path}.raw`
  throw importError('UNSUPPORTED', path, `is a ${format} image, and a volume is raw: ${remedy}`, undefined, {format})
}

/** The name of a block device that stays the same after a reboot, where udev gave it one; else the path itself. */
export async function stableName(path: string): Promise<string> {
  const directory = '/dev/disk/by-id'
  const links = (await readdir(directory).catch(() => [])).sort()
  for (const link of links.map(name => join(directory, name))) {
    const target = await realpath(link).catch(() => undefined)
    if (target === path) return checkBackingPath(link)
  }
  return path
}

function inUse(path: string, {how, info}: Use, cause?: unknown): StorageError {
  return importError('DEVICE_IN_USE', path, how, cause, info)
}

function importError(
  code: 'UNSUPPORTED' | 'VOLUME_EXISTS' | 'VOLUME_MISSING' | 'SIZE_INVALID' | 'DEVICE_IN_USE',
  path: string,
  what: string,
  cause?: unknown,
  info: Record<string, unknown> = {},
): StorageError {
  return new StorageError(code, `Cannot import ${path}: it ${what}`, {
    op: 'volume.import',
    info: {path, ...info},
    cause,
  })
}
