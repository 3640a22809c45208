import {randomBytes} from 'node:crypto'
import {once} from 'node:events'
import {createServer, type Server, type Socket} from 'node:net'
import {setFlagsFromString} from 'node:v8'
import {runInNewContext} from 'node:vm'
import {Worker} from 'node:worker_threads'
import test, {type ExecutionContext} from 'ava'
import {call, IetControl, request} from '../../src/targets/iet-control.js'

// Long enough for a busy machine: no test waits for it.
const patient = {timeoutMs: 20_000}
const requestBytes = 2072
const replyBytes = 2076

/** A server that speaks ietd's protocol as badly as the test wants, on an abstract socket of its own. */
async function server(t: ExecutionContext, answer: (socket: Socket, request: Buffer, count: number) => void) {
  const socketName = `lunpath-test-${randomBytes(8).toString('hex')}`
  const sockets = new Set<Socket>()
  const received: Buffer[] = []
  const listener: Server = createServer(socket => {
    sockets.add(socket)
    let bytes = Buffer.alloc(0)
    socket.on('error', () => undefined)
    socket.on('data', chunk => {
      const before = bytes.length
      bytes = Buffer.concat([bytes, chunk])
      if (before >= requestBytes || bytes.length < requestBytes) return
      received.push(bytes)
      answer(socket, bytes, received.length)
    })
  })
  // The address is all 110 bytes: NULs fill the name up.
  listener.listen(`\0${socketName}`.padEnd(108, '\0'))
  await once(listener, 'listening')
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy()
    await new Promise(resolve => listener.close(resolve))
  })
  const control = new IetControl({socketName})
  t.teardown(() => control.close())
  return {control, socketName, received}
}

/** The request echoed, a result, and data. */
function reply(
  bytes: Buffer,
  {error = 0, tid, data = Buffer.alloc(0)}: {error?: number; tid?: number; data?: Buffer} = {},
) {
  const echo = Buffer.from(bytes)
  if (tid !== undefined) echo.writeUInt32LE(tid, 4)
  const result = Buffer.alloc(4)
  result.writeInt32LE(-error)
  return Buffer.concat([echo, result, data])
}

const command = (bytes: Buffer) => bytes.readUInt32LE(0)
const nothing = request.nothing()

test('each request has the layout of IET 1.4.20', async t => {
  const {control, received} = await server(t, (socket, bytes) => socket.end(reply(bytes, {tid: bytes.readUInt32LE(4)})))
  const iqn = 'iqn.2026-01.io.lunpath:0123456789abcdef'
  const sid = 0xfedc_ba98_7654_3210n
  const values = new Map([
    ['InitialR2T', 0],
    ['IFMarkInt', 4096],
  ])
  const overSocket = (one: ReturnType<typeof call.addVolume>) => one.instead!
  const {answers, failure} = await control.exchange(
    [
      [request.newTarget(7, iqn)],
      [request.deleteTarget(7)],
      [overSocket(call.addVolume(7, 1, 'ScsiId=a,Path=/b'))],
      [overSocket(call.deleteVolume(7, 1))],
      [request.newAccount(7, 'outgoing', 'guest', 'a-good-secret-01')],
      [request.deleteAccount(7, 'incoming', 'guest')],
      [overSocket(call.setParameters(7, sid, 'session', values))],
      [overSocket(call.setParameters(7, 0n, 'target', new Map([['Wthreads', 16]])))],
      [request.redirect(7, '[::1]:3260')],
      [request.deleteSession(7, sid)],
      [request.deleteConnection(7, sid, 9)],
      [nothing],
    ],
    patient,
  )
  t.is(failure, undefined)
  t.true(answers.every(([answer]) => answer?.error === 0))
  t.true(received.every(bytes => bytes.length === requestBytes))
  const text = (bytes: Buffer, at: number, size: number) => bytes.toString('latin1', at, at + size).replace(/\0+$/, '')
  const [made, gone, lun, lunGone, account, accountGone, session, target, redirect, logout, cut, noOp] = received
  t.deepEqual([command(made!), made!.readUInt32LE(4), text(made!, 24, 256)], [0, 7, iqn])
  t.deepEqual([command(gone!), gone!.readUInt32LE(4)], [1, 7])
  t.deepEqual([command(lun!), lun!.readUInt32LE(20), text(lun!, 24, 2048)], [13, 1, 'ScsiId=a,Path=/b'])
  t.deepEqual([command(lunGone!), lunGone!.readUInt32LE(20)], [14, 1])
  t.deepEqual(
    [command(account!), account!.readUInt32LE(24), text(account!, 28, 256), text(account!, 284, 256)],
    [17, 1, 'guest', 'a-good-secret-01'],
  )
  t.deepEqual([command(accountGone!), accountGone!.readUInt32LE(24), text(accountGone!, 28, 256)], [18, 0, 'guest'])
  t.is(command(session!), 2)
  t.is(session!.readBigUInt64LE(8), sid)
  const union = 24
  t.is(session!.readUInt32LE(union + 512), 1, 'session parameters')
  t.is(session!.readUInt32LE(union + 516), 1 | (1 << 18))
  t.is(session!.readUInt32LE(union + 524 + 18 * 8 + 4), 4096)
  t.is(target!.readUInt32LE(union + 512), 2, 'target parameters')
  t.is(target!.readUInt32LE(union + 520), 1)
  t.is(target!.readUInt32LE(union + 676 + 4), 16)
  t.deepEqual([command(redirect!), text(redirect!, 24, 1061)], [4, '[::1]:3260'])
  t.deepEqual([command(logout!), logout!.readBigUInt64LE(8)], [6, sid])
  t.deepEqual([command(cut!), cut!.readBigUInt64LE(8), cut!.readUInt32LE(16)], [10, sid, 9])
  t.is(command(noOp!), 24)
})

