import test from 'ava'
import {createExport, extendVolume} from '../../src/attach/attach.js'
import {StorageError} from '../../src/errors.js'
import {Node} from '../fixtures/node.js'

test('a volume does not grow to a size that its target cannot offer: it could not be made smaller again', async t => {
  const node = await Node.make()
  t.teardown(() => node.stop())
  const {operations} = await node.start()
  const {targets} = operations.rooms
  const {volume} = await createExport(operations, {sizeBytes: 1 << 20})
  const {id} = volume!
  const sizeBytes = (1 << 20) + 512
  // As IET with blocks of 4,096 bytes does.
  targets.check = spec => {
    if (spec.volume.sizeBytes % 4096 !== 0) throw new StorageError('SIZE_INVALID', 'no whole number of blocks')
  }
  await t.throwsAsync(extendVolume(operations, {volume: id, sizeBytes}), {code: 'SIZE_INVALID'})
  t.is((await operations.rooms.volumes.get(id))?.sizeBytes, 1 << 20)
  await extendVolume(operations, {volume: id, sizeBytes: 2 << 20})
  t.is((await operations.rooms.volumes.get(id))?.sizeBytes, 2 << 20)
})
