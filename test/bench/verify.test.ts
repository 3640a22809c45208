import {open} from 'node:fs/promises'
import {setTimeout as sleep} from 'node:timers/promises'
import test from 'ava'
import {MiB} from '../contract/observe.js'
import {dataFile, mixes, nativeTarget, pathDevice, startNative} from '../fixtures/native-bench.js'

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
