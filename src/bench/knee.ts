/** One step of a sweep: what was asked for, and what came of it. */
export interface SweepPoint {
  /** I/Os in flight, or arrivals a second. */
  load: number
  iops: number
  /** Of the headline latency. */
  p99Ns: number
  meanNs: number
  /** False where the run did not finish, or where less than 99 % of an open loop's rate came back. */
  kept: boolean
}

export interface Knee {
  load: number
  iops: number
  p99Ns: number
  /** Why this one, in a sentence. */
  reason: string
}

/** From here on more load gives less than this share of the throughput that it should. */
const leastGain = 0.5

/**
 * The knee of a sweep over iodepth: the last depth that still paid. Going on to the next one (in rising order), throughput
 * rose by less than half of the share by which the depth rose, and it never pays again later. By Little's law the other
 * half went into latency.
 */
export function kneeOfDepths(points: SweepPoint[]): Knee | null {
  const sorted = usable(points)
  if (sorted.length < 3) return null
  let last = 0
  for (let index = 1; index < sorted.length; index++) {
    const [before, after] = [sorted[index - 1]!, sorted[index]!]
    const asked = after.load / before.load - 1
    const got = after.iops / before.iops - 1
    if (asked > 0 && got >= asked * leastGain) last = index
  }
  const {load, iops, p99Ns} = sorted[last]!
  if (last === sorted.length - 1)
    return {load, iops, p99Ns, reason: 'the largest depth still paid: the knee is there or beyond'}
  const reason = `beyond it throughput rises by less than ${leastGain * 100} % of what the depth rises by`
  return {load, iops, p99Ns, reason}
}

/** The knee of a sweep over rates: the highest one that was kept, with every lower one kept too. */
export function kneeOfRates(points: SweepPoint[]): Knee | null {
  const sorted = points.toSorted((a, b) => a.load - b.load)
  const broken = sorted.findIndex(({kept}) => !kept)
  const last = sorted[broken === -1 ? sorted.length - 1 : broken - 1]
  if (!last) return null
  const {load, iops, p99Ns} = last
  const reason =
    broken === -1 ? 'the highest rate was kept: the knee is beyond it' : 'the next higher rate was not kept'
  return {load, iops, p99Ns, reason}
}

function usable(points: SweepPoint[]): SweepPoint[] {
  return points.filter(({kept, iops}) => kept && iops > 0).toSorted((a, b) => a.load - b.load)
}
