import {stat} from 'node:fs/promises'
import {type ErrorCode, StorageError} from '../errors.js'
import {sessionError} from '../iscsi-login.js'
import {loadAddon} from '../native.js'
import {type BenchJob, type SettledJob, settleJob} from './job.js'
import {type Reservation, reserveMemory} from './memory.js'
import type {BenchAddon, Histogram, HistogramData, NativeReport, NativeSample} from './native.js'
import {type BenchResult, makeResult, type TargetFacts} from './result.js'
import {admitForWriting, type OwnedBy, type WritableTarget} from './safety.js'
import {type BenchSample, mergeSample, summarizeSample} from './sample.js'
import {SampleQueue} from './sample-queue.js'
import {SeriesRecorder} from './series.js'
import {isBounded} from './workload.js'

export interface BenchRun {
  /** At most ten a second; what a slow reader misses is merged, not lost. Ends with the run; for one reader. */
  samples: AsyncIterable<BenchSample>
  /**
   * Resolves for every run that began to measure, however it ended. Rejects where nothing was measured.
   * @throws StorageError IDENTITY_MISMATCH, DEVICE_IN_USE, INVALID_ARGUMENT (the range does not fit the device),
   * VOLUME_MISSING, AUTH_FAILED, TIMEOUT, INITIATOR_FAILED, CANCELLED (before the first I/O)
   */
  result: Promise<BenchResult>
  /** Ends the run soon, in state `cancelled`. Harmless when it is over. */
  cancel(): void
}

export interface StartOptions {
  signal?: AbortSignal
  /** Of each target, in the job's order, for the result. */
  facts?: TargetFacts[]
  /** Says who in lunpath has a path that a job wants to write to; undefined: nobody. */
  ownedBy?: OwnedBy
}

/** An empty histogram, or one that was saved. */
export function newHistogram(saved?: HistogramData): Histogram {
  const {Histogram} = loadAddon<BenchAddon>('bench')
  return saved === undefined ? new Histogram() : new Histogram(saved)
}

/**
 * Starts a benchmark, on threads of its own. It keeps the process alive until its end.
 * @throws StorageError as settleJob; CANCELLED where the signal has fired already
 */
export function start(job: BenchJob, {signal, facts = [], ownedBy}: StartOptions = {}): BenchRun {
  const settled = settleJob(job)
  if (signal?.aborted) throw cancelledEarly()
  const samples = new SampleQueue<NativeSample>(mergeSample)
  const stop = new AbortController()
  const cancel = () => stop.abort()
  signal?.addEventListener('abort', cancel, {once: true})
  const result = run(settled, {samples, facts, ownedBy, signal: stop.signal}).finally(() => {
    signal?.removeEventListener('abort', cancel)
    samples.end()
  })
  // Who only reads samples learns of a failure there: the result need not be awaited.
  result.catch(error => samples.fail(error))
  return {samples: summarized(samples, settled), result, cancel}
}

async function* summarized(samples: AsyncIterable<NativeSample>, job: SettledJob): AsyncGenerator<BenchSample> {
  for await (const sample of samples) yield summarizeSample(sample, job, newHistogram)
}

interface RunContext {
  samples: SampleQueue<NativeSample>
  facts: TargetFacts[]
  ownedBy: StartOptions['ownedBy']
  signal: AbortSignal
}

async function run(job: SettledJob, {samples, facts, ownedBy, signal}: RunContext): Promise<BenchResult> {
  const needsLibiscsi = job.native.targets.some(({device}) => device.kind === 'iscsi')
  const addon = loadAddon<BenchAddon>(needsLibiscsi ? 'iscsi' : 'bench')
  const admitted = await unlessAborted(admit(job, ownedBy), signal)
  let memory: Reservation | undefined
  try {
    memory = await reserveMemory(job.native, deviceSizes(job, admitted))
    job.native.verifyTableBytes = memory.tableBytesPerThread
    if (signal.aborted) throw cancelledEarly()
    const startedAt = new Date()
    const {runtimeMs, rampMs, sampleMs} = job.native
    const lastDelayMs = Math.max(...job.native.targets.map(({startDelayMs}) => startDelayMs))
    const runMs = job.native.targets.every(isBounded) ? undefined : runtimeMs + rampMs + lastDelayMs
    const recorder = new SeriesRecorder(newHistogram, {runMs, sampleMs})
    const report = await new Promise<NativeReport>((resolve, reject) => {
      const native = new addon.BenchRun(
        job.native,
        sample => {
          memory?.begun()
          recorder.add(sample)
          samples.push(sample)
        },
        (error, report) => (report ? resolve(report) : reject(startError(error, job))),
      )
      signal.addEventListener('abort', () => native.cancel(), {once: true})
    })
    recorder.end()
    return makeResult(report, job, {startedAt, series: recorder.points, facts, newHistogram})
  } finally {
    memory?.release()
    for (const {release} of admitted) release()
  }
}

