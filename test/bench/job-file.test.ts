import {mkdtemp, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import {parseFioFile} from '../../src/bench/fio-file.js'
import {type JobFile, parseToml, readJobFile} from '../../src/bench/job-file.js'
import {fioGrammar, parseTime} from '../../src/bench/quantity.js'
import {run} from '../../src/exec.js'

async function file(t: ExecutionContext, name: string, text: string): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'lp-job-'))
  t.teardown(() => rm(directory, {recursive: true}))
  await writeFile(join(directory, name), text)
  return join(directory, name)
}

const toml = `
name = "mixed"
runtime = "2m"
ramp_time = 5
rw = "randread"
bs = "4k"

[[target]]
volume = "db1"
iodepth = 16

[[target]]
filename = "/dev/sdb"
rw = "randrw"
rwmixread = 70
bssplit = "4k/60:64k/40"
writeTo = {identity = "S3Z8NB0K", size = "2GiB"}
`

test('a job file in TOML', async t => {
  const job: JobFile = await readJobFile(await file(t, 'mixed.toml', toml))
  t.deepEqual(job, {
    notes: [],
    jobs: [
      {
        name: 'mixed',
        runtime: '2m',
        ramp_time: 5,
        rw: 'randread',
        bs: '4k',
        target: [
          {volume: 'db1', iodepth: 16},
          {
            filename: '/dev/sdb',
            rw: 'randrw',
            rwmixread: 70,
            bssplit: '4k/60:64k/40',
            writeTo: {identity: 'S3Z8NB0K', size: '2GiB'},
          },
        ],
      },
    ],
  })
})

test('what a TOML file holds and nobody knows is named', async t => {
  const refused = (text: string, message: RegExp) =>
    t.throws(() => parseToml(text, 'job.toml'), {code: 'INVALID_ARGUMENT', message})
  refused('iodpeth = 3', /^job\.toml: iodpeth: /)
  refused('[[target]]\nvolume = "a"\n[[target]]\nvolume = "b"\nrunime = 3', /^job\.toml: target\.1\.runime: /)
  refused('rw = "randwirte"', /^job\.toml: rw: /)
  refused('iodepth = 1.5', /^job\.toml: iodepth: /)
  refused('a = ', /is not TOML.*\n*1/)
  await t.throwsAsync(readJobFile('/nonexistent/x.toml'), {code: 'INVALID_ARGUMENT', message: /cannot be read/})
})

const fio = `; a common job file
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
  const {jobs, notes} = parseFioFile(fio, 'a.fio')
  t.is(jobs.length, 1)
  const [job] = jobs
  t.is(job!.runtime, 30)
  const common = {ioengine: 'libaio' as const, direct: true, bs: '4096', continue_on_error: 'none' as const}
  const reads = {...common, rw: 'randread' as const, iodepth: 32, numjobs: 4, rate_iops: 2000}
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
    },
  ])
  t.deepEqual(notes, ['rate_iops is open loop in lunpath: I/Os are due at their time, also where the device is late'])
})

test("what of fio's file is not understood is an error that names key, file and line", t => {
  const base = '[a]\nfilename=/x\nruntime=1\ntime_based\n'
  const refused = (more: string, message: RegExp) =>
    t.throws(() => parseFioFile(base + more, 'job.fio'), {code: 'INVALID_ARGUMENT', message})
  refused('fsync=1', /^job\.fio:5: fsync=1 is not understood/)
  refused('\n\nnonsense', /^job\.fio:7: nonsense=1 is not understood/)
  refused('ioengine=rbd', /^job\.fio:5: ioengine=rbd is not supported/)
  refused('verify=md5', /^job\.fio:5: verify=md5/)
  refused('bs=4x', /^job\.fio:5: bs: /)
  refused('size=50%', /^job\.fio:5: size: /)
  refused('iodepth=many', /^job\.fio:5: iodepth=many: a whole number/)
  refused('name=$jobname', /^job\.fio:5: name=.*variables/)
  refused('[b]\nfilename=/y\nruntime=2', /^job\.fio:5: \[b\]: runtime differs/)
  t.throws(() => parseFioFile('[a]\nfilename=/x\n', 'b.fio'), {message: /^b\.fio:1: \[a\] has no runtime/})
  t.throws(() => parseFioFile('[a]\nruntime=1\n', 'b.fio'), {message: /has no filename/})
  t.throws(() => parseFioFile('bs=4k\n', 'b.fio'), {message: /^b\.fio:1: .*before the first section/})
  t.throws(() => parseFioFile('[global]\nbs=4k\n', 'b.fio'), {message: /no section besides/})
})

test('stonewall begins another job, and [global] holds from where it stands', t => {
  const text =
    '[global]\nioengine=null\nsize=1g\nruntime=1\ntime_based\n[a]\nrw=read\n[global]\nbs=8k\n[b]\nstonewall\nrw=write\n[c]\nrw=read\n'
  const {jobs} = parseFioFile(text, 'a.fio')
  t.deepEqual(
    jobs.map(({target}) => target!.map(({name, rw, bs, sizeBytes, ioengine}) => ({name, rw, bs, sizeBytes, ioengine}))),
    [
      [{name: 'a', rw: 'read', bs: undefined, sizeBytes: 2 ** 30, ioengine: 'null'}],
      [
        {name: 'b', rw: 'write', bs: '8192', sizeBytes: 2 ** 30, ioengine: 'null'},
        {name: 'c', rw: 'read', bs: '8192', sizeBytes: 2 ** 30, ioengine: 'null'},
      ],
    ],
  )
})

test('what lunpath does otherwise than fio is a note', t => {
  const {notes} = parseFioFile('[a]\nfilename=/x\nrw=randread\nruntime=1\nrefill_buffers\n', 'a.fio')
  for (const word of ['time_based', 'refill_buffers', 'ioengine', 'norandommap'])
    t.true(
      notes.some(note => note.includes(word)),
      word,
    )
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
