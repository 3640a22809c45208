import {constants} from 'node:os'
import {parseArgs} from 'node:util'
import {runInLab} from '../test/lab/vm.js'
import {describeMachine, measurePaired, type Paired} from './measure.js'
import {type Trial, trials} from './trials.js'

const defaultPairs = 11
const labDeadlineMs = 3_600_000
const insideLab = process.env.LUNPATH_INSIDE_LAB === '1'

interface TrialResult {
  name: string
  unit: string
  better: 'lower' | 'higher'
  statistic: string
  ours: Paired['ours']
  other: Paired['other'] & {name: string}
  ratio: number
  /** Null where the figure is for information. */
  bar: {atMost?: number; atLeast?: number; holds: boolean} | null
  beside: Record<string, unknown>
}

function usage(): string {
  const names = [...new Set(trials.map(({bench}) => bench))]
  return [
    'Usage: npm run bench -- NAME [--json] [--check] [--pairs N]',
    '',
    `  NAME       ${names.join(', ')}`,
    '  --json     print one JSON document',
    '  --check    exit with 1 where a bar does not hold',
    `  --pairs N  interleaved pairs of samples per trial, at least 9 (default ${defaultPairs})`,
    '',
  ].join('\n')
}

/** What `signal` says has ended the run: Ctrl-C, or a TERM. */
class Interrupted extends Error {
  readonly exitCode: number

  constructor(signal: NodeJS.Signals) {
    super(`ended by ${signal}: what was set up is taken down`)
    this.exitCode = 128 + constants.signals[signal]
  }
}

/** Takes down what it has set up, also where `signal` ends it between. @throws the signal's reason */
async function runTrial(trial: Trial, pairs: number, signal: AbortSignal): Promise<TrialResult> {
  signal.throwIfAborted()
  const cleanups: (() => Promise<void>)[] = []
  const release = (cleanup: () => Promise<void>) => {
    // What is still being set up at a signal goes as soon as it is there.
    if (signal.aborted) void cleanup().catch(() => undefined)
    else cleanups.push(cleanup)
  }
  const over = new AbortController()
  const interruption = new Promise<never>((_, reject) =>
    signal.addEventListener('abort', () => reject(signal.reason), {signal: over.signal}),
  )
  const measure = async () => {
    const comparison = await trial.prepare(release)
    const paired = await measurePaired(comparison, pairs)
    return {comparison, ...paired, beside: (await comparison.beside?.()) ?? {}}
  }
  try {
    const {comparison, ours, other, ratio, beside} = await Promise.race([measure(), interruption])
    const {bar} = trial
    const holds = bar !== null && ('atMost' in bar ? ratio <= bar.atMost : ratio >= bar.atLeast)
    return {
      name: trial.name,
      unit: trial.unit,
      better: trial.better,
      statistic: `median of ${pairs} paired ratios`,
      ours,
      other: {name: comparison.otherName, ...other},
      ratio,
      bar: bar && {...bar, holds},
      beside,
    }
  } finally {
    over.abort()
    for (const cleanup of cleanups.reverse()) await cleanup()
  }
}

function print(result: TrialResult): void {
  const {name, unit, ours, other, ratio, bar, beside} = result
  const verdict = bar ? `; bar ${describeBar(bar)}: ${bar.holds ? 'holds' : 'DOES NOT HOLD'}` : '; no bar'
  const figures = ({median, min, max}: Paired['ours']) =>
    `${median.toFixed(1)} (${min.toFixed(1)}–${max.toFixed(1)}) ${unit}`
  console.log(name)
  console.log(`  lunpath  ${figures(ours)}`)
  console.log(`  other    ${figures(other)}: ${other.name}`)
  console.log(`  ratio    ${ratio.toFixed(3)}, ${result.statistic}${verdict}`)
  for (const [key, value] of Object.entries(beside)) console.log(`  ${key} ${value ?? 'unknown'}`)
}

function describeBar({atMost, atLeast}: {atMost?: number; atLeast?: number}): string {
  return atMost === undefined ? `≥ ${atLeast?.toFixed(3)}` : `≤ ${atMost.toFixed(3)}`
}

/** The same command, in the lab's VM. Its figures are those of an emulated machine; ratios hold all the same. */
function runThisInLab(lab: NonNullable<Trial['lab']>, signal: AbortSignal): Promise<number> {
  return runInLab([process.execPath, ...process.argv.slice(1)], {
    ...lab,
    signal,
    environment: {LUNPATH_INSIDE_LAB: '1'},
    deadlineMs: labDeadlineMs,
    onStdout: chunk => process.stdout.write(chunk),
    onStderr: chunk => process.stderr.write(chunk),
  })
}

async function main(signal: AbortSignal): Promise<number> {
  const {values, positionals} = parseArgs({
    allowPositionals: true,
    options: {
      json: {type: 'boolean', default: false},
      check: {type: 'boolean', default: false},
      help: {type: 'boolean', short: 'h', default: false},
      pairs: {type: 'string', default: String(defaultPairs)},
    },
  })
  const [bench, ...rest] = positionals
  const chosen = trials.filter(trial => trial.bench === bench)
  const pairs = Number(values.pairs)
  if (values.help || positionals.length === 0) {
    console.log(usage())
    return 0
  }
  if (chosen.length === 0 || rest.length > 0 || !Number.isInteger(pairs) || pairs < 9) {
    console.error(usage())
    return 2
  }
  const lab = chosen.find(trial => trial.lab)?.lab
  if (lab && !insideLab) return runThisInLab(lab, signal)
  const machine = await describeMachine()
  if (!values.json)
    console.log(
      Object.entries(machine)
        .map(([key, value]) => `${key} ${value}`)
        .join(', '),
    )
  const results: TrialResult[] = []
  for (const trial of chosen) {
    const result = await runTrial(trial, pairs, signal)
    results.push(result)
    if (!values.json) print(result)
  }
  if (values.json) console.log(JSON.stringify({bench, machine, trials: results}, null, 2))
  return values.check && results.some(({bar}) => bar && !bar.holds) ? 1 : 0
}

const interrupt = new AbortController()
// All but the first are ignored: a terminal's Ctrl-C comes twice, from the terminal and from npm, which passes it on.
for (const name of ['SIGINT', 'SIGTERM'] as const) process.on(name, () => interrupt.abort(new Interrupted(name)))
// Drivers do not keep a process alive; the measurement must.
setInterval(() => undefined, 1_000)
try {
  process.exitCode = await main(interrupt.signal)
} catch (error) {
  const {reason} = interrupt.signal
  if (!(reason instanceof Interrupted)) throw error
  console.error(reason.message)
  process.exitCode = reason.exitCode
}
// Also where an interrupted measurement still goes on.
process.exit()
