import {formatSize} from '../size.js'
import type {BenchResult, Figures, LatencySummary, TargetResult} from './result.js'

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

/** `4 KiB`, or `4 KiB/16 KiB` where reads and writes differ; a split as it was given. */
export function formatBs({workload}: Pick<TargetResult, 'workload'>): string {
  const {bs, bssplit} = workload
  if (bssplit !== undefined) return bssplit
  return typeof bs === 'number' ? formatSize(bs).replace(' ', '') : String(bs)
}

/** A result as lines for people. */
export function textReport(result: BenchResult): string[] {
  const {targets, total, cpu} = result
  const lines = targets.flatMap(target => targetLines(target, result))
  if (targets.length > 1) {
    lines.push(
      `all ${targets.length} targets: ${result.state} after ${result.elapsedSeconds.toFixed(2)} s`,
      ...figureLines(total),
    )
  }
  const workers = cpu.ioWorkersNsPerIo > 0 ? `, of which io-wq ${formatNs(Math.round(cpu.ioWorkersNsPerIo))}` : ''
  lines.push(
    `  CPU ${formatNs(Math.round(cpu.nsPerIo))} per I/O${workers}; first completion after ${formatNs(Math.round(result.startToFirstCompletionSeconds * 1e9))}; clock ${result.clock}; kernel ${result.kernel}; seed ${result.seed}`,
  )
  for (const note of result.notes ?? []) lines.push(`  note: ${note}`)
  return lines
}

function targetLines(target: TargetResult, {elapsedSeconds: runSeconds}: BenchResult): string[] {
  const {
    elapsedSeconds = runSeconds,
    workload,
    engine,
    engineFlags,
    fallbackReason,
    openLoop,
    verify,
    little,
    error,
  } = target
  const threads = target.numjobs === 1 ? '' : ` numjobs=${target.numjobs}`
  const rate = openLoop ? ` rate_iops=${openLoop.requestedIops}` : ''
  const flushes = (['fsync', 'fdatasync'] as const)
    .map(key => (workload[key] ? ` ${key}=${workload[key]}` : ''))
    .join('')
  const flags = engineFlags.length > 0 ? `: ${engineFlags.join(' ')}` : ''
  const lines = [
    `${target.name}: ${workload.rw} bs=${formatBs(target)} iodepth=${target.iodepth}${threads}${rate}${flushes} (${engine}${flags})`,
    `  ${target.state} after ${elapsedSeconds.toFixed(2)} s: ${target.ios} I/Os, ${target.errors} errors${target.unanswered ? `, ${target.unanswered} unanswered` : ''}`,
    ...figureLines(target),
  ]
  if (fallbackReason !== '') lines.push(`  not the engine of first choice: ${fallbackReason}`)
  if (little) lines.push(`  in flight by Little's law: ${little.inFlight.toFixed(2)} (${percent(little.residual)} off)`)
  if (openLoop) {
    const {maxBacklog, unsubmitted, generatorBehind} = openLoop
    lines.push(`  open loop: largest backlog ${maxBacklog}, never submitted ${unsubmitted}`)
    if (generatorBehind)
      lines.push('  NOT VALID: the generator fell behind, not the device: this machine is too busy, or numjobs too few')
  }
  if (verify) {
    lines.push(`  verify: ${verify.verified} blocks compared, ${verify.failures} wrong`)
    for (const {offset, reason} of verify.firstFailures) lines.push(`    at ${offset}: ${reason}`)
  }
  for (const {direction, code, count, firstOffsets} of target.errorCounts) {
    const places = firstOffsets.length > 0 ? `, first at ${firstOffsets.slice(0, 4).join(', ')}` : ''
    lines.push(`  ${count} × ${code} on ${direction}${places}`)
  }
  if (error) lines.push(`  last error: ${error.message}`)
  return lines
}

function figureLines(figures: Figures): string[] {
  const {iops, bytesPerSecond, directions, latency, flush} = figures
  const all = Object.entries(directions)
  const rows = all.length > 1 ? all : []
  return [
    `  IOPS ${Math.round(iops)}  ${megabytes(bytesPerSecond)} MB/s`,
    `  latency ${latencyWords(latency)}`,
    ...rows.map(
      ([direction, one]) =>
        `  ${direction}: IOPS ${Math.round(one.iops)}  ${megabytes(one.bytesPerSecond)} MB/s  ${latencyWords(one.latency)}`,
    ),
    ...(flush ? [`  flush: ${flush.count}  ${latencyWords(flush.latency)}`] : []),
  ]
}

function latencyWords({p50Ns, p95Ns, p99Ns, p999Ns, p9999Ns, p99999Ns, maxNs, meanNs}: LatencySummary): string {
  const words = {p50: p50Ns, p95: p95Ns, p99: p99Ns, 'p99.9': p999Ns, 'p99.99': p9999Ns, 'p99.999': p99999Ns}
  const percentiles = Object.entries(words).map(([name, ns]) => `${name} ${formatNs(ns)}`)
  return `${percentiles.join('  ')}  max ${formatNs(maxNs)}  mean ${formatNs(Math.round(meanNs))}`
}

export function megabytes(bytesPerSecond: number): string {
  return (bytesPerSecond / 1e6).toFixed(1)
}

export function percent(share: number): string {
  return `${(share * 100).toFixed(2)} %`
}
