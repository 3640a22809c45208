// Benchmarks as a user runs them, against a real daemon and tgtd: without libvirt, which they do not need.
import {mkdtemp, readFile, realpath, rm, stat, truncate, writeFile} from 'node:fs/promises'
import {request} from 'node:http'
import {tmpdir} from 'node:os'
import {basename, join} from 'node:path'
import anyTest, {type ExecutionContext, type TestFn} from 'ava'
import type {Comparison} from '../../src/bench/compare.js'
import type {BenchResult} from '../../src/bench/result.js'
import type {RunningBench} from '../../src/bench/running.js'
import type {SteadyReport} from '../../src/bench/steady-run.js'
import type {SweepReport} from '../../src/bench/sweep.js'
import {run as execute} from '../../src/exec.js'
import type {KeptEntry} from '../../src/state/bench-results.js'
import {attachLoop, MiB} from '../contract/observe.js'
import {lunpath, start, until} from '../fixtures/cli.js'
import {Node} from '../fixtures/node.js'
import {scrape} from '../fixtures/scrape.js'

const test = anyTest.serial as TestFn

let node: Node
let directory: string
let scratch: {id: string; sizeBytes: number}
test.before(async () => {
  directory = await realpath(await mkdtemp(join(tmpdir(), 'lp-bench-cli-')))
  node = await Node.make()
  await node.start()
  const {volume} = await node.api.call<{volume: {id: string; sizeBytes: number}}>('POST', '/exports', {
    sizeBytes: 16 * MiB,
    name: 'scratch',
  })
  scratch = volume
})
test.after.always(async () => {
  await node?.stop()
  await rm(directory, {recursive: true, force: true})
})

const run = (args: string[]) => lunpath(['--socket', node.socket, ...args])

async function says(t: ExecutionContext, args: string[]): Promise<string> {
  const {exitCode, stdout, stderr} = await run(args)
  t.is(exitCode, 0, `${args.join(' ')}: ${stderr}`)
  return stdout
}

async function json<T>(t: ExecutionContext, args: string[]): Promise<T> {
  return JSON.parse(await says(t, [...args, '--json'])) as T
}

async function refused(t: ExecutionContext, args: string[], code: string, message: RegExp): Promise<void> {
  const {exitCode, stdout} = await run([...args, '--json'])
  t.not(exitCode, 0)
  const {error} = JSON.parse(stdout) as {error: {code: string; message: string}}
  t.is(error.code, code, error.message)
  t.regex(error.message, message)
}

const quick = ['--runtime', '0.2']
const repeat = () => ['--write-to', scratch.id, '--size-is', String(scratch.sizeBytes)]

test('01 a result is kept, listed, and shown in every form', async t => {
  const result = await json<BenchResult & {id: string}>(t, ['bench', 'scratch', ...quick, '--label', 'first'])
  t.like(result, {schema: 2, kind: 'run', state: 'finished'})
  t.like(result.targets[0], {name: 'scratch', engine: 'iscsi', target: {volume: 'scratch', driver: 'tgt'}})
  const [entry] = await json<KeptEntry[]>(t, ['bench', 'list', '--label', 'first'])
  t.like(entry, {id: result.id, label: 'first', targets: ['scratch'], driver: 'tgt', kernel: result.kernel})
  t.regex(await says(t, ['bench', 'list']), new RegExp(`^ID .*\\n${result.id} +first +run +finished +scratch +tgt`))

  const {id, ...kept} = result
  t.deepEqual(await json<unknown>(t, ['bench', 'show', id]), kept)
  t.regex(await says(t, ['bench', 'show', id]), /IOPS \d+.*\n +latency p50/)
  t.regex(await says(t, ['bench', 'show', id, '--format', 'html']), /^<!doctype html>[\s\S]*<svg[\s\S]*<\/html>\n$/)
  t.regex(await says(t, ['bench', 'show', id, '--format', 'csv']), /^from_seconds,.*\r\n[\d.]+,[\d.]+,run,/)
  const fio = JSON.parse(await says(t, ['bench', 'show', id, '--format', 'fio'])) as {
    jobs: {read: {total_ios: number}}[]
  }
  t.is(fio.jobs[0]!.read.total_ios, result.total.ios)

  await says(t, ['bench', 'delete', id])
  await refused(t, ['bench', 'show', id], 'NOT_FOUND', /see lunpath bench list/)
  const before = await json<KeptEntry[]>(t, ['bench', 'list'])
  t.is((await json<{id: null}>(t, ['bench', 'scratch', ...quick, '--no-keep'])).id, null)
  t.deepEqual(await json<KeptEntry[]>(t, ['bench', 'list']), before)
})

