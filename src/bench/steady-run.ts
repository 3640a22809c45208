import {StorageError} from '../errors.js'
import type {BenchJob} from './job.js'
import {percent} from './report.js'
import type {BenchResult} from './result.js'
import {type Ending, type RoundOptions, Rounds} from './rounds.js'
import {type SteadyVerdict, sniaRule, steadyState} from './steady-state.js'

/** Rounds until steady state, as plain JSON. */
export interface SteadyReport extends Ending {
  schema: 2
  kind: 'steady'
  name: string
  startedAt: string
  /** IOPS of each. */
  rounds: number[]
  verdict: SteadyVerdict
  /** The verdict as a sentence. */
  words: string
  results: BenchResult[]
}

/** The most that SNIA's PTS waits for. */
export const mostRounds = 25

/**
 * Repeats a job until the IOPS of its last five rounds are steady (steady-state.ts), at most `rounds` times. What a round
 * is, its runtime says: the specification's lasts a minute. A round that does not finish, or not begin, ends it.
 * @throws StorageError as start(), of the first round; INVALID_ARGUMENT
 */
export async function untilSteady(
  job: BenchJob,
  {rounds: most = mostRounds, ...options}: RoundOptions & {rounds?: number} = {},
): Promise<SteadyReport> {
  if (!Number.isInteger(most) || most < sniaRule.rounds || most > 1000)
    throw new StorageError('INVALID_ARGUMENT', `Steady state takes ${sniaRule.rounds} to 1000 rounds`, {
      info: {rounds: most},
    })
  const startedAt = new Date().toISOString()
  const measured = new Rounds(options)
  const rounds: number[] = []
  let verdict = steadyState(rounds)
  while (rounds.length < most && !verdict.reached) {
    const number = rounds.length + 1
    const result = await measured.next(job, {number, of: most, label: `round ${number}`})
    if (result?.state !== 'finished') break
    rounds.push(result.total.iops)
    verdict = steadyState(rounds)
  }
  const name = job.name ?? 'bench'
  const words = verdictWords(rounds, verdict)
  const {results, ending} = measured
  return {schema: 2, kind: 'steady', name, startedAt, ...ending, rounds, verdict, words, results}
}

function verdictWords(rounds: number[], {reached, firstRound, mean, excursion, slopeExcursion}: SteadyVerdict): string {
  const figures = `excursion ${percent(excursion)} (at most ${percent(sniaRule.maxExcursion)}), slope ${percent(slopeExcursion)} (at most ${percent(sniaRule.maxSlopeExcursion)})`
  if (reached)
    return `Steady state reached in rounds ${firstRound + 1} to ${rounds.length}: ${Math.round(mean)} IOPS, ${figures}.`
  if (rounds.length < sniaRule.rounds)
    return `Steady state NOT reached: it ended after ${rounds.length} rounds, and the rule needs ${sniaRule.rounds}.`
  return `Steady state NOT reached in ${rounds.length} rounds: of the last ${sniaRule.rounds}, ${figures}.`
}