test('answers: the number of a new target, parameters, and accounts', async t => {
  const {control} = await server(t, (socket, bytes) => {
    const echo = Buffer.from(bytes)
    switch (command(bytes)) {
      case 0:
        return socket.end(reply(bytes, {tid: 0xffff_fffe}))
      case 3:
        for (let i = 0; i < 5; i++) echo.writeUInt32LE(100 + i, 24 + 676 + i * 8 + 4)
        return socket.end(reply(echo))
      case 8:
        for (let i = 0; i < 19; i++) echo.writeUInt32LE(200 + i, 24 + 524 + i * 8 + 4)
        return socket.end(reply(echo))
      default: {
        echo.writeUInt32LE(2, 24 + 8)
        echo.writeUInt32LE(3, 24 + 12)
        const data = Buffer.alloc(bytes.readUInt32LE(24 + 4))
        data.write('guest', 0)
        data.write('other', 256)
        return socket.end(reply(echo, {data}))
      }
    }
  })
  const {answers} = await control.exchange(
    [
      [request.newTarget(0, 'iqn.2026-01.io.lunpath:a')],
      [call.getParameters(1, 0n, 'target').instead!],
      [call.getParameters(1, 5n, 'session').instead!],
      [request.listAccounts(1, 'incoming', 2)],
    ],
    patient,
  )
  t.is(answers[0]![0]!.tid, 0xffff_fffe)
  t.deepEqual(answers[1]![0]!.numbers, [100, 101, 102, 103, 104])
  t.deepEqual(
    answers[2]![0]!.numbers,
    Array.from({length: 19}, (_, i) => 200 + i),
  )
  t.deepEqual(answers[3]![0], {error: 0, tid: 0, numbers: [3], names: ['guest', 'other']})
})

test('a sequence stops at its first error, the next one goes on', async t => {
  const {control, received} = await server(t, (socket, bytes) =>
    socket.end(reply(bytes, {error: bytes.readUInt32LE(4) === 3 ? 2 : 0})),
  )
  const step = (tid: number) => request.deleteTarget(tid)
  const {answers, failure} = await control.exchange([[step(1), step(3), step(4)], [step(5)], []], patient)
  t.is(failure, undefined)
  t.deepEqual(
    answers.map(all => all.map(({error}) => error)),
    [[0, 2], [0], []],
  )
  t.deepEqual(
    received.map(bytes => bytes.readUInt32LE(4)),
    [1, 3, 5],
  )
})

const changed = (bytes: Buffer, at: number, value: number) => {
  const copy = Buffer.from(bytes)
  copy.writeUInt32LE(value, at)
  return copy
}
const resultOf = (bytes: Buffer, result: number) => {
  const copy = reply(bytes)
  copy.writeInt32LE(result, requestBytes)
  return copy
}

