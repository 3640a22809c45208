// fio's job files as lunpath reads them. test/bench/fio-parity.test.ts runs the same forms in fio and in lunpath.
import {mkdtempSync, rmSync, writeFileSync} from 'node:fs'
import {availableParallelism, tmpdir} from 'node:os'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import {parseFioFile} from '../../src/bench/fio-file.js'
import type {TargetSpec} from '../../src/bench/job-schema.js'
import {fioGrammar, parseTime} from '../../src/bench/quantity.js'
import {run} from '../../src/exec.js'

function directory(t: ExecutionContext): string {
  const path = mkdtempSync(join(tmpdir(), 'lp-fio-'))
  t.teardown(() => rmSync(path, {recursive: true}))
  return path
}

/** Lines for one job on /x of 1 s, in which I/Os are drawn as in fio. */
const timed = 'filename=/x\nioengine=libaio\ndirect=1\nruntime=1\ntime_based\nnorandommap\n'
const jobsOf = (text: string) => parseFioFile(text, 'job.fio').jobs
const targetsOf = (text: string) => jobsOf(text).flatMap(({target}) => target!)
const one = (lines: string) => targetsOf(`[a]\n${timed}${lines}`)[0]!
const notesOf = (lines: string) => parseFioFile(`[a]\n${timed}${lines}`, 'job.fio').notes
const named = (targets: TargetSpec[]) => targets.map(({name}) => name)

const mixed = `; a common job file
[global]
ioengine=libaio
direct=1
bs=4k
runtime=30        # seconds
time_based
group_reporting
norandommap

[reads]
filename=/dev/sdb:/dev/disk/by-path/pci-0000\\:00
rw=randread
iodepth=32
numjobs=4
rate_iops=500

[writes]
filename=/dev/sdc
readwrite=randrw
rwmixwrite=30
bssplit=4k/60:64k/40,8k
size=1g
offset=4m
thinktime=2ms
random_distribution=zipf:1.1
`

test("a common job file of fio's", t => {
  const {jobs, notes} = parseFioFile(mixed, 'a.fio')
  t.is(jobs.length, 1)
  const [job] = jobs
  t.is(job!.runtime, 30)
  const common = {ioengine: 'libaio' as const, direct: true, continue_on_error: 'none' as const}
  const reads = {...common, bs: '4096', rw: 'randread' as const, iodepth: 16, numjobs: 4, rate_iops: 1000}
  t.deepEqual(job!.target, [
    {...reads, name: 'reads.0', filename: '/dev/sdb'},
    {...reads, name: 'reads.1', filename: '/dev/disk/by-path/pci-0000:00'},
    {
      ...common,
      name: 'writes',
      filename: '/dev/sdc',
      rw: 'randrw',
      rwmixread: 70,
      bssplit: '4096/60:65536/40,8192',
      size: 2 ** 30,
      offset: 4 * 2 ** 20,
      thinktime: 2000,
      random_distribution: 'zipf:1.1',
      numjobs: 1,
    },
  ])
  t.deepEqual(notes, [
    'rate_iops is open loop in lunpath: I/Os are due at their time, also where the device is late',
    '[reads] has 2 files: fio goes round them with 32 I/Os in flight; lunpath has 16 on each, and 8 threads',
  ])
  t.deepEqual(job!.notes, notes, 'they go into the result')
})

