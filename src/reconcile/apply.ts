import type {Operations} from '../attach/operations.js'
import {exportSpec} from '../attach/steps.js'
import {hasCode} from '../errors.js'
import {observe} from './observe.js'
import {type Action, type Problem, plan} from './plan.js'

export interface Outcome {
  resumed: {operation: string; kind: string; subject: string; error: string | null}[]
  restored: string[]
  problems: Problem[]
}

/** Looks, plans and acts: after a start, and whenever a daemon has come back. */
export async function reconcile(operations: Operations): Promise<Outcome> {
  const {store, journal, iqnPrefix} = operations.rooms
  const desired = {
    volumes: store.volumes.values(),
    exports: store.exports.values(),
    attachments: store.attachments.values(),
    unfinished: journal.unfinished(),
  }
  const actions = plan(desired, await observe(operations.rooms), iqn => iqn.startsWith(`${iqnPrefix}:`))
  return apply(operations, actions)
}

/** Carries the actions out, one after the other: exports come first, since resumed operations may need them. */
export async function apply(operations: Operations, actions: Action[]): Promise<Outcome> {
  const outcome: Outcome = {resumed: [], restored: [], problems: []}
  for (const action of actions) {
    switch (action.do) {
      case 'restore':
        await restore(operations, action.volumeId, outcome)
        break
      case 'resume':
        await resume(operations, action, outcome)
        break
      case 'report':
        outcome.problems.push(action.problem)
    }
  }
  return outcome
}

async function restore({rooms}: Operations, volumeId: string, outcome: Outcome): Promise<void> {
  const record = rooms.store.exports.get(volumeId)
  const volume = rooms.store.volumes.get(volumeId)
  if (!record || !volume) return
  try {
    await rooms.targets.export(exportSpec(rooms, record, volume))
    outcome.restored.push(record.iqn)
  } catch (error) {
    const message = `${record.iqn} cannot be put back: ${(error as Error).message}`
    outcome.problems.push({problem: 'volume-missing', subject: volumeId, message})
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
