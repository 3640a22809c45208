import {execFile} from 'node:child_process'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {promisify} from 'node:util'
import test, {type ExecutionContext} from 'ava'
import {freePort} from '../../src/sandbox/ports.js'
import {TgtDriver} from '../../src/targets/tgt.js'
import type {ExportSpec} from '../../src/types.js'
import {login} from '../contract/libiscsi-tools.js'
import {stayLoggedIn, temporaryDirectory, until, volumeSpec} from '../contract/targets.js'
import {startForeignTgtd} from './foreign-tgtd.js'

/** What another tool takes out of a tgtd that runs on comes back by itself. */
const run = promisify(execFile)
const initiator = 'iqn.2026-01.io.lunpath.test:initiator'

type Adm = (...args: string[]) => Promise<{stdout: string}>
type Facts = Record<string, unknown>

async function prepare(t: ExecutionContext, {managed, exports = 1}: {managed: boolean; exports?: number}) {
  // The driver's own timers and children do not keep the process alive.
  const timer = setInterval(() => undefined, 1_000)
  t.teardown(() => clearInterval(timer))
  const directory = await temporaryDirectory(t)
  const portal = {address: '127.0.0.1', port: await freePort()}
  let tgtadm: Adm
  let driver: TgtDriver
  if (managed) {
    const env = {PATH: `${process.env.PATH}:/usr/sbin`, LC_ALL: 'C', TGT_IPC_SOCKET: join(directory, 'tgt', 'control')}
    tgtadm = (...args) => run('tgtadm', ['-C', '1', '--lld', 'iscsi', ...args], {env})
    driver = new TgtDriver({managed, directory: join(directory, 'tgt'), portals: [portal], dieWithParent: true})
  } else {
    const foreign = await startForeignTgtd(t, directory)
    tgtadm = foreign.tgtadm
    driver = new TgtDriver({managed, socketPath: foreign.socketPath, portals: [portal]})
  }
  t.teardown(() => driver.close())
  await driver.open()
  await driver.restore([])
  const specs: ExportSpec[] = []
  for (let made = 0; made < exports; made++) specs.push(await volumeSpec(directory))
  await Promise.all(specs.map(spec => driver.export(spec)))
  const told: [string, Facts][] = []
  for (const event of ['restarted', 'lost', 'mended'] as const) driver.on(event, facts => told.push([event, facts]))
  const spec = specs.at(-1)!
  const tidOf = async (iqn: string) => String((await driver.get(iqn))!.tid)
  return {directory, portal, driver, tgtadm, specs, spec, told, tidOf}
}

const eventsOf = (told: [string, Facts][]) => told.map(([event]) => event)