const refusals: Record<string, [line: string, message: RegExp]> = {
  'a word that nobody knows': ['nonsense', /^job\.fio:8: nonsense is not understood/],
  'an engine that lunpath has not': ['ioengine=rbd', /^job\.fio:8: ioengine=rbd is not supported: psync, /],
  'a verification that lunpath has not': ['verify=meta', /^job\.fio:8: verify=meta is not supported: lunpath writes/],
  'a verification in parts': ['rw=write\nverify=md5\nverify_backlog=32', /^job\.fio:10: verify_backlog=32 is not supp/],
  'a size that is none': ['bs=4x', /^job\.fio:8: bs: "4x"/],
  'a size of odd bytes': ['bs=2300', /^job\.fio:8: bs: 2300 is 2300 bytes, which is no multiple of 512/],
  'more than all of a device': ['size=150%', /^job\.fio:8: size: /],
  'a depth that is no number': ['iodepth=many', /^job\.fio:8: iodepth=many: a whole number/],
  'a depth beyond what there is': ['iodepth=5000', /^job\.fio:8: iodepth is a whole number from 1 to 1024/],
  'a pattern that is none': ['rw=rand_read', /^job\.fio:8: rw=rand_read is not one of read, write, trim, randread/],
  'a step that is none': ['rw=read:8x', /^job\.fio:8: rw=read:8x: the bytes between two I\/Os/],
  'a step of odd bytes': ['rw=read:1000', /^job\.fio:8: rw=read:1000: .* multiple of 512/],
  'a number of I/Os that is none': ['rw=randread:x', /^job\.fio:8: rw=randread:x: the number of I\/Os/],
  'two shares of random I/Os': [
    'rw=randrw\npercentage_random=50,20',
    /^job\.fio:9: percentage_random=50,20: lunpath has one/,
  ],
  'errors that stop the one and not the other': [
    'rw=rw\ncontinue_on_error=read',
    /^job\.fio:9: continue_on_error=read: errors of reads and writes both/,
  ],
  'a join of I/Os': ['ioengine=vsync\niodepth=4\nrw=read', /^job\.fio:9: iodepth=4: vsync makes one of so many/],
  'a part of a second': ['runtime=1.5s', /^job\.fio:8: runtime=1\.5s: fio takes whole numbers/],
  'a pattern that lunpath has not': ['rw=trimwrite', /^job\.fio:8: rw=trimwrite is not supported/],
  'words for 0 and 1': ['direct=false', /^job\.fio:8: direct=false: 0 or 1 is expected/],
  'other numbers than 0 and 1': ['direct=2', /^job\.fio:8: direct=2: 0 or 1 is expected/],
  'a word that stands alone and must not': ['direct', /^job\.fio:8: direct: 0 or 1 is expected/],
  'a word of filename_format elsewhere': ['iodepth=$jobnum', /^job\.fio:8: iodepth=\$jobnum: a whole number/],
  'a seed beyond 64 bits': ['randseed=18446744073709551616', /^job\.fio:8: randseed=18446744073709551616/],
  'percents beyond 100': ['rwmixread=101\nrw=rw', /^job\.fio:8: rwmixread is a percentage/],
  'a split that does not add up': ['bssplit=4k/60:8k/30', /^job\.fio:8: bssplit is SIZE\/PERCENT/],
  'a range of too many sizes': ['bsrange=512-2m', /^job\.fio:8: bsrange=512-2m: SMALLEST-LARGEST/],
  'two alignments': ['rw=randrw\nba=8k,4k', /^job\.fio:9: ba=8k,4k: lunpath has one for all directions/],
  'zones that do not add up': [
    'rw=randread\nrandom_distribution=zoned:60/10:30/90',
    /^job\.fio:9: random_distribution=zoned is ACCESS\/SIZE/,
  ],
  'zones in bytes': ['rw=randread\nrandom_distribution=zoned_abs:100/1g', /^job\.fio:9: random_distribution is random/],
  'a pause in open loop': ['rate_iops=10\nthinktime=5', /^job\.fio:9: thinktime is for closed loop/],
  'a rate of reads alone': ['rw=randrw\nrate_iops=50,0', /^job\.fio:9: rate_iops=50,0: reads and writes both/],
  'a rate in two ways': ['rate_iops=50\nrate=1m', /^job\.fio:8: rate and rate_iops exclude each other/],
  'a rate that is none': ['rate_iops=fast', /^job\.fio:8: rate_iops=fast: up to three numbers/],
  'a flush at the end': ['end_fsync=1', /^job\.fio:8: end_fsync=1 is not supported: lunpath flushes between writes/],
  'a flush of a part': ['sync_file_range=write:8', /^job\.fio:8: sync_file_range=write:8 is not supported/],
  'flushes after a number that is none': ['fsync=often', /^job\.fio:8: fsync=often: a whole number is expected/],
  'flushes after more writes than anybody counts': [
    'rw=write\nfdatasync=2g',
    /^job\.fio:9: fdatasync is a whole number from 0 to 1000000000/,
  ],
  'a way to sync that is none': ['sync=fast', /^job\.fio:8: sync=fast is not one of 0, 1, none, sync, dsync/],
  zones: ['zonemode=strided', /^job\.fio:8: zonemode=strided is not supported: lunpath has no zones/],
  'jobs that wait for each other': [
    'flow_id=1\nflow=8',
    /^job\.fio:8: flow_id=1 is not supported: jobs of lunpath do not/,
  ],
  'a delay that is drawn': ['startdelay=4-8', /^job\.fio:8: startdelay=4-8 is not supported: lunpath draws no delays/],
  'a verification of what is only read': ['verify=crc32c\nrw=read', /^job\.fio:8: verify is for jobs that write/],
  'discards by libaio': ['rw=trim', /^job\.fio:3: ioengine=libaio has no discard/],
  'files that do not share the depth evenly': [
    'filename=/x:/y\niodepth=3',
    /^job\.fio:9: \[a\] has 2 files and 3 I\/Os/,
  ],
  'a file that is not there to include': ['include no-such.fio', /^job\.fio:8: no-such\.fio cannot be included/],
  'steady state': [
    'ss=iops:10%',
    /^job\.fio:8: steadystate=iops:10% is not supported: use lunpath bench --until-steady/,
  ],
}
for (const [title, [lines, message]] of Object.entries(refusals)) {
  test(`refused by file and line: ${title}`, t => {
    const error = t.throws(() => one(lines), {message})
    t.false(error.message.includes('\n'))
  })
}

