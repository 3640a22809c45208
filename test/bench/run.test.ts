import {once} from 'node:events'
import {readdir, readFile, stat, truncate, writeFile} from 'node:fs/promises'
import {release} from 'node:os'
import {setTimeout as sleep} from 'node:timers/promises'
import {setFlagsFromString} from 'node:v8'
import {runInNewContext} from 'node:vm'
import {Worker} from 'node:worker_threads'
import test, {type ExecutionContext} from 'ava'
import {countOf} from '../../src/bench/buckets.js'
import type {BenchJob} from '../../src/bench/job.js'
import type {NativeDevice} from '../../src/bench/native.js'
import {textReport} from '../../src/bench/report.js'
import type {TargetResult} from '../../src/bench/result.js'
import {newHistogram, start} from '../../src/bench/run.js'
import type {BenchSample} from '../../src/bench/sample.js'
import {LibiscsiInitiator} from '../../src/initiators/libiscsi.js'
import {nativeLogin} from '../../src/iscsi-login.js'
import {makeLun} from '../fixtures/lun-by-hand.js'
import {nativeTarget, startNative} from '../fixtures/native-bench.js'
import {openLogoutGate, openPortal} from '../fixtures/portals.js'
import {type HandStartedTgtd, startTgtd} from '../fixtures/tgtd-by-hand.js'

const initiatorName = 'iqn.2025-01.test.lunpath:bench'

async function onTgtd(t: ExecutionContext, options: Parameters<typeof makeLun>[2] = {}) {
  const tgtd = await startTgtd()
  t.teardown(() => tgtd.stop())
  const lun = await makeLun(tgtd, 1, options)
  t.teardown(() => lun.remove())
  const {serial, wwid, sizeBytes} = lun
  const target = {portal: {address: '127.0.0.1', port: tgtd.port}, iqn: lun.iqn, lun: 1, initiatorName}
  return {tgtd, lun, target, expect: {serial, wwid, sizeBytes}}
}

async function collect(samples: AsyncIterable<BenchSample>): Promise<BenchSample[]> {
  const all: BenchSample[] = []
  for await (const sample of samples) all.push(sample)
  return all
}

/** Resolves once the run has measured something. */
async function underWay(samples: AsyncIterable<BenchSample>): Promise<void> {
  for await (const {ios} of samples) if (ios > 0) return
}

interface Reads {
  bytes: number
  commands: number
}

/** A portal for `target` and what tgtd had sent from LUN 1 to each session that logged out through it. */
async function openCountingPortal(t: ExecutionContext, tgtd: HandStartedTgtd) {
  const reads: Reads[] = []
  const {portal, close} = await openLogoutGate(tgtd.port, async () => {
    const statistics = await tgtd.adm('--mode', 'target', '--op', 'stat', '--tid', '1')
    // tgt lun sid, then bytes and commands of: reads submitted, reads done, writes submitted, writes done.
    const rows = statistics.split('\n').map(row => row.trim().split(/\s+/).map(Number))
    const [, , , , , bytes, commands] = rows.find(([tid, lun]) => tid === 1 && lun === 1)!
    reads.push({bytes: bytes!, commands: commands!})
  })
  t.teardown(close)
  return {portal, reads}
}

test.serial('every read that is reported was done by the target, and none more', async t => {
  const {tgtd, target, expect} = await onTgtd(t)
  const {portal, reads} = await openCountingPortal(t, tgtd)
  // INQUIRY and READ CAPACITY count as reads: what a session costs that does nothing else.
  await new LibiscsiInitiator().probe({...target, portal}, expect)

  const run = start({target: {...target, portal, expect}, iodepth: 16, runtime: 1})
  const samples = await collect(run.samples)
  const result = await run.result
  const {ios, iops, bytes, latency} = result.total
  t.is(result.state, 'finished')
  t.true(ios > 0)
  t.is(bytes, ios * 4096)
  const [login, whole] = reads as [Reads, Reads]
  t.is(whole.bytes - login.bytes, bytes)
  t.is(whole.commands - login.commands, ios)

  t.is(
    samples.reduce((sum, {ios}) => sum + ios, 0),
    ios,
    'the samples add up',
  )
  t.is(
    result.series.reduce((sum, {ios}) => sum + ios, 0),
    ios,
    'so does the time series',
  )
  t.deepEqual(
    samples.slice(1).map(({fromSeconds}) => fromSeconds),
    samples.slice(0, -1).map(({toSeconds}) => toSeconds),
    'without gaps',
  )
  const {minNs, p50Ns, p95Ns, p99Ns, p999Ns, p9999Ns, p99999Ns, maxNs} = latency
  const ordered = [minNs, p50Ns, p95Ns, p99Ns, p999Ns, p9999Ns, p99999Ns, maxNs]
  t.deepEqual(
    ordered,
    ordered.toSorted((a, b) => a - b),
  )
  // Little's law in closed loop: mean latency × throughput = I/Os in flight.
  const inFlight = (latency.meanNs / 1e9) * iops
  t.true(Math.abs(inFlight - 16) < 16 * 0.05, `${inFlight} in flight`)
  const {residual} = result.targets[0]!.little!
  t.true(Math.abs(residual) < 0.05, `off by ${residual}`)
})

