import {spawn} from 'node:child_process'
import {once} from 'node:events'
import {mkdir, readFile, writeFile} from 'node:fs/promises'
import {createServer} from 'node:net'
import {join} from 'node:path'
import {fileURLToPath} from 'node:url'
import anyTest, {type ExecutionContext, type TestFn} from 'ava'
import Database from 'libsql'
import {Daemon} from '../../src/daemon.js'
import {lunpath} from '../fixtures/cli.js'
import {Host, Node} from '../fixtures/node.js'

/** Bad input and bad luck: each gets a clear error with a stable code, and nothing is lost or left half-made. */
const test = anyTest.serial as TestFn
const sizeBytes = 4 * 2 ** 20

let host: Host
let node: Node
test.before(async () => {
  host = await Host.start()
  node = await Node.make({compute: {uri: host.libvirtd.uri}})
  await node.start()
})
test.after.always(async () => {
  await node?.stop()
  await host?.stop()
})

type Made = {volume: {id: string; path: string}; export: {iqn: string}; disk: {target: string}}
const post = (path: string, body: object) => node.api.call<Made>('POST', path, body)
const remove = (path: string) => node.api.call('DELETE', path)

/** The call fails with `code`, and neither the store nor the pool has changed. */
async function refused(
  t: ExecutionContext,
  call: () => Promise<unknown>,
  code: string,
  message?: RegExp,
): Promise<void> {
  const before = JSON.stringify([node.store.snapshot(), await node.poolFiles()])
  const error = await t.throwsAsync(call)
  t.is((error as {code?: string}).code, code, error?.message)
  if (message) t.regex(error!.message, message)
  t.is(JSON.stringify([node.store.snapshot(), await node.poolFiles()]), before, 'something has changed')
}

test('01 sizes: zero, negative, not whole sectors, not a number, beyond the pool', async t => {
  for (const size of [0, -512, 1000, 1.5, 2 ** 60]) {
    await refused(t, () => post('/volumes', {sizeBytes: size}), 'SIZE_INVALID')
  }
  await refused(t, () => post('/volumes', {sizeBytes: '2GiB'}), 'INVALID_ARGUMENT', /sizeBytes/)
  await refused(t, () => post('/volumes', {sizeBytes: 2 ** 50}), 'POOL_FULL')
  await refused(t, () => post('/volumes', {}), 'INVALID_ARGUMENT')
  await refused(t, () => post('/attachments', {domain: 'vm', sizeBytes: 0}), 'SIZE_INVALID')
})

test('02 names outside the grammar never reach the pool, tgtd or libvirt', async t => {
  for (const name of [
    '',
    'a/b',
    '../x',
    'a..b',
    'a,b',
    'a b',
    'a\nb',
    '\u0000',
    '-x',
    'ä',
    'x'.repeat(64),
    '0123456789abcdef',
  ]) {
    await refused(t, () => post('/volumes', {sizeBytes, name}), 'NAME_INVALID')
  }
  const {volume} = await post('/volumes', {sizeBytes})
  for (const name of [
    'iqn.2026-01.a:x,y',
    'iqn.2026-01.a:x\ny',
    'iqn.2026-01.a:x/y',
    `iqn.2026-01.a:${'x'.repeat(210)}`,
    'x',
  ]) {
    await refused(t, () => post('/exports', {volume: volume.id, access: {names: [name]}}), 'NAME_INVALID')
  }
  for (const address of ['all', '10.0.0.0/33', '10.0.0', 'host.example', '1.2.3.4,ALL', '::1/129']) {
    await refused(t, () => post('/exports', {volume: volume.id, access: {addresses: [address]}}), 'NAME_INVALID')
  }
  await refused(t, () => post('/discover', {portal: '127.0.0.1:99999'}), 'NAME_INVALID')
  await remove(`/volumes/${volume.id}`)
})

