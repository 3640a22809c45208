// The area that holds a group's metadata: its size where lunpath makes the group, and its end.
import {mkdtemp} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {newVolumeId} from '../../src/volumes/id.js'
import {LvmVolumeDriver} from '../../src/volumes/lvm.js'
import {createGroup} from '../../src/volumes/lvm-create.js'
import {codeOf, MiB} from '../contract/observe.js'
import {lab, labDisk} from '../lab/lab.js'
import {TestGroup} from './lvm-group.js'

lab.options({disksBytes: [256 * MiB, 256 * MiB, 256 * MiB], modules: ['dm-mod', 'dm-thin-pool'], deadlineMs: 900_000})

lab('01. a group that lunpath makes has room for the metadata of 10,000 volumes, thick and thin', async t => {
  const systemDirectory = await mkdtemp(join(tmpdir(), 'lp-area-'))
  await createGroup({
    group: 'own',
    devices: [labDisk(1), labDisk(2)],
    thinPool: 'thin',
    thinBytes: 64 * MiB,
    systemDirectory,
  })
  const driver = new LvmVolumeDriver({
    pool: 'own',
    group: 'own',
    thinPool: 'thin',
    overcommitRatio: 10,
    systemDirectory,
  })
  await driver.open()
  t.teardown(() => driver.close())
  const before = (await driver.capacity()).metadataArea!
  t.true(before.freeBytes < before.sizeBytes / 2, 'an area holds two copies')
  const volumes = await Promise.all(
    Array.from({length: 20}, (_, index) =>
      driver.create({id: newVolumeId(), sizeBytes: 4 * MiB, preallocate: index % 2 === 0}),
    ),
  )
  volumes.push(await driver.snapshot(volumes[1]!, newVolumeId()))
  const eachBytes = (before.freeBytes - (await driver.capacity()).metadataArea!.freeBytes) / volumes.length
  t.log(`${Math.round(eachBytes)} bytes each, ${before.freeBytes} free`)
  t.true(eachBytes * 10_000 < before.freeBytes)
  await Promise.all(volumes.map(volume => driver.delete(volume)))
})

lab('02. in a group as it was a create is refused before the area is full, and deletes work', async t => {
  const own = await TestGroup.make('small', labDisk(3))
  const driver = await own.open(t)
  const volume = await driver.create({id: newVolumeId(), sizeBytes: 4 * MiB})
  // Tags of others take the room.
  for (let round = 0; (await driver.capacity()).metadataArea!.freeBytes > 33 * 1024; round++) {
    const tags = Array.from({length: 28}, (_, index) => `${round}.${index}.`.padEnd(1000, 'x'))
    await own.run('lvchange', ...tags.flatMap(tag => ['--addtag', tag]), `small/${volume.id}`)
  }
  const {freeBytes} = (await driver.capacity()).metadataArea!
  t.log(`${freeBytes} free`)
  const codes = await Promise.all(
    Array.from({length: 4}, () => codeOf(driver.create({id: newVolumeId(), sizeBytes: 4 * MiB}))),
  )
  const fit = Math.max(0, Math.floor((freeBytes - 32 * 1024) / 512))
  t.is(codes.filter(code => code === 'no error').length, Math.min(4, fit), codes.join(' '))
  t.is(codes.filter(code => code === 'POOL_FULL').length, 4 - Math.min(4, fit))
  const error = await t.throwsAsync(driver.extend(volume, 8 * MiB), {
    code: 'POOL_FULL',
    message: /metadata area of the group small/,
  })
  t.regex(error!.message, /pvcreate --metadatasize/)
  for (const one of await driver.list()) await driver.delete(one)
  await driver.settled()
  t.deepEqual(await own.volumes(), new Map())
  await driver.create({id: newVolumeId(), sizeBytes: 4 * MiB})
})