test.serial('through libiscsi, the reference, the counts are as exact', async t => {
  const {tgtd, target, expect} = await onTgtd(t)
  const {portal, reads} = await openCountingPortal(t, tgtd)
  const there = {...target, portal}
  await new LibiscsiInitiator().probe(there, expect)
  const device: NativeDevice = {kind: 'iscsi', engine: 'libiscsi', login: nativeLogin(there)}
  const {targets, total} = await startNative([nativeTarget(device, {iodepth: 16})], {}, 'iscsi').report
  t.like(targets[0], {engine: 'libiscsi', fallbackReason: '', errors: 0, unanswered: 0})
  const {ios, bytes} = total.directions.read!
  t.true(ios > 0)
  const [login, whole] = reads as [Reads, Reads]
  t.deepEqual({ios: whole.commands - login.commands, bytes: whole.bytes - login.bytes}, {ios, bytes})
})

test.serial('what is written over iSCSI is there, and read back as it was', async t => {
  const {target, lun, expect} = await onTgtd(t, {sizeBytes: 2 ** 20})
  const writeTo = {identity: lun.serial, sizeBytes: lun.sizeBytes}
  const before = await readFile(lun.path)
  t.true(before.every(byte => byte === 0))
  const {result} = start({
    target: {...target, expect, writeTo},
    rw: 'randrw',
    verify: 'crc32c',
    iodepth: 8,
    numjobs: 2,
    runtime: 0.5,
  })
  const {state, targets} = await result
  t.is(state, 'finished', JSON.stringify(targets[0]!.error))
  const {verify, directions, errors} = targets[0]!
  t.like(targets[0], {engine: 'iscsi', fallbackReason: ''})
  t.is(errors, 0)
  t.true(directions.write!.ios > 0 && directions.read!.ios > 0)
  t.is(directions.write!.bytes, directions.write!.ios * 4096)
  t.true(verify!.verified > 0)
  t.is(verify!.failures, 0)
  const after = await readFile(lun.path)
  t.is(after.length, lun.sizeBytes)
  const written = Array.from({length: 256}, (_, block) => after.subarray(block * 4096, (block + 1) * 4096))
  // Each block that was written carries a stamp, so that none of them is zeros. So many draws of 256 hit so many blocks;
  // a busy machine draws few.
  const expected = 256 * (1 - (1 - 1 / 256) ** directions.write!.ios)
  const found = written.filter(block => block.some(byte => byte !== 0)).length
  t.true(found > expected / 2, `${found} blocks by ${directions.write!.ios} writes`)
})

test.serial('trim over iSCSI is UNMAP: the file gives its blocks back', async t => {
  const {tgtd, target, lun} = await onTgtd(t, {sizeBytes: 8 * 2 ** 20})
  await writeFile(lun.path, Buffer.alloc(lun.sizeBytes, 7), {flag: 'r+', flush: true})
  await tgtd.adm(
    ...['--mode', 'logicalunit', '--op', 'update', '--tid', '1', '--lun', '1'],
    ...['--params', 'thin_provisioning=1'],
  )
  const writeTo = {identity: lun.serial, sizeBytes: lun.sizeBytes}
  const {result} = start({target: {...target, writeTo}, rw: 'trim', bs: '1m', runtime: 0.5})
  const {state, targets} = await result
  t.is(state, 'finished', JSON.stringify(targets[0]!.error))
  const {directions, errors} = targets[0]!
  t.like(targets[0], {engine: 'libiscsi', fallbackReason: 'discards go through libiscsi'})
  t.is(errors, 0)
  t.true(directions.trim!.ios >= 8, `${directions.trim!.ios}`)
  t.true((await readFile(lun.path)).equals(Buffer.alloc(lun.sizeBytes)))
  t.true((await stat(lun.path)).blocks * 512 < lun.sizeBytes / 2)
})