test('03 CHAP secrets that are too short, equal or carry a comma are refused, and no answer quotes them', async t => {
  const secret = 'topsecret,passphrase'
  for (const auth of [
    {incoming: {user: 'u', secret: 'short'}},
    {incoming: {user: 'u', secret}},
    {incoming: {user: 'a b', secret: 'x'.repeat(16)}},
    {incoming: {user: 'u', secret: 'x'.repeat(16)}, outgoing: {user: 'v', secret: 'x'.repeat(16)}},
  ]) {
    await refused(t, () => post('/exports', {sizeBytes, auth}), 'INVALID_ARGUMENT', /^(?!.*topsecret)/)
  }
})

test('04 what does not exist: volume, export, attachment, domain, route', async t => {
  await refused(t, () => remove('/volumes/0000000000000000'), 'VOLUME_NOT_FOUND')
  await refused(t, () => post('/exports', {volume: 'nobody'}), 'VOLUME_NOT_FOUND')
  await refused(t, () => remove('/exports/0000000000000000'), 'EXPORT_NOT_FOUND')
  await refused(t, () => remove('/attachments/0000000000000000'), 'ATTACHMENT_NOT_FOUND')
  await refused(t, () => remove('/domains/vm/disks/vdz'), 'ATTACHMENT_NOT_FOUND')
  await refused(
    t,
    () => post('/attachments', {domain: 'no-such-domain', sizeBytes}),
    'DOMAIN_NOT_FOUND',
    /no-such-domain/,
  )
  await refused(t, () => post('/attachments', {domain: 'vm', device: '/dev/no-such-device'}), 'NOT_FOUND')
  await refused(t, () => node.api.call('GET', '/nothing'), 'NOT_FOUND')
})

test('05 exactly one of volume, size and device', async t => {
  await refused(t, () => post('/attachments', {domain: 'vm'}), 'INVALID_ARGUMENT', /exactly one/)
  await refused(
    t,
    () => post('/attachments', {domain: 'vm', volume: 'x', sizeBytes}),
    'INVALID_ARGUMENT',
    /exactly one/,
  )
  await refused(t, () => post('/exports', {volume: 'x', sizeBytes}), 'INVALID_ARGUMENT', /exactly one/)
  await refused(t, () => post('/volumes', {sizeBytes, colour: 'red'}), 'INVALID_ARGUMENT')
})

test('06 in use: a volume is not deleted, cloned or exported twice, a disk not attached twice, a name not taken twice', async t => {
  const {volume, export: exported, disk} = await post('/attachments', {domain: 'vm', sizeBytes, name: 'mine'})
  await refused(t, () => remove(`/volumes/${volume.id}`), 'VOLUME_IN_USE', /lunpath detach/)
  await refused(t, () => remove(`/exports/${exported.iqn}`), 'TARGET_IN_USE', /lunpath detach/)
  await refused(t, () => post('/attachments', {domain: 'vm', volume: 'mine'}), 'ATTACHMENT_EXISTS')
  await refused(t, () => post('/exports', {volume: 'mine'}), 'EXPORT_EXISTS')
  await refused(t, () => post('/volumes', {sizeBytes, name: 'mine'}), 'VOLUME_EXISTS')
  await refused(t, () => post(`/volumes/${volume.id}/extend`, {sizeBytes: 2 * sizeBytes}), 'TARGET_IN_USE', /Detach/)
  await refused(t, () => post('/attachments', {domain: 'vm', sizeBytes, target: disk.target}), 'DISK_TARGET_IN_USE')
  await remove(`/attachments/${volume.id}`)
  await refused(t, () => remove(`/attachments/${volume.id}`), 'ATTACHMENT_NOT_FOUND')
  await refused(t, () => post(`/volumes/mine/extend`, {sizeBytes: sizeBytes / 2}), 'SIZE_INVALID', /never shrinks/)
  await remove('/volumes/mine')
  t.deepEqual(await node.poolFiles(), [])
})

