import test from 'ava'
import {StorageError} from '../../src/errors.js'
import {lunpath} from '../fixtures/cli.js'
import {Node} from '../fixtures/node.js'

test('a driver without a choice of how volumes are kept refuses one before it makes a volume', async t => {
  const node = await Node.make()
  t.teardown(() => node.stop())
  await node.start()
  for (const ioType of ['fileio', 'blockio', 'nullio']) {
    const error = await t.throwsAsync(node.api.call('POST', '/exports', {sizeBytes: 2 ** 20, ioType}), {
      instanceOf: StorageError,
    })
    t.is(error?.code, 'UNSUPPORTED', error?.message)
    t.regex(error!.message, new RegExp(`tgt has no ${ioType}`))
  }
  t.deepEqual(await node.api.call('GET', '/volumes'), [])
  const wrong = await lunpath(['export', 'create', '--size', '1MiB', '--io-type', 'tape'], {
    env: {LUNPATH_SOCKET: node.socket},
  })
  t.is(wrong.exitCode, 2)
  t.regex(wrong.stderr, /fileio, blockio, nullio/)
})
