import {setTimeout as sleep} from 'node:timers/promises'
import anyTest, {type TestFn} from 'ava'
import {hasCode} from '../../src/errors.js'
import {Observer} from '../../src/reconcile/observe.js'
import type {Journal} from '../../src/state/journal.js'
import {type Crash, noCrash, runUnderCrash} from '../fixtures/crash.js'
import {Host, Node} from '../fixtures/node.js'

/**
 * kill -9 of the daemon right before and right after each write of its journal; then a new daemon, and the world (pool,
 * tgtd, domain) and the store must agree, with nothing lost, left over or doubled.
 */
const test = anyTest.serial as TestFn
const sizeBytes = 8 * 2 ** 20

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

const underCrash = (crash: Crash, request: () => Promise<unknown>) => runUnderCrash(node, crash, request)

/** Where store and world differ; empty where they agree. Asks tgtd and libvirt anew, and looks into the pool. */
async function disagreements(): Promise<string[]> {
  await node.start()
  try {
    const {rooms} = node.daemon.operations
    const {store} = rooms
    await settled(rooms.journal)
    const targets = (await new Observer(rooms).observe({full: true})).targets!
    const inDomain = await rooms.compute.disks('vm').catch(error => {
      if (hasCode(error, 'DOMAIN_NOT_FOUND')) return []
      throw error
    })
    const disks = inDomain.filter(({alias}) => alias.startsWith('ua-lunpath-'))
    const found: string[] = []
    const compare = (what: string, world: string[], stored: string[]) => {
      if (world.sort().join() !== stored.sort().join())
        found.push(`${what}: world ${world.join()}, store ${stored.join()}`)
    }
    compare(
      'volumes',
      await node.poolFiles(),
      [...store.volumes.keys()].map(id => `${id}.img`),
    )
    compare(
      'exports',
      targets.filter(({luns}) => luns.some(({lun}) => lun === 1)).map(({iqn, access}) => `${iqn} ${access.names}`),
      [...store.exports.values()].map(({iqn, access}) => `${iqn} ${access.names}`),
    )
    compare(
      'targets',
      targets.map(({iqn}) => iqn),
      [...store.exports.values()].map(({iqn}) => iqn),
    )
    compare(
      'disks',
      disks.map(({serial, target}) => `${serial} ${target}`),
      [...store.attachments.values()].map(({id, target}) => `${id} ${target}`),
    )
    if (rooms.journal.unfinished().length > 0) found.push('an operation is unfinished')
    const sizes = [store.volumes.size, store.exports.size, store.attachments.size]
    if (new Set(sizes).size !== 1 && wholePath) found.push(`half a path: ${sizes.join()} volumes, exports, attachments`)
    if (Math.max(...sizes) > 1) found.push(`doubled: ${sizes.join()}`)
    return found
  } finally {
    await node.stopDaemon()
  }
}
/** A guest may take its time to release a disk; the daemon goes on by itself when it has. */
async function settled(journal: Journal): Promise<void> {
  for (let tries = 0; journal.unfinished().length > 0 && tries < 300; tries++) await sleep(100)
}

/** True while an attach is tested: then it is all there or nothing is. */
let wholePath = true

const token = () => `t-${Math.random()}`
const attach = (key: string) => () => node.api.call('POST', '/attachments', {domain: 'vm', sizeBytes}, {token: key})

/** What the daemon that has done the work says of it, against the number of attachments that there must be. */
async function told(attachments: number): Promise<string[]> {
  const listed = await node.api.call<unknown[]>('GET', '/attachments')
  const {unfinished} = await node.api.call<{unfinished: unknown[]}>('GET', '/status')
  const found: string[] = []
  if (listed.length !== attachments) found.push(`${listed.length} attachments are listed, not ${attachments}`)
  if (unfinished.length > 0) found.push('the operation has been answered and is not finished')
  return found
}

/** Takes everything down again, through the API of a daemon without crashes. */
async function takeDown(): Promise<void> {
  await node.start()
  try {
    for (const {id} of [...node.store.attachments.values()]) await node.api.call('DELETE', `/attachments/${id}`)
    for (const {volumeId} of [...node.store.exports.values()]) await node.api.call('DELETE', `/exports/${volumeId}`)
    for (const {id} of [...node.store.volumes.values()]) await node.api.call('DELETE', `/volumes/${id}`)
  } finally {
    await node.stopDaemon()
  }
}

async function attached(): Promise<string> {
  await node.start()
  try {
    const {volume} = (await attach(token())()) as {volume: {id: string}}
    return volume.id
  } finally {
    await node.stopDaemon()
  }
}

let attachWrites: string[] = []
let detachWrites: string[] = []

test('01 without a crash store and world agree, and the journal is written at each step', async t => {
  attachWrites = await underCrash(noCrash, async () => {
    await attach(token())()
    t.deepEqual(await told(1), [])
  })
  t.deepEqual(await disagreements(), [])
  wholePath = false
  detachWrites = await underCrash(noCrash, async () => {
    const [{id}] = await node.api.call<[{id: string}]>('GET', '/attachments')
    await node.api.call('DELETE', `/attachments/${id}`)
    t.deepEqual(await told(0), [])
  })
  t.deepEqual(await disagreements(), [])
  t.deepEqual(attachWrites, ['attach:begin', 'attach:stepMade:volume', 'attach:stepMade:export', 'attach:complete'])
  t.deepEqual(detachWrites, ['detach:begin', 'detach:stepUnmade:disk', 'detach:complete'])
  await takeDown()
})

