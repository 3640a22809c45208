import {randomBytes} from 'node:crypto'
import {StorageError} from '../errors.js'
import type {VolumeId} from '../types.js'

/** A new volume id: 64 random bits as 16 lowercase hex digits. The caller checks that no volume has it yet. */
export function newVolumeId(): VolumeId {
  return randomBytes(8).toString('hex')
}

export function isVolumeId(value: string): value is VolumeId {
  return /^[0-9a-f]{16}$/.test(value)
}

/** `op` goes into the error. @throws NAME_INVALID */
export function checkVolumeId(id: string, op: string): asserts id is VolumeId {
  if (isVolumeId(id)) return
  throw new StorageError('NAME_INVALID', `${JSON.stringify(id)} is not a volume id: expected 16 hex digits`, {
    op,
    info: {id},
  })
}
