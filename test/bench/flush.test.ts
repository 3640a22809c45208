// Flushes after so many writes: when they come, that each engine does them, and what becomes of one that fails.
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import type {NativeDevice, NativePathEngine, NativeTarget} from '../../src/bench/native.js'
import {start} from '../../src/bench/run.js'
import {nativeLogin} from '../../src/iscsi-login.js'
import {attachLoop, MiB} from '../contract/observe.js'
import {mountErrnos} from '../fixtures/errno-fs.js'
import {makeLun} from '../fixtures/lun-by-hand.js'
import {dataFile, mixes, nativeTarget, nullDevice, pathDevice, startNative} from '../fixtures/native-bench.js'
import {openRecordingPortal} from '../fixtures/portals.js'
import {startTgtd} from '../fixtures/tgtd-by-hand.js'
import {tmpfs} from '../fixtures/tmpfs.js'
import {withLoop} from '../fixtures/with-loop.js'

const synchronizeCache10 = 0x35

/** Writes of 4 KiB that end after so many on each thread. */
function writesOf(device: NativeDevice, ios: number, changes: Partial<NativeTarget> = {}): NativeTarget {
  return nativeTarget(device, {mix: mixes.write, stop: {bytes: 0, percent: 0, ios}, ...changes})
}

const patient = {runtimeMs: 60_000}
const both = {fsync: 3, fdatasync: 2}
/** After 2, 4, 8, 10, 14 and 16 writes one of data, after 3, 6, … 18 one of all; and none after the last of 20. */
const expected = {fsync: 6, fdatasync: 6}

const engines: NativePathEngine[] = ['io_uring', 'libaio', 'pread']
for (const engine of engines) {
  for (const iodepth of [1, 4]) {
    test.serial(`${engine} flushes a file after so many writes, iodepth ${iodepth}`, async t => {
      const {directory, syncs} = await mountErrnos(t)
      const device = pathDevice(join(directory, 'fsync-0'), {engine})
      const {report, samples} = startNative([writesOf(device, 20, {iodepth, flushAfter: both})], patient)
      const {state, targets, total} = await report
      t.is(state, 'finished', JSON.stringify(targets[0]!.lastError))
      const counts = {fsync: 0, fdatasync: 0}
      for (const kind of syncs()) counts[kind]++
      t.deepEqual(counts, expected, 'as the file system sees it')
      t.like(total, {errors: 0, flush: {count: 12}, directions: {write: {ios: 20, bytes: 20 * 4096}}})
      t.like(targets[0], {engine, fallbackReason: '', unanswered: 0, flush: {count: 12}})
      const {service, response} = total.flush!
      t.deepEqual([service.count, response.count], [12, 12])
      t.true(service.minNs > 0)
      const sampled = samples.reduce((sum, sample) => sum + sample.total.flush!.count, 0)
      t.is(sampled, 12, 'the samples add up')
    })
  }

  test.serial(`${engine}: a flush that fails is an error of the run, and the policy decides`, async t => {
    const {directory} = await mountErrnos(t)
    const device = pathDevice(join(directory, 'fsync-28'), {engine})
    const target = writesOf(device, 20, {iodepth: 2, flushAfter: {fsync: 5, fdatasync: 0}})
    const {state, targets, total} = await startNative([target], patient).report
    t.is(state, 'finished')
    t.like(total, {errors: 3, flush: {count: 0}, directions: {write: {ios: 20}}})
    t.deepEqual(targets[0]!.errorCounts, [{direction: 'flush', code: 'ENOSPC', number: 28, count: 3, firstOffsets: []}])
    t.is(targets[0]!.lastError!.code, 'ENOSPC')
    // With more in flight a second flush may be on its way by then.
    const stopped = await startNative([{...target, iodepth: 1, onError: {kind: 'stop'}}], patient).report
    t.is(stopped.state, 'failed')
    t.is(stopped.total.errors, 1)
  })
}

async function onTgtd(t: ExecutionContext, portalOptions: {instead?: number} = {}) {
  const tgtd = await startTgtd()
  t.teardown(() => tgtd.stop())
  const lun = await makeLun(tgtd, 1, {sizeBytes: 16 * MiB})
  t.teardown(() => lun.remove())
  const {portal, close, cdbs} = await openRecordingPortal(tgtd.port, {opcode: synchronizeCache10, ...portalOptions})
  t.teardown(close)
  const target = {portal, iqn: lun.iqn, lun: 1, initiatorName: 'iqn.2025-01.test.lunpath:bench'}
  return {cdbs, target, writeTo: {identity: lun.serial, sizeBytes: lun.sizeBytes}}
}

for (const engine of ['iscsi', 'libiscsi'] as const) {
  test.serial(`${engine} flushes a logical unit by SYNCHRONIZE CACHE of all of it`, async t => {
    const {cdbs, target} = await onTgtd(t)
    const device: NativeDevice = {kind: 'iscsi', engine, login: nativeLogin(target)}
    const {state, targets, total} = await startNative(
      [writesOf(device, 20, {iodepth: 4, flushAfter: both})],
      patient,
      'iscsi',
    ).report
    t.is(state, 'finished', JSON.stringify(targets[0]!.lastError))
    t.like(targets[0], {engine, fallbackReason: '', errors: 0, unanswered: 0})
    t.like(total, {flush: {count: 12}, directions: {write: {ios: 20}}})
    const whole = Buffer.alloc(16)
    whole[0] = synchronizeCache10
    t.deepEqual(cdbs, Array(12).fill(whole))
  })

  test.serial(`${engine}: a flush that the target refuses is an error with its sense`, async t => {
    const {target} = await onTgtd(t, {instead: 0xff})
    const device: NativeDevice = {kind: 'iscsi', engine, login: nativeLogin(target)}
    const one = writesOf(device, 20, {iodepth: 4, flushAfter: {fsync: 5, fdatasync: 0}})
    const {state, targets, total} = await startNative([one], patient, 'iscsi').report
    t.is(state, 'finished', JSON.stringify(targets[0]!.lastError))
    t.like(total, {errors: 3, flush: {count: 0}, directions: {write: {ios: 20}}})
    const [counted, ...others] = targets[0]!.errorCounts
    // ILLEGAL REQUEST, INVALID COMMAND OPERATION CODE
    t.like(counted, {direction: 'flush', code: 'SCSI_SENSE', number: 0x05_2000, count: 3})
    t.deepEqual(others, [])
  })
}