test('refused by file and line: what is wrong with sections', t => {
  const refused = (text: string, message: RegExp) =>
    t.throws(() => parseFioFile(text, 'b.fio'), {code: 'INVALID_ARGUMENT', message})
  refused('[a]\nruntime=1\n', /^b\.fio:1: \[a\] has no filename, and lunpath makes no files/)
  refused('bs=4k\n', /^b\.fio:1: .*before the first section/)
  refused('[global]\nbs=4k\n', /^b\.fio:1: there is no section besides \[global\]/)
  refused('[a]\nfilename=/x\nruntime=1\n[b]\nfilename=/y\nruntime=2\n', /^b\.fio:6: \[b\]: runtime differs/)
  refused(
    '[a]\nfilename=/x\nrw=write\n[b]\nfilename=/x\nrw=write\n',
    /^b\.fio:6: \[b\]: two jobs beside each other write to \/x/,
  )
  refused(
    '[a]\nfilename=/x\nexitall\n[b]\nfilename=/y\n',
    /^b\.fio:3: exitall is supported where all jobs are time_based/,
  )
  refused(
    '[a]\nfilename=/x\n[b]\nfilename=/y\n[c]\nfilename=/z\nwait_for=a\n',
    /^b\.fio:7: wait_for=a: only the job right before/,
  )
  refused(
    '[a]\nfilename=/x\n[b]\nfilename=/y\nstartdelay=4\n[c]\nfilename=/z\nstonewall\n',
    /^b\.fio:5: startdelay=4: with/,
  )
  refused('[a]\nfilename=/x-$jobnum\nrw=read\nioengine=rbd\n', /^b\.fio:4: ioengine=rbd is not supported/)
  refused('[a]\nioengine=null\nsize=40%\n', /^b\.fio:3: size=40%: the null engine has no size/)
  refused('[a]\nioengine=libiscsi\n', /^b\.fio:1: \[a\] has no filename: name the volume/)
})

