import {randomBytes} from 'node:crypto'
import {once} from 'node:events'
import {access, mkdir, open, readdir, readFile, rmdir, unlink, writeFile} from 'node:fs/promises'
import {createServer} from 'node:net'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import {examine} from '../../src/doctor.js'
import {run} from '../../src/exec.js'
import {LibiscsiInitiator} from '../../src/initiators/libiscsi.js'
import {formatPortal, parsePortal} from '../../src/iqn.js'
import {freePort} from '../../src/sandbox/ports.js'
import {Configfs, configfsRoot} from '../../src/targets/configfs.js'
import {LioDriver, type LioOptions} from '../../src/targets/lio.js'
import {bodyOperations, lioWwid, openingOperations} from '../../src/targets/lio-spec.js'
import type {Export, ExportSpec, Portal} from '../../src/types.js'
import {refusal} from '../contract/initiators.js'
import type {Discover, Login} from '../contract/libiscsi-tools.js'
import {stayLoggedIn, targetContract, temporaryDirectory, until, volumeSpec} from '../contract/targets.js'
import {Node} from '../fixtures/node.js'
import {type BothWrote, bothRead, readEngines, writeEngines} from '../fixtures/path-programs.js'
import {scrape} from '../fixtures/scrape.js'
import {lab, labDisk} from '../lab/lab.js'
import {makeForeignTarget, present, wipe} from './lio-by-hand.js'

const mebibyte = 2 ** 20
const initiator = 'iqn.2026-01.io.lunpath.test:initiator'
const stranger = 'iqn.2026-01.io.lunpath.test:stranger'
const auth = {
  incoming: {user: 'guest', secret: 'a-good-secret-01'},
  outgoing: {user: 'target', secret: 'another-secret-2'},
}
const byName = {addresses: [], names: [initiator]}

lab.options({deadlineMs: 540_000, disksBytes: [64 * mebibyte]})

const freePortal = async (address: string): Promise<Portal> => ({address, port: await freePort(address)})

// The lab has this machine's files, and compiles more slowly.
test.before(async t => {
  t.timeout(300_000)
  await Promise.all([readEngines('undefined'), writeEngines('undefined')])
})

const libiscsi = new LibiscsiInitiator()

const login: Login = async ({portal, iqn, initiator: initiatorName, auth}) => {
  const session = await libiscsi.connect({portal, iqn, lun: 1, initiatorName, auth, timeoutMs: 20_000})
  await session.close()
  return session.identity
}

const discover: Discover = async (portal, initiatorName) => {
  const targets = await libiscsi.discover(portal, {initiatorName, timeoutMs: 20_000})
  return targets.flatMap(({iqn, portals}) => portals.map(at => ({iqn, portal: formatPortal(at)})))
}

targetContract('LIO', {
  test: lab,
  freePortal,
  login,
  discover,
  makeDriver: async (t, {portals}) => ({driver: await opened(t, {portals}), makeForeign: makeForeignTarget}),
})

async function opened(t: ExecutionContext, options: LioOptions): Promise<LioDriver> {
  const driver = new LioDriver(options)
  t.teardown(async () => {
    await driver.close()
    await wipe()
  })
  await driver.open()
  return driver
}

async function setUp(t: ExecutionContext, options: Partial<LioOptions> = {}) {
  const directory = await temporaryDirectory(t)
  const portal = await freePortal('127.0.0.1')
  const driver = await opened(t, {portals: [portal], ...options})
  await driver.restore([])
  return {directory, portal, driver}
}

lab('an export is torn down from each half-made state, and completed from each', async t => {
  const {driver, directory, portal} = await setUp(t)
  const configfs = new Configfs()
  t.teardown(() => configfs.close())
  const specs = [
    await volumeSpec(directory, {access: byName, auth, readOnly: true}),
    await volumeSpec(directory, {auth}),
  ]
  for (const spec of specs) {
    const operations = [...bodyOperations(spec), ...openingOperations(spec.iqn, [portal])]
    for (let made = 1; made <= operations.length; made++) {
      await configfs.run(operations.slice(0, made))
      await driver.unexport(spec.iqn)
      t.deepEqual(await present(), [], `after ${made} of ${operations.length}: ${operations[made - 1]!.path}`)

      await configfs.run(operations.slice(0, made))
      const {serial, wwid} = await driver.export(spec)
      t.like(await login({portal, iqn: spec.iqn, initiator, auth}), {serial, wwid})
      await driver.unexport(spec.iqn)
      t.deepEqual(await present(), [])
    }
    t.log(`${operations.length} states`)
  }
})

