import {once} from 'node:events'
import {createServer, type Server, type Socket} from 'node:net'
import {join} from 'node:path'
import {setFlagsFromString} from 'node:v8'
import {runInNewContext} from 'node:vm'
import {Worker} from 'node:worker_threads'
import test, {type ExecutionContext} from 'ava'
import {request, TgtControl, type TgtRequest} from '../../src/targets/tgt-control.js'
import {temporaryDirectory} from '../contract/targets.js'

// Long enough for a busy machine: no test waits for it.
const patient = {timeoutMs: 20_000}

/** A server that speaks tgtd's protocol as badly as the test wants. The sequence numbers of its requests are kept. */
async function server(t: ExecutionContext, answer: (socket: Socket, request: Buffer, count: number) => void) {
  const directory = await temporaryDirectory(t)
  const path = join(directory, 's')
  const sockets = new Set<Socket>()
  const received: Buffer[] = []
  const listener: Server = createServer(socket => {
    sockets.add(socket)
    let bytes = Buffer.alloc(0)
    let answered = false
    socket.on('error', () => undefined)
    socket.on('data', chunk => {
      bytes = Buffer.concat([bytes, chunk])
      if (answered || bytes.length < 120 || bytes.length < bytes.readUInt32LE(72)) return
      answered = true
      received.push(bytes)
      answer(socket, bytes, received.length)
    })
  })
  listener.listen(path)
  await once(listener, 'listening')
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy()
    await new Promise(resolve => listener.close(resolve))
  })
  const control = new TgtControl(path)
  t.teardown(() => control.close())
  return {control, path, received}
}

function reply(error: number, text = ''): Buffer {
  const body = Buffer.from(`${text}\0`)
  const header = Buffer.alloc(8)
  header.writeUInt32LE(error, 0)
  header.writeUInt32LE(8 + body.length, 4)
  return Buffer.concat([header, body])
}

const show: TgtRequest = request.showPortals()

test('a request has the layout of tgtd 1.0.85', async t => {
  const {control, received} = await server(t, socket => socket.end(reply(0, 'yes')))
  const sent = {
    mode: 6,
    op: 1,
    tid: -2,
    sid: 0xfedcba9876543210n,
    lun: 7,
    cid: 9,
    accountDirection: 1,
    parameters: 'k=v',
  }
  const outcome = await control.run([[sent]], patient)
  t.deepEqual(outcome.replies, [[{error: 0, text: 'yes'}]])
  t.is(outcome.pid, process.pid)
  const [bytes] = received
  t.is(bytes!.length, 124)
  t.is(bytes!.readUInt32LE(0), 6)
  t.is(bytes!.readUInt32LE(4), 1)
  t.is(bytes!.toString('latin1', 8, 72), 'iscsi'.padEnd(64, '\0'))
  t.is(bytes!.readUInt32LE(72), 124)
  t.is(bytes!.readInt32LE(76), -2)
  t.is(bytes!.readBigUInt64LE(80), 0xfedcba9876543210n)
  t.is(bytes!.readBigUInt64LE(88), 7n)
  t.is(bytes!.readUInt32LE(96), 9)
  t.is(bytes!.readUInt32LE(108), 1)
  t.is(bytes!.toString('latin1', 120), 'k=v\0')
  await control.run([[show]], patient)
  t.is(received[1]!.length, 120, 'without parameters there is no NUL either')
})

test('a sequence stops at its first error, the next one goes on', async t => {
  const {control, received} = await server(t, (socket, bytes) =>
    socket.end(reply(bytes.readInt32LE(76) === 3 ? 17 : 0)),
  )
  const step = (tid: number): TgtRequest => ({mode: 1, op: 0, tid, parameters: 'x=y'})
  const {replies, failure} = await control.run([[step(1), step(3), step(4)], [step(5)], []], patient)
  t.is(failure, undefined)
  t.deepEqual(
    replies.map(list => list.map(({error}) => error)),
    [[0, 17], [0], []],
  )
  t.deepEqual(
    received.map(bytes => bytes.readInt32LE(76)),
    [1, 3, 5],
  )
})

test('a long answer arrives whole, in whatever pieces it comes', async t => {
  const text = 'Target 1: x\n'.repeat(500_000)
  const {control} = await server(t, socket => {
    const bytes = reply(0, text)
    socket.write(bytes.subarray(0, 3))
    setTimeout(() => {
      socket.write(bytes.subarray(3, 11))
      setTimeout(() => socket.end(bytes.subarray(11)), 20)
    }, 20)
  })
  const {replies, failure} = await control.run([[show]], patient)
  t.is(failure, undefined)
  t.true(replies[0]![0]!.text === text)
})

const header = (error: number, length: number) => {
  const bytes = Buffer.alloc(8)
  bytes.writeUInt32LE(error, 0)
  bytes.writeUInt32LE(length, 4)
  return bytes
}

const broken: [string, string, (socket: Socket) => void][] = [
  ['closes without a word', 'TGT_CLOSED', socket => socket.end()],
  ['ends within the header', 'TGT_PROTOCOL', socket => socket.end(Buffer.alloc(5))],
  ['ends before its length', 'TGT_PROTOCOL', socket => socket.end(Buffer.concat([header(0, 100), Buffer.alloc(20)]))],
  ['says more than its length', 'TGT_PROTOCOL', socket => socket.end(Buffer.concat([header(0, 12), Buffer.alloc(50)]))],
  ['has a length below the header', 'TGT_PROTOCOL', socket => socket.end(header(0, 3))],
  ['has a length beyond all bounds', 'TGT_PROTOCOL', socket => socket.write(header(0, 0xffffffff))],
  ['sends garbage', 'TGT_PROTOCOL', socket => socket.end(Buffer.alloc(64, 0xee))],
  ['never answers', 'ETIMEDOUT', () => undefined],
  ['answers by halves', 'ETIMEDOUT', socket => socket.write(header(0, 100))],
]

