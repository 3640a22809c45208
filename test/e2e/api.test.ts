import {EventEmitter, getEventListeners, once} from 'node:events'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import {fastify} from 'fastify'
import {pino} from 'pino'
import {answerInLines} from '../../src/api/lines.js'
import {createApi, listenOnSocket} from '../../src/api/server.js'
import type {RunningBench} from '../../src/bench/running.js'
import {BenchResults} from '../../src/state/bench-results.js'
import {until} from '../fixtures/cli.js'
import {Node} from '../fixtures/node.js'
import {askRaw, type RawAnswer, RawClient} from '../fixtures/raw-http.js'

/** Whatever a client sends, or fails to read, has an answer of the documented form, costs nothing and holds nobody up. */

async function started(t: ExecutionContext): Promise<Node> {
  const node = await Node.make()
  t.teardown(() => node.stop())
  await node.start()
  return node
}

const request = (line: string, headers: Record<string, string> = {}, body = '') =>
  [
    `${line} HTTP/1.1`,
    ...Object.entries({host: 'x', connection: 'close', ...headers}).map(([name, value]) => `${name}: ${value}`),
    '',
    body,
  ].join('\r\n')
const posted = (path: string, body: string, headers = {}) =>
  request(
    `POST ${path}`,
    {'content-type': 'application/json', 'content-length': String(Buffer.byteLength(body)), ...headers},
    body,
  )

function isRefused(t: ExecutionContext, {status, contentType, body}: RawAnswer, what: string): void {
  t.true(status >= 400 && status < 500, `${what}: ${status} ${body}`)
  t.regex(contentType, /^application\/json/, what)
  const {error, ...others} = JSON.parse(body) as {error: {code: string; message: string}}
  t.deepEqual(others, {}, what)
  t.regex(error.code, /^[A-Z_]+$/, what)
  t.true(error.message.length > 0, what)
}

test('01 a clone with a malformed token is refused, and the daemon ends', async t => {
  const node = await started(t)
  const {volume} = await node.api.call<{volume: {id: string}}>('POST', '/volumes', {sizeBytes: 1 << 20})
  for (const token of ['a b', '', 'x'.repeat(201), 'ä'])
    isRefused(
      t,
      await askRaw(node.socket, posted(`/v1/volumes/${volume.id}/clone`, '{}', {'idempotency-key': token})),
      `token ${JSON.stringify(token)}`,
    )
  isRefused(t, await askRaw(node.socket, posted('/v1/volumes/none/clone', '{}')), 'no such volume')
  await node.stopDaemon()
  t.pass()
})

test('02 what is no request, or none that a route takes, is refused in the documented form', async t => {
  const node = await started(t)
  const long = 'x'.repeat(20_000)
  for (const bytes of [
    request('GET /v1/volumes/%zz'),
    request('GET /v1/volumes/%'),
    request('GET /%ff%fe'),
    request(`GET /v1/volumes/${'x'.repeat(5000)}`),
    request('GET /v1/nothing'),
    request('PATCH /v1/volumes'),
    request('PROPFIND /v1/volumes'),
    request('OPTIONS *'),
    request('BREW /v1/volumes'),
    request('CONNECT example:1'),
    request('GET /v1/volumes', {'x-long': long}),
    request('GET /v1/volumes', {'bad name': 'x'}),
    request('GET /v1/volumes', {'content-length': '-1'}),
    request('GET /v1/volumes', {expect: 'the unexpected'}),
    request('POST /v1/volumes', {'content-length': '4', 'transfer-encoding': 'chunked'}, 'zz\r\n'),
    request('POST /v1/volumes', {'transfer-encoding': 'chunked', 'content-type': 'application/json'}, 'zz\r\n'),
    'GET /v1/nothing HTTP/1.1\r\n\r\n',
    'GET / HTTP/9.9\r\n\r\n',
    'nonsense\r\n\r\n',
    '\0\x01\x02\x03\r\n\r\n',
    posted('/v1/volumes', '{'),
    posted('/v1/volumes', ''),
    posted('/v1/volumes', 'null'),
    posted('/v1/volumes', '[]'),
    posted('/v1/volumes', '{"__proto__": {}}'),
    posted('/v1/volumes', '{"sizeBytes": 1e999}'),
    posted('/v1/volumes', '{}', {'content-type': 'text/plain'}),
    posted('/v1/volumes', '{}', {'content-type': 'multipart/form-data; boundary=x'}),
    posted('/v1/volumes', `{"name": "${'x'.repeat(100_000)}"}`),
    posted('/v1/bench', '{}'),
  ]) {
    isRefused(t, await askRaw(node.socket, bytes), JSON.stringify(bytes.slice(0, 60)))
  }
  const name = `iqn.2026-01.a:${'x'.repeat(200)}`
  const {body} = await askRaw(node.socket, request(`GET /v1/targets/${name}`))
  t.regex(body, /There is no target iqn/, 'an IQN of full length')
})

