import {packageVersion} from '../native.js'
import {countOf, mergeData, percentileOf, standardDeviationOf} from './buckets.js'
import type {HistogramData, NativeDirection} from './native.js'
import type {BenchResult, DirectionResult, TargetResult} from './result.js'

// The layout of fio 3.33's --output-format=json+ (stat.c, add_ddir_status_json), so that what reads fio's results reads
// these. What is not measured has fio's own zeros: slat, context switches, page faults, interval statistics.

/** fio's default percentile list (stat.h). */
const percents = [1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.5, 99.9, 99.95, 99.99]
const directions = ['read', 'write', 'trim'] as const satisfies NativeDirection[]
const empty: HistogramData = {overflow: 0, sumNs: 0, minNs: 0, maxNs: 0, buckets: []}

/** A result as fio's json+: a job for each target. */
export function fioReport(result: BenchResult): object {
  const at = new Date(result.startedAt)
  const ended = at.getTime() + Math.round((result.elapsedSeconds + result.rampSeconds) * 1000)
  return {
    'fio version': `lunpath-${packageVersion()}`,
    timestamp: Math.floor(ended / 1000),
    timestamp_ms: ended,
    time: new Date(ended).toUTCString(),
    jobs: result.targets.map((target, index) => fioJob(target, index, result)),
    disk_util: [],
  }
}

function fioJob(target: TargetResult, index: number, result: BenchResult): object {
  const {rampSeconds, cpu, total} = result
  const {elapsedSeconds = result.elapsedSeconds} = target
  const runtimeMs = Math.round(elapsedSeconds * 1000)
  const latency = mergeData(Object.values(target.directions).map(({histogram}) => histogram))
  // fio tells user from system time; the engine counts both, with the kernel's workers, as one.
  const busyNs = cpu.nsPerIo * (total.ios === 0 ? 0 : target.ios)
  return {
    jobname: target.name,
    groupid: index,
    error: target.error?.errno ?? 0,
    eta: 0,
    elapsed: Math.ceil(elapsedSeconds + rampSeconds),
    'job options': fioOptions(target),
    ...Object.fromEntries(directions.map(name => [name, fioDirection(target.directions[name], runtimeMs)])),
    sync: {total_ios: target.flush?.count ?? 0, lat_ns: fioLatency(target.flush?.histogram ?? empty, true)},
    job_runtime: runtimeMs,
    usr_cpu: elapsedSeconds > 0 ? (busyNs / 1e9 / elapsedSeconds) * 100 : 0,
    sys_cpu: 0,
    ctx: 0,
    majf: 0,
    minf: 0,
    iodepth_level: depthLevels(target),
    iodepth_submit: zeros(['0', '4', '8', '16', '32', '64', '>=64']),
    iodepth_complete: zeros(['0', '4', '8', '16', '32', '64', '>=64']),
    latency_ns: shares(latency, 1, 0, [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000]),
    latency_us: shares(latency, 1e3, 1000, [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000]),
    latency_ms: {
      ...shares(latency, 1e6, 1e6, [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000, 2000]),
      '>=2000': share(latency, 2e9, Number.POSITIVE_INFINITY),
    },
    latency_depth: target.iodepth,
    latency_target: 0,
    latency_percentile: 100,
    latency_window: 0,
  }
}

function fioOptions({name, target, workload, engine}: TargetResult): Record<string, string> {
  const filename = target.path ?? (target.iqn ? `iscsi://${target.portal}/${target.iqn}/${target.lun}` : undefined)
  const said = {name, filename, ioengine: engine, ...workload}
  return Object.fromEntries(
    Object.entries(said).flatMap(([key, value]) => (value === undefined ? [] : [[key, String(value)]])),
  )
}

function fioDirection(figures: DirectionResult | undefined, runtimeMs: number): object {
  const {
    ios = 0,
    bytes = 0,
    iops = 0,
    bytesPerSecond = 0,
    shortIos = 0,
    histogram = empty,
    serviceHistogram,
  } = figures ?? {}
  return {
    io_bytes: bytes,
    io_kbytes: Math.floor(bytes / 1024),
    bw_bytes: Math.round(bytesPerSecond),
    bw: Math.floor(bytesPerSecond / 1024),
    iops,
    runtime: ios === 0 ? 0 : runtimeMs,
    total_ios: ios,
    short_ios: shortIos,
    drop_ios: 0,
    slat_ns: fioLatency(empty, false),
    // Submission to completion, and from the intended start: fio's words for the same two.
    clat_ns: fioLatency(serviceHistogram ?? histogram, true),
    lat_ns: fioLatency(histogram, true),
    bw_min: 0,
    bw_max: 0,
    bw_agg: 0,
    bw_mean: 0,
    bw_dev: 0,
    bw_samples: 0,
    iops_min: 0,
    iops_max: 0,
    iops_mean: 0,
    iops_stddev: 0,
    iops_samples: 0,
  }
}

function fioLatency(data: HistogramData, withBins: boolean): object {
  const n = countOf(data) + data.overflow
  const summary = {
    min: data.minNs,
    max: data.maxNs,
    mean: n === 0 ? 0 : data.sumNs / n,
    stddev: standardDeviationOf(data),
    N: n,
  }
  // fio leaves both out where there was no I/O.
  if (!withBins || n === 0) return summary
  const percentile = Object.fromEntries(percents.map(percent => [percent.toFixed(6), percentileOf(data, percent)]))
  const bins: Record<string, number> = {}
  for (let index = 0; index < data.buckets.length; index += 2)
    bins[String(data.buckets[index])] = data.buckets[index + 1]!
  // Beyond 100 s there are no buckets: the largest stands for all of them.
  if (data.overflow > 0) bins[String(data.maxNs)] = (bins[String(data.maxNs)] ?? 0) + data.overflow
  return {...summary, percentile, bins}
}

/** Known in closed loop alone: it is always the same. */
function depthLevels({iodepth, openLoop, ios}: TargetResult): Record<string, number> {
  const levels = zeros(['1', '2', '4', '8', '16', '32', '>=64'])
  if (openLoop || ios === 0) return levels
  const level = iodepth >= 64 ? '>=64' : String(2 ** Math.floor(Math.log2(iodepth)))
  return {...levels, [level]: 100}
}

function zeros(names: string[]): Record<string, number> {
  return Object.fromEntries(names.map(name => [name, 0]))
}

/** Percent of I/Os above the bound before and up to each; the bounds are in units of `unit` nanoseconds. */
function shares(data: HistogramData, unit: number, fromNs: number, bounds: number[]): Record<string, number> {
  let lower = fromNs
  return Object.fromEntries(
    bounds.map(bound => {
      const upper = bound * unit
      const value = share(data, lower, upper)
      lower = Math.max(lower, upper)
      return [String(bound), value]
    }),
  )
}

/** Percent of I/Os that took at least `fromNs` and less than `toNs`. */
function share(data: HistogramData, fromNs: number, toNs: number): number {
  const total = countOf(data) + data.overflow
  if (total === 0) return 0
  let count = toNs === Number.POSITIVE_INFINITY ? data.overflow : 0
  for (let index = 0; index < data.buckets.length; index += 2) {
    const ns = data.buckets[index]!
    if (ns >= fromNs && ns < toNs) count += data.buckets[index + 1]!
  }
  return (count / total) * 100
}
