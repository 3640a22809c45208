import {createHash} from 'node:crypto'
import {once} from 'node:events'
import {readFile} from 'node:fs/promises'
import {connect} from 'node:net'
import {setFlagsFromString} from 'node:v8'
import {runInNewContext} from 'node:vm'
import {Worker} from 'node:worker_threads'
import test, {type ExecutionContext} from 'ava'
import {LibiscsiInitiator} from '../../src/initiators/libiscsi.js'
import {sessionInitiatorContract} from '../contract/session-initiators.js'
import {makeLun} from '../fixtures/lun-by-hand.js'
import {loginResponse, openPortal} from '../fixtures/portals.js'
import {startTgtd} from '../fixtures/tgtd-by-hand.js'

const initiator = new LibiscsiInitiator()
const initiatorName = 'iqn.2025-01.test.lunpath:initiator'

sessionInitiatorContract(test, initiator)

async function onTgtd(t: ExecutionContext) {
  const tgtd = await startTgtd()
  t.teardown(() => tgtd.stop())
  const lun = await makeLun(tgtd, 1)
  t.teardown(() => lun.remove())
  return {tgtd, lun, login: {portal: {address: '127.0.0.1', port: tgtd.port}, iqn: lun.iqn, lun: 1, initiatorName}}
}

test.serial('probe() accepts the unit that is expected, and leaves no session', async t => {
  const {tgtd, lun, login} = await onTgtd(t)
  const identity = await initiator.probe(login, lun)
  t.like(identity, {serial: lun.serial, wwid: lun.wwid, sizeBytes: lun.sizeBytes})
  t.notRegex(await tgtd.adm('--mode', 'conn', '--op', 'show', '--tid', '1'), /Session/)
})

test.serial('probe() refuses another serial, WWID or size', async t => {
  const {lun, login} = await onTgtd(t)
  for (const wrong of [{serial: 'other'}, {wwid: 'naa.6001405000000000'}, {sizeBytes: lun.sizeBytes - 512}]) {
    await t.throwsAsync(initiator.probe(login, {...lun, ...wrong}), {code: 'IDENTITY_MISMATCH'})
  }
})

test.serial('probe() ends at its deadline', async t => {
  const silent = await openPortal(() => {})
  t.teardown(() => silent.close())
  const login = {portal: silent.portal, iqn: 'iqn.2025-01.test.lunpath:x', lun: 1, initiatorName}
  await t.throwsAsync(initiator.probe(login, {}, 150), {code: 'TIMEOUT'})
})

const impostors = {
  'skips the security stage': (request: Buffer) => loginResponse(request, 0x87, []),
  'declines CHAP': (request: Buffer, round: number) =>
    round === 0 ? loginResponse(request, 0x81, ['AuthMethod=None']) : loginResponse(request, 0x87, []),
  'proves with zeros before it is challenged': (request: Buffer, round: number) =>
    round === 0
      ? loginResponse(request, 0x81, ['AuthMethod=None', 'CHAP_N=target-user', `CHAP_R=0x${'00'.repeat(16)}`])
      : loginResponse(request, 0x87, []),
  'proves with characters that libiscsi takes for zeros': (request: Buffer, round: number) =>
    round === 0
      ? loginResponse(request, 0x81, ['AuthMethod=None', 'CHAP_N=target-user', `CHAP_R=0x${'@0'.repeat(16)}`])
      : loginResponse(request, 0x87, []),
}

for (const [what, answer] of Object.entries(impostors)) {
  test.serial(`mutual CHAP refuses a target that ${what}`, async t => {
    const impostor = await openPortal(socket => {
      let round = 0
      socket.on('data', request => socket.write(answer(request, round++)))
    })
    t.teardown(() => impostor.close())
    const auth = {
      incoming: {user: 'u', secret: 'incoming-secret'},
      outgoing: {user: 'target-user', secret: 'outgoing-1'},
    }
    const login = {portal: impostor.portal, iqn: 'iqn.2025-01.test.lunpath:x', lun: 1, initiatorName, auth}
    await t.throwsAsync(initiator.connect({...login, timeoutMs: 1000}), {code: 'AUTH_FAILED'})
    await t.throwsAsync(initiator.discover(impostor.portal, {initiatorName, auth, timeoutMs: 1000}), {
      code: 'AUTH_FAILED',
    })
  })
}

test.serial('a login response that comes byte by byte is a login response', async t => {
  const {tgtd, lun} = await onTgtd(t)
  const slow = await openPortal(client => {
    const target = connect(tgtd.port, '127.0.0.1')
    client.pipe(target)
    client.setNoDelay(true)
    client.on('close', () => target.destroy())
    target.on('data', chunk => {
      for (const byte of chunk) client.write(Buffer.from([byte]))
    })
  })
  t.teardown(() => slow.close())
  const session = await initiator.connect({portal: slow.portal, iqn: lun.iqn, lun: 1, initiatorName})
  t.is(session.identity.serial, lun.serial)
  await session.close()
})

test.serial('a worker thread has sessions too', async t => {
  const {lun, login} = await onTgtd(t)
  const sums = [1, 2].map(async () => {
    const worker = new Worker(new URL('../fixtures/session-worker.js', import.meta.url), {workerData: login})
    const exited = once(worker, 'exit')
    const [sum] = await once(worker, 'message')
    await exited
    return sum
  })
  const beginning = (await readFile(lun.path)).subarray(0, 2 ** 20)
  const expected = createHash('sha256').update(beginning).digest('hex')
  t.deepEqual(await Promise.all(sums), [expected, expected])
})

test.serial('a worker thread may end in the middle of a login', async t => {
  const silent = await openPortal(() => {})
  t.teardown(() => silent.close())
  const accepted = silent.accepted()
  const workerData = {
    portal: silent.portal,
    iqn: 'iqn.2025-01.test.lunpath:x',
    lun: 1,
    initiatorName,
    timeoutMs: 60_000,
  }
  const worker = new Worker(new URL('../fixtures/session-worker.js', import.meta.url), {workerData})
  await accepted
  t.is(await worker.terminate(), 1)
})

test.serial('garbage collection does not end a session whose call is running', async t => {
  setFlagsFromString('--expose_gc')
  const gc = runInNewContext('gc') as () => void
  const {login} = await onTgtd(t)
  const begin = async () => (await initiator.connect(login)).read(0, 2 ** 20)
  const reads = [begin(), begin(), begin()]
  for (let round = 0; round < 20; round++) {
    gc()
    await new Promise(setImmediate)
  }
  t.deepEqual(
    (await Promise.all(reads)).map(data => data.length),
    [2 ** 20, 2 ** 20, 2 ** 20],
  )
})
