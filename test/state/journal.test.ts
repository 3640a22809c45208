import {mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import {hashRequest, Journal, tokenLifetimeMs} from '../../src/state/journal.js'
import {Store} from '../../src/state/store.js'

async function open(t: ExecutionContext) {
  const directory = await mkdtemp(join(tmpdir(), 'lp-journal-'))
  const path = join(directory, 'store.db')
  let store = await Store.open(path)
  t.teardown(async () => {
    await store.close()
    await rm(directory, {recursive: true, force: true})
  })
  const reopen = async () => {
    await store.close()
    store = await Store.open(path)
    return {store, journal: new Journal(store)}
  }
  return {store, journal: new Journal(store), reopen}
}

const attach = (token: string | null = null, requestHash = 'h') => ({
  kind: 'attach',
  direction: 'make' as const,
  subject: '0123456789abcdef',
  token,
  requestHash,
  request: {domain: 'vm'},
  plan: ['volume', 'export', 'disk'] as ('volume' | 'export' | 'disk')[],
})

test('01 an operation that was begun is unfinished after a restart, with the steps that it has made', async t => {
  const {journal, reopen} = await open(t)
  const begun = await journal.begin(attach())
  await journal.stepMade(begun, 'volume', {id: 'v'}, [])
  const [found] = (await reopen()).journal.unfinished()
  t.is(found!.id, begun.id)
  t.deepEqual(found!.finished, {volume: {id: 'v'}})
  t.is(found!.state, 'running')
})

test('02 a completed operation is finished, and forgotten where no token asks for its answer', async t => {
  const {store, journal} = await open(t)
  await journal.complete(await journal.begin(attach()), 'done', null)
  t.deepEqual(journal.unfinished(), [])
  t.is(journal.unfinishedOn('0123456789abcdef'), undefined)
  t.is(store.operations.size, 0)
})

test('03 the answer of a token is kept over a restart; another request with it conflicts', async t => {
  const {journal, reopen} = await open(t)
  await journal.complete(await journal.begin(attach('once', 'hash')), 'done', {answer: 42})
  const {journal: later} = await reopen()
  t.deepEqual(later.withToken('once', 'hash')!.result, {answer: 42})
  t.throws(() => later.withToken('once', 'other'), {code: 'TOKEN_CONFLICT'})
  t.is(later.withToken('never', 'hash'), undefined)
  t.is(later.withToken(null, 'hash'), undefined)
})

test('04 answers expire after a day, unfinished operations never', async t => {
  const {store, journal} = await open(t)
  await journal.complete(await journal.begin(attach('old')), 'done', null)
  await journal.begin({...attach('standing'), subject: 'f'.repeat(16)})
  t.is(await journal.expireTokens(Date.now() + tokenLifetimeMs - 60_000), 0)
  t.is(await journal.expireTokens(Date.now() + tokenLifetimeMs + 60_000), 1)
  t.deepEqual(
    [...store.operations.values()].map(({token}) => token),
    ['standing'],
  )
})

test('05 an undo forgets what it has unmade, an unmake remembers it', async t => {
  const {journal} = await open(t)
  let made = await journal.begin(attach())
  made = await journal.stepMade(made, 'volume', {}, [])
  made = await journal.failing(made, {code: 'TIMEOUT', message: 'late'})
  t.deepEqual((await journal.stepUnmade(made, 'volume', [])).finished, {})
  const unmade = await journal.begin({...attach(), kind: 'detach', direction: 'unmake', subject: 'e'.repeat(16)})
  t.deepEqual((await journal.stepUnmade(unmade, 'disk', [])).finished, {disk: null})
})

test('06 the hash of a request does not depend on the order of its keys, and does on every value', t => {
  const hash = hashRequest('attach', {domain: 'a', sizeBytes: 1, auth: {incoming: {user: 'u', secret: 's'}}})
  t.is(hash, hashRequest('attach', {auth: {incoming: {secret: 's', user: 'u'}}, sizeBytes: 1, domain: 'a'}))
  t.not(hash, hashRequest('attach', {domain: 'a', sizeBytes: 2, auth: {incoming: {user: 'u', secret: 's'}}}))
  t.not(hash, hashRequest('export.create', {domain: 'a', sizeBytes: 1, auth: {incoming: {user: 'u', secret: 's'}}}))
  t.is(hashRequest('x', {a: undefined, b: 1}), hashRequest('x', {b: 1}))
})

test('07 an older finished operation on the same subject does not hide the unfinished one after a restart', async t => {
  const {journal, reopen} = await open(t)
  for (const token of ['a', 'b', 'c']) await journal.complete(await journal.begin(attach(token)), 'done', null)
  const standing = await journal.begin({...attach(), kind: 'detach', direction: 'unmake'})
  for (const token of ['x', 'y']) await journal.complete({...standing, id: token, token}, 'done', null)
  t.is((await reopen()).journal.unfinishedOn('0123456789abcdef')?.id, standing.id)
})

test('08 a token that has joined an operation has its answer, after a restart too, and is forgotten with it', async t => {
  const {journal, reopen} = await open(t)
  const begun = await journal.begin({...attach(), kind: 'detach', direction: 'unmake', locks: ['name x']})
  t.true(await journal.join(begun, 'kept', 'h'))
  t.true(await journal.join(begun, 'kept', 'h'))
  const {store, journal: later} = await reopen()
  t.is(later.withToken('kept', 'h')?.joins, begun.id)
  t.is(later.holderOf('name x')?.id, begun.id)
  t.is(later.unfinished().length, 1)
  await later.complete(begun, 'done', {answer: 42})
  t.deepEqual(later.withToken('kept', 'h')?.result, {answer: 42})
  t.is(later.holderOf('name x'), undefined)
  t.false(await later.join(begun, 'late', 'h'))
  t.is(later.withToken('late', 'h'), undefined)
  t.is(store.operations.size, 1)
  t.is(await later.expireTokens(Date.now() + tokenLifetimeMs + 60_000), 1)
})