test.serial('a result has flushes beside its I/Os, and the job that ran says after how many writes', async t => {
  const {cdbs, target, writeTo} = await onTgtd(t)
  const job = {target: {...target, writeTo}, rw: 'randwrite', number_ios: 100, iodepth: 4, fsync: 10} as const
  const {total, targets, series} = await start(job).result
  const [one] = targets
  t.like(one, {engine: 'iscsi', ios: 100, flush: {count: 9}, workload: {fsync: 10}, job: {fsync: 10}})
  t.is(cdbs.length, 9)
  t.is(total.ios, 100, 'a flush is no I/O')
  t.is(total.directions.write!.ios, 100)
  const {latency, histogram, service} = total.flush!
  t.true(latency.minNs > 0 && latency.minNs <= latency.p50Ns && latency.p99Ns <= latency.maxNs)
  t.true(histogram.buckets.length > 0)
  t.is(service, undefined)
  t.is(
    series.reduce((sum, {flush}) => sum + flush!.count, 0),
    9,
  )
})

test.serial('each thread counts its own writes, and reads are not counted', async t => {
  const threads = writesOf(nullDevice, 1000, {numjobs: 3, iodepth: 16, flushAfter: {fsync: 7, fdatasync: 0}})
  t.like((await startNative([threads], patient).report).total, {
    flush: {count: 3 * 142},
    directions: {write: {ios: 3000}},
  })
  const mixed = writesOf(nullDevice, 1000, {mix: {read: 50, write: 50, trim: 0}, flushAfter: {fsync: 0, fdatasync: 5}})
  const {directions, flush} = (await startNative([mixed], patient).report).total
  const {ios} = directions.write!
  t.is(directions.read!.ios + ios, 1000)
  // Where the very last I/O was a fifth write, nothing comes after it.
  t.true([Math.floor((ios - 1) / 5), Math.floor(ios / 5)].includes(flush!.count), `${flush!.count} after ${ios}`)
})

test.serial('in open loop a flush comes at once, is no arrival, and takes no time of the schedule', async t => {
  const rate = {kind: 'fixed', iops: 1000} as const
  const one = writesOf(nullDevice, 100, {rate, iodepth: 2, flushAfter: {fsync: 10, fdatasync: 0}})
  const {total, targets} = await startNative([one], patient).report
  t.like(total, {flush: {count: 9}, directions: {write: {ios: 100}}})
  t.is(targets[0]!.openLoop.arrivals, 100)
  const {service, response} = total.flush!
  t.deepEqual([service.count, response.count], [9, 9])
})

test.serial('a thread that thinks does so after I/Os, not after flushes', async t => {
  const thinkTime = {us: 20_000, blocks: 5}
  const one = nativeTarget(nullDevice, {mix: mixes.write, thinkTime, flushAfter: {fsync: 1, fdatasync: 0}})
  const {targets} = await startNative([one], {runtimeMs: 300}).report
  const {directions, flush} = targets[0]!
  t.is(directions.write!.ios % 5, 0)
  t.true(flush!.count >= directions.write!.ios - 1, `${flush!.count} after ${directions.write!.ios}`)
})

for (const iodepth of [1, 16]) {
  test.serial(`what was written between flushes is found again, iodepth ${iodepth}`, async t => {
    // As many blocks as there are I/Os in flight: nearly each draw meets one that is locked.
    const device = pathDevice(await dataFile(t, 16 * 4096), {engine: 'io_uring'})
    const flushAfter = {fsync: 2, fdatasync: 3}
    const closed = nativeTarget(device, {mix: mixes.write, verify: 'crc32c', iodepth, flushAfter})
    for (const target of [closed, {...closed, rate: {kind: 'fixed', iops: 2000} as const}]) {
      const {state, targets, total} = await startNative([target]).report
      t.is(state, 'finished', JSON.stringify(targets[0]!.lastError))
      t.true(total.flush!.count > 0)
      t.true(targets[0]!.verify.verified > 0)
      t.is(targets[0]!.verify.failures, 0)
      t.is(total.errors, 0)
    }
  })
}

withLoop('Little’s law holds with the flushes in flight', async t => {
  const {device} = await attachLoop(t, await dataFile(t, 16 * MiB, tmpfs))
  const path = pathDevice(device, {engine: 'io_uring', direct: true})
  const one = nativeTarget(path, {mix: mixes.write, iodepth: 16, flushAfter: {fsync: 1, fdatasync: 0}})
  const {littleInFlight, flush} = (await startNative([one], {runtimeMs: 1000}).report).targets[0]!
  t.true(flush!.count > 0)
  t.true(Math.abs(littleInFlight - 16) < 16 * 0.1, `${littleInFlight} of 16 in flight`)
})

test.serial('a job that does not flush has no figures of flushes', async t => {
  const {total, targets} = await startNative([writesOf(nullDevice, 100)], patient).report
  t.false('flush' in total || 'flush' in targets[0]!)
  const result = await start({target: {ioengine: 'null'}, runtime: 0.1}).result
  t.false('flush' in result.total || result.series.some(point => 'flush' in point))
})
