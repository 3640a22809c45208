import test from 'ava'
import {type BenchJob, type PathTarget, settleJob} from '../../src/bench/job.js'
import {hasCode} from '../../src/errors.js'

const target = {
  portal: {address: '127.0.0.1', port: 3260},
  iqn: 'iqn.2025-01.test.lunpath:a',
  lun: 1,
  initiatorName: 'iqn.2025-01.test.lunpath:initiator',
}
const writeTo = {identity: '0123456789abcdef', sizeBytes: 2 ** 30}
const path: PathTarget = {filename: '/dev/sdb'}

const settleOne = (job: Partial<BenchJob>) => settleJob({target: path, ...job}).native.targets[0]!

test('a job that says only what to measure gets defaults', t => {
  const {native, name} = settleJob({target})
  const {seed, targets, ...run} = native
  t.is(name, 'bench')
  t.deepEqual(run, {runtimeMs: 5000, rampMs: 0, stuckMs: 5000, verifyTableBytes: 0, sampleMs: 250})
  t.is(targets.length, 1)
  const {device, ...workload} = targets[0]!
  t.deepEqual(workload, {
    name: target.iqn,
    mix: {read: 100, write: 0, trim: 0},
    distribution: {kind: 'uniform'},
    order: {alignBytes: 0, stepBytes: 0, runIos: 1, runStays: false, randomPercent: 100},
    blockSizes: {read: [{bytes: 4096, percent: 100}], write: [], trim: []},
    iodepth: 1,
    numjobs: 1,
    offsetBytes: 0,
    sizeBytes: 0,
    offsetPercent: 0,
    sizePercent: 0,
    startDelayMs: 0,
    offsetIncrementBytes: 0,
    stop: {bytes: 0, percent: 0, ios: 0},
    flushAfter: {fsync: 0, fdatasync: 0},
    rate: {kind: 'closed'},
    thinkTime: {us: 0, blocks: 1},
    verify: 'none',
    onError: {kind: 'continue'},
    expectedWwid: '',
    expectedSerial: '',
    expectedSizeBytes: 0,
  })
  t.like(device, {kind: 'iscsi', engine: 'iscsi', login: {portal: '127.0.0.1:3260'}})
  t.true(seed >= 0n && seed < 2n ** 64n)
  t.not(seed, settleJob({target}).native.seed)
})

test("sizes are bytes, or text with fio's suffixes; times are in fio's units, or text", t => {
  const {blockSizes, offsetBytes, sizeBytes} = settleOne({bs: '128k', offset: '1m', size: 4096})
  t.deepEqual(blockSizes.read, [{bytes: 131072, percent: 100}])
  t.deepEqual({offsetBytes, sizeBytes}, {offsetBytes: 2 ** 20, sizeBytes: 4096})
  t.like(settleJob({target, runtime: '2m', ramp_time: 1.5}).native, {runtimeMs: 120_000, rampMs: 1500})
  t.deepEqual(settleOne({thinktime: '2ms', thinktime_blocks: 8}).thinkTime, {us: 2000, blocks: 8})
  t.is(settleOne({thinktime: 50}).thinkTime.us, 50)
})

test('flushes follow writes: a job without any cannot have them', t => {
  const writing = {target: {...path, writeTo}, rw: 'randwrite'} as const
  t.deepEqual(settleOne({...writing, fsync: 32}).flushAfter, {fsync: 32, fdatasync: 0})
  t.deepEqual(settleOne({...writing, rw: 'randrw', fsync: 4, fdatasync: 1}).flushAfter, {fsync: 4, fdatasync: 1})
  for (const rw of ['read', 'randread', 'trim', 'randtrim'] as const)
    t.throws(() => settleOne({...writing, rw, fsync: 4}), {
      code: 'INVALID_ARGUMENT',
      message: 'fsync is for jobs that write: a flush follows each 4 writes',
    })
  t.throws(() => settleOne({...writing, rw: 'rw', rwmixread: 100, fdatasync: 1}), {message: /^fdatasync is for jobs/})
  t.deepEqual(settleOne({rw: 'read', fsync: 0}).flushAfter, {fsync: 0, fdatasync: 0})
  for (const fsync of [-1, 1.5, 2e9, '4' as unknown as number])
    t.throws(() => settleOne({...writing, fsync}), {message: /^fsync is a whole number from 0/})
  // What a target says stands before what the job says.
  const targets = [{...path, writeTo, rw: 'write'} as const, {filename: '/dev/sdc', fsync: 0}]
  t.deepEqual(
    settleJob({target: targets, fsync: 8}).native.targets.map(({flushAfter}) => flushAfter.fsync),
    [8, 0],
  )
})

