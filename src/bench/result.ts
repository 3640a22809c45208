import {hostname, release} from 'node:os'
import type {LunIdentity} from '../types.js'
import {type BenchTarget, type SettledJob, workloadOf} from './job.js'
import type {Workload} from './job-schema.js'
import type {
  Histogram,
  HistogramData,
  NativeDirection,
  NativeDirectionFigures,
  NativeErrorCount,
  NativeFigures,
  NativeOpenLoop,
  NativeReport,
  NativeState,
  NativeTarget,
  NativeTargetReport,
  NativeVerify,
} from './native.js'
import {defaultPattern, type Pattern} from './patterns.js'
import {type RanJob, ranJob} from './ran-job.js'
import {isBounded} from './workload.js'

/** In nanoseconds; percentiles within 0.39 %. Zeros where nothing was measured. */
export interface LatencySummary {
  minNs: number
  meanNs: number
  p50Ns: number
  p90Ns: number
  p95Ns: number
  p99Ns: number
  p999Ns: number
  p9999Ns: number
  p99999Ns: number
  maxNs: number
}

export interface DirectionResult {
  ios: number
  bytes: number
  iops: number
  bytesPerSecond: number
  /** Answered in part, and the rest asked for again. */
  shortIos: number
  /** The headline: intended start to completion. */
  latency: LatencySummary
  /** Submission to completion: the same in closed loop, where it is left out. */
  service?: LatencySummary
  histogram: HistogramData
  serviceHistogram?: HistogramData
}

/** Flushes after so many writes. They are no I/Os: neither in `ios` and `iops` nor in `latency` of a target. */
export interface FlushResult {
  count: number
  /** The headline: from the moment at which it was due to completion. */
  latency: LatencySummary
  /** Submission to completion: the same in closed loop, where it is left out. */
  service?: LatencySummary
  histogram: HistogramData
  serviceHistogram?: HistogramData
}

export interface Figures {
  ios: number
  bytes: number
  iops: number
  bytesPerSecond: number
  /** I/Os and flushes that were answered with an error; they are not in `ios` and `flush`. */
  errors: number
  /** Of all directions together. */
  latency: LatencySummary
  directions: Partial<Record<NativeDirection, DirectionResult>>
  /** Where the job flushes. */
  flush?: FlushResult
}

export interface TargetResult extends Figures {
  name: string
  state: NativeState
  /** Where the target ended before the run, after `io_size` or `number_ios`: its own time, of which its rates are. */
  elapsedSeconds?: number
  /** What it is; no secrets. `volume`, `driver` and `export` where lunpath's daemon ran it. */
  target: {
    kind: 'iscsi' | 'path' | 'null'
    portal?: string
    iqn?: string
    lun?: number
    path?: string
    volume?: string
    driver?: string
  }
  /** What was asked for, in fio's words. */
  workload: Workload
  /** The same as it ran, with every default in place. */
  job: RanJob
  /** What really ran, with what the kernel granted of io_uring, and why it is not the first choice. */
  engine: string
  engineFlags: string[]
  fallbackReason: string
  device: LunIdentity
  /** The range that was used. */
  offsetBytes: number
  sizeBytes: number
  iodepth: number
  numjobs: number
  errorCounts: NativeErrorCount[]
  /** I/Os in flight when the run ended. */
  unanswered: number
  /** In open loop alone. */
  openLoop?: NativeOpenLoop & {requestedIops: number}
  verify?: NativeVerify
  /** In closed loop without think time: I/Os in flight by Little's law, and how far that is from iodepth × numjobs. */
  little?: {inFlight: number; residual: number}
  error: {code: string; errno: number; message: string} | null
}

/** What happened in one interval of the time series. One in which the ramp ended counts as the run's. */
export interface SeriesPoint {
  fromSeconds: number
  toSeconds: number
  phase: 'ramp' | 'run' | 'verify'
  ios: number
  bytes: number
  errors: number
  p50Ns: number
  p99Ns: number
  maxNs: number
  /** Where the job flushes. */
  flush?: {count: number; p50Ns: number; p99Ns: number; maxNs: number}
}

