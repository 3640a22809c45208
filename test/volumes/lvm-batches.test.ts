// Volumes in LVM that are deleted at the same time: what they share, and that each has its own outcome.
import {open} from 'node:fs/promises'
import {setTimeout as sleep} from 'node:timers/promises'
import type {ExecutionContext} from 'ava'
import test from 'ava'
import type {Volume} from '../../src/types.js'
import {Batches} from '../../src/volumes/batches.js'
import {mappedDevices} from '../../src/volumes/device-mapper.js'
import {newVolumeId} from '../../src/volumes/id.js'
import type {LvmVolumeDriver} from '../../src/volumes/lvm.js'
import {inBytes, readVolume, volumeFields} from '../../src/volumes/lvm-facts.js'
import {Removals} from '../../src/volumes/lvm-removal.js'
import {codeOf, MiB, readAt, writeAt} from '../contract/observe.js'
import {lab, labDisk} from '../lab/lab.js'
import {TestGroup} from './lvm-group.js'

lab.options({disksBytes: [1024 * MiB], modules: ['dm-mod', 'dm-thin-pool'], deadlineMs: 900_000})

test('what is added while a batch runs goes together into the next one, and each item has its own outcome', async t => {
  const ran: number[][] = []
  let release = () => {}
  const held = new Promise<void>(resolve => {
    release = resolve
  })
  const batches = new Batches<number>(
    async items => {
      ran.push([...items])
      await held
      if (items.includes(13)) throw new Error('all of them')
      return new Map(items.filter(item => item < 0).map(item => [item, new Error(`no ${item}`)]))
    },
    {atMost: 3},
  )
  const outcome = (item: number) =>
    batches.add(item).then(
      () => 'done',
      (error: Error) => error.message,
    )
  const first = [1, -2].map(outcome)
  await sleep(20)
  const later = [3, 4, 5, 13].map(outcome)
  release()
  t.deepEqual(await Promise.all([...first, ...later]), ['done', 'no -2', 'done', 'done', 'done', 'all of them'])
  t.deepEqual(ran, [[1, -2], [3, 4, 5], [13]])
  t.is(await outcome(6), 'done')
})

let made: Promise<TestGroup> | undefined
async function group(t: ExecutionContext): Promise<TestGroup> {
  made ??= TestGroup.make('vg', labDisk(1), {name: 'thin', size: '256m'})
  const own = await made
  t.teardown(() => own.empty())
  return own
}

/** How often LVM has committed the group's metadata. */
const commits = async (own: TestGroup) => Number((await own.run('vgs', '-o', 'vg_seqno', own.name))[0]!.vg_seqno)

const makeMany = (driver: LvmVolumeDriver, count: number) =>
  Promise.all(Array.from({length: count}, () => driver.create({id: newVolumeId(), sizeBytes: 4 * MiB})))

const deleteAll = (driver: LvmVolumeDriver, volumes: Volume[]) =>
  Promise.all(volumes.map(volume => codeOf(driver.delete(volume))))

lab('01. eight deletes at once are one commit, also where a ninth volume is in use', async t => {
  const own = await group(t)
  const driver = await own.open(t, {wipe: 'none'})
  for (const isUsed of [false, true]) {
    const volumes = await makeMany(driver, isUsed ? 9 : 8)
    const user = isUsed ? await open(volumes[4]!.path, 'r') : undefined
    const before = await commits(own)
    const codes = await deleteAll(driver, volumes)
    await driver.settled()
    t.is((await commits(own)) - before, 1)
    t.deepEqual(
      codes,
      volumes.map((_, index) => (isUsed && index === 4 ? 'VOLUME_IN_USE' : 'no error')),
    )
    t.deepEqual([...(await own.volumes()).keys()], isUsed ? [volumes[4]!.id] : [])
    await user?.close()
    if (isUsed) await driver.delete(volumes[4]!)
  }
})

lab('02. a volume that is opened between the look and the removal stays whole, and the others go', async t => {
  const own = await group(t)
  for (const [wipe, thinPool] of [
    ['none', undefined],
    ['none', 'thin'],
    ['zero', undefined],
  ] as const) {
    const driver = await own.open(t, {wipe, thinPool})
    const volumes = await makeMany(driver, 4)
    await writeAt(volumes[2]!.path, Buffer.from('kept'), 8192)
    let user: Awaited<ReturnType<typeof open>> | undefined
    const background: Promise<void>[] = []
    const rows = async () => (await own.run('lvs', ...inBytes, '-o', volumeFields, 'vg')).map(readVolume)
    const removals = new Removals({
      group: 'vg',
      policy: wipe,
      lvm: async (...args) => {
        user ??= await open(volumes[2]!.path, 'r')
        return own.run(...args)
      },
      look: async names => new Map((await rows()).filter(({name}) => names.includes(name)).map(row => [row.name, row])),
      inBackground: work => void background.push(work),
      signal: () => new AbortController().signal,
    })
    const codes = volumes.map(({id}) =>
      codeOf(removals.remove({name: id, role: 'id', id, thin: thinPool !== undefined})),
    )
    t.deepEqual(await Promise.all(codes), ['no error', 'no error', 'VOLUME_IN_USE', 'no error'], `${wipe} ${thinPool}`)
    await Promise.all(background)
    await user!.close()
    await driver.settled()
    t.deepEqual([...(await own.volumes()).keys()], [volumes[2]!.id])
    t.is((await readAt(volumes[2]!.path, 4, 8192)).toString(), 'kept')
    await driver.delete(volumes[2]!)
    await driver.settled()
    await driver.close()
  }
})

lab('03. shells killed while many are made and deleted: each ends, nothing is left over', async t => {
  const own = await group(t)
  const driver = await own.open(t)
  for (let round = 0; round < 6; round++) {
    const volumes = await makeMany(driver, 6)
    const outcomes = Promise.all([
      deleteAll(driver, volumes),
      Promise.all(Array.from({length: 4}, () => codeOf(driver.create({id: newVolumeId(), sizeBytes: 4 * MiB})))),
    ])
    await sleep(50 + Math.random() * 700)
    if (driver.lvm.pid !== undefined) process.kill(driver.lvm.pid, 'SIGKILL')
    const [deleted, created] = await outcomes
    t.deepEqual([...new Set([...deleted, ...created])], ['no error'])
    const there = await driver.list()
    t.is(there.length, 4)
    for (const {path} of there) t.is((await readAt(path, 4, 0)).length, 4)
    await deleteAll(driver, there)
    await driver.settled()
    // What a shell was killed over while it removed in the background is told, and done by the next open().
    await driver.close()
    await driver.open()
    await driver.settled()
    t.deepEqual(await own.volumes(), new Map())
    const left = (await mappedDevices()).filter(({name}) => name.startsWith('vg-') && !name.startsWith('vg-thin'))
    t.deepEqual(left, [])
  }
})

lab('04. one that a crash has left half made goes, and its id can be had at once', async t => {
  const own = await group(t)
  const id = newVolumeId()
  const tags = [`lunpath:making=${id}`, 'lunpath:made=01234567'].flatMap(tag => ['--addtag', tag])
  await own.run('lvcreate', '--size', '4m', '--name', id, ...tags, 'vg')
  await writeAt(`/dev/vg/${id}`, Buffer.from('before'), 8192)
  const driver = await own.open(t)
  t.deepEqual(await driver.list(), [])
  await driver.create({id, sizeBytes: 8 * MiB})
  t.is((await driver.get(id))?.sizeBytes, 8 * MiB)
  await driver.settled()
  t.deepEqual([...(await own.volumes()).keys()], [id])
})
