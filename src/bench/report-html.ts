import {countOf, mergeData, percentileOf} from './buckets.js'
import {formatNs, textReport} from './report.js'
import {endingWords} from './report-rounds.js'
import type {BenchResult, SeriesPoint, TargetResult} from './result.js'
import {median} from './statistics.js'
import type {SteadyReport} from './steady-run.js'
import {type Axis, escapeHtml, type Line, lineChart} from './svg.js'
import type {SweepReport} from './sweep.js'

const latencyAxis = (label: string): Axis => ({label, scale: 'log', format: ns => formatNs(Math.round(ns))})
const countAxis = (label: string): Axis => ({label, scale: 'linear', format: formatCount})

const style = `
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 860px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem }
pre { white-space: pre-wrap; padding: .8rem; border: 1px solid #8886; border-radius: 6px; font-size: 13px }
figure { margin: 1.5rem 0 } figcaption { font-weight: 600 } .legend { margin: 0; font-size: 13px }
svg { width: 100%; height: auto } svg text { font: 11px system-ui, sans-serif; fill: currentColor }
svg .grid { stroke: #8884 } table { border-collapse: collapse } td, th { padding: .2rem .8rem .2rem 0; text-align: right }
td:first-child, th:first-child { text-align: left }`

/** A result as one HTML file that needs nothing from elsewhere: no script, no font, no picture; its policy forbids them. */
export function htmlReport(result: BenchResult): string {
  return page(`${result.name}, ${result.startedAt}`, [
    text(textReport(result).join('\n')),
    percentileChart(result.targets),
    ...seriesCharts(result),
  ])
}

/** The same of a sweep: its curve, its knee, and a row for each step. */
export function htmlSweep(sweep: SweepReport): string {
  const {over, points, knee} = sweep
  const words = knee ? `Knee at ${over} ${formatCount(knee.load)}: ${knee.reason}.` : 'No knee can be told from these.'
  const rows = points.map(({load, iops, meanNs, p99Ns, kept}) =>
    row('td', [
      formatCount(load),
      formatCount(iops),
      formatNs(Math.round(meanNs)),
      formatNs(p99Ns),
      kept ? '' : 'not kept',
    ]),
  )
  const at = (key: 'meanNs' | 'p99Ns') =>
    points.map(point => ({
      x: point.iops,
      y: point[key],
      label: `${over} ${point.load}: ${formatCount(point.iops)} IOPS`,
    }))
  return page(`${sweep.name}: sweep over ${over}, ${sweep.startedAt}`, [
    paragraphs(words, endingWords(sweep)),
    lineChart({
      title: 'Latency over throughput',
      x: countAxis('IOPS'),
      y: latencyAxis('latency'),
      lines: [
        {name: 'p99', points: at('p99Ns'), dots: true},
        {name: 'mean', points: at('meanNs'), dots: true},
      ],
    }),
    lineChart({
      title: `Throughput over ${over}`,
      x: {label: over, scale: 'log', format: formatCount, ticks: points.map(({load}) => load)},
      y: countAxis('IOPS'),
      lines: [{name: 'IOPS', points: points.map(({load, iops}) => ({x: load, y: iops})), dots: true}],
    }),
    `<table>${[row('th', [over, 'IOPS', 'mean', 'p99', '']), ...rows].join('\n')}</table>`,
  ])
}

/** The same of rounds until steady state. */
export function htmlSteady(steady: SteadyReport): string {
  const {rounds, verdict, words} = steady
  const window = rounds.slice(verdict.firstRound)
  return page(`${steady.name}: steady state, ${steady.startedAt}`, [
    paragraphs(words, endingWords(steady)),
    lineChart({
      title: 'IOPS of each round',
      x: {label: 'round', scale: 'linear', format: String},
      y: countAxis('IOPS'),
      lines: [
        {name: 'IOPS', points: rounds.map((iops, index) => ({x: index + 1, y: iops})), dots: true},
        {
          name: 'window’s mean',
          points: window.map((_, index) => ({x: verdict.firstRound + index + 1, y: verdict.mean})),
        },
      ],
    }),
  ])
}

