import {truncate, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import anyTest, {type TestFn} from 'ava'
import {LibiscsiInitiator} from '../../src/initiators/libiscsi.js'
import {freePort} from '../../src/sandbox/ports.js'
import type {Disk, Portal} from '../../src/types.js'
import {attachLoop} from '../contract/observe.js'
import {lunpath} from '../fixtures/cli.js'
import {makeLun} from '../fixtures/lun-by-hand.js'
import {Host, Node} from '../fixtures/node.js'
import {startTgtd} from '../fixtures/tgtd-by-hand.js'

/** Names and addresses of others, and what is said of what cannot be had. The node listens on all of its addresses. */
const test = anyTest.serial as TestFn
const sizeBytes = 4 * 2 ** 20

let host: Host
let node: Node
let port: number
test.before(async () => {
  host = await Host.start()
  port = await freePort()
  node = await Node.make({compute: {uri: host.libvirtd.uri}, targets: {portals: [`0.0.0.0:${port}`]}})
  await node.start()
})
test.after.always(async () => {
  await node?.stop()
  await host?.stop()
})

type Made = {volume: {id: string}; export: {iqn: string; portals: Portal[]}; disk: Disk}
const post = (path: string, body: object) => node.api.call<Made>('POST', path, body)
const remove = (path: string) => node.api.call('DELETE', path)
const cli = (...args: string[]) => lunpath(args, {env: {LUNPATH_SOCKET: node.socket}})

test('1. a node that listens on all addresses tells guests and initiators of one that they can dial', async t => {
  const {volume, export: exported, disk} = await post('/attachments', {domain: 'vm', sizeBytes})
  const {source} = disk as {source: {portal: Portal}}
  t.deepEqual([source.portal], exported.portals)
  t.not(source.portal.address, '0.0.0.0')
  const status = await node.api.call<{portals: object[]; problems: object[]}>('GET', '/status')
  t.like(status, {portals: [{address: '0.0.0.0', port, open: true}], problems: []})
  await node.daemon.reconcile('a test')
  t.deepEqual((await node.api.call<{problems: object[]}>('GET', '/status')).problems, [])

  // What a person types in capitals is the guest's disk too.
  const path = `/initiator/connections/${exported.iqn.toUpperCase()}`
  await t.throwsAsync(remove(path), {code: 'TARGET_IN_USE', message: /lunpath detach/})
  await remove(`/attachments/${volume.id}`)
  await remove(`/volumes/${volume.id}`)
})

test('2. discovery takes a host name, and says why it cannot take another', async t => {
  const {export: exported, volume} = await post('/exports', {sizeBytes, access: {addresses: ['ALL']}})
  const discover = (portal: string) => node.api.call<{iqn: string}[]>('POST', '/discover', {portal})
  t.deepEqual(
    (await discover(`localhost:${port}`)).map(({iqn}) => iqn),
    [exported.iqn],
  )
  await t.throwsAsync(discover('nosuch.invalid'), {code: 'INITIATOR_FAILED', message: /nosuch\.invalid/})
  await t.throwsAsync(discover(`0.0.0.0:${port}`), {code: 'NAME_INVALID', message: /all addresses/})
  await t.throwsAsync(discover('fe80::1'), {code: 'NAME_INVALID', message: /interface/})
  await t.throwsAsync(discover('127.0.0'), {code: 'NAME_INVALID'})
  await remove(`/exports/${volume.id}`)
  await remove(`/volumes/${volume.id}`)
})

test('3. a portal without targets is told of as that', async t => {
  const tgtd = await startTgtd()
  t.teardown(() => tgtd.stop())
  const said = await cli('discover', `127.0.0.1:${tgtd.port}`)
  t.is(said.exitCode, 1)
  t.regex(said.stderr, new RegExp(`127\\.0\\.0\\.1:${tgtd.port} offers no targets to this initiator`))

  // One that has targets, for others.
  const unit = await makeLun(tgtd, 1, {initiatorName: 'iqn.2025-01.test.lunpath:other'})
  t.teardown(() => unit.remove())
  const empty = await cli('discover', `127.0.0.1:${tgtd.port}`)
  t.is(empty.exitCode, 0)
  t.regex(empty.stdout, /offers no targets to this initiator/)
})

test('4. a target with capitals in its name is discovered and logged in to as it is spelled', async t => {
  const tgtd = await startTgtd()
  t.teardown(() => tgtd.stop())
  const unit = await makeLun(tgtd, 1, {prefix: 'iqn.2004-04.com.QNAP:TS-453:iscsi.Disk1'})
  t.teardown(() => unit.remove())
  const {stdout} = await cli('discover', `127.0.0.1:${tgtd.port}`)
  t.true(stdout.includes(unit.iqn), stdout)
  const login = {portal: {address: '127.0.0.1', port: tgtd.port}, iqn: unit.iqn, lun: 1}
  const session = await new LibiscsiInitiator().connect({...login, initiatorName: 'iqn.2025-01.test.lunpath:Host-A'})
  t.is(session.identity.serial, unit.serial)
  await session.close()
})

test('5. what is read-only is attached and exported for reading alone, and else refused before anything is made', async t => {
  const {volume} = await post('/exports', {sizeBytes, readOnly: true})
  const untouched = async (path: string, body: object, message: RegExp) => {
    const before = node.store.commits
    await t.throwsAsync(post(path, body), {code: 'UNSUPPORTED', message}, JSON.stringify(body))
    t.is(node.store.commits, before, 'something was written')
  }
  const remedies = /read-only \(iqn.*--read-only; or run lunpath export delete/
  await untouched('/attachments', {domain: 'vm', volume: volume.id}, remedies)
  await remove(`/exports/${volume.id}`)
  await remove(`/volumes/${volume.id}`)

  if (process.getuid?.() !== 0) {
    t.log('a loop device needs root')
    return
  }
  const image = join(node.directory, 'read-only.img')
  await writeFile(image, '')
  await truncate(image, sizeBytes)
  const {device} = await attachLoop(t, image, ['--read-only'])
  await untouched('/attachments', {domain: 'vm', device}, /read-only.*attach it with --read-only/)
  const {disk} = await post('/attachments', {domain: 'vm', device, readOnly: true})
  t.true(disk.readOnly)
  await remove(`/attachments/${disk.serial}`)

  const imported = await post('/volumes/import', {path: device})
  const {id} = imported.volume
  await untouched('/attachments', {domain: 'vm', volume: id}, /attach it with --read-only/)
  await untouched('/exports', {volume: id}, /export it with --read-only/)
  await post('/exports', {volume: id, readOnly: true})
  await remove(`/exports/${id}`)
  await remove(`/volumes/${id}`)
})

test('6. a size in other words, and a portal on one link alone, are told of with what is right', async t => {
  const sized = await cli('volume', 'create', '--size', '5Gi')
  t.is(sized.exitCode, 2)
  t.regex(sized.stderr, /5GiB/)
  const other = await Node.make({targets: {portals: ['0.0.0.0:3260']}})
  t.teardown(() => other.stop())
  const file = join(other.directory, 'lunpath.toml')
  await writeFile(file, '[targets]\nportals = ["[fe80::1%eth0]:3260"]\n')
  const served = await cli('serve', '--config', file)
  t.is(served.exitCode, 2)
  t.regex(served.stderr, /link-local/)
  t.notRegex(served.stderr, /ERR_INVALID_URL/)
})
