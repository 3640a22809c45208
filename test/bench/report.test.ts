import {mkdtemp, readdir, readFile, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import test from 'ava'
import {countOf, mergeData, percentileOf, standardDeviationOf} from '../../src/bench/buckets.js'
import {formatNs, textReport} from '../../src/bench/report.js'
import {csvReport} from '../../src/bench/report-csv.js'
import {fioReport} from '../../src/bench/report-fio.js'
import {htmlReport, htmlSteady, htmlSweep} from '../../src/bench/report-html.js'
import type {BenchResult} from '../../src/bench/result.js'
import {newHistogram} from '../../src/bench/run.js'
import {sparkline} from '../../src/bench/sparkline.js'
import {escapeHtml, lineChart} from '../../src/bench/svg.js'
import {run} from '../../src/exec.js'
import {parseXml} from '../../src/xml.js'
import {histogramOf, madeResult} from '../fixtures/bench-results.js'
import {generator} from '../fixtures/random.js'

type Tree = {[key: string]: Tree} | number | string | unknown[]

interface FioDirection {
  total_ios: number
  clat_ns: {percentile: Record<string, number>}
  lat_ns: {percentile: Record<string, number>}
}
type Shares = Record<string, number>
interface FioJob {
  read: FioDirection
  trim: FioDirection
  sync: {total_ios: number; lat_ns: {N: number; max: number; percentile: Record<string, number>; bins: Shares}}
  'job options': Record<string, string>
  latency_ns: Shares
  latency_us: Shares
  latency_ms: Shares
  iodepth_level: Shares
}
const fioJob = (result: BenchResult) => (fioReport(result) as {jobs: FioJob[]}).jobs[0]!

/** What fio itself writes for the same kind of job. */
async function realFio(...more: string[]): Promise<{jobs: Record<string, Tree>[]}> {
  const args = [
    '--name=x',
    '--ioengine=null',
    '--size=4m',
    '--bs=4k',
    '--iodepth=8',
    '--rw=randrw',
    '--lat_percentiles=1',
  ]
  const {stdout} = await run('fio', [...args, ...more, '--clat_percentiles=1', '--output-format=json+'])
  return JSON.parse(stdout.slice(stdout.indexOf('{')))
}

/** Each key of `wanted` is in `found`, with the same type; keys that are latencies or percentiles are data. */
function missing(found: Tree, wanted: Tree, path = ''): string[] {
  if (typeof wanted !== 'object' || Array.isArray(wanted))
    return typeof found === typeof wanted ? [] : [`${path} is ${typeof found}, not ${typeof wanted}`]
  return Object.entries(wanted).flatMap(([key, value]) => {
    const at = `${path}/${key}`
    const own = (found as Record<string, Tree>)[key]
    if (own === undefined) return [`${at} is missing`]
    return key === 'bins' || key === 'job options' ? [] : missing(own, value, at)
  })
}

test("fio's json+ layout has every key that fio 3.33 writes, with the same types", async t => {
  const theirs = await realFio()
  const ours = fioReport(madeResult({open: true})) as {jobs: Record<string, Tree>[]}
  t.deepEqual(missing(ours.jobs[0]!, theirs.jobs[0]!), [])
  for (const key of ['fio version', 'timestamp', 'timestamp_ms', 'time', 'jobs']) t.true(key in ours, key)
  const percentiles = (job: unknown) => Object.keys((job as FioJob).read.clat_ns.percentile)
  t.deepEqual(percentiles(ours.jobs[0]!), percentiles(theirs.jobs[0]!))
})

test("fio's own tool makes a table of the bins, and they add up", async t => {
  const directory = await mkdtemp(join(tmpdir(), 'lp-fio-'))
  t.teardown(() => rm(directory, {recursive: true}))
  const result = madeResult({open: true})
  await writeFile(join(directory, 'result.json'), JSON.stringify(fioReport(result)))
  await run('fio_jsonplus_clat2csv', [join(directory, 'result.json'), join(directory, 'out.csv')])
  const [name] = (await readdir(directory)).filter(file => file.endsWith('.csv'))
  const [head, ...rows] = (await readFile(join(directory, name!), 'utf8')).trim().split('\n')
  const column = (title: string) => head!.split(', ').indexOf(title)
  const cells = rows.map(row => row.split(', '))
  const sum = (title: string) => cells.reduce((all, row) => all + Number(row[column(title)] || 0), 0)
  for (const direction of ['read', 'write'] as const) {
    const {ios} = result.total.directions[direction]!
    t.is(sum(`${direction}_clat_ns_count`), ios)
    t.is(sum(`${direction}_lat_ns_count`), ios)
  }
  t.true(cells.length > 100)
})

test("fio's json+: lat is from the intended start, clat from the submission; shares add up to 100 %", t => {
  const result = madeResult({open: true})
  const job = fioJob(result)
  const {latency, service} = result.total.directions.read!
  t.is(job.read.lat_ns.percentile['99.000000'], latency.p99Ns)
  t.is(job.read.clat_ns.percentile['99.000000'], service!.p99Ns)
  t.is(job.read.lat_ns.percentile['50.000000'], latency.p50Ns)
  t.is(job.read.total_ios, result.total.directions.read!.ios)
  t.is(job['job options'].filename, 'iscsi://127.0.0.1:3260/iqn.2026-01.io.lunpath:x/1')
  const shares = [job.latency_ns, job.latency_us, job.latency_ms].flatMap(one => Object.values(one))
  t.true(Math.abs(shares.reduce((sum, share) => sum + share) - 100) < 1e-6)
  t.deepEqual<unknown, unknown>(job.trim.clat_ns, {min: 0, max: 0, mean: 0, stddev: 0, N: 0})
  t.is(fioJob(madeResult()).iodepth_level['8'], 100)
})

test('flushes are in each form of a report, and in none where there were none', async t => {
  const [without, result] = [madeResult(), madeResult({flushes: 400})]
  const {latency} = result.total.flush!
  const text = textReport(result).join('\n')
  t.true(text.includes(`  flush: 400  p50 ${formatNs(latency.p50Ns)}  `), text)
  t.regex(text, /^db1: randrw bs=4KiB iodepth=8 fdatasync=32 \(iscsi\)$/m)
  t.false(textReport(without).join('\n').includes('flush'))
  const failed = {direction: 'flush' as const, code: 'EIO', number: 5, count: 2, firstOffsets: []}
  result.targets[0]!.errorCounts.push(failed)
  t.true(textReport(result).includes('  2 × EIO on flush'))

  const [head, first] = csvReport(result).split('\r\n')
  const row = Object.fromEntries(head!.split(',').map((name, index) => [name, first!.split(',')[index]]))
  t.like(row, {flushes: '20', flush_p50_ns: '300000', flush_p99_ns: '900000', flush_max_ns: '1200000'})
  t.true(csvReport(without).split('\r\n')[1]!.endsWith(',0,0,0,0'))

  const theirs = await realFio('--fdatasync=8')
  const {sync} = fioJob(result)
  t.deepEqual(missing(sync as unknown as Tree, theirs.jobs[0]!.sync!), [])
  t.deepEqual(Object.keys(sync.lat_ns), Object.keys((theirs.jobs[0]!.sync as {lat_ns: object}).lat_ns))
  t.like(sync, {total_ios: 400, lat_ns: {N: 400, max: latency.maxNs}})
  t.is(sync.lat_ns.percentile['99.000000'], latency.p99Ns)
  t.is(
    Object.values(sync.lat_ns.bins).reduce((sum, count) => sum + count),
    400,
  )
  t.deepEqual<unknown, unknown>(fioJob(without).sync, {
    total_ios: 0,
    lat_ns: {min: 0, max: 0, mean: 0, stddev: 0, N: 0},
  })

  const html = htmlReport(result)
  for (const name of ['p99 of flushes', 'flush']) t.true(html.includes(name), name)
  t.false(/flush/.test(htmlReport(without)))
  for (const [svg] of html.matchAll(/<svg[\s\S]*?<\/svg>/g)) t.notThrows(() => parseXml(svg))
})

test('percentiles of saved buckets are those of the histogram, and merging them is merging it', t => {
  const random = generator(2)
  const values = Array.from({length: 5000}, () => Math.round(10 ** (2 + random() * 9.5)))
  const whole = newHistogram()
  for (const value of values) whole.record(value)
  const merged = mergeData([histogramOf(values.slice(0, 1000)), histogramOf([]), histogramOf(values.slice(1000))])
  t.true(merged.overflow > 0)
  t.is(countOf(merged) + merged.overflow, whole.count)
  for (const percent of [0.1, 1, 50, 90, 99, 99.9, 99.99, 100])
    t.is(percentileOf(merged, percent), whole.percentile(percent))
  t.is(percentileOf(histogramOf([]), 99), 0)
  const exact = [100, 110, 120, 130]
  t.true(Math.abs(standardDeviationOf(histogramOf(exact)) - Math.sqrt(125)) < 0.5)
})

test('a saved histogram comes back as it was', t => {
  const histogram = newHistogram()
  for (const value of [1, 255, 256, 123_456, 99e9, 100e9, 101e9]) histogram.record(value)
  const again = newHistogram(JSON.parse(JSON.stringify(histogram.save())))
  t.deepEqual(again.save(), histogram.save())
  t.is(again.meanNs, histogram.meanNs)
  again.merge(histogram)
  t.is(again.count, 14)
})

test('CSV has a row for each interval, and its sums are those of the run', t => {
  const result = madeResult()
  const [head, ...rows] = csvReport(result).trimEnd().split('\r\n')
  const at = (row: string, column: string) => Number(row.split(',')[head!.split(',').indexOf(column)])
  t.is(rows.length, result.series.length)
  t.is(
    rows.reduce((sum, row) => sum + at(row, 'ios'), 0),
    result.total.ios,
  )
  t.true(Math.abs(at(rows[3]!, 'iops') - result.total.iops) < 1)
  for (const row of rows) t.is(row.split(',').length, head!.split(',').length)
})

const nasty = '<script>alert(1)</script>"\'&<img src=x onerror=y>'

test('HTML is one file: nothing is loaded, no script, and what names hold is text', t => {
  const result = madeResult({name: nasty})
  result.targets[0]!.name = nasty
  result.targets.push({
    ...result.targets[0]!,
    name: `${nasty}2`,
    fallbackReason: nasty,
    error: {code: 'X', errno: 1, message: nasty},
  })
  const html = htmlReport(result)
  t.false(/<script|<img|<link|<iframe|@import|url\(|javascript:/i.test(html))
  t.deepEqual([...html.matchAll(/<[^>]*\s(?:src|href|on\w+)=/g)], [])
  t.deepEqual([...html.matchAll(/https?:\/\/[^"\s<]*/g)], [])
  t.true(html.includes('default-src &#39;none&#39;') || html.includes("default-src 'none'"))
  t.true(html.includes('&lt;script&gt;alert(1)&lt;/script&gt;'))
  const charts = [...html.matchAll(/<svg[\s\S]*?<\/svg>/g)].map(([svg]) => svg)
  t.is(charts.length, 3)
  for (const svg of charts) t.notThrows(() => parseXml(svg), 'a chart is well formed')
  t.false(/NaN|undefined|Infinity/.test(html))
})

test('what is left of a run behind its last whole interval is no point of a chart', t => {
  const result = madeResult()
  const last = result.series.at(-1)!
  const rest = {...last, fromSeconds: last.toSeconds, toSeconds: last.toSeconds + 0.001, ios: 0, p99Ns: 0, maxNs: 0}
  t.is(htmlReport({...result, series: [...result.series, rest]}), htmlReport(result))
})

test('HTML of a sweep has its curve and its knee, of rounds the verdict', t => {
  const result = madeResult()
  const points = [1, 2, 4, 8].map(load => ({load, iops: load * 900, meanNs: 1e5 * load, p99Ns: 2e5 * load, kept: true}))
  const knee = {load: 8, iops: 7200, p99Ns: 1.6e6, reason: nasty}
  const error = {round: 'iodepth=16', code: 'CANCELLED', message: nasty}
  const head = {schema: 2 as const, name: nasty, startedAt: result.startedAt, state: 'cancelled' as const, error}
  const sweep = htmlSweep({...head, kind: 'sweep', over: 'iodepth', points, knee, results: [result]})
  t.is([...sweep.matchAll(/<circle/g)].length, 12)
  t.regex(sweep, /Knee at iodepth 8/)
  const verdict = {reached: true, firstRound: 1, mean: 100, excursion: 0.1, slopeExcursion: 0.01}
  const rounds = [50, 100, 101, 99, 100, 100]
  const steady = htmlSteady({...head, kind: 'steady', rounds, verdict, words: `reached ${nasty}`, results: [result]})
  for (const html of [sweep, steady]) {
    t.regex(html, /<p>cancelled before iodepth=16: /)
    t.false(/<script|<img/i.test(html))
    t.false(/NaN|undefined|Infinity/.test(html))
    for (const [svg] of html.matchAll(/<svg[\s\S]*?<\/svg>/g)) t.notThrows(() => parseXml(svg))
  }
})

test('a chart of nothing, of one point and of equal values is drawn or left out, never broken', t => {
  const axis = (scale: 'linear' | 'log') => ({label: 'x', scale, format: String})
  const draw = (points: {x: number; y: number}[], scale: 'linear' | 'log' = 'log') =>
    lineChart({title: 't', x: axis('linear'), y: axis(scale), lines: [{name: 'a', points}]})
  t.is(draw([]), '')
  t.is(draw([{x: 1, y: 0}]), '', 'zero has no logarithm')
  for (const svg of [
    draw([{x: 0, y: 5}]),
    draw([
      {x: 1, y: 7},
      {x: 2, y: 7},
    ]),
    draw([{x: 1, y: 0}], 'linear'),
  ])
    t.false(/NaN|Infinity/.test(svg), svg)
  t.is(escapeHtml(`<a b="c" d='e'>&`), '&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt;&amp;')
})

test('the text has what a reader needs to trust the figures', t => {
  const text = textReport(madeResult()).join('\n')
  for (const word of [
    'randrw',
    'bs=4KiB',
    'iodepth=8',
    'finished',
    'p99.999',
    'read:',
    'write:',
    "Little's law",
    'EIO',
    'CPU',
    'io-wq',
    'kernel',
    'seed 7',
  ])
    t.true(text.includes(word), `${word}\n${text}`)
  const open = madeResult({open: true})
  open.targets[0]!.openLoop!.generatorBehind = true
  t.regex(textReport(open).join('\n'), /NOT VALID: the generator fell behind/)
})

test('times and sparklines for people', t => {
  t.deepEqual([0, 999, 1000, 1_234_567, 999_600, 61e9].map(formatNs), [
    '0 ns',
    '999 ns',
    '1 µs',
    '1.23 ms',
    '1 ms',
    '61 s',
  ])
  t.is(sparkline([0, 1, 2, 4, 8], 4), '▂▃▅█')
  t.is(sparkline([], 5), '')
  t.is(sparkline([0, 0], 5), '▁▁')
})
