import {execFile} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {mkdtemp, readFile, rm, statfs, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {promisify} from 'node:util'
import anyTest, {type ExecutionContext, type TestFn} from 'ava'
import type {Journal} from '../../src/state/journal.js'
import {runUnderCrash} from '../fixtures/crash.js'
import {Host, Node} from '../fixtures/node.js'

/**
 * What a guest has written is never lost to an undo: an attach that was cut off goes on, or ends as failed with volume and
 * export kept. And what an attach has made never stays without a record.
 */
const test = anyTest.serial as TestFn
const run = promisify(execFile)
const asRoot = process.getuid?.() === 0 ? test : (test.skip as unknown as TestFn)
const sizeBytes = 8 * 2 ** 20
const written = randomBytes(4096)

let host: Host
let node: Node
test.before(async () => {
  host = await Host.start()
  node = await Node.make({outliving: true, compute: {uri: host.libvirtd.uri}})
})
test.after.always(async () => {
  await node?.stop()
  await host?.stop()
})

// One that has failed must not take the next ones with it.
test.afterEach.always(() => node.stopDaemon())

interface Made {
  volume: {id: string}
}
interface Status {
  unfinished: {kind: string; subject: string; state: string; waitsFor: string | null}[]
  problems: {problem: string; subject: string; message: string}[]
}
const attach = (more: object = {}) => node.api.call<Made>('POST', '/attachments', {domain: 'vm', sizeBytes, ...more})
const status = () => node.api.call<Status>('GET', '/status')
const imageOf = (id: string) => join(node.directory, 'volumes', `${id}.img`)
const isInImage = async (id: string) => (await readFile(imageOf(id))).subarray(0, written.length).equals(written)

/** An attach of a new volume whose daemon dies when the disk is in the domain, and before that is written down. */
async function cutOff(more: object = {}): Promise<string> {
  await runUnderCrash(node, {when: 'before', at: 'attach:complete'}, () => attach(more))
  const [file] = await node.poolFiles()
  const id = file!.replace('.img', '')
  await host.guest.waitForDisk(id)
  await host.guest.write(id, 0, written)
  return id
}

/** libvirt answers again: the driver tries in growing pauses of up to five seconds. */
async function reconnected(): Promise<void> {
  const {compute} = node.daemon.operations.rooms
  const answers = () =>
    compute.domains().then(
      () => true,
      () => false,
    )
  while (!(await answers())) await sleep(50)
}

async function settled(): Promise<void> {
  const {journal} = node.daemon.operations.rooms
  for (let tries = 0; journal.unfinished().length > 0 && tries < 300; tries++) await sleep(100)
}

/** Takes down all that is left, and boots the guest where it is off. */
async function clear(t: ExecutionContext): Promise<void> {
  const {store, rooms} = {store: node.store, rooms: node.daemon.operations.rooms}
  for (const {id} of [...store.attachments.values()]) await node.api.call('DELETE', `/attachments/${id}`)
  for (const {volumeId} of [...store.exports.values()]) await node.api.call('DELETE', `/exports/${volumeId}`)
  for (const {id} of [...store.volumes.values()]) await node.api.call('DELETE', `/volumes/${id}`)
  t.deepEqual(await node.poolFiles(), [])
  t.deepEqual(rooms.journal.unfinished(), [])
  await node.stopDaemon()
}

test('01 the guest writes, its domain is shut off, the daemon starts: volume and data are there, and the failure says so', async t => {
  const id = await cutOff()
  await host.libvirtd.connection.destroy('vm')
  await node.start()
  await settled()
  t.true(node.store.volumes.has(id))
  t.true(node.store.exports.has(id))
  t.false(node.store.attachments.has(id))
  t.true(await isInImage(id))
  await host.guest.start()
  await host.guest.waitReady()
  // It is a volume like any other: the guest gets it back with what it has written.
  await node.api.call('POST', '/attachments', {domain: 'vm', volume: id})
  await host.guest.waitForDisk(id)
  await clear(t)
})

test('02 the same, kept in the definition: the attach is done, and the domain starts with its disk', async t => {
  const id = await cutOff({persistent: true})
  await host.libvirtd.connection.destroy('vm')
  await node.start()
  await settled()
  t.true(node.store.attachments.has(id))
  t.true(await isInImage(id))
  await host.guest.start()
  await host.guest.waitReady()
  await host.guest.waitForDisk(id)
  await clear(t)
})

test('03 libvirtd is dead when the daemon starts: the attach stands, and is done when libvirtd is back', async t => {
  const id = await cutOff()
  await host.libvirtd.kill()
  await node.start()
  t.true(node.store.volumes.has(id))
  await host.libvirtd.start()
  await reconnected()
  await settled()
  t.true(node.store.attachments.has(id))
  t.true(await isInImage(id))
  await clear(t)
})

test('04 the domain is gone for good: volume and export stay with the data, through two more starts', async t => {
  const id = await cutOff()
  await host.guest.stop()
  for (let starts = 0; starts < 2; starts++) {
    await node.start()
    await settled()
    t.true(node.store.volumes.has(id))
    t.true(await isInImage(id))
    await node.stopDaemon()
  }
  await host.guest.boot()
  await host.guest.waitReady()
  await node.start()
  await clear(t)
})

test('05 libvirtd dies while QEMU takes the disk: nothing is deleted while QEMU has it, and it is a problem with a name', async t => {
  await node.start()
  const {targets, journal} = node.daemon.operations.rooms
  let id = ''
  for (let tries = 0; tries < 20 && id === ''; tries++) {
    const attaching = attach({bus: 'scsi'}).then(
      ({volume}) => volume.id,
      () => undefined,
    )
    // The probe logs in first and leaves; the second session is QEMU's.
    let ended = false
    void attaching.then(() => {
      ended = true
    })
    for (const isThere of [true, false, true]) {
      while (!ended && (await targets.sessions()).length > 0 !== isThere) await sleep(0)
    }
    await host.libvirtd.kill()
    await host.libvirtd.start()
    await attaching
    await reconnected()
    await node.daemon.reconcile('test')
    const [standing] = journal.unfinished()
    const known = await node.daemon.operations.rooms.compute.disks('vm')
    if (standing && !known.some(({alias}) => alias.endsWith(standing.subject))) id = standing.subject
    else {
      await settled()
      for (const one of [...node.store.attachments.values()]) await node.api.call('DELETE', `/attachments/${one.id}`)
      for (const one of [...node.store.volumes.values()]) await node.api.call('DELETE', `/volumes/${one.id}`)
    }
  }
  t.not(id, '', 'libvirtd never died at the right moment')
  t.true(node.store.volumes.has(id))
  t.is((await targets.sessions()).length, 1, 'QEMU is still logged in')
  // The operation is gone on with beside the look: the next one tells.
  for (let tries = 0; (await status()).problems.length === 0 && tries < 100; tries++) {
    await node.daemon.reconcile('test')
    await sleep(50)
  }
  const {unfinished, problems} = await status()
  t.like(unfinished, [{kind: 'attach', subject: id, state: 'undoing'}])
  t.regex(unfinished[0]!.waitsFor ?? '', /without libvirt/)
  t.like(problems, [{problem: 'disk-unknown-to-libvirt', subject: id}])

  // A start of the daemon changes nothing of that; the end of the QEMU process ends it.
  await node.stopDaemon()
  await node.start()
  t.true(node.store.volumes.has(id))
  await host.libvirtd.connection.destroy('vm')
  await settled()
  t.deepEqual((await status()).unfinished, [])
  t.true(node.store.volumes.has(id))
  t.true(node.store.exports.has(id))
  await host.guest.start()
  await host.guest.waitReady()
  await clear(t)
})

asRoot(
  '06 the store’s file system is full when the disk is in the guest: all of it is taken back, or it stands and is done',
  async t => {
    for (const stays of [false, true]) {
      const directory = await mkdtemp(join(tmpdir(), 'lp-full-'))
      await run('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', directory])
      const filling = join(directory, 'filling')
      const small = await Node.make({
        outliving: true,
        compute: {uri: host.libvirtd.uri},
        daemon: {directory},
        volumes: {directory: join(node.directory, `pool-${stays}`)},
      })
      t.teardown(async () => {
        await small.stop()
        await run('umount', [directory])
        await rm(directory, {recursive: true})
      })
      let filled = false
      // The file system fills up when the attach is to be written down; in one of the cases there is space again right after.
      const before = async (write: string, state: unknown) => {
        if (write === 'complete' && state === 'done' && !filled) await fill(directory, filling)
        filled ||= write === 'complete'
        if (write === 'failing' && !stays) await rm(filling, {force: true})
      }
      await small.start({wrapJournal: journal => beforeWrites(journal, before)})
      const error = await t.throwsAsync<Error & {code: string; info: {undone?: string[]; stands?: boolean}}>(
        small.api.call('POST', '/attachments', {domain: 'vm', sizeBytes}),
      )
      t.is(error.code, 'STORE_FAILED', error.message)
      const {rooms} = small.daemon.operations
      const disks = async () =>
        (await rooms.compute.disks('vm')).filter(({alias}) => alias.startsWith('ua-lunpath-')).map(({serial}) => serial)
      if (stays) {
        t.true(error.info.stands)
        t.is((await disks()).length, 1)
        t.is(rooms.journal.unfinished().length, 1, 'what the guest has is on record')
        await rm(filling)
        await small.daemon.reconcile('test')
        t.deepEqual([...small.store.attachments.keys()], await disks())
        t.deepEqual(rooms.journal.unfinished(), [])
        await small.api.call('DELETE', `/attachments/${[...small.store.attachments.keys()][0]}`)
      } else {
        t.deepEqual(error.info.undone, ['export', 'volume'])
        t.deepEqual(await disks(), [])
        t.is(small.store.volumes.size, 0)
        t.deepEqual(await rooms.targets.list(), [])
      }
    }
  },
)

/** A journal that calls `before` ahead of its last two writes; it writes as ever. */
function beforeWrites(journal: Journal, before: (write: string, state: unknown) => Promise<void>): Journal {
  return new Proxy(journal, {
    get(target, property) {
      const member = Reflect.get(target, property, target) as unknown
      if (typeof member !== 'function') return member
      if (property !== 'complete' && property !== 'failing') return member.bind(target)
      return async (...args: unknown[]) => {
        await before(property, args[1])
        return member.apply(target, args)
      }
    },
  })
}

async function fill(directory: string, file: string): Promise<void> {
  const {bavail, bsize} = await statfs(directory)
  await writeFile(file, Buffer.alloc(bavail * bsize)).catch(() => {})
}
