import type {BenchResult} from './result.js'

const columns = [
  'from_seconds',
  'to_seconds',
  'phase',
  'ios',
  'iops',
  'bytes_per_second',
  'errors',
  'p50_ns',
  'p99_ns',
  'max_ns',
  'flushes',
  'flush_p50_ns',
  'flush_p99_ns',
  'flush_max_ns',
] as const

/** The time series of a result as CSV (RFC 4180), one row for each interval; the ramp's and the verification's are marked. */
export function csvReport({series}: BenchResult): string {
  const rows = series.map(({fromSeconds, toSeconds, phase, ios, bytes, errors, p50Ns, p99Ns, maxNs, flush}) => {
    const seconds = toSeconds - fromSeconds
    const perSecond = (count: number) => (seconds > 0 ? (count / seconds).toFixed(1) : '0')
    return [
      fromSeconds.toFixed(6),
      toSeconds.toFixed(6),
      phase,
      ios,
      perSecond(ios),
      perSecond(bytes),
      errors,
      p50Ns,
      p99Ns,
      maxNs,
      ...(flush ? [flush.count, flush.p50Ns, flush.p99Ns, flush.maxNs] : [0, 0, 0, 0]),
    ].join(',')
  })
  return [columns.join(','), ...rows, ''].join('\r\n')
}
