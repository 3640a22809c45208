import test from 'ava'
import {kneeOfDepths, kneeOfRates, type SweepPoint} from '../../src/bench/knee.js'
import {median, rankTest} from '../../src/bench/statistics.js'
import {steadyState} from '../../src/bench/steady-state.js'
import {generator} from '../fixtures/random.js'

test('the median of odd and even numbers of values', t => {
  t.is(median([3, 1, 2]), 2)
  t.is(median([4, 1, 2, 3]), 2.5)
  t.true(Number.isNaN(median([])))
})

test('the rank test gives the probabilities of the published tables', t => {
  // All of one sample above all of the other: 2 of the C(n+m, n) ways to deal the ranks are as far out.
  t.is(rankTest([1, 2, 3], [4, 5, 6]).p, 2 / 20)
  t.is(rankTest([4, 5, 6, 7], [1, 2, 3, 0]).p, 2 / 70)
  t.is(rankTest([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]).p, 2 / 252)
  // Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, example 4.1: W = 30 of m = 10, n = 5, p = 0.1272 one-sided.
  const atTerm = [0.8, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46]
  const early = [1.15, 0.88, 0.9, 0.74, 1.21]
  t.true(Math.abs(rankTest(atTerm, early).p - 0.2544) < 5e-5)
  t.is(rankTest(early, atTerm).p, rankTest(atTerm, early).p)
})

test('ties share their rank, and equal samples show nothing', t => {
  t.is(rankTest([5, 5, 5, 5], [5, 5, 5, 5]).p, 1)
  t.is(rankTest([1, 2, 2], [2, 2, 3]).p, rankTest([10, 20, 20], [20, 20, 30]).p)
  t.true(rankTest([1, 1, 1, 1, 2], [2, 2, 2, 2, 1]).p > 2 / 252)
})

test('the least p says when there are too few runs to tell', t => {
  t.is(rankTest([1], [2]).leastP, 1)
  t.is(rankTest([1, 2, 3], [7, 8, 9]).leastP, 0.1)
  t.true(rankTest([1, 2, 3, 4], [7, 8, 9, 10]).leastP < 0.05)
  t.deepEqual(rankTest([], [1]), {p: 1, leastP: 1})
})

test('without a difference the rank test cries wolf as often as it says', t => {
  const random = generator(3)
  const draw = () => Array.from({length: 6}, () => random())
  let alarms = 0
  for (let i = 0; i < 4000; i++) if (rankTest(draw(), draw()).p <= 0.05) alarms++
  // Exact at these sizes: P(p <= 0.05) is 0.0411.
  t.true(Math.abs(alarms / 4000 - 0.0411) < 0.0125, `${alarms} of 4000`)
})

test('steady state: five rounds within 20 % and without a slope above 10 %', t => {
  t.like(steadyState([100, 101, 99, 100, 100]), {reached: true, firstRound: 0, mean: 100, excursion: 0.02})
  t.false(steadyState([100, 101, 99, 100]).reached, 'four rounds are none')
  t.like(steadyState([100, 100, 100, 100, 121]), {reached: false}, 'the excursion')
  const rising = steadyState([94, 97, 100, 103, 106])
  t.like(rising, {reached: false, excursion: 0.12}, 'the slope')
  t.true(Math.abs(rising.slopeExcursion - 0.12) < 1e-12)
  t.like(steadyState([95.5, 97.5, 100, 102.5, 104.5]), {reached: true})
})

test('steady state looks at the last rounds, and is not reached by nothing', t => {
  t.like(steadyState([500, 300, 100, 100, 100, 100, 100]), {reached: true, firstRound: 2, mean: 100})
  t.false(steadyState([500, 300, 100, 100, 100, 100]).reached)
  t.like(steadyState([]), {reached: false})
  t.false(steadyState([0, 0, 0, 0, 0]).reached)
})

test('steady state of a drive that fills its cache comes once it has', t => {
  const random = generator(5)
  const rounds: number[] = []
  let reachedAt = 0
  while (reachedAt === 0 && rounds.length < 50) {
    rounds.push((20_000 + 80_000 * Math.exp(-rounds.length / 3)) * (1 + (random() - 0.5) * 0.04))
    if (steadyState(rounds).reached) reachedAt = rounds.length
  }
  t.true(reachedAt > 10 && reachedAt < 30, `after ${reachedAt} rounds`)
})

/** A server with a fixed number of channels: throughput rises up to it, then latency. */
function channels(count: number, serviceNs: number, noise = 0): (depth: number) => SweepPoint {
  const random = generator(9)
  return depth => {
    const iops = (Math.min(depth, count) / (serviceNs / 1e9)) * (1 + (random() - 0.5) * noise)
    const meanNs = (depth / iops) * 1e9
    return {load: depth, iops, meanNs, p99Ns: meanNs * 2, kept: true}
  }
}

test('the knee of depths is where more depth stops paying', t => {
  for (const noise of [0, 0.1]) {
    const at = channels(16, 100_000, noise)
    t.is(kneeOfDepths([1, 2, 4, 8, 16, 32, 64, 128].map(at))?.load, 16, `noise ${noise}`)
    t.is(kneeOfDepths([128, 1, 32, 4, 16, 2, 64, 8].map(at))?.load, 16, 'whatever the order')
  }
  t.regex(kneeOfDepths([1, 2, 4].map(channels(16, 1e5)))!.reason, /or beyond/)
  t.is(kneeOfDepths([1, 2].map(channels(16, 1e5))), null)
})

test('the knee of rates is the highest that was kept', t => {
  const at = (load: number): SweepPoint => {
    const iops = Math.min(load, 45_000)
    return {load, iops, meanNs: 1, p99Ns: 1, kept: iops === load}
  }
  t.is(kneeOfRates([10_000, 20_000, 40_000, 80_000].map(at))?.load, 40_000)
  t.regex(kneeOfRates([10_000, 20_000].map(at))!.reason, /beyond it/)
  t.is(kneeOfRates([80_000, 90_000].map(at)), null)
  t.is(
    kneeOfRates([{...at(10_000), kept: false}, at(20_000)]),
    null,
    'a lower rate that failed puts the higher in doubt',
  )
})
