import {formatNs, textReport} from './report.js'
import type {Ending} from './rounds.js'
import type {SteadyReport} from './steady-run.js'
import type {SweepReport} from './sweep.js'

/** A sweep as lines for people. */
export function textSweep({over, points, knee, results, ...ending}: SweepReport): string[] {
  const [first] = results
  const head = first ? textReport(first)[0]! : ''
  const rows = points.map(({load, iops, meanNs, p99Ns, kept}) =>
    [
      String(load).padStart(10),
      String(Math.round(iops)).padStart(10),
      formatNs(Math.round(meanNs)).padStart(10),
      formatNs(p99Ns).padStart(10),
      kept ? '' : '  not kept',
      knee?.load === load ? '  <- knee' : '',
    ].join(''),
  )
  const words = knee ? `knee at ${over}=${knee.load}: ${knee.reason}` : 'no knee can be told from these'
  const columns = `${over.padStart(10)}${'IOPS'.padStart(10)}${'mean'.padStart(10)}${'p99'.padStart(10)}`
  return [head, columns, ...rows, words, ...endOf(ending)]
}

/** Rounds until steady state as lines for people, with the last round in full. */
export function textSteady({rounds, verdict, words, results, ...ending}: SteadyReport): string[] {
  const rows = rounds.map(
    (iops, index) => `  round ${index + 1}: IOPS ${Math.round(iops)}${index >= verdict.firstRound ? ' *' : ''}`,
  )
  const last = results.at(-1)
  return [...rows, words, ...endOf(ending), ...(last ? ['the last round:', ...textReport(last)] : [])]
}

function endOf(ending: Partial<Ending>): string[] {
  const words = endingWords(ending)
  return words === null ? [] : [words]
}

/** Null where all went to its end. Results of older versions do not say how they ended. */
export function endingWords({state, error}: Partial<Ending>): string | null {
  if (state === undefined || state === 'finished') return null
  if (!error) return `ended in its last round: ${state}`
  return `${state} before ${error.round}: ${error.message}`
}
