import test from 'ava'
import {createExport, createVolume} from '../../src/attach/attach.js'
import type {Operations} from '../../src/attach/operations.js'
import {Node} from '../fixtures/node.js'

/** A cancelled request leaves nothing, whichever step it is that has just made its effect. */

const sizeBytes = 4 * 2 ** 20
const create = (operations: Operations, signal: AbortSignal) => createVolume(operations, {sizeBytes}, {signal})
const offer = (operations: Operations, signal: AbortSignal) => createExport(operations, {sizeBytes}, {signal})

for (const {step, begin, undone} of [
  {step: 'volume.create', begin: create, undone: ['volume']},
  {step: 'volume.create', begin: offer, undone: ['volume']},
  {step: 'target.export', begin: offer, undone: ['export', 'volume']},
]) {
  test(`${begin === create ? 'volume create' : 'export create'}, cancelled when ${step} has just ended`, async t => {
    const node = await Node.make()
    t.teardown(() => node.stop())
    const cancel = new AbortController()
    // The step's log line comes after its effect and before its journal entry.
    const write = (line: string) => {
      if (line.includes(`"step":"${step}"`)) cancel.abort()
    }
    const {operations} = await node.start({logTo: {write}})
    const error = await t.throwsAsync(() => begin(operations, cancel.signal), {code: 'CANCELLED'})
    t.deepEqual((error as unknown as {info: {undone: string[]}}).info.undone, undone)
    t.deepEqual(await node.poolFiles(), [])
    t.deepEqual(await operations.rooms.targets.list(), [])
    t.deepEqual([node.store.volumes.size, node.store.exports.size], [0, 0])
    t.deepEqual(operations.rooms.journal.unfinished(), [])
  })
}