test.serial('sequential reads of a range go round it', async t => {
  const {target} = await onTgtd(t)
  const {result} = start({target, rw: 'read', bs: '64k', offset: '1m', size: '256k', runtime: 0.2})
  const [{state, errors, ios, sizeBytes, offsetBytes}] = (await result).targets as [TargetResult]
  t.deepEqual(
    {state, errors, sizeBytes, offsetBytes},
    {state: 'finished', errors: 0, sizeBytes: 2 ** 18, offsetBytes: 2 ** 20},
  )
  t.true(ios > 4)
})

test.serial('two runs at once have a session and a result each', async t => {
  const {target} = await onTgtd(t)
  const runs = [1, 2].map(seed => start({target, runtime: 0.3, iodepth: 4, seed}).result)
  const results = await Promise.all(runs)
  t.deepEqual(
    results.map(({state, seed}) => ({state, seed})),
    [
      {state: 'finished', seed: '1'},
      {state: 'finished', seed: '2'},
    ],
  )
  const total = newHistogram()
  for (const {total: figures} of results) total.merge(newHistogram(figures.directions.read!.histogram))
  t.is(total.count, results[0]!.total.ios + results[1]!.total.ios)
})

test.serial('cancel() and an AbortSignal end a run with what there is', async t => {
  const {target} = await onTgtd(t)
  const run = start({target, runtime: 3600, iodepth: 8})
  await underWay(run.samples)
  run.cancel()
  const cancelled = await run.result
  t.is(cancelled.state, 'cancelled')
  t.true(cancelled.total.ios > 0)
  run.cancel()

  const controller = new AbortController()
  const aborted = start({target, runtime: 3600}, {signal: controller.signal})
  await underWay(aborted.samples)
  controller.abort()
  t.is((await aborted.result).state, 'cancelled')
  t.throws(() => start({target}, {signal: controller.signal}), {code: 'CANCELLED'})
})

test.serial('cancel() during a login that hangs rejects', async t => {
  const silent = await openPortal(() => {})
  t.teardown(() => silent.close())
  const accepted = silent.accepted()
  const target = {portal: silent.portal, iqn: 'iqn.2025-01.test.lunpath:x', lun: 1, initiatorName, timeoutMs: 3_600_000}
  const run = start({target})
  await accepted
  run.cancel()
  await t.throwsAsync(run.result, {code: 'CANCELLED'})
})

test.serial('a target that is killed in mid-run: device-lost, with what there is', async t => {
  const {tgtd, target} = await onTgtd(t)
  const run = start({target, runtime: 3600, iodepth: 8})
  await underWay(run.samples)
  tgtd.kill('SIGKILL')
  const result = await run.result
  t.is(result.state, 'device-lost')
  t.true(result.total.ios > 0)
  t.is(result.targets[0]!.unanswered, 8)
  t.truthy(result.targets[0]!.error)
  t.deepEqual(JSON.parse(JSON.stringify(result)), result, 'it is plain JSON')
})

test.serial('a target that hangs in mid-run: stuck, with what there is', async t => {
  const {tgtd, target} = await onTgtd(t)
  const run = start({target, runtime: 3600, iodepth: 8, stuckMs: 300})
  await underWay(run.samples)
  tgtd.kill('SIGSTOP')
  const result = await run.result
  t.is(result.state, 'stuck')
  t.true(result.total.ios > 0)
  t.is(result.targets[0]!.unanswered, 8)
})

test.serial('a target that hangs while the run ends: stuck too', async t => {
  const {tgtd, target} = await onTgtd(t)
  const run = start({target, runtime: 1, iodepth: 8, stuckMs: 3_000})
  await underWay(run.samples)
  tgtd.kill('SIGSTOP')
  t.is((await run.result).state, 'stuck')
})

test.serial('a target that hangs does not hold a cancel up', async t => {
  const {tgtd, target} = await onTgtd(t)
  const run = start({target, runtime: 3600, iodepth: 8, stuckMs: 3_600_000})
  await underWay(run.samples)
  tgtd.kill('SIGSTOP')
  await sleep(50)
  run.cancel()
  const result = await run.result
  t.is(result.state, 'cancelled')
  t.is(result.targets[0]!.unanswered, 8)
})