test('07 a domain that is shut off takes no live disk', async t => {
  await host.guest.stop()
  await host.libvirtd.connection.defineXml(
    '<domain type="qemu"><name>off</name><memory>65536</memory><os><type>hvm</type></os></domain>',
  )
  await refused(t, () => post('/attachments', {domain: 'off', sizeBytes}), 'DOMAIN_INACTIVE', /--persistent/)
  await host.libvirtd.connection.undefine('off')
  await host.guest.boot()
  await host.guest.waitReady()
})

test('08 a token with another request is refused', async t => {
  const first = await node.api.call<Made>('POST', '/volumes', {sizeBytes}, {token: 'once'})
  t.deepEqual(await node.api.call('POST', '/volumes', {sizeBytes}, {token: 'once'}), first)
  await refused(
    t,
    () => node.api.call('POST', '/volumes', {sizeBytes: 2 * sizeBytes}, {token: 'once'}),
    'TOKEN_CONFLICT',
  )
  await remove(`/volumes/${first.volume.id}`)
})

test('09 two requests at once for one volume: one is done, the other gets a conflict', async t => {
  const {volume} = await post('/volumes', {sizeBytes})
  const answers = await Promise.allSettled([1, 2, 3, 4].map(() => post('/exports', {volume: volume.id})))
  const codes = answers
    .map(answer => (answer.status === 'fulfilled' ? 'done' : (answer.reason as {code: string}).code))
    .sort()
  t.is(codes.filter(code => code === 'done').length, 1)
  t.true(
    codes.every(code => ['done', 'CONFLICT', 'EXPORT_EXISTS'].includes(code)),
    codes.join(),
  )
  await remove(`/exports/${volume.id}`)
  await remove(`/volumes/${volume.id}`)
})

test('10 what an import must not take: a relative path, a directory, a file of the pool, a bad size; and it never removes', async t => {
  const image = join(node.directory, 'own.img')
  await writeFile(image, Buffer.alloc(1 << 20, 7))
  await writeFile(join(node.directory, 'odd.img'), 'abc')
  const {volume} = await post('/volumes', {sizeBytes})
  await refused(t, () => post('/volumes/import', {path: 'own.img'}), 'NAME_INVALID')
  await refused(t, () => post('/volumes/import', {path: node.directory}), 'UNSUPPORTED')
  await refused(t, () => post('/volumes/import', {path: volume.path}), 'VOLUME_EXISTS')
  await refused(t, () => post('/volumes/import', {path: join(node.directory, 'odd.img')}), 'SIZE_INVALID')
  const imported = await post('/volumes/import', {path: image})
  await refused(t, () => post('/volumes/import', {path: image}), 'VOLUME_EXISTS')
  await refused(t, () => post(`/volumes/${imported.volume.id}/extend`, {sizeBytes: 2 << 20}), 'VOLUME_IMPORTED')
  await remove(`/volumes/${imported.volume.id}`)
  t.deepEqual(await readFile(image), Buffer.alloc(1 << 20, 7))
  await remove(`/volumes/${volume.id}`)
})

test('11 a second daemon on one store, or on one socket, is refused and the first is not disturbed', async t => {
  await t.throwsAsync(Daemon.start(node.config), {code: 'STORE_LOCKED'})
  const other = await Node.make()
  t.teardown(() => other.stop())
  const config = {...other.config, daemon: {...other.config.daemon, socket: node.socket}}
  await t.throwsAsync(Daemon.start(config), {code: 'STORE_LOCKED', message: /answers on/})
  t.deepEqual(await node.api.call('GET', '/volumes'), [])
})

test('12 a portal or a metrics port that is taken is named', async t => {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const {port} = server.address() as {port: number}
  for (const given of [{targets: {portals: [`127.0.0.1:${port}`]}}, {metrics: {listen: `127.0.0.1:${port}`}}]) {
    const other = await Node.make(given)
    t.teardown(() => other.stop())
    await t.throwsAsync(other.start(), {code: 'PORTAL_IN_USE', message: new RegExp(`127.0.0.1:${port}`)})
  }
})