test('02 repeated runs are compared; few of them tell nothing', async t => {
  await says(t, ['bench', '--ioengine', 'null', '--runtime', '0.1', '--runs', '4', '--label', 'one', '--iodepth', '1'])
  await says(t, [
    'bench',
    '--ioengine',
    'null',
    '--runtime',
    '0.1',
    '--runs',
    '4',
    '--label',
    'slow',
    '--rate_iops',
    '2000',
  ])
  const comparison = await json<Comparison>(t, ['bench', 'compare', 'one', 'slow'])
  t.like(comparison.metrics[0], {metric: 'IOPS', verdict: 'worse', p: 2 / 70})
  t.true(comparison.differences.some(one => one.startsWith('workload: ')))
  t.regex(
    await says(t, ['bench', 'compare', 'one', 'slow']),
    /IOPS: .*4 runs.*: worse\n[\s\S]*The two sides also differ in:/,
  )
  const [a, b] = await json<KeptEntry[]>(t, ['bench', 'list', '--label', 'one'])
  const few = await json<Comparison>(t, ['bench', 'compare', a!.id, b!.id])
  for (const {verdict} of few.metrics) t.is(verdict, 'too few runs')
  const file = join(directory, 'a.json')
  await writeFile(file, await says(t, ['bench', 'show', a!.id, '--format', 'json']))
  t.is((await json<Comparison>(t, ['bench', 'compare', file, 'slow'])).metrics[0]!.a.runs, 1)
  await refused(t, ['bench', 'compare', '/nonexistent.json', 'slow'], 'INVALID_ARGUMENT', /cannot be compared/)
  await refused(t, ['bench', 'compare', 'nobody', 'slow'], 'NOT_FOUND', /no kept result "nobody"/)
})

test('03 a volume is written to only where its serial and size are repeated', async t => {
  const write = ['bench', 'scratch', '--rw', 'randwrite', ...quick]
  const {path} = node.store.volume('scratch')
  const before = await readFile(path)
  await refused(t, write, 'INVALID_ARGUMENT', new RegExp(`--write-to ${scratch.id} --size-is ${scratch.sizeBytes}`))
  await refused(t, [...write, '--write-to', 'other', '--size-is', '16MiB'], 'IDENTITY_MISMATCH', /Nothing was written/)
  await refused(
    t,
    [...write, '--write-to', scratch.id, '--size-is', '32MiB'],
    'IDENTITY_MISMATCH',
    /Nothing was written/,
  )
  await refused(t, [...write, '--write-to', scratch.id], 'INVALID_ARGUMENT', /together/)
  t.true(before.equals(await readFile(path)))

  const result = await json<BenchResult>(t, [...write, ...repeat(), '--verify', 'crc32c'])
  t.is(result.state, 'finished')
  t.true(result.total.directions.write!.ios > 0)
  t.is(result.targets[0]!.verify!.failures, 0)
  t.false(before.equals(await readFile(path)))
})