test('02 kill -9 around each journal write of an attach: all or nothing, and the token gives one answer', async t => {
  wholePath = true
  for (const at of attachWrites) {
    for (const when of ['before', 'after'] as const) {
      const key = token()
      await underCrash({when, at}, attach(key))
      t.deepEqual(await disagreements(), [], `${when} ${at}`)
      await node.start()
      const first = await attach(key)()
      t.deepEqual(await attach(key)(), first)
      t.is(node.store.volumes.size, 1, `${when} ${at}: the same token made it once`)
      t.is(node.store.attachments.size, 1)
      await node.stopDaemon()
      t.deepEqual(await disagreements(), [], `${when} ${at}, then asked again`)
      await takeDown()
      t.deepEqual(await node.poolFiles(), [], `${when} ${at}: nothing is left`)
    }
  }
})

test('03 kill -9 around each journal write of a detach: the disk and its export go together, the volume stays', async t => {
  wholePath = false
  for (const at of detachWrites) {
    for (const when of ['before', 'after'] as const) {
      const id = await attached()
      await underCrash({when, at}, () => node.api.call('DELETE', `/attachments/${id}`))
      t.deepEqual(await disagreements(), [], `${when} ${at}`)
      await node.start()
      t.is(node.store.attachments.size, node.store.exports.size, `${when} ${at}: half a detach`)
      t.is(node.store.attachments.size, when === 'before' && at === 'detach:begin' ? 1 : 0, `${when} ${at}`)
      t.true(node.store.volumes.has(id))
      await node.stopDaemon()
      await takeDown()
    }
  }
})

test('04 a domain that is gone when the daemon comes back: what no guest can have had is undone, the rest is kept', async t => {
  for (const at of attachWrites.slice(0, -1)) {
    await underCrash({when: 'after', at}, attach(token()))
    await host.guest.stop()
    // Once the export is written down QEMU may have logged in, and the guest may have written.
    const kept = at === 'attach:stepMade:export'
    wholePath = !kept
    t.deepEqual(await disagreements(), [], `after ${at}`)
    t.is((await node.poolFiles()).length, kept ? 1 : 0, `after ${at}`)
    await host.guest.boot()
    await host.guest.waitReady()
    await takeDown()
  }
})

test('05 each journal write is needed: without any one of them store and world come apart', async t => {
  const crashes = (writes: string[]): Crash[] => [
    noCrash,
    ...writes.flatMap(at => [{when: 'before', at} as const, {when: 'after', at} as const]),
  ]
  for (const drop of attachWrites) {
    wholePath = true
    let noticed: string[] = []
    for (const crash of crashes(attachWrites.filter(at => at !== drop))) {
      noticed = []
      const look = async () => {
        await attach(token())()
        noticed = await told(1)
      }
      await underCrash({...crash, drop}, look).catch(() => [])
      noticed.push(...(await disagreements()))
      await sweep()
      if (noticed.length > 0) break
    }
    t.not(noticed.length, 0, `nobody noticed that ${drop} was not written`)
    t.log(`without ${drop}: ${noticed[0]}`)
  }
  for (const drop of detachWrites) {
    wholePath = false
    let noticed: string[] = []
    for (const crash of crashes(detachWrites.filter(at => at !== drop))) {
      const id = await attached()
      noticed = []
      const look = async () => {
        await node.api.call('DELETE', `/attachments/${id}`)
        noticed = await told(0)
      }
      await underCrash({...crash, drop}, look).catch(() => [])
      noticed.push(...(await detachDisagreements(crash)))
      await sweep()
      if (noticed.length > 0) break
    }
    t.not(noticed.length, 0, `nobody noticed that ${drop} was not written`)
    t.log(`without ${drop}: ${noticed[0]}`)
  }
})

/** As for an attach, and: after the intent of a detach neither disk nor export may stay. */
async function detachDisagreements({when, at}: Crash): Promise<string[]> {
  const found = await disagreements()
  await node.start()
  const {attachments, exports} = node.store
  if (attachments.size !== exports.size)
    found.push(`half a detach: ${attachments.size} attachments, ${exports.size} exports`)
  if (attachments.size > 0 && !(when !== 'never' && at === 'detach:begin')) found.push('the detach was lost')
  await node.stopDaemon()
  return found
}

/** Brings a world that has come apart back to empty, by hand: disks, targets, files, store. */
async function sweep(): Promise<void> {
  await node.start()
  const {rooms} = node.daemon.operations
  for (const {serial, alias} of await rooms.compute.disks('vm')) {
    if (alias.startsWith('ua-lunpath-')) await rooms.compute.detach('vm', serial!)
  }
  // The driver removes no target that it does not know; here that is the very damage.
  for (const {tid} of await rooms.targets.list()) {
    await node.tgtd!.adm('--mode', 'target', '--op', 'delete', '--force', '--tid', `${tid}`)
  }
  for (const volume of (await rooms.volumes.list()).volumes) await rooms.volumes.delete(volume)
  const {store} = rooms
  for (const table of ['volumes', 'exports', 'attachments', 'operations'] as const) {
    await store.write([...store[table].keys()].map(id => ({table, id, value: null})))
  }
  await node.stopDaemon()
}
