import {copyFile, mkdtemp, readdir, readFile, rm, stat, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import {BenchResults} from '../../src/state/bench-results.js'
import {madeResult} from '../fixtures/bench-results.js'

async function results(t: ExecutionContext) {
  const directory = join(await mkdtemp(join(tmpdir(), 'lp-kept-')), 'bench')
  t.teardown(() => rm(join(directory, '..'), {recursive: true}))
  return {directory, kept: new BenchResults(directory)}
}

test('a result is kept as it was, and listed with what it was measured on', async t => {
  const {directory, kept} = await results(t)
  t.deepEqual(await kept.list(), [])
  const result = madeResult()
  const id = await kept.keep(result, 'before')
  t.regex(id, /^20260102T030405678-[0-9a-f]{6}$/)
  t.deepEqual(await kept.read(id), JSON.parse(JSON.stringify(result)))
  const [entry] = await kept.list()
  t.like(entry, {id, label: 'before', kind: 'run', state: 'finished', targets: ['db1'], driver: 'tgt', kernel: '6.1.0'})
  t.is(entry!.p99Ns, result.total.latency.p99Ns)
  t.is((await stat(join(directory, `${id}.jsonl`))).mode & 0o777, 0o600)
})

test('the list is in the order of time and can be asked by label; what is deleted is gone', async t => {
  const {kept} = await results(t)
  const at = (startedAt: string) => ({...madeResult(), startedAt})
  const second = await kept.keep(at('2026-01-02T00:00:02.000Z'), 'a')
  const first = await kept.keep(at('2026-01-02T00:00:01.000Z'), 'b')
  const withinTheSecond = await Promise.all(
    Array.from({length: 9}, (_, ms) => kept.keep(at(`2026-01-02T00:00:02.00${9 - ms}Z`), 'c')),
  )
  const ids = async (label?: string) => (await kept.list(label)).map(({id}) => id)
  t.deepEqual(await ids(), [first, second, ...withinTheSecond.reverse()])
  t.deepEqual(await ids('a'), [second])
  await kept.delete(first)
  t.deepEqual((await ids())[0], second)
  await t.throwsAsync(kept.read(first), {code: 'NOT_FOUND'})
  await t.throwsAsync(kept.delete(first), {code: 'NOT_FOUND'})
})

test('a result that was kept when names ended at the second is still listed, read and deleted', async t => {
  const {directory, kept} = await results(t)
  const id = await kept.keep(madeResult(), null)
  const old = '20260102T030405-abcdef'
  await copyFile(join(directory, `${id}.jsonl`), join(directory, `${old}.jsonl`))
  t.deepEqual((await readdir(directory)).sort(), [`${old}.jsonl`, `${id}.jsonl`])
  t.is((await kept.list()).length, 2)
  t.is((await kept.read(old)).kind, 'run')
  await kept.delete(old)
  t.is((await kept.list()).length, 1)
})

test('an id is no path', async t => {
  const {directory, kept} = await results(t)
  await kept.keep(madeResult(), null)
  await writeFile(join(directory, '..', 'secret.jsonl'), '{}\n{}\n')
  for (const id of ['../secret', '', '.', 'x/../../secret', '20260102T030405000-zzzzzz'])
    await t.throwsAsync(kept.read(id), {code: 'NOT_FOUND'}, id)
})

test('a damaged file is not listed, is told when it is read, and does not hide the others', async t => {
  const {directory, kept} = await results(t)
  const id = await kept.keep(madeResult(), null)
  const damaged = '20200101T000000000-abcdef'
  const text = await readFile(join(directory, `${id}.jsonl`), 'utf8')
  await writeFile(join(directory, `${damaged}.jsonl`), '')
  t.deepEqual(
    (await kept.list()).map(entry => entry.id),
    [id],
  )
  await writeFile(join(directory, `${damaged}.jsonl`), text.slice(0, text.length / 2))
  await t.throwsAsync(kept.read(damaged), {code: 'STORE_CORRUPT'})
})

test('a result that cannot be kept fails, and leaves nothing half', async t => {
  const {directory} = await results(t)
  await writeFile(join(directory, '..', 'file'), '')
  const blocked = new BenchResults(join(directory, '..', 'file', 'bench'))
  await t.throwsAsync(blocked.keep(madeResult(), null), {code: 'STORE_FAILED'})
  t.deepEqual(await readdir(join(directory, '..')), ['file'])
})