test('03a flushes follow the writes of a volume, and are in each form of the result', async t => {
  const flushing = ['bench', 'scratch', '--number_ios', '200', '--iodepth', '4', '--fsync', '10', '--fdatasync', '8']
  await refused(t, flushing, 'INVALID_ARGUMENT', /fsync is for jobs that write: a flush follows each 10 writes/)
  await refused(t, [...flushing, '--rw', 'randwrite'], 'INVALID_ARGUMENT', /This job writes/)
  const result = await json<BenchResult & {id: string}>(t, [...flushing, '--rw', 'randwrite', ...repeat()])
  // After 10, 20, … 190 and after 8, 16, … 192 writes, of which 40, 80, 120 and 160 are both.
  t.like(result.total, {ios: 200, errors: 0, flush: {count: 19 + 24 - 4}})
  t.like(result.targets[0], {engine: 'iscsi', job: {fsync: 10, fdatasync: 8}, workload: {fsync: 10, fdatasync: 8}})
  t.true(result.total.flush!.latency.p99Ns > 0)
  const shown = (format: string) => says(t, ['bench', 'show', result.id, '--format', format])
  t.regex(await shown('text'), /fsync=10 fdatasync=8 [\s\S]*\n {2}flush: 39 {2}p50 /)
  t.regex(await shown('csv'), /^from_seconds,.*,flushes,flush_p50_ns,/)
  const fio = JSON.parse(await shown('fio')) as {jobs: {sync: {total_ios: number}}[]}
  t.is(fio.jobs[0]!.sync.total_ios, 39)
  const toml = join(directory, 'flush.toml')
  await writeFile(toml, 'rw = "randwrite"\nnumber_ios = 50\nfsync = 7\n')
  t.like((await json<BenchResult>(t, ['bench', 'scratch', '--job', toml, ...repeat()])).total, {flush: {count: 7}})
})

test('04 a volume with a session, with a file system, and its path are refused to writers', async t => {
  const write = ['bench', 'scratch', '--rw', 'randwrite', ...quick, ...repeat()]
  const reader = start(['--socket', node.socket, 'bench', 'scratch', '--runtime', '60'])
  await until('it is logged in', async () => (await node.api.call<unknown[]>('GET', '/sessions')).length > 0)
  await refused(t, write, 'TARGET_IN_USE', /is logged in/)
  reader.child.kill('SIGINT')
  await reader.ended
  await until('its session is gone', async () => (await node.api.call<unknown[]>('GET', '/sessions')).length === 0)

  const {path} = node.store.volume('scratch')
  const writeTo = ['--write-to', `inode:${(await stat(path)).ino}`, '--size-is', String(scratch.sizeBytes)]
  await refused(
    t,
    ['bench', '--filename', path, '--rw', 'write', ...quick, ...writeTo],
    'DEVICE_IN_USE',
    /is the volume scratch/,
  )
  await execute('mkfs.ext4', ['-q', path])
  await refused(t, write, 'DEVICE_IN_USE', /holds ext4/)
  await says(t, ['bench', 'scratch', ...quick])
  await execute('wipefs', ['--all', path])
  await says(t, write)
})

test('05 while a volume is written to nothing else happens to it', async t => {
  const writer = start([
    '--socket',
    node.socket,
    'bench',
    'scratch',
    '--rw',
    'randwrite',
    '--runtime',
    '60',
    ...repeat(),
  ])
  t.teardown(() => writer.child.kill('SIGKILL'))
  await until('it runs', async () => (await node.api.call<unknown[]>('GET', '/bench/running')).length > 0)
  await refused(t, ['export', 'delete', 'scratch', '--force'], 'CONFLICT', /is at work on/)
  await refused(t, ['bench', 'scratch', '--rw', 'randwrite', ...quick, ...repeat()], 'CONFLICT', /is at work on/)
  writer.child.kill('SIGINT')
  t.is((await writer.ended).exitCode, 130)
  await until('it is over', async () => (await node.api.call<unknown[]>('GET', '/bench/running')).length === 0)
  await until('its session is gone', async () => (await node.api.call<unknown[]>('GET', '/sessions')).length === 0)
  const last = async () => (await node.api.call<KeptEntry[]>('GET', '/bench/results')).at(-1)!
  await until('what there was is kept', async () => (await last()).state === 'cancelled')
})

