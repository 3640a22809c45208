import {type ChildProcess, spawn} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {once} from 'node:events'
import {mkdtemp, readFile, rm, truncate, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import type {ExecutionContext} from 'ava'
import {type ErrorCode, StorageError} from '../../src/errors.js'
import {formatPortal} from '../../src/iqn.js'
import type {TargetDriver} from '../../src/targets/driver.js'
import type {ExportSpec, ObservedTarget, Portal} from '../../src/types.js'
import {turns} from '../fixtures/turns.js'
import {
  type Discover,
  discover as discoverByTools,
  iscsiUrl,
  type Login,
  login as loginByTools,
  overwrite,
  overwrittenBytes,
} from './libiscsi-tools.js'

const mebibyte = 2 ** 20

/** A driver that is open, has restored nothing yet, and is torn down by the maker's own teardown. */
export interface DriverUnderTest {
  driver: TargetDriver
  /** Makes a target that the driver has nothing to do with; undefined where no such thing can be in its daemon. */
  makeForeign?: (target: {iqn: string; path: string}) => Promise<void>
}

export interface TargetContractOptions {
  /** ava's, or the lab's. */
  test: (title: string, implementation: (t: ExecutionContext) => Promise<void>) => void
  /** Opens a driver with these portals in a directory of the test's own. */
  makeDriver: (t: ExecutionContext, options: {directory: string; portals: Portal[]}) => Promise<DriverUnderTest>
  freePortal: (address: string) => Promise<Portal>
  login?: Login
  discover?: Discover
  /** False where the driver says so (`supports.dataPath`): tests that log in pass without a look. Default true. */
  dataPath?: boolean
}

/** Without the driver's name: tests that `dataPath` switches off. */
export const titlesWithLogin = new Set<string>()

const initiator = 'iqn.2026-01.io.lunpath.test:initiator'
const stranger = 'iqn.2026-01.io.lunpath.test:stranger'

/** A temporary directory that goes with the test. The path is short: unix sockets take 107 bytes. */
export async function temporaryDirectory(t: ExecutionContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'lp-'))
  t.teardown(() => rm(directory, {recursive: true, force: true}))
  return directory
}

/** A sparse volume file and the spec that offers it to everyone. */
export async function volumeSpec(directory: string, change: Partial<ExportSpec> = {}): Promise<ExportSpec> {
  const id = randomBytes(8).toString('hex')
  const path = join(directory, `${id}.img`)
  await writeFile(path, '')
  await truncate(path, 16 * mebibyte)
  return {
    volume: {id, path, kind: 'file', sizeBytes: 16 * mebibyte},
    iqn: `iqn.2026-01.io.lunpath.test:${id}`,
    access: {addresses: ['ALL'], names: []},
    writeCache: 'through',
    readOnly: false,
    ...change,
  }
}

/**
 * An initiator that stays logged in and reads for as long as it lives: libiscsi's iscsi-perf. Returns when the driver
 * sees the session.
 */
export async function stayLoggedIn(
  t: ExecutionContext,
  driver: TargetDriver,
  portal: Portal,
  iqn: string,
): Promise<{process: ChildProcess; leave: () => Promise<void>}> {
  const child = spawn('iscsi-perf', ['-i', initiator, '-t', '600', '-b', '8', iscsiUrl(portal, iqn, 1)], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: {PATH: process.env.PATH, LC_ALL: 'C'},
  })
  let said = ''
  child.stderr.on('data', text => {
    said += text
  })
  child.on('exit', code => t.log(`iscsi-perf ended: ${code ?? 'killed'} ${said.slice(-500)}`))
  const ended = once(child, 'exit')
  const leave = async () => {
    child.kill('SIGKILL')
    await ended
    // The kernel may not have ended those who logged out shortly before, either.
    await until(async () => ((await driver.get(iqn))?.sessions ?? []).length === 0)
  }
  t.teardown(() => child.kill('SIGKILL'))
  await until(async () => (await driver.get(iqn))?.sessions.length === 1)
  return {process: child, leave}
}

/** Waits for a condition of the outside world; fails the test after 20 s. */
export async function until(condition: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 20_000
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error('what was waited for did not come')
    await new Promise(resolve => setTimeout(resolve, 20))
  }
}

const turn = turns(8)