/**
 * Looks at a device that hangs may never end: a cancel ends the wait, and what the looks had claimed is given back when they
 * do end.
 */
async function unlessAborted(admission: Promise<WritableTarget[]>, signal: AbortSignal): Promise<WritableTarget[]> {
  let stop = () => {}
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(cancelledEarly())
    if (signal.aborted) stop()
    signal.addEventListener('abort', stop, {once: true})
  })
  try {
    return await Promise.race([admission, aborted])
  } catch (error) {
    void admission.then(
      targets => {
        for (const {release} of targets) release()
      },
      () => undefined,
    )
    throw error
  } finally {
    signal.removeEventListener('abort', stop)
  }
}

/** In bytes; 0 where only the addon will know, which is where nothing is written. */
function deviceSizes({native}: SettledJob, admitted: WritableTarget[]): number[] {
  const byPath = new Map(admitted.map(({path, sizeBytes}) => [path, sizeBytes]))
  return native.targets.map(({device, expectedSizeBytes}) => {
    if (device.kind === 'null') return device.sizeBytes
    return device.kind === 'path' ? (byPath.get(device.path) ?? 0) : expectedSizeBytes
  })
}

/** Proves of each path that is written to that it may be, and tells the addon which device that was. */
async function admit(job: SettledJob, ownedBy: StartOptions['ownedBy']): Promise<WritableTarget[]> {
  const admitted: WritableTarget[] = []
  try {
    for (const [index, {device}] of job.native.targets.entries()) {
      if (device.kind !== 'path') continue
      if (!device.exclusive) {
        await checkReadable(device.path)
        continue
      }
      const target = await admitForWriting(device.path, job.targets[index]!.writeTo, ownedBy)
      admitted.push(target)
      const {dev, ino, rdev} = target.stats
      const isBlock = target.stats.isBlockDevice()
      device.path = target.path
      Object.assign(device, isBlock ? {expectedRdev: rdev} : {expectedRdev: 0, expectedDev: dev, expectedIno: ino})
    }
    return admitted
  } catch (error) {
    for (const {release} of admitted) release()
    throw error
  }
}

/** @throws VOLUME_MISSING, UNSUPPORTED: O_DIRECT on something else would only be an EINVAL */
async function checkReadable(path: string): Promise<void> {
  const stats = await stat(path).catch(cause => {
    throw new StorageError('VOLUME_MISSING', `${path} cannot be reached: ${(cause as Error).message}`, {
      op: 'bench.run',
      info: {path},
      cause,
    })
  })
  if (!stats.isBlockDevice() && !stats.isFile())
    throw new StorageError('UNSUPPORTED', `${path} is neither a block device nor a file`, {
      op: 'bench.run',
      info: {path},
    })
}

/** What the addon's errors mean for a path; all else is as for a session. */
const pathCodes: Record<string, ErrorCode> = {
  EBUSY: 'DEVICE_IN_USE',
  EROFS: 'DEVICE_IN_USE',
  ENOENT: 'VOLUME_MISSING',
  ENOTDIR: 'VOLUME_MISSING',
  ENXIO: 'VOLUME_MISSING',
  ENODEV: 'VOLUME_MISSING',
  EACCES: 'VOLUME_MISSING',
  EISDIR: 'UNSUPPORTED',
  ENOTBLK: 'UNSUPPORTED',
  EOPNOTSUPP: 'UNSUPPORTED',
  ENOSYS: 'UNSUPPORTED',
  ENOLCK: 'UNSUPPORTED',
  EINVAL: 'INVALID_ARGUMENT',
}

/** No thread (pids.max of the cgroup, RLIMIT_NPROC), no memory, no descriptor for it. */
const outOf = ['EAGAIN', 'ENOMEM', 'EMFILE', 'ENFILE']

function startError(error: (Error & {code: string}) | null, {native}: SettledJob): StorageError {
  const session = native.targets.find(({device}) => device.kind === 'iscsi')?.device
  if (error && outOf.includes(error.code)) {
    const remedy = 'Lower bs, iodepth, numjobs or the number of targets, or raise what limits this process'
    return new StorageError('INTERNAL', `${error.message}. ${remedy}`, {
      op: 'bench.run',
      info: {reason: error.code},
      cause: error,
    })
  }
  const code = pathCodes[error?.code ?? '']
  if (error && code && !session)
    return new StorageError(code, error.message, {op: 'bench.run', info: {reason: error.code}, cause: error})
  const login = session?.kind === 'iscsi' ? session.login : undefined
  const info = login ? {iqn: login.target, lun: login.lun, portal: login.portal} : {}
  return sessionError(error, {op: 'bench.run', info})
}

function cancelledEarly(): StorageError {
  return new StorageError('CANCELLED', 'The benchmark was cancelled before it began', {op: 'bench.run'})
}