test('06 a device of the node, and a mounted one by another name', async t => {
  const image = join(directory, 'disk.raw')
  await writeFile(image, '')
  await truncate(image, 32 * MiB)
  const {device} = await attachLoop(t, image)
  const number = (await readFile(`/sys/class/block/${basename(device)}/dev`, 'utf8')).trim()
  const write = ['bench', '--filename', device, '--rw', 'randrw', ...quick, '--write-to', number, '--size-is', '32MiB']
  t.is((await json<BenchResult>(t, write)).state, 'finished')
  await execute('mkfs.ext4', ['-q', device])
  await refused(t, write, 'DEVICE_IN_USE', /holds ext4/)
  const result = await json<BenchResult>(t, ['bench', '--filename', device, ...quick])
  t.like(result.targets[0], {errors: 0, target: {kind: 'path', path: device}})
})

test('07 job files: TOML with several targets, and one of fio’s', async t => {
  const toml = join(directory, 'job.toml')
  await writeFile(
    toml,
    'name = "two"\nruntime = 0.2\n[[target]]\nvolume = "scratch"\niodepth = 4\n[[target]]\nioengine = "null"\nname = "nothing"\n',
  )
  const two = await json<BenchResult>(t, ['bench', '--job', toml, '--bs', '8k'])
  t.is(two.name, 'two')
  t.deepEqual(
    two.targets.map(({name, iodepth, workload}) => [name, iodepth, workload.bs]),
    [
      ['scratch', 4, '8k'],
      ['nothing', 1, '8k'],
    ],
  )
  const fio = join(directory, 'job.fio')
  await writeFile(
    fio,
    '[global]\nioengine=null\nsize=1g\nruntime=200ms\ntime_based\nnorandommap\n[a]\nrw=randread\n[b]\nstonewall\nrw=read\nbs=64k\n',
  )
  const [a, b] = await json<BenchResult[]>(t, ['bench', '--job', fio])
  t.deepEqual([a!.targets[0]!.name, b!.targets[0]!.name], ['a', 'b'])
  await writeFile(fio, '[a]\nfilename=/dev/sdz\nruntime=1\nend_fsync=1\n')
  await refused(t, ['bench', '--job', fio], 'INVALID_ARGUMENT', /job\.fio:4: end_fsync=1 is not supported/)
  await writeFile(fio, '[a]\nioengine=libaio\niodepth=2\nrw=rand_read\n')
  await refused(
    t,
    ['bench', 'scratch', '--job', fio],
    'INVALID_ARGUMENT',
    /^[^,]*job\.fio:4: rw=rand_read is not one of read,/,
  )
  await refused(t, ['bench', '--job', fio], 'INVALID_ARGUMENT', /job\.fio:/)
  await writeFile(toml, 'volume = "scratch"\niodetph = 4\n')
  await refused(t, ['bench', '--job', toml], 'INVALID_ARGUMENT', /job\.toml: iodetph: /)
})

test('07a options beside --job stand before it, and a volume is measured by the jobs that name nothing', async t => {
  const fio = join(directory, 'volume.fio')
  await writeFile(fio, '[a]\nioengine=libaio\niodepth=2\nbs=8k\nrw=read\nsize=1m\n')
  const result = await json<BenchResult>(t, ['bench', 'scratch', '--job', fio])
  t.like(result.targets[0], {name: 'a', ios: 128, iodepth: 2, target: {volume: 'scratch'}, state: 'finished'})
  t.true(result.notes!.some(note => note.startsWith('a volume is measured over iSCSI: ioengine=libaio')))
  const {iqn} = node.store.exports.get(scratch.id)!
  await writeFile(
    fio,
    `[a]\nioengine=libiscsi\nfilename=iscsi\\://127.0.0.1/${iqn.replaceAll(':', '\\:')}/1\nrw=read\nsize=1m\n`,
  )
  t.like((await json<BenchResult>(t, ['bench', '--job', fio])).targets[0], {ios: 256, target: {volume: 'scratch'}})

  const toml = join(directory, 'two.toml')
  await writeFile(
    toml,
    'runtime = 60\n[[target]]\niodepth = 16\nbs = "4k"\n[[target]]\nioengine = "null"\niodepth = 8\n',
  )
  const options = ['--iodepth', '4', '--bs', '16k', '--runtime', '0.2', '--seed', '18446744073709551615']
  const two = await json<BenchResult>(t, ['bench', 'scratch', '--job', toml, ...options])
  t.deepEqual(
    two.targets.map(({iodepth, workload}) => [iodepth, workload.bs]),
    [
      [4, '16k'],
      [4, '16k'],
    ],
  )
  t.is(two.seed, '18446744073709551615')
  t.true(two.notes!.includes('--iodepth stands before what the job file says'))
  const said = await run(['bench', 'scratch', '--job', toml, ...options])
  t.regex(said.stderr, /note: --iodepth stands before/)
  t.regex(said.stdout, /note: --iodepth stands before/)
  await refused(
    t,
    ['bench', 'scratch', '--job', fio],
    'INVALID_ARGUMENT',
    /scratch would not be measured: leave it out/,
  )
  await refused(t, ['bench', '--job', fio, '--no-direct'], 'INVALID_ARGUMENT', /--no-direct cannot be followed/)
})

