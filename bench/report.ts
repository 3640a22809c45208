import type {Paired, Summary} from './measure.js'
import type {Bar} from './trials.js'

export interface TrialResult {
  name: string
  unit: string
  better: 'lower' | 'higher'
  statistic: string
  ours: Summary
  other: Summary & {name: string}
  ratio: number
  /** Null where the figure is for information. */
  bar: (Bar & {holds: boolean}) | null
  beside: Record<string, unknown>
}

export interface Measured {
  name: string
  unit: string
  better: 'lower' | 'higher'
  statistic: string
  paired: Paired
  otherName: string
  bar: Bar | null
  beside: Record<string, unknown>
}

export function resultOf({paired: {ours, other, ratio}, otherName, bar, ...facts}: Measured): TrialResult {
  const holds = bar !== null && ('atMost' in bar ? ratio <= bar.atMost : ratio >= bar.atLeast)
  return {...facts, ours, other: {name: otherName, ...other}, ratio, bar: bar && {...bar, holds}}
}

/** For people; one trial. */
export function paragraph({name, unit, statistic, ours, other, ratio, bar, beside}: TrialResult): string {
  const verdict = bar ? `; bar ${describeBar(bar)}: ${verdictOf(bar)}` : '; no bar'
  const figures = ({median, min, max}: Summary) => `${median.toFixed(1)} (${min.toFixed(1)}–${max.toFixed(1)}) ${unit}`
  return [
    name,
    `  lunpath  ${figures(ours)}`,
    `  other    ${figures(other)}: ${other.name}`,
    `  ratio    ${ratio.toFixed(3)}, ${statistic}${verdict}`,
    ...Object.entries(beside).map(([key, value]) => `  ${key} ${value ?? 'unknown'}`),
  ].join('\n')
}

/** For people; the results of a trial that has several, in Markdown: medians, and what stands beside them. */
export function table(results: readonly TrialResult[]): string {
  const keys = [...new Set(results.flatMap(({beside}) => Object.keys(beside)))]
  const unit = results[0]?.unit ?? ''
  const rows = [
    ['', `other, ${unit}`, `lunpath, ${unit}`, 'ratio', 'bar', ...keys],
    ...results.map(({name, ours, other, ratio, bar, beside}) => [
      name,
      other.median.toFixed(0),
      ours.median.toFixed(0),
      ratio.toFixed(3),
      bar ? `${describeBar(bar)} ${verdictOf(bar)}` : '',
      ...keys.map(key => `${key in beside ? (beside[key] ?? 'unknown') : ''}`),
    ]),
  ]
  const widths = rows[0]!.map((_, column) => Math.max(3, ...rows.map(row => row[column]!.length)))
  const line = (cells: string[]) => `| ${cells.map((cell, i) => cell.padEnd(widths[i]!)).join(' | ')} |`
  const [head, ...body] = rows.map(line)
  return [head, line(widths.map(width => '-'.repeat(width))), ...body].join('\n')
}

function describeBar(bar: Bar): string {
  return 'atMost' in bar ? `≤ ${bar.atMost.toFixed(3)}` : `≥ ${bar.atLeast.toFixed(3)}`
}

function verdictOf({holds}: {holds: boolean}): string {
  return holds ? 'holds' : 'DOES NOT HOLD'
}
