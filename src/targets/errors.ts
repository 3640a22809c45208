import {StorageError} from '../errors.js'

/** @throws TARGET_FAILED where an export could not be put back, with each of them in `info.failed` */
export function refuseUnrestored(failed: {iqn: string; code: string; message: string}[], wanted: number): void {
  if (failed.length === 0) return
  throw new StorageError(
    'TARGET_FAILED',
    `${failed.length} of ${wanted} exports could not be restored, the others are in place: ${failed[0]!.message}`,
    {op: 'target.restore', info: {failed}},
  )
}
