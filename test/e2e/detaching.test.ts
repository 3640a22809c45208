import {setTimeout as sleep} from 'node:timers/promises'
import anyTest, {type ExecutionContext, type TestFn} from 'ava'
import {LibiscsiInitiator} from '../../src/initiators/libiscsi.js'
import type {Export} from '../../src/types.js'
import {Host, Node} from '../fixtures/node.js'
import {sampleOf, scrape} from '../fixtures/scrape.js'

/** A guest that does not answer keeps its disk, and everybody can see it; the detach ends by itself once it answers. */
const test = anyTest.serial as TestFn
const sizeBytes = 8 * 2 ** 20

let host: Host
let node: Node
test.before(async () => {
  host = await Host.start()
  node = await Node.make({outliving: true, compute: {uri: host.libvirtd.uri}})
  await node.start()
})
test.after.always(async () => {
  await node?.stop()
  await host?.stop()
})

interface Made {
  volume: {id: string}
  export: Export
}
interface Attachment {
  id: string
  state: string
  target: string
}

const attachments = () => node.api.call<Attachment[]>('GET', '/attachments')
const stateOf = async (id: string) => (await attachments()).find(attachment => attachment.id === id)?.state
const detach = (id: string, timeoutMs?: number) =>
  node.api.call('DELETE', `/attachments/${id}${timeoutMs === undefined ? '' : `?timeoutMs=${timeoutMs}`}`)

async function attach(bus: 'virtio' | 'scsi' = 'virtio'): Promise<Made> {
  const made = await node.api.call<Made>('POST', '/attachments', {domain: 'vm', sizeBytes, bus})
  await host.guest.waitForDisk(made.volume.id)
  return made
}

/** Waits until it has happened; the test's own time limit is the deadline. */
async function until(happened: () => Promise<boolean> | boolean): Promise<void> {
  while (!(await happened())) await sleep(20)
}

/** The disk is out of the domain, its export out of tgtd, neither is in the store, and the volume stays. */
async function checkGone(t: ExecutionContext, {volume, export: {iqn}}: Made): Promise<void> {
  const {rooms} = node.daemon.operations
  t.false((await rooms.compute.disks('vm')).some(({serial}) => serial === volume.id))
  t.is(await rooms.targets.get(iqn), undefined)
  t.false(node.store.exports.has(volume.id))
  t.false(node.store.attachments.has(volume.id))
  t.true(node.store.volumes.has(volume.id))
  t.deepEqual(rooms.journal.unfinished(), [])
  await node.api.call('DELETE', `/volumes/${volume.id}`)
}

test('01 a silent guest: detaching, shown, and each new request waits again; then it ends by itself', async t => {
  const made = await attach()
  const {id} = made.volume
  await host.libvirtd.connection.suspend('vm')
  t.teardown(() => host.libvirtd.connection.resume('vm').catch(() => {}))
  for (let requests = 0; requests < 2; requests++) {
    const error = await t.throwsAsync<Error & {code: string; status: number}>(detach(id, 300))
    t.is(error.code, 'DETACH_PENDING')
    t.is(error.status, 409)
    t.is(await stateOf(id), 'detaching')
  }
  const {unfinished} = await node.api.call<{unfinished: {kind: string; subject: string}[]}>('GET', '/status')
  t.like(unfinished, [{kind: 'detach', subject: id}])
  const {samples} = await scrape(node.metricsPort)
  t.is(sampleOf(samples, 'lunpath_attachment_info', {id, state: 'detaching'}), 1)
  t.is(sampleOf(samples, 'lunpath_operations_unfinished', {kind: 'detach'}), 1)

  // Meanwhile nothing else may be done with it, and nothing of it is lost.
  for (const refused of [
    () => node.api.call('DELETE', `/volumes/${id}`),
    () => node.api.call('DELETE', `/exports/${id}`),
    () => node.api.call('POST', '/attachments', {domain: 'vm', volume: id}),
  ]) {
    const error = await t.throwsAsync<Error & {code: string}>(refused())
    t.true(['VOLUME_IN_USE', 'TARGET_IN_USE', 'ATTACHMENT_EXISTS', 'CONFLICT'].includes(error.code), error.code)
  }
  t.true(node.store.exports.has(id))
  t.is((await node.daemon.operations.rooms.targets.get(made.export.iqn))?.sessions.length, 1)

  await host.libvirtd.connection.resume('vm')
  await until(async () => (await stateOf(id)) === undefined)
  await until(() => node.daemon.operations.rooms.journal.unfinished().length === 0)
  await checkGone(t, made)
})