const broken: [string, string, (socket: Socket, bytes: Buffer) => void][] = [
  ['closes without a word', 'IET_CLOSED', socket => socket.end()],
  ['breaks the connection', 'IET_CLOSED', socket => socket.destroy()],
  ['ends within the echo', 'IET_PROTOCOL', (socket, bytes) => socket.end(bytes.subarray(0, 100))],
  ['ends before its result', 'IET_PROTOCOL', (socket, bytes) => socket.end(bytes)],
  ['says one byte more', 'IET_PROTOCOL', (socket, bytes) => socket.end(Buffer.concat([reply(bytes), Buffer.alloc(1)]))],
  [
    'says a megabyte',
    'IET_PROTOCOL',
    (socket, bytes) => socket.end(Buffer.concat([reply(bytes), Buffer.alloc(2 ** 20)])),
  ],
  ['echoes another command', 'IET_PROTOCOL', (socket, bytes) => socket.end(reply(changed(bytes, 0, 13)))],
  ['echoes another target', 'IET_PROTOCOL', (socket, bytes) => socket.end(reply(changed(bytes, 4, 99)))],
  ['echoes another session', 'IET_PROTOCOL', (socket, bytes) => socket.end(reply(changed(bytes, 8, 99)))],
  ['echoes another connection', 'IET_PROTOCOL', (socket, bytes) => socket.end(reply(changed(bytes, 16, 99)))],
  ['echoes another unit', 'IET_PROTOCOL', (socket, bytes) => socket.end(reply(changed(bytes, 20, 99)))],
  ['has a result above zero', 'IET_PROTOCOL', (socket, bytes) => socket.end(resultOf(bytes, 5))],
  ['has a result that is no errno', 'IET_PROTOCOL', (socket, bytes) => socket.end(resultOf(bytes, -(2 ** 31)))],
  ['sends garbage', 'IET_PROTOCOL', socket => socket.end(Buffer.alloc(replyBytes, 0xee))],
  ['never answers', 'ETIMEDOUT', () => undefined],
  ['answers by halves', 'ETIMEDOUT', (socket, bytes) => socket.write(bytes)],
]

for (const [what, code, answer] of broken) {
  test(`a server that ${what} gives ${code}, and the next call works`, async t => {
    const {control} = await server(t, (socket, bytes, count) =>
      count === 2 ? answer(socket, bytes) : socket.end(reply(bytes)),
    )
    const {answers, failure} = await control.exchange([[nothing, nothing, nothing], [nothing]], {
      timeoutMs: code === 'ETIMEDOUT' ? 2_000 : 20_000,
    })
    t.is(failure?.code, code, failure?.message)
    t.deepEqual(
      answers.map(all => all.length),
      [1],
    )
    t.is((await control.exchange([[nothing]], patient)).answers[0]![0]!.error, 0)
  })
}

const list = request.listAccounts(1, 'incoming', 4)
const brokenLists: [string, string, (socket: Socket, bytes: Buffer) => void][] = [
  ['has no data', 'IET_PROTOCOL', (socket, bytes) => socket.end(reply(bytes))],
  ['has half of its data', 'IET_PROTOCOL', (socket, bytes) => socket.end(reply(bytes, {data: Buffer.alloc(512)}))],
  ['has more than its data', 'IET_PROTOCOL', (socket, bytes) => socket.end(reply(bytes, {data: Buffer.alloc(1025)}))],
  [
    'counts more names than there is room for',
    'IET_PROTOCOL',
    (socket, bytes) => socket.end(reply(changed(bytes, 24 + 8, 5), {data: Buffer.alloc(1024)})),
  ],
  [
    'tells of another room',
    'IET_PROTOCOL',
    (socket, bytes) => socket.end(reply(changed(bytes, 24 + 4, 0xffff_ff00), {data: Buffer.alloc(1024)})),
  ],
]

for (const [what, code, answer] of brokenLists) {
  test(`a list of accounts that ${what} gives ${code}`, async t => {
    const {control} = await server(t, answer)
    t.is((await control.exchange([[list]], patient)).failure?.code, code)
  })
}

test('names of 256 bytes without an end, and lists in pieces, are read', async t => {
  const {control} = await server(t, (socket, bytes) => {
    const data = Buffer.alloc(1024, 'x')
    const whole = reply(changed(bytes, 24 + 8, 4), {data})
    socket.write(whole.subarray(0, 3))
    setTimeout(() => socket.write(whole.subarray(3, 2100)), 20)
    setTimeout(() => socket.end(whole.subarray(2100)), 40)
  })
  const {answers, failure} = await control.exchange([[list]], patient)
  t.is(failure, undefined)
  t.deepEqual(answers[0]![0]!.names, Array(4).fill('x'.repeat(256)))
})

