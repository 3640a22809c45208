import {randomBytes} from 'node:crypto'
import {StorageError} from '../errors.js'
import {type IscsiLogin, type NativeLogin, nativeLogin} from '../iscsi-login.js'
import {parseSize} from '../size.js'
import type {LunIdentity} from '../types.js'

/** A benchmark in fio's words. Sizes are bytes, or text as `4k` and `2GiB`. */
export interface BenchJob {
  /** The logical unit to read, over iSCSI. */
  target: IscsiLogin & {iqn: string; lun: number}
  /** What the logical unit must be; checked over the very session that is then measured. */
  expect?: Partial<Pick<LunIdentity, 'wwid' | 'serial' | 'sizeBytes'>>
  /** Default `randread`. */
  rw?: 'read' | 'randread'
  /** Bytes of one I/O; default 4096. */
  bs?: number | string
  /** I/Os in flight; default 1. */
  iodepth?: number
  /** Seconds; default 5. */
  runtime?: number
  /** Where the range to read begins; default 0. */
  offset?: number | string
  /** Length of that range; default: to the end. */
  size?: number | string
  /** Of the random offsets, 0 … 2^64 − 1; random where none is given. The same seed gives the same offsets. */
  seed?: bigint | number
  /** Milliseconds without any completion after which the device counts as stuck; default 5,000. */
  stuckMs?: number
  /** Milliseconds between samples, at least 100; default 250. */
  sampleMs?: number
}

/** A job with every default in place. The addon reads it: native/bench/binding.cc. */
export interface SettledJob {
  login: NativeLogin
  rw: 'read' | 'randread'
  random: boolean
  bs: number
  iodepth: number
  runtimeMs: number
  offsetBytes: number
  /** 0: to the device's end. */
  sizeBytes: number
  seed: bigint
  stuckMs: number
  sampleMs: number
  expectedWwid: string
  expectedSerial: string
  expectedSizeBytes: number
}

const writingJobs = ['write', 'randwrite', 'rw', 'readwrite', 'randrw', 'trim', 'randtrim', 'trimwrite']
const maxBufferBytes = 2 ** 30

/**
 * Checks a job and fills in its defaults.
 * @throws StorageError UNSUPPORTED (a job that writes), INVALID_ARGUMENT, SIZE_INVALID, NAME_INVALID
 */
export function settleJob(job: BenchJob): SettledJob {
  const {rw = 'randread', expect = {}, seed = randomBytes(8).readBigUInt64BE()} = job
  if (writingJobs.includes(rw)) {
    throw new StorageError('UNSUPPORTED', `bench only reads: rw=${rw} would write to the volume`, {
      op: 'bench.start',
      info: {rw},
    })
  }
  if (rw !== 'read' && rw !== 'randread') throw invalid(`rw is read or randread, not ${JSON.stringify(rw)}`, {rw})
  const bs = toBytes('bs', job.bs ?? 4096)
  const iodepth = checkInteger('iodepth', job.iodepth ?? 1, 1, 1024)
  if (bs < 512 || bs > 16 * 2 ** 20) throw invalid('bs is from 512 bytes to 16 MiB', {bs})
  if (bs * iodepth > maxBufferBytes) throw invalid('bs × iodepth is at most 1 GiB', {bs, iodepth})
  const {runtime = 5} = job
  if (!(runtime > 0 && runtime <= 86_400)) throw invalid('runtime is in seconds, above 0 and at most a day', {runtime})
  const seedBits = typeof seed === 'bigint' || Number.isSafeInteger(seed) ? BigInt(seed) : -1n
  if (seedBits < 0n || seedBits >= 2n ** 64n) throw invalid('seed is a whole number from 0 to 2^64 - 1', {})
  return {
    login: nativeLogin(job.target),
    rw,
    random: rw === 'randread',
    bs,
    iodepth,
    runtimeMs: Math.max(1, Math.round(runtime * 1000)),
    offsetBytes: isZero(job.offset) ? 0 : toBytes('offset', job.offset!),
    sizeBytes: isZero(job.size) ? 0 : toBytes('size', job.size!),
    seed: seedBits,
    stuckMs: checkInteger('stuckMs', job.stuckMs ?? 5_000, 10, 3_600_000),
    sampleMs: checkInteger('sampleMs', job.sampleMs ?? 250, 100, 3_600_000),
    expectedWwid: expect.wwid ?? '',
    expectedSerial: expect.serial ?? '',
    expectedSizeBytes: expect.sizeBytes ?? 0,
  }
}

function isZero(value: number | string | undefined): boolean {
  return value === undefined || value === 0 || value === '0'
}

/** @throws SIZE_INVALID; INVALID_ARGUMENT for anything but a number or text */
function toBytes(name: string, value: number | string): number {
  if (typeof value !== 'number' && typeof value !== 'string') throw invalid(`${name} is a size`, {[name]: value})
  return parseSize(String(value))
}

function checkInteger(name: string, value: number, least: number, most: number): number {
  if (!Number.isInteger(value) || value < least || value > most) {
    throw invalid(`${name} is a whole number from ${least} to ${most}`, {[name]: value})
  }
  return value
}

function invalid(message: string, info: Record<string, unknown>): StorageError {
  return new StorageError('INVALID_ARGUMENT', message, {op: 'bench.start', info})
}
