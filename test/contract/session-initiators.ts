import {createHash, randomBytes} from 'node:crypto'
import {open} from 'node:fs/promises'
import {networkInterfaces} from 'node:os'
import {inspect} from 'node:util'
import type {TestFn} from 'ava'
import {StorageError} from '../../src/errors.js'
import type {IscsiSession, LoginSpec, SessionInitiator} from '../../src/initiators/driver.js'
import type {ChapAuth} from '../../src/types.js'
import {type HandMadeLun, makeLun} from '../fixtures/lun-by-hand.js'
import {openPortal} from '../fixtures/portals.js'
import {type HandStartedTgtd, startTgtd} from '../fixtures/tgtd-by-hand.js'

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

  async function lun(options: Parameters<typeof makeLun>[2] = {}, host = tgtd): Promise<HandMadeLun> {
    const made = await makeLun(host, luns.length + 1, options)
    luns.push(made)
    return made
  }

  function login(to: HandMadeLun, more: Partial<LoginSpec> = {}): LoginSpec {
    return {portal: {address: '127.0.0.1', port: tgtd.port}, iqn: to.iqn, lun: to.lun, initiatorName, ...more}
  }

  async function refusal(promise: Promise<unknown>): Promise<StorageError> {
    const settled = await promise.then(
      () => new Error('it did not fail'),
      error => error,
    )
    if (!(settled instanceof StorageError)) throw settled
    return settled
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

  test.serial('connect() reads serial, WWID, size and block size', async t => {
    const session = await initiator.connect(login(plain))
    t.like(session.identity, {
      serial: plain.serial,
      wwid: plain.wwid,
      sizeBytes: plain.sizeBytes,
      blockSizeBytes: 512,
      vendor: 'IET',
      product: 'VIRTUAL-DISK',
    })
    await session.close()
  })

  test.serial(
    'what is written and flushed is in the backing file, and what is read is what the file holds',
    async t => {
      const session = await initiator.connect(login(plain))
      const data = randomBytes(2 ** 20)
      const offset = 5 * 2 ** 20 + 512
      await session.write(offset, data)
      await session.flush()
      t.is(sha256(await fileRange(plain.path, offset, data.length)), sha256(data))

      const other = randomBytes(64 * 1024)
      const file = await open(plain.path, 'r+')
      await file.write(other, 0, other.length, plain.sizeBytes - other.length)
      await file.close()
      t.is(sha256(await session.read(plain.sizeBytes - other.length, other.length)), sha256(other))
      await session.close()
    },
  )

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

  test.serial('one-way CHAP: the right secret logs in, a wrong one and none are AUTH_FAILED', async t => {
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

  test.serial('mutual CHAP: a target that does not know its own secret is AUTH_FAILED', async t => {
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

  test.serial('no error shows a secret', async t => {
    const wrong = {incoming: {user: 'u', secret: 'visible-secret-1'}, outgoing: {user: 'o', secret: 'visible-secret-2'}}
    const errors = [
      await refusal(initiator.connect(login(luns[1]!, {auth: wrong}))),
      await refusal(initiator.connect(login(plain, {auth: wrong}))),
      await refusal(initiator.connect(login(plain, {auth: {incoming: {user: '', secret: 'visible-secret-1'}}}))),
      await refusal(initiator.connect(login(plain, {auth: {incoming: {user: 'u', secret: 'visible-secret-1\n'}}}))),
      await refusal(initiator.connect(login(plain, {auth: {...wrong, outgoing: wrong.incoming}}))),
    ]
    for (const error of errors) t.false(inspect(error, {depth: 9, showHidden: true}).includes('visible-secret'))
  })

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

  test.serial('names, portals and deadlines from outside are checked', async t => {
    const bad: Partial<LoginSpec>[] = [
      {iqn: 'iqn.2025-01.test.lunpath:a,b'},
      {iqn: 'iqn.2025-01.test.lunpath:a\nb'},
      {iqn: ''},
      {initiatorName: 'somebody'},
      {lun: -1},
      {lun: 1.5},
      {portal: {address: 'localhost', port: 3260}},
      {portal: {address: '127.0.0.1', port: 0}},
      {timeoutMs: 0},
      {timeoutMs: Number.POSITIVE_INFINITY},
    ]
    for (const wrong of bad) {
      const {code} = await refusal(initiator.connect(login(plain, wrong)))
      t.true(code === 'NAME_INVALID' || code === 'INVALID_ARGUMENT', inspect(wrong))
    }
  })

  test.serial('a portal that accepts and stays silent is TIMEOUT', async t => {
    const silent = await openPortal(() => {})
    t.teardown(() => silent.close())
    t.is((await refusal(initiator.connect(login(plain, {portal: silent.portal, timeoutMs: 200})))).code, 'TIMEOUT')
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

  const ipv6 = Object.values(networkInterfaces()).some(addresses => addresses?.some(({address}) => address === '::1'))
  const testIpv6 = ipv6 ? test.serial : test.serial.skip
  testIpv6('IPv6 (skipped where this machine has no ::1)', async t => {
    await tgtd.adm('--mode', 'portal', '--op', 'new', '--param', `portal=[::1]:${tgtd.port}`)
    const portal = {address: '::1', port: tgtd.port}
    const session = await initiator.connect(login(plain, {portal}))
    t.is(session.identity.serial, plain.serial)
    await session.close()
    const targets = await initiator.discover(portal, {initiatorName})
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

function sha256(data: Buffer): string {
  return createHash('sha256').update(data).digest('hex')
}

async function fileRange(path: string, offset: number, length: number): Promise<Buffer> {
  const file = await open(path)
  try {
    return (await file.read(Buffer.alloc(length), 0, length, offset)).buffer
  } finally {
    await file.close()
  }
}