lab("the benchmark's own data path reads what libiscsi reads, and the file has", async t => {
  const {driver, directory, portal} = await setUp(t)
  const spec = await volumeSpec(directory)
  const {path, sizeBytes} = spec.volume
  await writeFile(path, randomBytes(sizeBytes))
  await driver.export(spec)
  const {stdout} = await run(await readEngines('undefined'), [formatPortal(portal), spec.iqn, path], {
    timeoutMs: 120_000,
  })
  t.deepEqual(JSON.parse(stdout), bothRead)
})

lab("the benchmark's own data path writes what libiscsi writes, whatever was negotiated", async t => {
  const {driver, directory, portal} = await setUp(t)
  const spec = await volumeSpec(directory)
  const {path, sizeBytes} = spec.volume
  await writeFile(path, randomBytes(sizeBytes))
  await driver.export(spec)
  const parameter = (name: string) => join(configfsRoot, 'target', 'iscsi', spec.iqn, 'tpgt_1', 'param', name)
  for (const ImmediateData of ['Yes', 'No']) {
    for (const InitialR2T of ['Yes', 'No']) {
      await writeFile(parameter('ImmediateData'), ImmediateData)
      await writeFile(parameter('InitialR2T'), InitialR2T)
      const {stdout} = await run(await writeEngines('undefined'), [formatPortal(portal), spec.iqn, path], {
        timeoutMs: 120_000,
      })
      const {writes, reads, ...agreed} = JSON.parse(stdout) as BothWrote
      t.like(agreed, {immediateData: ImmediateData === 'Yes', initialR2t: InitialR2T === 'Yes'})
      t.true(writes > 0 && reads > 0)
      t.log(agreed)
    }
  }
})

lab('a block device is offered with the id as serial and WWID, and is free again afterwards', async t => {
  const {driver, directory, portal} = await setUp(t)
  const volume = {...(await volumeSpec(directory)).volume, path: labDisk(1), kind: 'block', sizeBytes: 64 * mebibyte}
  for (const readOnly of [false, true]) {
    const spec = await volumeSpec(directory, {access: byName, readOnly, volume: volume as ExportSpec['volume']})
    const made = await driver.export(spec)
    t.is(made.wwid, `naa.6001405${volume.id}000000000`)
    const session = await libiscsi.connect({portal, iqn: spec.iqn, lun: 1, initiatorName: initiator})
    t.like(session.identity, {wwid: made.wwid, serial: volume.id, sizeBytes: 64 * mebibyte, vendor: 'LUNPATH'})
    const data = randomBytes(4096)
    if (readOnly) {
      await t.throwsAsync(session.write(0, data))
    } else {
      await session.write(0, data)
      t.deepEqual(await session.read(0, data.length), data)
    }
    await session.close()
    t.is((await driver.get(spec.iqn))?.luns[0]?.readOnly, readOnly)
    await driver.unexport(spec.iqn)
    const device = await open(labDisk(1), 0o200 | 2)
    await device.close()
  }
})

lab('what cannot be a volume is refused in words, and nothing stays', async t => {
  const {driver, directory} = await setUp(t)
  const spec = await volumeSpec(directory)
  const given = (change: Partial<ExportSpec['volume']>) => ({...spec, volume: {...spec.volume, ...change}})
  const messageOf = async (change: Partial<ExportSpec['volume']>) => {
    const error = await refusal(driver.export(given(change)))
    t.is(error.code, 'TARGET_FAILED')
    t.deepEqual(await present(), [])
    return error.message
  }
  const absent = join(directory, 'absent.img')
  t.regex(await messageOf({path: absent}), /ENOENT/)
  await t.throwsAsync(access(absent), {code: 'ENOENT'}, 'LIO has not made it')
  t.regex(await messageOf({path: directory}), /no regular file/)
  t.regex(await messageOf({kind: 'block'}), /no block device/)
  t.regex(await messageOf({sizeBytes: 32 * mebibyte}), /has 16777216 bytes, the volume 33554432/)
  await run('mke2fs', ['-q', labDisk(1)])
  await mkdir(join(directory, 'mounted'))
  await run('mount', [labDisk(1), join(directory, 'mounted')])
  t.teardown(() => run('umount', [labDisk(1)]).catch(() => undefined))
  t.regex(await messageOf({kind: 'block', path: labDisk(1)}), /it is mounted, exported already, or held/)
  await run('umount', [labDisk(1)])
  t.is((await refusal(driver.export(given({path: `${directory}/${'x'.repeat(250)}`})))).code, 'NAME_INVALID')
  const none = {incoming: {user: 'guest', secret: 'NULL-is-no-secret'}}
  t.is((await refusal(driver.export({...spec, auth: none}))).code, 'INVALID_ARGUMENT')
})

