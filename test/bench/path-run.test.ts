// Runs on block devices, files and nothing at all, with the safety in front of them.
import {constants, unlinkSync} from 'node:fs'
import {mkdtemp, open, readFile, realpath, rm, stat, truncate, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {basename, join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import type {BenchJob} from '../../src/bench/job.js'
import {textSteady, textSweep} from '../../src/bench/report-rounds.js'
import {type BenchRun, start} from '../../src/bench/run.js'
import type {BenchSample} from '../../src/bench/sample.js'
import {untilSteady} from '../../src/bench/steady-run.js'
import {sweep} from '../../src/bench/sweep.js'
import {run} from '../../src/exec.js'
import {attachLoop, MiB} from '../contract/observe.js'

const sizeBytes = 32 * MiB

async function temporary(t: ExecutionContext): Promise<string> {
  const directory = await realpath(await mkdtemp(join(tmpdir(), 'lp-bench-')))
  t.teardown(() => rm(directory, {recursive: true}))
  return directory
}

async function blockDevice(t: ExecutionContext) {
  const image = join(await temporary(t), 'disk.raw')
  await writeFile(image, '')
  await truncate(image, sizeBytes)
  const {device} = await attachLoop(t, image)
  const identity = (await readFile(`/sys/class/block/${basename(device)}/dev`, 'utf8')).trim()
  return {image, device, writeTo: {identity, sizeBytes}}
}

test.serial('a block device is read, and what ran is said', async t => {
  const {device} = await blockDevice(t)
  const result = await start({target: {filename: device}, runtime: 0.3, iodepth: 8, seed: 3}).result
  t.is(result.state, 'finished')
  const [target] = result.targets
  t.like(target, {name: device, errors: 0, iodepth: 8, sizeBytes, target: {kind: 'path', path: device}})
  t.true(target!.ios > 0)
  t.true(['io_uring', 'libaio', 'pread'].includes(target!.engine), target!.engine)
  t.true(target!.engineFlags.includes('direct'))
  t.is(target!.directions.write, undefined)
  t.true(result.cpu.nsPerIo > 0)
  t.true(result.startToFirstCompletionSeconds > 0)
})

test.serial('a job that writes is refused until the device is named by itself, and then holds it', async t => {
  const {image, device, writeTo} = await blockDevice(t)
  const job: BenchJob = {target: {filename: device}, rw: 'randwrite', runtime: 0.5, iodepth: 4}
  await t.throwsAsync(start(job).result, {code: 'INVALID_ARGUMENT', message: /This job writes/})
  const other = {...writeTo, sizeBytes: writeTo.sizeBytes * 2}
  await t.throwsAsync(start({...job, target: {filename: device, writeTo: other}}).result, {code: 'IDENTITY_MISMATCH'})
  t.true((await readFile(image)).equals(Buffer.alloc(sizeBytes)), 'nothing was written')

  const written = start({...job, runtime: 60, target: {filename: device, writeTo}})
  for await (const {ios} of written.samples) if (ios > 0) break
  await t.throwsAsync(open(device, constants.O_RDONLY | constants.O_EXCL), {code: 'EBUSY'})
  await t.throwsAsync(start({...job, target: {filename: device, writeTo}}).result, {code: 'DEVICE_IN_USE'})
  await t.throwsAsync(run('mount', [device, await temporary(t)]), undefined, 'nor can it be mounted meanwhile')
  written.cancel()
  t.is((await written.result).state, 'cancelled')
  await (await open(device, constants.O_RDONLY | constants.O_EXCL)).close()
  t.false((await readFile(image)).equals(Buffer.alloc(sizeBytes)))
})

test.serial('what is mounted is not written to, through a link either', async t => {
  const {device, writeTo} = await blockDevice(t)
  await run('mkfs.ext4', ['-q', device])
  const before = await readFile(device)
  for (const rw of ['randwrite', 'write', 'trim', 'randrw'] as const)
    await t.throwsAsync(
      start({target: {filename: device, writeTo}, rw, runtime: 0.1}).result,
      {code: 'DEVICE_IN_USE'},
      rw,
    )
  t.true(before.equals(await readFile(device)))
})

test.serial('verify finds what it wrote', async t => {
  const {device, writeTo} = await blockDevice(t)
  const result = await start({target: {filename: device, writeTo}, rw: 'randwrite', verify: 'crc32c', runtime: 0.5})
    .result
  t.is(result.state, 'finished')
  const {verify, directions} = result.targets[0]!
  t.true(verify!.verified > 0)
  t.is(verify!.failures, 0)
  t.true(directions.write!.ios > 0)
  t.true(result.series.some(({phase}) => phase === 'verify') || verify!.verified < 10_000)
})

test.serial('a file is written to, where its inode is repeated', async t => {
  const path = join(await temporary(t), 'file')
  await writeFile(path, Buffer.alloc(4 * MiB))
  const writeTo = {identity: `inode:${(await stat(path)).ino}`, sizeBytes: 4 * MiB}
  const result = await start({target: {filename: path, writeTo, direct: false}, rw: 'write', bs: '64k', runtime: 0.2})
    .result
  t.is(result.state, 'finished')
  t.true(result.total.directions.write!.ios > 0)
  t.false((await readFile(path)).equals(Buffer.alloc(4 * MiB)))
  await t.throwsAsync(start({target: {filename: join(path, 'no')}, runtime: 0.1}).result, {code: 'VOLUME_MISSING'})
  await t.throwsAsync(start({target: {filename: '/dev/null'}, runtime: 0.1}).result, {code: 'UNSUPPORTED'})
})

test.serial('several targets begin and end together, with their own figures and in total', async t => {
  const {device} = await blockDevice(t)
  const job: BenchJob = {target: [{filename: device}, {ioengine: 'null', iodepth: 2, name: 'nothing'}], runtime: 0.3}
  const benchmark = start(job)
  const samples: BenchSample[] = []
  for await (const sample of benchmark.samples) samples.push(sample)
  const {targets, total} = await benchmark.result
  t.deepEqual(
    targets.map(({name, engine}) => [name, engine === 'null']),
    [
      [device, false],
      ['nothing', true],
    ],
  )
  t.is(total.ios, targets[0]!.ios + targets[1]!.ios)
  t.true(samples.length > 0)
  t.deepEqual(
    samples.at(-1)!.targets.map(({name}) => name),
    [device, 'nothing'],
  )
})

test.serial('a result carries the job as it ran, with every default in place', async t => {
  const {device} = await blockDevice(t)
  const plain = await start({target: {filename: device}, runtime: 0.1}).result
  const {engine} = plain.targets[0]!
  t.deepEqual(plain.targets[0]!.job, {
    ...{rw: 'randread', bs: 4096, iodepth: 1, numjobs: 1, ioengine: engine as 'pread', direct: true},
    ...{offset: 0, size: plain.targets[0]!.device.sizeBytes, random_distribution: 'random'},
    ...{verify: 'none', continue_on_error: 'all'},
  })
  const given: BenchJob = {
    target: [
      {ioengine: 'null', name: 'a', rw: 'randrw', rwmixread: 70, bssplit: '4k/60:64k/40,8k', iodepth: 8},
      {ioengine: 'null', name: 'b', rw: 'write', bs: '1m', offset: '1m', size: '4m', numjobs: 2},
    ],
    rate_iops: 1000,
    rate_process: 'poisson',
    continue_on_error: 'all',
    max_errors: 5,
    runtime: 0.1,
  }
  const {targets} = await start(given).result
  const rest = {rate_iops: 1000, rate_process: 'poisson', verify: 'none', continue_on_error: 'all', max_errors: 5}
  t.deepEqual(targets[0]!.job as object, {
    ...{rw: 'randrw', rwmixread: 70, bs: {read: '4096/60:65536/40', write: 8192}, iodepth: 8, numjobs: 1},
    ...{ioengine: 'null', offset: 0, size: 2 ** 30, random_distribution: 'random', ...rest},
  })
  t.deepEqual(targets[1]!.job as object, {
    ...{rw: 'write', bs: MiB, iodepth: 1, numjobs: 2, ioengine: 'null', offset: MiB, size: 4 * MiB, ...rest},
  })
})

test.serial('the ramp is in the series and not in the result', async t => {
  const {total, series, elapsedSeconds} = await start({target: {ioengine: 'null'}, runtime: 0.5, ramp_time: 0.5}).result
  t.true(Math.abs(elapsedSeconds - 0.5) < 0.1, `${elapsedSeconds}`)
  const of = (phase: string) => series.filter(point => point.phase === phase).reduce((sum, {ios}) => sum + ios, 0)
  t.true(of('ramp') > 0)
  // The interval in which the ramp ended is one of the run's.
  const [first] = series.filter(({phase}) => phase === 'run')
  t.true(of('run') >= total.ios && of('run') - first!.ios <= total.ios, `${of('run')}, ${first!.ios}, ${total.ios}`)
})

test.serial('who reads samples late gets all I/Os, and no more samples than are worth keeping', async t => {
  const benchmark = start({target: {ioengine: 'null'}, runtime: 2.5, sampleMs: 100, rate_iops: 1000, iodepth: 8})
  const {total, series} = await benchmark.result
  const samples: BenchSample[] = []
  for await (const sample of benchmark.samples) samples.push(sample)
  t.true(samples.length <= 17, `${samples.length} samples`)
  t.true(series.length > 18, `${series.length} intervals`)
  t.is(
    samples.reduce((sum, {ios}) => sum + ios, 0),
    total.ios,
  )
  t.deepEqual(
    samples.slice(1).map(({fromSeconds}) => fromSeconds),
    samples.slice(0, -1).map(({toSeconds}) => toSeconds),
  )
})

test.serial('a sweep goes through its steps and has a point for each', async t => {
  const steps: string[] = []
  const report = await sweep({target: {ioengine: 'null'}, runtime: 0.1}, 'iodepth', [4, 1, 2], {
    onRun: (_run, {label}) => steps.push(label),
  })
  t.deepEqual(steps, ['iodepth=1', 'iodepth=2', 'iodepth=4'])
  t.deepEqual(
    report.points.map(({load, kept}) => [load, kept]),
    [
      [1, true],
      [2, true],
      [4, true],
    ],
  )
  t.deepEqual(
    report.results.map(({targets}) => targets[0]!.iodepth),
    [1, 2, 4],
  )
  t.truthy(report.knee)
  await t.throwsAsync(sweep({target: {ioengine: 'null'}}, 'iodepth', [1]), {code: 'INVALID_ARGUMENT'})
})

test.serial('a sweep over rates goes on as long as they are kept', async t => {
  const {points, knee, results} = await sweep(
    {target: {ioengine: 'null'}, runtime: 0.5, iodepth: 32},
    'rate_iops',
    [1000, 2000],
  )
  for (const {load, iops, kept} of points) if (kept) t.true(Math.abs(iops / load - 1) < 0.05, `${load}: ${iops}`)
  // A busy machine may not keep even these; then it ends there, and says so.
  t.is(knee?.load, points.findLast(({kept}) => kept)?.load)
  t.true(points.slice(0, -1).every(({kept}) => kept))
  t.is(results[0]!.targets[0]!.openLoop!.requestedIops, 1000)

  // More than any loop device gives: what was due is answered late, and that is told.
  const {device} = await blockDevice(t)
  const job: BenchJob = {target: {filename: device}, runtime: 0.2, iodepth: 32}
  const tooMuch = await sweep(job, 'rate_iops', [3_000_000, 4_000_000])
  t.deepEqual(
    tooMuch.points.map(({kept}) => kept),
    [false],
  )
  t.is(tooMuch.knee, null)
})

test.serial('rounds go on until steady, and say so; a cancel ends them', async t => {
  const steady = await untilSteady(
    {target: {ioengine: 'null'}, runtime: 0.2, rate_iops: 2000, iodepth: 4},
    {rounds: 25},
  )
  t.true(steady.verdict.reached, steady.words)
  t.true(steady.rounds.length >= 5)
  t.regex(steady.words, /^Steady state reached in rounds \d+ to \d+: [12]\d{3} IOPS/)
  const controller = new AbortController()
  const onRun = async ({samples}: BenchRun) => {
    for await (const {ios} of samples) if (ios > 0) controller.abort()
  }
  const ended = await untilSteady({target: {ioengine: 'null'}, runtime: 60}, {signal: controller.signal, onRun})
  t.like(ended, {rounds: [], verdict: {reached: false}})
  t.regex(ended.words, /NOT reached/)
})

/** Ends the sweep or the rounds after so many of them, before the next one begins. */
function afterRounds(count: number, end: () => void) {
  let ended = 0
  return ({result}: BenchRun) => {
    result.then(
      () => {
        if (++ended === count) end()
      },
      () => undefined,
    )
  }
}

test.serial('what a sweep or rounds have measured before a cancel between two rounds is kept', async t => {
  const job: BenchJob = {target: {ioengine: 'null'}, runtime: 0.1}
  const controllers = [new AbortController(), new AbortController(), new AbortController()]
  const cancelled = (index: number, count: number) => ({
    signal: controllers[index]!.signal,
    onRun: afterRounds(count, () => controllers[index]!.abort()),
  })
  const swept = await sweep(job, 'iodepth', [1, 2, 4, 8], cancelled(0, 3))
  t.deepEqual(
    swept.points.map(({load, kept}) => [load, kept]),
    [
      [1, true],
      [2, true],
      [4, true],
    ],
  )
  t.like(swept, {state: 'cancelled', error: {round: 'iodepth=8', code: 'CANCELLED'}})
  t.is(swept.results.length, 3)
  t.truthy(swept.knee)
  t.regex(textSweep(swept).join('\n'), /^cancelled before iodepth=8: /m)

  const steady = await untilSteady(job, cancelled(1, 2))
  t.like(steady, {state: 'cancelled', verdict: {reached: false}, error: {round: 'round 3'}})
  t.deepEqual([steady.rounds.length, steady.results.length], [2, 2])
  t.regex(textSteady(steady).join('\n'), /^cancelled before round 3: /m)

  controllers[2]!.abort()
  await t.throwsAsync(sweep(job, 'iodepth', [1, 2], cancelled(2, 9)), {code: 'CANCELLED'}, 'nothing was measured')
})

test.serial('so is what was measured before a round that fails', async t => {
  for (const measure of [
    (job: BenchJob, end: () => void) => sweep(job, 'iodepth', [1, 2, 4], {onRun: afterRounds(2, end)}),
    (job: BenchJob, end: () => void) => untilSteady(job, {onRun: afterRounds(2, end)}),
  ]) {
    const filename = join(await temporary(t), 'image')
    await writeFile(filename, '')
    await truncate(filename, sizeBytes)
    const job: BenchJob = {target: {filename, direct: false}, runtime: 0.1}
    const report = await measure(job, () => unlinkSync(filename))
    t.like(report, {state: 'failed', error: {code: 'VOLUME_MISSING'}})
    t.is(report.results.length, 2)
    await t.throwsAsync(
      measure(job, () => undefined),
      {code: 'VOLUME_MISSING'},
      'of the first it is the error',
    )
  }
})
