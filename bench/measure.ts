import {spawn, spawnSync} from 'node:child_process'
import {once} from 'node:events'
import {closeSync, fdatasyncSync, openSync, writeSync} from 'node:fs'
import {mkdtemp, readFile, rm} from 'node:fs/promises'
import {arch, cpus, loadavg, release, tmpdir, totalmem} from 'node:os'
import {join} from 'node:path'
import {monitorEventLoopDelay} from 'node:perf_hooks'
import {compiled} from '../test/fixtures/compiled.js'

/** What a row of the table has to say about one side: one number a sample, in the trial's unit. */
export type Sample = () => Promise<number>

/** Both sides of a comparison, ready to run any number of times. */
export interface Comparison {
  ours: Sample
  other: Sample
  otherName: string
  /** Facts to print beside the figures: processes spawned per operation, sizes … */
  beside?: () => Promise<Record<string, unknown>>
}

export interface Summary {
  median: number
  min: number
  max: number
  samples: number
}

export interface Paired {
  ours: Summary
  other: Summary
  /** Median of the ratios ours ÷ other of each pair. */
  ratio: number
}

export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

export function summarize(values: number[]): Summary {
  return {median: median(values), min: Math.min(...values), max: Math.max(...values), samples: values.length}
}

/**
 * Runs both sides in turn, `pairs` times, so that what the machine does meanwhile falls on both alike. Which side goes first
 * alternates.
 */
export async function inTurn<S>(
  {ours, other}: {ours: () => Promise<S>; other: () => Promise<S>},
  pairs: number,
): Promise<{ours: S; other: S}[]> {
  const results: {ours: S; other: S}[] = []
  for (let pair = 0; pair < pairs; pair++) {
    const oursFirst = pair % 2 === 0
    const first = await (oursFirst ? ours : other)()
    const second = await (oursFirst ? other : ours)()
    results.push(oursFirst ? {ours: first, other: second} : {ours: second, other: first})
  }
  return results
}

/** Compares within each pair. */
export function paired(results: readonly {ours: number; other: number}[]): Paired {
  return {
    ours: summarize(results.map(result => result.ours)),
    other: summarize(results.map(result => result.other)),
    ratio: median(results.map(result => result.ours / result.other)),
  }
}

/** Compares `pairs` pairs of samples. One pair before counts for nothing: it warms both sides up. */
export async function measurePaired(sides: Pick<Comparison, 'ours' | 'other'>, pairs: number): Promise<Paired> {
  const [, ...results] = await inTurn(sides, pairs + 1)
  return paired(results)
}

/** The median of 100 appends of 4 KiB, each made durable: what the disk costs any operation that stores something. */
export async function fdatasyncMicroseconds(directory = tmpdir()): Promise<number> {
  const own = await mkdtemp(join(directory, 'lp-sync-'))
  const fd = openSync(join(own, 'file'), 'w')
  try {
    const block = Buffer.alloc(4096, 1)
    const times: number[] = []
    for (let i = 0; i < 100; i++) {
      const began = process.hrtime.bigint()
      writeSync(fd, block)
      fdatasyncSync(fd)
      times.push(Number(process.hrtime.bigint() - began) / 1e3)
    }
    return median(times)
  } finally {
    closeSync(fd)
    await rm(own, {recursive: true})
  }
}

/** The median of 50 runs of /bin/true: what a program costs here before it does anything. */
export function spawnMilliseconds(): number {
  const times = Array.from({length: 50}, () => {
    const began = performance.now()
    spawnSync('/bin/true', {stdio: 'ignore'})
    return performance.now() - began
  })
  return median(times)
}

/**
 * Counts the processes started (execve) while `task` runs, by process `pid` and all that it starts, with strace. Tracing
 * slows both: never within a measurement. Null without strace or the right to trace.
 */
export async function countExecve(task: () => Promise<void>, pid = process.pid): Promise<number | null> {
  const own = await mkdtemp(join(tmpdir(), 'lp-trace-'))
  try {
    const trace = join(own, 'trace')
    const args = ['-f', '-p', String(pid), '-e', 'trace=execve,execveat', '-o', trace]
    const tracer = spawn('strace', args, {stdio: ['ignore', 'ignore', 'pipe']})
    const ended = once(tracer, 'exit')
    const attached = await Promise.race([
      once(tracer.stderr, 'data').then(([text]) => String(text).includes('attached')),
      once(tracer, 'error').then(() => false),
    ])
    if (!attached) return null
    await task()
    tracer.kill('SIGINT')
    await ended
    // strace itself is not counted: it was started before it could trace.
    const calls = (await readFile(trace, 'utf8')).split('\n')
    return calls.filter(call => /execve(at)?\(.*= 0$/.test(call)).length
  } finally {
    await rm(own, {recursive: true})
  }
}

/** The 99th percentile of the event loop's delay while `task` runs, in milliseconds; resolution 1 ms. */
export async function delayP99Ms(task: () => Promise<unknown>): Promise<number> {
  const delay = monitorEventLoopDelay({resolution: 1})
  delay.enable()
  await task()
  delay.disable()
  return delay.percentile(99) / 1e6
}

/** Compiles a C file of bench/c with the system's compiler into .cache/bench, unless that is newer. Returns the program. */
export function compile(source: string, program: string): Promise<string> {
  return compiled(join('.cache', 'bench', program), {compiler: 'cc', args: ['-O2', source], sources: [source]})
}

/** The machine, as far as it explains figures. */
export async function describeMachine(): Promise<Record<string, unknown>> {
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    cores: cpus().length,
    arch: arch(),
    memoryBytes: totalmem(),
    kernel: release(),
    node: process.version,
    load1: loadavg()[0],
    fdatasyncUs: Math.round(await fdatasyncMicroseconds()),
    spawnUs: Math.round(spawnMilliseconds() * 1e3),
  }
}
