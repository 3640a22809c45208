// The same job file run by fio and by lunpath does the same I/O: as many of each direction, of the same sizes, on the
// same blocks, and as many flushes. Rates and latencies are not compared.
import {mkdtemp, open, realpath, rm, stat, truncate, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import {parseFioFile} from '../../src/bench/fio-file.js'
import type {BenchJob, BenchTarget} from '../../src/bench/job.js'
import type {JobSpec, TargetSpec} from '../../src/bench/job-schema.js'
import type {BenchResult} from '../../src/bench/result.js'
import {start} from '../../src/bench/run.js'
import {run} from '../../src/exec.js'
import {MiB} from '../contract/observe.js'

const fileBytes = 4 * MiB
const blockBytes = 4096

/** I/Os and bytes by direction, of all jobs together, flushes, and which blocks of each file are no zeros any more. */
interface Done {
  read: {ios: number; bytes: number}
  write: {ios: number; bytes: number}
  flushes: number
  touched: number[][]
}

async function emptyFiles(t: ExecutionContext, count: number): Promise<string[]> {
  const directory = await realpath(await mkdtemp(join(tmpdir(), 'lp-parity-')))
  t.teardown(() => rm(directory, {recursive: true}))
  const paths = Array.from({length: count}, (_, index) => join(directory, `file${index}`))
  for (const path of paths) {
    await writeFile(path, '')
    await truncate(path, fileBytes)
  }
  return paths
}

async function touchedBlocks(path: string): Promise<number[]> {
  const handle = await open(path)
  const {buffer} = await handle.read(Buffer.alloc(fileBytes), 0, fileBytes, 0)
  await handle.close()
  const blocks = Array.from({length: fileBytes / blockBytes}, (_, index) => index)
  return blocks.filter(index => buffer.subarray(index * blockBytes, (index + 1) * blockBytes).some(byte => byte !== 0))
}

const withFiles = (text: string, files: string[]) =>
  text.replaceAll('FILE0', files[0]!).replaceAll('FILE1', files[1]!).replaceAll('DIRECTORY', join(files[0]!, '..'))

async function byFio(t: ExecutionContext, text: string): Promise<Done> {
  const files = await emptyFiles(t, 2)
  const path = join(files[0]!, '..', 'job.fio')
  await writeFile(path, withFiles(text, files))
  const {stdout} = await run('fio', ['--output-format=json', `--aux-path=${join(files[0]!, '..')}`, path])
  const {jobs} = JSON.parse(stdout.slice(stdout.indexOf('{\n'))) as {
    jobs: (Record<'read' | 'write', {total_ios: number; io_bytes: number}> & {sync: {lat_ns: {N: number}}})[]
  }
  const sum = (direction: 'read' | 'write') => ({
    ios: jobs.reduce((ios, job) => ios + job[direction].total_ios, 0),
    bytes: jobs.reduce((bytes, job) => bytes + job[direction].io_bytes, 0),
  })
  // Its sync.total_ios leaves fdatasync out.
  const flushes = jobs.reduce((count, {sync}) => count + sync.lat_ns.N, 0)
  return {read: sum('read'), write: sum('write'), flushes, touched: await Promise.all(files.map(touchedBlocks))}
}

async function byLunpath(t: ExecutionContext, text: string): Promise<Done & {results: BenchResult[]}> {
  const files = await emptyFiles(t, 2)
  const results: BenchResult[] = []
  for (const job of parseFioFile(withFiles(text, files), join(files[0]!, '..', 'job.fio')).jobs) {
    const result = await start(await runnable(job)).result
    t.is(result.state, 'finished')
    results.push(result)
  }
  const sum = (direction: 'read' | 'write') => ({
    ios: results.reduce((ios, {total}) => ios + (total.directions[direction]?.ios ?? 0), 0),
    bytes: results.reduce((bytes, {total}) => bytes + (total.directions[direction]?.bytes ?? 0), 0),
  })
  const flushes = results.reduce((count, {total}) => count + (total.flush?.count ?? 0), 0)
  const touched = await Promise.all(files.map(touchedBlocks))
  return {read: sum('read'), write: sum('write'), flushes, touched, results}
}

/** A job as the daemon would run it, with what may be lost. */
async function runnable({target = [], ...job}: JobSpec): Promise<BenchJob> {
  const withIdentity = async (spec: TargetSpec) => {
    if (spec.filename === undefined) return spec as BenchTarget
    const {ino, size} = await stat(spec.filename)
    return {...spec, writeTo: {identity: `inode:${ino}`, sizeBytes: size}} as BenchTarget
  }
  return {...job, target: await Promise.all(target.map(withIdentity))}
}

/** Each is run by both; what is written is not all zeros. */
const forms: Record<string, string> = {
  'a size, once through': '[a]\nfilename=FILE0\nrw=write\nbs=16k\nsize=1m\n',
  'all of a file that is there': '[a]\nfilename=FILE0\nrw=write\nbs=64k\n',
  'more I/O than the size': '[a]\nfilename=FILE0\nrw=write\nbs=16k\nsize=256k\nio_size=1m\n',
  'less I/O than the size': '[a]\nfilename=FILE0\nrw=write\nbs=16k\nsize=1m\nio_size=256k\n',
  'a number of I/Os': '[a]\nfilename=FILE0\nrw=write\nbs=16k\nsize=1m\nnumber_ios=7\n',
  loops: '[a]\nfilename=FILE0\nrw=read\nbs=16k\nsize=1m\nloops=3\n',
  'a percentage as size': '[a]\nfilename=FILE0\nrw=write\nbs=4k\nsize=40%\n',
  'a percentage as offset': '[a]\nfilename=FILE0\nrw=write\nbs=4k\noffset=50%\nsize=1m\n',
  'an offset': '[a]\nfilename=FILE0\nrw=write\nbs=4k\noffset=1m\nsize=1m\n',
  'threads that start at one offset': '[a]\nfilename=FILE0\nrw=write\nbs=64k\nsize=2m\nnumjobs=4\nnumber_ios=3\n',
  'threads with offsets of their own':
    '[a]\nfilename=FILE0\nrw=write\nbs=64k\nsize=1m\noffset_increment=1m\nnumjobs=3\nnumber_ios=2\n',
  'two files': '[a]\nfilename=FILE0:FILE1\nioengine=libaio\niodepth=2\nrw=write\nbs=64k\nsize=1m\n',
  'a file of a directory': '[a]\ndirectory=DIRECTORY\nfilename=file1\nrw=write\nbs=64k\nsize=1m\n',
  'a split beside bs': '[a]\nfilename=FILE0\nbs=4k\nbssplit=64k/100\nrw=write\nsize=1m\n',
  'bs after a split': '[a]\nfilename=FILE0\nbssplit=64k/100\nbs=4k\nrw=write\nsize=1m\n',
  'a range of one size beside bs': '[a]\nfilename=FILE0\nbs=4k\nbsrange=64k-64k\nrw=write\nsize=1m\n',
  'a section that begins with "global"': '[global-defaults]\nbs=64k\nsize=1m\n[a]\nfilename=FILE0\nrw=write\n',
  'one section twice':
    '[a]\nfilename=FILE0\nrw=write\nbs=64k\nsize=1m\n[a]\nfilename=FILE1\nrw=write\nbs=32k\nsize=1m\n',
  'time_based without a runtime': '[a]\nfilename=FILE0\nrw=write\nbs=64k\nsize=1m\ntime_based\n',
  'other names of options': '[a]\nfilename=FILE0\nreadwrite=write\nblocksize=64k\nsize=1m\nio_limit=512k\n',
  'one job after another':
    '[global]\nfilename=FILE0\nbs=64k\nsize=1m\n[w]\nrw=write\n[r]\nstonewall\nrw=read\nbs=16k\n',
  'no I/O at all, with depth': '[a]\nioengine=null\nsize=8m\nbs=4k\niodepth=16\nrw=randread\nnorandommap\n',
  'an engine that waits for each I/O': '[a]\nfilename=FILE0\nioengine=psync\niodepth=32\nrw=write\nbs=64k\nsize=1m\n',
  'a file size beside the size': '[a]\nfilename=FILE0\nfilesize=2m\nsize=512k\nrw=write\nbs=64k\n',
  'a flush after so many writes': '[a]\nfilename=FILE0\nrw=write\nbs=16k\nsize=1m\nfsync=4\n',
  'a flush after each write': '[a]\nfilename=FILE0\nrw=write\nbs=64k\nsize=1m\nfsync=1\n',
  'a flush that the last write is too early for': '[a]\nfilename=FILE0\nrw=write\nbs=64k\nsize=1m\nfsync=16\n',
  'flushes of data': '[a]\nfilename=FILE0\nrw=write\nbs=16k\nsize=1m\nfdatasync=7\nio_size=512k\n',
  'flushes of both kinds': '[a]\nfilename=FILE0\nrw=write\nbs=16k\nsize=1m\nfsync=4\nfdatasync=6\n',
  'flushes of both kinds after as many writes':
    '[a]\nfilename=FILE0\nrw=write\nbs=16k\nsize=1m\nfsync=5\nfdatasync=5\n',
  'flushes up to a number of I/Os': '[a]\nfilename=FILE0\nrw=write\nbs=16k\nsize=1m\nfsync=2\nnumber_ios=7\n',
  'flushes of each thread': '[a]\nfilename=FILE0\nrw=write\nbs=16k\nsize=1m\nfsync=3\nnumjobs=2\n',
  'flushes with several I/Os in flight':
    '[a]\nfilename=FILE0\nioengine=libaio\niodepth=8\ndirect=1\nrw=write\nbs=16k\nsize=1m\nfsync=4\n',
  'flushes through io_uring, one I/O in flight':
    '[a]\nfilename=FILE0\nioengine=io_uring\nrw=write\nbs=16k\nsize=1m\nfsync=4\n',
  'flushes of nothing at all': '[a]\nioengine=null\nsize=8m\nbs=4k\nrw=write\nfsync=10\n',
  'flushes in what only reads': '[a]\nfilename=FILE0\nrw=read\nbs=64k\nsize=1m\nfsync=4\n',
  'flushes at a rate': '[a]\nfilename=FILE0\nrw=write\nbs=64k\nsize=1m\nfsync=4\nrate_iops=200\n',
  'flushes between what is verified': '[a]\nfilename=FILE0\nrw=write\nbs=64k\nsize=1m\nfsync=4\nverify=crc32c\n',
  'a size that is no multiple of the block': '[a]\nfilename=FILE0\nrw=write\nbs=64k\nsize=1000k\nnumber_ios=15\n',
  'all of a file that blocks do not fill': '[a]\nfilename=FILE0\nrw=write\nbs=48k\n',
  'no I/O at all, of odd bytes': '[a]\nioengine=null\nsize=20000\nrw=read\n',
  'holes, once through a part of a file': '[a]\nfilename=FILE0\nrw=write:64k\nbs=16k\nsize=1m\n',
  'holes, as many bytes as the file has': '[a]\nfilename=FILE0\nrw=write:16k\nbs=16k\n',
  backwards: '[a]\nfilename=FILE0\nrw=write:-128k\nbs=64k\nnumber_ios=9\n',
  'backwards through all of it': '[a]\nfilename=FILE0\nrw=write:-128k\nbs=64k\n',
  'a random map: each block once': '[a]\nfilename=FILE0\nrw=randwrite\nbs=4k\nsize=2m\noffset=1m\n',
  'a random map that blocks do not fill': '[a]\nfilename=FILE0\nrw=randwrite\nbs=48k\nsize=1m\n',
  'a random map of each thread': '[a]\nfilename=FILE0\nrw=randwrite\nbs=16k\nsize=1m\nnumjobs=2\n',
  'a random map, three times': '[a]\nfilename=FILE0\nrw=randwrite\nbs=16k\nsize=1m\nloops=3\n',
  'a random map, read and written': '[a]\nfilename=FILE0\nrw=randread\nbs=16k\nsize=1m\n',
  'no random I/Os in a random pattern':
    '[a]\nfilename=FILE0\nrw=randwrite\npercentage_random=0\nnorandommap\nbs=16k\nsize=1m\n',
  'all in one zone':
    '[a]\nfilename=FILE0\nrw=randwrite\nnorandommap\nrandom_distribution=zoned:0/50:100/1:0/49\nbs=4k\nnumber_ios=500\n',
  'a start of its own': '[global]\nbs=64k\nsize=1m\nrw=write\n[a]\nfilename=FILE0\n[b]\nfilename=FILE1\nstartdelay=1\n',
  'the engine vsync': '[a]\nfilename=FILE0\nioengine=vsync\nrw=write\nbs=64k\nsize=1m\n',
  'another checksum': '[a]\nfilename=FILE0\nrw=write\nbs=64k\nsize=1m\nverify=sha1\n',
  'files by a format':
    '[a]\ndirectory=DIRECTORY\nfilename_format=file$filenum\nnrfiles=2\nioengine=libaio\niodepth=2\nrw=write\nbs=64k\nsize=2m\n',
  'verification of what was written': '[a]\nfilename=FILE0\nrw=write\nbs=64k\nsize=1m\nverify=crc32c\n',
}
for (const [title, text] of Object.entries(forms)) {
  test.serial(`as fio does it: ${title}`, async t => {
    const [fio, {results, ...lunpath}] = [await byFio(t, text), await byLunpath(t, text)]
    t.true(fio.read.ios + fio.write.ios > 0)
    if (text.includes('verify')) {
      // fio counts what it reads back as reads.
      t.is(results[0]!.targets[0]!.verify!.verified, fio.read.ios)
      t.deepEqual([lunpath.write, lunpath.flushes, lunpath.touched], [fio.write, fio.flushes, fio.touched])
    } else t.deepEqual(lunpath, fio)
  })
}

/** At random places, and so of each form what holds wherever those are: how many blocks of 4 KiB lie side by side there. */
const atRandom: Record<string, [text: string, runs: number[]]> = {
  'a run of I/Os at a random offset': [
    '[a]\nfilename=FILE0\nrw=randwrite:8\nnorandommap\nbs=16k\nnumber_ios=8\n',
    [32],
  ],
  'one I/O again and again': [
    '[a]\nfilename=FILE0\nrw=randwrite:99\nrw_sequencer=identical\nnorandommap\nbs=16k\nnumber_ios=63\n',
    [4],
  ],
  'offsets that are multiples of more than a block': [
    '[a]\nfilename=FILE0\nrw=randwrite\nnorandommap\nba=512k\nbs=4k\nnumber_ios=500\n',
    Array(8).fill(1),
  ],
  'offsets of a direction with larger blocks': [
    '[a]\nfilename=FILE0\nrw=randrw\nnorandommap\nbs=4k,512k\nrwmixread=10\nio_size=1g\nnumber_ios=200\n',
    [1024],
  ],
}
for (const [title, [text, runs]] of Object.entries(atRandom)) {
  test.serial(`as fio does it: ${title}`, async t => {
    for (const done of [await byFio(t, text), await byLunpath(t, text)]) t.deepEqual(runsOf(done.touched[0]!), runs)
  })
}

function runsOf(blocks: number[]): number[] {
  const begins = blocks.filter((block, index) => block !== (blocks[index - 1] ?? -2) + 1)
  return begins.map((begin, index) => blocks.filter(at => at >= begin && at < (begins[index + 1] ?? Infinity)).length)
}

/** What fio refuses, lunpath refuses too. */
const refused: Record<string, string> = {
  'words for 0 and 1': 'direct=false',
  'a pattern that is none': 'rw=rand_read',
  'a rate in two ways': 'rate=1m\nrate_iops=10',
  'an option that is none': 'nonsense=1',
  'a beginning of a word': 'rw=r',
  'zones that do not add up': 'rw=randread\nrandom_distribution=zoned:60/10:30/90',
  'zones larger than all': 'rw=randread\nrandom_distribution=zoned:60/10:40/95',
  // biome-ignore lint/suspicious/noTemplateCurlyInString: it is fio's
  'a variable that is not set': 'rw=${LP_FIO_UNSET}',
}
for (const [title, lines] of Object.entries(refused)) {
  test.serial(`as fio refuses it: ${title}`, async t => {
    const text = `[a]\nfilename=FILE0\nsize=64k\n${lines}\n`
    await t.throwsAsync(byFio(t, text))
    await t.throwsAsync(byLunpath(t, text), {code: 'INVALID_ARGUMENT', message: /job\.fio:\d+: /})
  })
}

test.serial('a flush is done once each time, where fio 3.33 repeats it, and a note says so', async t => {
  const text = '[a]\nfilename=FILE0\nrw=rw\nbs=16k\nsize=4m\nfsync=5\n'
  const [fio, lunpath] = [await byFio(t, text), await byLunpath(t, text)]
  const {ios} = lunpath.write
  t.true([Math.floor((ios - 1) / 5), Math.floor(ios / 5)].includes(lunpath.flushes), `${lunpath.flushes} after ${ios}`)
  t.true(fio.flushes > Math.floor(fio.write.ios / 5), `${fio.flushes} after ${fio.write.ios}`)
  t.true(lunpath.results[0]!.notes!.some(note => note.startsWith('fsync=5: lunpath flushes once each time')))
})

test.serial('psync with iodepth=32 has one I/O in flight and no pool', async t => {
  const text = '[a]\nfilename=FILE0\nioengine=psync\niodepth=32\nrw=read\nbs=4k\nsize=1m\n'
  const {results} = await byLunpath(t, text)
  t.like(results[0]!.targets[0], {engine: 'pread', iodepth: 1, engineFlags: []})
  t.true(results[0]!.notes!.some(note => note.startsWith('iodepth=32 has no effect')))
})

test.serial('a target with a startdelay begins so much later, and its time is its own', async t => {
  const begun = performance.now()
  const {results} = await byLunpath(t, forms['a start of its own']!)
  const wallSeconds = (performance.now() - begun) / 1000
  const [, late] = results[0]!.targets
  t.like(late, {name: 'b', job: {startdelay: 1}})
  t.true(late!.elapsedSeconds! + 1 < wallSeconds, `${late!.elapsedSeconds} s of ${wallSeconds} s`)
})

test.serial('a target that ends before another has rates of its own time', async t => {
  const text = '[global]\nioengine=null\nruntime=1\n[short]\nsize=1m\nnumber_ios=5\n[long]\nsize=1g\ntime_based\n'
  const {results} = await byLunpath(t, text)
  const [short, long] = results[0]!.targets
  t.is(short!.ios, 5)
  t.true(short!.elapsedSeconds! < results[0]!.elapsedSeconds / 2, `${short!.elapsedSeconds}`)
  t.is(short!.iops, 5 / short!.elapsedSeconds!)
  t.is(long!.elapsedSeconds, undefined)
  t.is(long!.iops, long!.ios / results[0]!.elapsedSeconds)
})
