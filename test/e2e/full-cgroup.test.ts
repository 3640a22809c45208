// A daemon in a cgroup that has no room for another thread: what needs one is refused, and the daemon goes on.
import {setTimeout as sleep} from 'node:timers/promises'
import test, {type ExecutionContext} from 'ava'
import {type DaemonProcess, noCrash, startDaemonProcess} from '../fixtures/crash.js'
import {Node} from '../fixtures/node.js'
import {PidsCgroup} from '../fixtures/pids-cgroup.js'
import {lab} from '../lab/lab.js'

const sizeBytes = 4 * 2 ** 20

lab.options({deadlineMs: 300_000})

async function serving(t: ExecutionContext, given: Parameters<typeof Node.make>[0]) {
  const node = await Node.make(given)
  const daemon: DaemonProcess = await startDaemonProcess(node, noCrash)
  const cgroup = await PidsCgroup.make()
  t.teardown(async () => {
    await daemon.kill()
    await node.stop()
    await cgroup.remove()
  })
  await recovered(node)
  await cgroup.add(daemon.pid)
  return {node, cgroup}
}

async function recovered(node: Node): Promise<void> {
  for (let tries = 0; tries < 600; tries++) {
    const {state} = await node.api.call<{state: string}>('GET', '/status')
    if (state === 'serving') return
    await sleep(50)
  }
}

const eight = <T>(make: (index: number) => Promise<T>) => Promise.allSettled(Array.from({length: 8}, (_, i) => make(i)))

const codesOf = (outcomes: PromiseSettledResult<unknown>[]) =>
  outcomes.map(one => (one.status === 'fulfilled' ? 'ok' : (one.reason as {code: string}).code))

const createVolume = (node: Node) => node.api.call<{volume: {id: string}}>('POST', '/volumes', {sizeBytes})

async function volumesOf(node: Node): Promise<string[]> {
  const made = await Promise.all(Array.from({length: 8}, () => createVolume(node)))
  return made.map(({volume}) => volume.id)
}

const exportAll = (node: Node, ids: string[]) => eight(index => node.api.call('POST', '/exports', {volume: ids[index]}))

test('eight volumes and eight exports at once: refused for want of a thread, and made when there is room', async t => {
  const {node, cgroup} = await serving(t, {outliving: true})
  await cgroup.leaveRoomFor(0)
  const refused = await eight(() => createVolume(node))
  t.deepEqual(codesOf(refused), Array(8).fill('POOL_UNUSABLE'))
  t.regex((refused[0] as PromiseRejectedResult).reason.message, /thread/)
  t.deepEqual(await node.poolFiles(), [])
  await cgroup.free()
  const ids = await volumesOf(node)
  await cgroup.leaveRoomFor(0)
  t.deepEqual(codesOf(await exportAll(node, ids)), Array(8).fill('ok'))
})

lab('with LIO eight exports at once are made by the threads that there are', async t => {
  const {node, cgroup} = await serving(t, {targets: {driver: 'lio', endWithDaemon: false}})
  const ids = await volumesOf(node)
  await cgroup.leaveRoomFor(0)
  t.deepEqual(codesOf(await exportAll(node, ids)), Array(8).fill('ok'))
  for (const id of ids) await node.api.call('DELETE', `/exports/${id}`)
})