function paragraphs(...texts: (string | null)[]): string {
  return texts.flatMap(one => (one === null ? [] : [`<p>${escapeHtml(one)}</p>`])).join('\n')
}

/** Percentiles on the scale on which each further nine takes the same room. */
function percentileChart(targets: TargetResult[]): string {
  const lines = targets.flatMap(target =>
    Object.entries({...target.directions, ...(target.flush ? {flush: target.flush} : {})}).map(
      ([direction, {histogram}]): Line => {
        const data = mergeData([histogram])
        const nines = Math.log10(Math.max(10, countOf(data)))
        const shares = Array.from({length: 101}, (_, index) => (index / 100) * Math.min(5, nines))
        return {
          name: targets.length === 1 ? direction : `${target.name}: ${direction}`,
          points: shares.map(share => ({
            x: 10 ** share,
            y: percentileOf(data, Math.max(0.1, 100 - 100 / 10 ** share)),
          })),
        }
      },
    ),
  )
  const x: Axis = {
    label: 'percentile',
    scale: 'log',
    format: beyond => `p${Number((100 - 100 / beyond).toFixed(3))}`,
    ticks: [2, 10, 100, 1000, 10_000, 100_000],
  }
  return lineChart({title: 'Latency by percentile', x, y: latencyAxis('latency'), lines})
}

function seriesCharts({series: all}: BenchResult): string[] {
  const usual = median(all.map(lengthOf))
  // What is left of the run behind its last whole interval has a rate, but it says nothing.
  const series = all.filter(point => lengthOf(point) > usual / 4)
  const seconds: Axis = {label: 'seconds', scale: 'linear', format: value => String(Number(value.toFixed(3)))}
  const middle = (from: number, to: number) => (from + to) / 2
  const rate = series.map(point => ({
    x: middle(point.fromSeconds, point.toSeconds),
    y: point.ios / lengthOf(point),
  }))
  const latency = (key: 'p50Ns' | 'p99Ns' | 'maxNs') =>
    series.map(point => ({x: middle(point.fromSeconds, point.toSeconds), y: point[key]}))
  return [
    lineChart({title: 'IOPS over time', x: seconds, y: countAxis('IOPS'), lines: [{name: 'IOPS', points: rate}]}),
    lineChart({
      title: 'Latency over time',
      x: seconds,
      y: latencyAxis('latency'),
      lines: [
        {name: 'max', points: latency('maxNs')},
        {name: 'p99', points: latency('p99Ns')},
        {name: 'p50', points: latency('p50Ns')},
        ...flushLines(series),
      ],
    }),
  ]
}

function flushLines(series: SeriesPoint[]): Line[] {
  const points = series.flatMap(({fromSeconds, toSeconds, flush}) =>
    flush && flush.count > 0 ? [{x: (fromSeconds + toSeconds) / 2, y: flush.p99Ns}] : [],
  )
  return points.length > 0 ? [{name: 'p99 of flushes', points}] : []
}

function lengthOf({fromSeconds, toSeconds}: SeriesPoint): number {
  return toSeconds - fromSeconds
}

function page(title: string, parts: string[]): string {
  return [
    '<!doctype html>',
    '<html lang="en"><head><meta charset="utf-8">',
    `<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">`,
    `<meta name="viewport" content="width=device-width"><title>${escapeHtml(title)}</title>`,
    `<style>${style}</style></head><body>`,
    `<h1>${escapeHtml(title)}</h1>`,
    ...parts,
    '</body></html>',
    '',
  ].join('\n')
}

function text(lines: string): string {
  return `<pre>${escapeHtml(lines)}</pre>`
}

function row(cell: 'td' | 'th', cells: string[]): string {
  return `<tr>${cells.map(words => `<${cell}>${escapeHtml(words)}</${cell}>`).join('')}</tr>`
}

function formatCount(value: number): string {
  if (value >= 999_500) return `${Number((value / 1e6).toPrecision(3))}M`
  return value >= 10_000 ? `${Number((value / 1e3).toPrecision(3))}k` : String(Math.round(value))
}
