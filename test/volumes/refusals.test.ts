import {tmpdir} from 'node:os'
import {join} from 'node:path'
import test from 'ava'
import type {VolumeDriver} from '../../src/volumes/driver.js'
import {FileVolumeDriver} from '../../src/volumes/file.js'
import {newVolumeId} from '../../src/volumes/id.js'
import {LvmVolumeDriver} from '../../src/volumes/lvm.js'
import {codeOf, MiB} from '../contract/observe.js'

const systemDirectory = join(tmpdir(), 'absent')

// What a driver refuses by itself. None of these is open, so that whatever reached the pool would be POOL_UNUSABLE.
const drivers: Record<string, () => VolumeDriver> = {
  file: () => new FileVolumeDriver({pool: 'test', directory: join(tmpdir(), 'absent')}),
  'lvm thick': () => new LvmVolumeDriver({pool: 'test', group: 'absent', systemDirectory}),
  'lvm thin': () => new LvmVolumeDriver({pool: 'test', group: 'absent', systemDirectory, thinPool: 'absent'}),
}

for (const [name, make] of Object.entries(drivers)) {
  test(`${name}: sizes that are no sizes are SIZE_INVALID`, async t => {
    const driver = make()
    for (const sizeBytes of [0, -512, 513, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 60]) {
      t.is(await codeOf(driver.create({id: newVolumeId(), sizeBytes})), 'SIZE_INVALID', String(sizeBytes))
    }
    t.is(await codeOf(driver.create({id: newVolumeId(), sizeBytes: 4 * MiB})), 'POOL_UNUSABLE')
  })

  test(`${name}: ids that are no ids are NAME_INVALID`, async t => {
    const driver = make()
    for (const id of ['', '../../../etc/passwd', '0123456789ABCDEF', '0123456789abcde', 'a,b', '0123456789abcdef\n']) {
      t.is(await codeOf(driver.create({id, sizeBytes: 4 * MiB})), 'NAME_INVALID', id)
      t.is(await driver.get(id), undefined)
    }
    t.is(await codeOf(driver.get(newVolumeId())), 'POOL_UNUSABLE')
  })
}
