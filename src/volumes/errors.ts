import {StorageError} from '../errors.js'
import {formatSize} from '../size.js'
import type {VolumeId} from '../types.js'

/** The refusals that every pool words alike. */

export function existsError(
  id: VolumeId,
  path: string,
  {sizeBytes, existingBytes}: {sizeBytes: number; existingBytes: number},
): StorageError {
  return new StorageError(
    'VOLUME_EXISTS',
    `Volume ${id} exists with ${formatSize(existingBytes)}, not ${formatSize(sizeBytes)}`,
    {info: {id, path, sizeBytes, existingBytes}},
  )
}

export function shrinkError(what: string, {from, to}: {from: number; to: number}): StorageError {
  return new StorageError('SIZE_INVALID', `${what} cannot shrink from ${formatSize(from)} to ${formatSize(to)}`, {
    info: {sizeBytes: to, currentBytes: from},
  })
}

/** @throws CANCELLED */
export function throwIfAborted(signal: AbortSignal | undefined, id: VolumeId): void {
  if (signal?.aborted) {
    throw new StorageError('CANCELLED', `The copy to volume ${id} was cancelled`, {op: 'volume.clone', info: {id}})
  }
}
