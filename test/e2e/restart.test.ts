import {randomBytes} from 'node:crypto'
import {setTimeout as sleep} from 'node:timers/promises'
import anyTest, {type ExecutionContext, type TestFn} from 'ava'
import {watchRestart} from '../../bench/restart.js'
import type {IscsiSession} from '../../src/initiators/driver.js'
import {LibiscsiInitiator} from '../../src/initiators/libiscsi.js'
import {parsePortal} from '../../src/iqn.js'
import type {TgtDriver} from '../../src/targets/tgt.js'
import {tgtdSocketPath} from '../../src/targets/tgtd.js'
import type {Export} from '../../src/types.js'
import {Host, Node} from '../fixtures/node.js'

/**
 * kill -9 of tgtd with 200 exports, while a session of a user-space initiator reads and writes and a guest reads its disk:
 * all exports come back as they were, and neither sees an I/O error.
 */
const test = anyTest.serial as TestFn
const MiB = 2 ** 20
const initiator = new LibiscsiInitiator()
const initiatorName = 'iqn.2026-01.test.lunpath:restart'
const exportCount = 200
const auth = {incoming: {user: 'restarted', secret: 'sixteen-letters!'}}

let host: Host
test.before(async () => {
  host = await Host.start()
})
test.after.always(async () => {
  await host?.stop()
})

interface Made {
  volume: {id: string}
  export: Export
}

/** Writes blocks and reads them back, without a pause, until it is told to stop. The first error ends it. */
function keepBusy(session: IscsiSession) {
  let rounds = 0
  let stopped = false
  const done = (async () => {
    while (!stopped) {
      const data = randomBytes(64 * 1024)
      const offset = (rounds % 64) * data.length
      await session.write(offset, data)
      const back = await session.read(offset, data.length)
      if (!back.equals(data)) throw new Error(`other data at ${offset}`)
      rounds++
    }
  })()
  done.catch(() => {})
  return {
    rounds: () => rounds,
    stop: async () => {
      stopped = true
      await done
    },
  }
}

/** Exports, a busy session and a guest that reads its disk, on a node. */
async function busyNode(t: ExecutionContext, node: Node) {
  t.teardown(() => node.stop())
  await node.start()
  const access = {names: [initiatorName]}
  const made: Made[] = []
  await Promise.all(
    Array.from({length: 4}, async () => {
      for (let each = 0; each < exportCount / 4 - 1; each++)
        made.push(await node.api.call<Made>('POST', '/exports', {sizeBytes: MiB, access}))
    }),
  )
  const busy = await node.api.call<Made>('POST', '/exports', {sizeBytes: 4 * MiB, access, auth})
  made.push(busy)
  while (made.length < exportCount - 1)
    made.push(await node.api.call<Made>('POST', '/exports', {sizeBytes: MiB, access}))
  const inGuest = await node.api.call<Made>('POST', '/attachments', {domain: 'vm', sizeBytes: 8 * MiB})
  t.teardown(() => node.api.call('DELETE', `/attachments/${inGuest.volume.id}`).catch(() => {}))
  await host.guest.waitForDisk(inGuest.volume.id)
  await host.guest.hold(inGuest.volume.id)
  await until(async () => (await guestReads(inGuest.volume.id)).reads > 0)

  const login = {portal: parsePortal(node.portal), iqn: busy.export.iqn, lun: 1, initiatorName, auth}
  const session = await initiator.connect({...login, reconnect: true, commandTimeoutMs: 60_000})
  t.teardown(() => session.close())
  const load = keepBusy(session)
  return {made, inGuest, load}
}

async function guestReads(serial: string): Promise<{reads: number; errors: number; kernelIoErrors: string[]}> {
  const {holds, kernelIoErrors} = await host.guest.stats()
  // Before its first read it is not among them.
  const {reads, errors} = holds.find(hold => hold.serial === serial) ?? {reads: 0, errors: 0}
  return {reads, errors, kernelIoErrors}
}

/** Waits until it has happened; the test's own time limit is the deadline. */
async function until(happened: () => Promise<boolean> | boolean): Promise<void> {
  while (!(await happened())) await sleep(50)
}

