import type {SettledJob} from './job.js'
import type {Histogram, NativeFigures, NativeFlushFigures, NativeSample} from './native.js'
import {type LatencySummary, perSecond, responseOf, summarizeLatency} from './result.js'

/** What happened in one interval of a run. */
export interface BenchSample {
  /** Seconds since the first I/O, the ramp included. */
  fromSeconds: number
  toSeconds: number
  /** `ramp` is not in the result; `verify`: reading back after the runtime. */
  phase: 'ramp' | 'run' | 'verify'
  ios: number
  iops: number
  bytesPerSecond: number
  errors: number
  latency: LatencySummary
  /** In the job's order. */
  targets: {name: string; iops: number; bytesPerSecond: number; errors: number; p99Ns: number}[]
}

type Latencies = Pick<NativeFlushFigures, 'response' | 'service'>

/** Puts two samples that follow each other together, in the first of them. */
export function mergeSample(into: NativeSample, next: NativeSample): void {
  into.toNs = next.toNs
  into.phase = next.phase
  mergeFigures(into.total, next.total)
  for (const [index, figures] of into.targets.entries()) mergeFigures(figures, next.targets[index]!)
}

function mergeFigures(into: NativeFigures, next: NativeFigures): void {
  into.errors += next.errors
  for (const [name, figures] of Object.entries(next.directions)) {
    const own = into.directions[name as keyof NativeFigures['directions']]!
    own.ios += figures.ios
    own.bytes += figures.bytes
    own.shortIos += figures.shortIos
    mergeLatencies(own, figures)
  }
  if (!into.flush || !next.flush) return
  into.flush.count += next.flush.count
  mergeLatencies(into.flush, next.flush)
}

function mergeLatencies(into: Latencies, next: Latencies): void {
  into.response.merge(next.response)
  // In closed loop they may be one and the same.
  if (into.service !== into.response) into.service.merge(next.service)
}

export function summarizeSample(
  {fromNs, toNs, phase, targets, total}: NativeSample,
  {native}: SettledJob,
  newHistogram: () => Histogram,
): BenchSample {
  const seconds = (toNs - fromNs) / 1e9
  const sum = ({directions}: NativeFigures, key: 'ios' | 'bytes') =>
    Object.values(directions).reduce((all, one) => all + one[key], 0)
  return {
    fromSeconds: fromNs / 1e9,
    toSeconds: toNs / 1e9,
    phase,
    ios: sum(total, 'ios'),
    iops: perSecond(sum(total, 'ios'), seconds),
    bytesPerSecond: perSecond(sum(total, 'bytes'), seconds),
    errors: total.errors,
    latency: summarizeLatency(responseOf(total, newHistogram)),
    targets: targets.map((figures, index) => ({
      name: native.targets[index]!.name,
      iops: perSecond(sum(figures, 'ios'), seconds),
      bytesPerSecond: perSecond(sum(figures, 'bytes'), seconds),
      errors: figures.errors,
      p99Ns: responseOf(figures, newHistogram).percentile(99),
    })),
  }
}
