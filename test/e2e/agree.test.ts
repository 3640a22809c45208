import {truncate, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import anyTest, {type TestFn} from 'ava'
import {errorCodes, StorageError} from '../../src/errors.js'
import {Observer} from '../../src/reconcile/observe.js'
import type {TgtDriver} from '../../src/targets/tgt.js'
import {Host, Node} from '../fixtures/node.js'
import {generator, pick, seed} from '../fixtures/random.js'

/**
 * A random walk through the API by eight workers at once, with kills of tgtd and restarts of the daemon in between. After
 * it pool, tgtd, domain and store agree, and all of it can be taken down to nothing. LUNPATH_TEST_SEED repeats a walk, as
 * far as eight workers can be repeated.
 */
const test = anyTest.serial as TestFn
const MiB = 2 ** 20
const workers = 8
const operationsPerWorker = 20
const mostAttached = 6

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

type Call = ['GET' | 'POST' | 'DELETE', string, object?]

/** What may be asked for now; the ids are of this moment, and may be gone when the request arrives. */
function requests(random: () => number, images: string[]): Call[] {
  const {store} = node
  const volume = pick(random, store.volumes.keys())
  const exported = pick(random, store.exports.keys())
  const attached = pick(random, store.attachments.keys())
  const bus = random() < 0.5 ? 'virtio' : 'scsi'
  const sizeBytes = (1 + Math.floor(random() * 4)) * MiB
  const room = store.attachments.size < mostAttached
  const calls: (Call | undefined)[] = [
    ['POST', '/volumes', {sizeBytes, preallocate: random() < 0.3}],
    ['POST', '/volumes', {sizeBytes, name: `name-${Math.floor(random() * 6)}`}],
    ['POST', '/volumes/import', {path: pick(random, images)}],
    ['POST', '/exports', {sizeBytes}],
    room ? ['POST', '/attachments', {domain: 'vm', sizeBytes, bus}] : undefined,
    room ? ['POST', '/attachments', {domain: 'vm', device: pick(random, images), bus}] : undefined,
    volume && room ? ['POST', '/attachments', {domain: 'vm', volume, bus}] : undefined,
    volume ? ['POST', '/exports', {volume}] : undefined,
    volume ? ['POST', `/volumes/${volume}/clone`, {}] : undefined,
    volume ? ['POST', `/volumes/${volume}/extend`, {sizeBytes: 4 * sizeBytes}] : undefined,
    volume ? ['DELETE', `/volumes/${volume}`] : undefined,
    exported ? ['DELETE', `/exports/${exported}`] : undefined,
    attached ? ['DELETE', `/attachments/${attached}`] : undefined,
    ['GET', '/volumes'],
    ['GET', '/attachments'],
  ]
  return calls.filter(call => call !== undefined)
}

interface Done {
  call: string
  code: string
  message: string
  /** The volume that it was about, where it was done. */
  made?: string
}

async function perform([method, path, body]: Call, token: string | undefined): Promise<Done> {
  const call = `${method} ${path} ${JSON.stringify(body ?? {})}`
  try {
    const answer = await node.api.call<{volume?: {id: string}; disk?: {serial: string}}>(method, path, body, {token})
    return {call, code: 'done', message: '', made: answer.volume?.id ?? answer.disk?.serial}
  } catch (error) {
    const code = error instanceof StorageError ? error.code : 'NOT_A_STORAGE_ERROR'
    return {call, code, message: (error as Error).message}
  }
}

/** Where store and world differ; empty where they agree. */
async function disagreements(): Promise<string[]> {
  const {rooms} = node.daemon.operations
  const {store} = rooms
  const targets = (await new Observer(rooms).observe({full: true})).targets!
  const disks = (await rooms.compute.disks('vm')).filter(({alias}) => alias.startsWith('ua-lunpath-'))
  const found: string[] = []
  const compare = (what: string, world: string[], stored: string[]) => {
    if (world.sort().join() !== stored.sort().join())
      found.push(`${what}: the world has ${world.join() || 'none'}, the store ${stored.join() || 'none'}`)
  }
  const volumes = [...store.volumes.values()]
  compare(
    'files',
    await node.poolFiles(),
    volumes.filter(({imported}) => !imported).map(({id}) => `${id}.img`),
  )
  compare(
    'sizes',
    (await rooms.volumes.list()).volumes.map(({id, sizeBytes}) => `${id} ${sizeBytes}`),
    volumes.filter(({imported}) => !imported).map(({id, sizeBytes}) => `${id} ${sizeBytes}`),
  )
  compare(
    'exports',
    targets.flatMap(({iqn, access, luns}) =>
      luns.map(({path, serial, sizeBytes}) => `${iqn} ${access.names} ${path} ${serial} ${sizeBytes}`),
    ),
    [...store.exports.values()].map(
      ({iqn, access, volumeId, sizeBytes}) =>
        `${iqn} ${access.names} ${store.volumes.get(volumeId)?.path} ${volumeId} ${sizeBytes}`,
    ),
  )
  compare(
    'disks',
    disks.map(({serial, target, bus}) => `${serial} ${target} ${bus}`),
    [...store.attachments.values()].map(({id, target, bus}) => `${id} ${target} ${bus}`),
  )
  for (const {kind, subject, state} of rooms.journal.unfinished()) found.push(`${kind} of ${subject} is ${state}`)
  for (const {id, iqn} of store.attachments.values())
    if (iqn !== null && !store.exports.has(id)) found.push(`${id} is attached and not exported`)
  return found
}

/** Waits until nothing stands any more, as the reconciler would in its own time. */
async function settle(): Promise<void> {
  const {journal} = node.daemon.operations.rooms
  for (let tries = 0; journal.unfinished().length > 0 && tries < 100; tries++) {
    await node.daemon.reconcile('test')
    await sleep(100)
  }
}

test(`after a random walk (seed ${seed}) pool, tgtd, domain and store agree`, async t => {
  const images = await Promise.all(
    [1, 2, 3].map(async number => {
      const path = join(node.directory, `image-${number}`)
      await writeFile(path, '')
      await truncate(path, number * MiB)
      return path
    }),
  )
  const done: Done[] = []
  let stopped = false
  /** Set while the daemon restarts: workers hold their next request back, those that are under way may fail. */
  let pause: Promise<void> | undefined

  const work = async (worker: number) => {
    const random = generator(seed + worker)
    for (let turn = 0; turn < operationsPerWorker; turn++) {
      while (pause !== undefined) await pause
      const calls = requests(random, images)
      const call = calls[Math.floor(random() * calls.length)]!
      const token = random() < 0.3 ? `${seed}-${worker}-${turn}` : undefined
      const first = await perform(call, token)
      done.push(first)
      if (token === undefined || first.code === 'DAEMON_UNREACHABLE') continue
      while (pause !== undefined) await pause
      const second = await perform(call, token)
      done.push(second)
    }
  }
  const trouble = async () => {
    const random = generator(seed - 1)
    while (!stopped) {
      await sleep(500 + random() * 1_500)
      if (stopped) return
      if (random() < 0.6) {
        const {pid} = node.daemon.operations.rooms.targets as TgtDriver
        try {
          // 0 would be this process's own group.
          if (pid > 0) process.kill(pid, 'SIGKILL')
        } catch {
          // It has not come back from the last one yet.
        }
      } else {
        let resume = () => {}
        pause = new Promise(resolve => {
          resume = resolve
        })
        await node.stopDaemon()
        await node.start()
        pause = undefined
        resume()
      }
    }
  }
  const troubled = trouble()
  await Promise.all(Array.from({length: workers}, (_, worker) => work(worker)))
  stopped = true
  await troubled
  await settle()

  const counts: Record<string, number> = {}
  for (const {code} of done) counts[code] = (counts[code] ?? 0) + 1
  t.log(`${done.length} requests: ${JSON.stringify(counts)}`)
  const wrong = done.filter(({code}) => code !== 'done' && (!(code in errorCodes) || code === 'INTERNAL'))
  t.deepEqual(wrong, [], 'errors that nobody has documented')
  t.true(counts.done! > done.length / 4)
  const apart = await disagreements()
  for (const [id] of apart.join().matchAll(/[0-9a-f]{16}/g))
    for (const one of done.filter(({call, made}) => call.includes(id) || made === id)) t.log(id, one)
  t.deepEqual(apart, [])

  for (const id of [...node.store.attachments.keys()]) await node.api.call('DELETE', `/attachments/${id}`)
  for (const id of [...node.store.exports.keys()]) await node.api.call('DELETE', `/exports/${id}`)
  for (const id of [...node.store.volumes.keys()]) await node.api.call('DELETE', `/volumes/${id}`)
  t.deepEqual(await disagreements(), [])
  t.deepEqual(await node.poolFiles(), [])
  t.deepEqual(await node.api.call('GET', '/targets'), [])
  t.is(node.store.secrets.size, 0)
})
