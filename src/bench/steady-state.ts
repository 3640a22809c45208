/**
 * Steady state by the rule of SNIA's Solid State Storage Performance Test Specification (PTS), version 2.0.2: in a window
 * of five rounds the excursion (largest minus least value) is at most 20 % of the window's mean, and the excursion of the
 * least-squares line within the window at most 10 % of it.
 */
export interface SteadyRule {
  rounds: number
  maxExcursion: number
  maxSlopeExcursion: number
}

export const sniaRule: SteadyRule = {rounds: 5, maxExcursion: 0.2, maxSlopeExcursion: 0.1}

export interface SteadyVerdict {
  reached: boolean
  /** Index of the window's first round; 0 where there are too few rounds for one. */
  firstRound: number
  /** The window's mean; where it is steady, this is the result. */
  mean: number
  /** (largest − least) ÷ mean. */
  excursion: number
  /** |rise of the line over the window| ÷ mean. */
  slopeExcursion: number
}

/** The verdict on the last window of `values`, one of each round. */
export function steadyState(values: number[], rule: SteadyRule = sniaRule): SteadyVerdict {
  const firstRound = Math.max(0, values.length - rule.rounds)
  const window = values.slice(firstRound)
  if (window.length === 0) return {reached: false, firstRound, mean: 0, excursion: 0, slopeExcursion: 0}
  const mean = window.reduce((sum, value) => sum + value, 0) / window.length
  const range = Math.max(...window) - Math.min(...window)
  const rise = Math.abs(slopeOf(window, mean)) * (window.length - 1)
  const relative = (value: number) => (mean > 0 ? value / mean : value === 0 ? 0 : Number.POSITIVE_INFINITY)
  const excursion = relative(range)
  const slopeExcursion = relative(rise)
  const isFull = window.length === rule.rounds && mean > 0
  const reached = isFull && excursion <= rule.maxExcursion && slopeExcursion <= rule.maxSlopeExcursion
  return {reached, firstRound, mean, excursion, slopeExcursion}
}

/** Of the least-squares line through the values at 0, 1, 2 … */
function slopeOf(values: number[], mean: number): number {
  const middle = (values.length - 1) / 2
  let products = 0
  let squares = 0
  for (const [index, value] of values.entries()) {
    products += (index - middle) * (value - mean)
    squares += (index - middle) ** 2
  }
  return squares === 0 ? 0 : products / squares
}