/** What a run measured, as plain JSON; where it did not finish, up to its end. `schema` changes with a field's meaning. */
export interface BenchResult {
  schema: 2
  kind: 'run'
  name: string
  startedAt: string
  state: NativeState
  node: string
  kernel: string
  clock: 'tsc' | 'monotonic'
  runtimeSeconds: number
  rampSeconds: number
  /** Decimal, since a JS number cannot hold 64 bits. */
  seed: string
  /** Without the ramp: begin of the runtime to the last completion within it. */
  elapsedSeconds: number
  startToFirstCompletionSeconds: number
  /** CPU time of the run, the ramp left out, in nanoseconds per I/O; 0 where there was none. */
  cpu: {
    /** The run's own threads and the kernel's io-wq threads for them: what an I/O cost. */
    nsPerIo: number
    threadsNsPerIo: number
    ioWorkersNsPerIo: number
    /** The whole process, and the whole machine with all else that ran on it, in nanoseconds. */
    processNs: number
    machineNs: number
  }
  total: Figures
  targets: TargetResult[]
  series: SeriesPoint[]
  /** What was done otherwise than the job file says; left out where there is nothing. */
  notes?: string[]
}

/** What is known of a target beside the job, for its result. */
export type TargetFacts = Pick<TargetResult['target'], 'volume' | 'driver'>

export interface ResultContext {
  startedAt: Date
  series: SeriesPoint[]
  facts: TargetFacts[]
  newHistogram: () => Histogram
}

export function makeResult(report: NativeReport, job: SettledJob, context: ResultContext): BenchResult {
  const {newHistogram} = context
  const seconds = report.elapsedNs / 1e9
  const total = figuresOf(report.total, seconds, newHistogram, anyOpenLoop(job))
  const perIo = (ns: number) => (total.ios === 0 ? 0 : ns / total.ios)
  const {threadsNs, ioWorkersNs, processNs, machineNs} = report.cpu
  return {
    schema: 2,
    kind: 'run',
    name: job.name,
    startedAt: context.startedAt.toISOString(),
    state: report.state,
    node: hostname(),
    kernel: release(),
    clock: report.clock,
    runtimeSeconds: job.native.runtimeMs / 1000,
    rampSeconds: job.native.rampMs / 1000,
    seed: job.native.seed.toString(),
    elapsedSeconds: seconds,
    startToFirstCompletionSeconds: report.startToFirstCompletionNs / 1e9,
    cpu: {
      nsPerIo: perIo(threadsNs + ioWorkersNs),
      threadsNsPerIo: perIo(threadsNs),
      ioWorkersNsPerIo: perIo(ioWorkersNs),
      processNs,
      machineNs,
    },
    total,
    targets: report.targets.map((target, index) => ({
      ...targetResult(target, job.native.targets[index]!, newHistogram),
      target: {...targetOf(job.native.targets[index]!), ...context.facts[index]},
      workload: workloadWords(job.targets[index]!, job.shared),
      job: ranJob(rwOf(job, index), job.native.targets[index]!, target),
    })),
    series: context.series,
    ...(job.notes.length === 0 ? {} : {notes: job.notes}),
  }
}

function targetResult(
  report: NativeTargetReport,
  settled: NativeTarget,
  newHistogram: () => Histogram,
): Omit<TargetResult, 'target' | 'workload' | 'job'> {
  const {rate, iodepth, numjobs, verify} = settled
  const isOpen = rate.kind !== 'closed'
  const seconds = report.elapsedNs / 1e9
  const expected = iodepth * numjobs
  const bounded = isBounded(settled)
  // The threads of a target that ends by itself do not end together, so that fewer are in flight at its end.
  const hasLittle = !isOpen && !bounded && settled.thinkTime.us === 0 && report.littleInFlight > 0
  return {
    ...figuresOf(report, seconds, newHistogram, isOpen),
    name: report.name,
    state: report.state,
    ...(bounded ? {elapsedSeconds: seconds} : {}),
    engine: report.engine,
    engineFlags: report.engineFlags,
    fallbackReason: report.fallbackReason,
    device: report.device,
    offsetBytes: report.offsetBytes,
    sizeBytes: report.sizeBytes,
    iodepth,
    numjobs,
    errorCounts: report.errorCounts,
    unanswered: report.unanswered,
    ...(isOpen ? {openLoop: {requestedIops: rate.iops, ...report.openLoop}} : {}),
    ...(verify === 'none' ? {} : {verify: report.verify}),
    ...(hasLittle ? {little: {inFlight: report.littleInFlight, residual: report.littleInFlight / expected - 1}} : {}),
    error: report.lastError && {
      code: report.lastError.code,
      errno: report.lastError.errno,
      message: report.lastError.message,
    },
  }
}