for (const [what, code, answer] of broken) {
  test(`a server that ${what} gives ${code}, and the next call works`, async t => {
    const {control} = await server(t, (socket, _, count) => (count === 2 ? answer(socket) : socket.end(reply(0, 'ok'))))
    const {replies, failure} = await control.run([[show, show, show], [show]], {
      timeoutMs: code === 'ETIMEDOUT' ? 2_000 : 20_000,
    })
    t.is(failure?.code, code, failure?.message)
    t.deepEqual(
      replies.map(list => list.length),
      [1],
    )
    t.is((await control.run([[show]], patient)).replies[0]![0]!.text, 'ok')
  })
}

test('nobody there, a wrong path and a path too long are told apart', async t => {
  const directory = await temporaryDirectory(t)
  const absent = new TgtControl(join(directory, 'absent'))
  t.teardown(() => absent.close())
  t.is((await absent.run([[show]], patient)).failure?.code, 'ENOENT')
  t.throws(() => new TgtControl(`/${'x'.repeat(107)}`), {code: 'INVALID_ARGUMENT'})
})

test('another process than the expected one gets no request', async t => {
  const {control, received} = await server(t, socket => socket.end(reply(0)))
  const {failure, pid} = await control.run([[show]], {...patient, expectedPid: process.pid + 1})
  t.is(failure?.code, 'TGT_RESTARTED')
  t.is(pid, process.pid)
  t.is((await control.run([[show]], {...patient, expectedPid: process.pid})).failure, undefined)
  t.is(received.length, 1)
})

test('calls behind one that hangs fail at their own deadline, and their requests are never sent', async t => {
  const {control, received} = await server(t, (socket, bytes) => {
    if (bytes.readInt32LE(76) === 5) socket.end(reply(0))
  })
  // The first one's deadline is the last: a request whose own is still to come when its turn does would be sent.
  const calls = [1_000, 300, 300, 300].map((timeoutMs, index) =>
    control.run([[request.deleteTarget(index + 1)]], {timeoutMs}),
  )
  t.deepEqual(
    (await Promise.all(calls)).map(({failure}) => failure?.code),
    Array(4).fill('ETIMEDOUT'),
  )
  // The server takes connections in the order in which they were made.
  t.is((await control.run([[request.deleteTarget(5)]], patient)).failure, undefined)
  t.deepEqual(
    received.map(bytes => bytes.readInt32LE(76)),
    [1, 5],
  )
})

test('no error tells the parameters', async t => {
  const {control} = await server(t, socket => socket.end())
  const {failure} = await control.run([[request.newAccount('guest', 'top-secret-0001')]], patient)
  t.false(JSON.stringify([failure, failure?.message, failure?.stack]).includes('top-secret'))
})

test('a value that tgtd would take for two is refused', t => {
  t.throws(() => request.newAccount('a,password=b', 'x'), {instanceOf: TypeError})
  t.throws(() => request.newTarget(1, 'iqn.2026-01.x:a\n'), {instanceOf: TypeError})
  t.throws(() => request.newLun(1, 1, `/${'x'.repeat(9_000)}`), {instanceOf: TypeError})
})

test('close waits for what is pending, can be called twice, and refuses what comes later', async t => {
  const {control} = await server(t, socket => setTimeout(() => socket.end(reply(0, 'late')), 100))
  const order: string[] = []
  const pending = control.run([[show]], patient).then(({replies}) => order.push(replies[0]![0]!.text))
  await Promise.all([control.close().then(() => order.push('closed')), control.close(), pending])
  t.deepEqual(order, ['late', 'closed'])
  await t.throwsAsync(control.run([[show]], patient), {code: 'ERR_CLOSED'})
})

test('close works before any call', async t => {
  const control = new TgtControl('/nowhere')
  await t.notThrowsAsync(control.close())
})

test('many controls that nobody keeps are collected, in mid-call too', async t => {
  const {path} = await server(t, socket => setTimeout(() => socket.end(reply(0, 'ok')), 30))
  const calls: Promise<string>[] = []
  for (let i = 0; i < 20; i++) {
    calls.push(new TgtControl(path).run([[show]], patient).then(({replies}) => replies[0]![0]!.text))
  }
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  collect()
  await new Promise(resolve => setTimeout(resolve, 10))
  collect()
  t.deepEqual(await Promise.all(calls), Array(20).fill('ok'))
  collect()
})

test('it works in two threads at once, and a thread may end in mid-call', async t => {
  const {control, path} = await server(t, (socket, bytes) => {
    if (bytes.readInt32LE(76) !== -7) socket.end(reply(0, 'ok'))
  })
  const module = new URL('../../src/targets/tgt-control.js', import.meta.url).href
  const source = `
    import {parentPort, workerData} from 'node:worker_threads'
    const {TgtControl, request} = await import(workerData.module)
    const control = new TgtControl(workerData.path)
    const {replies} = await control.run([[request.showPortals()]], {timeoutMs: 5000})
    // This one hangs while the thread is ended.
    void control.run([[{mode: 1, op: 2, tid: -7}]], {timeoutMs: 2000})
    parentPort.postMessage(replies[0][0].text)
    setInterval(() => undefined, 1000)
  `
  for (let i = 0; i < 3; i++) {
    const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`), {
      workerData: {path, module},
    })
    const [message] = await once(worker, 'message')
    t.is(message, 'ok')
    t.is((await control.run([[show]], patient)).replies[0]![0]!.text, 'ok')
    await worker.terminate()
  }
  t.is((await control.run([[show]], patient)).replies[0]![0]!.text, 'ok')
})
