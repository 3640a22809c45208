import {release} from 'node:os'
import {StorageError} from '../errors.js'
import {sessionError} from '../iscsi-login.js'
import {loadAddon} from '../native.js'
import type {LunIdentity} from '../types.js'
import {type BenchJob, type SettledJob, settleJob} from './job.js'
import type {BenchAddon, Histogram, NativeJob, NativeReport, NativeSample, NativeState} from './native.js'

export type {Histogram} from './native.js'

/**
 * `finished`: the runtime is over and every I/O was answered. `cancelled`: by cancel() or the signal. `device-lost`: the
 * session ended. `stuck`: I/Os stayed without an answer for `stuckMs`.
 */
export type BenchState = NativeState

export interface LatencySummary {
  minNs: number
  meanNs: number
  p50Ns: number
  p95Ns: number
  p99Ns: number
  p999Ns: number
  maxNs: number
}

/** What happened in one interval of a run. */
export interface BenchSample {
  /** Seconds since the first I/O. */
  fromSeconds: number
  toSeconds: number
  ios: number
  iops: number
  bytesPerSecond: number
  errors: number
  latency: LatencySummary
}

/** What a run measured; where it did not finish, up to its end. Plain JSON but for `histogram` and `error`. */
export interface BenchResult {
  state: BenchState
  engine: string
  rw: 'read' | 'randread'
  /** Bytes of one I/O. */
  bs: number
  iodepth: number
  runtimeSeconds: number
  offsetBytes: number
  /** Of the range that was read. */
  sizeBytes: number
  /** Decimal, since a JS number cannot hold 64 bits. */
  seed: string
  device: LunIdentity
  target: {portal: string; iqn: string; lun: number}
  kernel: string
  /** First submission to last completion; with I/Os left unanswered, to the end of the wait for them. */
  elapsedSeconds: number
  ios: number
  bytes: number
  iops: number
  bytesPerSecond: number
  /** I/Os that were answered with an error; they are not in `ios`. */
  errors: number
  /** I/Os in flight when the run ended. */
  unanswered: number
  /** CPU time of the run's thread, user and system, per I/O. What the kernel does on other threads is not in it. */
  cpuNsPerIo: number
  /** Submission to completion. */
  latency: LatencySummary
  histogram: Histogram
  /** The last failure of an I/O or of the device. */
  error: (Error & {code: string; errno: number}) | null
}

export interface BenchRun {
  /** At most ten a second; what a slow reader misses is merged, not lost. Ends with the run; for one reader. */
  samples: AsyncIterable<BenchSample>
  /**
   * Resolves for every run that began to measure, however it ended. Rejects where nothing was measured.
   * @throws StorageError IDENTITY_MISMATCH, INVALID_ARGUMENT (the range does not fit the device), AUTH_FAILED, TIMEOUT,
   * INITIATOR_FAILED, CANCELLED (before the first I/O)
   */
  result: Promise<BenchResult>
  /** Ends the run soon, in state `cancelled`. Harmless when it is over. */
  cancel(): void
}

/** An empty histogram. */
export function newHistogram(): Histogram {
  return new (loadAddon<BenchAddon>('bench').Histogram)()
}

/**
 * Starts a benchmark that reads a logical unit, on a thread of its own. It keeps the process alive until its end.
 * @throws StorageError as settleJob
 */
export function start(job: BenchJob, {signal}: {signal?: AbortSignal} = {}): BenchRun {
  const settled = settleJob(job)
  const addon = loadAddon<BenchAddon>('iscsi')
  const samples = new SampleQueue()
  const cancelled = () =>
    new StorageError('CANCELLED', 'The benchmark was cancelled before it began', {op: 'bench.run'})
  if (signal?.aborted) throw cancelled()

  let cancel = () => {}
  const result = new Promise<BenchResult>((resolve, reject) => {
    const run = new addon.BenchRun(
      nativeJob(settled),
      sample => samples.push(summarizeSample(sample, settled.bs)),
      (error, report) => {
        signal?.removeEventListener('abort', cancel)
        if (report) {
          resolve(summarize(report, settled))
        } else {
          const info = {iqn: settled.login.target, lun: settled.login.lun, portal: settled.login.portal}
          reject(sessionError(error, {op: 'bench.run', info}))
        }
        samples.end()
      },
    )
    cancel = () => run.cancel()
  })
  signal?.addEventListener('abort', cancel, {once: true})
  // Who only reads samples learns of a failure there: the result need not be awaited.
  result.catch(error => samples.fail(error))
  return {samples, result, cancel: () => cancel()}
}