test('another user’s EPERM is an answer, whatever it echoes, and nothing of it is told', async t => {
  const {control} = await server(t, socket => {
    const stale = Buffer.alloc(replyBytes, 'top-secret-0001')
    stale.writeInt32LE(-1, requestBytes)
    socket.end(stale)
  })
  const outcome = await control.exchange([[request.newTarget(0, 'iqn.2026-01.io.lunpath:a')]], patient)
  t.deepEqual(outcome.answers, [[{error: 1, tid: 0, numbers: [], names: []}]])
  const {failure} = await control.call([[call.moduleInfo()]], patient)
  t.is(failure, undefined)
  t.like(control.way, {way: 'socket', reason: 'ietd lets nobody but root in: Operation not permitted'})
})

test('EPERM that was sent before the request came is an answer too', async t => {
  const socketName = `lunpath-test-${randomBytes(8).toString('hex')}`
  const refusal = Buffer.alloc(replyBytes)
  refusal.writeInt32LE(-1, requestBytes)
  const listener = createServer(socket => {
    socket.on('error', () => undefined)
    socket.end(refusal, () => socket.destroy())
  })
  listener.listen(`\0${socketName}`.padEnd(108, '\0'))
  await once(listener, 'listening')
  t.teardown(() => listener.close())
  const control = new IetControl({socketName})
  t.teardown(() => control.close())
  for (let i = 0; i < 50; i++) {
    const {answers, failure} = await control.exchange([[nothing]], patient)
    t.is(answers[0]?.[0]?.error, 1, failure?.message)
  }
})

test('nobody there and a name that is too long are told apart', async t => {
  const absent = new IetControl({socketName: 'lunpath-test-absent'})
  t.teardown(() => absent.close())
  t.is((await absent.exchange([[nothing]], patient)).failure?.code, 'ECONNREFUSED')
  t.throws(() => new IetControl({socketName: 'x'.repeat(108)}), {code: 'INVALID_ARGUMENT'})
})

test('another process than the expected one gets no request', async t => {
  const {control, received} = await server(t, (socket, bytes) => socket.end(reply(bytes)))
  const {failure, pid} = await control.exchange([[nothing]], {...patient, expectedPid: process.pid + 1})
  t.is(failure?.code, 'IET_RESTARTED')
  t.is(pid, process.pid)
  t.is((await control.exchange([[nothing]], {...patient, expectedPid: process.pid})).failure, undefined)
  t.is(received.length, 1)
})

test('requests behind one that hangs fail at their own deadline', async t => {
  const {control} = await server(t, () => undefined)
  const outcomes = await Promise.all([1, 2, 3, 4].map(() => control.exchange([[nothing]], {timeoutMs: 300})))
  t.deepEqual(
    outcomes.map(({failure}) => failure?.code),
    Array(4).fill('ETIMEDOUT'),
  )
})

test('64 requests at once to a slow ietd: none is lost, none is mixed up', async t => {
  const nameIn = (bytes: Buffer) => bytes.toString('latin1', 24, 280).replace(/\0+$/, '')
  const {control, received} = await server(t, (socket, bytes) => {
    setTimeout(() => socket.end(reply(bytes, {tid: 1000 + Number(nameIn(bytes).split(':')[1])})), 10)
  })
  const names = Array.from({length: 64}, (_, i) => `iqn.2026-01.io.lunpath:${i}`)
  const outcomes = await Promise.all(names.map(name => control.exchange([[request.newTarget(0, name)]], patient)))
  t.deepEqual(
    outcomes.map(({answers}) => answers[0]?.[0]?.tid),
    names.map((_, i) => 1000 + i),
  )
  t.deepEqual(received.map(nameIn), names)
})

test('no error tells a secret', async t => {
  const {control} = await server(t, socket => socket.end())
  const {failure} = await control.exchange([[request.newAccount(1, 'incoming', 'guest', 'top-secret-0001')]], patient)
  t.is(failure?.code, 'IET_CLOSED')
  t.false(JSON.stringify([failure, failure?.message, failure?.stack]).includes('top-secret'))
})

