import {readFile} from 'node:fs/promises'
import type {NativeIscsiEngine} from '../src/bench/native.js'
import {makeLun} from '../test/fixtures/lun-by-hand.js'
import {startTgtd} from '../test/fixtures/tgtd-by-hand.js'
import {buildEngine, ourProgram, type Program, runMeasured} from './io.js'
import type {Comparison} from './measure.js'
import type {Release} from './trials.js'

export type IscsiFigure = 'CPU' | 'IOPS'

const iodepth = 32
const blockBytes = 512
// iscsi-perf takes whole seconds.
const runtimeMs = 2_000

/** What iscsi-perf prints in the end: `iops average 12345 (50 MB/s)`; its counts of I/Os are in it alone. */
function perfProgram(url: string, bs: number): Program {
  return async ms => {
    const seconds = Math.max(1, Math.round(ms / 1000))
    const {stdout, cpuNs} = await runMeasured([
      'iscsi-perf',
      '-i',
      'iqn.2025-01.io.lunpath:bench',
      '-m',
      `${iodepth}`,
      '-b',
      `${bs / blockBytes}`,
      '-t',
      `${seconds}`,
      '-r',
      url,
    ])
    const average = /iops average (\d+)/.exec(stdout)
    if (!average) throw new Error(`iscsi-perf said ${stdout}`)
    const iops = Number(average[1])
    return {ios: iops * seconds, iops, cpuNs}
  }
}

/** A LUN of 64 MiB on a tgtd of our own, and what our program needs to go there. */
async function lunOnTgtd(release: Release, enter: readonly string[] = []) {
  const tgtd = await startTgtd({enter})
  release(() => tgtd.stop())
  const lun = await makeLun(tgtd, 1)
  release(() => lun.remove())
  const portal = `127.0.0.1:${tgtd.port}`
  return {portal, iqn: lun.iqn, where: ['--portal', portal, '--target', lun.iqn, '--lun', '1']}
}

/** Whole processes, login and logout included, since iscsi-perf has no run shorter than a second. */
const measured = (program: Program, figure: IscsiFigure) => async () => {
  const {iops, cpuNs, ios} = await program(runtimeMs)
  return figure === 'IOPS' ? iops : cpuNs / ios
}

/** Random reads of `bs` bytes over loopback from a tgtd of our own, by one of our engines and by iscsi-perf. */
export async function iscsiComparison(
  {engine, figure, bs}: {engine: NativeIscsiEngine; figure: IscsiFigure; bs: number},
  release: Release,
): Promise<Comparison> {
  const {portal, iqn, where} = await lunOnTgtd(release)
  const program = await buildEngine()
  const ours = ourProgram(program, ['--engine', engine, ...where, '--iodepth', `${iodepth}`, '--bs', `${bs}`])
  const other = perfProgram(`iscsi://${portal}/${iqn}/1`, bs)
  return {ours: measured(ours, figure), other: measured(other, figure), otherName: 'iscsi-perf'}
}

/** taskset(1) for one of the processors that this process may use. */
async function onOneProcessor(): Promise<string[]> {
  const status = await readFile('/proc/self/status', 'utf8')
  const [, last] = /^Cpus_allowed_list:.*?(\d+)$/m.exec(status) ?? []
  if (last === undefined) throw new Error('/proc/self/status does not say which processors there are')
  return ['taskset', '-c', last]
}

/**
 * Random writes of `bs` bytes over loopback to a tgtd of our own, by PDUs of our own and through libiscsi. Where tgtd has a
 * processor of its own, answers come one by one and each finds a client that sleeps: the shorter its own way, the more often
 * it sleeps, and a wake-up costs more than a command. With `sharedProcessor` the two take turns.
 */
export async function iscsiWriteComparison(
  {figure, bs, sharedProcessor}: {figure: IscsiFigure; bs: number; sharedProcessor: boolean},
  release: Release,
): Promise<Comparison> {
  const enter = sharedProcessor ? await onOneProcessor() : []
  const {where} = await lunOnTgtd(release, enter)
  const [program, ...prefix] = [...enter, await buildEngine()]
  const depth = ['--iodepth', `${iodepth}`, '--bs', `${bs}`, '--rw', 'write']
  const through = (engine: NativeIscsiEngine) =>
    ourProgram(program!, [...prefix, '--engine', engine, ...where, ...depth])
  const [ours, other] = [through('iscsi'), through('libiscsi')]
  return {ours: measured(ours, figure), other: measured(other, figure), otherName: 'libiscsi in the same engine'}
}