test('13 a store that is damaged or of a newer version keeps the daemon from starting, and stays as it is', async t => {
  const other = await Node.make()
  t.teardown(() => other.stop())
  await other.start()
  await other.stopDaemon()
  const path = join(other.directory, 'store.db')
  const database = new Database(path)
  database.exec('PRAGMA user_version=7')
  database.close()
  await t.throwsAsync(other.start(), {code: 'STORE_TOO_NEW'})
  await writeFile(path, 'x'.repeat(8192))
  await t.throwsAsync(other.start(), {code: 'STORE_CORRUPT'})
  t.is((await readFile(path, 'utf8')).length, 8192)
})

test('14 a configuration with an unknown key, a bad value or that is no TOML is named', async t => {
  const cli = fileURLToPath(new URL('../../bin/lunpath.cjs', import.meta.url))
  for (const [text, says] of [
    ['[targets]\nportal = "x"', /targets/],
    ['[targets]\nportals = ["nowhere"]', /portal/],
    ['[volumes]\novercommit = -1', /volumes\.overcommit/],
    ['this is no toml', /TOML/],
  ] as const) {
    const file = join(node.directory, 'bad.toml')
    await writeFile(file, text)
    const child = spawn(process.execPath, [cli, 'serve', '--config', file], {stdio: ['ignore', 'ignore', 'pipe']})
    const stderr: string[] = []
    child.stderr.on('data', chunk => stderr.push(String(chunk)))
    const [code] = await once(child, 'close')
    t.is(code, 2, text)
    t.regex(stderr.join(''), says)
  }
})

test('15 tgtd that does not answer: the export fails, and what it had made is undone', async t => {
  const other = await Node.make({outliving: true})
  t.teardown(() => other.stop())
  await other.start()
  await other.tgtd!.stop()
  await t.throwsAsync(other.api.call('POST', '/exports', {sizeBytes}), {code: 'TARGET_UNAVAILABLE'})
  t.is(other.store.exports.size, 0)
  const unfinished = other.daemon.operations.rooms.journal.unfinished()
  t.true(unfinished.length === 1 || other.store.volumes.size === 0, 'undone, or kept to be undone when tgtd answers')
})

test('16 libvirtd killed in the middle of an attach: it is undone, now or when libvirtd is back', async t => {
  const attaching = post('/attachments', {domain: 'vm', sizeBytes})
  await host.libvirtd.kill()
  const outcome = await attaching.then(
    () => 'attached',
    error => (error as {code: string}).code,
  )
  t.true(['attached', 'COMPUTE_UNAVAILABLE', 'COMPUTE_FAILED', 'TIMEOUT'].includes(outcome), outcome)
  await host.libvirtd.start()
  await node.daemon.operations.rooms.compute.domains().catch(() => {})
  for (let tries = 0; node.daemon.operations.rooms.journal.unfinished().length > 0 && tries < 100; tries++) {
    await new Promise(resolve => setTimeout(resolve, 100))
    await node.daemon.reconcile('test')
  }
  const disks = (await node.daemon.operations.rooms.compute.disks('vm')).filter(({alias}) =>
    alias.startsWith('ua-lunpath-'),
  )
  t.is(disks.length, outcome === 'attached' ? 1 : 0)
  t.is(node.store.attachments.size, disks.length)
  t.is(node.store.volumes.size, disks.length)
  for (const {id} of [...node.store.attachments.values()]) {
    await remove(`/attachments/${id}`)
    await remove(`/volumes/${id}`)
  }
})

