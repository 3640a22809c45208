import {execFile} from 'node:child_process'
import {constants} from 'node:fs'
import {open, readFile, stat, truncate, writeFile} from 'node:fs/promises'
import {dirname, join} from 'node:path'
import {fileURLToPath} from 'node:url'
import {promisify} from 'node:util'
import test, {type ExecutionContext} from 'ava'
import type {NativePathEngine} from '../../src/bench/native.js'
import {packageRoot} from '../../src/native.js'
import {attachLoop, MiB} from '../contract/observe.js'
import {compiled} from '../fixtures/compiled.js'
import {
  dataFile,
  mixes,
  nativeTarget,
  nullDevice,
  onlyDirection,
  pathDevice,
  startNative,
} from '../fixtures/native-bench.js'
import {nodeEnvironment} from '../fixtures/node-environment.js'
import {tmpfs} from '../fixtures/tmpfs.js'
import {withLoop} from '../fixtures/with-loop.js'

const run = promisify(execFile)
const sizeBytes = 16 * MiB
const engineScript = fileURLToPath(new URL('../fixtures/bench-engine.js', import.meta.url))

function forbidProgram(): Promise<string> {
  const source = join(packageRoot(), 'test', 'fixtures', 'forbid.c')
  const path = join(packageRoot(), '.cache', 'test', 'forbid')
  return compiled(path, {compiler: 'cc', args: ['-O1', '-Werror', source], sources: [source]})
}

async function loopDevice(t: ExecutionContext) {
  const file = await dataFile(t, sizeBytes, tmpfs)
  const {device} = await attachLoop(t, file)
  return {file, device}
}

/** 512-byte blocks of a file that are there. */
async function allocatedBytes(path: string): Promise<number> {
  return (await stat(path)).blocks * 512
}

const engines: NativePathEngine[] = ['io_uring', 'libaio', 'pread']
for (const engine of engines) {
  for (const iodepth of [1, 8]) {
    withLoop(`${engine} reads and writes a block device with O_DIRECT, iodepth ${iodepth}`, async t => {
      const {device} = await loopDevice(t)
      const path = pathDevice(device, {engine, direct: true})
      const mix = {read: 70, write: 30, trim: 0}
      const report = await startNative([nativeTarget(path, {iodepth, mix})]).report
      const [target] = report.targets
      t.like(target, {state: 'finished', engine, errors: 0, unanswered: 0, fallbackReason: '', lastError: null})
      t.true(target!.engineFlags.includes('direct'))
      t.is(target!.device.sizeBytes, sizeBytes)
      const {read, write} = target!.directions
      t.true(read!.ios > 20 && write!.ios > 5, `${read!.ios} reads, ${write!.ios} writes`)
      t.is(read!.bytes, read!.ios * 4096)
      t.is(read!.service.count, read!.ios)
      t.is(read!.response.count, read!.ios)
      const share = read!.ios / (read!.ios + write!.ios)
      // 70 % of at least some hundred draws; five standard deviations.
      t.true(Math.abs(share - 0.7) < 5 * Math.sqrt(0.21 / (read!.ios + write!.ios)), `${share}`)
      t.true(report.cpu.threadsNs > 0 && report.cpu.processNs >= report.cpu.threadsNs)
      t.true(report.startToFirstCompletionNs > 0)
    })
  }
}

withLoop('a closed loop keeps what it says in flight, by Little’s law', async t => {
  const {device} = await loopDevice(t)
  const path = pathDevice(device, {engine: 'io_uring', direct: true})
  const report = await startNative([nativeTarget(path, {iodepth: 16, numjobs: 2})], {runtimeMs: 1000}).report
  const {littleInFlight, directions} = report.targets[0]!
  t.true(directions.read!.ios > 0)
  // A slot is idle from the end of one I/O to the start of the next: longer under sanitizers and on a busy machine.
  t.true(Math.abs(littleInFlight - 32) < 32 * 0.1, `${littleInFlight} of 32 in flight`)
})

test.serial('io_uring says what the kernel gave it', async t => {
  const file = await dataFile(t, MiB)
  const {targets} = await startNative([nativeTarget(pathDevice(file, {engine: 'io_uring'}))]).report
  for (const flag of ['registered_file', 'registered_buffers']) t.true(targets[0]!.engineFlags.includes(flag), flag)
  t.false(targets[0]!.engineFlags.includes('direct'))
})

