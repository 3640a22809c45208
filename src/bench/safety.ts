import {constants, type Stats} from 'node:fs'
import {type FileHandle, open, realpath, stat} from 'node:fs/promises'
import {claimEmptyDevice} from '../device-claim.js'
import {fileUse, type Use, writerOf} from '../device-use.js'
import {StorageError} from '../errors.js'
import {signatureOf} from '../signatures.js'
import {formatSize} from '../size.js'
import {identityOf} from './device-identity.js'

/** What the operator says of the thing that may be overwritten: it must be what is found there. */
export interface WriteTo {
  /** The serial number; for what has none the device number `MAJOR:MINOR`, and of a file `inode:N`. */
  identity: string
  sizeBytes: number
}

/** A device or file that may be written to. `release()` is to be called when the run is over. */
export interface WritableTarget {
  /** Without symbolic links. */
  path: string
  stats: Stats
  identity: string
  sizeBytes: number
  release(): void
}

/** Who in lunpath has a path, for a sentence: `is the volume db1`. */
export type OwnedBy = (path: string, stats: Stats) => Promise<string | undefined> | string | undefined

const op = 'bench.start'

/** What runs of this process write to, by device number or inode. */
const written = new Set<string>()

const stillInFlight = 'has I/Os of an earlier benchmark in flight that it has not answered: try again when it does'

/**
 * Makes sure that a benchmark may overwrite what `given` leads to. It must be what the operator says it is, writable, and
 * without mount, swap, holder, partition, loop device, lock, other writer, or any signature that libblkid knows; all of
 * that is looked up for what was opened, not for its name, so that links and by-id names change nothing. `ownedBy` says
 * who in lunpath has it, which no look at the kernel shows. Nobody else of this process gets it until `release()`; the
 * run holds a block device with O_EXCL and a file with a lock, both until its last I/O is answered, and opens nothing but
 * the device or file whose numbers are in `stats`.
 * @throws DEVICE_IN_USE, IDENTITY_MISMATCH, UNSUPPORTED (neither a file nor a block device), VOLUME_MISSING,
 * INVALID_ARGUMENT (it is not said what may be overwritten)
 */
export async function admitForWriting(
  given: string,
  writeTo: WriteTo | undefined,
  ownedBy: OwnedBy = () => undefined,
): Promise<WritableTarget> {
  const path = await realpath(given).catch(cause => {
    throw missing(given, cause)
  })
  const stats = await stat(path)
  const key = stats.isBlockDevice() ? `device ${stats.rdev}` : `file ${stats.dev} ${stats.ino}`
  if (written.has(key)) throw inUse(path, {how: 'is written to by another benchmark', info: {}})
  written.add(key)
  const release = () => void written.delete(key)
  try {
    const {handle, sizeBytes} = await openWritable(path, stats)
    try {
      const {dev, ino, rdev} = await handle.stat()
      if (dev !== stats.dev || ino !== stats.ino || rdev !== stats.rdev)
        throw inUse(path, {how: 'was replaced while it was looked at', info: {}})
      const owner = await ownedBy(path, stats)
      const use = owner === undefined ? await writerOf(stats) : {how: owner, info: {}}
      if (use) throw inUse(path, use)
      const identity = await identityOf(stats)
      checkIdentity({given, path, identity, sizeBytes}, writeTo)
      return {path, stats, identity, sizeBytes, release}
    } finally {
      await handle.close()
    }
  } catch (error) {
    release()
    throw error
  }
}

async function openWritable(path: string, stats: Stats): Promise<{handle: FileHandle; sizeBytes: number}> {
  if (stats.isBlockDevice()) return claimEmptyDevice(path, {op})
  if (!stats.isFile())
    throw new StorageError('UNSUPPORTED', `${path} is neither a block device nor a file`, {op, info: {path}})
  const handle = await open(path, constants.O_RDWR | constants.O_NONBLOCK).catch(cause => {
    if (['EROFS', 'EACCES', 'EPERM', 'ETXTBSY'].includes(cause.code))
      throw inUse(path, {how: `cannot be written to: ${cause.message}`, info: {}})
    throw missing(path, cause)
  })
  try {
    const use = await fileUse(path, stats)
    // The engine's own lock, which the kernel keeps as long as a write may still arrive (native/bench/path_target.h).
    if (use?.info.pid === process.pid) throw inUse(path, {how: stillInFlight, info: {}})
    if (use) throw inUse(path, use)
    const signature = stats.size > 0 ? await signatureOf(handle.fd) : undefined
    if (signature) throw inUse(path, {how: `holds ${signature.type} (${signature.usage})`, info: {signature}})
    return {handle, sizeBytes: stats.size}
  } catch (error) {
    await handle.close()
    throw error
  }
}

interface Found {
  given: string
  path: string
  identity: string
  sizeBytes: number
}

/**
 * Nothing is written to what was not named by its own identity: a path is a name that may lead to something else today.
 * @throws INVALID_ARGUMENT, IDENTITY_MISMATCH
 */
export function checkIdentity({given, path, identity, sizeBytes}: Found, writeTo: WriteTo | undefined): void {
  const what = given === path ? given : `${given} (${path})`
  const facts = `${what} is ${identity}, ${formatSize(sizeBytes)} (${sizeBytes} bytes)`
  const info = {path, identity, sizeBytes}
  if (!writeTo) {
    const remedy = `If all of it may be lost, repeat that: --write-to ${identity} --size-is ${sizeBytes}`
    throw new StorageError('INVALID_ARGUMENT', `This job writes. ${facts}. ${remedy}`, {op, info})
  }
  if (writeTo.identity === identity && writeTo.sizeBytes === sizeBytes) return
  throw new StorageError(
    'IDENTITY_MISMATCH',
    `Nothing was written: ${facts}, not ${writeTo.identity}, ${formatSize(writeTo.sizeBytes)}`,
    {op, info: {...info, writeTo}},
  )
}

function inUse(path: string, {how, info}: Use): StorageError {
  return new StorageError('DEVICE_IN_USE', `A benchmark must not write to ${path}: it ${how}`, {
    op,
    info: {path, ...info},
  })
}

function missing(path: string, cause: unknown): StorageError {
  return new StorageError('VOLUME_MISSING', `${path} cannot be reached: ${(cause as Error).message}`, {
    op,
    info: {path},
    cause,
  })
}
