import test from 'ava'
import {compare} from '../../src/bench/compare.js'
import {madeResult} from '../fixtures/bench-results.js'

const runs = (count: number, meanNs: number, more: object = {}) =>
  Array.from({length: count}, (_, index) =>
    madeResult({seed: meanNs + index, ios: 2000, meanNs: meanNs + index * 100, ...more}),
  )
const verdicts = (comparison: ReturnType<typeof compare>) =>
  Object.fromEntries(comparison.metrics.map(({metric, verdict}) => [metric, verdict]))

test('a clear difference over repeated runs is told, in the direction that counts for each metric', t => {
  const slower = compare(runs(5, 100_000), runs(5, 150_000))
  t.like(verdicts(slower), {IOPS: 'worse', 'latency mean': 'worse', 'latency p99': 'worse'})
  t.is(verdicts(slower)['CPU per I/O'], 'no difference shown')
  const faster = compare(runs(5, 150_000), runs(5, 100_000))
  t.like(verdicts(faster), {IOPS: 'better', 'latency p50': 'better'})
  const [iops] = faster.metrics
  t.true(Math.abs(iops!.ratio - 1.5) < 0.01)
  t.is(iops!.p, 2 / 252)
  t.deepEqual(
    slower.differences.filter(one => !/^runtime/.test(one)),
    [],
  )
})

test('flushes are compared where all runs have them', t => {
  const slower = compare(runs(5, 100_000, {flushes: 200}), runs(5, 150_000, {flushes: 200}))
  t.like(verdicts(slower), {'flush mean': 'worse', 'flush p99': 'worse', 'latency mean': 'worse'})
  const one = compare(runs(5, 100_000, {flushes: 200}), runs(5, 150_000))
  t.deepEqual(Object.keys(verdicts(one)), Object.keys(verdicts(compare(runs(5, 100_000), runs(5, 150_000)))))
  t.false('flush mean' in verdicts(one))
  t.true(one.differences.some(difference => /^workload:.*"fdatasync":32/.test(difference)))
})

test('too few runs to tell are called that, however far apart they are', t => {
  for (const count of [1, 2, 3]) {
    const {metrics} = compare(runs(count, 100_000), runs(count, 900_000))
    for (const {verdict} of metrics) t.is(verdict, 'too few runs')
  }
  t.is(compare(runs(4, 100_000), runs(4, 900_000)).metrics[0]!.verdict, 'worse')
})

test('runs that overlap show no difference', t => {
  const a = [100, 104, 98, 101, 103].map((us, seed) => madeResult({seed, ios: 2000, meanNs: us * 1000}))
  const b = [101, 99, 105, 100, 102].map((us, seed) => madeResult({seed: seed + 9, ios: 2000, meanNs: us * 1000}))
  for (const {verdict} of compare(a, b).metrics) t.is(verdict, 'no difference shown')
})

test('runs that did not finish are left out, and what else differs is said', t => {
  const unfinished = madeResult({state: 'stuck'})
  const other = runs(4, 100_000, {kernel: '6.12.0'})
  other[0]!.targets[0]!.workload.iodepth = 16
  const comparison = compare([...runs(4, 100_000), unfinished], other)
  t.is(comparison.leftOut, 1)
  t.is(comparison.metrics[0]!.a.runs, 4)
  t.true(comparison.differences.some(one => one === 'kernel: 6.1.0 against 6.12.0'))
  t.true(comparison.differences.some(one => /^workload:.*"iodepth":16/.test(one)))
  t.deepEqual(compare([unfinished], runs(4, 1000)).metrics, [])
})