test('07b words that would change nothing are refused, and a word that is none of a list is told once', async t => {
  await refused(t, ['bench', 'scratch', '--no-direct'], 'INVALID_ARGUMENT', /A volume has no direct of its own/)
  await refused(
    t,
    ['bench', 'scratch', '--ioengine', 'libaio'],
    'INVALID_ARGUMENT',
    /A volume has no ioengine of its own/,
  )
  const list = {direct: false, target: [{ioengine: 'null'}]}
  await t.throwsAsync(node.api.call('POST', '/bench', list), {message: /A job with a list of targets has no direct/})
  await t.throwsAsync(node.api.call('POST', '/bench', {ioengine: 'null', seed: 2 ** 53}), {code: 'INVALID_ARGUMENT'})
  await t.throwsAsync(node.api.call('POST', '/bench', {ioengine: 'null', rw: 'rand_read'}), {
    message: 'body/rw must be one of read, write, trim, randread, randwrite, randtrim, rw, readwrite, randrw',
  })
})

test('08 a sweep and rounds until steady state, as text and HTML', async t => {
  const nothing = ['bench', '--ioengine', 'null', '--runtime', '0.1']
  const sweep = await json<SweepReport & {id: string}>(t, [...nothing, '--sweep', 'iodepth=1,2,4'])
  t.deepEqual(
    sweep.points.map(({load}) => load),
    [1, 2, 4],
  )
  t.regex(await says(t, ['bench', 'show', sweep.id]), /iodepth +IOPS +mean +p99\n +1 +\d+/)
  t.regex(await says(t, ['bench', 'show', sweep.id, '--format', 'html']), /Knee at iodepth \d/)
  const steady = await run([...nothing, '--rate_iops', '2000', '--until-steady', '6'])
  t.regex(steady.stdout, /round 5: IOPS \d+.*\n[\s\S]*Steady state (NOT )?reached/)
  t.is(steady.exitCode, /NOT reached/.test(steady.stdout) ? 1 : 0)
  const kept = (await json<KeptEntry[]>(t, ['bench', 'list'])).at(-1)!
  t.is(kept.kind, 'steady')
  t.true((await json<SteadyReport>(t, ['bench', 'show', kept.id])).rounds.length >= 5)
  await refused(t, [...nothing, '--sweep', 'iodepth=1,2', '--until-steady'], 'INVALID_ARGUMENT', /not both/)
  await refused(t, [...nothing, '--sweep', 'bs=1,2'], 'INVALID_ARGUMENT', /expected iodepth=/)
})

test('08a what was measured before a failure is in the answer, and is kept', async t => {
  const file = join(directory, 'two.fio')
  const missing = join(directory, 'missing.img')
  const section = (name: string, path: string) => `[${name}]\nfilename=${path}\nstonewall\n`
  const present = join(directory, 'present.img')
  await writeFile(present, '')
  await truncate(present, 16 * MiB)
  await writeFile(
    file,
    `[global]\nruntime=1\ntime_based\ndirect=0\n${section('one', present)}${section('two', missing)}`,
  )
  const {stdout, exitCode} = await run(['bench', '--job', file, '--json'])
  t.is(exitCode, 4, stdout)
  const {error} = JSON.parse(stdout) as {error: {code: string; info: {reports: {id: string; state: string}[]}}}
  t.is(error.code, 'VOLUME_MISSING')
  t.is(error.info.reports.length, 1)
  t.is((await json<KeptEntry[]>(t, ['bench', 'list'])).at(-1)!.id, error.info.reports[0]!.id)
})