test('without time_based a job ends by its size, number_ios or loops, with or without a runtime', t => {
  const ends = (lines: string) => {
    const [job] = jobsOf(`[a]\nfilename=/x\nrw=read\n${lines}`)
    const {io_size, number_ios, size} = job!.target![0]!
    return {runtime: job!.runtime, size, io_size, number_ios}
  }
  const nothing = {runtime: undefined, size: undefined, io_size: undefined, number_ios: undefined}
  t.deepEqual(ends(''), {...nothing, io_size: '100%'})
  t.deepEqual(ends('size=1m\nruntime=5'), {...nothing, runtime: 5, size: 2 ** 20, io_size: '100%'})
  t.deepEqual(ends('size=1m\nio_size=4m'), {...nothing, size: 2 ** 20, io_size: 4 * 2 ** 20})
  t.deepEqual(ends('filesize=4m\nsize=1m'), {...nothing, size: 4 * 2 ** 20, io_size: 2 ** 20})
  t.deepEqual(ends('size=40%\nloops=3'), {...nothing, size: '40%', io_size: '300%'})
  t.deepEqual(ends('number_ios=7'), {...nothing, io_size: '100%', number_ios: 7})
  t.deepEqual(ends('size=1m\nruntime=5\ntime_based\nnumber_ios=7'), {...nothing, runtime: 5, size: 2 ** 20})
  t.deepEqual(ends('time_based'), {...nothing, io_size: '100%'})
  t.deepEqual(ends('timeout=1m\ntime_based=1'), {...nothing, runtime: 60})
})

test('stonewall and wait_for begin another job, and [global] holds from where it stands', t => {
  const text =
    '[global]\nioengine=null\nsize=1g\n[a]\nrw=read\n[global]\nbs=8k\n[b]\nstonewall\nrw=write\n[c]\nrw=read\n[d]\nwait_for_previous\n[e]\nwait_for=d\n'
  t.deepEqual(
    jobsOf(text).map(({target}) => target!.map(({name, rw, bs, sizeBytes}) => ({name, rw, bs, sizeBytes}))),
    [
      [{name: 'a', rw: 'read', bs: undefined, sizeBytes: 2 ** 30}],
      [
        {name: 'b', rw: 'write', bs: '8192', sizeBytes: 2 ** 30},
        {name: 'c', rw: 'read', bs: '8192', sizeBytes: 2 ** 30},
      ],
      [{name: 'd', rw: 'read', bs: '8192', sizeBytes: 2 ** 30}],
      [{name: 'e', rw: 'read', bs: '8192', sizeBytes: 2 ** 30}],
    ],
  )
})

test('names: of sections, said by name=, the same one twice, and those that begin with "global"', t => {
  const text = '[global]\nioengine=null\nsize=1m\n'
  t.deepEqual(named(targetsOf(`${text}[a]\nname=first\n[b]\n`)), ['first', 'b'])
  t.deepEqual(named(targetsOf(`${text}name=all\n[a]\n[b]\n[c]\n`)), ['all', 'all#2', 'all#3'])
  t.deepEqual(named(targetsOf(`${text}[a]\n[a]\n`)), ['a', 'a#2'])
  t.like(targetsOf('[global-defaults]\nioengine=null\nsize=1m\nbs=8k\n[a]\n'), {length: 1, 0: {name: 'a', bs: '8192'}})
})

test('a file is included from the current directory, else from that of the including file', t => {
  const place = directory(t)
  writeFileSync(join(place, 'shared.fio'), 'ioengine=null\nsize=1m\n# and one more\ninclude deeper.fio\n')
  writeFileSync(join(place, 'deeper.fio'), 'bs=16k\n')
  const parse = (text: string) => parseFioFile(text, join(place, 'job.fio')).jobs[0]!.target!
  t.like(parse('[global]\ninclude shared.fio\n[a]\nrw=randread\n'), [{name: 'a', sizeBytes: 2 ** 20, bs: '16384'}])
  writeFileSync(join(place, 'deeper.fio'), 'bs=4x\n')
  t.throws(() => parse('[a]\ninclude shared.fio\n'), {
    message: `${join(place, 'deeper.fio')}:1: bs: "4x" is not a size in fio's grammar`,
  })
  writeFileSync(join(place, 'deeper.fio'), '[b]\n')
  t.throws(() => parse('[a]\ninclude shared.fio\n'), {
    message: /deeper\.fio:1: an included file must not have sections/,
  })
  writeFileSync(join(place, 'deeper.fio'), 'include deeper.fio\n')
  t.throws(() => parse('[a]\ninclude shared.fio\n'), {message: /deeper\.fio:1: deeper\.fio includes itself/})
})