test('what would forge a line or be cut off is refused', t => {
  t.throws(() => request.newTarget(1, 'iqn.2026-01.x:a\ntid:9 name:b'), {instanceOf: TypeError})
  t.throws(() => request.newTarget(1, `iqn.2026-01.x:${'a'.repeat(255)}`), {instanceOf: TypeError})
  t.throws(() => call.addVolume(1, 1, `Path=/${'x'.repeat(2048)}`), {instanceOf: TypeError})
  t.throws(() => call.addVolume(1, 1, 'Path=/a\0b'), {instanceOf: TypeError})
  t.throws(() => request.newAccount(1, 'incoming', 'guest', 'x'.repeat(256)), {instanceOf: TypeError})
  t.throws(() => call.setParameters(1, 0n, 'session', new Map()), {instanceOf: TypeError})
})

test('without the module the device is not to be had: all goes over the socket, and it is said why', async t => {
  const {control, received} = await server(t, (socket, bytes) => socket.end(reply(bytes)))
  t.is(control.way, undefined)
  const {answers, failure, pid} = await control.call(
    [[call.addVolume(1, 1, 'Path=/a')], [call.deleteVolume(2, 3), call.moduleInfo()]],
    patient,
  )
  t.is(failure, undefined)
  t.is(pid, process.pid)
  t.deepEqual(
    answers.map(all => all.map(({error}) => error)),
    [[0], [0, 38]],
  )
  // The first was to find ietd.
  t.deepEqual(received.map(command), [24, 13, 14])
  t.is(control.way?.way, 'socket')
  t.regex(control.way?.reason ?? '', /iscsi_trgt is not loaded/)
  await control.call([[call.deleteVolume(2, 3)]], {...patient, expectedPid: process.pid})
  t.deepEqual(received.map(command).slice(3), [14], 'it is not looked for again while that ietd runs')
})

test('listings are read on a thread of their own, whole or up to a text', async t => {
  const control = new IetControl()
  t.teardown(() => control.close())
  const devices = await control.read('/proc/devices', patient)
  t.regex(devices, /^Character devices:\n/)
  t.true(devices.endsWith('\n'))
  await t.throwsAsync(control.read('/proc/net/iet/absent', patient), {code: 'ENOENT'})
})

test('close refuses what comes later, and what is pending settles', async t => {
  const {control} = await server(t, (socket, bytes) => setTimeout(() => socket.end(reply(bytes)), 100))
  const pending = control.exchange([[nothing]], patient)
  control.close()
  control.close()
  t.is((await pending).failure, undefined)
  await t.throwsAsync(control.exchange([[nothing]], patient), {code: 'ERR_CLOSED'})
  await t.throwsAsync(control.call([[call.moduleInfo()]], patient), {code: 'ERR_CLOSED'})
})

test('many controls that nobody keeps are collected, in mid-call too', async t => {
  const {socketName} = await server(t, (socket, bytes) => setTimeout(() => socket.end(reply(bytes)), 30))
  const calls: Promise<number>[] = []
  for (let i = 0; i < 20; i++) {
    calls.push(new IetControl({socketName}).exchange([[nothing]], patient).then(({answers}) => answers[0]![0]!.error))
  }
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  collect()
  await new Promise(resolve => setTimeout(resolve, 10))
  collect()
  t.deepEqual(await Promise.all(calls), Array(20).fill(0))
  collect()
})

test('it works in two threads at once, and a thread may end in mid-call', async t => {
  const {control, socketName} = await server(t, (socket, bytes) => {
    if (bytes.readUInt32LE(4) !== 7) socket.end(reply(bytes))
  })
  const module = new URL('../../src/targets/iet-control.js', import.meta.url).href
  const source = `
    import {parentPort, workerData} from 'node:worker_threads'
    const {IetControl, request} = await import(workerData.module)
    const control = new IetControl({socketName: workerData.socketName})
    const {answers} = await control.exchange([[request.nothing()]], {timeoutMs: 5000})
    // This one hangs while the thread is ended.
    void control.exchange([[request.deleteTarget(7)]], {timeoutMs: 2000})
    parentPort.postMessage(answers[0][0].error)
    setInterval(() => undefined, 1000)
  `
  for (let i = 0; i < 3; i++) {
    const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(source)}`), {
      workerData: {socketName, module},
    })
    const [message] = await once(worker, 'message')
    t.is(message, 0)
    t.is((await control.exchange([[nothing]], patient)).failure, undefined)
    await worker.terminate()
  }
})
