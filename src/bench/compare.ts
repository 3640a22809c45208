import type {BenchResult} from './result.js'
import {median, rankTest} from './statistics.js'

export type Verdict = 'better' | 'worse' | 'no difference shown' | 'too few runs'

interface Side {
  runs: number
  median: number
  min: number
  max: number
}

export interface MetricComparison {
  metric: string
  unit: string
  better: 'higher' | 'lower'
  a: Side
  b: Side
  /** The median of B over that of A. */
  ratio: number
  /** Two-sided, of the Mann–Whitney U test over the runs. */
  p: number
  /** Of B against A. */
  verdict: Verdict
}

/** A comparison as plain JSON. */
export interface Comparison {
  schema: 2
  kind: 'comparison'
  /** At which p a difference counts; each metric by itself. */
  level: number
  metrics: MetricComparison[]
  /** In what the two sides differ beside their figures: then the figures do not compare the same thing. */
  differences: string[]
  /** Runs that did not finish are left out. */
  leftOut: number
}

interface Metric {
  metric: string
  unit: string
  better: 'higher' | 'lower'
  of: (result: BenchResult) => number
  /** Whether a result has it; default: each has. */
  has?: (result: BenchResult) => boolean
}

const hasFlushes = ({total}: BenchResult) => (total.flush?.count ?? 0) > 0

const metrics: Metric[] = [
  {metric: 'IOPS', unit: '1/s', better: 'higher', of: ({total}) => total.iops},
  {metric: 'latency mean', unit: 'ns', better: 'lower', of: ({total}) => total.latency.meanNs},
  {metric: 'latency p50', unit: 'ns', better: 'lower', of: ({total}) => total.latency.p50Ns},
  {metric: 'latency p99', unit: 'ns', better: 'lower', of: ({total}) => total.latency.p99Ns},
  {metric: 'latency p99.9', unit: 'ns', better: 'lower', of: ({total}) => total.latency.p999Ns},
  {
    metric: 'flush mean',
    unit: 'ns',
    better: 'lower',
    of: ({total}) => total.flush!.latency.meanNs,
    has: hasFlushes,
  },
  {metric: 'flush p99', unit: 'ns', better: 'lower', of: ({total}) => total.flush!.latency.p99Ns, has: hasFlushes},
  {metric: 'CPU per I/O', unit: 'ns', better: 'lower', of: ({cpu}) => cpu.nsPerIo},
]

/**
 * Compares repeated runs of two sides. A run is one observation: the many I/Os in it are not independent of each other,
 * and a test over them would call every difference significant.
 */
export function compare(a: BenchResult[], b: BenchResult[], level = 0.05): Comparison {
  const finished = (results: BenchResult[]) => results.filter(({state}) => state === 'finished')
  const [left, right] = [finished(a), finished(b)]
  const inAll = metrics.filter(({has = () => true}) => [...left, ...right].every(has))
  return {
    schema: 2,
    kind: 'comparison',
    level,
    metrics: left.length > 0 && right.length > 0 ? inAll.map(one => compareMetric(one, left, right, level)) : [],
    differences: left.length > 0 && right.length > 0 ? differencesOf(left, right) : [],
    leftOut: a.length + b.length - left.length - right.length,
  }
}

function compareMetric(
  {metric, unit, better, of}: Metric,
  left: BenchResult[],
  right: BenchResult[],
  level: number,
): MetricComparison {
  const [a, b] = [left.map(of), right.map(of)]
  const {p, leastP} = rankTest(a, b)
  const ratio = median(b) / median(a)
  const verdict = () => {
    if (leastP > level) return 'too few runs'
    if (p > level || ratio === 1) return 'no difference shown'
    return ratio > 1 === (better === 'higher') ? 'better' : 'worse'
  }
  return {metric, unit, better, a: sideOf(a), b: sideOf(b), ratio, p, verdict: verdict()}
}

function sideOf(values: number[]): Side {
  return {runs: values.length, median: median(values), min: Math.min(...values), max: Math.max(...values)}
}

/** Facts that are the same in all runs of a fair comparison. What was compared on purpose is among them. */
function differencesOf(left: BenchResult[], right: BenchResult[]): string[] {
  const facts: Record<string, (result: BenchResult) => string> = {
    node: ({node}) => node,
    kernel: ({kernel}) => kernel,
    runtime: ({runtimeSeconds, rampSeconds}) => `${runtimeSeconds} s after ${rampSeconds} s`,
    workload: ({targets}) => targets.map(({workload}) => JSON.stringify(workload)).join(' and '),
    engine: ({targets}) => targets.map(({engine, engineFlags}) => [engine, ...engineFlags].join(' ')).join(' and '),
    'target driver': ({targets}) => targets.map(({target}) => target.driver ?? 'none').join(' and '),
    size: ({targets}) => targets.map(({sizeBytes}) => `${sizeBytes} bytes`).join(' and '),
  }
  return Object.entries(facts).flatMap(([name, of]) => {
    const values = (side: BenchResult[]) => [...new Set(side.map(of))].join('; ')
    const [a, b] = [values(left), values(right)]
    return a === b ? [] : [`${name}: ${a} against ${b}`]
  })
}
