import {execFile} from 'node:child_process'
import {rename} from 'node:fs/promises'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {promisify} from 'node:util'
import anyTest, {type TestFn} from 'ava'
import {affectLive} from '../../src/compute/connection.js'
import {Daemon} from '../../src/daemon.js'
import {freePort} from '../../src/sandbox/ports.js'
import type {Export} from '../../src/types.js'
import {Host, Node} from '../fixtures/node.js'
import {sampleOf, scrape} from '../fixtures/scrape.js'

/** The world changes while the daemon runs: it is looked at again and again, and what is wrong is said as long as it is. */
const test = anyTest.serial as TestFn
const run = promisify(execFile)
const sizeBytes = 8 * 2 ** 20

let host: Host
test.before(async () => {
  host = await Host.start()
})
test.after.always(async () => {
  await host?.stop()
})

interface Made {
  volume: {id: string; path: string}
  export: Export
}
interface Status {
  state: string
  portals: {address: string; port: number; open: boolean; reason: string | null}[]
  problems: {problem: string; subject: string; message: string}[]
}

const statusOf = (node: Node) => node.api.call<Status>('GET', '/status')
const problemsOf = async (node: Node) =>
  (await statusOf(node)).problems.map(({problem, subject}) => `${problem} ${subject}`)

/** Waits until it has happened; the test's own time limit is the deadline. */
async function until(happened: () => Promise<boolean> | boolean): Promise<void> {
  while (!(await happened())) await sleep(50)
}

const tgtadm = (node: Node, ...args: string[]) =>
  run('tgtadm', ['-C', '1', '--lld', 'iscsi', ...args], {
    env: {PATH: `${process.env.PATH}:/usr/sbin`, LC_ALL: 'C', TGT_IPC_SOCKET: join(node.directory, 'tgtd', 'control')},
  })

test('01 a target that another tool deletes under a guest is back, the guest reads on, and a detach of its disk ends', async t => {
  t.timeout(90_000)
  const node = await Node.make({compute: {uri: host.libvirtd.uri}})
  t.teardown(() => node.stop())
  await node.start()
  const made = await node.api.call<Made>('POST', '/attachments', {domain: 'vm', sizeBytes})
  const {id} = made.volume
  await host.guest.waitForDisk(id)
  await host.guest.hold(id)
  const reads = async () => (await host.guest.stats()).holds.find(({serial}) => serial === id)
  await until(async () => ((await reads())?.reads ?? 0) > 0)
  const {targets} = node.daemon.operations.rooms
  const {tid, sessions} = (await targets.get(made.export.iqn))!
  const of = ['--tid', String(tid)]
  await tgtadm(node, '--mode', 'target', '--op', 'unbind', ...of, '-Q', node.config.initiator.name)
  for (const {sid, connections} of sessions)
    for (const {cid} of connections)
      await tgtadm(node, '--mode', 'conn', '--op', 'delete', ...of, '--sid', sid, '--cid', String(cid))
  await until(async () => {
    const {stderr} = await tgtadm(node, '--mode', 'target', '--op', 'delete', ...of).catch(error => error as never)
    return stderr === '' || /can't find the target/.test(stderr)
  })
  await until(async () => (await targets.list()).some(({iqn}) => iqn === made.export.iqn))
  const before = (await reads())!.reads
  await until(async () => (await reads())!.reads > before + 20)
  t.is((await reads())!.errors, 0)
  await host.guest.unhold(id)
  await node.api.call('DELETE', `/attachments/${id}?timeoutMs=60000`)
  t.is(await targets.get(made.export.iqn), undefined)
  t.deepEqual(node.daemon.operations.rooms.journal.unfinished(), [])
})

test('02 an export whose file comes late is put back without a command, and till then the problem says what it waits for', async t => {
  t.timeout(60_000)
  const node = await Node.make()
  t.teardown(() => node.stop())
  await node.start()
  const {volume, export: exported} = await node.api.call<Made>('POST', '/exports', {sizeBytes})
  await node.stopDaemon()
  const away = join(node.directory, 'away.img')
  await rename(volume.path, away)
  await node.start()
  const missing = [`volume-missing ${volume.id}`, `export-missing ${volume.id}`]
  t.deepEqual((await problemsOf(node)).sort(), missing.toSorted())
  const {message} = (await statusOf(node)).problems.find(({problem}) => problem === 'export-missing')!
  t.true(message.includes(`as soon as ${volume.path} is there`), message)
  t.true(message.includes(`lunpath export delete ${exported.iqn}`), message)
  t.is(sampleOf((await scrape(node.metricsPort)).samples, 'lunpath_problems', {problem: 'export-missing'}), 1)
  await rename(away, volume.path)
  await until(async () => (await problemsOf(node)).length === 0)
  t.is((await node.daemon.operations.rooms.targets.get(exported.iqn))?.luns.length, 1)
})

