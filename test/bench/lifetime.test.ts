import {execFile, spawn} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {once} from 'node:events'
import {mkdtemp, readdir, readFile, rm, stat, truncate, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {promisify} from 'node:util'
import {setFlagsFromString} from 'node:v8'
import {runInNewContext} from 'node:vm'
import test, {type ExecutionContext} from 'ava'
import {DataType, load, open} from 'ffi-rs'
import type {BenchJob} from '../../src/bench/job.js'
import {start} from '../../src/bench/run.js'
import {packageRoot} from '../../src/native.js'
import {attachLoop, MiB} from '../contract/observe.js'
import {exclusively} from '../fixtures/claims.js'
import {until} from '../fixtures/cli.js'
import {compiled} from '../fixtures/compiled.js'
import {dataFile, mixes, nativeTarget, nullDevice, pathDevice, startNative} from '../fixtures/native-bench.js'
import {tmpfs} from '../fixtures/tmpfs.js'
import {withLoop} from '../fixtures/with-loop.js'

const run = promisify(execFile)
setFlagsFromString('--expose_gc')
const gc = runInNewContext('gc') as () => void

async function countIn(directory: string): Promise<number> {
  return (await readdir(directory)).length
}

open({library: 'libc', path: 'libc.so.6'})

/** What the allocator keeps of memory that was freed is given back first (malloc_trim(3)): tens of MB in its many arenas. */
async function residentBytes(): Promise<number> {
  void load({
    library: 'libc',
    funcName: 'malloc_trim',
    retType: DataType.I32,
    paramsType: [DataType.I32],
    paramsValue: [0],
  })
  const [, pages] = (await readFile('/proc/self/statm', 'utf8')).split(' ')
  return Number(pages) * 4096
}

test.serial('a thousand runs that are started and cancelled leave nothing behind', async t => {
  const devices = [nullDevice, pathDevice(await dataFile(t, MiB), {engine: 'io_uring'})]
  const startAndCancel = async (times: number) => {
    for (let i = 0; i < times; i++) {
      const targets = [nativeTarget(devices[i % 2]!, {iodepth: 8})]
      const {report, cancel} = startNative(targets, {runtimeMs: 60_000})
      if (i % 3 === 0) await sleep(1)
      cancel()
      const state = await report.then(
        ({state}) => state,
        error => error.code,
      )
      t.true(['cancelled', 'ECANCELED'].includes(state), state)
    }
    gc()
    await sleep(50)
    gc()
  }
  await startAndCancel(100)
  const before = {
    fds: await countIn('/proc/self/fd'),
    threads: await countIn('/proc/self/task'),
    rss: await residentBytes(),
  }
  await startAndCancel(1000)
  while ((await countIn('/proc/self/task')) > before.threads) await sleep(10)
  while ((await countIn('/proc/self/fd')) > before.fds) {
    gc()
    await sleep(10)
  }
  // A run holds more than 200 kB of histograms: a thousand that leaked would be 200 MB. V8's own heap grows by some 10.
  const grown = (await residentBytes()) - before.rss
  t.log(`${(grown / MiB).toFixed(1)} MiB more`)
  // AddressSanitizer keeps what was freed for a while, so that a use of it is found.
  if (process.env.ASAN_OPTIONS === undefined) t.true(grown < 40 * MiB, `${grown} bytes`)
})

test.serial('a cancel ends a run soon, with what there is', async t => {
  const file = await dataFile(t, MiB)
  for (const engine of ['io_uring', 'libaio', 'pread'] as const) {
    const {report, cancel, underWay} = startNative([nativeTarget(pathDevice(file, {engine}), {iodepth: 4})], {
      runtimeMs: 3_600_000,
    })
    await underWay
    const began = performance.now()
    cancel()
    const {state, total} = await report
    t.log(`${engine}: ${(performance.now() - began).toFixed(1)} ms`)
    t.is(state, 'cancelled')
    t.true(total.directions.read!.ios > 0)
  }
})

test.serial('runs at once, with the garbage collector at work, do not disturb each other', async t => {
  const rate = {kind: 'fixed', iops: 2000} as const
  const runs = [1, 2, 3].map(() => startNative([nativeTarget(nullDevice, {rate})], {runtimeMs: 1000}).report)
  for (let i = 0; i < 20; i++) {
    gc()
    await sleep(20)
  }
  for (const report of await Promise.all(runs)) t.is(report.total.directions.read!.ios, 2000)
})

test.serial('the event loop goes on while a run is at full speed', async t => {
  const {report} = startNative([nativeTarget(nullDevice, {iodepth: 32})], {runtimeMs: 500})
  let turns = 0
  let over = false
  const finished = report.finally(() => {
    over = true
  })
  while (!over) {
    await sleep(1)
    turns++
  }
  await finished
  // Some 400 on an idle machine, 1 where the loop stands still.
  t.true(turns > 10, `${turns} turns in 500 ms`)
})

/** A file system on a loop device, with a file in it. */
async function freezableFile(t: ExecutionContext) {
  const directory = await mkdtemp(join(tmpdir(), 'bench-frozen-'))
  t.teardown(() => rm(directory, {recursive: true, force: true}))
  const image = join(directory, 'image')
  await writeFile(image, '')
  await truncate(image, 64 * MiB)
  await run('mkfs.ext4', ['-q', image])
  const {device} = await attachLoop(t, image)
  const mountPoint = await mkdtemp(join(directory, 'mount-'))
  await run('mount', [device, mountPoint])
  // Threads that were left to themselves have the file open until the device has answered them.
  const unmount = () =>
    run('umount', [mountPoint]).then(
      () => true,
      () => false,
    )
  t.teardown(() => until('nobody has a file of the mount open', unmount))
  const path = join(mountPoint, 'data')
  await writeFile(path, randomBytes(MiB))
  return {
    path,
    freeze: () => run('fsfreeze', ['--freeze', mountPoint]),
    thaw: () => run('fsfreeze', ['--unfreeze', mountPoint]),
  }
}

withLoop('a device that does not answer: stuck, and what hangs in the kernel is left to itself', async t => {
  const {path, freeze, thaw} = await freezableFile(t)
  for (const engine of ['io_uring', 'libaio', 'pread'] as const) {
    for (const iodepth of [1, 4]) {
      const target = nativeTarget(pathDevice(path, {engine, direct: true}), {mix: mixes.write, iodepth})
      const {report, underWay} = startNative([target], {runtimeMs: 60_000, stuckMs: 300})
      await underWay
      await freeze()
      try {
        const {state, targets, total} = await report
        t.is(state, 'stuck', `${engine} ${iodepth}`)
        t.true(total.directions.write!.ios > 0)
        t.true(targets[0]!.unanswered >= 1 && targets[0]!.unanswered <= iodepth)
      } finally {
        await thaw()
      }
    }
  }
})

withLoop('a file is free for another writer when the last write of a run has landed, not before', async t => {
  const {path, freeze, thaw} = await freezableFile(t)
  const writeTo = {identity: `inode:${(await stat(path)).ino}`, sizeBytes: MiB}
  for (const ioengine of ['io_uring', 'libaio', 'pread'] as const) {
    const job: BenchJob = {target: {filename: path, writeTo, ioengine}, rw: 'randwrite', iodepth: 4, stuckMs: 300}
    const first = start({...job, runtime: 60})
    for await (const {ios} of first.samples) if (ios > 0) break
    await freeze()
    try {
      const {state, targets} = await first.result
      t.is(state, 'stuck', ioengine)
      t.true(targets[0]!.unanswered >= 1)
      await t.throwsAsync(start({...job, runtime: 0.1}).result, {
        code: 'DEVICE_IN_USE',
        message: /has I\/Os of an earlier benchmark in flight/,
      })
    } finally {
      await thaw()
    }
    const again = () => start({...job, runtime: 0.1}).result.catch(({code}) => code as string)
    const second = await until('the file is free', async () => {
      const outcome = await again()
      return outcome !== 'DEVICE_IN_USE' && outcome
    })
    t.is(typeof second === 'string' ? second : second.state, 'finished')
  }
})

/** Of the runs of this process: the threads that do the I/O. */
async function benchThreads(): Promise<string[]> {
  const threads = await readdir('/proc/self/task')
  const names = await Promise.all(
    threads.map(thread => readFile(`/proc/self/task/${thread}/comm`, 'utf8').catch(() => '')),
  )
  return threads.filter((_, index) => names[index] === 'lunpath-bench\n')
}

/** Holds a thread where it is until the returned function is called. */
async function stopThread(thread: string): Promise<() => Promise<void>> {
  const source = join(packageRoot(), 'test', 'fixtures', 'stop-thread.c')
  const path = join(packageRoot(), '.cache', 'test', 'stop-thread')
  const program = await compiled(path, {compiler: 'cc', args: ['-O1', '-Wall', '-Werror', source], sources: [source]})
  const child = spawn(program, [thread], {stdio: ['pipe', 'pipe', 'inherit']})
  const [line] = await once(child.stdout, 'data')
  if (String(line) !== 'stopped\n') throw new Error(`stop-thread: ${line}`)
  return async () => {
    const exited = once(child, 'exit')
    child.stdin.end()
    await exited
  }
}

/**
 * Stops a thread of a run in its own code, and not in a system call: there it holds its turnstile, and nobody gets at it.
 * Of a thread outside of a system call proc(5) says -1 for the number of one.
 */
async function stopInItsCode(thread: string): Promise<() => Promise<void>> {
  for (;;) {
    const goOn = await stopThread(thread)
    if ((await readFile(`/proc/self/task/${thread}/syscall`, 'utf8')).startsWith('-1 ')) return goOn
    await goOn()
  }
}

withLoop('a thread that cannot be stopped keeps its device until it ends, and adds nothing to the report', async t => {
  const image = await dataFile(t, 16 * MiB, tmpfs)
  const {device} = await attachLoop(t, image)
  const blocks = [{bytes: 65_536, percent: 100}]
  for (const engine of ['pread', 'io_uring', 'libaio'] as const) {
    for (let round = 0; round < 3; round++) {
      const path = pathDevice(device, {engine, direct: true, exclusive: true})
      const target = nativeTarget(path, {
        mix: mixes.write,
        blockSizes: {read: blocks, write: blocks, trim: []},
        verify: 'crc32c',
        iodepth: engine === 'pread' ? 1 : 64,
      })
      const before = await benchThreads()
      const {report, cancel, underWay, samples} = startNative([target], {runtimeMs: 60_000})
      await underWay
      const [thread] = (await benchThreads()).filter(one => !before.includes(one))
      const goOn = await stopInItsCode(thread!)
      try {
        cancel()
        const {state, targets, total} = await report
        t.is(state, 'cancelled')
        const written = samples.reduce((ios, sample) => ios + sample.total.directions.write!.ios, 0)
        t.is(total.directions.write!.ios, written)
        t.true(targets[0]!.unanswered <= target.iodepth)
        t.false(await exclusively(device), `${engine}: the device is free while a thread may write to it`)
      } finally {
        await goOn()
      }
      await until('the device is free', () => exclusively(device))
      const after = await readFile(image)
      await until('the thread has ended', async () => !(await benchThreads()).includes(thread!))
      t.true(after.equals(await readFile(image)), `${engine}: something was written after the device was free`)
    }
  }
})