/** Everything is there again as it was exported, and both who were at work go on. */
async function checkBack(t: ExecutionContext, node: Node, {made, inGuest, load}: Awaited<ReturnType<typeof busyNode>>) {
  const {rooms} = node.daemon.operations
  const targets = new Map((await rooms.targets.list()).map(target => [target.iqn, target]))
  for (const {export: exported, volume} of [...made, inGuest]) {
    const target = targets.get(exported.iqn)
    t.deepEqual(
      target?.luns.map(({lun, serial, scsiId, online}) => ({lun, serial, scsiId, online})),
      [{lun: 1, serial: volume.id, scsiId: volume.id, online: true}],
    )
    const names = exported === inGuest.export ? [rooms.initiatorName] : [initiatorName]
    t.deepEqual(target?.access, {addresses: [], names})
  }
  t.is(targets.size, exportCount)
  for (const {export: exported} of [made[0]!, made[77]!, made.at(-1)!]) {
    const {iqn, lun, wwid, serial, sizeBytes, portals} = exported
    const credentials = node.store.secrets.get(exported.volumeId)
    await initiator.probe({portal: portals[0]!, iqn, lun, initiatorName, auth: credentials}, {wwid, serial, sizeBytes})
  }
  const rounds = load.rounds()
  await until(async () => load.rounds() > rounds + 20)
  await load.stop()
  const before = await guestReads(inGuest.volume.id)
  await until(async () => (await guestReads(inGuest.volume.id)).reads > before.reads + 20)
  const {errors, kernelIoErrors} = await guestReads(inGuest.volume.id)
  t.deepEqual({errors, kernelIoErrors}, {errors: 0, kernelIoErrors: []})
  await host.guest.unhold(inGuest.volume.id)
  await node.api.call('DELETE', `/attachments/${inGuest.volume.id}`)
  t.is((await node.api.call<unknown[]>('GET', '/exports')).length, exportCount - 1)
}

test('01 kill -9 of the tgtd that lunpath runs: all exports are back, and nobody sees an error', async t => {
  const node = await Node.make({compute: {uri: host.libvirtd.uri}})
  const work = await busyNode(t, node)
  const targets = node.daemon.operations.rooms.targets as TgtDriver
  const {pid} = targets
  const restarted = new Promise<Record<string, unknown>>(resolve => targets.on('restarted', resolve))
  await until(() => work.load.rounds() > 20)

  const watching = watchRestart(tgtdSocketPath(`${node.directory}/tgtd`), parsePortal(node.portal), pid)
  process.kill(pid, 'SIGKILL')
  const {answeringMs, portalMs} = await watching
  const {exports, failed, durationMs} = await restarted
  t.log(
    `tgtd answers ${answeringMs.toFixed(0)} ms after the kill, ${portalMs.toFixed(0)} ms later the portal is open; all ${exports} exports were put back in ${Number(durationMs).toFixed(0)} ms`,
  )
  t.is(exports, exportCount)
  t.deepEqual(failed, [])
  t.not(targets.pid, pid)
  await checkBack(t, node, work)
})

test('02 kill -9 and restart of a tgtd that is not lunpath’s: the same', async t => {
  const node = await Node.make({outliving: true, compute: {uri: host.libvirtd.uri}})
  const work = await busyNode(t, node)
  const targets = node.daemon.operations.rooms.targets as TgtDriver
  const {pid} = targets
  const restarted = new Promise<Record<string, unknown>>(resolve => targets.on('restarted', resolve))
  await until(() => work.load.rounds() > 20)

  const watching = watchRestart(node.tgtd!.socketPath, parsePortal(node.portal), pid)
  await node.tgtd!.restart()
  const {portalMs} = await watching
  const {failed} = await restarted
  t.log(`the portal is open ${portalMs.toFixed(0)} ms after tgtd answers`)
  t.deepEqual(failed, [])
  await checkBack(t, node, work)
})

test('03 kill -9 of tgtd again and again: it comes back each time, and the session goes on', async t => {
  const node = await Node.make()
  t.teardown(() => node.stop())
  await node.start()
  const access = {names: [initiatorName]}
  const {export: exported} = await node.api.call<Made>('POST', '/exports', {sizeBytes: 4 * MiB, access})
  const login = {portal: parsePortal(node.portal), iqn: exported.iqn, lun: 1, initiatorName}
  const session = await initiator.connect({...login, reconnect: true, commandTimeoutMs: 60_000})
  t.teardown(() => session.close())
  const load = keepBusy(session)
  const targets = node.daemon.operations.rooms.targets as TgtDriver
  for (let kills = 0; kills < 3; kills++) {
    const {pid} = targets
    const restarted = new Promise(resolve => targets.on('restarted', resolve))
    process.kill(pid, 'SIGKILL')
    await restarted
    const rounds = load.rounds()
    await until(() => load.rounds() > rounds + 5)
  }
  await load.stop()
  t.is((await targets.get(exported.iqn))?.luns[0]?.serial, exported.serial)
})