test.serial('a worker thread may end in mid-run', async t => {
  const {tgtd, target} = await onTgtd(t)
  const workerData = {target, runtime: 3600, iodepth: 8}
  const worker = new Worker(new URL('../fixtures/bench-worker.js', import.meta.url), {workerData})
  await once(worker, 'message')
  await worker.terminate()
  // The run's thread ends by itself, and with it the session.
  while (/Session/.test(await tgtd.adm('--mode', 'conn', '--op', 'show', '--tid', '1'))) await sleep(20)
  t.pass()
})

test.serial('a run that is over leaves nothing behind', async t => {
  setFlagsFromString('--expose_gc')
  const gc = runInNewContext('gc') as () => void
  const {target} = await onTgtd(t)
  const descriptors = async () => (await readdir('/proc/self/fd')).length
  await start({target, runtime: 0.05}).result
  const before = await descriptors()
  for (let i = 0; i < 10; i++) await start({target, runtime: 0.02, iodepth: 4}).result
  // A finished run holds its wake-up descriptor until it is collected.
  while ((await descriptors()) > before) {
    gc()
    await sleep(10)
  }
  t.pass()
})

test.serial('another serial, WWID or size is refused before anything is read', async t => {
  const {tgtd, target, expect} = await onTgtd(t)
  const {portal, reads} = await openCountingPortal(t, tgtd)
  await new LibiscsiInitiator().probe({...target, portal}, expect)
  for (const wrong of [{serial: 'other'}, {wwid: 'naa.6001405'}, {sizeBytes: expect.sizeBytes * 2}]) {
    const run = start({target: {...target, portal, expect: {...expect, ...wrong}}})
    await t.throwsAsync(run.result, {code: 'IDENTITY_MISMATCH'})
    await t.throwsAsync(collect(run.samples), {code: 'IDENTITY_MISMATCH'})
  }
  t.deepEqual(reads, Array(4).fill(reads[0]))
})

test.serial('a range that the device does not have is refused', async t => {
  const {target, expect} = await onTgtd(t)
  const wrong: Partial<BenchJob>[] = [
    {offset: expect.sizeBytes},
    {offset: expect.sizeBytes * 2},
    {size: expect.sizeBytes + 512},
    {size: 512},
    {offset: expect.sizeBytes - 2048, size: 4096},
  ]
  for (const range of wrong) await t.throwsAsync(start({target, ...range}).result, {code: 'INVALID_ARGUMENT'})
})

test.serial('reads that the target fails are counted, and are no reads', async t => {
  const {lun, target} = await onTgtd(t)
  await truncate(lun.path, lun.sizeBytes / 2)
  const result = await start({target, runtime: 0.3, iodepth: 4}).result
  t.is(result.state, 'finished')
  t.true(result.total.errors > 0)
  t.true(result.total.ios > 0)
  const [{directions, errorCounts, error}] = result.targets as [TargetResult]
  t.is(countOf(directions.read!.histogram), result.total.ios)
  t.is(error?.code, 'SCSI_SENSE')
  t.like(errorCounts[0], {direction: 'read', code: 'SCSI_SENSE', count: result.total.errors})
  for (const offset of errorCounts[0]!.firstOffsets) t.true(offset >= lun.sizeBytes / 2)
})

test.serial('CHAP, and its failure', async t => {
  const incoming = {user: 'bench-user', secret: 'bench-secret-1'}
  const {target} = await onTgtd(t, {auth: {incoming}})
  const result = await start({target: {...target, auth: {incoming}}, runtime: 0.1}).result
  t.is(result.state, 'finished')
  await t.throwsAsync(start({target, runtime: 0.1}).result, {code: 'AUTH_FAILED'})
  t.false([...textReport(result), JSON.stringify(result)].join().includes(incoming.secret))
})

test.serial('the report has the figures that the demo prints', async t => {
  const {target} = await onTgtd(t)
  const result = await start({target, runtime: 0.2, seed: 5}).result
  const text = textReport(result).join('\n')
  for (const word of ['IOPS', 'MB/s', 'p50', 'p99 ', 'p99.9', 'max', 'CPU', 'seed 5', 'finished']) {
    t.true(text.includes(word), word)
  }
  t.like(result, {schema: 2, kind: 'run', seed: '5', kernel: release()})
  t.like(result.targets[0], {engine: 'iscsi', fallbackReason: '', iodepth: 1, error: null})
  t.like(result.targets[0]!.workload, {rw: 'randread', bs: 4096, iodepth: 1})
  t.true(result.cpu.nsPerIo > 0)
})
