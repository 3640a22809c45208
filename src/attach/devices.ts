import type {Stats} from 'node:fs'
import {realpath, stat} from 'node:fs/promises'
import {isAbsolute} from 'node:path'
import {identityOf} from '../bench/device-identity.js'
import {formatDeviceNumber} from '../device-number.js'
import {anyUse} from '../device-use.js'
import {StorageError} from '../errors.js'
import {imageFormatAt} from '../image-format.js'
import type {DiskSource} from '../types.js'
import {stableName} from '../volumes/imported.js'
import {refuseClaimed} from './claims.js'
import type {Rooms} from './rooms.js'
import type {VolumeOrigin} from './steps.js'

type DeviceOrigin = VolumeOrigin & {from: 'device'}

const op = 'attach'

export interface DeviceAsked {
  path: string
  /** What a guest's disk is made of. Absent: raw, and a file that looks like another format is refused. */
  format?: 'raw' | 'qcow2'
}

/**
 * Any block device or disk image, as `virsh attach-disk DOMAIN SOURCE TARGET` takes it, by a name that leads to it also after
 * a reboot. It is never changed by lunpath. Who else has it is asked by `refuseUsedDevice`.
 * @throws NAME_INVALID, NOT_FOUND, INVALID_ARGUMENT, UNSUPPORTED (an image whose format nobody has named)
 */
export async function deviceOrigin({path, format}: DeviceAsked): Promise<Pick<DeviceOrigin, 'source' | 'identity'>> {
  if (!isAbsolute(path))
    throw new StorageError('NAME_INVALID', `${JSON.stringify(path)} is not an absolute path`, {op, info: {path}})
  const real = await realpath(path).catch(cause => {
    throw new StorageError('NOT_FOUND', `There is no device or file ${path}`, {op, info: {path}, cause})
  })
  const stats = await stat(real)
  const identity = await identify(stats)
  if (!stats.isFile() && !stats.isBlockDevice())
    throw new StorageError('INVALID_ARGUMENT', `${path} is neither a block device nor a regular file`, {
      op,
      info: {path},
    })
  if (stats.isBlockDevice() && format === 'qcow2')
    throw new StorageError('UNSUPPORTED', `${path} is a block device, and its format is raw`, {op, info: {path}})
  await checkFormat(real, format)
  const source: DiskSource = stats.isFile()
    ? {type: 'file', path: real, format: format ?? 'raw'}
    : {type: 'block', path: await stableName(real)}
  return {source, identity}
}

/** @throws UNSUPPORTED where the guest would find the bytes of an image's header on its disk */
async function checkFormat(path: string, format: DeviceAsked['format']): Promise<void> {
  if (format !== undefined) return
  const found = await imageFormatAt(path).catch(cause => {
    throw new StorageError('NOT_FOUND', `${path} cannot be read: ${(cause as Error).message}`, {
      op,
      info: {path},
      cause,
    })
  })
  if (found === undefined) return
  const qcow2 = found === 'qcow2' ? '--format qcow2 where you have made it, ' : ''
  const message = `${path} looks like a ${found} image, and nobody has said what it is: attach it with ${qcow2}--format raw to give the guest these very bytes, or convert it with qemu-img convert -O raw`
  throw new StorageError('UNSUPPORTED', message, {op, info: {path, format: found}})
}

/**
 * Makes sure that nobody else has the device: no volume, no other disk that lunpath has attached, no domain, no mount, swap,
 * holder, loop device, lock or writer. @throws VOLUME_EXISTS, ATTACHMENT_EXISTS, CONFLICT, DEVICE_IN_USE
 */
export async function refuseUsedDevice(rooms: Rooms, path: string): Promise<void> {
  await refuseClaimed(rooms, path, op)
  await refuseUse(path, await stat(path))
}

async function refuseUse(path: string, stats: Stats): Promise<void> {
  const use = await anyUse(path, stats).catch(cause => {
    throw new StorageError('NOT_FOUND', `${path} cannot be opened: ${(cause as Error).message}`, {
      op,
      info: {path},
      cause,
    })
  })
  if (!use) return
  throw new StorageError(
    'DEVICE_IN_USE',
    `${path} cannot be attached: it ${use.how}. Take it out of use there, or say --shared where a guest may have it at the same time`,
    {op, info: {path, ...use.info}},
  )
}

/**
 * Looks once more when the domain's turn has come: at the path is still what was asked for, and nobody has begun to use it.
 * @throws IDENTITY_MISMATCH, NOT_FOUND, DEVICE_IN_USE
 */
export async function confirmDevice({source, identity}: DeviceOrigin, {shared}: {shared?: boolean}): Promise<void> {
  if (!('path' in source)) return
  const {path} = source
  const stats = await stat(path).catch(cause => {
    throw new StorageError('NOT_FOUND', `There is no device or file ${path} any more`, {op, info: {path}, cause})
  })
  const found = await identify(stats)
  if (identity !== undefined && found !== identity) {
    throw new StorageError('IDENTITY_MISMATCH', `${path} was ${identity}, and is ${found} now: nothing was attached`, {
      op,
      info: {path, identity, found},
    })
  }
  if (!shared) await refuseUse(path, stats)
}

/** What a path leads to: the file, or the device by number and serial, since a number is given again to another disk. */
async function identify(stats: Stats): Promise<string> {
  if (!stats.isBlockDevice()) return `${formatDeviceNumber(stats.dev)} inode:${stats.ino}`
  return `${formatDeviceNumber(stats.rdev)} ${await identityOf(stats)}`
}
