import {open, readFile, truncate, writeFile} from 'node:fs/promises'
import {setTimeout as sleep} from 'node:timers/promises'
import test from 'ava'
import type {NativeTarget} from '../../src/bench/native.js'
import {MiB} from '../contract/observe.js'
import {dataFile, mixes, nativeTarget, nullDevice, pathDevice, startNative} from '../fixtures/native-bench.js'
import {tmpfs} from '../fixtures/tmpfs.js'

const TiB = 2 ** 40

/** The most that this process has had in memory since forgetPeak() was called. */
async function peakBytes(): Promise<number> {
  const status = await readFile('/proc/self/status', 'utf8')
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)![1]) * 1024
}

/** proc(5): the peak is what there is now. */
const forgetPeak = () => writeFile('/proc/self/clear_refs', '5')

function sparseTarget(path: string, sizeBytes: number): Partial<NativeTarget> {
  const size = [{bytes: 512, percent: 100}]
  return {
    mix: mixes.write,
    blockSizes: {read: size, write: size, trim: size},
    device: pathDevice(path),
    verify: 'crc32c',
    rate: {kind: 'fixed', iops: 2000},
    iodepth: 8,
    sizeBytes,
  }
}

for (const tebibytes of [8, 16]) {
  test.serial(`verify over ${tebibytes} TiB in blocks of 512 bytes takes memory for what is written`, async t => {
    // On tmpfs, whose files may be that large.
    const path = await dataFile(t, 0, tmpfs)
    await truncate(path, tebibytes * TiB)
    await forgetPeak()
    const before = await peakBytes()
    const {report} = startNative([nativeTarget(nullDevice, sparseTarget(path, tebibytes * TiB))])
    const {state, targets} = await report
    const grown = (await peakBytes()) - before
    t.is(state, 'finished', JSON.stringify(targets[0]!.lastError))
    // So few of so many are all different, with 2^35 blocks.
    t.is(targets[0]!.verify.verified, targets[0]!.directions.write!.ios)
    t.is(targets[0]!.verify.failures, 0)
    t.log(`${(grown / MiB).toFixed(1)} MiB`)
    t.true(grown < 64 * MiB, `${grown} bytes`)
  })
}

test.serial('a table that may not grow ends the run, and says what to give', async t => {
  const path = await dataFile(t, 0, tmpfs)
  await truncate(path, TiB)
  const target = nativeTarget(nullDevice, sparseTarget(path, TiB))
  // Two pages for each block that lies alone: its generation's, and one of page tables.
  const {state, targets} = await startNative([target], {runtimeMs: 60_000, verifyTableBytes: 100 * 8192}).report
  t.is(state, 'failed')
  t.is(targets[0]!.lastError?.code, 'ENOMEM')
  t.regex(targets[0]!.lastError!.message, /smaller size or runtime, or a larger bs/)
  const {ios} = targets[0]!.directions.write!
  t.true(ios >= 100 && ios <= 100 + target.iodepth, `${ios} writes`)
})

test.serial('blocks that are all in flight are locked, at every depth', async t => {
  // Each depth with as many blocks as that: nearly each draw meets one that is in flight.
  for (const iodepth of [1, 2, 3, 64, 1024]) {
    const device = pathDevice(await dataFile(t, iodepth * 4096), {engine: 'io_uring'})
    const target = nativeTarget(device, {mix: mixes.write, verify: 'crc32c', iodepth})
    const {state, targets} = await startNative([target]).report
    t.is(state, 'finished')
    t.true(targets[0]!.verify.verified > 0)
    t.is(targets[0]!.verify.failures, 0, `iodepth ${iodepth}`)
  }
})

for (const mix of [mixes.write, {read: 50, write: 50, trim: 0}]) {
  for (const kind of ['uniform', 'sequential'] as const) {
    test.serial(`what was written is found again: ${kind}, ${mix.read} % reads`, async t => {
      const device = pathDevice(await dataFile(t, 2 * MiB))
      const target = nativeTarget(device, {mix, distribution: {kind}, verify: 'crc32c', iodepth: 16, numjobs: 2})
      const {report, samples} = startNative([target])
      const {state, targets} = await report
      t.is(state, 'finished')
      // All 512 blocks were written many times over; each is read back once at least.
      t.true(targets[0]!.verify.verified >= 512, `${targets[0]!.verify.verified}`)
      t.is(targets[0]!.verify.failures, 0)
      t.is(targets[0]!.directions.write!.shortIos, 0)
      t.is(samples.at(-1)!.phase, 'verify')
    })
  }
}

test.serial('a block that somebody else changes is found, with its offset', async t => {
  const path = await dataFile(t, MiB)
  const rate = {kind: 'fixed', iops: 500} as const
  const device = pathDevice(path, {engine: 'pread'})
  const distribution = {kind: 'sequential'} as const
  const target = nativeTarget(device, {mix: mixes.write, verify: 'crc32c', rate, distribution})
  const run = startNative([target], {runtimeMs: 1500})
  const file = await open(path, 'r+')
  let over = false
  const report = run.report.finally(() => {
    over = true
  })
  while (!over) {
    await file.write(Buffer.from('not what was written'), 0, 20, 7 * 4096 + 1000)
    await sleep(1)
  }
  await file.close()
  const {verify} = (await report).targets[0]!
  t.is(verify.failures, 1)
  t.like(verify.firstFailures[0], {offset: 7 * 4096, reason: 'checksum'})
})

test.serial('two that write to the same blocks find each other', async t => {
  const device = pathDevice(await dataFile(t, MiB), {engine: 'pread'})
  const target = nativeTarget(device, {mix: mixes.write, verify: 'crc32c'})
  const {targets} = await startNative([target, target]).report
  const failures = targets.flatMap(({verify}) => verify.firstFailures)
  t.true(failures.length > 0)
  for (const {reason} of failures) t.true(['seed', 'generation', 'checksum'].includes(reason), reason)
})