lab('write-through unless write-back was asked for', async t => {
  const {driver, directory} = await setUp(t)
  for (const [writeCache, mode] of [
    ['through', 'O_DSYNC'],
    ['back', 'Buffered-WCE'],
  ] as const) {
    const spec = await volumeSpec(directory, {writeCache})
    await driver.export(spec)
    const info = await readFile(`${configfsRoot}/target/core/fileio_3260/${spec.volume.id}/info`, 'utf8')
    t.regex(info, new RegExp(`Mode: ${mode} `))
  }
})

lab('exports of many names are made at once, and one that fails fails alone', async t => {
  const {driver, directory, portal} = await setUp(t)
  const specs = await Promise.all(Array.from({length: 32}, () => volumeSpec(directory, {access: byName})))
  specs[7]!.volume.path = join(directory, 'absent.img')
  const results = await Promise.allSettled(specs.map(spec => driver.export(spec)))
  t.deepEqual(
    results.flatMap(({status}, index) => (status === 'rejected' ? [index] : [])),
    [7],
  )
  t.is((await login({portal, iqn: specs[31]!.iqn, initiator})).serial, specs[31]!.volume.id)
  t.is((await driver.list()).length, 31)
  t.is((await discover(portal, initiator)).length, 31)
})

lab('a portal that a process holds is PORTAL_IN_USE and names it, at the start and later', async t => {
  const directory = await temporaryDirectory(t)
  const {driver, portal} = await setUp(t)
  const server = createServer().listen(portal.port, portal.address)
  await once(server, 'listening')
  t.teardown(() => server.close())
  const error = await refusal(driver.export(await volumeSpec(directory)))
  t.is(error.code, 'PORTAL_IN_USE', `${error.message} ${JSON.stringify(error.info)}`)
  t.like(error.info, {pid: process.pid, portal: formatPortal(portal)})
  t.deepEqual(await present(), [])
  const late = new LioDriver({portals: [portal]})
  t.teardown(() => late.close())
  t.is((await refusal(late.open())).code, 'PORTAL_IN_USE')
})

lab('counters miss nothing of a session and count nothing twice', async t => {
  const {driver, directory, portal} = await setUp(t)
  const spec = await volumeSpec(directory, {access: byName})
  await driver.export(spec)
  const connect = () => libiscsi.connect({portal, iqn: spec.iqn, lun: 1, initiatorName: initiator, timeoutMs: 20_000})
  const session = await connect()
  const totals = async () => {
    const rows = await driver.counters()
    const sum = (key: 'readBytes' | 'writtenBytes') => rows.reduce((total, row) => total + row[key], 0)
    return {sessions: rows.length, read: sum('readBytes'), written: sum('writtenBytes')}
  }
  const before = await totals()
  await session.read(0, 3 * 4096)
  t.is((await totals()).read - before.read, 3 * 4096)
  // Less than what goes with the command itself is behind the last whole megabyte.
  for (let i = 0; i < 64; i++) await session.write(0, Buffer.alloc(65_536, i))
  t.is((await totals()).written, 4 * mebibyte)

  // Another session of the same initiator: LIO shows the later one alone.
  const second = await connect()
  await second.read(0, mebibyte)
  await totals()
  await second.close()
  await until(async () => (await driver.sessions()).length === 1)
  const between = await totals()
  t.is(between.sessions, 2)
  await session.read(0, 4096)
  t.is((await totals()).read - between.read, 4096)
  t.true(between.read - before.read < 3 * 4096 + mebibyte + 4096)
  await session.close()
  await until(async () => (await driver.sessions()).length === 0)
  t.deepEqual(await driver.counters().then(() => driver.counters()), [])
})

