// How much memory a job takes, how much there is, and that what does not fit is refused before anything starts.
import test from 'ava'
import type {BenchJob} from '../../src/bench/job.js'
import {settleJob} from '../../src/bench/job.js'
import {memoryCgroups, memoryNeed, memoryRoom} from '../../src/bench/memory.js'
import {start} from '../../src/bench/run.js'

const GiB = 2 ** 30

function needOf(job: BenchJob, sizes: number[]) {
  return memoryNeed(settleJob(job).native, sizes)
}

test('the need of a job is that of all its targets, threads and tables', t => {
  const one = needOf({target: {ioengine: 'null'}, bs: '1m', iodepth: 1024}, [GiB])
  t.is(one.buffersBytes, GiB)
  const names = ['a', 'b', 'c', 'd']
  const target = names.map(name => ({ioengine: 'null' as const, name}))
  const four = needOf({target, bs: '1m', iodepth: 1024}, [GiB, GiB, GiB, GiB])
  t.is(four.atOnceBytes, 4 * one.atOnceBytes)
  // Many threads with small blocks: what they count is most of it.
  const threads = needOf({target, bs: 512, numjobs: 128}, [GiB, GiB, GiB, GiB])
  t.true(threads.atOnceBytes > 10 * threads.buffersBytes && threads.atOnceBytes > 512 * 200_000)
  const writing = {target, bs: 512, numjobs: 128, rw: 'randwrite'} as const
  const [without, flushing] = [writing, {...writing, fsync: 1}].map(
    job => needOf(job, [GiB, GiB, GiB, GiB]).atOnceBytes,
  )
  t.true(flushing! > without! * 1.4, 'flushes have latencies of their own')
  const verify = {rw: 'randwrite', verify: 'crc32c', bs: 512} as const
  t.is(needOf({target: {ioengine: 'null'}, ...verify}, [8 * 1024 * GiB]).tablesBytes, 64 * GiB)
  t.is(needOf({target: {ioengine: 'null'}, ...verify, size: '1g'}, [8 * 1024 * GiB]).tablesBytes, 8 * 2 ** 20)
})

test('memory cgroups are found in both versions, with those above them', t => {
  const v2 = '35 25 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n'
  t.deepEqual(memoryCgroups('0::/system.slice/lunpath.service\n', v2), [
    {directory: '/sys/fs/cgroup', version: 2},
    {directory: '/sys/fs/cgroup/system.slice', version: 2},
    {directory: '/sys/fs/cgroup/system.slice/lunpath.service', version: 2},
  ])
  const v1 = '14 34 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n'
  t.deepEqual(memoryCgroups('5:cpu,cpuacct:/x\n4:memory:/x\n0::/\n', v1), [
    {directory: '/sys/fs/cgroup/memory', version: 1},
    {directory: '/sys/fs/cgroup/memory/x', version: 1},
  ])
  // In a container the mount begins at its own cgroup, and what /proc says may lead out of it.
  const container = '35 25 0:30 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n'
  t.deepEqual(memoryCgroups('0::/docker/abc/inner\n', container), [
    {directory: '/sys/fs/cgroup', version: 2},
    {directory: '/sys/fs/cgroup/inner', version: 2},
  ])
  t.deepEqual(memoryCgroups('0::/\n', container), [{directory: '/sys/fs/cgroup', version: 2}])
  t.deepEqual(memoryCgroups('', ''), [])
})

test.serial('a job that does not fit is refused before it starts, with what to lower', async t => {
  const {bytes} = await memoryRoom()
  const targets = Math.floor(bytes / GiB) + 1
  if (targets > 64) {
    t.pass('this machine can take any job')
    return
  }
  const target = Array.from({length: targets}, (_, index) => ({ioengine: 'null' as const, name: `t${index}`}))
  const run = start({target, bs: '16m', iodepth: 64, runtime: 0.1})
  const error = await t.throwsAsync(run.result, {code: 'INVALID_ARGUMENT'})
  t.regex(error!.message, /needs .* this process may use .*\. Lower bs, iodepth or numjobs, or give fewer targets$/)
})
