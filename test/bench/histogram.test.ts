import test from 'ava'
import {percentileOf, rankOf} from '../../src/bench/buckets.js'
import {newHistogram} from '../../src/bench/run.js'

/** Deterministic, so that a failure can be repeated: mulberry32. */
function generator(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

const distributions: Record<string, (random: () => number) => number> = {
  'uniform up to 1 ms': random => random() * 1e6,
  'log-uniform from 1 ns to 100 s': random => 10 ** (random() * 11),
  exponential: random => -Math.log(1 - random()) * 150_000,
  'two peaks': random => (random() < 0.99 ? 90_000 + random() * 20_000 : 4e9 + random() * 1e9),
  'one value': () => 123_457,
  'a few nanoseconds': random => random() * 300,
}
const percents = [0.001, 1, 5, 25, 50, 75, 90, 95, 99, 99.9, 99.99, 100]

for (const [name, draw] of Object.entries(distributions)) {
  test(`percentiles are within 0.39 % of the exact ones: ${name}`, t => {
    const random = generator(7)
    const values = Array.from({length: 50_000}, () => Math.max(1, Math.floor(draw(random))))
    const histogram = newHistogram()
    for (const value of values) histogram.record(value)
    values.sort((a, b) => a - b)
    for (const percent of percents) {
      const exact = values[rankOf(percent, values.length) - 1]!
      const found = histogram.percentile(percent)
      t.true(Math.abs(found - exact) <= exact / 256, `p${percent}: ${found}, exactly ${exact}`)
    }
    t.is(histogram.count, values.length)
    t.is(histogram.minNs, values[0]!)
    t.is(histogram.maxNs, values.at(-1)!)
    const mean = values.reduce((sum, value) => sum + value) / values.length
    t.true(Math.abs(histogram.meanNs - mean) < mean * 1e-9)
  })
}

test('a percentile is the value of the nearest rank, to the last value', t => {
  // Below 256 ns a bucket is one nanosecond wide. The rank of p99.9 is 999, of 1,000 values: not that of the maximum.
  const histogram = newHistogram()
  for (let i = 0; i < 998; i++) histogram.record(1)
  histogram.record(2)
  histogram.record(3)
  const expected = {99.8: 1, 99.9: 2, 99.99: 3, 100: 3}
  for (const [percent, value] of Object.entries(expected)) {
    t.is(histogram.percentile(Number(percent)), value, `p${percent}`)
    t.is(percentileOf(histogram.save(), Number(percent)), value, `p${percent} of the saved one`)
  }
  // ceil(percent × count / 100), as fractions have it.
  const ranks = [
    [99.9, 1000, 999],
    [99.9, 1001, 1000],
    [99.99, 10_000, 9999],
    [99.999, 100_000, 99_999],
    [55, 100, 55],
    [7, 100, 7],
    [0.1, 1000, 1],
    [0.001, 100, 1],
    [100, 2 ** 52, 2 ** 52],
  ] as const
  for (const [percent, count, rank] of ranks) t.is(rankOf(percent, count), rank, `${percent} % of ${count}`)
})

test('merging parts gives exactly what recording all would give', t => {
  const random = generator(11)
  const whole = newHistogram()
  const parts = [newHistogram(), newHistogram(), newHistogram()]
  for (let i = 0; i < 30_000; i++) {
    const value = Math.floor(10 ** (random() * 11.5))
    whole.record(value)
    parts[i % 3]!.record(value)
  }
  const merged = newHistogram()
  for (const part of parts) merged.merge(part)
  t.true(whole.overflow > 0)
  t.deepEqual(
    [merged.count, merged.overflow, merged.minNs, merged.maxNs],
    [whole.count, whole.overflow, whole.minNs, whole.maxNs],
  )
  for (let percent = 0.1; percent <= 100; percent += 0.1) t.is(merged.percentile(percent), whole.percentile(percent))
})

test('what took longer than 100 s is counted as overflow and is still the maximum', t => {
  const histogram = newHistogram()
  for (const value of [1000, 100e9, 100e9 + 1, 3600e9]) histogram.record(value)
  t.is(histogram.overflow, 2)
  t.is(histogram.count, 4)
  t.is(histogram.percentile(100), 3600e9)
})

test('an empty histogram reports zeros, and nonsense is refused', t => {
  const histogram = newHistogram()
  t.deepEqual([histogram.percentile(99), histogram.minNs, histogram.maxNs, histogram.meanNs], [0, 0, 0, 0])
  for (const value of [-1, Number.NaN, Number.POSITIVE_INFINITY]) t.throws(() => histogram.record(value))
  for (const percent of [0, -1, 100.1, Number.NaN]) t.throws(() => histogram.percentile(percent))
  t.throws(() => histogram.merge({} as never), {instanceOf: TypeError})
})
