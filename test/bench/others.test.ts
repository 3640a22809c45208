// `npm run bench`: how samples of two sides are taken, compared and shown.
import test from 'ava'
import {type Pass, parts, rowsOf, withAll} from '../../bench/cinder.js'
import {inTurn, measurePaired} from '../../bench/measure.js'
import {paragraph, resultOf, table} from '../../bench/report.js'
import {run} from '../../src/exec.js'

const pass = (ms: number, more: Partial<Pass> = {}): Pass =>
  withAll({create: ms, export: ms, connect: ms, disconnect: ms, unexport: ms, delete: ms, ...more})

test('1. the sides run in turn, and which goes first alternates', async t => {
  const order: string[] = []
  const side = (name: string) => async () => order.push(name)
  const results = await inTurn({ours: side('ours'), other: side('other')}, 3)
  t.deepEqual(order, ['ours', 'other', 'other', 'ours', 'ours', 'other'])
  t.deepEqual(results, [
    {ours: 1, other: 2},
    {ours: 4, other: 3},
    {ours: 5, other: 6},
  ])
})

test('2. the first pair counts for nothing, and the ratio is the median of the ratios of pairs', async t => {
  const samples = (values: number[]) => async () => values.shift()!
  const {ours, other, ratio} = await measurePaired({ours: samples([99, 1, 4, 30]), other: samples([1, 10, 20, 40])}, 3)
  t.deepEqual(ours, {median: 4, min: 1, max: 30, samples: 3})
  t.deepEqual(other, {median: 20, min: 10, max: 40, samples: 3})
  t.is(ratio, 0.2)
})

test('3. a step of Cinder has a row, and so have all together; one at a time alone has bars', t => {
  const passes = [
    {ours: pass(1, {export: 1}), other: pass(10, {export: 100})},
    {ours: pass(2, {export: 6}), other: pass(10, {export: 100})},
    {ours: pass(3, {export: 8}), other: pass(10, {export: 100})},
  ]
  const rows = rowsOf(1, passes)
  t.deepEqual(
    rows.map(({name}) => name),
    parts.map(part => `one at a time: ${part}`),
  )
  t.is(rows[0]!.paired.ratio, 0.2)
  t.is(rows[1]!.paired.ratio, 0.06)
  t.is(rows.at(-1)!.paired.ours.median, 16)
  t.is(rows.at(-1)!.paired.other.median, 150)
  t.true(rows.every(({bar}) => bar !== null))
  t.true(rowsOf(8, passes).every(({bar, name}) => bar === null && name.startsWith('8 at once: ')))
  t.deepEqual(rowsOf(8, []), [])
})

test('4. a result says whether its bar holds, and a table shows what there is of each row', t => {
  const facts = {unit: 'ms', better: 'lower' as const, statistic: 'median of 3 paired ratios', otherName: 'another'}
  const summary = (median: number) => ({median, min: median - 1, max: median + 1, samples: 3})
  const paired = (ours: number, other: number) => ({ours: summary(ours), other: summary(other), ratio: ours / other})
  const results = [
    resultOf({...facts, name: 'first', paired: paired(20, 100), bar: {atMost: 0.2}, beside: {execve: 1}}),
    resultOf({...facts, name: 'second', paired: paired(30, 100), bar: {atMost: 0.2}, beside: {execve: null}}),
    resultOf({...facts, name: 'third', paired: paired(30, 100), bar: {atLeast: 0.2}, beside: {}}),
    resultOf({...facts, name: 'fourth', paired: paired(30, 100), bar: null, beside: {}}),
  ]
  t.deepEqual(
    results.map(({bar}) => bar?.holds),
    [true, false, true, undefined],
  )
  t.is(
    table(results),
    [
      '|        | other, ms | lunpath, ms | ratio | bar                   | execve  |',
      '| ------ | --------- | ----------- | ----- | --------------------- | ------- |',
      '| first  | 100       | 20          | 0.200 | ≤ 0.200 holds         | 1       |',
      '| second | 100       | 30          | 0.300 | ≤ 0.200 DOES NOT HOLD | unknown |',
      '| third  | 100       | 30          | 0.300 | ≥ 0.200 holds         |         |',
      '| fourth | 100       | 30          | 0.300 |                       |         |',
    ].join('\n'),
  )
  t.is(
    paragraph(results[1]!),
    [
      'second',
      '  lunpath  30.0 (29.0–31.0) ms',
      '  other    100.0 (99.0–101.0) ms: another',
      '  ratio    0.300, median of 3 paired ratios; bar ≤ 0.200: DOES NOT HOLD',
      '  execve unknown',
    ].join('\n'),
  )
})

test('5. fewer pairs than a bench needs are refused', async t => {
  for (const [bench, pairs] of [
    ['provision', '8'],
    ['cinder', '0'],
    ['cinder', '1.5'],
    ['cinder', 'some'],
  ]) {
    const {code, stderr} = await run(process.execPath, ['dist/bench/run.js', bench!, '--pairs', pairs!], {accept: [2]})
    t.is(code, 2, `${bench} ${pairs}`)
    t.regex(stderr, /--pairs N .* at least 9 \(default 11\); of cinder: at least 1 \(default 3\)/)
  }
})
