import {writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import test from 'ava'
import {cloneVolume, createExport, createVolume, importVolume} from '../../src/attach/attach.js'
import {deleteVolume} from '../../src/attach/detach.js'
import {StorageError} from '../../src/errors.js'
import type {Journal, Operation} from '../../src/state/journal.js'
import {wrapped} from '../fixtures/journal.js'
import {Node} from '../fixtures/node.js'

/** What an unfinished operation needs is nobody else's: while it runs, while it stands, and when it is resumed. */

const sizeBytes = 4 * 2 ** 20

/** Begins what is told, and then ends as if the daemon had been killed right there. */
const dying = (kinds: string[]) => (journal: Journal) =>
  wrapped(journal, 'begin', async (begin, [operation]) => {
    const begun = await begin()
    if (kinds.includes((operation as Operation).kind)) throw new StorageError('STORE_FAILED', 'killed')
    return begun
  })

test('01 while an unfinished clone stands, its source is not deleted or exported, nor its name taken', async t => {
  const node = await Node.make()
  t.teardown(() => node.stop())
  const {operations} = await node.start({wrapJournal: dying(['volume.clone'])})
  const {volume} = await createVolume(operations, {sizeBytes, name: 'source'})
  await t.throwsAsync(cloneVolume(operations, {volume: 'source', name: 'copy'}), {code: 'STORE_FAILED'})
  const [clone] = operations.standing()
  t.is(clone?.kind, 'volume.clone')

  const refused = async (when: string) => {
    for (const [what, ask] of Object.entries({
      delete: () => deleteVolume(operations, {volume: 'source'}),
      export: () => createExport(operations, {volume: 'source'}),
      extend: () => cloneVolume(operations, {volume: 'source', name: 'other'}),
      name: () => createVolume(operations, {sizeBytes, name: 'copy'}),
      bench: () => Promise.resolve().then(() => operations.claim(volume!.id)()),
    })) {
      const error = await t.throwsAsync<Error & {code: string}>(ask, undefined, `${what}, ${when}`)
      t.is(error.code, 'CONFLICT', `${what}, ${when}: ${error.message}`)
    }
  }
  await refused('while it stands')

  // The reconciler's own work goes on beside an operation that only stands.
  t.true(operations.idle(volume!.id))
  operations.lock(volume!.id)()

  const {volumes} = operations.rooms
  const copy = volumes.clone.bind(volumes)
  volumes.clone = async (...args) => {
    await refused('while it is resumed')
    t.false(operations.idle(volume!.id))
    return copy(...args)
  }
  const {volume: made} = await operations.resume(clone!)
  t.is(node.store.volumes.get(made!.id)?.name, 'copy')
  await deleteVolume(operations, {volume: 'source'})
  t.deepEqual(operations.standing(), [])
})

test('02 the path of an import that stands is not imported again', async t => {
  const node = await Node.make()
  t.teardown(() => node.stop())
  const {operations} = await node.start({wrapJournal: dying(['volume.import'])})
  const path = join(node.directory, 'own.img')
  await writeFile(path, Buffer.alloc(1 << 20))
  await t.throwsAsync(importVolume(operations, {path}), {code: 'STORE_FAILED'})
  await t.throwsAsync(importVolume(operations, {path}), {code: 'CONFLICT'})
  await operations.resume(operations.standing()[0]!)
  await t.throwsAsync(importVolume(operations, {path}), {code: 'VOLUME_EXISTS'})
})

test('03 what stood when the daemon ended holds its own again after the restart', async t => {
  const node = await Node.make()
  t.teardown(() => node.stop())
  const first = await node.start({wrapJournal: dying(['volume.clone'])})
  const {volume} = await createVolume(first.operations, {sizeBytes, name: 'source'})
  await t.throwsAsync(cloneVolume(first.operations, {volume: 'source', name: 'copy'}), {code: 'STORE_FAILED'})
  await node.stopDaemon()
  // The start resumes it, and it does not come to its end.
  let held = true
  const wrapJournal = (journal: Journal) =>
    wrapped(journal, 'complete', async complete => {
      if (held) throw new StorageError('TIMEOUT', 'not yet')
      return complete()
    })
  const {operations} = await node.start({wrapJournal})
  t.is(operations.standing().length, 1)
  await t.throwsAsync(deleteVolume(operations, {volume: 'source'}), {code: 'CONFLICT'})
  await t.throwsAsync(createVolume(operations, {sizeBytes, name: 'copy'}), {code: 'CONFLICT'})
  t.true(node.store.volumes.has(volume!.id))
  held = false
  await node.daemon.reconcile('test')
  t.deepEqual(operations.standing(), [])
  await deleteVolume(operations, {volume: 'source'})
  t.is([...node.store.volumes.values()].filter(({name}) => name === 'copy').length, 1)
})
