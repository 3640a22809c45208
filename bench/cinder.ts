import {randomUUID} from 'node:crypto'
import {run} from '../src/exec.js'
import {scsiDisks} from '../test/lab/initiator.js'
import {cinderSide, group, lunpathSide, prepareLab, type Side, type Step, steps, type Target} from './cinder-sides.js'
import {countExecve, inTurn, paired} from './measure.js'
import type {Release, TableRow} from './trials.js'

/** A step, or all of them together. */
export type Part = Step | 'all'
export const parts: readonly Part[] = [...steps, 'all']

/** What a pass of one side gives for each part: milliseconds, or processes. */
export type Pass = Record<Part, number>

/** What one at a time may take of Cinder's time. */
const bars: Readonly<Record<Part, number>> = {
  create: 0.4,
  export: 0.05,
  connect: 0.15,
  disconnect: 0.2,
  unexport: 0.1,
  delete: 0.6,
  all: 0.15,
}

/** Cinder's own calls that make up a step. */
const calls: Readonly<Record<Part, string>> = {
  create: 'create_volume',
  export: 'create_export, initialize_connection',
  connect: 'connect_volume',
  disconnect: 'disconnect_volume',
  unexport: 'terminate_connection, remove_export',
  delete: 'delete_volume',
  all: 'all of them',
}

export const together = 8

/**
 * A thick volume of 1 GiB from nothing to a disk of this host and back, with CHAP, step by step, one at a time and eight at
 * once. The processes are counted in a pass of each side before, under strace, which warms both up.
 */
export async function cinderRows(target: Target, pairs: number, release: Release): Promise<TableRow[]> {
  await prepareLab(target, release)
  const sides = {ours: await lunpathSide(target, release), other: await cinderSide(target, release)}
  const execve = {ours: await processes(sides.ours), other: await processes(sides.other)}
  const passes = (concurrency: number, times: number) => {
    const pass = (side: Side) => () => milliseconds(side, concurrency)
    return inTurn({ours: pass(sides.ours), other: pass(sides.other)}, times)
  }
  const single = rowsOf(1, await passes(1, pairs))
  const counted = single.map((row, at) => ({
    ...row,
    beside: {execve: execve.ours[parts[at]!], otherExecve: execve.other[parts[at]!]},
  }))
  return [...counted, ...rowsOf(together, await passes(together, pairsTogether(target, pairs)))]
}

/** With LIO Cinder does one thing at a time, so that eight at once take its side five minutes: not in a short run. */
function pairsTogether(target: Target, pairs: number): number {
  const fewer = Math.floor(pairs / 5)
  return target === 'lio' ? fewer : Math.max(1, fewer)
}

/** None where nothing was measured. */
export function rowsOf(concurrency: number, passes: readonly {ours: Pass; other: Pass}[]): TableRow[] {
  if (passes.length === 0) return []
  return parts.map(part => ({
    name: `${concurrency === 1 ? 'one at a time' : `${concurrency} at once`}: ${part}`,
    otherName: calls[part],
    statistic: `median of ${passes.length} paired ratios`,
    paired: paired(passes.map(({ours, other}) => ({ours: ours[part], other: other[part]}))),
    bar: concurrency === 1 ? {atMost: bars[part]} : null,
    beside: {},
  }))
}

function milliseconds(side: Side, concurrency: number): Promise<Pass> {
  return pass(concurrency, (step, volumes) => side.take(step, volumes))
}

/** Programs started by the side and by all that it starts; of none where strace may not be used. */
async function processes(side: Side): Promise<Record<Part, number | null>> {
  let known = true
  const counted = await pass(1, async (step, volumes) => {
    const take = async () => void (await side.take(step, volumes))
    const count = await countExecve(take, side.pid)
    if (count !== null) return count
    known = false
    await take()
    return 0
  })
  return known ? counted : (Object.fromEntries(parts.map(part => [part, null])) as Record<Part, null>)
}

/** Takes volumes the whole way, and makes sure that each step has done its work. */
async function pass(
  concurrency: number,
  measure: (step: Step, volumes: readonly string[]) => Promise<number>,
): Promise<Pass> {
  const volumes = Array.from({length: concurrency}, () => randomUUID())
  const figures: Partial<Pass> = {}
  for (const step of steps) {
    figures[step] = await measure(step, volumes)
    await expect(step, concurrency)
  }
  // What udev still has to do for one side is no load on the other.
  await run('udevadm', ['settle'], {timeoutMs: 120_000})
  return withAll(figures as Record<Step, number>)
}

export function withAll(figures: Record<Step, number>): Pass {
  return {...figures, all: steps.reduce((sum, step) => sum + figures[step], 0)}
}

async function expect(step: Step, count: number): Promise<void> {
  if (step === 'connect' || step === 'disconnect') {
    const disks = await scsiDisks()
    const wanted = step === 'connect' ? count : 0
    if (disks.length !== wanted)
      throw new Error(`After ${step} this host has the disks ${disks}, not ${wanted} of them`)
  }
  if (step === 'create' || step === 'delete') {
    const {stdout} = await run('lvs', ['--noheadings', '-o', 'lv_name', group])
    const found = stdout.split('\n').filter(line => line.trim() !== '')
    const wanted = step === 'create' ? count : 0
    if (found.length !== wanted)
      throw new Error(`After ${step} the group has the volumes ${found}, not ${wanted} of them`)
  }
}