test('02 a request that is waiting ends with the guest’s release', async t => {
  const made = await attach()
  await host.libvirtd.connection.suspend('vm')
  t.teardown(() => host.libvirtd.connection.resume('vm').catch(() => {}))
  const waiting = detach(made.volume.id)
  await until(async () => (await stateOf(made.volume.id)) === 'detaching')
  await host.libvirtd.connection.resume('vm')
  await waiting
  await checkGone(t, made)
})

test('03 over a restart of the daemon: it starts, still shows it as detaching, and ends it when the guest lets go', async t => {
  const made = await attach()
  const {id} = made.volume
  await host.libvirtd.connection.suspend('vm')
  t.teardown(() => host.libvirtd.connection.resume('vm').catch(() => {}))
  await t.throwsAsync(detach(id, 200), {code: 'DETACH_PENDING'})
  await node.stopDaemon()
  const began = performance.now()
  await node.start()
  t.log(`the daemon starts in ${(performance.now() - began).toFixed(0)} ms with a detach that waits`)
  t.is(await stateOf(id), 'detaching')
  await t.throwsAsync(detach(id, 200), {code: 'DETACH_PENDING'})
  await host.libvirtd.connection.resume('vm')
  await until(async () => (await stateOf(id)) === undefined)
  await until(() => node.daemon.operations.rooms.journal.unfinished().length === 0)
  await checkGone(t, made)
})

test('04 a daemon starts without waiting for guests that do not answer, and each request waits its own time', async t => {
  const made = await attach()
  const {id} = made.volume
  await host.libvirtd.connection.suspend('vm')
  t.teardown(() => host.libvirtd.connection.resume('vm').catch(() => {}))
  const hourMs = 3600 * 1000
  await node.daemon.operations.rooms.journal.begin({
    kind: 'detach',
    direction: 'unmake',
    subject: id,
    plan: ['export', 'disk'],
    request: {timeoutMs: hourMs},
    token: null,
    requestHash: '',
  })
  await t.throwsAsync(detach(id, 100), {code: 'DETACH_PENDING', message: /within 100 ms/})
  await node.stopDaemon()
  await node.start()
  t.is(await stateOf(id), 'detaching')
  const waiting = detach(id)
  await sleep(1_000)
  await host.libvirtd.connection.resume('vm')
  await waiting
  await checkGone(t, made)
})

test('05 the guest lets go while no daemon runs: the next one finishes the detach', async t => {
  const made = await attach()
  await host.libvirtd.connection.suspend('vm')
  t.teardown(() => host.libvirtd.connection.resume('vm').catch(() => {}))
  await t.throwsAsync(detach(made.volume.id, 200), {code: 'DETACH_PENDING'})
  await node.stopDaemon()
  await host.libvirtd.connection.resume('vm')
  await host.guest.waitForDiskGone(made.volume.id)
  await node.start()
  await until(() => node.daemon.operations.rooms.journal.unfinished().length === 0)
  await checkGone(t, made)
})

test('06 QEMU killed with disks attached: they are absent, and each detach is a success', async t => {
  const virtio = await attach()
  const scsi = await attach('scsi')
  await host.libvirtd.connection.destroy('vm')
  for (const {volume} of [virtio, scsi]) t.is(await stateOf(volume.id), 'absent')
  const {samples} = await scrape(node.metricsPort)
  t.is(sampleOf(samples, 'lunpath_attachment_info', {id: virtio.volume.id, state: 'absent'}), 1)
  t.is(sampleOf(samples, 'lunpath_disk_read_bytes_total', {id: virtio.volume.id}), undefined)
  t.is(sampleOf(samples, 'iscsi_exporter_collector_success', {collector: 'libvirt'}), 1)
  for (const made of [virtio, scsi]) {
    await detach(made.volume.id)
    await checkGone(t, made)
  }
  await host.guest.start()
  await host.guest.waitReady()
})

test('07 a domain that was destroyed and started again: the live disk is absent, a persistent one is back', async t => {
  const live = await attach()
  const persistent = await node.api.call<Made>('POST', '/attachments', {domain: 'vm', sizeBytes, persistent: true})
  await host.guest.waitForDisk(persistent.volume.id)
  await host.libvirtd.connection.destroy('vm')
  await host.guest.start()
  await host.guest.waitReady()
  await host.guest.waitForDisk(persistent.volume.id)
  t.is(await stateOf(live.volume.id), 'absent')
  t.is(await stateOf(persistent.volume.id), 'attached')
  await node.daemon.reconcile('test')
  const {problems} = await node.api.call<{problems: {problem: string; subject: string}[]}>('GET', '/status')
  t.like(problems, [{problem: 'disk-absent', subject: live.volume.id}])
  for (const made of [live, persistent]) {
    await detach(made.volume.id)
    await checkGone(t, made)
  }
  t.deepEqual(await attachments(), [])
})

