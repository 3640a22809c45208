import {mkdtemp, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import {type JobFile, parseToml, readJobFile} from '../../src/bench/job-file.js'
import {withOptions} from '../../src/bench/job-options.js'
import type {JobSpec} from '../../src/bench/job-schema.js'

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

test('a seed that JSON and TOML would round is refused, and as text it is exact', t => {
  t.is(parseToml('ioengine = "null"\nseed = "18446744073709551615"', 'job.toml').seed, '18446744073709551615')
  t.throws(() => parseToml('seed = 9007199254740993', 'job.toml'), {code: 'INVALID_ARGUMENT', message: /^.*job\.toml/})
})

test('a word that is none of its list is told once, with the list', t => {
  t.throws(() => parseToml('rw = "rand_read"', 'job.toml'), {
    message:
      'job.toml: rw: "rand_read" is not one of read, write, trim, randread, randwrite, randtrim, rw, readwrite, randrw',
  })
})

test('what the command line names is measured by the targets that name nothing', async t => {
  const named = await file(t, 'fio.conf', '[global]\nioengine=null\nsize=1m\n[a]\n')
  t.like((await readJobFile(named)).jobs[0]!.target, [{name: 'a', ioengine: 'null'}])
  const open = await file(t, 'open.toml', 'rw = "read"\n')
  t.like((await readJobFile(open, {volume: 'db1'})).jobs, [{rw: 'read', volume: 'db1'}])
  const two = await file(t, 'two.toml', '[[target]]\niodepth = 2\n[[target]]\nfilename = "/x"\n')
  t.deepEqual((await readJobFile(two, {filename: '/y'})).jobs[0]!.target, [
    {iodepth: 2, filename: '/y'},
    {filename: '/x'},
  ])
  const closed = await file(t, 'closed.toml', 'volume = "other"\n')
  await t.throwsAsync(readJobFile(closed, {volume: 'db1'}), {message: /db1 would not be measured: leave it out/})
})

test('options of the command line stand before what a job file says, for each of its targets', t => {
  const job: JobSpec = {
    bs: '4k',
    runtime: 60,
    target: [{filename: '/x', bssplit: '4k/50:8k/50', iodepth: 16, ioengine: 'libaio'}, {volume: 'v'}],
  }
  t.deepEqual(withOptions(job, {bs: '16k', iodepth: 4, runtime: '10', ioengine: 'io_uring', label: 'l'}), {
    bs: '4k',
    runtime: '10',
    label: 'l',
    target: [
      {filename: '/x', bs: '16k', iodepth: 4, ioengine: 'io_uring'},
      {volume: 'v', bs: '16k', iodepth: 4},
    ],
    notes: ['bs', 'iodepth', 'runtime', 'ioengine'].map(word => `--${word} stands before what the job file says`),
  })
  t.deepEqual(withOptions({volume: 'v', iodepth: 2}, {iodepth: 8}), {
    volume: 'v',
    iodepth: 8,
    notes: ['--iodepth stands before what the job file says'],
  })
  const random: JobSpec = {volume: 'v', rw: 'randread', norandommap: false, seq_ios: 8}
  t.like(withOptions(random, {rw: 'read'}), {rw: 'read', norandommap: undefined, seq_ios: undefined})
  t.like(withOptions(random, {rw: 'randwrite', bs: '8k'}), {norandommap: false, seq_ios: 8})
  t.like(withOptions(random, {bssplit: '4k/50:8k/50'}), {norandommap: undefined, seq_ios: 8})
  t.like(withOptions({volume: 'v', rw: 'read', seq_step: 4096}, {rw: 'randread'}), {seq_step: undefined})
  t.deepEqual(withOptions(job, {}), job)
  for (const options of [{ioengine: 'libaio'}, {direct: false}] as const)
    t.throws(() => withOptions({volume: 'v'}, options), {message: /cannot be followed: no target of the job file/})
  t.throws(() => withOptions(job, {ioengine: 'null'}), {message: /^--ioengine cannot be followed/})
})
