/** The middle value; of an even number of values the mean of the two in the middle. NaN of none. */
export function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = Math.floor(sorted.length / 2)
  if (sorted.length === 0) return Number.NaN
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

export interface RankTest {
  /** Two-sided. */
  p: number
  /** The least p that samples of these sizes can give: above the level asked for, nothing can be told. */
  leastP: number
}

/**
 * The Mann–Whitney U test (Wilcoxon's rank-sum test), two-sided and exact, ties included: the share of all ways to deal
 * the ranks out to the two samples whose rank sum is at least as far from the middle as this one's. It asks nothing of
 * the distribution, which for latencies and throughput is not normal.
 */
export function rankTest(a: number[], b: number[]): RankTest {
  if (a.length === 0 || b.length === 0) return {p: 1, leastP: 1}
  const ranks = doubledRanks([...a, ...b])
  const counts = sumCounts(ranks, a.length)
  const total = [...counts.values()].reduce((sum, count) => sum + count, 0)
  // The mean of all rank sums, doubled as the ranks are.
  const middle = a.length * (a.length + b.length + 1)
  const distance = Math.abs(ranks.slice(0, a.length).reduce((sum, rank) => sum + rank, 0) - middle)
  let asFar = 0
  for (const [sum, count] of counts) if (Math.abs(sum - middle) >= distance) asFar += count
  return {p: asFar / total, leastP: Math.min(1, 2 / ways(a.length + b.length, a.length))}
}

/** Twice the rank of each value, so that ties, which share the mean of their ranks, stay whole numbers. */
function doubledRanks(values: number[]): number[] {
  return values.map(value => {
    const below = values.filter(other => other < value).length
    const same = values.filter(other => other === value).length
    return 2 * below + same + 1
  })
}

/** How many choices of `size` of the ranks have each sum. Counts are doubles: exact up to 2^53, and close enough beyond. */
function sumCounts(ranks: number[], size: number): Map<number, number> {
  const bySize: Map<number, number>[] = Array.from({length: size + 1}, () => new Map())
  bySize[0]!.set(0, 1)
  for (const rank of ranks) {
    for (let chosen = size; chosen >= 1; chosen--) {
      for (const [sum, count] of bySize[chosen - 1]!) {
        const sums = bySize[chosen]!
        sums.set(sum + rank, (sums.get(sum + rank) ?? 0) + count)
      }
    }
  }
  return bySize[size]!
}

function ways(of: number, choose: number): number {
  let count = 1
  for (let index = 1; index <= choose; index++) count = (count * (of - choose + index)) / index
  return count
}