test.serial('variables of the environment and the words $ncpus, $mb_memory, $pagesize', t => {
  process.env.LP_FIO_SIZE = '8m'
  delete process.env.LP_FIO_UNSET
  t.teardown(() => delete process.env.LP_FIO_SIZE)
  // biome-ignore lint/suspicious/noTemplateCurlyInString: they are fio's
  t.like(one('size=${LP_FIO_SIZE}\nnumjobs=$ncpus\niodepth=2*$ncpus\nbs=$pagesize'), {
    size: 8 * 2 ** 20,
    numjobs: availableParallelism(),
    iodepth: 2 * availableParallelism(),
  })
  // biome-ignore lint/suspicious/noTemplateCurlyInString: they are fio's
  t.throws(() => one('size=${LP_FIO_UNSET}'), {
    message: /^job\.fio:8: size has no value \(\$\{LP_FIO_UNSET\} is not set in the environment\)$/,
  })
})

test('engines that wait for each I/O have one in flight, and say so', t => {
  for (const engine of ['psync', 'sync', 'pvsync', 'pvsync2']) {
    t.like(one(`ioengine=${engine}\niodepth=32`), {ioengine: 'pread', iodepth: undefined}, engine)
    t.true(
      notesOf(`ioengine=${engine}\niodepth=32`).includes(
        `iodepth=32 has no effect: ioengine=${engine} has one I/O in flight, as in fio`,
      ),
    )
  }
  t.deepEqual(notesOf('ioengine=psync\niodepth=1'), [])
  t.like(one('ioengine=io_uring\niodepth=32'), {ioengine: 'io_uring', iodepth: 32})
  t.like(one('buffered=1'), {direct: false, sync: undefined})
  t.like(one('sync=1'), {direct: true, sync: 'sync'})
  t.like(one('sync=dsync'), {sync: 'dsync'})
})

test('flushes after so many writes, and what of them is done otherwise than by fio', t => {
  t.like(one('rw=write\nfsync=32'), {fsync: 32, fdatasync: undefined})
  t.like(one('rw=randwrite\nfsync=0\nfdatasync=1k'), {fsync: undefined, fdatasync: 1024})
  for (const lines of ['rw=write\nfsync=0', 'rw=write\nfsync=4', 'rw=randwrite\niodepth=8\nfdatasync=4'])
    t.deepEqual(notesOf(lines), [], lines)
  for (const rw of ['read', 'randread', 'trim']) {
    const lines = `ioengine=psync\nrw=${rw}\nfsync=4\nfdatasync=2`
    t.like(one(lines), {fsync: undefined, fdatasync: undefined})
    t.deepEqual(notesOf(lines), [`fsync=4 and fdatasync=2 have no effect: rw=${rw} does not write, as in fio`])
  }
  const repeated = (word: string) => [
    `${word}: lunpath flushes once each time; fio 3.33 repeats a flush after a read that follows it, and while it is in flight`,
  ]
  t.deepEqual(notesOf('rw=randrw\nfsync=4'), repeated('fsync=4'))
  t.deepEqual(notesOf('rw=readwrite\nfdatasync=4'), repeated('fdatasync=4'))
  t.deepEqual(notesOf('ioengine=io_uring\niodepth=8\nrw=write\nfdatasync=4'), repeated('fdatasync=4'))
  t.deepEqual(notesOf('ioengine=io_uring\nrw=write\nfdatasync=4'), [])
  t.true(
    notesOf('filename=/x:/y\niodepth=4\nrw=write\nfsync=4').includes(
      '[a] has 2 files: lunpath counts the writes that a flush follows for each by itself',
    ),
  )
})