function targetOf({device}: NativeTarget): TargetResult['target'] {
  if (device.kind === 'null') return {kind: 'null'}
  if (device.kind === 'path') return {kind: 'path', path: device.path}
  const {portal, target, lun} = device.login
  return {kind: 'iscsi', portal, iqn: target, lun}
}

const workloadKeys = [
  'rw',
  'rwmixread',
  'bs',
  'bssplit',
  'iodepth',
  'numjobs',
  'offset',
  'size',
  'offset_increment',
  'io_size',
  'number_ios',
  'random_distribution',
  'norandommap',
  'percentage_random',
  'blockalign',
  'seq_step',
  'seq_ios',
  'rw_sequencer',
  'startdelay',
  'rate_iops',
  'rate_process',
  'thinktime',
  'thinktime_blocks',
  'fsync',
  'fdatasync',
  'verify',
] as const satisfies (keyof Workload)[]

/** What was asked for, with the defaults that a reader looks for. Never what else a target holds, such as secrets. */
function workloadWords(target: BenchTarget, shared: Workload): Workload {
  const said = workloadOf(shared, target)
  const chosen = Object.fromEntries(workloadKeys.filter(key => said[key] !== undefined).map(key => [key, said[key]]))
  const defaults = {rw: defaultPattern, ...(said.bssplit === undefined ? {bs: 4096} : {}), iodepth: 1, numjobs: 1}
  return {...defaults, ...chosen}
}

function rwOf({targets, shared}: SettledJob, index: number): Pattern {
  return workloadOf(shared, targets[index]!).rw ?? defaultPattern
}

function anyOpenLoop({native}: SettledJob): boolean {
  return native.targets.some(({rate}) => rate.kind !== 'closed')
}

export function figuresOf(
  figures: NativeFigures,
  seconds: number,
  newHistogram: () => Histogram,
  withService: boolean,
): Figures {
  const {directions, flush, errors} = figures
  const all = Object.entries(directions) as [NativeDirection, NativeDirectionFigures][]
  const ios = all.reduce((sum, [, one]) => sum + one.ios, 0)
  const bytes = all.reduce((sum, [, one]) => sum + one.bytes, 0)
  return {
    ios,
    bytes,
    iops: perSecond(ios, seconds),
    bytesPerSecond: perSecond(bytes, seconds),
    errors,
    latency: summarizeLatency(responseOf(figures, newHistogram)),
    directions: Object.fromEntries(all.map(([name, one]) => [name, directionResult(one, seconds, withService)])),
    ...(flush ? {flush: {count: flush.count, ...latencies(flush, withService)}} : {}),
  }
}

function directionResult(one: NativeDirectionFigures, seconds: number, withService: boolean): DirectionResult {
  const {ios, bytes, shortIos} = one
  return {
    ios,
    bytes,
    iops: perSecond(ios, seconds),
    bytesPerSecond: perSecond(bytes, seconds),
    shortIos,
    ...latencies(one, withService),
  }
}

function latencies(
  {response, service}: Pick<NativeDirectionFigures, 'response' | 'service'>,
  withService: boolean,
): Omit<FlushResult, 'count'> {
  return {
    latency: summarizeLatency(response),
    histogram: response.save(),
    ...(withService ? {service: summarizeLatency(service), serviceHistogram: service.save()} : {}),
  }
}

/** The headline latency of all directions together. */
export function responseOf({directions}: NativeFigures, newHistogram: () => Histogram): Histogram {
  const [first, ...others] = Object.values(directions)
  if (first && others.length === 0) return first.response
  const all = newHistogram()
  for (const {response} of Object.values(directions)) all.merge(response)
  return all
}

export function summarizeLatency(histogram: Histogram): LatencySummary {
  return {
    minNs: histogram.minNs,
    meanNs: histogram.meanNs,
    p50Ns: histogram.percentile(50),
    p90Ns: histogram.percentile(90),
    p95Ns: histogram.percentile(95),
    p99Ns: histogram.percentile(99),
    p999Ns: histogram.percentile(99.9),
    p9999Ns: histogram.percentile(99.99),
    p99999Ns: histogram.percentile(99.999),
    maxNs: histogram.maxNs,
  }
}

export function perSecond(count: number, seconds: number): number {
  return seconds > 0 ? count / seconds : 0
}
