import {execFile} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {mkdtemp, open, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {promisify} from 'node:util'
import {keepProcessorsAwake} from './idle.js'
import {type Comparison, compile, median} from './measure.js'
import type {Release} from './trials.js'

const spawn = promisify(execFile)
const sizeBytes = 256 * 2 ** 20
const bs = 4096

/** One run of a program: what it did, and what CPU time it cost from its start to its end, all threads and children together. */
export interface ProgramRun {
  ios: number
  iops: number
  cpuNs: number
}

export type Program = (runtimeMs: number) => Promise<ProgramRun>

export interface IoTrial {
  device: 'loop' | 'file' | 'null'
  iodepth: number
  other: 'bare C' | 'fio io_uring' | 'fio libaio' | 'fio tuned' | 'fio null'
  figure: 'CPU' | 'IOPS'
  /** Idle processors poll for work, whatever the kernel would let them do. Default false. */
  awake?: boolean
}

/** The engine without Node. The same sources are in the addons. */
export async function buildEngine(): Promise<string> {
  const program = join('.cache', 'bench', 'lunpath-bench')
  await spawn('scripts/build-bench', [program])
  return program
}

/** Runs a program below cpu_of.c; its last line on stderr is the CPU time. */
export async function runMeasured(command: string[]): Promise<{stdout: string; cpuNs: number}> {
  const cpuOf = await compile('bench/c/cpu_of.c', 'cpu_of')
  const {stdout, stderr} = await spawn(cpuOf, command)
  return {stdout, cpuNs: Number(stderr.trim().split('\n').at(-1)) * 1000}
}

export function ourProgram(engine: string, args: string[]): Program {
  return async ms => {
    const {stdout, cpuNs} = await runMeasured([engine, ...args, '--runtime-ms', `${ms}`])
    const {ios, iops} = JSON.parse(stdout) as {ios: number; iops: number}
    return {ios, iops, cpuNs}
  }
}

function bareProgram(program: string, path: string, {iodepth, device}: IoTrial): Program {
  return async ms => {
    const args = [path, `${iodepth}`, `${bs}`, `${ms}`, device === 'loop' ? '1' : '0']
    const {stdout, cpuNs} = await runMeasured([program, ...args])
    const {ios, elapsedNs} = JSON.parse(stdout) as {ios: number; elapsedNs: number}
    return {ios, iops: ios / (elapsedNs / 1e9), cpuNs}
  }
}

const fioEngines: Record<Exclude<IoTrial['other'], 'bare C'>, string[]> = {
  'fio io_uring': ['--ioengine=io_uring'],
  'fio libaio': ['--ioengine=libaio'],
  'fio tuned': [
    '--ioengine=io_uring',
    '--fixedbufs',
    '--registerfiles',
    '--iodepth_batch_submit=16',
    '--iodepth_batch_complete_min=1',
    '--iodepth_batch_complete_max=32',
  ],
  'fio null': ['--ioengine=null'],
}

function fioProgram(path: string, {iodepth, device, other}: IoTrial): Program {
  return async ms => {
    const {stdout, cpuNs} = await runMeasured([
      'fio',
      '--name=bench',
      '--rw=randread',
      `--bs=${bs}`,
      `--iodepth=${iodepth}`,
      `--runtime=${ms}ms`,
      '--time_based',
      '--thread',
      '--norandommap',
      '--output-format=json',
      ...(device === 'null' ? [`--size=${sizeBytes}`] : [`--filename=${path}`]),
      `--direct=${device === 'loop' ? 1 : 0}`,
      ...fioEngines[other as keyof typeof fioEngines],
    ])
    const {read} = (JSON.parse(stdout) as {jobs: {read: {total_ios: number; iops: number}}[]}).jobs[0]!
    return {ios: read.total_ios, iops: read.iops, cpuNs}
  }
}

/** The shortest run there is: the cost of a program's start and end, and a few I/Os. */
export async function shortestRun(program: Program): Promise<ProgramRun> {
  const runs: ProgramRun[] = []
  for (let i = 0; i < 3; i++) runs.push(await program(1))
  return {ios: median(runs.map(run => run.ios)), cpuNs: median(runs.map(run => run.cpuNs)), iops: 0}
}

/** Nanoseconds of CPU per I/O, the start and the end of the program left out. */
export async function cpuNsPerIo(program: Program, ms: number, shortest: ProgramRun): Promise<number> {
  const {cpuNs, ios} = await program(ms)
  return (cpuNs - shortest.cpuNs) / (ios - shortest.ios)
}

/** No holes: a read of one costs less. */
async function randomFile(directory: string): Promise<string> {
  const path = join(directory, 'data')
  const file = await open(path, 'wx')
  const chunkBytes = 2 ** 20
  for (let at = 0; at < sizeBytes; at += chunkBytes) await file.write(randomBytes(chunkBytes))
  await file.close()
  return path
}

/** The path to read from, gone after the trial; '' for the null engine. */
export async function prepareDevice(device: IoTrial['device'], release: Release): Promise<string> {
  if (device === 'null') return ''
  const directory = await mkdtemp(join(device === 'loop' ? '/dev/shm' : tmpdir(), 'lp-bench-'))
  release(() => rm(directory, {recursive: true, force: true}))
  const path = await randomFile(directory)
  if (device === 'file') return path
  const {stdout} = await spawn('losetup', ['--find', '--show', '--read-only', '--', path])
  const loop = stdout.trim()
  release(async () => {
    await spawn('losetup', ['--detach', loop])
  })
  return loop
}

/**
 * 4 KiB random reads by our engine and by another program, each a process of its own. CPU is nanoseconds per I/O of the whole
 * process with its children, less what its shortest run costs: fio's start is long, and it would be unfair to spread it
 * over a short run.
 */
export async function ioComparison(trial: IoTrial, release: Release): Promise<Comparison> {
  const path = await prepareDevice(trial.device, release)
  const engine = await buildEngine()
  const where =
    trial.device === 'null'
      ? ['--engine', 'null']
      : ['--engine', 'io_uring', '--path', path, '--direct', trial.device === 'loop' ? '1' : '0']
  const ours = ourProgram(engine, [...where, '--iodepth', `${trial.iodepth}`, '--bs', `${bs}`])
  const other =
    trial.other === 'bare C'
      ? bareProgram(await compile('bench/c/uring_bare.c', 'uring_bare'), path, trial)
      : fioProgram(path, trial)
  // One I/O at a time are a tenth as many, over which a program's start, as far as it differs from run to run, spreads. With
  // many in flight a run falls into one of two ways of going, by where the kernel puts the threads, and stays in it: a third of
  // the I/Os more or less. The median of three is in the usual one.
  const {runs, runtimeMs} = trial.iodepth === 1 ? {runs: 1, runtimeMs: 3000} : {runs: 3, runtimeMs: 400}
  const medianOf = (figure: () => Promise<number>) => async () => {
    const figures: number[] = []
    for (let i = 0; i < runs; i++) figures.push(await figure())
    return median(figures)
  }
  const {stdout: fioVersion} = trial.other === 'bare C' ? {stdout: ''} : await spawn('fio', ['--version'])
  const idle = trial.awake ? {idleProcessors: await keepProcessorsAwake(release)} : {}
  if (trial.figure === 'IOPS') {
    return {
      ours: medianOf(async () => (await ours(runtimeMs)).iops),
      other: medianOf(async () => (await other(runtimeMs)).iops),
      otherName: trial.other,
      beside: async () => idle,
    }
  }
  const shortest = {ours: await shortestRun(ours), other: await shortestRun(other)}
  return {
    ours: medianOf(() => cpuNsPerIo(ours, runtimeMs, shortest.ours)),
    other: medianOf(() => cpuNsPerIo(other, runtimeMs, shortest.other)),
    otherName: `${trial.other} ${fioVersion.trim()}`.trim(),
    beside: async () => ({
      ...idle,
      startCpuMsOurs: shortest.ours.cpuNs / 1e6,
      startCpuMsOther: shortest.other.cpuNs / 1e6,
    }),
  }
}