test('a range in percent of the device, threads with ranges of their own, and an end that is no time', t => {
  t.like(settleOne({offset: '20%', size: '40%'}), {offsetBytes: 0, offsetPercent: 20, sizeBytes: 0, sizePercent: 40})
  t.is(settleOne({offset_increment: '1g', numjobs: 4}).offsetIncrementBytes, 2 ** 30)
  t.deepEqual(settleOne({io_size: '1m', number_ios: 7}).stop, {bytes: 2 ** 20, percent: 0, ios: 7})
  t.deepEqual(settleOne({io_size: '300%'}).stop, {bytes: 0, percent: 300, ios: 0})
  t.is(settleJob({target: path, io_size: '100%'}).native.runtimeMs, 86_400_000)
  t.is(settleJob({target: path, io_size: '100%', runtime: 3}).native.runtimeMs, 3000)
  t.is(settleJob({target: [{...path, io_size: '100%'}, {ioengine: 'null'}]}).native.runtimeMs, 5000)
})

test('each pattern is a mix of directions, in order or at random', t => {
  const mixes: Record<string, [read: number, write: number, trim: number, kind: string]> = {
    read: [100, 0, 0, 'sequential'],
    write: [0, 100, 0, 'sequential'],
    trim: [0, 0, 100, 'sequential'],
    randread: [100, 0, 0, 'uniform'],
    randwrite: [0, 100, 0, 'uniform'],
    randtrim: [0, 0, 100, 'uniform'],
    rw: [50, 50, 0, 'sequential'],
    readwrite: [50, 50, 0, 'sequential'],
    randrw: [50, 50, 0, 'uniform'],
  }
  for (const [rw, [read, write, trim, kind]] of Object.entries(mixes))
    t.like(settleOne({rw: rw as BenchJob['rw']}), {mix: {read, write, trim}, distribution: {kind}}, rw)
  t.deepEqual(settleOne({rw: 'randrw', rwmixread: 70}).mix, {read: 70, write: 30, trim: 0})
})

test('block sizes by direction, and split', t => {
  const sizes = settleOne({rw: 'randrw', bs: '4k,64k'}).blockSizes
  t.deepEqual(sizes, {read: [{bytes: 4096, percent: 100}], write: [{bytes: 65536, percent: 100}], trim: []})
  const split = settleOne({rw: 'randrw', bssplit: '4k/60:64k/40,8k'}).blockSizes
  t.deepEqual(split.read, [
    {bytes: 4096, percent: 60},
    {bytes: 65536, percent: 40},
  ])
  t.deepEqual(split.write, [{bytes: 8192, percent: 100}])
  t.deepEqual(
    settleOne({bssplit: '4k/50:8k:16k'}).blockSizes.read.map(({percent}) => percent),
    [50, 25, 25],
    'what is left is shared, as in fio',
  )
})

test('distributions, rates and what an error does', t => {
  t.deepEqual(settleOne({random_distribution: 'zipf:1.2'}).distribution, {kind: 'zipf', theta: 1.2})
  t.deepEqual(settleOne({random_distribution: 'pareto:0.2'}).distribution, {kind: 'pareto', h: 0.2})
  t.deepEqual(settleOne({rate_iops: 1000}).rate, {kind: 'fixed', iops: 1000})
  t.deepEqual(settleOne({rate_iops: 1000, rate_process: 'poisson'}).rate, {kind: 'poisson', iops: 1000})
  t.deepEqual(settleOne({continue_on_error: 'none'}).onError, {kind: 'stop'})
  t.deepEqual(settleOne({max_errors: 7}).onError, {kind: 'limit', count: 7})
})

test('several targets: what one says stands before what the job says', t => {
  const {native} = settleJob({
    target: [
      {...path, iodepth: 8},
      {ioengine: 'null', bssplit: '8k/100'},
      {...target, name: 'third'},
    ],
    iodepth: 4,
    bs: '64k',
  })
  t.deepEqual(
    native.targets.map(({name, iodepth, blockSizes, device}) => [
      name,
      iodepth,
      blockSizes.read[0]!.bytes,
      device.kind,
    ]),
    [
      ['/dev/sdb', 8, 65536, 'path'],
      ['null', 4, 8192, 'null'],
      ['third', 4, 65536, 'iscsi'],
    ],
  )
  t.throws(() => settleJob({target: [path, path]}), {code: 'INVALID_ARGUMENT', message: /Two targets are named/})
})

