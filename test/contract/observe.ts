import {open} from 'node:fs/promises'
import type {ExecutionContext} from 'ava'
import {type ErrorCode, StorageError} from '../../src/errors.js'
import {run} from '../../src/exec.js'

export const MiB = 2 ** 20

/** The code of the StorageError that `promise` must reject with. */
export async function codeOf(promise: Promise<unknown>): Promise<ErrorCode | 'no error'> {
  try {
    await promise
    return 'no error'
  } catch (error) {
    if (error instanceof StorageError) return error.code
    throw error
  }
}

export async function writeAt(path: string, data: Buffer, position: number): Promise<void> {
  const handle = await open(path, 'r+')
  try {
    await handle.write(data, 0, data.length, position)
    await handle.sync()
  } finally {
    await handle.close()
  }
}

export async function readAt(path: string, length: number, position: number): Promise<Buffer> {
  const handle = await open(path, 'r')
  try {
    const buffer = Buffer.alloc(length)
    const {bytesRead} = await handle.read(buffer, 0, length, position)
    return buffer.subarray(0, bytesRead)
  } finally {
    await handle.close()
  }
}

/**
 * A loop device over `path`, gone after the test or after its detach(). Detached once: another test may have the number
 * by then.
 */
export async function attachLoop(
  t: ExecutionContext,
  path: string,
  options: string[] = [],
): Promise<{device: string; detach: () => Promise<void>}> {
  // One after the other: a losetup that is too late has the device of the one before it open for a moment, which is then in
  // use by a stranger (losetup asks for a free number, opens that device, and asks again where it is taken).
  const losetup = ['losetup', '--find', '--show', ...options, '--', path]
  const {stdout} = await run('flock', ['/dev/loop-control', ...losetup])
  const device = stdout.trim()
  let attached = true
  const detach = async () => {
    if (!attached) return
    attached = false
    await run('losetup', ['--detach', device])
  }
  t.teardown(detach)
  return {device, detach}
}
