import {createHash, randomBytes} from 'node:crypto'
import {open} from 'node:fs/promises'
import {inspect} from 'node:util'
import type {ExecutionContext} from 'ava'
import {StorageError} from '../../src/errors.js'
import type {LoginSpec} from '../../src/initiators/driver.js'
import type {ChapAuth, LunIdentity, Portal} from '../../src/types.js'
import {type HandMadeLun, makeLun} from '../fixtures/lun-by-hand.js'
import {openPortal} from '../fixtures/portals.js'
import type {HandStartedTgtd} from '../fixtures/tgtd-by-hand.js'

const initiatorName = 'iqn.2025-01.test.lunpath:initiator'

/** What every initiator gives: a logical unit that can be read and written, in this process or as a block device. */
export interface ConnectedUnit {
  identity: Pick<LunIdentity, 'wwid' | 'serial' | 'sizeBytes'>
  read(offsetBytes: number, lengthBytes: number): Promise<Buffer>
  write(offsetBytes: number, data: Buffer): Promise<unknown>
  flush(): Promise<unknown>
  close(): Promise<unknown>
}

export interface InitiatorHarness {
  connect(spec: LoginSpec): Promise<ConnectedUnit>
  tgtd(): HandStartedTgtd
  portal(): Portal
  /** The same target over IPv6; undefined where there is none. */
  ipv6(): Promise<Portal | undefined>
  /** The first number that a target of the suite may have. */
  firstTid: number
}

type Declare = (title: string, implementation: (t: ExecutionContext) => Promise<void>) => void

