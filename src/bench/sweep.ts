import {StorageError} from '../errors.js'
import type {BenchJob} from './job.js'
import {type Knee, kneeOfDepths, kneeOfRates, type SweepPoint} from './knee.js'
import type {BenchResult} from './result.js'
import {type Ending, type RoundOptions, Rounds} from './rounds.js'

export type SweepOver = 'iodepth' | 'rate_iops'

/** A sweep as plain JSON. */
export interface SweepReport extends Ending {
  schema: 2
  kind: 'sweep'
  name: string
  startedAt: string
  over: SweepOver
  points: SweepPoint[]
  knee: Knee | null
  /** One of each step. */
  results: BenchResult[]
}

const mostSteps = 64
/** Of the arrivals: a rate of which less comes back is not kept. */
const keptShare = 0.99

/**
 * Runs a job once for each value of `iodepth` or `rate_iops`, in rising order, and finds the knee (knee.ts has the rules).
 * A step that does not finish, or not begin, ends the sweep, with what there is; so does a rate that was not kept.
 * @throws StorageError as start(), of the first step; INVALID_ARGUMENT for values that are no sweep
 */
export async function sweep(
  job: BenchJob,
  over: SweepOver,
  values: number[],
  options: RoundOptions = {},
): Promise<SweepReport> {
  const steps = [...new Set(values)].sort((a, b) => a - b)
  if (steps.length < 2 || steps.length > mostSteps)
    throw new StorageError('INVALID_ARGUMENT', `A sweep has 2 to ${mostSteps} values of ${over}`, {info: {values}})
  const startedAt = new Date().toISOString()
  const rounds = new Rounds(options)
  const points: SweepPoint[] = []
  for (const [index, value] of steps.entries()) {
    const round = {number: index + 1, of: steps.length, label: `${over}=${value}`}
    const result = await rounds.next(withLoad(job, over, value), round)
    if (!result) break
    points.push(pointOf(result, value))
    if (!points.at(-1)!.kept) break
  }
  const knee = over === 'iodepth' ? kneeOfDepths(points) : kneeOfRates(points)
  const {results, ending} = rounds
  return {schema: 2, kind: 'sweep', name: job.name ?? 'bench', startedAt, ...ending, over, points, knee, results}
}

/** The swept value stands before what any target says itself. */
function withLoad(job: BenchJob, over: SweepOver, value: number): BenchJob {
  const targets = Array.isArray(job.target) ? job.target : [job.target]
  return {...job, target: targets.map(target => ({...target, [over]: value}))}
}

function pointOf({state, total, targets, elapsedSeconds, runtimeSeconds}: BenchResult, load: number): SweepPoint {
  const {iops, latency} = total
  const open = targets.flatMap(({openLoop}) => (openLoop ? [openLoop] : []))
  const arrivals = open.reduce((sum, one) => sum + one.arrivals, 0)
  // What was due is answered also after the end, so a target that is too slow shows in how long that took.
  const answered = (total.ios + total.errors) / Math.max(elapsedSeconds, runtimeSeconds)
  const keptUp = open.length === 0 || answered >= (arrivals / runtimeSeconds) * keptShare
  const kept = state === 'finished' && keptUp && !open.some(({generatorBehind}) => generatorBehind)
  return {load, iops, meanNs: latency.meanNs, p99Ns: latency.p99Ns, kept}
}
