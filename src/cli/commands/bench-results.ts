import {readFile} from 'node:fs/promises'
import {type Command, Option} from 'commander'
import {type Comparison, compare} from '../../bench/compare.js'
import {formatNs, megabytes, percent, textReport} from '../../bench/report.js'
import {csvReport} from '../../bench/report-csv.js'
import {fioReport} from '../../bench/report-fio.js'
import {htmlReport, htmlSteady, htmlSweep} from '../../bench/report-html.js'
import {textSteady, textSweep} from '../../bench/report-rounds.js'
import type {BenchResult} from '../../bench/result.js'
import {StorageError} from '../../errors.js'
import type {KeptEntry, KeptReport} from '../../state/bench-results.js'
import {printJson, printTable} from '../output.js'
import {type Session, withDaemon} from '../session.js'

const columns: Record<string, (entry: KeptEntry) => string | number | null> = {
  ID: ({id}) => id,
  LABEL: ({label}) => label,
  KIND: ({kind}) => kind,
  STATE: ({state}) => state,
  TARGET: ({targets}) => targets.join(', '),
  DRIVER: ({driver}) => driver,
  RW: ({rw}) => rw,
  IODEPTH: ({iodepth}) => iodepth,
  IOPS: ({iops}) => Math.round(iops),
  'MB/S': ({bytesPerSecond}) => megabytes(bytesPerSecond),
  P99: ({p99Ns}) => formatNs(p99Ns),
  KERNEL: ({kernel}) => kernel,
}

const formats = {
  text: (report: KeptReport) => `${linesOf(report).join('\n')}\n`,
  json: (report: KeptReport) => `${JSON.stringify(report, null, 2)}\n`,
  fio: (report: KeptReport) => `${JSON.stringify(fioReport(lastRun(report)), null, 2)}\n`,
  csv: (report: KeptReport) => csvReport(lastRun(report)),
  html: htmlOf,
}

/** `lunpath bench list`, `show`, `compare` and `delete`: what is kept of benchmarks. */
export function benchResultCommands(bench: Command): void {
  bench
    .command('list')
    .description('kept results, the newest last')
    .option('--label <label>', 'those with this label alone')
    .action((_options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const {label} = command.optsWithGlobals<{label?: string}>()
        const entries = await listed(call, label)
        if (json) return printJson(entries)
        printTable(entries, columns, 'No result is kept.')
      }),
    )

  bench
    .command('show <id>')
    .description('a kept result')
    .addOption(
      new Option('--format <format>', 'fio: the layout of fio’s json+; csv: the time series; html: one file with plots')
        .choices(Object.keys(formats))
        .default('text'),
    )
    .action((id: string, options: {format: keyof typeof formats}, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const report = await call<KeptReport>('GET', `/bench/results/${encodeURIComponent(id)}`)
        process.stdout.write(formats[json ? 'json' : options.format](report))
      }),
    )

  bench
    .command('compare <a> <b>')
    .description('B against A, over repeated runs: each is a label, ids with commas between them, or files of results')
    .addHelpText(
      'after',
      `
A difference counts where the Mann-Whitney U test over the runs gives p <= 0.05; that takes at least
four runs on each side, and says "too few runs" below.

Examples:
  lunpath bench db1 --runs 5 --label before
  lunpath bench db1 --runs 5 --label after
  lunpath bench compare before after`,
    )
    .action((a: string, b: string, _options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const comparison = compare(await runsOf(call, a), await runsOf(call, b))
        if (json) return printJson(comparison)
        process.stdout.write(`${textComparison(comparison).join('\n')}\n`)
      }),
    )

  bench
    .command('delete <id>')
    .description('forget a kept result')
    .action((id: string, _options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        await call('DELETE', `/bench/results/${encodeURIComponent(id)}`)
        if (json) printJson({id})
      }),
    )
}

function listed(call: Session['call'], label: string | undefined): Promise<KeptEntry[]> {
  const query = label === undefined ? '' : `?label=${encodeURIComponent(label)}`
  return call<KeptEntry[]>('GET', `/bench/results${query}`)
}

/** The runs that a word on the command line stands for: a file's, those of ids, or all with a label. */
async function runsOf(call: Session['call'], word: string): Promise<BenchResult[]> {
  if (/[/.]/.test(word)) return (await Promise.all(word.split(',').map(readReports))).flat().flatMap(runsIn)
  const labelled = await listed(call, word).catch(() => [])
  const ids = labelled.length > 0 ? labelled.map(({id}) => id) : word.split(',')
  const reports = await Promise.all(ids.map(id => call<KeptReport>('GET', `/bench/results/${encodeURIComponent(id)}`)))
  return reports.flatMap(runsIn)
}

/** A file of what --json printed: one result, or several. @throws INVALID_ARGUMENT */
async function readReports(path: string): Promise<KeptReport[]> {
  try {
    const reports = [JSON.parse(await readFile(path, 'utf8'))].flat() as KeptReport[]
    if (reports.every(report => report?.schema === 2)) return reports
    throw new Error('it is no result of lunpath bench')
  } catch (cause) {
    throw new StorageError('INVALID_ARGUMENT', `${path} cannot be compared: ${(cause as Error).message}`, {cause})
  }
}

/** The steps of a sweep are different jobs, so it is none of a side's repeated runs. */
function runsIn(report: KeptReport): BenchResult[] {
  if (report.kind === 'sweep')
    throw new StorageError('INVALID_ARGUMENT', 'A sweep cannot be compared: its runs are different jobs')
  return report.kind === 'run' ? [report] : report.results.slice(report.verdict.firstRound)
}

function lastRun(report: KeptReport): BenchResult {
  return report.kind === 'run' ? report : report.results.at(-1)!
}

function linesOf(report: KeptReport): string[] {
  if (report.kind === 'sweep') return textSweep(report)
  return report.kind === 'steady' ? textSteady(report) : textReport(report)
}

function htmlOf(report: KeptReport): string {
  if (report.kind === 'sweep') return htmlSweep(report)
  return report.kind === 'steady' ? htmlSteady(report) : htmlReport(report)
}

function textComparison({metrics, differences, leftOut, level}: Comparison): string[] {
  const lines = metrics.map(({metric, unit, a, b, ratio, p, verdict}) => {
    const show = (value: number) => (unit === 'ns' ? formatNs(Math.round(value)) : String(Math.round(value)))
    const change = `${ratio >= 1 ? '+' : ''}${percent(ratio - 1)}`
    const from = `${show(a.median)} (${show(a.min)} to ${show(a.max)}, ${a.runs} runs)`
    const to = `${show(b.median)} (${show(b.min)} to ${show(b.max)}, ${b.runs} runs)`
    return `${metric}: ${from} -> ${to}: ${change}, p ${p.toPrecision(2)}: ${verdict}`
  })
  if (metrics.length === 0) lines.push('No finished runs on one of the sides.')
  else lines.push(`Medians over the runs; Mann-Whitney U test, two-sided, each metric by itself at ${level}.`)
  if (leftOut > 0) lines.push(`${leftOut} runs that did not finish are left out.`)
  if (differences.length > 0) lines.push('The two sides also differ in:', ...differences.map(one => `  ${one}`))
  return lines
}