/** What every initiator does, in user space or in the kernel, against a real tgtd. */
export function initiatorContract(declare: Declare, harness: InitiatorHarness): void {
  const {connect, firstTid} = harness
  let made = 0

  async function lun(t: ExecutionContext, options: Parameters<typeof makeLun>[2] = {}): Promise<HandMadeLun> {
    const unit = await makeLun(harness.tgtd(), firstTid + made++, options)
    t.teardown(() => unit.remove())
    return unit
  }

  function login(to: HandMadeLun, more: Partial<LoginSpec> = {}): LoginSpec {
    return {portal: harness.portal(), iqn: to.iqn, lun: to.lun, initiatorName, ...more}
  }

  declare('connect() reads serial, WWID and size', async t => {
    const unit = await lun(t)
    const session = await connect(login(unit))
    t.like(session.identity, {serial: unit.serial, wwid: unit.wwid, sizeBytes: unit.sizeBytes})
    await session.close()
  })

  declare('what is written and flushed is in the backing file, and what is read is what the file holds', async t => {
    const unit = await lun(t)
    const session = await connect(login(unit))
    const data = randomBytes(2 ** 20)
    const offset = 5 * 2 ** 20 + 512
    await session.write(offset, data)
    await session.flush()
    t.is(sha256(await fileRange(unit.path, offset, data.length)), sha256(data))

    const other = randomBytes(64 * 1024)
    const file = await open(unit.path, 'r+')
    await file.write(other, 0, other.length, unit.sizeBytes - other.length)
    await file.close()
    t.is(sha256(await session.read(unit.sizeBytes - other.length, other.length)), sha256(other))
    await session.close()
  })

  declare('one-way CHAP: the right secret logs in, a wrong one and none are AUTH_FAILED', async t => {
    const incoming = {user: `user-${firstTid}-a`, secret: 'incoming-secret'}
    const guarded = await lun(t, {auth: {incoming}})
    const session = await connect(login(guarded, {auth: {incoming}}))
    t.is(session.identity.serial, guarded.serial)
    await session.close()
    const wrong = {incoming: {...incoming, secret: 'a-wrong-secret'}}
    t.is((await refusal(connect(login(guarded, {auth: wrong})))).code, 'AUTH_FAILED')
    t.is((await refusal(connect(login(guarded)))).code, 'AUTH_FAILED')
  })

  declare('a CHAP secret may have any printable characters but blanks and commas', async t => {
    const incoming = {user: `user"#=-${firstTid}`, secret: '#"\'$`\\=;:!~&*()[]{}<>|?'}
    const guarded = await lun(t, {auth: {incoming}})
    const session = await connect(login(guarded, {auth: {incoming}}))
    t.is(session.identity.serial, guarded.serial)
    await session.close()
  })

  declare('mutual CHAP: a target that does not know its own secret is AUTH_FAILED', async t => {
    const auth: Required<ChapAuth> = {
      incoming: {user: `user-${firstTid}-m`, secret: 'incoming-secret'},
      outgoing: {user: `target-${firstTid}-m`, secret: 'outgoing-secret'},
    }
    const guarded = await lun(t, {auth})
    const session = await connect(login(guarded, {auth}))
    t.is(session.identity.serial, guarded.serial)
    await session.close()
    const wrong = {...auth, outgoing: {...auth.outgoing, secret: 'another-secret'}}
    const refused = await refusal(connect(login(guarded, {auth: wrong})))
    t.is(refused.code, 'AUTH_FAILED', refused.message)
    const plain = await lun(t)
    const unproven = await refusal(connect(login(plain, {auth})))
    t.true(['AUTH_FAILED', 'INITIATOR_FAILED'].includes(unproven.code), 'a target without CHAP proves nothing')
  })

  declare('no error shows a secret', async t => {
    const plain = await lun(t)
    const wrong = {incoming: {user: 'u', secret: 'visible-secret-1'}, outgoing: {user: 'o', secret: 'visible-secret-2'}}
    const guarded = await lun(t, {auth: {incoming: {user: `user-${firstTid}-s`, secret: 'incoming-secret'}}})
    const errors = [
      await refusal(connect(login(guarded, {auth: wrong}))),
      await refusal(connect(login(plain, {auth: {incoming: {user: '', secret: 'visible-secret-1'}}}))),
      await refusal(connect(login(plain, {auth: {incoming: {user: 'u', secret: 'visible-secret-1\n'}}}))),
      await refusal(connect(login(plain, {auth: {...wrong, outgoing: wrong.incoming}}))),
    ]
    for (const error of errors) t.false(inspect(error, {depth: 9, showHidden: true}).includes('visible-secret'))
  })

  declare('a target that is for another initiator name does not let this one in', async t => {
    const mine = await lun(t, {initiatorName})
    await (await connect(login(mine))).close()
    const refused = await refusal(connect(login(mine, {initiatorName: 'iqn.2025-01.test.lunpath:other'})))
    t.is(refused.code, 'INITIATOR_FAILED')
  })

  declare('an unknown target, a LUN that is missing and a refused port are INITIATOR_FAILED', async t => {
    const plain = await lun(t)
    const {address, port} = harness.portal()
    for (const wrong of [{iqn: 'iqn.2025-01.test.lunpath:absent'}, {lun: 7}, {portal: {address, port: port - 1}}]) {
      t.is((await refusal(connect(login(plain, wrong)))).code, 'INITIATOR_FAILED', inspect(wrong))
    }
  })

  declare('names, portals and deadlines from outside are checked', async t => {
    const plain = await lun(t)
    const bad: Partial<LoginSpec>[] = [
      {iqn: 'iqn.2025-01.test.lunpath:a,b'},
      {iqn: 'iqn.2025-01.test.lunpath:a\nb'},
      {iqn: 'iqn.2025-01.test.lunpath:../..'},
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
      const {code} = await refusal(connect(login(plain, wrong)))
      t.true(code === 'NAME_INVALID' || code === 'INVALID_ARGUMENT', inspect(wrong))
    }
  })

  declare('a portal that accepts and stays silent is TIMEOUT', async t => {
    const plain = await lun(t)
    const silent = await openPortal(() => {})
    t.teardown(() => silent.close())
    t.is((await refusal(connect(login(plain, {portal: silent.portal, timeoutMs: 1000})))).code, 'TIMEOUT')
  })

  declare('IPv6', async t => {
    const plain = await lun(t)
    const portal = await harness.ipv6()
    if (!portal) {
      t.log('This machine has no ::1')
      t.pass()
      return
    }
    const session = await connect(login(plain, {portal}))
    t.is(session.identity.serial, plain.serial)
    await session.close()
  })

  declare('close() can be called twice, and the target has no session left', async t => {
    const plain = await lun(t)
    const tid = firstTid + made - 1
    const session = await connect(login(plain))
    const connections = () => harness.tgtd().adm('--mode', 'conn', '--op', 'show', '--tid', `${tid}`)
    t.regex(await connections(), /Session/)
    await session.close()
    await session.close()
    t.notRegex(await connections(), /Session/)
  })
}

export async function refusal(promise: Promise<unknown>): Promise<StorageError> {
  const settled = await promise.then(
    () => new Error('it did not fail'),
    error => error,
  )
  if (!(settled instanceof StorageError)) throw settled
  return settled
}

export function sha256(data: Buffer): string {
  return createHash('sha256').update(data).digest('hex')
}

export async function fileRange(path: string, offset: number, length: number): Promise<Buffer> {
  const file = await open(path)
  try {
    return (await file.read(Buffer.alloc(length), 0, length, offset)).buffer
  } finally {
    await file.close()
  }
}