test('08 a domain that is destroyed while a detach waits for it: the detach ends', async t => {
  const made = await attach()
  await host.libvirtd.connection.suspend('vm')
  await t.throwsAsync(detach(made.volume.id, 200), {code: 'DETACH_PENDING'})
  await host.libvirtd.connection.destroy('vm')
  await until(() => node.daemon.operations.rooms.journal.unfinished().length === 0)
  await checkGone(t, made)
  await host.guest.start()
  await host.guest.waitReady()
})

/** A second session on a disk's target, by the initiator name that QEMU has too: whose it is cannot be told from the name. */
async function secondSession(t: ExecutionContext, {export: {iqn, lun, portals}}: Made) {
  const {initiatorName} = node.daemon.operations.rooms
  const session = await new LibiscsiInitiator().connect({portal: portals[0]!, iqn, lun, initiatorName})
  t.teardown(() => session.close())
  return session
}

const waitsFor = async () => {
  const {unfinished} = await node.api.call<{unfinished: {subject: string; waitsFor: string}[]}>('GET', '/status')
  return unfinished.map(({waitsFor}) => waitsFor).join()
}

test('09 a session that stays after the disk has left the domain is not ended: the detach stands until it goes', async t => {
  const made = await attach()
  const session = await secondSession(t, made)
  await t.throwsAsync(detach(made.volume.id), {code: 'DETACH_PENDING', message: /iqn\.[^ ]+ \(127\.0\.0\.1\).*--force/})
  await session.read(0, 4096)
  t.true(node.store.exports.has(made.volume.id))
  t.regex(await waitsFor(), /logged in to .*--force/)
  await session.close()
  await detach(made.volume.id)
  await checkGone(t, made)
})

test('10 --force ends it, also where the detach stands without', async t => {
  const made = await attach()
  const session = await secondSession(t, made)
  await t.throwsAsync(detach(made.volume.id), {code: 'DETACH_PENDING'})
  await node.api.call('DELETE', `/attachments/${made.volume.id}?force=true`)
  await checkGone(t, made)
  await t.throwsAsync(session.read(0, 4096), {code: 'INITIATOR_FAILED'})
})

test('11 a domain that is destroyed and undefined while its detach stands takes nobody else’s session with it', async t => {
  const made = await attach()
  const session = await secondSession(t, made)
  await host.libvirtd.connection.suspend('vm')
  await t.throwsAsync(detach(made.volume.id, 200), {code: 'DETACH_PENDING'})
  await host.guest.stop()
  await until(async () => /logged in to/.test(await waitsFor()))
  await node.daemon.reconcile('test')
  t.true(node.store.exports.has(made.volume.id))
  await session.read(0, 4096)
  await session.close()
  await until(async () => {
    await node.daemon.reconcile('test')
    return node.daemon.operations.rooms.journal.unfinished().length === 0
  })
  t.true(node.store.volumes.has(made.volume.id))
  t.false(node.store.exports.has(made.volume.id))
  await node.api.call('DELETE', `/volumes/${made.volume.id}`)
  await host.guest.boot()
  await host.guest.waitReady()
})

test('12 each request that joins a detach waits its own time, and each token has its answer', async t => {
  const made = await attach()
  const {id} = made.volume
  await host.libvirtd.connection.suspend('vm')
  t.teardown(() => host.libvirtd.connection.resume('vm').catch(() => {}))
  const ask = (token: string, timeoutMs: number) =>
    node.api.call('DELETE', `/attachments/${id}?timeoutMs=${timeoutMs}`, undefined, {token})
  const impatient = ask('first', 300)
  await until(async () => (await stateOf(id)) === 'detaching')
  const patient = ask('second', 60_000)
  await t.throwsAsync(impatient, {code: 'DETACH_PENDING'})
  await t.throwsAsync(ask('third', 300), {code: 'DETACH_PENDING'})
  t.is(await stateOf(id), 'detaching')
  await host.libvirtd.connection.resume('vm')
  const answer = await patient
  await node.stopDaemon()
  await node.start()
  for (const [token, timeoutMs] of [
    ['first', 300],
    ['second', 60_000],
    ['third', 300],
  ] as const)
    t.deepEqual(await ask(token, timeoutMs), answer, token)
  await checkGone(t, made)
})
