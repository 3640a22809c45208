import type {BenchResult, BenchSample} from './run.js'

/** `412 µs`, `1.24 ms`: three significant digits. */
export function formatNs(ns: number): string {
  const units = ['ns', 'µs', 'ms', 's']
  let value = ns
  let unit = 0
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000
    unit++
  }
  return `${Number.isInteger(value) && unit === 0 ? value : Number(value.toPrecision(3))} ${units[unit]}`
}

/** A result as plain JSON, as the API answers it. `schema` changes when a field's meaning does. */
export interface BenchReport extends Omit<BenchResult, 'histogram' | 'error'> {
  schema: 1
  error: {code: string; errno: number; message: string} | null
}

/** A result as lines for people. */
export function textReport(result: BenchReport): string[] {
  const {latency} = result
  const lines = [
    `${result.rw} bs=${result.bs} iodepth=${result.iodepth} ${result.target.iqn} LUN ${result.target.lun} (${result.engine}, seed ${result.seed})`,
    `  ${result.state} after ${result.elapsedSeconds.toFixed(2)} s: ${result.ios} reads, ${result.errors} errors${result.unanswered ? `, ${result.unanswered} unanswered` : ''}`,
    `  IOPS ${Math.round(result.iops)}  ${megabytes(result.bytesPerSecond)} MB/s  CPU ${formatNs(result.cpuNsPerIo)} per I/O`,
    `  latency p50 ${formatNs(latency.p50Ns)}  p95 ${formatNs(latency.p95Ns)}  p99 ${formatNs(latency.p99Ns)}  p99.9 ${formatNs(latency.p999Ns)}  max ${formatNs(latency.maxNs)}  mean ${formatNs(latency.meanNs)}`,
  ]
  if (result.error) lines.push(`  last error: ${result.error.message}`)
  return lines
}

/** A sample as one line for people. */
export function textSample(sample: BenchSample): string {
  const {iops, bytesPerSecond, latency} = sample
  return `${sample.toSeconds.toFixed(1)} s  IOPS ${Math.round(iops)}  ${megabytes(bytesPerSecond)} MB/s  p99 ${formatNs(latency.p99Ns)}`
}

export function jsonReport({histogram: _, error, ...facts}: BenchResult): BenchReport {
  return {schema: 1, ...facts, error: error && {code: error.code, errno: error.errno, message: error.message}}
}

function megabytes(bytesPerSecond: number): string {
  return (bytesPerSecond / 1e6).toFixed(1)
}
