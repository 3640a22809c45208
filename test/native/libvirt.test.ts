import {execFile} from 'node:child_process'
import {once} from 'node:events'
import {readFile} from 'node:fs/promises'
import {createServer, type Socket} from 'node:net'
import {setTimeout as sleep} from 'node:timers/promises'
import {promisify} from 'node:util'
import {Worker} from 'node:worker_threads'
import test from 'ava'
import {type LibvirtConnection, type LibvirtEvent, newConnection} from '../../src/compute/connection.js'
import {PrivateLibvirtd} from '../../src/sandbox/libvirtd.js'
import {nodeEnvironment} from '../fixtures/node-environment.js'

// libvirt's own test driver: it has domains and events, and needs no daemon.
const testUri = 'test:///default'
const run = promisify(execFile)

let libvirtd: PrivateLibvirtd

test.before(async () => {
  libvirtd = new PrivateLibvirtd()
  await libvirtd.start()
})

test.after.always(() => libvirtd?.stop())

/** A peer that takes connections and never says a word. */
async function openSilentPeer(path: string): Promise<{uri: string; close(): void}> {
  const sockets = new Set<Socket>()
  const server = createServer(socket => sockets.add(socket.on('error', () => {})))
  await once(server.listen(path), 'listening')
  const close = () => {
    server.close()
    for (const socket of sockets) socket.destroy()
  }
  return {uri: `qemu+unix:///session?socket=${path}`, close}
}

function connect(onEvent: (event: LibvirtEvent) => void = () => {}): LibvirtConnection {
  return newConnection(onEvent)
}

test("an error carries libvirt's code, domain, function and message", async t => {
  const connection = connect()
  await connection.open(testUri)
  const error = await t.throwsAsync(connection.domain('nobody'))
  t.like(error, {code: 'VIR_ERR', errno: 42, domain: 12, syscall: 'virDomainLookupByName', message: 'Domain not found'})
  await connection.close()
})

test('a UUID leads to the domain that has it now, also after that was removed and defined anew', async t => {
  const uuid = '5a1d0f3e-6d0c-4f5e-9a57-0d5a2c1b7e11'
  const define = (name: string) =>
    connection.defineXml(
      `<domain type='qemu'><name>${name}</name><uuid>${uuid}</uuid><memory unit='MiB'>64</memory><os><type>hvm</type></os></domain>`,
    )
  // Others count the domains of the common libvirtd.
  const own = new PrivateLibvirtd()
  t.teardown(() => own.stop())
  await own.start()
  const connection = connect()
  await connection.open(own.uri)
  await define('first')
  t.regex(await connection.xml(uuid), /<name>first<\/name>/)
  await connection.undefine('first')
  await t.throwsAsync(connection.xml(uuid), {code: 'VIR_ERR', message: /no domain/i})
  await define('second')
  t.regex(await connection.xml(uuid), /<name>second<\/name>/)
  t.is((await connection.domain(uuid)).name, 'second')
  t.regex((await connection.inactiveXml(uuid))!, /<name>second<\/name>/)
  await connection.undefine(uuid)
  await connection.close()
})

test('calls before open, after close and a second open reject', async t => {
  const connection = connect()
  await t.throwsAsync(connection.domains(), {code: 'ERR_NOT_OPEN'})
  t.false(await connection.isAlive())
  await connection.open(testUri)
  await t.throwsAsync(connection.open(testUri), {code: 'ERR_ALREADY_OPEN'})
  t.true(await connection.isAlive())
  await connection.close()
  await t.throwsAsync(connection.domains(), {code: 'ERR_CLOSED'})
  await t.throwsAsync(connection.open(testUri), {code: 'ERR_CLOSED'})
})

test('close() works twice, at once, before open, and waits for pending calls', async t => {
  const never = connect()
  await never.close()
  await never.close()
  const connection = connect()
  await connection.open(libvirtd.uri)
  let settled = 0
  const calls = Array.from({length: 50}, () => connection.domains().then(() => settled++))
  await Promise.all([connection.close(), connection.close()])
  t.is(settled, 50)
  await Promise.all(calls)
  await connection.close()
})

test('a close() that meets calls as they begin lets them end', async t => {
  for (let round = 0; round < 500; round++) {
    const connection = connect()
    await connection.open(testUri)
    const calls = Array.from({length: 1 + (round % 4)}, () => connection.domains())
    await connection.close()
    t.is((await Promise.all(calls)).length, calls.length)
  }
})

test('wrong arguments are a TypeError', t => {
  const connection = connect() as unknown as Record<string, (...args: unknown[]) => unknown>
  t.throws(() => connect(undefined as unknown as () => void) && newConnection(7 as never), {instanceOf: TypeError})
  t.throws(() => connection.open!(), {instanceOf: TypeError})
  t.throws(() => connection.attachDevice!('a', 'b'), {instanceOf: TypeError})
  t.throws(() => connection.setSecret!('a', 'not bytes'), {instanceOf: TypeError})
})

