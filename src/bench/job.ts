import {randomBytes} from 'node:crypto'
import {type IscsiLogin, nativeLogin} from '../iscsi-login.js'
import {parseSize} from '../size.js'
import type {LunIdentity} from '../types.js'
import type {Workload} from './job-schema.js'
import type {NativeDevice, NativeJob, NativePathEngine, NativeTarget} from './native.js'
import {type Grammar, ourGrammar, parseTime} from './quantity.js'
import type {WriteTo} from './safety.js'
import {checkInteger, invalid, isBounded, settleWorkload, writes} from './workload.js'

interface Common extends Workload {
  /** Names it in samples and in the report. Default: the IQN, the path or `null`. */
  name?: string
  /**
   * Says that all that is on the target may be lost, by repeating what it is: a job that writes or trims is refused
   * without it. Over iSCSI the identity is the unit serial number.
   */
  writeTo?: WriteTo
}

/** A logical unit over iSCSI, in user space. */
export interface IscsiTarget extends IscsiLogin, Common {
  iqn: string
  lun: number
  /** What the logical unit must be; checked over the very session that is then measured. */
  expect?: Partial<Pick<LunIdentity, 'wwid' | 'serial' | 'sizeBytes'>>
}

/** A block device or a regular file of this node. */
export interface PathTarget extends Common {
  filename: string
  /** Default `auto`: io_uring where the kernel lets us, else libaio, else pread. */
  ioengine?: NativePathEngine
  /** O_DIRECT, around the page cache; default true. */
  direct?: boolean
  /** Opened with O_SYNC or O_DSYNC: each write is on the disk when it is answered. Default none. */
  sync?: 'none' | 'sync' | 'dsync'
}

/** Nothing at all, which completes at once: the engine's own cost. */
export interface NullTarget extends Common {
  ioengine: 'null'
  /** What it claims to have; default 1 GiB. */
  sizeBytes?: number
}

export type BenchTarget = IscsiTarget | PathTarget | NullTarget

/**
 * A benchmark in fio's words. Sizes are bytes, or text as `4k` and `2GiB`; times are numbers in fio's unit, or text as
 * `500ms` and `2m`. What is said of the work holds for each target that does not say otherwise.
 */
export interface BenchJob extends Workload {
  /** Default `bench`. */
  name?: string
  /** One, or several that begin and end together. */
  target: BenchTarget | BenchTarget[]
  /** Seconds; default 5, or a day where each target ends by itself (`io_size`, `number_ios`). */
  runtime?: number | string
  /** Seconds before the runtime that are not in the result; default 0. */
  ramp_time?: number | string
  /** Of the random offsets, 0 … 2^64 − 1; random where none is given. The same seed gives the same offsets. */
  seed?: bigint | number | string
  /** Milliseconds without any completion after which a device counts as stuck; default 5,000. */
  stuckMs?: number
  /** Milliseconds between samples, at least 100; default 250. */
  sampleMs?: number
  /** What is done otherwise than was asked for; they are in the result. */
  notes?: string[]
}

/** A job with every default in place. */
export interface SettledJob {
  name: string
  /** What the addon takes. Targets that are written to by path have yet to be admitted (safety.ts). */
  native: NativeJob
  /** As they were given, in the order of `native.targets`, and what the job says for all of them. */
  targets: BenchTarget[]
  shared: Workload
  notes: string[]
}

const maxSeconds = 86_400
const pathEngines: NativePathEngine[] = ['auto', 'io_uring', 'libaio', 'pread']

/**
 * Checks a job and fills in its defaults.
 * @throws StorageError UNSUPPORTED, INVALID_ARGUMENT (also a job that writes to an unproven logical unit), SIZE_INVALID,
 * NAME_INVALID
 */