for (const managed of [true, false]) {
  const whose = managed ? 'a tgtd of our own' : 'a tgtd of others'

  test(`${whose}: a target that another tool deletes is back, and so it is told`, async t => {
    const {driver, tgtadm, spec, specs, told, tidOf, portal} = await prepare(t, {managed, exports: 20})
    await tgtadm('--mode', 'target', '--op', 'delete', '--tid', await tidOf(spec.iqn))
    await until(async () => eventsOf(told).includes('restarted'))
    t.deepEqual(eventsOf(told), ['lost', 'restarted'])
    t.like(told[0]![1], {exports: [spec.iqn]})
    t.like(told[1]![1], {exports: 1, failed: []})
    t.is((await login({portal, iqn: spec.iqn, initiator})).serial, spec.volume.id)
    t.is((await driver.list()).length, specs.length)
  })

  test(`${whose}: a LUN that another tool deletes is back, under its session too`, async t => {
    const {driver, tgtadm, spec, specs, told, tidOf, portal} = await prepare(t, {managed, exports: 2})
    const idle = specs[0]!
    const {process: reader} = await stayLoggedIn(t, driver, portal, spec.iqn)
    reader.kill('SIGSTOP')
    for (const {iqn} of [spec, idle]) {
      await tgtadm('--mode', 'logicalunit', '--op', 'delete', '--tid', await tidOf(iqn), '--lun', '1')
      const back = async () => (await driver.get(iqn))?.luns.length === 1
      await until(back)
      await until(async () => eventsOf(told).includes('restarted'))
      told.length = 0
    }
    const shown = new Map((await driver.list()).map(target => [target.iqn, target]))
    for (const {iqn, volume} of [spec, idle])
      t.like(shown.get(iqn)!.luns[0], {serial: volume.id, scsiId: volume.id, online: true, path: volume.path})
    t.is(shown.get(spec.iqn)!.sessions.length, 1)
  })

  test(`${whose}: a portal that another tool closes is open again`, async t => {
    const {driver, tgtadm, spec, told, portal} = await prepare(t, {managed})
    await tgtadm('--mode', 'portal', '--op', 'delete', '--param', `portal=127.0.0.1:${portal.port}`)
    await until(async () => eventsOf(told).includes('mended'))
    t.deepEqual(told, [['mended', {portals: [`127.0.0.1:${portal.port}`]}]])
    t.is((await login({portal, iqn: spec.iqn, initiator})).serial, spec.volume.id)
    t.deepEqual(driver.portalStates(), [{...portal, open: true, reason: null}])
  })

  test(`${whose}: a portal whose address comes later opens when it is there`, async t => {
    const {driver, directory} = await prepare(t, {managed})
    await driver.close()
    const address = `198.18.${process.pid % 256}.${managed ? 7 : 8}`
    const late = {address, port: await freePort()}
    const change = (op: 'add' | 'del') => run('ip', ['address', op, `${address}/32`, 'dev', 'lo'])
    const foreign = managed ? undefined : await startForeignTgtd(t, await temporaryDirectory(t))
    const second = new TgtDriver(
      foreign
        ? {managed: false, socketPath: foreign.socketPath, portals: [late]}
        : {managed: true, directory: join(directory, 'late'), portals: [late], dieWithParent: true},
    )
    t.teardown(() => second.close())
    await second.open()
    await second.restore([])
    const spec = await volumeSpec(directory)
    await second.export(spec)
    t.like(second.portalStates(), [{...late, open: false}])
    t.regex(second.portalStates()[0]!.reason!, /no address of this machine/)
    t.teardown(() => change('del').catch(() => {}))
    await change('add')
    await until(async () => second.portalStates()[0]!.open)
    t.is((await login({portal: late, iqn: spec.iqn, initiator})).serial, spec.volume.id)
    await change('del')
    await until(async () => !second.portalStates()[0]!.open)
  })
}

test('an access rule that another tool takes away is back', async t => {
  const {tgtadm, spec, told, tidOf, portal} = await prepare(t, {managed: true, exports: 30})
  await tgtadm('--mode', 'target', '--op', 'unbind', '--tid', await tidOf(spec.iqn), '-I', 'ALL')
  await until(async () => eventsOf(told).includes('mended'))
  t.deepEqual(told, [['mended', {rules: [spec.iqn]}]])
  t.is((await login({portal, iqn: spec.iqn, initiator})).serial, spec.volume.id)
})

test('in a tgtd of others a rule, or a target whose number has become a stranger’s, is found by a listing', async t => {
  const {driver, tgtadm, spec, specs, told, tidOf, directory} = await prepare(t, {managed: false, exports: 3})
  await tgtadm('--mode', 'target', '--op', 'unbind', '--tid', await tidOf(spec.iqn), '-I', 'ALL')
  await driver.list()
  await until(async () => eventsOf(told).includes('mended'))
  told.length = 0
  const other = specs[0]!
  const tid = await tidOf(other.iqn)
  const stranger = await volumeSpec(directory)
  await tgtadm('--mode', 'target', '--op', 'delete', '--tid', tid)
  await tgtadm('--mode', 'target', '--op', 'new', '--tid', tid, '-T', 'iqn.2001-04.com.example:x').catch(() => {})
  await tgtadm(
    ...['--mode', 'logicalunit', '--op', 'new', '--tid', tid, '--lun', '1', '-b', stranger.volume.path],
  ).catch(() => {})
  await driver.list()
  await until(async () => {
    const shown = (await driver.list()).find(({iqn}) => iqn === other.iqn)
    return shown?.luns[0]?.path === other.volume.path && shown.access.addresses[0] === 'ALL'
  })
  t.true(eventsOf(told).includes('restarted'))
})

test('what is not lost is left alone: a second without an event, and sessions go on', async t => {
  const {driver, spec, told, portal} = await prepare(t, {managed: true, exports: 5})
  const {process: reader} = await stayLoggedIn(t, driver, portal, spec.iqn)
  // Some rounds of looks.
  await sleep(1_500)
  t.deepEqual(told, [])
  t.is(reader.exitCode, null)
})
