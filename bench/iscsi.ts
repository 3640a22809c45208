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
async function lunOnTgtd(release: Release) {
  const tgtd = await startTgtd()
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

/** Random writes of `bs` bytes over loopback to a tgtd of our own, by PDUs of our own and through libiscsi. */
export async function iscsiWriteComparison(
  {figure, bs}: {figure: IscsiFigure; bs: number},
  release: Release,
): Promise<Comparison> {
  const {where} = await lunOnTgtd(release)
  const program = await buildEngine()
  const through = (engine: NativeIscsiEngine) =>
    ourProgram(program, ['--engine', engine, ...where, '--iodepth', `${iodepth}`, '--bs', `${bs}`, '--rw', 'write'])
  const [ours, other] = [through('iscsi'), through('libiscsi')]
  return {ours: measured(ours, figure), other: measured(other, figure), otherName: 'libiscsi in the same engine'}
}
