import {resolve} from 'node:path'
import {type Command, InvalidArgumentError, Option} from 'commander'
import type {JobOptions} from '../../bench/job-options.js'
import type {JobSpec, TargetSpec} from '../../bench/job-schema.js'
import {patterns} from '../../bench/patterns.js'
import {parseTime} from '../../bench/quantity.js'
import {formatNs, megabytes, textReport} from '../../bench/report.js'
import {textSteady, textSweep} from '../../bench/report-rounds.js'
import type {BenchSample} from '../../bench/sample.js'
import {sparkline} from '../../bench/sparkline.js'
import {StorageError} from '../../errors.js'
import {parseSize} from '../../size.js'
import type {KeptReport} from '../../state/bench-results.js'
import {endProgress, printJson, showProgress} from '../output.js'
import {type Session, withDaemon} from '../session.js'
import {benchResultCommands} from './bench-results.js'

const sparkWidth = 24

type Answered = KeptReport & {id: string | null}

interface Options extends Omit<JobSpec, 'writeTo' | 'sweep' | 'steady' | 'target' | 'volume'> {
  job?: string
  writeTo?: string[]
  sizeIs?: number[]
  sweep?: JobSpec['sweep']
  untilSteady?: number | true
  runs: number
}

/** `lunpath bench VOLUME`: measures an exported volume over iSCSI, or a device. Ctrl-C ends it. */
export function benchCommand(program: Command): void {
  const bench = program
    .command('bench [volume]')
    .description('measure an exported volume over iSCSI, or a device of the node; reads unless told otherwise')
    .addOption(new Option('--rw <pattern>', 'what to do (default: randread)').choices(patterns))
    .option('--rwmixread <percent>', 'reads of rw and randrw', number)
    .option('--bs <sizes>', 'bytes of one I/O; READ,WRITE,TRIM where they differ (default: 4096)')
    .option('--bssplit <split>', 'SIZE/PERCENT:SIZE/PERCENT…, instead of --bs')
    .option('--iodepth <n>', 'I/Os in flight on each thread (default: 32)', wholeNumber)
    .option('--numjobs <n>', 'threads', wholeNumber)
    .option('--runtime <seconds>', 'how long (default: 5)', time)
    .option('--ramp_time <seconds>', 'before it, not in the result', time)
    .option('--offset <size>', 'where the range begins, or percent of the device')
    .option('--size <size>', 'of the range, or percent of the device')
    .option('--offset_increment <size>', 'by which the range of each thread begins later')
    .option('--io_size <size>', 'end each thread after so much, or percent of its range')
    .option('--number_ios <n>', 'end each thread after so many I/Os', wholeNumber)
    .option('--fsync <n>', 'flush after each so many writes of a thread', wholeNumber)
    .option('--fdatasync <n>', 'the same, without the metadata of a file', wholeNumber)
    .option('--random_distribution <kind>', 'random, zipf:THETA, pareto:H or zoned:ACCESS/SIZE:…')
    .option('--rate_iops <n>', 'open loop: arrivals a second, whatever the target does', number)
    .addOption(new Option('--rate_process <kind>', 'spacing of arrivals').choices(['linear', 'poisson']))
    .option('--thinktime <us>', 'microseconds of pause after each I/O of a thread')
    .option('--thinktime_blocks <n>', 'after so many I/Os', wholeNumber)
    .addOption(new Option('--verify <kind>', 'compare what was written').choices(['none', 'crc32c']))
    .addOption(new Option('--continue_on_error <kind>', 'whether failed I/Os end it').choices(['none', 'all']))
    .option('--max_errors <n>', 'how many failed I/Os end it', wholeNumber)
    .option('--seed <n>', 'of the random offsets: the same seed gives the same offsets', seed)
    .option('--filename <path>', 'a block device or file instead of a volume')
    .addOption(
      new Option('--ioengine <engine>', 'for --filename; null measures the engine itself').choices([
        'auto',
        'io_uring',
        'libaio',
        'pread',
        'null',
      ]),
    )
    .option('--no-direct', 'for --filename: through the page cache')
    .addOption(
      new Option('--sync <kind>', 'for --filename: open it with O_SYNC or O_DSYNC').choices(['none', 'sync', 'dsync']),
    )
    .option(
      '--job <file>',
      'a job file: TOML, or fio’s own (.fio, .ini, .job, .conf, .cfg); options beside it stand before its own',
    )
    .option('--write-to <identity...>', 'to write: the serial number (else MAJOR:MINOR, inode:N) of what may be lost')
    .option('--size-is <size...>', 'to write: its size', collectSize)
    .option('--sweep <over>', 'iodepth=1,2,4,… or rate_iops=…: one run for each, and the knee', sweepOf)
    .option('--until-steady [rounds]', 'runs until steady state by SNIA’s rule, at most so many', wholeNumber)
    .option('--runs <n>', 'the same again, for compare', wholeNumber, 1)
    .option('--label <label>', 'by which results are found and compared')
    .option('--no-keep', 'do not keep the result')
    .addHelpText(
      'after',
      `
The words are fio's. A volume must be exported; to be read it may be attached to a guest meanwhile.
What is written to is lost: it is refused where anybody has it, and where you do not repeat what it is.

Examples:
  lunpath bench db1
  lunpath bench db1 --rw read --bs 1MiB --iodepth 8 --runtime 30 --json
  lunpath bench db1 --sweep iodepth=1,2,4,8,16,32,64
  lunpath bench scratch --rw randrw --write-to 3f2a99c01b7d4e55 --size-is 2GiB
  lunpath bench --filename /dev/nvme1n1 --runs 5 --label before
  lunpath bench --job mixed.toml
  lunpath bench compare before after`,
    )
    .action((volume: string | undefined, options: Options, command: Command) =>
      withDaemon(command, async session => {
        const {jobs, notes} = await jobsOf(volume, options)
        for (const note of notes) process.stderr.write(`note: ${note}\n`)
        const reports: Answered[] = []
        for (const job of jobs) {
          for (let round = 0; round < options.runs; round++) {
            const report = await measure(session, job).catch(error => {
              throw session.json ? withReports(error, reports) : error
            })
            reports.push(report)
            if (!session.json) process.stdout.write(`${linesOf(report).join('\n')}\n`)
          }
        }
        if (session.json) printJson(reports.length === 1 ? reports[0] : reports)
        process.exitCode = exitCodeOfReports(reports)
      }),
    )
  benchResultCommands(bench)
}