withLoop('times are those of the time stamp counter only where the kernel has it for its own clock', async t => {
  const current = '/sys/devices/system/clocksource/clocksource0/current_clocksource'
  const file = await dataFile(t, MiB)
  const clockWith = async (clocksource: string) => {
    const instead = join(dirname(file), 'clocksource')
    await writeFile(instead, `${clocksource}\n`)
    const script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    const command = ['sh', '-c', script, 'sh', instead, current, process.execPath, engineScript, file, 'cached']
    const {stdout} = await run('unshare', ['--mount', ...command], {env: nodeEnvironment()})
    return JSON.parse(stdout).clock
  }
  for (const other of ['kvm-clock', 'hpet', '']) t.is(await clockWith(other), 'monotonic', other)
  const flags = /^flags\s*:(.*)$/m.exec(await readFile('/proc/cpuinfo', 'utf8'))?.[1]?.split(' ') ?? []
  const invariant = ['constant_tsc', 'nonstop_tsc'].every(flag => flags.includes(flag))
  if (!invariant) t.is(await clockWith('tsc'), 'monotonic')
})

withLoop('auto takes io_uring, and at iodepth 1 what a probe found', async t => {
  const {device} = await loopDevice(t)
  const path = pathDevice(device, {direct: true})
  const deep = await startNative([nativeTarget(path, {iodepth: 4})]).report
  t.is(deep.targets[0]!.engine, 'io_uring')
  const single = await startNative([nativeTarget(path)]).report
  t.true(['io_uring', 'pread'].includes(single.targets[0]!.engine))
  t.true(single.targets[0]!.engineFlags.includes('probed'))
})

withLoop('where io_uring is forbidden it is libaio, and without O_DIRECT or libaio a pool of preads', async t => {
  const {file, device} = await loopDevice(t)
  const engineOf = async (path: string, how: 'direct' | 'cached', ...forbidden: string[]) => {
    const command = [...forbidden, '--', process.execPath, engineScript, path, how]
    const {stdout} = await run(await forbidProgram(), command, {env: nodeEnvironment()})
    const {engine, fallbackReason, state, errors, ios} = JSON.parse(stdout)
    t.like({state, errors}, {state: 'finished', errors: 0}, stdout)
    t.true(ios > 0, stdout)
    return {engine, fallbackReason}
  }
  const fallbackReason = 'io_uring_setup: EPERM'
  t.deepEqual(await engineOf(device, 'direct', 'io_uring_setup'), {engine: 'libaio', fallbackReason})
  t.deepEqual(await engineOf(file, 'cached', 'io_uring_setup'), {engine: 'pread', fallbackReason})
  t.deepEqual(await engineOf(device, 'direct', 'io_uring_setup', 'io_setup'), {engine: 'pread', fallbackReason})
})

test.serial('a thread that thinks pauses after each so many I/Os', async t => {
  const pauseMs = 20
  const target = nativeTarget(nullDevice, {thinkTime: {us: pauseMs * 1000, blocks: 5}})
  const {targets, elapsedNs} = await startNative([target], {runtimeMs: 400}).report
  const {ios} = targets[0]!.directions.read!
  t.is(ios % 5, 0)
  // No more than fit between the pauses; fewer where the machine was busy.
  t.true(ios <= 5 * (Math.floor(elapsedNs / 1e6 / pauseMs) + 1), `${ios} in ${elapsedNs} ns`)
  t.true(ios >= 10, `${ios}`)
})

withLoop('several targets have figures each, and in total', async t => {
  const [file, {device}] = [await dataFile(t, MiB), await loopDevice(t)]
  const targets = [
    nativeTarget(pathDevice(file), {name: 'file'}),
    nativeTarget(pathDevice(device), {name: 'device', iodepth: 2}),
    nativeTarget(nullDevice, {name: 'null', rate: {kind: 'fixed', iops: 100}}),
  ]
  const {report, samples} = startNative(targets)
  const {targets: reports, total} = await report
  t.deepEqual(
    reports.map(({name}) => name),
    ['file', 'device', 'null'],
  )
  const sum = reports.reduce((ios, {directions}) => ios + directions.read!.ios, 0)
  t.is(total.directions.read!.ios, sum)
  t.is(total.directions.read!.response.count, sum)
  const sampled = samples.reduce((ios, sample) => ios + sample.total.directions.read!.ios, 0)
  t.is(sampled, sum, 'the samples add up')
  t.is(reports[2]!.directions.read!.ios, 30)
})