test('rates are those of a thread and of a direction', t => {
  t.like(one('rw=randread\nrate_iops=100\nnumjobs=4'), {rate_iops: 400, rwmixread: undefined})
  t.like(one('rw=randrw\nrate_iops=100,50'), {rate_iops: 150, rwmixread: (100 * 100) / 150})
  t.like(one('rw=randrw\nrwmixread=70\nrate_iops=100'), {rate_iops: 200, rwmixread: 50})
  t.like(one('rw=randwrite\nrate_iops=100,50'), {rate_iops: 50})
  t.like(one('rw=write\nbs=64k\nrate=1m'), {rate_iops: 16})
  t.like(one('rw=write\nrate_iops=,100'), {rate_iops: 100})
  t.like(one('rw=write\nrate_iops=100,'), {rate_iops: undefined})
  t.true(notesOf('rate_iops=100\nrate_min=50').some(note => note.startsWith('rate_min has no effect')))
  t.like(one('rw=randread\nrate_iops=50\nrate_process=poisson'), {rate_iops: 50, rate_process: 'poisson'})
})

test('sizes of blocks: split, in a range, and both beside bs', t => {
  t.like(one('bs=4k\nbssplit=8k/50:64k/50'), {bs: undefined, bssplit: '8192/50:65536/50'})
  t.like(one('bsrange=4k-16k'), {bssplit: '4096:8192:12288:16384'})
  t.like(one('bsrange=4k-4k'), {bssplit: '4096'})
  t.like(one('bsrange=4k:8k'), {bssplit: '4096:8192'})
  t.like(one('bsrange=8k-4k,2k-3k'), {bssplit: '4096:8192,2048/66.666666667:3072'})
  t.like(one('size=1000000\nio_size=20000\ntime_based=0'), {size: 999_936, io_size: 19_968})
})

test('where I/Os go', t => {
  t.like(one('rw=read:-8k'), {rw: 'read', seq_step: -8192, seq_ios: undefined})
  t.like(one('rw=write:112k'), {seq_step: 112 * 1024})
  t.like(one('rw=randread:8'), {rw: 'randread', seq_ios: 8, rw_sequencer: 'sequential', seq_step: undefined})
  t.like(one('rw=randread:8\nrw_sequencer=identical'), {seq_ios: 8, rw_sequencer: 'identical'})
  t.like(one('rw=randread:1\nrw_sequencer=identical'), {seq_ios: undefined, rw_sequencer: undefined})
  t.like(one('rw=randread\npercentage_random=70'), {percentage_random: 70})
  t.like(one('rw=randwrite\npercentage_random=50,20'), {percentage_random: 20})
  t.like(one('rw=read\npercentage_random=70'), {percentage_random: undefined})
  t.like(one('rw=randread\nbssplit=512/50:4k/50\nba=4k'), {blockalign: 4096})
  t.like(one('rw=read\nba=4k'), {blockalign: undefined})
  t.like(one('rw=randread\nrandom_distribution=zoned:50/5:30/15:20/'), {
    random_distribution: 'zoned:50/5:30/15:20/',
  })
})

test('a random map is kept where all blocks have one size, and else a note says that it is not', t => {
  const mapOf = (lines: string) => {
    const {jobs, notes} = parseFioFile(`[a]\nfilename=/x\nioengine=libaio\ndirect=1\nrw=randread\n${lines}`, 'job.fio')
    return [jobs[0]!.target![0]!.norandommap, notes.some(note => note.includes('norandommap'))]
  }
  t.deepEqual(mapOf(''), [false, false])
  t.deepEqual(mapOf('bs=8k,4k'), [false, false])
  t.deepEqual(mapOf('bsrange=4k-4k'), [false, false])
  t.deepEqual(mapOf('random_distribution=random'), [false, false])
  t.deepEqual(mapOf('ba=4k'), [false, false])
  for (const lines of ['norandommap', 'ba=8k', 'random_distribution=zoned:50/5:50/'])
    t.deepEqual(mapOf(lines), [undefined, false], lines)
  t.deepEqual(mapOf('random_distribution=zipf:1.1'), [undefined, false])
  for (const lines of ['bssplit=4k/50:8k/50', 'rw=randrw\nbs=8k,4k', 'rw=randread:8', 'percentage_random=50'])
    t.deepEqual(mapOf(lines), [undefined, true], lines)
})

