import {constants} from 'node:os'
import {parseArgs} from 'node:util'
import {runInLab} from '../test/lab/vm.js'
import {describeMachine, measurePaired, spawnMilliseconds} from './measure.js'
import {paragraph, resultOf, type TrialResult, table} from './report.js'
import {type Release, type TableTrial, type Trial, trials} from './trials.js'

const usualPairs = {least: 9, unasked: 11}
const labDeadlineMs = 3_600_000
const insideLab = process.env.LUNPATH_INSIDE_LAB === '1'

function usage(): string {
  const names = [...new Set(trials.map(({bench}) => bench))]
  const ofCinder = trials.find(({bench}) => bench === 'cinder')
  const pairsOf = (trial: Trial | TableTrial) => {
    const {least, unasked} = pairRule(trial)
    return `at least ${least} (default ${unasked})`
  }
  return [
    'Usage: npm run bench -- NAME [--json] [--check] [--pairs N]',
    '',
    `  NAME       ${names.join(', ')}`,
    '  --json     print one JSON document',
    '  --check    exit with 1 where a bar does not hold',
    `  --pairs N  interleaved pairs of samples per trial: ${pairsOf(trials[0]!)}; of cinder: ${pairsOf(ofCinder!)}`,
    '',
  ].join('\n')
}

function pairRule(trial: Trial | TableTrial): {least: number; unasked: number} {
  return 'pairs' in trial ? {least: 1, unasked: trial.pairs} : usualPairs
}

/** What `signal` says has ended the run: Ctrl-C, or a TERM. */
class Interrupted extends Error {
  readonly exitCode: number

  constructor(signal: NodeJS.Signals) {
    super(`ended by ${signal}: what was set up is taken down`)
    this.exitCode = 128 + constants.signals[signal]
  }
}

/** Takes down what `work` has set up, also where `signal` ends it between. @throws the signal's reason */
async function releasing<T>(signal: AbortSignal, work: (release: Release) => Promise<T>): Promise<T> {
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
  let failed = true
  try {
    const done = await Promise.race([work(release), interruption])
    failed = false
    return done
  } finally {
    over.abort()
    for (const cleanup of cleanups.reverse()) {
      await cleanup().catch(error => {
        // What failed first says more.
        if (!failed) throw error
        console.error(`bench: what was set up could not be taken down: ${error.message}`)
      })
    }
  }
}

async function measure(trial: Trial | TableTrial, pairs: number, release: Release): Promise<TrialResult[]> {
  const {name, unit, better} = trial
  if ('measure' in trial) {
    const rows = await trial.measure(pairs, release)
    return rows.map(row => resultOf({...row, unit, better, name: `${name}, ${row.name}`}))
  }
  const comparison = await trial.prepare(release)
  const paired = await measurePaired(comparison, pairs)
  const beside = (await comparison.beside?.()) ?? {}
  const statistic = `median of ${pairs} paired ratios`
  const {otherName} = comparison
  return [resultOf({name, unit, better, statistic, paired, otherName, bar: trial.bar, beside})]
}

/** The same command, in the lab. Its absolute figures are those of that machine, emulated or not; ratios hold all the same. */
function runThisInLab(lab: NonNullable<Trial['lab']>, signal: AbortSignal): Promise<number> {
  const hostSpawnUs = Math.round(spawnMilliseconds() * 1e3)
  return runInLab([process.execPath, ...process.argv.slice(1)], {
    ...lab,
    signal,
    environment: {LUNPATH_INSIDE_LAB: '1', LUNPATH_HOST_SPAWN_US: `${hostSpawnUs}`},
    onMachine: (title, reason) => {
      process.stderr.write(`bench: runs in ${title}${reason ? `, since:\n${reason}` : ''}\n`)
    },
    deadlineMs: labDeadlineMs,
    onStdout: chunk => process.stdout.write(chunk),
    onStderr: chunk => process.stderr.write(chunk),
  })
}

/** What the host measured before it started the lab. */
function ofHost(): Record<string, unknown> {
  const {LUNPATH_HOST_SPAWN_US: spawnUs} = process.env
  return spawnUs === undefined ? {} : {hostSpawnUs: Number(spawnUs)}
}

async function main(signal: AbortSignal): Promise<number> {
  const {values, positionals} = parseArgs({
    allowPositionals: true,
    options: {
      json: {type: 'boolean', default: false},
      check: {type: 'boolean', default: false},
      help: {type: 'boolean', short: 'h', default: false},
      pairs: {type: 'string'},
    },
  })
  const [bench, ...rest] = positionals
  const chosen = trials.filter(trial => trial.bench === bench)
  const pairs = values.pairs === undefined ? undefined : Number(values.pairs)
  const isEnough = ({least}: {least: number}) => pairs === undefined || (Number.isInteger(pairs) && pairs >= least)
  if (values.help || positionals.length === 0) {
    console.log(usage())
    return 0
  }
  if (chosen.length === 0 || rest.length > 0 || !chosen.map(pairRule).every(isEnough)) {
    console.error(usage())
    return 2
  }
  const lab = chosen.find(trial => trial.lab)?.lab
  if (lab && !insideLab) return runThisInLab(lab, signal)
  const machine = {...(await describeMachine()), ...ofHost()}
  if (!values.json)
    console.log(
      Object.entries(machine)
        .map(([key, value]) => `${key} ${value}`)
        .join(', '),
    )
  const results: TrialResult[] = []
  for (const trial of chosen) {
    const found = await releasing(signal, release => measure(trial, pairs ?? pairRule(trial).unasked, release))
    results.push(...found)
    if (!values.json) console.log('measure' in trial ? `\n${table(found)}` : found.map(paragraph).join('\n'))
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