/** What every target driver must do. One call per driver; each test gets a daemon and portals of its own. */
export function targetContract(name: string, options: TargetContractOptions): void {
  const {test, makeDriver, freePortal, login = loginByTools, discover = discoverByTools, dataPath = true} = options

  /** A test whose point is what initiators meet. */
  const loginTest = (title: string, implementation: (t: ExecutionContext) => Promise<void>) => {
    titlesWithLogin.add(title.slice(name.length + 2))
    test(title, async t => {
      if (dataPath) await implementation(t)
      else t.pass('there is nothing to log in to')
    })
  }

  const setUp = async (t: ExecutionContext, addresses = ['127.0.0.1']) => {
    await turn(t)
    const directory = await temporaryDirectory(t)
    const portals: Portal[] = []
    for (const address of addresses) portals.push(await freePortal(address))
    const made = await makeDriver(t, {directory, portals})
    t.is(made.driver.supports.dataPath, dataPath)
    await made.driver.restore([])
    return {directory, portals, portal: portals[0]!, ...made}
  }

  const refused = (t: ExecutionContext, portal: Portal, iqn: string, by = initiator, auth?: ExportSpec['auth']) =>
    t.throwsAsync(login({portal, iqn, initiator: by, auth}), undefined, `${by} must not get in`)

  const refusedWith = async (t: ExecutionContext, code: ErrorCode, action: Promise<unknown>) => {
    const error = await t.throwsAsync(action, {instanceOf: StorageError})
    t.is(error?.code, code, error?.message)
    return error as StorageError
  }

  test(`${name}: an export is in place from its making to its end, and portals are open`, async t => {
    const {driver, directory, portals} = await setUp(t, ['127.0.0.1', '127.0.0.2'])
    const spec = await volumeSpec(directory)
    t.false(driver.isInPlace(spec.iqn))
    await driver.export(spec)
    t.true(driver.isInPlace(spec.iqn))
    await driver.unexport(spec.iqn)
    t.false(driver.isInPlace(spec.iqn))
    const states = driver.portalStates()
    t.deepEqual(
      states.map(({address, port}) => ({address, port})),
      portals,
    )
    if (dataPath) t.true(states.every(({open, reason}) => open && reason === null))
  })

  test(`${name}: an exported volume has its id as serial, and its size`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const spec = await volumeSpec(directory)
    const made = await driver.export(spec)
    t.like(made, {volumeId: spec.volume.id, iqn: spec.iqn, lun: 1, serial: spec.volume.id, sizeBytes: 16 * mebibyte})
    t.deepEqual(made.portals, [portal])
  })

  loginTest(`${name}: initiators find an exported volume by its name, its serial, its WWID and its size`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const spec = await volumeSpec(directory)
    const made = await driver.export(spec)
    const seen = await login({portal, iqn: spec.iqn, initiator})
    t.is(seen.serial, made.serial)
    t.is(seen.sizeBytes, made.sizeBytes)
    if (seen.wwid !== undefined) t.is(seen.wwid, made.wwid)
    const found = await discover(portal, initiator)
    t.deepEqual([...new Set(found.map(({iqn}) => iqn))], [spec.iqn])
    t.true(found.some(one => one.portal === formatPortal(portal)))
  })

  test(`${name}: exporting twice is exporting once`, async t => {
    const {driver, directory} = await setUp(t)
    const spec = await volumeSpec(directory)
    const [first, second] = await Promise.all([driver.export(spec), driver.export(spec)])
    t.deepEqual(first, second)
    t.deepEqual(await driver.export(spec), first)
    t.is((await driver.list()).filter(({iqn}) => iqn === spec.iqn).length, 1)
  })

  test(`${name}: many exports at once all succeed`, async t => {
    const {driver, directory} = await setUp(t)
    const specs = await Promise.all(Array.from({length: 40}, () => volumeSpec(directory)))
    await Promise.all(specs.map(spec => driver.export(spec)))
    const tids = (await driver.list()).map(({tid}) => tid)
    t.is(new Set(tids).size, 40)
    await Promise.all(specs.map(spec => driver.unexport(spec.iqn)))
    t.deepEqual(await driver.list(), [])
  })

  test(`${name}: what is gone already is unexported`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const spec = await volumeSpec(directory)
    await driver.unexport(spec.iqn)
    await driver.export(spec)
    await driver.unexport(spec.iqn)
    await driver.unexport(spec.iqn)
    t.is(await driver.get(spec.iqn), undefined)
    if (dataPath) await refused(t, portal, spec.iqn)
  })

  test(`${name}: list and get show a target, its LUN, rules and accounts`, async t => {
    const {driver, directory} = await setUp(t)
    const byAddress = driver.supports.addressRules
    const spec = await volumeSpec(directory, {
      access: {addresses: byAddress ? ['127.0.0.1', '10.1.2.3/8'] : [], names: [initiator]},
      auth: {incoming: {user: 'guest', secret: 'one-secret-0001'}},
      readOnly: true,
    })
    await driver.export(spec)
    const lun = {lun: 1, path: spec.volume.path, sizeBytes: 16 * mebibyte, serial: spec.volume.id}
    const expected = {
      iqn: spec.iqn,
      luns: [{...lun, readOnly: true, online: true}],
      access: {addresses: byAddress ? ['127.0.0.1', '10.0.0.0/8'] : [], names: [initiator]},
      accounts: ['guest'],
      sessions: [],
    } as unknown as ObservedTarget
    t.like(await driver.get(spec.iqn), expected)
    t.like((await driver.list())[0], expected)
    t.is(await driver.get('iqn.2026-01.io.lunpath.test:absent'), undefined)
  })

  loginTest(`${name}: a read-only export refuses writes, another one takes them`, async t => {
    const {driver, directory, portal} = await setUp(t)
    for (const readOnly of [true, false]) {
      const spec = await volumeSpec(directory, {readOnly})
      await driver.export(spec)
      t.is((await driver.get(spec.iqn))?.luns[0]?.readOnly, readOnly)
      t.is(await overwrite(portal, spec.iqn, initiator), !readOnly)
      const written = (await readFile(spec.volume.path)).filter(byte => byte !== 0).length
      t.is(written, readOnly ? 0 : overwrittenBytes)
    }
  })

  loginTest(`${name}: without a rule nobody logs in`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const spec = await volumeSpec(directory, {access: {addresses: [], names: []}})
    await driver.export(spec)
    await refused(t, portal, spec.iqn)
    t.deepEqual(await discover(portal, initiator).catch(() => []), [])
  })

  loginTest(`${name}: rules by address let in who comes from there, or are refused`, async t => {
    const {driver, directory, portal} = await setUp(t)
    if (!driver.supports.addressRules) {
      for (const addresses of [['127.0.0.1'], ['ALL', '10.0.0.0/8']]) {
        const spec = await volumeSpec(directory, {access: {addresses, names: [initiator]}})
        t.throws(() => driver.check(spec), {code: 'UNSUPPORTED'})
        await refusedWith(t, 'UNSUPPORTED', driver.export(spec))
      }
      t.deepEqual(await driver.list(), [])
      return
    }
    const elsewhere = await volumeSpec(directory, {access: {addresses: ['192.0.2.1'], names: []}})
    const here = await volumeSpec(directory, {access: {addresses: ['127.0.0.1/32'], names: []}})
    const net = await volumeSpec(directory, {access: {addresses: ['127.1.2.3/8'], names: []}})
    for (const spec of [elsewhere, here, net]) await driver.export(spec)
    await refused(t, portal, elsewhere.iqn)
    await t.notThrowsAsync(login({portal, iqn: here.iqn, initiator}))
    await t.notThrowsAsync(login({portal, iqn: net.iqn, initiator}))
  })

  loginTest(`${name}: rules by name let in who has the name; with addresses they are a union`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const named = await volumeSpec(directory, {access: {addresses: [], names: [initiator]}})
    const union = await volumeSpec(directory, {access: {addresses: ['192.0.2.1'], names: [initiator]}})
    for (const spec of driver.supports.addressRules ? [named, union] : [named]) {
      await driver.export(spec)
      await t.notThrowsAsync(login({portal, iqn: spec.iqn, initiator}))
      await refused(t, portal, spec.iqn, stranger)
    }
  })

  loginTest(
    `${name}: a rule lets its initiator in whether that sends its name as it is spelled there or folded`,
    async t => {
      const {driver, directory, portal} = await setUp(t)
      const spelled = 'iqn.2026-01.io.lunpath.test:ESX-Host.1'
      const spec = await volumeSpec(directory, {access: {addresses: [], names: [spelled]}})
      await driver.export(spec)
      await t.notThrowsAsync(login({portal, iqn: spec.iqn, initiator: spelled}))
      await t.notThrowsAsync(login({portal, iqn: spec.iqn, initiator: spelled.toLowerCase()}))
      await refused(t, portal, spec.iqn, stranger)
      t.deepEqual(await driver.export(spec), await driver.export({...spec}))
      await driver.export({...spec, access: {addresses: [], names: [stranger]}})
      for (const one of [spelled, spelled.toLowerCase()]) await refused(t, portal, spec.iqn, one)
    },
  )

  loginTest(`${name}: a rule takes an initiator's name as that host has chosen it`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const chosen = ['iqn.2001-04.com.example:host_1', 'iqn.2001-04.com.example:a=b+c@d', 'iqn.no-date.example:x*[y]$']
    for (const one of chosen) {
      const spec = await volumeSpec(directory, {access: {addresses: [], names: [one]}})
      await driver.export(spec)
      await t.notThrowsAsync(login({portal, iqn: spec.iqn, initiator: one}), one)
      await refused(t, portal, spec.iqn, one.replace(/.$/, ''))
      t.deepEqual((await driver.get(spec.iqn))?.access.names, [one])
    }
  })

  loginTest(`${name}: exporting with other rules changes the rules`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const spec = await volumeSpec(directory)
    await driver.export(spec)
    await driver.export({...spec, access: {addresses: [], names: [initiator]}})
    await t.notThrowsAsync(login({portal, iqn: spec.iqn, initiator}))
    await refused(t, portal, spec.iqn, stranger)
    t.deepEqual((await driver.list())[0]?.access, {addresses: [], names: [initiator]})
  })

  loginTest(`${name}: CHAP lets in who has the secret`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const auth = {incoming: {user: 'guest', secret: 'a-good-secret-01'}}
    const spec = await volumeSpec(directory, {auth})
    await driver.export(spec)
    const {iqn} = spec
    await t.notThrowsAsync(login({portal, iqn, initiator, auth}))
    await refused(t, portal, iqn)
    await refused(t, portal, iqn, initiator, {incoming: {user: 'guest', secret: 'not-the-secret-1'}})
  })

  loginTest(`${name}: mutual CHAP proves the target too`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const auth = {
      incoming: {user: 'guest', secret: 'a-good-secret-01'},
      outgoing: {user: 'target', secret: 'another-secret-2'},
    }
    const spec = await volumeSpec(directory, {auth})
    await driver.export(spec)
    const {iqn} = spec
    await t.notThrowsAsync(login({portal, iqn, initiator, auth}))
    const impostor = {...auth, outgoing: {user: 'target', secret: 'what-i-expected1'}}
    await refused(t, portal, iqn, initiator, impostor)
  })

  loginTest(`${name}: a new secret replaces the old one`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const old = {incoming: {user: 'guest', secret: 'a-good-secret-01'}}
    const fresh = {incoming: {user: 'guest', secret: 'a-good-secret-02'}}
    const spec = await volumeSpec(directory, {auth: old})
    await driver.export(spec)
    await driver.export({...spec, auth: fresh})
    await t.notThrowsAsync(login({portal, iqn: spec.iqn, initiator, auth: fresh}))
    await refused(t, portal, spec.iqn, initiator, old)
    await driver.export({...spec, auth: undefined})
    await t.notThrowsAsync(login({portal, iqn: spec.iqn, initiator}))
  })

  loginTest(`${name}: exports share a CHAP user, and one's end leaves the others'`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const auth = {incoming: {user: 'guest', secret: 'a-good-secret-01'}}
    const [one, two] = [await volumeSpec(directory, {auth}), await volumeSpec(directory, {auth})]
    await Promise.all([driver.export(one), driver.export(two)])
    await driver.unexport(one.iqn)
    await t.notThrowsAsync(login({portal, iqn: two.iqn, initiator, auth}))
    await refused(t, portal, two.iqn)
    const again = await volumeSpec(directory, {auth})
    await driver.export(again)
    await t.notThrowsAsync(login({portal, iqn: again.iqn, initiator, auth}))
  })

  loginTest(`${name}: every portal is served, IPv6 included`, async t => {
    const {driver, directory, portals} = await setUp(t, ['127.0.0.1', '127.0.0.2', '::1'])
    const addresses = driver.supports.addressRules ? ['127.0.0.0/8', '::1'] : ['ALL']
    const spec = await volumeSpec(directory, {access: {addresses, names: []}})
    const made = await driver.export(spec)
    t.deepEqual(made.portals, portals)
    t.deepEqual(driver.portals(), portals)
    for (const portal of portals) {
      t.is((await login({portal, iqn: spec.iqn, initiator})).serial, spec.volume.id, formatPortal(portal))
    }
  })

  loginTest(`${name}: a target in use is not unexported, resized or changed; its session goes on`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const spec = await volumeSpec(directory)
    await driver.export(spec)
    const {leave} = await stayLoggedIn(t, driver, portal, spec.iqn)
    const error = await refusedWith(t, 'TARGET_IN_USE', driver.unexport(spec.iqn))
    t.deepEqual(error.info.initiators, [initiator])
    if (!driver.supports.resizeInUse) await refusedWith(t, 'TARGET_IN_USE', driver.resize(spec))
    await refusedWith(t, 'TARGET_IN_USE', driver.export({...spec, readOnly: true}))
    t.is((await driver.get(spec.iqn))?.sessions.length, 1)
    await t.notThrowsAsync(login({portal, iqn: spec.iqn, initiator: stranger}), 'the rule is still there')
    await leave()
    await driver.unexport(spec.iqn)
    t.is(await driver.get(spec.iqn), undefined)
  })

  loginTest(`${name}: force closes sessions under I/O`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const spec = await volumeSpec(directory)
    await driver.export(spec)
    await stayLoggedIn(t, driver, portal, spec.iqn)
    await driver.unexport(spec.iqn, {force: true})
    t.is(await driver.get(spec.iqn), undefined)
    t.deepEqual(await driver.sessions(), [])
    await refused(t, portal, spec.iqn)
  })

  test(`${name}: resize offers the new size with the same identity`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const spec = await volumeSpec(directory)
    await driver.export(spec)
    await truncate(spec.volume.path, 32 * mebibyte)
    const grown = await driver.resize({...spec, volume: {...spec.volume, sizeBytes: 32 * mebibyte}})
    t.is(grown.sizeBytes, 32 * mebibyte)
    t.like((await driver.get(spec.iqn))?.luns[0], {sizeBytes: 32 * mebibyte, serial: spec.volume.id})
    if (dataPath) {
      const seen = await login({portal, iqn: spec.iqn, initiator})
      t.is(seen.sizeBytes, 32 * mebibyte)
      t.is(seen.serial, spec.volume.id)
    }
    await refusedWith(t, 'EXPORT_NOT_FOUND', driver.resize(await volumeSpec(directory)))
  })

  loginTest(`${name}: sessions and counters say who reads what`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const {sessionsOfAnybody, commandCounters} = driver.supports
    const access = sessionsOfAnybody ? {addresses: ['ALL'], names: []} : {addresses: [], names: [initiator]}
    const [busy, idle] = [await volumeSpec(directory, {access}), await volumeSpec(directory, {access})]
    await driver.export(busy)
    await driver.export(idle)
    t.deepEqual(await driver.sessions(), [])
    t.deepEqual(await driver.counters(), [])
    await stayLoggedIn(t, driver, portal, busy.iqn)
    const [session] = await driver.sessions()
    t.like(session, {iqn: busy.iqn, initiator})
    t.is(session?.connections[0]?.address, '127.0.0.1')
    if (!driver.supports.byteCounters) {
      t.deepEqual(await driver.counters(), [])
      return
    }
    const read = async () => (await driver.counters())[0]?.readBytes ?? 0
    await until(async () => (await read()) > mebibyte)
    const [counter] = await driver.counters()
    t.like(counter, {iqn: busy.iqn, initiator, lun: 1, sid: session?.sid, writtenBytes: 0})
    if (commandCounters) t.true(counter!.readCommands! > 0)
    else t.is(counter!.readCommands, null)
  })

  loginTest(`${name}: sessions of initiators that no rule names are seen and counted too`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const spec = await volumeSpec(directory)
    await driver.export(spec)
    const {leave} = await stayLoggedIn(t, driver, portal, spec.iqn)
    t.like(await driver.sessions(), [{iqn: spec.iqn, initiator}])
    if (driver.supports.byteCounters) {
      await until(async () => ((await driver.counters())[0]?.readBytes ?? 0) > 2 * mebibyte)
      t.is((await driver.counters())[0]?.initiator, driver.supports.sessionsOfAnybody ? initiator : 'ALL')
    }
    await leave()
    await until(async () => (await driver.counters()).length === 0)
    t.deepEqual(await driver.sessions(), [])
  })

  loginTest(`${name}: resize under a session, where the driver can`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const spec = await volumeSpec(directory)
    await driver.export(spec)
    await stayLoggedIn(t, driver, portal, spec.iqn)
    await truncate(spec.volume.path, 32 * mebibyte)
    const grown = {...spec, volume: {...spec.volume, sizeBytes: 32 * mebibyte}}
    if (!driver.supports.resizeInUse) {
      await refusedWith(t, 'TARGET_IN_USE', driver.resize(grown))
      return
    }
    t.is((await driver.resize(grown)).sizeBytes, 32 * mebibyte)
    t.is((await driver.get(spec.iqn))?.sessions.length, 1)
    t.is((await login({portal, iqn: spec.iqn, initiator: stranger})).sizeBytes, 32 * mebibyte)
  })

  test(`${name}: how a volume is kept is chosen, or refused before anything is made`, async t => {
    const {driver, directory} = await setUp(t)
    const spec = await volumeSpec(directory, {ioType: 'fileio'})
    if (driver.supports.ioTypes) {
      await driver.export(spec)
      t.is((await driver.get(spec.iqn))?.luns.find(({lun}) => lun === 1)?.ioType, 'fileio')
      return
    }
    for (const ioType of ['fileio', 'blockio', 'nullio'] as const) {
      await refusedWith(t, 'UNSUPPORTED', driver.export({...spec, ioType}))
    }
    t.deepEqual(await driver.list(), [])
  })

  test(`${name}: a volume that cannot be opened leaves no target behind`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const auth = {incoming: {user: 'guest', secret: 'a-good-secret-01'}}
    const spec = await volumeSpec(directory, {auth})
    const path = join(directory, 'absent.img')
    await refusedWith(t, 'TARGET_FAILED', driver.export({...spec, volume: {...spec.volume, path}}))
    t.deepEqual(await driver.list(), [])
    await driver.export(spec)
    if (dataPath) await t.notThrowsAsync(login({portal, iqn: spec.iqn, initiator, auth}))
  })

  test(`${name}: one name is one volume`, async t => {
    const {driver, directory, portal} = await setUp(t)
    const spec = await volumeSpec(directory)
    const other = await volumeSpec(directory)
    await driver.export(spec)
    await refusedWith(t, 'TARGET_EXISTS', driver.export({...other, iqn: spec.iqn}))
    t.is((await driver.get(spec.iqn))?.luns[0]?.path, spec.volume.path)
    if (dataPath) t.is((await login({portal, iqn: spec.iqn, initiator})).serial, spec.volume.id)
  })

  test(`${name}: no error tells a secret`, async t => {
    const {driver, directory} = await setUp(t)
    const spec = await volumeSpec(directory, {auth: {incoming: {user: 'guest', secret: 'top-secret-0001'}}})
    await driver.export(spec)
    const other = await volumeSpec(directory, {auth: {incoming: {user: 'guest', secret: 'top-secret-0002'}}})
    const absent = await volumeSpec(directory, {auth: {incoming: {user: 'absent', secret: 'top-secret-0003'}}})
    absent.volume.path = join(directory, 'absent.img')
    const errors = [await refusedWith(t, 'TARGET_FAILED', driver.export(absent))]
    // One user with two secrets.
    if (driver.supports.chapUserPerTarget) t.notThrows(() => driver.check(other))
    else errors.push(t.throws(() => driver.check(other), {code: 'CONFLICT'}) as StorageError)
    if (driver.supports.chapUserPerTarget) await driver.export(other)
    else errors.push(await refusedWith(t, 'CONFLICT', driver.export(other)))
    for (const error of errors) {
      const told = JSON.stringify([error.message, error.info, String(error.cause), error.stack])
      t.false(told.includes('top-secret'))
    }
  })

  test(`${name}: targets of others are listed and left alone`, async t => {
    const {driver, directory, makeForeign} = await setUp(t)
    if (!makeForeign) {
      t.pass('nobody else can have targets in the daemon of this driver')
      return
    }
    const foreign = await volumeSpec(directory)
    await makeForeign({iqn: foreign.iqn, path: foreign.volume.path})
    const before = (await driver.list()).find(({iqn}) => iqn === foreign.iqn)
    t.truthy(before)
    const clash = await volumeSpec(directory, {iqn: foreign.iqn})
    await refusedWith(t, 'TARGET_EXISTS', driver.export(clash))
    await refusedWith(t, 'TARGET_EXISTS', driver.unexport(foreign.iqn))
    const ours = await volumeSpec(directory)
    await driver.export(ours)
    await driver.unexport(ours.iqn)
    t.deepEqual(
      (await driver.list()).find(({iqn}) => iqn === foreign.iqn),
      before,
    )
  })

  test(`${name}: close can be called twice, and before open`, async t => {
    const {driver, directory} = await setUp(t)
    await driver.export(await volumeSpec(directory))
    await driver.close()
    await driver.close()
    await refusedWith(t, 'TARGET_UNAVAILABLE', driver.export(await volumeSpec(directory)))
  })
}