test('a startdelay counts from the first begin', t => {
  const delaysOf = (text: string) =>
    targetsOf(`[global]\nioengine=null\nsize=1m\n${text}`).map(({startdelay}) => startdelay)
  t.deepEqual(delaysOf('[a]\n[b]\nstartdelay=4\n[c]\nstartdelay=500ms\n'), [undefined, 4, 0.5])
  t.deepEqual(delaysOf('[a]\nstartdelay=5\n[b]\nstartdelay=7\n'), [undefined, 2])
  t.deepEqual(delaysOf('startdelay=5\n[a]\n[b]\nstonewall\n'), [undefined, undefined])
  t.true(notesOf('startdelay=5').some(note => note.startsWith('startdelay: fio would begin 5 s later')))
})

test('words that say nothing without another word', t => {
  for (const line of ['do_verify=0', 'verify_backlog=8', 'latency_window=5', 'zoneskip=1m', 'flow_id=3', 'ss_dur=9'])
    t.notThrows(() => one(line), line)
  for (const line of [
    'do_verify=0\nverify=crc32c\nrw=write',
    'latency_window=5\nlatency_target=1',
    'zoneskip=1m\nzonesize=1m',
  ])
    t.throws(() => one(line), {message: /^job\.fio:8: .* is not supported: /}, line)
})

test('which errors let a run go on', t => {
  const wordOf = (lines: string) => one(lines).continue_on_error
  for (const word of ['0', 'none', 'verify', 'write']) t.is(wordOf(`continue_on_error=${word}`), 'none', word)
  for (const word of ['1', 'all', 'io', 'read']) t.is(wordOf(`continue_on_error=${word}`), 'all', word)
  t.is(wordOf('rw=randtrim\nioengine=io_uring\ncontinue_on_error=write'), 'all')
  t.is(wordOf('rw=rw\ncontinue_on_error=io'), 'all')
})

test('other checksums of fio are a note', t => {
  t.like(one('rw=write\nverify=md5'), {verify: 'crc32c'})
  t.deepEqual(notesOf('rw=write\nverify=sha256'), ['verify=sha256: lunpath checks the same blocks by crc32c'])
  t.like(one('verify=0'), {verify: 'none'})
})

test("no option of fio 3.33's is a word that lunpath does not know, and each refusal says why", async t => {
  const {stdout} = await run('fio', ['--cmdhelp=all'])
  const options = [...stdout.matchAll(/^ *([a-z][\w-]*)\s*:/gm)].map(([, key]) => key!)
  t.true(options.length > 190)
  const unknown = options.filter(key => {
    try {
      one(`${key}=7`)
      return false
    } catch (error) {
      return /not understood|is not supported$/.test((error as Error).message)
    }
  })
  t.deepEqual(unknown, [])
})

test('a seed of 64 bits is exact, and without one runs are alike, as in fio', t => {
  const seedOf = (lines: string) => jobsOf(`[a]\n${timed}${lines}`)[0]!.seed
  t.is(seedOf('randseed=18446744073709551615'), '18446744073709551615')
  t.is(seedOf('randseed=9007199254740993'), '9007199254740993')
  t.is(seedOf('randseed=0x10'), '16')
  t.is(seedOf(''), seedOf(''))
  t.not(seedOf(''), undefined)
  t.is(seedOf('randrepeat=0'), undefined)
})

