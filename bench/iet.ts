import {execFile} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {truncate, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {promisify} from 'node:util'
import {IetDriver} from '../src/targets/iet.js'
import {call, IetControl, request} from '../src/targets/iet-control.js'
import type {ExportSpec} from '../src/types.js'
import {Iet} from '../test/lab/iet.js'
import {type Comparison, compile, median} from './measure.js'

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

const sizeBytes = 16 * 2 ** 20
const auth = {incoming: {user: 'guest', secret: 'a-good-secret-01'}}
// Far above the numbers that the driver gives out in one run, and below those that it does not count on from.
const othersFirstTid = 1_000_000

/** A driver of the double, and exports of one file. */
async function driverSide(release: Release) {
  const iet = await Iet.start()
  release(() => iet.stop())
  const path = join(iet.configDir, 'volume.img')
  await writeFile(path, '')
  await truncate(path, sizeBytes)
  // As most machines have it: without a rule of its own a target is open to everybody.
  await writeFile(join(iet.configDir, 'initiators.allow'), 'ALL ALL\n')
  const driver = new IetDriver({portals: [], procDirectory: iet.procDir, accessDirectories: [iet.configDir]})
  release(() => driver.close())
  await driver.open()
  await driver.restore([])
  const specOf = (change: Partial<ExportSpec> = {}): ExportSpec => {
    const id = randomBytes(8).toString('hex')
    const access = {addresses: ['192.0.2.1'], names: []}
    const iqn = `iqn.2026-01.io.lunpath.bench:${id}`
    const kept = {writeCache: 'through', readOnly: false} as const
    return {volume: {id, path, kind: 'file', sizeBytes}, iqn, access, ...kept, ...change}
  }
  return {iet, driver, path, specOf, program: await compile('bench/c/iet_bare.c', 'iet_bare')}
}

/**
 * Target, CHAP account, volume and the target's end, with access rules on our side alone, which a person would write by hand:
 * milliseconds for each of `count` exports, `concurrency` under way at once on both sides.
 */
export async function ietExportComparison(
  {count, concurrency}: {count: number; concurrency: number},
  release: Release,
): Promise<Comparison> {
  const {driver, path, specOf, program} = await driverSide(release)
  let first = othersFirstTid
  return {
    ours: async () => {
      const waiting = Array.from({length: count}, () => specOf({auth}))
      const began = performance.now()
      const worker = async () => {
        for (let spec = waiting.pop(); spec; spec = waiting.pop()) {
          await driver.export(spec)
          await driver.unexport(spec.iqn)
        }
      }
      await Promise.all(Array.from({length: concurrency}, worker))
      return (performance.now() - began) / count
    },
    other: async () => {
      first += count
      const {stdout} = await spawn(program, ['steps', String(count), String(concurrency), String(first), path])
      return Number(stdout) / 1e6 / count
    },
    otherName: 'a C program that spawns a C program for each of four steps, over ietd’s socket',
  }
}

/** Milliseconds that a restoration after a wipe takes beyond its requests and calls, against a limit. */
export async function ietRestoreComparison(count: number, limitMs: number, release: Release): Promise<Comparison> {
  const {iet, driver, path, specOf, program} = await driverSide(release)
  for (let i = 0; i < count; i++) await driver.export(specOf())
  let first = othersFirstTid
  const taken: {restoredMs: number; callsMs: number}[] = []
  let tell: (facts: {durationMs: number; exports: number}) => void = () => undefined
  driver.on('restarted', facts => tell(facts as Parameters<typeof tell>[0]))
  /** A look that comes in the midst of the wipe sees a part of it: the rest comes back by the next one. */
  const allBack = () =>
    new Promise<number>(resolve => {
      const sum = {exports: 0, durationMs: 0}
      tell = ({exports, durationMs}) => {
        sum.exports += exports
        sum.durationMs += durationMs
        if (sum.exports >= count) resolve(sum.durationMs)
      }
    })
  return {
    ours: async () => {
      const restored = allBack()
      await iet.wipe()
      const restoredMs = await restored
      first += 2 * count
      const {stdout} = await spawn(program, ['calls', String(count), String(first), path])
      taken.push({restoredMs, callsMs: Number(stdout) / 1e6})
      return taken.at(-1)!.restoredMs - taken.at(-1)!.callsMs
    },
    other: async () => limitMs,
    otherName: `the limit of ${limitMs} ms`,
    beside: async () => ({
      restoredMs: Math.round(median(taken.map(({restoredMs}) => restoredMs))),
      callsMs: Math.round(median(taken.map(({callsMs}) => callsMs))),
    }),
  }
}
