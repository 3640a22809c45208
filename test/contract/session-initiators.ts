import {randomBytes} from 'node:crypto'
import {networkInterfaces} from 'node:os'
import type {TestFn} from 'ava'
import type {IscsiSession, LoginSpec, SessionInitiator} from '../../src/initiators/driver.js'
import type {ChapAuth} from '../../src/types.js'
import {type HandMadeLun, makeLun} from '../fixtures/lun-by-hand.js'
import {openPortal} from '../fixtures/portals.js'
import {type HandStartedTgtd, startTgtd} from '../fixtures/tgtd-by-hand.js'
import {initiatorContract, refusal} from './initiators.js'

const initiatorName = 'iqn.2025-01.test.lunpath:initiator'
const auth: Required<ChapAuth> = {
  incoming: {user: 'initiator-user', secret: 'incoming-secret'},
  outgoing: {user: 'target-user', secret: 'outgoing-secret'},
}

/** What every user-space initiator does, against a real tgtd. */
export function sessionInitiatorContract(test: TestFn, initiator: SessionInitiator): void {
  let tgtd: HandStartedTgtd
  let plain: HandMadeLun
  const luns: HandMadeLun[] = []
  const ipv6 = Object.values(networkInterfaces()).some(addresses => addresses?.some(({address}) => address === '::1'))
  let ipv6Open = false

  async function openIpv6(): Promise<void> {
    if (ipv6Open) return
    await tgtd.adm('--mode', 'portal', '--op', 'new', '--param', `portal=[::1]:${tgtd.port}`)
    ipv6Open = true
  }

  async function lun(options: Parameters<typeof makeLun>[2] = {}, host = tgtd): Promise<HandMadeLun> {
    const made = await makeLun(host, luns.length + 1, options)
    luns.push(made)
    return made
  }

  function login(to: HandMadeLun, more: Partial<LoginSpec> = {}): LoginSpec {
    return {portal: {address: '127.0.0.1', port: tgtd.port}, iqn: to.iqn, lun: to.lun, initiatorName, ...more}
  }

  test.before(async () => {
    tgtd = await startTgtd()
    plain = await lun()
  })

  test.after.always(async () => {
    await tgtd?.stop()
    await Promise.all(luns.map(made => made.remove()))
  })

  test.serial('discover() lists targets with their portals', async t => {
    const {portal} = login(plain)
    const targets = await initiator.discover(portal, {initiatorName})
    t.deepEqual(
      targets.find(({iqn}) => iqn === plain.iqn),
      {iqn: plain.iqn, portals: [{...portal, tpgt: 1}]},
    )
  })

  initiatorContract(test.serial, {
    connect: spec => initiator.connect(spec),
    tgtd: () => tgtd,
    portal: () => ({address: '127.0.0.1', port: tgtd.port}),
    ipv6: async () => {
      if (!ipv6) return undefined
      await openIpv6()
      return {address: '::1', port: tgtd.port}
    },
    firstTid: 1001,
  })

  test.serial('connect() reads block size, vendor and product', async t => {
    const session = await initiator.connect(login(plain))
    t.like(session.identity, {
      blockSizeBytes: 512,
      vendor: 'IET',
      product: 'VIRTUAL-DISK',
    })
    await session.close()
  })

  test.serial('page() gives a page as the target has it; one that it has not is an error', async t => {
    const session = await initiator.connect(login(plain))
    const serial = await session.page(0x80)
    t.deepEqual([serial[1], serial.length], [0x80, 4 + serial.readUInt16BE(2)])
    t.is(serial.subarray(4).toString('latin1').trim(), plain.serial)
    const identification = await session.page(0x83)
    t.is(identification[1], 0x83)
    t.true(identification.includes(Buffer.from(plain.wwid.replace('naa.', ''), 'hex')))
    t.like((await refusal(session.page(0xc5))).cause, {code: 'SCSI_SENSE'})
    t.is((await session.page(0x80)).length, serial.length)
    await session.close()
  })

  test.serial('a range outside the unit, or not of whole blocks, is refused before anything is sent', async t => {
    const session = await initiator.connect(login(plain))
    const ranges: [number, number][] = [
      [plain.sizeBytes, 512],
      [plain.sizeBytes - 512, 1024],
      [1, 512],
      [0, 511],
      [0, 0],
      [-512, 512],
      [0, 2 ** 20 + 512],
      [Number.NaN, 512],
      [2 ** 60, 512],
    ]
    for (const [offset, length] of ranges) {
      t.is((await refusal(session.read(offset, length))).code, 'INVALID_ARGUMENT', `${length} at ${offset}`)
    }
    t.is((await refusal(session.write(512, Buffer.alloc(100)))).code, 'INVALID_ARGUMENT')
    await session.close()
  })

  test.serial('a refused CHAP login has the status of its response as the cause', async t => {
    const guarded = await lun({auth: {incoming: auth.incoming}})
    const session = await initiator.connect(login(guarded, {auth: {incoming: auth.incoming}}))
    t.is(session.identity.serial, guarded.serial)
    await session.close()

    const wrong = {incoming: {...auth.incoming, secret: 'a-wrong-secret'}}
    const refused = await refusal(initiator.connect(login(guarded, {auth: wrong})))
    t.is(refused.code, 'AUTH_FAILED')
    t.like(refused.cause, {code: 'AUTH', errno: 0x0201})
    t.is((await refusal(initiator.connect(login(guarded)))).code, 'AUTH_FAILED')
  })

  test.serial('mutual CHAP: another secret, another user and a target without CHAP are AUTH_FAILED', async t => {
    const guarded = await makeMutual()
    const session = await initiator.connect(login(guarded, {auth}))
    t.is(session.identity.serial, guarded.serial)
    await session.close()

    for (const outgoing of [
      {...auth.outgoing, secret: 'another-secret'},
      {...auth.outgoing, user: 'another-user'},
    ]) {
      const refused = await refusal(initiator.connect(login(guarded, {auth: {...auth, outgoing}})))
      t.is(refused.code, 'AUTH_FAILED')
    }
    t.is((await refusal(initiator.connect(login(plain, {auth})))).code, 'AUTH_FAILED', 'a target without CHAP')
  })

  // tgtd's accounts are global: the incoming one is there already.
  async function makeMutual(): Promise<HandMadeLun> {
    const guarded = await lun({auth: {incoming: {user: 'mutual-user', secret: auth.incoming.secret}}})
    auth.incoming.user = 'mutual-user'
    const account = ['--mode', 'account', '--user', auth.outgoing.user]
    await tgtd.adm(...account, '--op', 'new', '--password', auth.outgoing.secret)
    await tgtd.adm(...account, '--op', 'bind', '--tid', `${luns.length}`, '--outgoing')
    return guarded
  }

  test.serial('a target that is for another initiator name looks as if it were not there', async t => {
    const mine = await lun({initiatorName})
    await (await initiator.connect(login(mine))).close()
    const refused = await refusal(initiator.connect(login(mine, {initiatorName: 'iqn.2025-01.test.lunpath:other'})))
    t.is(refused.code, 'INITIATOR_FAILED')
    t.like(refused.cause, {code: 'TARGET_NOT_FOUND', errno: 0x0203})
  })

  test.serial('an unknown target, a LUN that is missing and a refused port say so', async t => {
    const unknown = await refusal(initiator.connect(login(plain, {iqn: 'iqn.2025-01.test.lunpath:absent'})))
    t.like(unknown.cause, {code: 'TARGET_NOT_FOUND', errno: 0x0203})
    t.like((await refusal(initiator.connect(login(plain, {lun: 7})))).cause, {code: 'LUN_NOT_FOUND'})
    const nobody = await openPortal(() => {})
    await nobody.close()
    const refused = await refusal(initiator.connect(login(plain, {portal: nobody.portal})))
    t.like(refused.cause, {code: 'ECONNREFUSED', syscall: 'connect'})
    t.deepEqual([unknown.code, refused.code], ['INITIATOR_FAILED', 'INITIATOR_FAILED'])
  })

  test.serial('discover() at a portal that accepts and stays silent is TIMEOUT', async t => {
    const silent = await openPortal(() => {})
    t.teardown(() => silent.close())
    t.is((await refusal(initiator.discover(silent.portal, {initiatorName, timeoutMs: 200}))).code, 'TIMEOUT')
  })

  test.serial('a portal that talks nonsense is an error', async t => {
    for (const length of [1, 47, 48, 100, 4096, 100_000]) {
      const nonsense = await openPortal(socket => socket.end(randomBytes(length)))
      t.teardown(() => nonsense.close())
      for (const attempt of [
        initiator.connect(login(plain, {portal: nonsense.portal})),
        initiator.discover(nonsense.portal, {initiatorName}),
      ]) {
        t.is((await refusal(attempt)).code, 'INITIATOR_FAILED', `${length} bytes`)
      }
    }
  })

  const testIpv6 = ipv6 ? test.serial : test.serial.skip
  testIpv6('discover() over IPv6 (skipped where this machine has no ::1)', async t => {
    await openIpv6()
    const targets = await initiator.discover({address: '::1', port: tgtd.port}, {initiatorName})
    t.true(targets.some(({portals}) => portals.some(({address, port}) => address === '::1' && port === tgtd.port)))
  })

  test.serial('two sessions of one initiator with one target live side by side', async t => {
    const sessions = [await initiator.connect(login(plain)), await initiator.connect(login(plain))]
    const data = randomBytes(4096)
    for (let round = 0; round < 20; round++) {
      await sessions[round % 2]!.write(4096 * round, data)
      t.deepEqual(await sessions[(round + 1) % 2]!.read(4096 * round, 4096), data)
    }
    await Promise.all(sessions.map(session => session.close()))
  })

  test.serial('close() waits for calls made before it, can be called twice, and refuses later ones', async t => {
    const session = await initiator.connect(login(plain))
    const reads = Array.from({length: 16}, (_, i) => session.read(i * 4096, 4096))
    const closes = [session.close(), session.close()]
    t.deepEqual(
      (await Promise.all(reads)).map(data => data.length),
      Array.from({length: 16}, () => 4096),
    )
    await Promise.all(closes)
    await session.close()
    t.is((await refusal(session.read(0, 512))).code, 'INITIATOR_FAILED')
    t.notRegex(await tgtd.adm('--mode', 'conn', '--op', 'show', '--tid', '1'), /Session/, 'tgtd has no session left')
  })

  async function onOwnTgtd(more: Partial<LoginSpec>): Promise<{own: HandStartedTgtd; session: IscsiSession}> {
    const own = await startTgtd()
    const made = await lun({}, own)
    const portal = {address: '127.0.0.1', port: own.port}
    return {own, session: await initiator.connect(login(made, {portal, ...more}))}
  }

  test.serial('a target that is killed: pending and later calls reject, close() works', async t => {
    const {own, session} = await onOwnTgtd({})
    t.teardown(() => own.stop())
    own.kill('SIGSTOP')
    const calls = [session.read(0, 4096), session.write(0, Buffer.alloc(4096)), session.flush()].map(refusal)
    own.kill('SIGKILL')
    for (const call of calls) t.is((await call).code, 'INITIATOR_FAILED')
    t.is((await refusal(session.read(0, 4096))).code, 'INITIATOR_FAILED')
    await session.close()
  })

  test.serial('a target that hangs: each call ends at its deadline', async t => {
    const {own, session} = await onOwnTgtd({commandTimeoutMs: 200})
    t.teardown(() => own.stop())
    own.kill('SIGSTOP')
    t.is((await refusal(session.read(0, 4096))).code, 'TIMEOUT')
    // What the target answers later belongs to no call any more, so the session ended with the deadline.
    t.is((await refusal(session.read(0, 4096))).code, 'INITIATOR_FAILED')
    await session.close()
  })

  test.serial('with reconnect, a call survives a lost connection', async t => {
    const session = await initiator.connect(login(plain, {reconnect: true}))
    const data = randomBytes(4096)
    await session.write(0, data)
    await dropConnections()
    t.deepEqual(await session.read(0, 4096), data)
    await dropConnections()
    await session.flush()
    const serial = await session.page(0x80)
    await dropConnections()
    t.deepEqual(await session.page(0x80), serial)
    await session.close()
  })

  test.serial('with reconnect, another unit under the same name is IDENTITY_MISMATCH', async t => {
    const changing = await lun()
    const session = await initiator.connect(login(changing, {reconnect: true}))
    const unit = ['--mode', 'logicalunit', '--tid', `${luns.length}`, '--lun', '1']
    await tgtd.adm(...unit, '--op', 'update', '--params', 'scsi_sn=another')
    await dropConnections(luns.length)
    t.is((await refusal(session.write(0, Buffer.alloc(512)))).code, 'IDENTITY_MISMATCH')
    await session.close()
  })

  async function dropConnections(tid = 1): Promise<void> {
    const listing = await tgtd.adm('--mode', 'conn', '--op', 'show', '--tid', `${tid}`)
    for (const [, sid, cid] of listing.matchAll(/Session: (\d+)\s+Connection: (\d+)/g)) {
      await tgtd.adm('--mode', 'conn', '--op', 'delete', '--tid', `${tid}`, '--sid', sid!, '--cid', cid!)
    }
  }
}