lab('the next driver adopts what is there, sessions included; a half-made target it makes whole', async t => {
  const {driver: first, directory, portal} = await setUp(t, {keepOnClose: true})
  const [used, secured, changed, half] = [
    await volumeSpec(directory),
    await volumeSpec(directory, {access: byName, auth}),
    await volumeSpec(directory, {access: byName, auth}),
    await volumeSpec(directory),
  ]
  for (const spec of [used, secured, changed]) await first.export(spec)
  const {process: reader} = await stayLoggedIn(t, first, portal, used.iqn)
  const inUse = await libiscsi.connect({portal, iqn: secured.iqn, lun: 1, initiatorName: initiator, auth})
  await first.close()
  const configfs = new Configfs()
  await configfs.run(bodyOperations(half).slice(0, -2))
  configfs.close()

  const second = await opened(t, {portals: [portal], keepOnClose: true})
  const fresh = {incoming: {user: 'guest', secret: 'a-good-secret-02'}}
  await second.restore([
    used,
    {...secured, access: {addresses: [], names: [initiator, stranger]}},
    {...changed, auth: fresh},
    half,
  ])
  t.is((await second.get(used.iqn))?.sessions.length, 1)
  t.is((await inUse.read(0, 512)).length, 512, 'the session goes on')
  t.is((await login({portal, iqn: secured.iqn, initiator: stranger, auth})).serial, secured.volume.id)
  t.is((await login({portal, iqn: changed.iqn, initiator, auth: fresh})).serial, changed.volume.id)
  await t.throwsAsync(login({portal, iqn: changed.iqn, initiator, auth}), undefined, 'the old secret')
  t.is((await login({portal, iqn: half.iqn, initiator})).serial, half.volume.id)
  t.is(reader.exitCode, null)
  const error = await refusal(new LioDriver({portals: []}).export(used))
  t.is(error.code, 'TARGET_UNAVAILABLE')
  await inUse.close()
  await second.close()

  // Another secret under a session is refused, and the session goes on.
  const third = await opened(t, {portals: [portal]})
  const session = await libiscsi.connect({portal, iqn: secured.iqn, lun: 1, initiatorName: initiator, auth})
  const refused = await refusal(third.restore([{...secured, auth: fresh}]))
  t.like(refused.info.failed, [{iqn: secured.iqn, code: 'TARGET_IN_USE'}])
  t.is((await session.read(0, 512)).length, 512)
  await session.close()
})

lab('targets that somebody took away are put back while the driver runs', async t => {
  const {driver, directory, portal} = await setUp(t)
  const awake = setInterval(() => undefined, 1_000)
  t.teardown(() => clearInterval(awake))
  const spec = await volumeSpec(directory, {access: byName, auth})
  const made = await driver.export(spec)
  const told: Record<string, unknown>[] = []
  driver.on('lost', facts => told.push(facts))
  const back = new Promise<Record<string, unknown>>(resolve => driver.on('restarted', resolve))
  await wipe()
  t.like(await back, {exports: 1, failed: []})
  t.like(told, [{exports: [spec.iqn]}])
  t.like(await login({portal, iqn: spec.iqn, initiator, auth}), {serial: made.serial, wwid: made.wwid})
})

lab('what is unexported or changed while targets come back stays so', async t => {
  const {directory, driver} = await setUp(t)
  const awake = setInterval(() => undefined, 1_000)
  t.teardown(() => clearInterval(awake))
  const specs = await Promise.all(Array.from({length: 3}, () => volumeSpec(directory)))
  const [kept, ended, changed] = specs as [ExportSpec, ExportSpec, ExportSpec]
  for (const spec of specs) await driver.export(spec)
  const to = {...changed, readOnly: true}
  let requests: Promise<unknown> = Promise.resolve()
  const lost = new Promise<void>(resolve =>
    driver.on('lost', () => {
      requests = Promise.all([driver.unexport(ended.iqn), driver.export(to)])
      resolve()
    }),
  )
  const back = new Promise<Record<string, unknown>>(resolve => driver.on('restarted', resolve))
  await wipe()
  await lost
  await requests
  t.like(await back, {exports: 1, failed: []})
  const names = (await driver.list()).map(({iqn, luns}) => [iqn, luns[0]!.readOnly])
  t.deepEqual(
    new Map(names as [string, boolean][]),
    new Map([
      [kept.iqn, false],
      [changed.iqn, true],
    ]),
  )
  t.false(driver.isInPlace(ended.iqn))
})

