import {constants} from 'node:fs'
import {open} from 'node:fs/promises'
import {hasCode, StorageError} from '../errors.js'
import {run} from '../exec.js'
import {writeFully} from './copy.js'

const timeoutMs = 10 * 60_000
const chunkBytes = 2 ** 20

/**
 * Reserves the blocks of `lengthBytes` from `offsetBytes` on, and leaves the file's size as it is. Node has no
 * fallocate(2), so fallocate(1) of util-linux does it; where there is none, or the file system cannot, zeros are
 * written, which then also set the size. @throws POOL_FULL
 */
export async function reserveSpace(path: string, lengthBytes: number, offsetBytes = 0): Promise<void> {
  const args = ['--keep-size', '--offset', String(offsetBytes), '--length', String(lengthBytes), '--', path]
  try {
    await run('fallocate', args, {timeoutMs})
  } catch (error) {
    const said = hasCode(error, 'COMMAND_FAILED') ? String(error.info.stderr) : ''
    if (said.endsWith(': No space left on device') || said.endsWith(': Disk quota exceeded')) {
      throw new StorageError('POOL_FULL', `No space left to reserve ${lengthBytes} bytes for ${path}`, {
        info: {path, wantedBytes: lengthBytes},
        cause: error,
      })
    }
    if (!hasCode(error, 'DEPENDENCY_MISSING') && !said.endsWith(': Operation not supported')) throw error
    await writeZeros(path, lengthBytes, offsetBytes)
  }
}

async function writeZeros(path: string, lengthBytes: number, offsetBytes: number): Promise<void> {
  const zeros = Buffer.alloc(chunkBytes)
  const handle = await open(path, constants.O_WRONLY | constants.O_NOFOLLOW)
  try {
    for (let done = 0; done < lengthBytes; done += chunkBytes) {
      await writeFully(handle, zeros.subarray(0, Math.min(chunkBytes, lengthBytes - done)), offsetBytes + done)
    }
  } finally {
    await handle.close()
  }
}
