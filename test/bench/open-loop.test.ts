import {setTimeout as sleep} from 'node:timers/promises'
import test from 'ava'
import type {BenchAddon, NativeDevice} from '../../src/bench/native.js'
import {nativeLogin} from '../../src/iscsi-login.js'
import {loadAddon} from '../../src/native.js'
import {makeLun} from '../fixtures/lun-by-hand.js'
import {nativeTarget, nullDevice, startNative} from '../fixtures/native-bench.js'
import {startTgtd} from '../fixtures/tgtd-by-hand.js'

const {arrivals, unsubmitted} = loadAddon<BenchAddon>('bench')

for (const iops of [1_000, 33_333, 300_000]) {
  test.serial(`a fixed rate of ${iops} a second is kept within 0.5 %`, async t => {
    const target = nativeTarget(nullDevice, {rate: {kind: 'fixed', iops}, iodepth: 8})
    const {total, elapsedNs, targets} = await startNative([target], {runtimeMs: 1000}).report
    const {ios} = total.directions.read!
    const {arrivals: due, maxGeneratorLagNs} = targets[0]!.openLoop
    t.is(ios, due, 'every arrival was submitted and answered')
    t.true(Math.abs(ios - iops) <= iops * 0.005, `${ios} I/Os`)
    // Where the machine did not run the thread, it is late, and says so.
    t.true(elapsedNs >= 1e9 && elapsedNs <= 1.005e9 + maxGeneratorLagNs, `in ${elapsedNs} ns`)
  })
}

test.serial('threads share a rate', async t => {
  const target = nativeTarget(nullDevice, {rate: {kind: 'poisson', iops: 50_000}, numjobs: 3})
  const {total} = await startNative([target], {runtimeMs: 1000}).report
  // Five standard deviations of a Poisson count.
  const {ios} = total.directions.read!
  t.true(Math.abs(ios - 50_000) < 5 * Math.sqrt(50_000), `${ios}`)
})

test('a Poisson schedule has its rate, and gaps that are exponential', t => {
  const count = 1_000_000
  const times = arrivals({kind: 'poisson', iops: 300_000}, 42n, count)
  const meanGapNs = 1e9 / 300_000
  t.true(Math.abs(times.at(-1)! / count / meanGapNs - 1) < 0.005)

  // Kolmogorov–Smirnov: the largest distance between the gaps' distribution and 1 − exp(−x / mean).
  const gaps = times.map((time, i) => time - (i === 0 ? 0 : times[i - 1]!)).sort()
  let distance = 0
  for (let i = 0; i < count; i++) {
    const expected = -Math.expm1(-gaps[i]! / meanGapNs)
    distance = Math.max(distance, expected - i / count, (i + 1) / count - expected)
  }
  // The critical value at 1 %; the seed is fixed, so that this holds always or never.
  t.true(distance < 1.628 / Math.sqrt(count), `${distance}`)
})

test('a schedule does not drift, and is the same for the same seed', t => {
  const fixed = arrivals({kind: 'fixed', iops: 700_000}, 1n, 1_000_001)
  t.is(Math.round(fixed.at(-1)!), Math.round((1_000_000 * 1e9) / 700_000))
  const poisson = {kind: 'poisson', iops: 1000} as const
  t.deepEqual(arrivals(poisson, 5n, 1000), arrivals(poisson, 5n, 1000))
  t.notDeepEqual(arrivals(poisson, 5n, 1000), arrivals(poisson, 6n, 1000))
})

test('what is given up is counted at once, however much it is', t => {
  const dayNs = 86_400e9
  t.is(unsubmitted({kind: 'fixed', iops: 1e8}, 1n, dayNs), 86_400 * 1e8)
  t.is(unsubmitted({kind: 'fixed', iops: 3}, 1n, 1e9), 3)
  // Drawn, the number scatters by its square root; what is too many to be drawn is what is to be expected.
  const many = unsubmitted({kind: 'poisson', iops: 1e8}, 1n, dayNs)
  t.true(Math.abs(many - 86_400 * 1e8) < 5 * Math.sqrt(86_400 * 1e8), `${many}`)
  const few = {kind: 'poisson', iops: 100_000} as const
  t.is(
    unsubmitted(few, 7n, 1e9),
    arrivals(few, 7n, 110_000).findIndex(time => time >= 1e9),
  )
})

test.serial('a rate that no device keeps ends at its time, and all that was due is accounted for', async t => {
  for (const kind of ['fixed', 'poisson'] as const) {
    const target = nativeTarget(nullDevice, {rate: {kind, iops: 1e8}})
    const {report} = startNative([target], {runtimeMs: 500, stuckMs: 1_000})
    const {targets, state, total} = await report
    t.is(state, 'finished')
    const {arrivals: due, unsubmitted: left} = targets[0]!.openLoop
    t.true(left > 0)
    t.is(due, total.directions.read!.ios + left)
    t.true(Math.abs(due - 0.5e8) < 5 * Math.sqrt(0.5e8), `${due}`)
  }
})

test.serial('a target that stands still for a second: the delay of all that were due is in the response', async t => {
  const tgtd = await startTgtd()
  t.teardown(() => tgtd.stop())
  const lun = await makeLun(tgtd, 1)
  t.teardown(() => lun.remove())
  const portal = {address: '127.0.0.1', port: tgtd.port}
  const login = nativeLogin({portal, iqn: lun.iqn, lun: 1, initiatorName: 'iqn.2025-01.test.lunpath:bench'})
  const device: NativeDevice = {kind: 'iscsi', engine: 'iscsi', login}
  const [iops, seconds] = [1000, 10]
  const target = nativeTarget(device, {rate: {kind: 'fixed', iops}, iodepth: 32})
  const run = startNative([target], {runtimeMs: seconds * 1000}, 'iscsi')
  await run.underWay
  await sleep(3_000)
  const stopped = performance.now()
  tgtd.kill('SIGSTOP')
  await sleep(1_000)
  tgtd.kill('SIGCONT')
  const stallMs = performance.now() - stopped
  const report = await run.report
  const {response, service, ios} = report.targets[0]!.directions.read!
  const {maxBacklog, arrivals: due, unsubmitted} = report.targets[0]!.openLoop

  t.is(report.state, 'finished')
  t.is(ios, iops * seconds)
  t.deepEqual({due, unsubmitted}, {due: ios, unsubmitted: 0})
  // Those that were due in the stall, but for the 32 that were in flight.
  t.true(maxBacklog >= stallMs * 0.9 - 32 && maxBacklog <= stallMs * 1.3, `${maxBacklog} for ${stallMs} ms`)
  // Responses fall from the whole stall to none, one for each millisecond: 1 % of all are longer than the 99th percentile.
  // What waited is worked off faster than it came, so that each of them waits for a share of the drain too.
  const p99Ms = response.percentile(99) / 1e6
  const drainMs = response.maxNs / 1e6 - stallMs
  const expectedMs = stallMs - (0.01 * ios * 1000) / iops + Math.max(0, drainMs)
  t.log(`stall ${stallMs.toFixed(1)} ms, p99 ${p99Ms.toFixed(1)} ms, formula ${expectedMs.toFixed(1)} ms`)
  t.true(p99Ms >= expectedMs * 0.95, `p99 ${p99Ms} ms, expected ${expectedMs} ms`)
  // A busy machine lets tgtd work off less at a time: 100 ms for that.
  t.true(p99Ms <= expectedMs * 1.05 + 100, `p99 ${p99Ms} ms, expected ${expectedMs} ms`)
  t.true(service.percentile(99) < response.percentile(99) / 2, 'what a closed view would have told')
})
