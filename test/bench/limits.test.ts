// What a machine may do to a benchmark: too little memory, no threads, a device that hangs. Each has its answer, in time.
import {execFile} from 'node:child_process'
import {mkdir, writeFile} from 'node:fs/promises'
import {fileURLToPath} from 'node:url'
import {promisify} from 'node:util'
import type {ExecutionContext} from 'ava'
import type {BenchJob} from '../../src/bench/job.js'
import {start} from '../../src/bench/run.js'
import {run} from '../../src/exec.js'
import {exclusively} from '../fixtures/claims.js'
import {until} from '../fixtures/cli.js'
import {lab, labDisk} from '../lab/lab.js'

const execute = promisify(execFile)
const MiB = 2 ** 20
const diskBytes = 64 * MiB
const inCgroup = fileURLToPath(new URL('../fixtures/bench-in-cgroup.js', import.meta.url))

lab.options({disksBytes: [diskBytes], modules: ['dm-mod']})

let cgroups = 0

/** A cgroup with these limits. The lab has no systemd, so the hierarchy is this file's own. */
async function cgroup(limits: Record<string, string | number>): Promise<string> {
  if (cgroups++ === 0) {
    await run('mount', ['-t', 'cgroup2', 'none', '/sys/fs/cgroup'])
    await writeFile('/sys/fs/cgroup/cgroup.subtree_control', '+memory +pids')
  }
  const directory = `/sys/fs/cgroup/bench-${cgroups}`
  await mkdir(directory)
  for (const [name, value] of Object.entries(limits)) await writeFile(`${directory}/${name}`, String(value))
  return directory
}

async function outcomeIn(directory: string, job: BenchJob, ...how: 'full'[]) {
  const {stdout} = await execute(process.execPath, [inCgroup, directory, JSON.stringify(job), ...how])
  return JSON.parse(stdout) as {state?: string; code?: string; message?: string}
}

lab('a job that a memory cgroup cannot hold is refused, and one that it can runs', async t => {
  const directory = await cgroup({'memory.max': 512 * MiB})
  const target = ['a', 'b', 'c', 'd'].map(name => ({ioengine: 'null' as const, name}))
  const large = {bs: '1m', iodepth: 128, runtime: 0.2}
  const refused = await outcomeIn(directory, {target, ...large})
  t.is(refused.code, 'INVALID_ARGUMENT', JSON.stringify(refused))
  t.regex(refused.message!, /needs 51\d\.?\d* MiB of memory, 512 MiB of it for bs × iodepth × numjobs .*memory\.max of/)
  t.deepEqual(await outcomeIn(directory, {target: target[0]!, ...large}), {state: 'finished'})
})

lab('where no thread can be started, that is the error of the run', async t => {
  const directory = await cgroup({})
  const refused = await outcomeIn(directory, {target: {ioengine: 'null'}, runtime: 0.2}, 'full')
  t.is(refused.code, 'INTERNAL', JSON.stringify(refused))
  t.regex(refused.message!, /A thread of the benchmark: Resource temporarily unavailable/)
})

/** A device that answers nothing between hang() and goOn(). */
async function hangingDevice(t: ExecutionContext, name: string) {
  const dmsetup = (...args: string[]) => run('dmsetup', args, {env: {DM_DISABLE_UDEV: '1'}})
  const uuid = `lunpath-test-${name}`
  await dmsetup('create', name, '--uuid', uuid, '--table', `0 ${diskBytes / 512} linear ${labDisk(1)} 0`)
  t.teardown(() => until('the device can be removed', () => dmsetup('remove', name).then(ok, failed)))
  return {
    path: `/dev/mapper/${name}`,
    writeTo: {identity: uuid, sizeBytes: diskBytes},
    hang: () => dmsetup('suspend', '--noflush', '--nolockfs', name),
    goOn: () => dmsetup('resume', name),
  }
}
const ok = () => true
const failed = () => false

lab('a device that hangs before the probe of an engine has read from it: stuck', async t => {
  const {path, hang, goOn} = await hangingDevice(t, 'probed')
  await hang()
  try {
    const {state, targets, total} = await start({target: {filename: path}, runtime: 60, stuckMs: 500}).result
    t.is(state, 'stuck')
    t.like(targets[0], {engine: 'io_uring', unanswered: 1})
    t.true(targets[0]!.engineFlags.includes('unprobed'))
    t.is(total.ios, 0)
  } finally {
    await goOn()
  }
})

lab('a cancel ends a run whose probe or opening hangs, and the device is free when it answers', async t => {
  const {path, hang, goOn, writeTo} = await hangingDevice(t, 'cancelled')
  const target = {filename: path, writeTo}
  await hang()
  try {
    // A job that reads hangs in the probe; one that writes where it looks for a signature.
    for (const rw of ['randread', 'randwrite'] as const) {
      const {result, cancel} = start({target, rw, runtime: 60, stuckMs: 3_600_000})
      setTimeout(cancel, 300)
      const outcome = await result.then(
        ({state, total}) => `${state} ${total.ios}`,
        ({code}) => code,
      )
      // Where the machine is busy, the probe may be over by then.
      t.true(['CANCELLED', 'cancelled 0'].includes(outcome), outcome)
    }
  } finally {
    await goOn()
  }
  await until('the device is free', () => exclusively(path))
  t.is((await start({target, rw: 'randwrite', runtime: 0.1}).result).state, 'finished')
})

lab('a device that hangs under writes stays claimed until it has answered them', async t => {
  const {path, hang, goOn, writeTo} = await hangingDevice(t, 'written')
  const job: BenchJob = {target: {filename: path, writeTo}, rw: 'randwrite', iodepth: 4, runtime: 60, stuckMs: 500}
  const first = start(job)
  for await (const {ios} of first.samples) if (ios > 0) break
  await hang()
  try {
    t.is((await first.result).state, 'stuck')
    t.false(await exclusively(path))
    await t.throwsAsync(start(job).result, {code: 'DEVICE_IN_USE'})
  } finally {
    await goOn()
  }
  await until('the device is free', () => exclusively(path))
  t.is((await start({...job, runtime: 0.1}).result).state, 'finished')
})

lab('what the page cache has of a device that hangs does not hold the end of a run up', async t => {
  const {path, hang, goOn, writeTo} = await hangingDevice(t, 'cached')
  const target = {filename: path, writeTo, direct: false}
  const first = start({target, rw: 'randwrite', rate_iops: 100, runtime: 60, stuckMs: 1000})
  for await (const {ios} of first.samples) if (ios > 0) break
  await hang()
  try {
    first.cancel()
    t.is((await first.result).state, 'cancelled')
  } finally {
    await goOn()
  }
  await until('the device is free', () => exclusively(path))
})