/** A program gets one answer: what was measured before the failure is in it. */
function withReports(error: unknown, reports: Answered[]): unknown {
  if (!(error instanceof StorageError) || reports.length === 0) return error
  const {code, message, op, info, cause} = error
  return new StorageError(code, message, {op, info: {...info, reports}, cause})
}

/** What the command line and the job file ask for; the command line's options stand before what the file says. */
async function jobsOf(volume: string | undefined, options: Options): Promise<{jobs: JobSpec[]; notes: string[]}> {
  const {job, writeTo = [], sizeIs = [], sweep, untilSteady, runs, direct, keep, filename, ...words} = options
  const flags: JobOptions = {
    ...words,
    ...(direct === false ? {direct} : {}),
    ...(keep === false ? {keep} : {}),
    ...(sweep === undefined ? {} : {sweep}),
    ...(untilSteady === undefined ? {} : {steady: untilSteady === true ? {} : {rounds: untilSteady}}),
  }
  const measured = {
    ...(volume === undefined ? {} : {volume}),
    ...(filename === undefined ? {} : {filename: resolve(filename)}),
  }
  if (writeTo.length !== sizeIs.length)
    throw new StorageError('INVALID_ARGUMENT', 'Give --write-to and --size-is together, once for each target')
  const repeated = writeTo.map((identity, index) => ({identity, size: sizeIs[index]!}))
  if (job === undefined) return {jobs: [withRepeated({iodepth: 32, ...measured, ...flags}, repeated)], notes: []}
  const {readJobFile, withOptions} = await import('../local.js')
  const file = await readJobFile(job, measured)
  const jobs = file.jobs.map(one => withOptions(one, flags))
  return {jobs: jobs.map(one => withRepeated(one, repeated)), notes: [...new Set(jobs.flatMap(one => one.notes ?? []))]}
}

