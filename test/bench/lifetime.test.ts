import {execFile} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {mkdtemp, readdir, readFile, rm, truncate, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {promisify} from 'node:util'
import {setFlagsFromString} from 'node:v8'
import {runInNewContext} from 'node:vm'
import test from 'ava'
import {DataType, load, open} from 'ffi-rs'
import {attachLoop, MiB} from '../contract/observe.js'
import {until} from '../fixtures/cli.js'
import {dataFile, mixes, nativeTarget, nullDevice, pathDevice, startNative} from '../fixtures/native-bench.js'
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

withLoop('a device that does not answer: stuck, and what hangs in the kernel is left to itself', async t => {
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
  for (const engine of ['io_uring', 'libaio', 'pread'] as const) {
    for (const iodepth of [1, 4]) {
      const target = nativeTarget(pathDevice(path, {engine, direct: true}), {mix: mixes.write, iodepth})
      const {report, underWay} = startNative([target], {runtimeMs: 60_000, stuckMs: 300})
      await underWay
      await run('fsfreeze', ['--freeze', mountPoint])
      try {
        const {state, targets, total} = await report
        t.is(state, 'stuck', `${engine} ${iodepth}`)
        t.true(total.directions.write!.ios > 0)
        t.true(targets[0]!.unanswered >= 1 && targets[0]!.unanswered <= iodepth)
      } finally {
        await run('fsfreeze', ['--unfreeze', mountPoint])
      }
    }
  }
})
