import {execFile} from 'node:child_process'
import {promisify} from 'node:util'
import {call, IetControl, request} from '../src/targets/iet-control.js'
import {Iet} from '../test/lab/iet.js'
import {type Comparison, compile} from './measure.js'

const spawn = promisify(execFile)
const patient = {timeoutMs: 30_000}

type Release = (cleanup: () => Promise<void>) => void

/** The double in the lab, and a connection to it. */
async function double(release: Release) {
  const iet = await Iet.start()
  release(() => iet.stop())
  const control = new IetControl()
  release(async () => control.close())
  const makeTarget = async (name: string) => {
    const {answers, pid} = await control.exchange([[request.newTarget(0, name)]], patient)
    return {tid: answers[0]![0]!.tid, pid}
  }
  return {iet, control, makeTarget}
}

/** A target of the double, and calls for volumes without a file. */
async function ietSide(release: Release) {
  const {control, makeTarget} = await double(release)
  const {tid, pid} = await makeTarget('iqn.2026-01.io.lunpath.bench:a')
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
export async function ietSpawnComparison(count: number, release: Release): Promise<Comparison> {
  const {program, tid, addAndDelete} = await ietSide(release)
  const bySpawn = async () => {
    const began = performance.now()
    for (const command of ['socket', 'unsocket']) {
      for (let lun = 1; lun <= count; lun++) await spawn(program, [command, String(tid), String(lun)])
    }
    return performance.now() - began
  }
  return {ours: () => addAndDelete(count), other: bySpawn, otherName: 'a C program for each, over ietd’s socket'}
}

export async function ietBareComparison(count: number, release: Release): Promise<Comparison> {
  const {program, tid, addAndDelete} = await ietSide(release)
  const byHand = async () => {
    const {stdout} = await spawn(program, ['device', String(tid), String(count)])
    return Number(stdout) / 1e6
  }
  return {
    ours: () => addAndDelete(count),
    other: byHand,
    otherName: 'bare C: socket, pidfd, duplicate, calls, close; its own start left out',
  }
}

/** Requests at once, each about a target of its own, to an ietd that takes its time: answers that never came, or were another's. */
export async function ietLostComparison(count: number, delayMs: number, release: Release): Promise<Comparison> {
  const {iet, control, makeTarget} = await double(release)
  const targets: {tid: number; user: string}[] = []
  for (let index = 0; index < count; index++) {
    const {tid} = await makeTarget(`iqn.2026-01.io.lunpath.bench:${index}`)
    const user = `user-${index}`
    await control.exchange([[request.newAccount(tid, 'incoming', user, 'a-good-secret-01')]], patient)
    targets.push({tid, user})
  }
  const total = {asked: 0, lost: 0, 'mixed up': 0}
  const ask = async ({tid, user}: (typeof targets)[number]) => {
    const {answers, failure} = await control.exchange([[request.listAccounts(tid, 'incoming')]], patient)
    const names = answers[0]?.[0]?.error === 0 && !failure ? answers[0][0].names : undefined
    total.asked++
    if (names === undefined) total.lost++
    else if (names.join() !== user) total['mixed up']++
    return names?.join() === user
  }
  return {
    ours: async () => {
      await iet.answer('normal', {count, delayMs})
      return (await Promise.all(targets.map(ask))).filter(isRight => !isRight).length
    },
    other: async () => count,
    otherName: 'all that were asked',
    beside: async () => total,
  }
}