/** Events of a request to the API until `enough`. */
function events(path: string, {body, enough}: {body?: object; enough: (text: string) => boolean}): Promise<string> {
  return new Promise((resolve, reject) => {
    const headers = {accept: 'text/event-stream', ...(body ? {'content-type': 'application/json'} : {})}
    const method = body ? 'POST' : 'GET'
    const asked = request({socketPath: node.socket, path: `/v1${path}`, method, headers}, response => {
      let text = `${response.headers['content-type']}\n`
      response.setEncoding('utf8')
      response.on('data', chunk => {
        text += chunk
        if (enough(text)) {
          response.destroy()
          resolve(text)
        }
      })
      response.on('end', () => resolve(text))
    })
    asked.once('error', reject)
    asked.end(body ? JSON.stringify(body) : undefined)
  })
}

test('09 server-sent events of a run, and of all runs for whoever looks on; metrics meanwhile', async t => {
  const looking = events('/bench/events', {enough: text => /event: sample\n/.test(text)})
  const body = {ioengine: 'null', rate_iops: 1000, runtime: 1.5, name: 'watched', keep: false}
  const running = events('/bench', {body, enough: () => false})
  await until('a sample is in', async () =>
    (await node.api.call<RunningBench[]>('GET', '/bench/running')).some(
      ({name, sample}) => name === 'watched' && sample !== null,
    ),
  )
  const {samples} = await scrape(node.metricsPort)
  const rate = samples.find(({name, labels}) => name === 'lunpath_bench_iops' && labels.bench!.startsWith('watched-'))
  t.is(rate!.labels.target, 'null')
  const seen = await looking
  t.regex(
    seen,
    /^text\/event-stream\nevent: running\ndata: \[.*\]\n\n[\s\S]*event: sample\ndata: \{"number":\d+,"name":"watched"/,
  )
  const text = await running
  const all = [...text.matchAll(/event: (\w+)\ndata: (.*)\n\n/g)]
  t.is(all.at(-1)![1], 'result')
  t.like(JSON.parse(all.at(-1)![2]!), {name: 'watched', state: 'finished'})
  const told = all.filter(([, name]) => name === 'sample').map(([, , data]) => JSON.parse(data!))
  t.true(told.length >= 4)
  const rates = told.map(({targets}) => targets[0].iops)
  t.true(rates.includes(rate!.value), `${rate!.value} is none of ${rates.join()}`)
  await until('the metrics know that it is over', async () => {
    const after = (await scrape(node.metricsPort)).samples
    return !after.some(({labels}) => labels.bench?.startsWith('watched-'))
  })
  const ended = (await scrape(node.metricsPort)).samples.filter(({name}) => name === 'lunpath_bench_runs_total')
  t.true(ended.some(({labels, value}) => labels.state === 'finished' && value > 0))
})

test('10 what cannot be measured is refused', async t => {
  await refused(t, ['bench'], 'INVALID_ARGUMENT', /Say what to measure/)
  await refused(t, ['bench', 'scratch', '--filename', '/dev/null'], 'INVALID_ARGUMENT', /one of volume, filename/)
  await refused(t, ['bench', '--filename', '/nonexistent'], 'VOLUME_MISSING', /nonexistent/)
  await refused(t, ['bench', 'scratch', '--rw', 'nonsense'], 'INVALID_ARGUMENT', /Allowed choices/)
  await refused(t, ['bench', 'scratch', '--bssplit', '4k/50'], 'INVALID_ARGUMENT', /sum up to 100/)
  const twice = [{volume: 'scratch'}, {volume: scratch.id, name: 'again', rw: 'write'}]
  await t.throwsAsync(node.api.call('POST', '/bench', {target: twice}), {
    code: 'INVALID_ARGUMENT',
    message: /has it as a target twice/,
  })
  await refused(t, ['bench', 'scratch', '--offset', '1GiB'], 'INVALID_ARGUMENT', /.+/)
})