test('17 the pool’s disk is full: the volume is refused and nothing is left', async t => {
  // An over-commit ratio far above 1, so that it is the file system and not the limit that says no.
  const directory = join(node.directory, 'small')
  await mkdir(directory)
  const script = fileURLToPath(new URL('../fixtures/full-pool.js', import.meta.url))
  const child = spawn('unshare', ['--mount', process.execPath, script, directory], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const output: string[] = []
  child.stdout.on('data', chunk => output.push(String(chunk)))
  await once(child, 'close')
  t.deepEqual(JSON.parse(output.join('')), {code: 'POOL_FULL', volumes: 0, files: [], unfinished: 0})
})

/** Refused before its first effect: not even an intent was written. */
async function untouched(
  t: ExecutionContext,
  body: object,
  {path = '/attachments', code, message}: {path?: string; code: string; message?: RegExp},
): Promise<void> {
  const what = JSON.stringify(body)
  const before = node.store.commits
  const error = await t.throwsAsync<Error & {code: string}>(post(path, body), undefined, what)
  t.is(error.code, code, `${what}: ${error.message}`)
  if (message) t.regex(error.message, message, what)
  t.is(node.store.commits, before, `${what}: something was written`)
}

test('18 all of a request is checked before a volume is made: what the target driver cannot keep', async t => {
  const credentials = {user: 'someone', secret: 'x'.repeat(16)}
  const exported = await post('/exports', {sizeBytes, auth: {incoming: credentials}})
  const {volume} = exported
  for (const [more, code] of [
    [{access: {addresses: ['10.0.0.0/0']}}, 'NAME_INVALID'],
    [{access: {addresses: ['::/0']}}, 'NAME_INVALID'],
    [{access: {addresses: ['10.0.0.1', '10.0.0.0/33']}}, 'NAME_INVALID'],
    [{access: {names: ['nonsense']}}, 'NAME_INVALID'],
    [{auth: {incoming: {...credentials, user: 'u'.repeat(129)}}}, 'INVALID_ARGUMENT'],
    [{auth: {incoming: {...credentials, secret: 'x'.repeat(129)}}}, 'INVALID_ARGUMENT'],
    [{auth: {incoming: credentials, outgoing: {...credentials, secret: 'y'.repeat(16)}}}, 'INVALID_ARGUMENT'],
    [{auth: {incoming: {...credentials, secret: 'z'.repeat(16)}}}, 'CONFLICT'],
    [{ioType: 'nullio'}, 'UNSUPPORTED'],
    [{name: '-'}, 'NAME_INVALID'],
    [{pool: 'nosuch'}, 'NOT_FOUND'],
  ] as const) {
    await untouched(t, {sizeBytes, ...more}, {path: '/exports', code})
    if ('auth' in more || 'name' in more || 'pool' in more) {
      await untouched(t, {domain: 'vm', sizeBytes, ...more}, {code})
    }
  }
  await remove(`/exports/${volume.id}`)
  await remove(`/volumes/${volume.id}`)
})

test('19 … and what the domain cannot take', async t => {
  const {volume, disk} = await post('/attachments', {domain: 'vm', sizeBytes, name: 'taken'})
  await host.libvirtd.connection.defineXml(
    '<domain type="qemu"><name>off</name><memory>65536</memory><os><type>hvm</type></os></domain>',
  )
  t.teardown(() => host.libvirtd.connection.undefine('off'))
  for (const [more, code, message] of [
    [{bus: 'scsi', target: 'vdx'}, 'INVALID_ARGUMENT', /scsi/],
    [{bus: 'virtio', target: 'sdx'}, 'INVALID_ARGUMENT', /virtio/],
    [{target: 'sdx'}, 'INVALID_ARGUMENT', /virtio/],
    [{target: disk.target}, 'DISK_TARGET_IN_USE', new RegExp(disk.target)],
    [{name: 'taken'}, 'VOLUME_EXISTS', /taken/],
    [{domain: 'off', live: true}, 'DOMAIN_INACTIVE', /shut off/],
    [{domain: 'off', live: true, persistent: true}, 'DOMAIN_INACTIVE', /shut off/],
    [{live: false}, 'INVALID_ARGUMENT', /persistent/],
    [{domain: 'off', persistent: true, bus: 'scsi', target: 'vdb'}, 'INVALID_ARGUMENT', /scsi/],
  ] as const) {
    await untouched(t, {domain: 'vm', sizeBytes, ...more}, {code, message})
  }
  await remove(`/attachments/${volume.id}`)
  await remove(`/volumes/${volume.id}`)
})

test('20 two requests at once for one target name: one disk, and the other makes nothing', async t => {
  const asked = [1, 2].map(() => post('/attachments', {domain: 'vm', sizeBytes, target: 'vdx'}))
  const [done, refusal] = (await Promise.allSettled(asked)).sort((a, b) => a.status.localeCompare(b.status))
  t.is(done?.status, 'fulfilled')
  t.is((refusal as PromiseRejectedResult).reason.code, 'CONFLICT')
  const {volume} = (done as PromiseFulfilledResult<Made>).value
  t.deepEqual(await node.poolFiles(), [`${volume.id}.img`])
  await remove(`/attachments/${volume.id}`)
  await remove(`/volumes/${volume.id}`)
})

test('21 an option that means nothing with what was chosen is refused, not ignored', async t => {
  const {volume} = await post('/volumes', {sizeBytes, name: 'there'})
  const auth = {incoming: {user: 'u', secret: 'x'.repeat(16)}}
  const device = join(node.directory, 'a-device.img')
  await writeFile(device, Buffer.alloc(1 << 20))
  const ofNew = [{name: 'x'}, {pool: 'nosuch'}, {pool: 'default'}, {preallocate: true}, {preallocate: false}]
  const code = 'INVALID_ARGUMENT'
  for (const more of ofNew) {
    const message = new RegExp(`${Object.keys(more)[0]}.*new volume`)
    await untouched(t, {volume: 'there', ...more}, {path: '/exports', code, message})
    await untouched(t, {volume: 'there', domain: 'vm', ...more}, {code, message})
    await untouched(t, {device, domain: 'vm', ...more}, {code, message})
  }
  for (const more of [{writeCache: 'back'}, {writeCache: 'through'}, {auth}, {route: 'host'}, {route: 'qemu'}])
    await untouched(t, {device, domain: 'vm', ...more}, {code, message: new RegExp(Object.keys(more)[0]!)})
  await untouched(t, {group: 'nosuch', devices: [], thinBytes: 1 << 30}, {path: '/pools', code, message: /thin/})

  const cli = (...args: string[]) => lunpath(args, {env: {LUNPATH_SOCKET: node.socket}})
  for (const args of [
    ['attach', 'vm', '--device', device, '--write-back'],
    ['attach', 'vm', '--volume', 'there', '--pool', 'x'],
    ['export', 'create', '--volume', 'there', '--name', 'x'],
    ['pool', 'create', '--vg', 'nosuch', '--thin-size', '1GiB'],
  ]) {
    t.is((await cli(...args)).exitCode, 2, args.join(' '))
  }

  await post('/exports', {volume: 'there'})
  for (const more of [{writeCache: 'back'}, {auth}]) {
    const message = /lunpath export delete/
    await untouched(t, {volume: 'there', domain: 'vm', ...more}, {code: 'EXPORT_EXISTS', message})
  }
  // What it has already is no other setting.
  await post('/attachments', {volume: 'there', domain: 'vm', writeCache: 'through', readOnly: true})
  await remove(`/attachments/${volume.id}`)
  await remove(`/exports/${volume.id}`)
  await post('/exports', {volume: 'there', readOnly: true})
  await untouched(t, {volume: 'there', domain: 'vm'}, {code: 'UNSUPPORTED', message: /--read-only/})
  await remove(`/exports/${volume.id}`)
  await remove('/volumes/there')
})