test('reading is the default; a job that writes over iSCSI must repeat serial and size', t => {
  t.like(settleOne({}).device, {exclusive: false})
  t.like(settleOne({rw: 'randwrite'}).device, {exclusive: true})
  for (const rw of ['write', 'randwrite', 'rw', 'randrw', 'trim'] as const) {
    t.throws(
      () => settleJob({target, rw}),
      {code: 'INVALID_ARGUMENT', message: /repeat its serial number and size/},
      rw,
    )
    t.throws(() => settleJob({target: {...target, writeTo: {...writeTo, identity: ''}}, rw}), {
      code: 'INVALID_ARGUMENT',
    })
  }
  const {native} = settleJob({target: {...target, writeTo}, rw: 'write'})
  t.like(native.targets[0], {expectedSerial: writeTo.identity, expectedSizeBytes: writeTo.sizeBytes})
})

test("patterns of fio's that lunpath does not have are UNSUPPORTED", t => {
  const error = t.throws(() => settleJob({target, rw: 'trimwrite'} as unknown as BenchJob))
  t.true(hasCode(error, 'UNSUPPORTED'))
})

test('what makes no sense is refused', t => {
  const wrong: Record<string, unknown>[] = [
    {rw: 'randreed'},
    {bs: 0},
    {bs: 100},
    {bs: -4096},
    {bs: '4x'},
    {bs: '32m'},
    {bs: {}},
    {bs: '4k,4k,4k,4k'},
    {bs: '4k', bssplit: '4k/100'},
    {bssplit: '4k/60:64k/30'},
    {bssplit: '4k/160'},
    {bssplit: '4k/x'},
    {bssplit: ''},
    {iodepth: 0},
    {iodepth: 1.5},
    {iodepth: 100_000},
    {iodepth: 1024, bs: '16m'},
    {iodepth: 64, numjobs: 128, bs: '1m'},
    {numjobs: 0},
    {runtime: 0},
    {runtime: -1},
    {runtime: Number.NaN},
    {runtime: 1e9},
    {runtime: 'soon'},
    {ramp_time: -1},
    {offset: -512},
    {offset: 100},
    {size: 1},
    {size: '0%'},
    {size: '101%'},
    {offset: 'x%'},
    {offset_increment: 100},
    {io_size: '1.5m%'},
    {number_ios: 0},
    {offset_increment: '1m', verify: 'crc32c', rw: 'write', target: path},
    {seed: -1},
    {seed: 1.5},
    {seed: 2n ** 64n},
    {seed: '99999999999999999999'},
    {stuckMs: 0},
    {sampleMs: 1},
    {rwmixread: 101, rw: 'randrw'},
    {random_distribution: 'zipf'},
    {random_distribution: 'zipf:-1'},
    {random_distribution: 'pareto:1'},
    {random_distribution: 'normal:3'},
    {random_distribution: 'zipf:1.2', rw: 'read'},
    {rate_iops: 0},
    {rate_iops: Number.NaN},
    {rate_iops: 100, thinktime: 5},
    {thinktime: 'long'},
    {max_errors: 0},
    {max_errors: 3, continue_on_error: 'none'},
    {verify: 'crc32c'},
    {verify: 'crc32c', rw: 'randtrim'},
    {verify: 'crc32c', rw: 'randrw', bs: '4k,8k'},
    {target: []},
    {target: {...target, iqn: 'nonsense'}},
    {target: {...target, lun: 256}},
    {target: {}},
    {target: {filename: '/x', ioengine: 'psync'}},
    {target: {filename: 'relative'}},
    {target: {filename: '/nul\0byte'}},
    {target: {ioengine: 'null', sizeBytes: 100}},
  ]
  for (const change of wrong) {
    const error = t.throws(
      () => settleJob({target: path, ...change} as BenchJob),
      undefined,
      JSON.stringify(change, (_, v) => (typeof v === 'bigint' ? `${v}` : v)),
    )
    t.true(hasCode(error, 'INVALID_ARGUMENT', 'SIZE_INVALID', 'NAME_INVALID'), `${error}`)
  }
})
