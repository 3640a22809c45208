import {constants} from 'node:fs'
import {copyFile, type FileHandle} from 'node:fs/promises'
import {StorageError} from '../errors.js'

const chunkBytes = 2 ** 20
/** Zeros in pieces of this size stay holes. It is the largest block size of the common file systems. */
const pieceBytes = 64 * 1024
const zeros = Buffer.alloc(pieceBytes)

/** What ioctl_ficlone(2) and the kernels before it say where a reflink cannot be. */
const noReflink = new Set(['ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'ENOTTY', 'EXDEV', 'EINVAL', 'EBADF', 'EPERM', 'ETXTBSY'])

/** Makes `target` a reflink of `source`; false, with nothing left behind, where the file system has none. */
export async function reflink(source: string, target: string): Promise<boolean> {
  try {
    await copyFile(source, target, constants.COPYFILE_FICLONE_FORCE | constants.COPYFILE_EXCL)
    return true
  } catch (error) {
    if (noReflink.has((error as NodeJS.ErrnoException).code ?? '')) return false
    throw error
  }
}

/**
 * Copies the first `sizeBytes` of `source` into `target`, which has its size already. Where the target reads as zeros
 * all over (`blank`), zeros of the source stay holes there. `beforeChunk` may throw to end the copy; `onProgress` gets
 * the bytes done, holes included. Nothing is made durable.
 */
export async function copyFileContents({
  source,
  target,
  sizeBytes,
  blank,
  onProgress,
  beforeChunk,
}: {
  source: FileHandle
  target: FileHandle
  sizeBytes: number
  blank: boolean
  onProgress: (copiedBytes: number) => void
  beforeChunk: () => void
}): Promise<void> {
  const buffer = Buffer.allocUnsafe(chunkBytes)
  for (let position = 0; position < sizeBytes; ) {
    beforeChunk()
    const length = Math.min(chunkBytes, sizeBytes - position)
    const chunk = buffer.subarray(0, length)
    await readFully(source, chunk, position)
    const runs = blank ? dataRuns(chunk) : [[0, length] as const]
    for (const [start, end] of runs) await writeFully(target, buffer.subarray(start, end), position + start)
    position += length
    onProgress(position)
  }
}

/** The stretches that are not zeros, as [start, end), in whole pieces. */
function dataRuns(chunk: Buffer): [start: number, end: number][] {
  const runs: [number, number][] = []
  for (let start = 0; start < chunk.length; start += pieceBytes) {
    const end = Math.min(start + pieceBytes, chunk.length)
    if (chunk.compare(zeros, 0, end - start, start, end) === 0) continue
    const last = runs.at(-1)
    if (last?.[1] === start) last[1] = end
    else runs.push([start, end])
  }
  return runs
}

async function readFully(handle: FileHandle, buffer: Buffer, position: number): Promise<void> {
  for (let done = 0; done < buffer.length; ) {
    const {bytesRead} = await handle.read(buffer, done, buffer.length - done, position + done)
    if (bytesRead === 0) {
      throw new StorageError('VOLUME_MISSING', `The source ends at byte ${position + done}, before its size`)
    }
    done += bytesRead
  }
}

export async function writeFully(handle: FileHandle, buffer: Buffer, position: number): Promise<void> {
  for (let done = 0; done < buffer.length; ) {
    const {bytesWritten} = await handle.write(buffer, done, buffer.length - done, position + done)
    done += bytesWritten
  }
}