test("a domain's changes arrive as events, until close()", async t => {
  const events: LibvirtEvent[] = []
  let heard: (() => void) | undefined
  const connection = connect(event => {
    events.push(event)
    heard?.()
  })
  await connection.open(testUri)
  const [domain] = await connection.domains()
  for (const [action, event] of [
    ['suspend', 3],
    ['resume', 4],
  ] as const) {
    const next = new Promise<void>(resolve => {
      heard = resolve
    })
    await connection[action](domain!.uuid)
    await next
    t.like(events.at(-1), {kind: 'lifecycle', domain: domain!.name, uuid: domain!.uuid, event})
  }
  const before = events.length
  await Promise.all([connection.suspend('test'), connection.close()])
  await sleep(50)
  t.is(events.length, before)
})

test('the end of libvirtd is told, and later calls reject', async t => {
  const mortal = new PrivateLibvirtd()
  t.teardown(() => mortal.stop())
  await mortal.start()
  const events: LibvirtEvent[] = []
  let heard = () => {}
  const closed = new Promise<void>(resolve => {
    heard = resolve
  })
  const connection = connect(event => {
    events.push(event)
    heard()
  })
  await connection.open(mortal.uri)
  await mortal.kill()
  await closed
  t.deepEqual(events, [{kind: 'closed', reason: 1}])
  await t.throwsAsync(connection.domains(), {code: 'VIR_ERR'})
  // Held until here: garbage collection closes a connection that nobody has, and then nothing is told.
  await connection.close()
})

test('a worker thread and the main thread each have their own; the worker may end in mid-call', async t => {
  const connection = connect()
  await connection.open(libvirtd.uri)
  for (let round = 0; round < 3; round++) {
    const workers = [1, 2].map(
      () => new Worker(new URL('../fixtures/libvirt-worker.js', import.meta.url), {workerData: {uri: libvirtd.uri}}),
    )
    // Listened to from the start: one worker may speak or end before the other.
    const exits = workers.map(worker => once(worker, 'exit'))
    const messages = await Promise.all(workers.map(worker => once(worker, 'message')))
    t.deepEqual(messages, [[{domains: []}], [{domains: []}]])
    for (const worker of workers) worker.postMessage('leave')
    t.deepEqual(await Promise.all(exits), [[0], [0]])
    t.deepEqual(await connection.domains(), [])
  }
  await connection.close()
})

test('collection of garbage does not reach an object with a call in progress, and closes one without', async t => {
  const script = `
    import {setTimeout as sleep} from 'node:timers/promises'
    const {newConnection} = await import(${JSON.stringify(new URL('../../src/compute/connection.js', import.meta.url).href)})
    let collected = 0
    const registry = new FinalizationRegistry(() => collected++)
    for (let i = 0; i < 30; i++) {
      const connection = newConnection(() => {})
      registry.register(connection, i)
      await connection.open('test:///default')
      void connection.domains()
    }
    const pending = (() => {
      const connection = newConnection(() => {})
      return connection.open(${JSON.stringify(libvirtd.uri)}).then(() => connection.domains())
    })()
    global.gc()
    if ((await pending).length !== 0) throw new Error('domains out of nowhere')
    for (let i = 0; i < 50 && collected < 25; i++) {
      global.gc()
      await sleep(10)
    }
    console.log(collected)`
  const {stdout} = await run(process.execPath, ['--expose-gc', '--input-type=module', '-e', script], {
    env: nodeEnvironment(),
  })
  t.true(Number(stdout) >= 25, `${stdout} of 30 were collected`)
})

test('neither an open connection nor an abandoned call to a silent peer keeps a process alive', async t => {
  const silent = await openSilentPeer(`${libvirtd.directory}/silent`)
  t.teardown(() => silent.close())
  const script = `
    const {newConnection} = await import(${JSON.stringify(new URL('../../src/compute/connection.js', import.meta.url).href)})
    const idle = newConnection(() => {})
    await idle.open(${JSON.stringify(libvirtd.uri)})
    const hanging = newConnection(() => {})
    hanging.open(${JSON.stringify(silent.uri)}).catch(() => {})
    setTimeout(() => hanging.abandon(), 100)`
  const args = ['--input-type=module', '-e', script]
  await t.notThrowsAsync(run(process.execPath, args, {timeout: 20_000, env: nodeEnvironment()}))
})

test("other threads of libuv's pool are free while calls hang", async t => {
  const silent = await openSilentPeer(`${libvirtd.directory}/silent2`)
  t.teardown(() => silent.close())
  const hanging = Array.from({length: 8}, () => connect())
  for (const connection of hanging) {
    connection.open(silent.uri).catch(() => {})
  }
  t.true((await readFile('/proc/self/stat')).length > 0)
  for (const connection of hanging) connection.abandon()
})