test.serial('what is done in the ramp is in no result', async t => {
  const {report, samples} = startNative([nativeTarget(nullDevice, {rate: {kind: 'fixed', iops: 1000}})], {rampMs: 300})
  const {total, targets} = await report
  const readsOf = (phase: string) =>
    samples.filter(sample => sample.phase === phase).reduce((sum, sample) => sum + sample.total.directions.read!.ios, 0)
  t.true(readsOf('ramp') > 0)
  // The first sample of the run may have begun in the ramp.
  t.true(total.directions.read!.ios <= readsOf('run'))
  t.is(targets[0]!.openLoop.arrivals, 300)
  t.is(samples[0]!.phase, 'ramp')
  t.is(samples.at(-1)!.phase, 'run')
})

withLoop('discards free what a loop device’s file had', async t => {
  const {file, device} = await loopDevice(t)
  t.true((await allocatedBytes(file)) >= sizeBytes)
  const size = [{bytes: MiB, percent: 100}]
  const trims = nativeTarget(pathDevice(device), {
    mix: mixes.trim,
    blockSizes: {read: [], write: [], trim: size},
    distribution: {kind: 'sequential'},
    iodepth: 2,
  })
  const {total, state} = await startNative([trims]).report
  t.is(state, 'finished')
  t.is(total.errors, 0)
  t.true(total.directions.trim!.ios >= 16)
  t.true((await allocatedBytes(file)) < sizeBytes / 2)
  const libaio = pathDevice(device, {engine: 'libaio'})
  await t.throwsAsync(startNative([{...trims, device: libaio}]).report, {code: 'EOPNOTSUPP'})
})

test.serial('block sizes are drawn by their percents, and stay in the range', async t => {
  const file = await dataFile(t, 4 * MiB)
  const sizes = [
    {bytes: 4096, percent: 75},
    {bytes: 16384, percent: 25},
  ]
  const target = nativeTarget(pathDevice(file), {
    mix: mixes.write,
    blockSizes: {read: [], write: sizes, trim: []},
    offsetBytes: MiB,
    sizeBytes: MiB,
    iodepth: 4,
  })
  const read = async (at: number) => {
    const handle = await open(file)
    try {
      return (await handle.read(Buffer.alloc(MiB), 0, MiB, at)).buffer
    } finally {
      await handle.close()
    }
  }
  const [before, after] = [await read(0), await read(2 * MiB)]
  const written = await read(MiB)
  const {ios, bytes} = onlyDirection((await startNative([target]).report).total)
  // 7 KiB on average; the variance of one draw is 27,648,000 square bytes or so.
  t.true(Math.abs(bytes / ios - 7168) < (5 * 5321) / Math.sqrt(ios), `${bytes / ios} bytes on average`)
  t.deepEqual([await read(0), await read(2 * MiB)], [before, after], 'nothing outside was written')
  t.notDeepEqual(await read(MiB), written)
})

for (const distribution of [
  {kind: 'zipf', theta: 1.2},
  {kind: 'pareto', h: 0.2},
] as const) {
  test.serial(`${distribution.kind} writes few blocks often, and the same seed the same ones`, async t => {
    const writtenBlocks = async (kind: typeof distribution | {kind: 'uniform'}) => {
      const file = await dataFile(t, 0)
      await truncate(file, 64 * MiB)
      const rate = {kind: 'fixed', iops: 10_000} as const
      const target = nativeTarget(pathDevice(file), {mix: mixes.write, distribution: kind, rate, iodepth: 4})
      await startNative([target]).report
      return allocatedBytes(file)
    }
    const skewed = await writtenBlocks(distribution)
    t.is(await writtenBlocks(distribution), skewed)
    t.true(skewed * 1.2 < (await writtenBlocks({kind: 'uniform'})), `${skewed}`)
  })
}

withLoop('a device that is in use is not opened exclusively, and holds off others while it runs', async t => {
  const {device} = await loopDevice(t)
  const exclusive = pathDevice(device, {exclusive: true})
  const holder = await open(device, constants.O_RDONLY | constants.O_EXCL)
  await t.throwsAsync(startNative([nativeTarget(exclusive)]).report, {code: 'EBUSY'})
  await holder.close()
  const long = startNative([nativeTarget(exclusive)], {runtimeMs: 60_000})
  await long.underWay
  await t.throwsAsync(open(device, constants.O_RDONLY | constants.O_EXCL), {code: 'EBUSY'})
  long.cancel()
  t.is((await long.report).state, 'cancelled')
  await (await open(device, constants.O_RDONLY | constants.O_EXCL)).close()
})

test.serial('a file that a run holds is not opened by another', async t => {
  const device = pathDevice(await dataFile(t, MiB), {exclusive: true})
  const target = nativeTarget(device, {mix: mixes.write})
  const first = startNative([target], {runtimeMs: 60_000})
  await first.underWay
  await t.throwsAsync(startNative([target]).report, {code: 'EBUSY'})
  first.cancel()
  t.is((await first.report).state, 'cancelled')
  t.is((await startNative([target]).report).state, 'finished')
})