export function settleJob(job: BenchJob, grammar: Grammar = ourGrammar): SettledJob {
  const {name = 'bench', target, runtime, ramp_time, seed, stuckMs, sampleMs, notes = [], ...shared} = job
  const targets = Array.isArray(target) ? target : [target]
  if (targets.length === 0 || targets.length > 64) throw invalid('A job has 1 to 64 targets', {targets: targets.length})
  const settled = targets.map(one => settleTarget(one, shared, grammar))
  const names = settled.map(({name}) => name)
  const twice = names.find((name, index) => names.indexOf(name) !== index)
  if (twice !== undefined) throw invalid(`Two targets are named ${twice}: give each a name`, {name: twice})
  return {
    name,
    targets,
    shared,
    notes,
    native: {
      targets: settled,
      runtimeMs: Math.max(1, seconds('runtime', runtime ?? (settled.every(isBounded) ? maxSeconds : 5))),
      rampMs: seconds('ramp_time', ramp_time ?? 0),
      stuckMs: checkInteger('stuckMs', stuckMs ?? 5_000, 10, 3_600_000),
      sampleMs: checkInteger('sampleMs', sampleMs ?? 250, 100, 3_600_000),
      seed: seedOf(seed ?? randomBytes(8).readBigUInt64BE()),
      verifyTableBytes: 0,
    },
  }
}

function settleTarget(target: BenchTarget, shared: Workload, grammar: Grammar): NativeTarget {
  const workload = settleWorkload(workloadOf(shared, target), grammar)
  const changes = writes(workload)
  const {name} = target
  if ('iqn' in target) {
    const {expect = {}, writeTo} = target
    if (changes) checkRepeated(target)
    return {
      name: name ?? target.iqn,
      device: {kind: 'iscsi', engine: 'iscsi', login: nativeLogin(target)},
      ...workload,
      expectedWwid: expect.wwid ?? '',
      expectedSerial: writeTo?.identity ?? expect.serial ?? '',
      expectedSizeBytes: writeTo?.sizeBytes ?? expect.sizeBytes ?? 0,
    }
  }
  const unknown = {expectedWwid: '', expectedSerial: '', expectedSizeBytes: 0}
  if ('filename' in target) {
    return {name: name ?? target.filename, device: pathDevice(target, changes), ...workload, ...unknown}
  }
  const {ioengine, sizeBytes = 2 ** 30} = target
  if (ioengine !== 'null') throw invalid('A target has an iqn, a filename, or ioengine null', {name})
  const device: NativeDevice = {kind: 'null', engine: 'null', sizeBytes: parseSize(String(sizeBytes))}
  return {name: name ?? 'null', device, ...workload, ...unknown}
}

/** A target's own word stands before the job's; `bs` and `bssplit` are one thing, said in two ways. */
export function workloadOf(shared: Workload, {name: _, ...own}: Workload & {name?: string}): Workload {
  const said = {...shared, ...own}
  if (own.bssplit !== undefined && own.bs === undefined) delete said.bs
  if (own.bs !== undefined && own.bssplit === undefined) delete said.bssplit
  return said
}

/** The numbers of the device are filled in where it is admitted; until then nothing can be opened for writing. */
function pathDevice(
  {filename, ioengine = 'auto', direct = true, sync = 'none'}: PathTarget,
  changes: boolean,
): NativeDevice {
  if (typeof filename !== 'string' || !filename.startsWith('/') || filename.includes('\0'))
    throw invalid('filename is an absolute path', {filename})
  if (!pathEngines.includes(ioengine)) throw invalid(`ioengine is one of ${pathEngines.join(', ')}`, {ioengine})
  const numbers = {expectedRdev: -1, expectedDev: -1, expectedIno: -1}
  return {kind: 'path', engine: ioengine, path: filename, direct, sync, exclusive: changes, ...numbers}
}

/** @throws INVALID_ARGUMENT where a job writes and the operator has not said what may be lost */
function checkRepeated({iqn, lun, writeTo}: IscsiTarget): void {
  if (writeTo && writeTo.identity !== '' && writeTo.sizeBytes > 0) return
  throw invalid(
    `This job writes to LUN ${lun} of ${iqn}: repeat its serial number and size, if all of it may be lost`,
    {
      iqn,
      lun,
    },
  )
}

/** Milliseconds of a time whose unit is seconds. */
function seconds(name: string, value: number | string): number {
  const us = parseTime(String(value), 's')
  if (us === undefined || us > maxSeconds * 1e6 || (name === 'runtime' && us === 0))
    throw invalid(`${name} is in seconds, above 0 and at most a day`, {[name]: value})
  return Math.round(us / 1000)
}

function seedOf(seed: bigint | number | string): bigint {
  const isWhole = typeof seed === 'bigint' || Number.isSafeInteger(seed) || /^\d{1,20}$/.test(String(seed))
  const bits = isWhole ? BigInt(seed) : -1n
  if (bits < 0n || bits >= 2n ** 64n) throw invalid('seed is a whole number from 0 to 2^64 - 1', {})
  return bits
}
