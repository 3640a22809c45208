import {constants} from 'node:fs'
import {type FileHandle, open} from 'node:fs/promises'
import {StorageError} from '../errors.js'
import {loadAddon} from '../native.js'
import {deviceName} from './lvm-facts.js'

/** What becomes of a deleted volume's data before its space is free for others. */
export type WipePolicy = 'zero' | 'discard' | 'none'

interface FileAddon {
  BlockWiper: new () => {
    zero(fd: number, offset: number, lengthBytes: number): Promise<void>
    discard(fd: number, offset: number, lengthBytes: number): Promise<void>
  }
}

/** Between two pieces a wipe can be ended. */
const pieceBytes = 256 * 2 ** 20

let wiper: InstanceType<FileAddon['BlockWiper']> | undefined

/**
 * Opens a block device that nobody else has claimed, for writing, and makes sure that it is the one that is meant: its
 * major and minor number are `number`. @throws VOLUME_IN_USE, VOLUME_MISSING, IDENTITY_MISMATCH
 */
export async function openExclusively(path: string, number: string): Promise<FileHandle> {
  const handle = await open(path, constants.O_RDWR | constants.O_EXCL).catch((cause: NodeJS.ErrnoException) => {
    const [code, what] =
      cause.code === 'EBUSY'
        ? (['VOLUME_IN_USE', 'is in use'] as const)
        : (['VOLUME_MISSING', `cannot be opened: ${cause.message}`] as const)
    throw new StorageError(code, `${path} ${what}`, {info: {path}, cause})
  })
  try {
    const stats = await handle.stat()
    if (stats.isBlockDevice() && deviceName(stats.rdev) === number) return handle
    throw new StorageError('IDENTITY_MISMATCH', `${path} is not the device ${number}: nothing was written to it`, {
      info: {path, expected: number},
    })
  } catch (error) {
    await handle.close()
    throw error
  }
}

/** Makes a stretch of an open block device read as zeros, durably; `signal` ends it between two pieces. */
export async function zeroRange(
  handle: FileHandle,
  {start, end, signal}: {start: number; end: number; signal?: AbortSignal},
): Promise<void> {
  wiper ??= new (loadAddon<FileAddon>('file').BlockWiper)()
  for (let position = start; position < end; position += pieceBytes) {
    signal?.throwIfAborted()
    await wiper.zero(handle.fd, position, Math.min(pieceBytes, end - position))
  }
}

/** Wipes a whole device by policy; one that cannot discard is written with zeros. */
export async function wipe(
  handle: FileHandle,
  {sizeBytes, policy, signal}: {sizeBytes: number; policy: WipePolicy; signal?: AbortSignal},
): Promise<void> {
  if (policy === 'none') return
  if (policy === 'discard' && (await discardRange(handle, sizeBytes))) return
  await zeroRange(handle, {start: 0, end: sizeBytes, signal})
}

async function discardRange(handle: FileHandle, sizeBytes: number): Promise<boolean> {
  wiper ??= new (loadAddon<FileAddon>('file').BlockWiper)()
  try {
    await wiper.discard(handle.fd, 0, sizeBytes)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EOPNOTSUPP') return false
    throw error
  }
}
