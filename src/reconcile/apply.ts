import type {Operations} from '../attach/operations.js'
import {connectSpec, exportSpec} from '../attach/steps.js'
import {hasCode} from '../errors.js'
import type {Operation} from '../state/journal.js'
import {isThere} from './observe.js'
import type {Action, Problem} from './plan.js'
import type {Retries} from './retries.js'

export interface Outcome {
  restored: string[]
  problems: Problem[]
  /** Operations that are to go on. */
  resumable: Operation[]
}

/**
 * Carries the actions out, but for operations to be resumed, which may last. Exports come first; then sessions all at once,
 * so that a target that does not answer holds up nobody else.
 */
export async function apply(operations: Operations, actions: Action[], retries: Retries): Promise<Outcome> {
  const outcome: Outcome = {restored: [], problems: [], resumable: []}
  for (const action of actions) {
    if (action.do === 'restore') await restore(operations, action.volumeId, outcome, retries)
    if (action.do === 'resume') outcome.resumable.push(action.operation)
  }
  await Promise.all(
    actions.map(action => {
      if (action.do === 'connect') return connect(operations, action.attachmentId, outcome, retries)
      return action.do === 'disconnect' ? disconnect(operations, action.iqn, outcome) : undefined
    }),
  )
  for (const action of actions) {
    if (action.do === 'report' && stillHolds(operations, action.problem)) outcome.problems.push(action.problem)
  }
  return outcome
}

/** False where a request has changed the subject since the look, or is changing it. */
export function stillHolds(operations: Operations, {problem, subject}: Problem): boolean {
  const {volumes, exports, attachments} = operations.rooms.store
  if (problem === 'pool-unusable' || problem === 'portal-closed' || problem === 'look-failed') return true
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
    case 'disk-portal-changed':
    case 'session-lost':
      return attachments.has(id)
    case 'session-stuck':
      return true
  }
}

async function restore(operations: Operations, volumeId: string, outcome: Outcome, retries: Retries): Promise<void> {
  const {rooms} = operations
  const key = `restore ${volumeId}`
  const path = rooms.store.volumes.get(volumeId)?.path
  if (path === undefined) return
  const there = await isThere(path)
  const waiting = retries.waiting(key, there)
  if (waiting) {
    if (stillHolds(operations, waiting)) outcome.problems.push(waiting)
    return
  }
  if (!operations.idle(volumeId)) return
  const unlock = operations.lock(volumeId)
  try {
    const record = rooms.store.exports.get(volumeId)
    const volume = rooms.store.volumes.get(volumeId)
    if (!record || !volume) return
    try {
      await rooms.targets.export(exportSpec(rooms, record, volume))
      outcome.restored.push(record.iqn)
      retries.forget(key)
    } catch (error) {
      const event = there
        ? 'It is tried again, at least once a minute'
        : `It is put back as soon as ${volume.path} is there`
      const message = `${record.iqn} cannot be put back: ${(error as Error).message}. ${event}; to give it up, run: lunpath export delete ${record.iqn}`
      const problem = {problem: 'export-missing', subject: volumeId, message} as const
      retries.failed(key, {kind: 'restore', isThere: there, problem})
      outcome.problems.push(problem)
    }
  } finally {
    unlock()
  }
}

/** Logs in again for an attachment: its disk is proven to be the volume before anybody gets at it. */
async function connect(operations: Operations, id: string, outcome: Outcome, retries: Retries): Promise<void> {
  const {rooms} = operations
  if (!operations.idle(id)) return
  const key = `connect ${id}`
  const waiting = retries.waiting(key, true)
  if (waiting) {
    outcome.problems.push(waiting)
    return
  }
  const unlock = operations.lock(id)
  const exported = rooms.store.exports.get(id)
  try {
    if (!exported || !rooms.store.attachments.has(id)) return
    await rooms.host.connect(connectSpec(rooms, exported))
    outcome.restored.push(exported.iqn)
    retries.forget(key)
  } catch (error) {
    const message = `The session with ${exported!.iqn} is lost, and there is no new one: ${(error as Error).message}. It is tried again, at least once a minute`
    const problem = {problem: 'session-lost', subject: id, message} as const
    retries.failed(key, {kind: 'connect', isThere: true, problem})
    outcome.problems.push(problem)
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
    const message = `A session that no attachment needs is not gone: ${(error as Error).message}. It is tried again every few seconds`
    outcome.problems.push({problem: 'session-stuck', subject: iqn, message})
  } finally {
    unlock()
  }
}

export interface Resumed {
  operation: string
  kind: string
  subject: string
  error: string | null
}

/** Goes on with one operation. Undefined where a client is at work on it already. */
export async function resume(
  operations: Operations,
  {id, kind, subject}: Operation,
  signal: AbortSignal,
): Promise<Resumed | undefined> {
  try {
    await operations.resume({id, kind, subject}, {recovering: true, signal})
    return {operation: id, kind, subject, error: null}
  } catch (error) {
    if (hasCode(error, 'CONFLICT')) return undefined
    return {operation: id, kind, subject, error: (error as Error).message}
  }
}