/** What may be lost is said in the order of the targets that do not say it themselves. */
function withRepeated(job: JobSpec, repeated: NonNullable<TargetSpec['writeTo']>[]): JobSpec {
  const left = [...repeated]
  const give = <T extends {writeTo?: TargetSpec['writeTo']}>(to: T): T =>
    to.writeTo === undefined && left.length > 0 ? {...to, writeTo: left.shift()} : to
  const told = job.target ? {...job, target: job.target.map(give)} : give(job)
  if (left.length > 0) throw new StorageError('INVALID_ARGUMENT', 'There are more --write-to than targets')
  return told
}

async function measure({call}: Session, job: JobSpec): Promise<Answered> {
  const rates: number[] = []
  let step = ''
  const onLine = (line: Record<string, unknown>) => {
    if (line.step) {
      const {number, of, label} = line.step as {number: number; of: number; label: string}
      step = `${number}/${of} ${label}  `
    }
    if (!line.sample) return
    const sample = line.sample as BenchSample
    rates.push(sample.iops)
    rates.splice(0, rates.length - sparkWidth)
    showProgress(`${step}${progressLine(sample, rates)}`)
  }
  return call<Answered>('POST', '/bench', job, {onLine}).finally(endProgress)
}

function progressLine({iops, bytesPerSecond, latency, phase, toSeconds}: BenchSample, rates: number[]): string {
  const when = phase === 'run' ? '' : ` (${phase})`
  return `${toSeconds.toFixed(1)} s${when}  ${sparkline(rates, sparkWidth)}  IOPS ${Math.round(iops)}  ${megabytes(bytesPerSecond)} MB/s  p99 ${formatNs(latency.p99Ns)}`
}

function linesOf(report: Answered): string[] {
  const kept = report.id === null ? [] : [`kept as ${report.id}`]
  if (report.kind === 'sweep') return [...textSweep(report), ...kept]
  if (report.kind === 'steady') return [...textSteady(report), ...kept]
  return [...textReport(report), ...kept]
}

/** 1 where a run did not finish, found wrong data, or is not valid; steady state that was not reached counts as that. */
function exitCodeOfReports(reports: Answered[]): number {
  if (reports.some(({state}) => state === 'cancelled')) return 130
  const results = reports.flatMap(report => (report.kind === 'run' ? [report] : report.results))
  const failed =
    reports.some(({state}) => state !== 'finished') ||
    results.some(({targets}) => targets.some(({verify}) => (verify?.failures ?? 0) > 0))
  const unsteady = reports.some(report => report.kind === 'steady' && !report.verdict.reached)
  return failed || unsteady ? 1 : 0
}

function wholeNumber(text: string): number {
  if (!/^\d+$/.test(text)) throw new InvalidArgumentError('expected a whole number')
  return Number(text)
}

/** As text: a number of JS would round what has more than 53 bits. */
function seed(text: string): string {
  wholeNumber(text)
  return text
}

function number(text: string): number {
  if (!/^\d+(\.\d+)?$/.test(text)) throw new InvalidArgumentError('expected a number')
  return Number(text)
}

function time(text: string): string {
  const us = parseTime(text, 's')
  if (us === undefined || us === 0) throw new InvalidArgumentError('expected a positive number of seconds')
  return text
}

function collectSize(text: string, before: number[] = []): number[] {
  return [...before, parseSize(text)]
}

function sweepOf(text: string): NonNullable<JobSpec['sweep']> {
  const [, over, values] = /^(iodepth|rate_iops)=(\d+(?:,\d+)+)$/.exec(text) ?? []
  if (!over || !values) throw new InvalidArgumentError('expected iodepth=1,2,4,… or rate_iops=1000,2000,…')
  return {over: over as 'iodepth' | 'rate_iops', values: values.split(',').map(Number)}
}
