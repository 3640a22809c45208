import {execFile} from 'node:child_process'
import {promisify} from 'node:util'
import {call, IetControl, request} from '../src/targets/iet-control.js'
import {Iet} from '../test/lab/iet.js'
import {type Comparison, compile} from './measure.js'

const spawn = promisify(execFile)
const patient = {timeoutMs: 30_000}
const batchSize = 16

type Release = (cleanup: () => Promise<void>) => void

/** A target of the double in the lab, and calls for volumes without a file. */
async function ietSide(release: Release) {
  const iet = await Iet.start()
  release(() => iet.stop())
  const control = new IetControl()
  release(async () => control.close())
  const {answers, pid} = await control.exchange([[request.newTarget(0, 'iqn.2026-01.io.lunpath.bench:a')]], patient)
  const {tid} = answers[0]![0]!
  /** Milliseconds to add `count` volumes, with one duplicate of ietd's descriptor, and to delete them with another one. */
  const addAndDelete = async (count: number) => {
    const luns = Array.from({length: count}, (_, index) => index + 1)
    const options = {...patient, expectedPid: pid}
    const began = performance.now()
    const added = await control.call(
      luns.map(lun => [call.addVolume(tid, lun, 'Type=nullio')]),
      options,
    )
    const deleted = await control.call(
      luns.map(lun => [call.deleteVolume(tid, lun)]),
      options,
    )
    const took = performance.now() - began
    const errors = [...added.answers, ...deleted.answers].filter(([answer]) => answer?.error !== 0)
    if (errors.length > 0 || control.way?.way !== 'device') throw new Error('not all calls were made by the device')
    return took
  }
  await addAndDelete(1)
  return {program: await compile('bench/c/iet_bare.c', 'iet_bare'), tid, addAndDelete}
}

/** What ietadm would be: a program for each request, over ietd's socket. */
export async function ietSpawnComparison(release: Release): Promise<Comparison> {
  const {program, tid, addAndDelete} = await ietSide(release)
  const bySpawn = async () => {
    const began = performance.now()
    await spawn(program, ['socket', String(tid), '1'])
    await spawn(program, ['unsocket', String(tid), '1'])
    return performance.now() - began
  }
  return {ours: () => addAndDelete(1), other: bySpawn, otherName: 'a C program for each, over ietd’s socket'}
}

export async function ietBareComparison(release: Release): Promise<Comparison> {
  const {program, tid, addAndDelete} = await ietSide(release)
  const byHand = async () => {
    const {stdout} = await spawn(program, ['device', String(tid), String(batchSize)])
    return Number(stdout) / 1e6
  }
  return {
    ours: () => addAndDelete(batchSize),
    other: byHand,
    otherName: 'bare C: socket, pidfd, duplicate, calls, close; its own start left out',
  }
}