test('03 query words that no route knows, or with values that mean nothing, are refused', async t => {
  const node = await started(t)
  for (const path of [
    'DELETE /v1/exports/0123456789abcdef?force=yes',
    'DELETE /v1/exports/0123456789abcdef?forced=true',
    'DELETE /v1/volumes/0123456789abcdef?force=true',
    'DELETE /v1/attachments/0123456789abcdef?timeoutMs=99999999999',
    'DELETE /v1/attachments/0123456789abcdef?timeoutMs=1&timeoutMs=2',
    'DELETE /v1/attachments/0123456789abcdef?timeout=5',
    'GET /v1/pool?name=default&name=other',
    'GET /v1/volumes?name=x',
  ]) {
    const answer = await askRaw(node.socket, request(path))
    isRefused(t, answer, path)
    t.regex(answer.body, /INVALID_ARGUMENT/, path)
  }
  const missing = await askRaw(node.socket, request('DELETE /v1/exports/0123456789abcdef?force=false'))
  t.regex(missing.body, /EXPORT_NOT_FOUND/)
})

async function startedApi(t: ExecutionContext) {
  const node = await started(t)
  const {operations, benches, metrics, config} = node.daemon
  const never = () => Promise.reject(new Error('not in this test'))
  const service = {operations, benches, metrics, config, version: '0', problems: () => [], doctor: never}
  const benchResults = new BenchResults(join(node.directory, 'bench'))
  const opened = {...service, benchResults, isOpen: () => true, resuming: () => new Set<string>()}
  const api = await createApi({...opened, createPool: never, deletePool: never}, pino({level: 'silent'}))
  const socket = join(node.directory, 'other.sock')
  await listenOnSocket(api, socket)
  t.teardown(() => api.close())
  return {node, api, socket, benches}
}

test('04 clients that have looked on and gone leave nothing behind', async t => {
  const {node, api, socket, benches} = await startedApi(t)
  const {volume} = await node.api.call<{volume: {id: string}}>('POST', '/volumes', {sizeBytes: 1 << 20})
  const listeners = () => getEventListeners(api.stopping, 'abort').length
  const before = listeners()
  for (let clients = 0; clients < 20; clients++) {
    const client = (await RawClient.connect(socket)).send(request('GET /v1/bench/events'))
    await once(client.socket, 'data')
    client.socket.destroy()
    const {body} = await askRaw(socket, posted(`/v1/volumes/${volume.id}/clone`, '{}'))
    t.regex(body, /"result"/)
  }
  const left = () => benches.listenerCount('sample') + benches.listenerCount('end') + listeners() - before
  await t.notThrowsAsync(until('nothing is left', () => left() === 0, 10_000))
})

test('05 a client that looks on and does not read is sent away, not waited for', async t => {
  const {socket, benches} = await startedApi(t)
  const client = (await RawClient.connect(socket)).send(request('GET /v1/bench/events'))
  await once(client.socket, 'data')
  client.socket.pause()
  const sample = {name: 'x'.repeat(64 * 1024)} as unknown as RunningBench
  for (let sent = 0; sent < 1024 && benches.listenerCount('sample') > 0; sent++) {
    benches.emit('sample', sample)
    await new Promise(resolve => setImmediate(resolve))
  }
  t.is(benches.listenerCount('sample'), 0, '64 MiB are waiting for it')
})

test('06 the daemon ends with clients that do not finish their request or read their answer', async t => {
  const node = await started(t)
  const half = (await RawClient.connect(node.socket)).send(
    'POST /v1/volumes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{',
  )
  const head = (await RawClient.connect(node.socket)).send('GET /v1/vol')
  const idle = await RawClient.connect(node.socket)
  // Far more answers than the kernel takes for a client that does not read.
  const unread = await RawClient.connect(node.socket)
  unread.socket.pause()
  unread.send('GET /v1/openapi.json HTTP/1.1\r\nhost: x\r\n\r\n'.repeat(200))
  const looking = (await RawClient.connect(node.socket)).send(request('GET /v1/bench/events'))
  await once(looking.socket, 'data')
  await node.api.call('GET', '/volumes')
  await node.stopDaemon()
  for (const {socket} of [half, head, idle, unread, looking]) socket.destroy()
  t.pass()
})

test('07 of a line answer whose client does not read lines are dropped, and never the result', async t => {
  const node = await Node.make()
  t.teardown(() => node.stop())
  const socket = join(node.directory, 'lines.sock')
  const api = fastify()
  let dropped = 0
  let mostWaiting = 0
  const line = {progress: 'x'.repeat(64 * 1024)}
  const sent = new EventEmitter()
  api.get('/', (_request, reply) =>
    answerInLines(reply, 'lines', async sendLine => {
      for (let lines = 0; lines < 1024; lines++) {
        if (!sendLine(line)) dropped++
        mostWaiting = Math.max(mostWaiting, reply.raw.writableLength)
        await new Promise(resolve => setImmediate(resolve))
      }
      sent.emit('all')
      return 'the end'
    }),
  )
  await api.listen({path: socket})
  t.teardown(() => api.close())
  const client = await RawClient.connect(socket)
  client.socket.pause()
  client.send(request('GET /'))
  await once(sent, 'all')
  t.true(dropped > 900, `${dropped}`)
  t.true(mostWaiting < 1 << 20, `${mostWaiting}`)
  client.socket.resume()
  const {body} = await client.answer()
  t.regex(body, /\{"result":"the end"\}\n$/)
})