test('03 a portal whose address comes later is a problem until it is open', async t => {
  t.timeout(60_000)
  const address = `198.18.${process.pid % 256}.9`
  const change = (op: 'add' | 'del') => run('ip', ['address', op, `${address}/32`, 'dev', 'lo'])
  const portal = `${address}:${await freePort()}`
  const node = await Node.make()
  const both = [node.portal, portal]
  const late = await Node.make({targets: {portals: both}})
  t.teardown(() => late.stop())
  t.teardown(() => node.stop())
  await late.start()
  t.deepEqual(await problemsOf(late), [`portal-closed ${portal}`])
  const open = async () => (await statusOf(late)).portals.map(one => one.open)
  t.deepEqual(await open(), [true, false])
  t.teardown(() => change('del').catch(() => {}))
  await change('add')
  await until(async () => (await problemsOf(late)).length === 0)
  t.deepEqual(await open(), [true, true])
})

test('04 after a change of targets.portals the new one is used, and a definition with the old one is told of', async t => {
  t.timeout(90_000)
  const node = await Node.make({compute: {uri: host.libvirtd.uri}})
  t.teardown(() => node.stop())
  await node.start()
  const exported = await node.api.call<Made>('POST', '/exports', {sizeBytes})
  const kept = await node.api.call<Made>('POST', '/attachments', {domain: 'vm', sizeBytes})
  await host.guest.waitForDisk(kept.volume.id)
  const {config, portal: before} = node
  await node.stopDaemon()
  const portal = `127.0.0.1:${await freePort()}`
  const daemon = await Daemon.start({...config, targets: {...config.targets, portals: [portal]}})
  t.teardown(() => daemon.close())
  const listed = await node.api.call<Export[]>('GET', '/exports')
  t.deepEqual([...new Set(listed.flatMap(({portals}) => portals.map(one => `${one.address}:${one.port}`)))], [portal])
  const {id} = exported.volume
  const {disk} = await node.api.call<{disk: {source: {portal: {port: number}}}}>('POST', '/attachments', {
    domain: 'vm',
    volume: id,
  })
  t.is(`127.0.0.1:${disk.source.portal.port}`, portal)
  await host.guest.waitForDisk(id)
  const {problems} = await statusOf(node)
  t.deepEqual(
    problems.map(({problem, subject}) => `${problem} ${subject}`),
    [`disk-portal-changed ${kept.volume.id}`],
  )
  t.true(problems[0]!.message.includes(before))
  t.true(problems[0]!.message.includes(`lunpath detach ${kept.volume.id}`))
  await node.api.call('DELETE', `/attachments/${id}`)
  await node.api.call('DELETE', `/attachments/${kept.volume.id}?timeoutMs=30000`)
  await until(async () => (await problemsOf(node)).length === 0)
})

test('05 a disk that virsh has detached is a problem within seconds, and its detach ends it', async t => {
  t.timeout(60_000)
  const node = await Node.make({compute: {uri: host.libvirtd.uri}})
  t.teardown(() => node.stop())
  await node.start()
  const {volume} = await node.api.call<Made>('POST', '/attachments', {domain: 'vm', sizeBytes})
  await host.guest.waitForDisk(volume.id)
  const [attachment] = [...node.store.attachments.values()]
  await host.libvirtd.connection.detachAlias(attachment!.domainUuid, `ua-lunpath-${volume.id}`, affectLive)
  await until(async () => (await problemsOf(node)).includes(`disk-absent ${volume.id}`))
  const {message} = (await statusOf(node)).problems[0]!
  t.true(message.includes(`lunpath detach ${volume.id}`), message)
  await node.api.call('DELETE', `/attachments/${volume.id}`)
  await until(async () => (await problemsOf(node)).length === 0)
})

test('06 a tgtd that is gone is a problem, and its return ends it', async t => {
  t.timeout(60_000)
  const node = await Node.make({outliving: true})
  t.teardown(() => node.stop())
  await node.start()
  const {export: exported} = await node.api.call<Made>('POST', '/exports', {sizeBytes})
  node.tgtd!.kill('SIGKILL')
  await until(async () => (await problemsOf(node)).includes('look-failed targets'))
  await node.tgtd!.restart()
  await until(async () => (await problemsOf(node)).length === 0)
  t.is((await node.daemon.operations.rooms.targets.get(exported.iqn))?.luns.length, 1)
})