export function summarizeLatency(histogram: Histogram): LatencySummary {
  return {
    minNs: histogram.minNs,
    meanNs: histogram.meanNs,
    p50Ns: histogram.percentile(50),
    p95Ns: histogram.percentile(95),
    p99Ns: histogram.percentile(99),
    p999Ns: histogram.percentile(99.9),
    maxNs: histogram.maxNs,
  }
}

function nativeJob(job: SettledJob): NativeJob {
  return {
    targets: [
      {
        name: job.login.target,
        device: {kind: 'iscsi', engine: 'libiscsi', login: job.login},
        mix: {read: 100, write: 0, trim: 0},
        distribution: {kind: job.random ? 'uniform' : 'sequential'},
        blockSizes: {read: [{bytes: job.bs, percent: 100}], write: [], trim: []},
        iodepth: job.iodepth,
        numjobs: 1,
        offsetBytes: job.offsetBytes,
        sizeBytes: job.sizeBytes,
        rate: {kind: 'closed'},
        thinkTime: {us: 0, blocks: 1},
        verify: 'none',
        onError: {kind: 'continue'},
        expectedWwid: job.expectedWwid,
        expectedSerial: job.expectedSerial,
        expectedSizeBytes: job.expectedSizeBytes,
      },
    ],
    runtimeMs: job.runtimeMs,
    rampMs: 0,
    stuckMs: job.stuckMs,
    sampleMs: job.sampleMs,
    seed: job.seed,
  }
}

function summarizeSample({fromNs, toNs, total}: NativeSample, bs: number): BenchSample {
  const {errors} = total
  const latency = total.directions.read!.response
  const seconds = (toNs - fromNs) / 1e9
  const iops = perSecond(latency.count, seconds)
  return {
    fromSeconds: fromNs / 1e9,
    toSeconds: toNs / 1e9,
    ios: latency.count,
    iops,
    bytesPerSecond: iops * bs,
    errors,
    latency: summarizeLatency(latency),
  }
}

function summarize(report: NativeReport, job: SettledJob): BenchResult {
  const target = report.targets[0]!
  const {device, engine, errors, unanswered, lastError} = target
  const latency = target.directions.read!.response
  const elapsedSeconds = report.elapsedNs / 1e9
  const iops = perSecond(latency.count, elapsedSeconds)
  return {
    state: report.state,
    engine,
    rw: job.rw,
    bs: job.bs,
    iodepth: job.iodepth,
    runtimeSeconds: job.runtimeMs / 1000,
    offsetBytes: job.offsetBytes,
    sizeBytes: job.sizeBytes || device.sizeBytes - job.offsetBytes,
    seed: job.seed.toString(),
    device,
    target: {portal: job.login.portal, iqn: job.login.target, lun: job.login.lun},
    kernel: release(),
    elapsedSeconds,
    ios: latency.count,
    bytes: latency.count * job.bs,
    iops,
    bytesPerSecond: iops * job.bs,
    errors,
    unanswered,
    cpuNsPerIo: latency.count === 0 ? 0 : report.cpu.threadsNs / latency.count,
    latency: summarizeLatency(latency),
    histogram: latency,
    error: lastError,
  }
}

function perSecond(count: number, seconds: number): number {
  return seconds > 0 ? count / seconds : 0
}

/** Samples on their way from the run to its one reader. */
class SampleQueue implements AsyncIterable<BenchSample> {
  readonly #waiting: BenchSample[] = []
  #ended = false
  #error: unknown
  #wake: () => void = () => {}

  push(sample: BenchSample): void {
    this.#waiting.push(sample)
    this.#wake()
  }

  end(): void {
    this.#ended = true
    this.#wake()
  }

  fail(error: unknown): void {
    this.#error = error
    this.end()
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<BenchSample> {
    for (;;) {
      const sample = this.#waiting.shift()
      if (sample) {
        yield sample
      } else if (this.#ended) {
        if (this.#error) throw this.#error
        return
      } else {
        await new Promise<void>(resolve => {
          this.#wake = resolve
        })
      }
    }
  }
}