lab('what somebody took out of a target is put back: a portal, a rule, its LUN, its being enabled', async t => {
  const {driver, directory, portal} = await setUp(t)
  const awake = setInterval(() => undefined, 1_000)
  t.teardown(() => clearInterval(awake))
  const spec = await volumeSpec(directory, {access: byName, auth})
  const other = await volumeSpec(directory)
  const made = await driver.export(spec)
  await driver.export(other)
  const told: string[] = []
  for (const event of ['lost', 'restarted', 'mended'] as const) driver.on(event, () => told.push(event))
  const group = join(configfsRoot, 'target', 'iscsi', spec.iqn, 'tpgt_1')
  const lun = join(group, 'lun', 'lun_1')
  const rule = join(group, 'acls', initiator)
  const linkIn = async (directory: string) =>
    (await readdir(directory, {withFileTypes: true})).find(entry => entry.isSymbolicLink())!.name
  const takeAway: Record<string, () => Promise<void>> = {
    portal: () => rmdir(join(group, 'np', formatPortal(portal))),
    rule: async () => {
      await unlink(join(rule, 'lun_1', await linkIn(join(rule, 'lun_1'))))
      await rmdir(join(rule, 'lun_1'))
      await rmdir(rule)
    },
    lun: async () => unlink(join(lun, await linkIn(lun))),
    enable: () => writeFile(join(group, 'enable'), '0'),
  }
  for (const [what, act] of Object.entries(takeAway)) {
    told.length = 0
    await act()
    await until(async () => told.some(event => event !== 'lost'))
    t.deepEqual(told, what === 'portal' || what === 'rule' ? ['mended'] : ['lost', 'restarted'], what)
    t.like(await login({portal, iqn: spec.iqn, initiator, auth}), {serial: made.serial, wwid: made.wwid}, what)
  }
  t.deepEqual(driver.portalStates(), [{...portal, open: true, reason: null}])
})

lab('after a reboot the daemon puts everything back: names, serials, LUNs, CHAP', async t => {
  const node = await Node.make({targets: {driver: 'lio', endWithDaemon: false}})
  t.teardown(async () => {
    await node.stop()
    await wipe()
  })
  await node.start()
  type Made = {volume: {id: string}; export: Export}
  const post = (body: unknown) => node.api.call<Made>('POST', '/exports', body)
  const made = [
    await post({sizeBytes: 16 * mebibyte, access: {names: [initiator]}, auth}),
    await post({sizeBytes: 32 * mebibyte, access: {names: [initiator]}, readOnly: true}),
    await post({sizeBytes: 16 * mebibyte, access: {addresses: ['ALL']}}),
  ]
  const error = await refusal(post({sizeBytes: 16 * mebibyte, access: {addresses: ['10.0.0.0/8']}}))
  t.is(error.code, 'UNSUPPORTED')
  const portal = parsePortal(node.portal)
  const look = (t2 = made) =>
    Promise.all(t2.map(({export: {iqn}}, index) => login({portal, iqn, initiator, ...(index === 0 && {auth})})))
  const before = await look()
  t.deepEqual(
    before.map(({serial}) => serial),
    made.map(({volume}) => volume.id),
  )
  t.deepEqual(
    made.map(({export: {wwid}}) => wwid),
    made.map(({volume}) => lioWwid(volume.id)),
  )
  await node.stopDaemon()
  t.like(await look(), before, 'a restart of the daemon alone interrupts nothing')
  await wipe()
  t.deepEqual(await present(), [])
  await node.start()
  t.deepEqual(await look(), before)
  await t.throwsAsync(login({portal, iqn: made[0]!.export.iqn, initiator}), undefined, 'CHAP is asked for')
  await t.throwsAsync(login({portal, iqn: made[1]!.export.iqn, initiator: stranger}))
  const {samples} = await scrape(node.metricsPort)
  t.is(samples.filter(({name, labels}) => name === 'iscsi_target_info' && labels.driver === 'lio').length, 3)
  t.is(
    samples.filter(({name}) => name === 'iscsi_target_enabled').reduce((sum, {value}) => sum + value, 0),
    3,
  )
  for (const {volume} of made) await node.api.call('DELETE', `/exports/${volume.id}`)
  t.deepEqual(await present(), [])
})

lab('doctor says whether LIO can work here', async t => {
  const portals = [
    {address: '127.0.0.1', port: 3260},
    {address: '192.0.2.1', port: 3260},
  ]
  const checks = await examine({targetDriver: 'lio', portals})
  const statusOf = (part: string) => checks.find(({name}) => name.includes(part))?.status
  t.is(statusOf('LIO'), 'ok')
  t.is(statusOf('addon configfs'), 'ok')
  t.is(statusOf('127.0.0.1'), 'ok')
  t.is(statusOf('192.0.2.1'), 'warn')
})