test('where a job does its I/O', t => {
  const place = directory(t)
  const paths = (text: string, fallback = {}) =>
    parseFioFile(text, 'a.fio', fallback).jobs.flatMap(({target}) =>
      target!.map(({filename, volume}) => filename ?? volume),
    )
  t.deepEqual(paths(`[a]\ndirectory=${place}\nfilename=f\n`), [join(place, 'f')])
  t.deepEqual(paths('[/dev/loop-control]\nioengine=null\nsize=1m\n'), [undefined])
  for (const name of ['a.0.0', 'a.1.0']) writeFileSync(join(place, name), '')
  t.deepEqual(paths(`[a]\ndirectory=${place}\nnumjobs=2\n`), [join(place, 'a.0.0'), join(place, 'a.1.0')])
  t.throws(() => paths(`[a]\ndirectory=${place}\nnumjobs=3\n`), {message: /^a\.fio:1: .* or make .*\/a\.2\.0$/})
  for (const name of ['f0-a', 'f1-a']) writeFileSync(join(place, name), '')
  const format = `directory=${place}\nfilename_format=f$filenum-$JOBNAME\n`
  t.deepEqual(paths(`[a]\n${format}nrfiles=2\niodepth=2\nioengine=libaio\n`), [
    join(place, 'f0-a'),
    join(place, 'f1-a'),
  ])
  t.deepEqual(paths(`[a]\nfilename=f-$jobnum\ndirectory=/d\n`), ['/d/f-$jobnum'])
  t.deepEqual(paths('[a]\n[b]\nfilename=/y\n', {volume: 'db1'}), ['db1', '/y'])
  t.deepEqual(paths('[a]\n', {filename: '/dev/sdz'}), ['/dev/sdz'])
  t.throws(() => paths('[b]\nfilename=/y\n', {volume: 'db1'}), {message: /db1 would not be measured: leave it out/})
  const url = 'iscsi\\://127.0.0.1\\:3260/iqn.2025-01.io.lunpath\\:x/1'
  t.deepEqual(paths(`[a]\nioengine=libiscsi\nfilename=${url}\n`), ['iqn.2025-01.io.lunpath:x'])
  t.like(parseFioFile('[a]\nioengine=libaio\niodepth=8\ndirect=1\n', 'a.fio', {volume: 'v'}).jobs[0]!.target![0], {
    volume: 'v',
    iodepth: 8,
    ioengine: undefined,
    direct: undefined,
  })
})

test('what lunpath does otherwise than fio is a note', t => {
  const {notes} = parseFioFile('[a]\nfilename=/x\nrw=randread\nruntime=1\nrefill_buffers\nwrite_bw_log=b\n', 'a.fio')
  for (const word of ['page cache', 'refill_buffers', 'ioengine', 'write_bw_log has no effect: fio writes no logs'])
    t.true(
      notes.some(note => note.includes(word)),
      word,
    )
  for (const word of ['gtod_reduce=1', 'cpus_allowed=0-3', 'log_avg_msec=500', 'iodepth_batch=8', 'unlink=1'])
    t.is(notesOf(word).length, 1, word)
  for (const word of [
    'thread',
    'fsync=0',
    'zonemode=none',
    'loops=1',
    'rate_min=0',
    'overwrite=1',
    'io_submit_mode=offload',
    'new_group',
  ])
    t.deepEqual(notesOf(word), [], word)
})

test("sizes in fio's grammar are what the installed fio makes of them", async t => {
  for (const text of ['4k', '4K', '4kb', '4ki', '1024b', '8192', '0x2000']) {
    const args = ['--name=x', '--ioengine=null', '--size=1m', `--bs=${text}`, '--output-format=json']
    const {stdout} = await run('fio', args)
    const {read} = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs[0]
    t.is(fioGrammar.size(text), read.io_bytes / read.total_ios, text)
  }
  t.throws(() => fioGrammar.size('4kib'), {code: 'SIZE_INVALID', message: /is 4000 bytes/})
  for (const wrong of ['', 'k', '4ib', '-4k', '4.5k', '4kk'])
    t.throws(() => fioGrammar.size(wrong), {code: 'SIZE_INVALID'})
})

test("times in fio's grammar", t => {
  t.deepEqual(
    ['30', '500ms', '2m', '1h', '7us', '1.5s'].map(text => parseTime(text, 's')),
    [30e6, 500e3, 120e6, 3600e6, 7, 1.5e6],
  )
  t.is(parseTime('30', 'us'), 30)
  for (const wrong of ['', 'soon', '5x', '-1']) t.is(parseTime(wrong, 's'), undefined)
})
