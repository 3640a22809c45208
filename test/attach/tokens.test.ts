import test, {type ExecutionContext} from 'ava'
import {createExport, createVolume} from '../../src/attach/attach.js'
import {deleteExport, deleteVolume} from '../../src/attach/detach.js'
import type {Journal} from '../../src/state/journal.js'
import {wrapped} from '../fixtures/journal.js'
import {Node} from '../fixtures/node.js'

/** A token gives the same answer again, where that answer is final: what a retry can change is asked for anew. */

const sizeBytes = 4 * 2 ** 20
const standing = {direction: 'unmake' as const, token: null, requestHash: ''}

async function started(t: ExecutionContext, given: Parameters<typeof Node.make>[0] = {}): Promise<Node> {
  const node = await Node.make(given)
  t.teardown(() => node.stop())
  await node.start()
  return node
}

test('01 a request whose client went away is done by the retry with its token', async t => {
  const node = await Node.make()
  t.teardown(() => node.stop())
  const gone = new AbortController()
  const write = (line: string) => {
    if (line.includes('"step":"volume.create"')) gone.abort()
  }
  const {operations} = await node.start({logTo: {write}})
  const token = 'ctrl-c'
  await t.throwsAsync(createVolume(operations, {sizeBytes}, {token, signal: gone.signal}), {code: 'CANCELLED'})
  const {volume} = await createVolume(operations, {sizeBytes}, {token})
  t.true(node.store.volumes.has(volume!.id))
  t.deepEqual(
    await createVolume(operations, {sizeBytes}, {token}),
    await createVolume(operations, {sizeBytes}, {token}),
  )
  t.is(node.store.volumes.size, 1)
})

test('02 a retry that comes while the cancelled request is being undone is done when that has ended', async t => {
  const node = await Node.make()
  t.teardown(() => node.stop())
  const gone = new AbortController()
  let retried: Promise<unknown> | undefined
  const again = () => createVolume(node.daemon.operations, {sizeBytes}, {token: 'twice'})
  const wrapJournal = (journal: Journal) =>
    wrapped(journal, 'failing', async failing => {
      const failed = await failing()
      retried ??= again()
      return failed
    })
  const write = (line: string) => {
    if (line.includes('"step":"volume.create"')) gone.abort()
  }
  const {operations} = await node.start({wrapJournal, logTo: {write}})
  const cancelled = createVolume(operations, {sizeBytes}, {token: 'twice', signal: gone.signal})
  await t.throwsAsync(cancelled, {code: 'CANCELLED'})
  await t.notThrowsAsync(retried!)
  t.is(node.store.volumes.size, 1)
})

test('03 a target that did not answer: the retry with the same token makes the export', async t => {
  const node = await started(t, {outliving: true})
  const token = 'later'
  node.tgtd!.kill('SIGKILL')
  const asked = () => node.api.call<{export: {iqn: string}}>('POST', '/exports', {sizeBytes}, {token})
  await t.throwsAsync(asked, {code: 'TARGET_UNAVAILABLE'})
  await node.tgtd!.restart()
  // It answers again some time after it runs; an operation that is still being undone says so.
  for (;;) {
    const made = await asked().catch(error => error as Error & {code: string})
    if ('export' in made) break
    t.true(['TARGET_UNAVAILABLE', 'CONFLICT'].includes(made.code), made.message)
    await new Promise(resolve => setTimeout(resolve, 100))
  }
  t.is(node.store.exports.size, 1)
  t.is(node.store.volumes.size, 1)
})

test('04 a refusal that no retry changes is given again, and over a restart', async t => {
  const node = await started(t)
  const {volume} = await createVolume(node.daemon.operations, {sizeBytes})
  const {journal} = node.daemon.operations.rooms
  const asked = {...standing, kind: 'volume.delete', subject: volume!.id, plan: ['volume' as const], request: {}}
  for (const code of ['UNSUPPORTED', 'CANCELLED'] as const) {
    const begun = await journal.begin({...asked, token: code, requestHash: 'h'})
    await journal.complete({...begun, error: {code, message: 'no'}}, 'failed', null)
  }
  const kept = () => {
    const {journal} = node.daemon.operations.rooms
    return ['UNSUPPORTED', 'CANCELLED'].map(token => journal.withToken(token, 'h')?.error?.code)
  }
  t.deepEqual(kept(), ['UNSUPPORTED', undefined])
  await node.stopDaemon()
  await node.start()
  t.deepEqual(kept(), ['UNSUPPORTED', undefined])
})

test('05 who joins an operation that stands has its answer under a token of its own, also after a restart', async t => {
  const node = await started(t)
  const {volume} = await createVolume(node.daemon.operations, {sizeBytes})
  const {id} = volume!
  const {journal} = node.daemon.operations.rooms
  await journal.begin({...standing, kind: 'volume.delete', subject: id, plan: ['volume'], request: {}})
  const ask = (token: string) => deleteVolume(node.daemon.operations, {volume: id}, {token})
  const answer = await ask('second')
  t.is(answer.volume?.id, id)
  t.deepEqual(await ask('second'), answer)
  await node.stopDaemon()
  await node.start()
  t.deepEqual(await ask('second'), answer)
  await t.throwsAsync(() => deleteVolume(node.daemon.operations, {volume: 'other'}, {token: 'second'}), {
    code: 'TOKEN_CONFLICT',
  })
})

test('06 a request that is stronger than the one that it joins gets what it asked for', async t => {
  const node = await started(t)
  const {operations} = node.daemon
  const {export: exported} = await createExport(operations, {sizeBytes})
  const {volumeId, iqn} = exported as {volumeId: string; iqn: string}
  const request = {force: false}
  await operations.rooms.journal.begin({
    ...standing,
    kind: 'export.delete',
    subject: volumeId,
    plan: ['export'],
    request,
  })
  const asked: (boolean | undefined)[] = []
  const {targets} = operations.rooms
  const unexport = targets.unexport.bind(targets)
  targets.unexport = async (name, options) => {
    asked.push(options?.force)
    await unexport(name, options)
  }
  await deleteExport(operations, {export: iqn, force: true})
  t.deepEqual(asked, [true])
})

test('07 a forced request that joins an unforced one in flight is not refused with it', async t => {
  const node = await started(t)
  const {operations} = node.daemon
  const {targets, initiator, initiatorName} = operations.rooms
  const {export: exported} = await createExport(operations, {sizeBytes})
  const {iqn, lun, portals} = exported as {iqn: string; lun: number; portals: [{address: string; port: number}]}
  const login = {portal: portals[0], iqn, lun, initiatorName, timeoutMs: 20_000}
  const session = await initiator.connect(login)
  t.teardown(() => session.close().catch(() => {}))
  const unexport = targets.unexport.bind(targets)
  let forced: Promise<unknown> | undefined
  targets.unexport = async (name, options) => {
    // The unforced one is at work: this is the moment at which the other comes.
    forced ??= deleteExport(operations, {export: iqn, force: true}, {token: 'forced'})
    await unexport(name, options)
  }
  await t.throwsAsync(deleteExport(operations, {export: iqn}), {code: 'TARGET_IN_USE'})
  await t.notThrowsAsync(forced!)
  t.is(node.store.exports.size, 0)
})
