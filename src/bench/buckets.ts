import type {HistogramData} from './native.js'

export function countOf({buckets}: HistogramData): number {
  let count = 0
  for (let index = 1; index < buckets.length; index += 2) count += buckets[index]!
  return count
}

/** Nearest rank, as the addon's own: the middle of the bucket, but no more than the largest and no less than the least. */
export function percentileOf(data: HistogramData, percent: number): number {
  const {buckets, minNs, maxNs, overflow} = data
  const total = countOf(data) + overflow
  if (total === 0) return 0
  const rank = rankOf(percent, total)
  let seen = 0
  for (let index = 0; index < buckets.length; index += 2) {
    seen += buckets[index + 1]!
    if (seen >= rank) return Math.min(Math.max(buckets[index]!, minNs), maxNs)
  }
  return maxNs
}

const allMillionths = 100_000_000n

/**
 * The nearest rank, 1 or more: the least whole number that is at least `percent` of `count`. In whole numbers, as
 * native/bench/histogram.h: in floating point 99.9 % of 1,000 are a little more than 999.
 */
export function rankOf(percent: number, count: number): number {
  const part = BigInt(Math.round(percent * 1e6)) * BigInt(count)
  return Math.max(1, Number((part + allMillionths - 1n) / allMillionths))
}

/** From the buckets, within their width: the squares themselves are not kept. */
export function standardDeviationOf(data: HistogramData): number {
  const count = countOf(data)
  if (count < 2) return 0
  const mean = data.sumNs / (count + data.overflow)
  let squares = 0
  for (let index = 0; index < data.buckets.length; index += 2)
    squares += (data.buckets[index]! - mean) ** 2 * data.buckets[index + 1]!
  return Math.sqrt(squares / count)
}

/** Exact, as the addon's own merge: buckets are the same everywhere. */
export function mergeData(all: HistogramData[]): HistogramData {
  const counts = new Map<number, number>()
  let [overflow, sumNs, minNs, maxNs] = [0, 0, Number.POSITIVE_INFINITY, 0]
  for (const data of all) {
    if (countOf(data) + data.overflow === 0) continue
    overflow += data.overflow
    sumNs += data.sumNs
    minNs = Math.min(minNs, data.minNs)
    maxNs = Math.max(maxNs, data.maxNs)
    for (let index = 0; index < data.buckets.length; index += 2)
      counts.set(data.buckets[index]!, (counts.get(data.buckets[index]!) ?? 0) + data.buckets[index + 1]!)
  }
  const sorted = [...counts].sort(([a], [b]) => a - b)
  return {overflow, sumNs, minNs: Number.isFinite(minNs) ? minNs : 0, maxNs, buckets: sorted.flat()}
}
