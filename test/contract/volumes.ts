import {createHash, randomBytes} from 'node:crypto'
import {mkdtemp, readFile, rm, truncate, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import type {ExecutionContext} from 'ava'
import ava from 'ava'
import type {Volume} from '../../src/types.js'
import type {VolumeDriver} from '../../src/volumes/driver.js'
import {newVolumeId} from '../../src/volumes/id.js'
import {openImported} from '../../src/volumes/imported.js'
import {attachLoop, codeOf, MiB, readAt, writeAt} from './observe.js'

export interface PoolUnderTest {
  /** Not open yet. */
  driver: VolumeDriver
  /** Another driver for the same pool, not open yet, as after a restart of the daemon. */
  again(): VolumeDriver
}

/** Makes a pool that provisions at most `limitBytes`, and takes it down with `t.teardown`. */
export type MakePool = (t: ExecutionContext, options: {limitBytes: number}) => Promise<PoolUnderTest>

async function sha256(path: string): Promise<string> {
  return createHash('sha256')
    .update(await readFile(path))
    .digest('hex')
}

/** Declares a test: ava's `test`, or `lab` where the driver needs a kernel of its own. */
export type Declare = (title: string, implementation: (t: ExecutionContext) => unknown) => void

/**
 * What every volume driver must do. Sizes are multiples of 4 MiB, an extent of LVM. `rounds` is how often volumes come
 * and go where that is what is tested.
 */
export function volumeContract(
  name: string,
  makePool: MakePool,
  {declare: test = ava, rounds = 8}: {declare?: Declare; rounds?: number} = {},
): void {
  async function openPool(t: ExecutionContext, {limitBytes = 1024 * MiB} = {}) {
    const pool = await makePool(t, {limitBytes})
    await pool.driver.open()
    t.teardown(() => pool.driver.close())
    return pool
  }

  async function foreignFile(t: ExecutionContext, bytes: Buffer): Promise<Volume> {
    const directory = await mkdtemp(join(tmpdir(), 'lp-foreign-'))
    t.teardown(() => rm(directory, {recursive: true}))
    const path = join(directory, 'image.raw')
    await writeFile(path, bytes)
    return openImported(path, newVolumeId())
  }

  test(`${name}: create makes a volume of the size asked for, which list, get and capacity show`, async t => {
    const {driver} = await openPool(t)
    const before = await driver.capacity()
    const id = newVolumeId()
    const volume = await driver.create({id, sizeBytes: 64 * MiB})
    t.like(volume, {id, driver: driver.name, pool: driver.pool, sizeBytes: 64 * MiB, imported: false})
    t.is((await readAt(volume.path, 512, 64 * MiB - 512)).length, 512)
    t.is((await readAt(volume.path, 512, 64 * MiB)).length, 0)
    t.deepEqual(await driver.get(id), volume)
    t.deepEqual(await driver.list(), [volume])
    const after = await driver.capacity()
    t.is(after.provisionedBytes, before.provisionedBytes + 64 * MiB)
    t.is(after.limitBytes, 1024 * MiB)
  })

  test(`${name}: create twice is the same as once`, async t => {
    const {driver} = await openPool(t)
    const spec = {id: newVolumeId(), sizeBytes: 8 * MiB}
    const first = await driver.create(spec)
    await writeAt(first.path, Buffer.from('kept'), 4096)
    t.deepEqual(await driver.create(spec), first)
    t.is((await readAt(first.path, 4, 4096)).toString(), 'kept')
    t.is((await driver.capacity()).provisionedBytes, 8 * MiB)
  })

  test(`${name}: create with the id of a volume of another size is VOLUME_EXISTS and harms nothing`, async t => {
    const {driver} = await openPool(t)
    const first = await driver.create({id: newVolumeId(), sizeBytes: 8 * MiB})
    await writeAt(first.path, Buffer.from('kept'), 0)
    t.is(await codeOf(driver.create({id: first.id, sizeBytes: 16 * MiB})), 'VOLUME_EXISTS')
    t.is(await codeOf(driver.create({id: first.id, sizeBytes: 16 * MiB, preallocate: true})), 'VOLUME_EXISTS')
    t.deepEqual(await driver.list(), [first])
    t.is((await readAt(first.path, 4, 0)).toString(), 'kept')
    t.is((await driver.capacity()).provisionedBytes, 8 * MiB)
  })

  test(`${name}: a volume beyond the pool's limit is POOL_FULL and leaves nothing`, async t => {
    const {driver} = await openPool(t, {limitBytes: 64 * MiB})
    t.is(await codeOf(driver.create({id: newVolumeId(), sizeBytes: 68 * MiB})), 'POOL_FULL')
    t.deepEqual(await driver.list(), [])
    t.is((await driver.create({id: newVolumeId(), sizeBytes: 64 * MiB})).sizeBytes, 64 * MiB)
    t.is(await codeOf(driver.create({id: newVolumeId(), sizeBytes: 4 * MiB})), 'POOL_FULL')
  })

  test(`${name}: of parallel creates as many succeed as fit, no fewer and no more`, async t => {
    const {driver} = await openPool(t, {limitBytes: 10 * 8 * MiB})
    const codes = await Promise.all(
      Array.from({length: 30}, (_, index) =>
        codeOf(driver.create({id: newVolumeId(), sizeBytes: 8 * MiB, ...(index % 4 === 0 && {preallocate: true})})),
      ),
    )
    t.is(codes.filter(code => code === 'no error').length, 10)
    t.is(codes.filter(code => code === 'POOL_FULL').length, 20)
    t.is((await driver.list()).length, 10)
    t.is((await driver.capacity()).provisionedBytes, 80 * MiB)
  })

  test(`${name}: listing while volumes come and go does not confuse what is provisioned`, async t => {
    const {driver} = await openPool(t, {limitBytes: 256 * MiB})
    let busy = true
    const lister = async () => {
      while (busy) await driver.list()
    }
    const worker = async () => {
      for (let round = 0; round < rounds; round++) {
        const volume = await driver.create({id: newVolumeId(), sizeBytes: 32 * MiB})
        await driver.get(volume.id)
        await driver.delete(volume)
      }
    }
    const workers = Promise.all(Array.from({length: 8}, worker)).finally(() => {
      busy = false
    })
    await Promise.all([workers, lister()])
    t.is((await driver.capacity()).provisionedBytes, 0)
    t.deepEqual(await driver.list(), [])
  })

  test(`${name}: one id in parallel makes one volume; other sizes get VOLUME_EXISTS`, async t => {
    const {driver} = await openPool(t)
    const id = newVolumeId()
    const same = await Promise.all(Array.from({length: 8}, () => driver.create({id, sizeBytes: 8 * MiB})))
    for (const volume of same) t.deepEqual(volume, same[0])
    const other = newVolumeId()
    const codes = await Promise.all(
      [8, 16, 24].map(size =>
        codeOf(driver.create({id: other, sizeBytes: size * MiB, ...(size === 16 && {preallocate: true})})),
      ),
    )
    t.is(codes.filter(code => code === 'no error').length, 1)
    t.is(codes.filter(code => code === 'VOLUME_EXISTS').length, 2)
    t.is((await driver.list()).length, 2)
  })

  test(`${name}: a preallocated volume has its space from the start`, async t => {
    const {driver} = await openPool(t)
    const volume = await driver.create({id: newVolumeId(), sizeBytes: 16 * MiB, preallocate: true})
    t.is(volume.allocation, 'preallocated')
    t.deepEqual(await driver.get(volume.id), volume)
  })

  test(`${name}: extend grows, keeps the data, and does nothing for the same size`, async t => {
    const {driver} = await openPool(t)
    for (const options of [{}, {preallocate: true}]) {
      const volume = await driver.create({id: newVolumeId(), sizeBytes: 8 * MiB, ...options})
      await writeAt(volume.path, Buffer.from('kept'), 8 * MiB - 512)
      const grown = await driver.extend(volume, 24 * MiB)
      t.deepEqual(grown, {...volume, sizeBytes: 24 * MiB})
      t.is((await readAt(grown.path, 4, 8 * MiB - 512)).toString(), 'kept')
      t.is((await readAt(grown.path, 512, 24 * MiB - 512)).length, 512)
      t.deepEqual(await driver.extend(volume, 24 * MiB), grown)
      t.deepEqual(await driver.get(volume.id), grown)
    }
    t.is((await driver.capacity()).provisionedBytes, 48 * MiB)
  })

  test(`${name}: extend refuses to shrink, to pass the limit, and what is gone`, async t => {
    const {driver} = await openPool(t, {limitBytes: 64 * MiB})
    const volume = await driver.create({id: newVolumeId(), sizeBytes: 16 * MiB})
    t.is(await codeOf(driver.extend(volume, 8 * MiB)), 'SIZE_INVALID')
    t.is(await codeOf(driver.extend(volume, 16 * MiB + 1)), 'SIZE_INVALID')
    t.is(await codeOf(driver.extend(volume, 68 * MiB)), 'POOL_FULL')
    t.deepEqual(await driver.get(volume.id), volume)
    await driver.delete(volume)
    t.is(await codeOf(driver.extend(volume, 32 * MiB)), 'VOLUME_MISSING')
    t.is((await driver.capacity()).provisionedBytes, 0)
  })

  test(`${name}: a clone has the source's bytes and lives without it`, async t => {
    const {driver} = await openPool(t)
    const source = await driver.create({id: newVolumeId(), sizeBytes: 16 * MiB})
    await writeAt(source.path, randomBytes(300_000), 5 * MiB + 512)
    await writeAt(source.path, Buffer.from('end'), 16 * MiB - 512)
    const expected = await sha256(source.path)
    const id = newVolumeId()
    const seen: number[] = []
    const clone = await driver.clone(source, {
      id,
      onProgress: ({copiedBytes, totalBytes}) => {
        t.is(totalBytes, 16 * MiB)
        seen.push(copiedBytes)
      },
    })
    t.like(clone, {id, sizeBytes: 16 * MiB, imported: false, pool: driver.pool})
    t.deepEqual(
      seen,
      seen.toSorted((a, b) => a - b),
    )
    t.is(seen.at(-1), 16 * MiB)
    await writeAt(source.path, Buffer.from('changed'), 0)
    await driver.delete(source)
    t.is(await sha256(clone.path), expected)
    t.deepEqual(await driver.clone(clone, {id}), clone, 'again is the same as once')
  })

  test(`${name}: a clone may be larger than its source, not smaller`, async t => {
    const {driver} = await openPool(t)
    const source = await driver.create({id: newVolumeId(), sizeBytes: 8 * MiB})
    await writeAt(source.path, Buffer.from('end'), 8 * MiB - 3)
    const clone = await driver.clone(source, {id: newVolumeId(), sizeBytes: 12 * MiB})
    t.is(clone.sizeBytes, 12 * MiB)
    t.is((await readAt(clone.path, 3, 8 * MiB - 3)).toString(), 'end')
    t.deepEqual(await readAt(clone.path, MiB, 8 * MiB), Buffer.alloc(MiB))
    t.is(await codeOf(driver.clone(source, {id: newVolumeId(), sizeBytes: 4 * MiB})), 'SIZE_INVALID')
    t.is(await codeOf(driver.clone(source, {id: clone.id})), 'VOLUME_EXISTS')
  })

  test(`${name}: a clone beyond the limit is POOL_FULL, one of a missing source VOLUME_MISSING`, async t => {
    const {driver} = await openPool(t, {limitBytes: 24 * MiB})
    const source = await driver.create({id: newVolumeId(), sizeBytes: 16 * MiB})
    t.is(await codeOf(driver.clone(source, {id: newVolumeId()})), 'POOL_FULL')
    await driver.delete(source)
    t.is(await codeOf(driver.clone(source, {id: newVolumeId()})), 'VOLUME_MISSING')
    t.deepEqual(await driver.list(), [])
    t.is((await driver.capacity()).provisionedBytes, 0)
  })

  test(`${name}: a cancelled clone leaves nothing`, async t => {
    const {driver} = await openPool(t)
    // An imported source lies in another file system or at least another file: it is copied chunk by chunk.
    const source = await foreignFile(t, randomBytes(32 * MiB))
    const early = driver.clone(source, {id: newVolumeId(), signal: AbortSignal.abort()})
    t.is(await codeOf(early), 'CANCELLED')
    const controller = new AbortController()
    const midway = driver.clone(source, {
      id: newVolumeId(),
      signal: controller.signal,
      onProgress: ({copiedBytes}) => {
        if (copiedBytes >= 4 * MiB && copiedBytes < 32 * MiB) controller.abort()
      },
    })
    const code = await codeOf(midway)
    // A reflink is done in one step, so that nothing is left to cancel.
    if (code === 'no error') t.is((await driver.list()).length, 1)
    else {
      t.is(code, 'CANCELLED')
      t.deepEqual(await driver.list(), [])
      t.is((await driver.capacity()).provisionedBytes, 0)
    }
  })

  test(`${name}: an imported volume can be cloned, and is never resized or removed`, async t => {
    const {driver} = await openPool(t)
    const source = await foreignFile(t, randomBytes(4 * MiB))
    const expected = await sha256(source.path)
    const clone = await driver.clone(source, {id: newVolumeId()})
    t.false(clone.imported)
    t.is(await sha256(clone.path), expected)
    t.is(await codeOf(driver.extend(source, 8 * MiB)), 'VOLUME_IMPORTED')
    t.is(await codeOf(driver.delete(source)), 'VOLUME_IMPORTED')
    t.is(await sha256(source.path), expected)
  })

  test(`${name}: delete removes, gives the provisioned bytes back, and twice is the same as once`, async t => {
    const {driver, again} = await openPool(t)
    const volume = await driver.create({id: newVolumeId(), sizeBytes: 16 * MiB, preallocate: true})
    const kept = await driver.create({id: newVolumeId(), sizeBytes: 4 * MiB})
    const before = await driver.capacity()
    await driver.delete(volume)
    t.is(await driver.get(volume.id), undefined)
    t.deepEqual(await driver.list(), [kept])
    await driver.delete(volume)
    await driver.settled()
    const after = await driver.capacity()
    t.is(after.provisionedBytes, before.provisionedBytes - 16 * MiB)
    await driver.close()
    const next = again()
    await next.open()
    t.teardown(() => next.close())
    t.deepEqual(await next.list(), [kept])
  })

  test(`${name}: the id of a deleted volume gives an empty volume`, async t => {
    const {driver} = await openPool(t)
    const spec = {id: newVolumeId(), sizeBytes: 4 * MiB}
    const volume = await driver.create(spec)
    await writeAt(volume.path, Buffer.from('secret'), 0)
    await driver.delete(volume)
    const next = await driver.create(spec)
    t.deepEqual(await readAt(next.path, 6, 0), Buffer.alloc(6))
  })

  test(`${name}: a volume under a loop device is VOLUME_IN_USE`, async t => {
    const {driver} = await openPool(t)
    const volume = await driver.create({id: newVolumeId(), sizeBytes: 8 * MiB})
    const {detach} = await attachLoop(t, volume.path)
    t.is(await codeOf(driver.delete(volume)), 'VOLUME_IN_USE')
    t.deepEqual(await driver.get(volume.id), volume)
    await detach()
    await driver.delete(volume)
    t.is(await driver.get(volume.id), undefined)
  })

  test(`${name}: a volume of another pool is not touched`, async t => {
    const {driver} = await openPool(t)
    const volume = await driver.create({id: newVolumeId(), sizeBytes: 4 * MiB})
    for (const stranger of [
      {...volume, pool: 'another'},
      {...volume, driver: 'another'},
      {...volume, path: '/etc/passwd'},
    ]) {
      t.is(await codeOf(driver.delete(stranger)), 'INVALID_ARGUMENT')
      t.is(await codeOf(driver.extend(stranger, 8 * MiB)), 'INVALID_ARGUMENT')
    }
    t.deepEqual(await driver.list(), [volume])
  })

  test(`${name}: after a restart the pool holds what it held`, async t => {
    const {driver, again} = await openPool(t)
    const volumes = await Promise.all(
      [8, 16, 24].map(size =>
        driver.create({id: newVolumeId(), sizeBytes: size * MiB, ...(size === 16 && {preallocate: true})}),
      ),
    )
    const expected = volumes.toSorted((a, b) => (a.id < b.id ? -1 : 1))
    t.deepEqual(await driver.list(), expected)
    const capacity = await driver.capacity()
    await driver.close()
    const next = again()
    await next.open()
    t.teardown(() => next.close())
    t.deepEqual(await next.list(), expected)
    t.is((await next.capacity()).provisionedBytes, capacity.provisionedBytes)
    t.deepEqual(await next.create({id: volumes[0]!.id, sizeBytes: 8 * MiB}), volumes[0])
  })

  test(`${name}: a volume that was removed or changed behind the driver's back is seen as it is`, async t => {
    const {driver} = await openPool(t)
    const volume = await driver.create({id: newVolumeId(), sizeBytes: 8 * MiB})
    if (volume.kind !== 'file') return t.pass('a block device is not changed this way')
    await truncate(volume.path, 12 * MiB)
    t.is((await driver.get(volume.id))?.sizeBytes, 12 * MiB)
    t.is((await driver.capacity()).provisionedBytes, 12 * MiB)
    await rm(volume.path)
    t.is(await driver.get(volume.id), undefined)
    t.is((await driver.capacity()).provisionedBytes, 0)
  })

  test(`${name}: close waits for what runs, can be called twice and before open`, async t => {
    const {driver, again} = await makePool(t, {limitBytes: 256 * MiB})
    t.is(await codeOf(driver.create({id: newVolumeId(), sizeBytes: 4 * MiB})), 'POOL_UNUSABLE')
    t.is(await codeOf(driver.list()), 'POOL_UNUSABLE')
    await driver.close()
    await driver.open()
    await driver.open()
    const volume = await driver.create({id: newVolumeId(), sizeBytes: 4 * MiB})
    const creating = driver.create({id: newVolumeId(), sizeBytes: 8 * MiB, preallocate: true})
    const deleting = driver.delete(volume)
    await new Promise(resolve => setImmediate(resolve))
    await Promise.all([driver.close(), driver.close()])
    const created = await creating
    await deleting
    t.is(await codeOf(driver.get(created.id)), 'POOL_UNUSABLE')
    const next = again()
    await next.open()
    t.deepEqual(await next.list(), [created])
    await next.close()
  })
}
