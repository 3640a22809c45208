import {spawn} from 'node:child_process'
import {once} from 'node:events'
import {chmod, mkdtemp, readFile, rm, stat, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import test from 'ava'
import Database from 'libsql'
import {type Change, Store, type VolumeRecord} from '../../src/state/store.js'

const volume = (id: string, name: string | null = null): VolumeRecord => ({
  id,
  name,
  driver: 'file',
  pool: 'default',
  path: `/pool/${id}.img`,
  kind: 'file',
  sizeBytes: 1 << 20,
  allocation: 'sparse',
  imported: false,
  createdAt: '2026-01-01T00:00:00.000Z',
})
const put = (id: string): Change => ({table: 'volumes', id, value: volume(id)})

async function scratch(t: {teardown(task: () => Promise<void>): void}): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'lp-store-'))
  t.teardown(() => rm(directory, {recursive: true, force: true}))
  return join(directory, 'store.db')
}

test('01 what was written is there after closing and opening again', async t => {
  const path = await scratch(t)
  const first = await Store.open(path)
  await first.write([put('a'.repeat(16)), put('b'.repeat(16))])
  await first.write([{table: 'volumes', id: 'a'.repeat(16), value: null}])
  await first.close()
  const second = await Store.open(path)
  t.teardown(() => second.close())
  t.deepEqual([...second.volumes.keys()], ['b'.repeat(16)])
  t.deepEqual(second.volume('b'.repeat(16)), volume('b'.repeat(16)))
})

test('02 the store and its lock are for their owner alone, whatever the umask was', async t => {
  const path = await scratch(t)
  await writeFile(path, '')
  await chmod(path, 0o644)
  const store = await Store.open(path)
  t.teardown(() => store.close())
  t.is((await stat(path)).mode & 0o777, 0o600)
  t.is((await stat(`${path}.lock`)).mode & 0o777, 0o600)
})

test('03 writes that arrive together share commits, and each resolves after its own', async t => {
  const store = await Store.open(await scratch(t))
  t.teardown(() => store.close())
  const ids = Array.from({length: 100}, (_, index) => index.toString(16).padStart(16, '0'))
  await Promise.all(ids.map(id => store.write([put(id)]).then(() => t.true(store.volumes.has(id)))))
  t.is(store.volumes.size, 100)
  t.true(store.commits < 100, `${store.commits} commits`)
})

test('04 a second daemon on one store is refused, and gets in when the first has ended', async t => {
  const path = await scratch(t)
  const first = await Store.open(path)
  await t.throwsAsync(Store.open(path), {code: 'STORE_LOCKED', message: /Another daemon/})
  await first.close()
  const second = await Store.open(path)
  await second.close()
  t.pass()
})

test('05 the lock of a killed process is gone with it', async t => {
  const path = await scratch(t)
  const script = `
    const {Store} = await import(${JSON.stringify(new URL('../../src/state/store.js', import.meta.url).href)})
    const store = await Store.open(${JSON.stringify(path)})
    await store.write([{table: 'volumes', id: 'c'.repeat(16), value: {id: 'c'.repeat(16)}}])
    console.log('open')
    setInterval(() => {}, 1000)`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {stdio: ['ignore', 'pipe', 'inherit']})
  t.teardown(() => {
    child.kill('SIGKILL')
  })
  await once(child.stdout, 'data')
  await t.throwsAsync(Store.open(path), {code: 'STORE_LOCKED'})
  const exited = once(child, 'exit')
  child.kill('SIGKILL')
  await exited
  const store = await Store.open(path)
  t.teardown(() => store.close())
  t.true(store.volumes.has('c'.repeat(16)), 'what it had committed is there')
})

test('06 a file that is no store is refused and left as it is', async t => {
  const path = await scratch(t)
  await writeFile(path, 'these are my holiday notes, not a database\n'.repeat(100))
  await t.throwsAsync(Store.open(path), {code: 'STORE_CORRUPT'})
  t.true((await readFile(path, 'utf8')).startsWith('these are my holiday notes'))
})

test('07 a store with a damaged page is refused', async t => {
  const path = await scratch(t)
  const store = await Store.open(path)
  await store.write(Array.from({length: 400}, (_, index) => put(index.toString(16).padStart(16, '0'))))
  await store.close()
  const bytes = await readFile(path)
  bytes.fill(0x5a, bytes.length - 8192)
  await writeFile(path, bytes)
  await t.throwsAsync(Store.open(path), {code: 'STORE_CORRUPT'})
})

test('08 a store of a newer version is refused with both versions', async t => {
  const path = await scratch(t)
  await (await Store.open(path)).close()
  const database = new Database(path)
  database.exec('PRAGMA user_version=99')
  database.close()
  await t.throwsAsync(Store.open(path), {code: 'STORE_TOO_NEW', message: /version 99.*up to 2/})
})

test('08a a store of version 1, which had no pools, is brought up to date and keeps its rows', async t => {
  const path = await scratch(t)
  const first = await Store.open(path)
  await first.write([put('d'.repeat(16))])
  await first.close()
  const database = new Database(path)
  database.exec('DROP TABLE pools; PRAGMA user_version=1')
  database.close()
  const store = await Store.open(path)
  t.teardown(() => store.close())
  t.true(store.volumes.has('d'.repeat(16)))
  const pool = {id: 'vg0', driver: 'lvm' as const, group: 'vg0', thinPool: null, createdAt: ''}
  await store.write([{table: 'pools', id: pool.id, value: pool}])
  t.deepEqual(store.pools.get('vg0'), pool)
})

test('09 a write after close is refused, and close can be called twice', async t => {
  const store = await Store.open(await scratch(t))
  const pending = store.write([put('d'.repeat(16))])
  await store.close()
  await store.close()
  await t.notThrowsAsync(pending)
  await t.throwsAsync(store.write([put('e'.repeat(16))]), {code: 'STORE_FAILED'})
})