withLoop('another device or file than was checked is refused', async t => {
  const {file, device} = await loopDevice(t)
  const [{rdev}, {dev, ino}] = [await stat(device), await stat(file)]
  const matching = [
    pathDevice(device, {expectedRdev: rdev}),
    pathDevice(file, {expectedRdev: 0, expectedDev: dev, expectedIno: ino}),
  ]
  for (const path of matching) t.is((await startNative([nativeTarget(path)]).report).state, 'finished')
  const wrong = [
    pathDevice(device, {expectedRdev: rdev + 1}),
    pathDevice(device, {expectedRdev: 0}),
    pathDevice(file, {expectedIno: ino + 1}),
    pathDevice(file, {expectedDev: dev + 1}),
  ]
  for (const path of wrong) await t.throwsAsync(startNative([nativeTarget(path)]).report, {code: 'IDENTITY_MISMATCH'})
  const size = {expectedSizeBytes: sizeBytes * 2}
  await t.throwsAsync(startNative([nativeTarget(pathDevice(device), size)]).report, {code: 'IDENTITY_MISMATCH'})
})

test.serial('what cannot be opened, or does not fit, says so', async t => {
  const file = await dataFile(t, MiB)
  await t.throwsAsync(startNative([nativeTarget(pathDevice(`${file}.not`))]).report, {code: 'ENOENT'})
  await t.throwsAsync(startNative([nativeTarget(pathDevice('/dev/null'))]).report, {code: 'ENOTBLK'})
  const beyond = {offsetBytes: MiB}
  await t.throwsAsync(startNative([nativeTarget(pathDevice(file), beyond)]).report, {code: 'ERANGE'})
  const unaligned = {blockSizes: {read: [{bytes: 100, percent: 100}], write: [], trim: []}}
  await t.throwsAsync(startNative([nativeTarget(pathDevice(file, {direct: true}), unaligned)]).report, {code: 'ERANGE'})
  // One that is well, beside one that is not: nothing runs.
  const both = [nativeTarget(nullDevice), nativeTarget(pathDevice(`${file}.not`))]
  await t.throwsAsync(startNative(both).report, {code: 'ENOENT'})
})

withLoop('where nothing can be read any more: errors by errno, with their offsets, and the policy decides', async t => {
  const {file, device} = await loopDevice(t)
  await truncate(file, sizeBytes / 2)
  const path = pathDevice(device, {engine: 'io_uring', direct: true})
  const report = await startNative([nativeTarget(path, {iodepth: 4})]).report
  t.is(report.state, 'finished')
  const [counted] = report.targets[0]!.errorCounts
  t.like(counted, {direction: 'read', code: 'EIO', number: 5, count: report.total.errors})
  t.is(counted!.firstOffsets.length, 16)
  t.true(counted!.firstOffsets.every(offset => offset >= sizeBytes / 2))
  t.is(report.targets[0]!.lastError?.code, 'EIO')

  for (const [onError, count] of [
    [{kind: 'stop'}, 1],
    [{kind: 'limit', count: 5}, 6],
  ] as const) {
    const stopped = await startNative([nativeTarget(path, {onError})], {runtimeMs: 60_000}).report
    t.is(stopped.state, 'failed')
    t.is(stopped.total.errors, count)
  }
})

withLoop('a device that loses its size in mid-run: device-lost, with what there is', async t => {
  const {file, device} = await loopDevice(t)
  const path = pathDevice(device, {engine: 'io_uring', direct: true})
  const lost = startNative([nativeTarget(path, {iodepth: 4}), nativeTarget(nullDevice)], {runtimeMs: 60_000})
  await lost.underWay
  await truncate(file, 0)
  await run('losetup', ['--set-capacity', device])
  const report = await lost.report
  t.is(report.state, 'device-lost')
  t.deepEqual(
    report.targets.map(({state}) => state),
    ['device-lost', 'cancelled'],
  )
  t.true(report.targets[0]!.directions.read!.ios > 0)
})

test.serial('a file that is cut off in mid-run: no data, and no crash', async t => {
  const file = await dataFile(t, 4 * MiB)
  const cut = startNative([nativeTarget(pathDevice(file), {onError: {kind: 'limit', count: 100}})], {runtimeMs: 60_000})
  await cut.underWay
  await truncate(file, MiB + 1000)
  const report = await cut.report
  t.is(report.state, 'failed')
  t.is(report.targets[0]!.errorCounts[0]!.code, 'ENODATA')
})
