import type {Operations} from '../attach/operations.js'
import {named} from '../attach/rooms.js'
import {connectSpec, exportSpec} from '../attach/steps.js'
import {hasCode} from '../errors.js'
import {observe} from './observe.js'
import {type Action, type Problem, plan} from './plan.js'

export interface Outcome {
  resumed: {operation: string; kind: string; subject: string; error: string | null}[]
  restored: string[]
  problems: Problem[]
}

/** Looks, plans and acts: after a start, and whenever a daemon has come back. */
export async function reconcile(operations: Operations, options: {giveUpFailed?: boolean} = {}): Promise<Outcome> {
  const {store, journal, iqnPrefix} = operations.rooms
  // Requests go on meanwhile: what they change during the look is left out below, by comparing and locking.
  const desired = {
    volumes: [...store.volumes.values()],
    exports: [...store.exports.values()],
    attachments: [...store.attachments.values()].map(record => named(operations.rooms, record)),
    unfinished: journal.unfinished(),
  }
  const actions = plan(desired, await observe(operations.rooms), iqn => iqn.startsWith(`${iqnPrefix}:`), options)
  return apply(operations, actions)
}

/**
 * Carries the actions out. Exports come first, since resumed operations may need them; then those all at once, so that a
 * guest or a daemon that does not answer holds up nobody else.
 */
export async function apply(operations: Operations, actions: Action[]): Promise<Outcome> {
  const outcome: Outcome = {resumed: [], restored: [], problems: []}
  for (const action of actions) {
    if (action.do === 'restore') await restore(operations, action.volumeId, outcome)
  }
  await Promise.all(
    actions.map(action => {
      if (action.do === 'connect') return connect(operations, action.attachmentId, outcome)
      return action.do === 'disconnect' ? disconnect(operations, action.iqn, outcome) : undefined
    }),
  )
  await Promise.all(actions.map(action => (action.do === 'resume' ? resume(operations, action, outcome) : undefined)))
  for (const action of actions) {
    if (action.do === 'report' && stillHolds(operations, action.problem)) outcome.problems.push(action.problem)
  }
  return outcome
}

/** False where a request has changed the subject since the look, or is changing it. */
function stillHolds(operations: Operations, {problem, subject}: Problem): boolean {
  const {volumes, exports, attachments} = operations.rooms.store
  if (problem === 'pool-unusable') return true
  if (problem === 'disk-unknown-to-libvirt') {
    return operations.rooms.journal.unfinishedOn(subject)?.waits?.problem === problem
  }
  const id = operations.rooms.store.volumeIdOf(subject)
  if (!operations.idle(id)) return false
  switch (problem) {
    case 'volume-missing':
      return volumes.has(id)
    case 'volume-unknown':
      return !volumes.has(id)
    case 'export-missing':
      return exports.has(id)
    case 'export-unknown':
      return !exports.has(id)
    case 'disk-absent':
    case 'disk-stale':
    case 'session-lost':
      return attachments.has(id)
    case 'session-stuck':
      return true
  }
}

async function restore(operations: Operations, volumeId: string, outcome: Outcome): Promise<void> {
  const {rooms} = operations
  if (!operations.idle(volumeId)) return
  const unlock = operations.lock(volumeId)
  const record = rooms.store.exports.get(volumeId)
  const volume = rooms.store.volumes.get(volumeId)
  try {
    if (!record || !volume) return
    await rooms.targets.export(exportSpec(rooms, record, volume))
    outcome.restored.push(record.iqn)
  } catch (error) {
    const message = `${record!.iqn} cannot be put back: ${(error as Error).message}`
    outcome.problems.push({problem: 'export-missing', subject: volumeId, message})
  } finally {
    unlock()
  }
}

/** Logs in again for an attachment: its disk is proven to be the volume before anybody gets at it. */
async function connect(operations: Operations, id: string, outcome: Outcome): Promise<void> {
  const {rooms} = operations
  if (!operations.idle(id)) return
  const unlock = operations.lock(id)
  const exported = rooms.store.exports.get(id)
  try {
    if (!exported || !rooms.store.attachments.has(id)) return
    await rooms.host.connect(connectSpec(rooms, exported))
    outcome.restored.push(exported.iqn)
  } catch (error) {
    const message = `The session with ${exported!.iqn} is lost, and there is no new one: ${(error as Error).message}`
    outcome.problems.push({problem: 'session-lost', subject: id, message})
  } finally {
    unlock()
  }
}

async function disconnect(operations: Operations, iqn: string, outcome: Outcome): Promise<void> {
  const id = operations.rooms.store.volumeIdOf(iqn)
  if (!operations.idle(id)) return
  const unlock = operations.lock(id)
  try {
    // The look is some time old: an attach may have come and gone meanwhile.
    if (operations.rooms.store.attachments.has(id)) return
    await operations.rooms.host.disconnect(iqn, {owner: 'attach'})
  } catch (error) {
    const message = `A session that no attachment needs is not gone: ${(error as Error).message}`
    outcome.problems.push({problem: 'session-stuck', subject: iqn, message})
  } finally {
    unlock()
  }
}

async function resume(operations: Operations, {operation}: Action & {do: 'resume'}, outcome: Outcome): Promise<void> {
  const {id, kind, subject} = operation
  try {
    await operations.resume(operation, {recovering: true})
    outcome.resumed.push({operation: id, kind, subject, error: null})
  } catch (error) {
    // A client is at work on it again already, or it has failed and is undone: both are its end here.
    if (hasCode(error, 'CONFLICT')) return
    outcome.resumed.push({operation: id, kind, subject, error: (error as Error).message})
  }
}
