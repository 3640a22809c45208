// An empty directory in the place of a pool of files, as below a file system that is not mounted, is not that pool.
import {mkdir, mkdtemp, readdir, readFile, rename, rm, rmdir, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import type {Volume, VolumeId} from '../../src/types.js'
import {FileVolumeDriver, type PoolIdentity, poolMarker} from '../../src/volumes/file.js'
import {newVolumeId} from '../../src/volumes/id.js'
import {Pools} from '../../src/volumes/pools.js'
import {codeOf, MiB} from '../contract/observe.js'
import {until} from '../fixtures/cli.js'
import {Node} from '../fixtures/node.js'

/** A pool's directory that can be taken away, which leaves an empty one in its place. */
class Mount {
  readonly directory: string
  readonly #away: string

  constructor(directory: string) {
    this.directory = directory
    this.#away = `${directory}-away`
  }

  async unmount(): Promise<void> {
    await rename(this.directory, this.#away)
    await mkdir(this.directory, {mode: 0o700})
  }

  /** @throws where anything was made in the empty directory */
  async mount(): Promise<void> {
    await rmdir(this.directory)
    await rename(this.#away, this.directory)
  }
}

class Remembered implements PoolIdentity {
  id: string | undefined
  volumes: VolumeId[] = []

  markerId() {
    return this.id
  }

  volumeIds() {
    return this.volumes
  }

  async keep(id: string) {
    this.id = id
  }
}

async function makePool(t: ExecutionContext) {
  const parent = await mkdtemp(join(tmpdir(), 'lp-identity-'))
  t.teardown(() => rm(parent, {recursive: true}))
  const directory = join(parent, 'pool')
  const identity = new Remembered()
  const driver = new FileVolumeDriver({pool: 'test', directory, identity})
  t.teardown(() => driver.close())
  await driver.open()
  const volume = await driver.create({id: newVolumeId(), sizeBytes: MiB})
  identity.volumes = [volume.id]
  return {directory, identity, driver, volume, mount: new Mount(directory)}
}

const marker = async (directory: string) => JSON.parse(await readFile(join(directory, poolMarker), 'utf8'))

test('an empty directory in the place of a pool that was in use is refused and stays empty', async t => {
  const {driver, mount, directory, identity, volume} = await makePool(t)
  await driver.close()
  await mount.unmount()
  const error = await t.throwsAsync(driver.open(), {code: 'POOL_UNUSABLE', message: /has no \.lunpath-pool.*Mount/})
  t.regex(error!.message, /The pool test is not at/)
  t.deepEqual(await readdir(directory), [])
  // Also without volumes: the next one would lie on the wrong file system.
  identity.volumes = []
  t.is(await codeOf(driver.open()), 'POOL_UNUSABLE')
  await rmdir(directory)
  t.is(await codeOf(driver.open()), 'POOL_UNUSABLE')
  t.false((await readdir(join(directory, '..'))).includes('pool'), 'no directory is made')
  await mkdir(directory)
  await mount.mount()
  await driver.open()
  t.deepEqual(await driver.list(), [volume])
})

test('a pool whose directory goes while it is open takes and gives nothing until it is back', async t => {
  const {driver, mount, directory, volume} = await makePool(t)
  await mount.unmount()
  const attempts: [string, () => Promise<unknown>][] = [
    ['create', () => driver.create({id: newVolumeId(), sizeBytes: MiB})],
    ['preallocate', () => driver.create({id: newVolumeId(), sizeBytes: MiB, preallocate: true})],
    ['clone', () => driver.clone(volume, {id: newVolumeId()})],
    ['snapshot', () => driver.snapshot(volume, newVolumeId())],
    ['extend', () => driver.extend(volume, 2 * MiB)],
    ['delete', () => driver.delete(volume)],
    ['list', () => driver.list()],
    ['get', () => driver.get(volume.id)],
    ['capacity', () => driver.capacity()],
    ['look', () => driver.look()],
  ]
  for (const [what, attempt] of attempts) t.is(await codeOf(attempt()), 'POOL_UNUSABLE', what)
  t.deepEqual(await readdir(directory), [])
  await mount.mount()
  await driver.look()
  await driver.delete(volume)
  t.deepEqual(await driver.list(), [])
})

test('a pool that was lost is opened by the first request once it is back, whatever was tried meanwhile', async t => {
  const {driver, mount, directory, volume} = await makePool(t)
  const pools = new Pools('test', {isKnown: () => true})
  pools.add(driver)
  await pools.open()
  await mount.unmount()
  t.like(await pools.look(), {lost: [{pool: 'test'}], back: []})
  t.deepEqual(await pools.open(), [], 'as it is tried again at times')
  await t.throwsAsync(pools.delete(volume), {code: 'POOL_UNUSABLE', message: /another file system/})
  // What is said is what was seen last.
  await rmdir(directory)
  await t.throwsAsync(pools.delete(volume), {code: 'POOL_UNUSABLE', message: /no such file/i})
  await mkdir(directory)

  // It goes again between the look that finds it and its opening.
  await mount.mount()
  const open = driver.open.bind(driver)
  driver.open = async () => {
    await mount.unmount()
    driver.open = open
    await open()
  }
  await t.throwsAsync(pools.delete(volume), {code: 'POOL_UNUSABLE', message: /has no \.lunpath-pool/})
  await mount.mount()
  await pools.delete(volume)
  t.deepEqual(pools.unusable(), [])
  t.deepEqual(await pools.look(), {lost: [], back: ['test']})
})

test('another pool in its place is refused by the id of its marker', async t => {
  const {driver, mount, directory} = await makePool(t)
  await driver.close()
  await mount.unmount()
  const other = new FileVolumeDriver({pool: 'other', directory})
  await other.open()
  await other.close()
  await t.throwsAsync(driver.open(), {code: 'POOL_UNUSABLE', message: /that of another pool/})
})

test('a store that knows no id takes the marker that it finds, if the volumes are there', async t => {
  const {driver, directory, identity, volume} = await makePool(t)
  await driver.close()
  const {id} = await marker(directory)
  identity.id = undefined
  await driver.open()
  t.is(identity.id, id)
  await driver.close()

  // A marker of an older lunpath gets an id.
  identity.id = undefined
  await writeFile(join(directory, poolMarker), '{"version":1,"driver":"file"}\n')
  await driver.open()
  t.is((await marker(directory)).id, identity.id)
  await driver.close()
  // One that was restored by hand gets the id that is known.
  await writeFile(join(directory, poolMarker), '{"version":1,"driver":"file"}\n')
  await driver.open()
  t.is((await marker(directory)).id, identity.id)
  await driver.close()

  // What an older lunpath has marked by mistake has few of them.
  identity.id = undefined
  identity.volumes = [volume.id, newVolumeId(), newVolumeId()]
  await t.throwsAsync(driver.open(), {code: 'POOL_UNUSABLE', message: /has 1 of its 3 volumes/})
  t.is(identity.id, undefined)
})

test.serial('the daemon waits for a pool directory that is not mounted, and says so', async t => {
  const node = await Node.make()
  t.teardown(() => node.stop())
  await node.start()
  const make = async () => (await node.api.call<{volume: Volume}>('POST', '/volumes', {sizeBytes: MiB})).volume
  const unusable = async () =>
    (await node.api.call<{unusable: {pool: string; reason: string}[]}>('GET', '/pools')).unusable
  const problems = async () => (await node.api.call<{problems: {problem: string}[]}>('GET', '/status')).problems
  const refusal = {code: 'POOL_UNUSABLE'}
  const [first, second] = [await make(), await make()]
  const mount = new Mount(join(node.directory, 'volumes'))

  await node.stopDaemon()
  await mount.unmount()
  await node.start()
  t.deepEqual(
    (await unusable()).map(({pool}) => pool),
    ['default'],
  )
  t.deepEqual(
    (await problems()).map(({problem}) => problem),
    ['pool-unusable'],
  )
  await t.throwsAsync(make(), refusal)
  await t.throwsAsync(node.api.call('DELETE', `/volumes/${first.id}`), refusal)
  await mount.mount()
  await until('the pool is back', async () => (await unusable()).length === 0)
  await until('no problem is left', async () => (await problems()).length === 0)
  await node.api.call('DELETE', `/volumes/${first.id}`)

  // The same while the daemon runs: found by whoever asks for something, and by nobody's asking.
  await mount.unmount()
  await t.throwsAsync(node.api.call('DELETE', `/volumes/${second.id}`), refusal)
  t.deepEqual(
    (await unusable()).map(({pool}) => pool),
    ['default'],
  )
  await until('it is a problem', async () => (await problems()).some(({problem}) => problem === 'pool-unusable'))
  await mount.mount()
  await until('no problem is left', async () => (await problems()).length === 0)
  await mount.unmount()
  await until('it is a problem', async () => (await problems()).some(({problem}) => problem === 'pool-unusable'))
  await t.throwsAsync(make(), refusal)
  await mount.mount()
  await until('the pool is back', async () => (await unusable()).length === 0)
  await node.api.call('DELETE', `/volumes/${second.id}`)
  t.deepEqual(await node.poolFiles(), [])
})
