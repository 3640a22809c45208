import {hasCode, nativeFacts, StorageError} from '../errors.js'
import type {Operation, StepName} from '../state/journal.js'
import type {Change} from '../state/store.js'
import type {Volume} from '../types.js'
import type {Rooms} from './rooms.js'
import {type Path, type Step, type StepContext, steps, type Unmade} from './steps.js'

export interface RunOptions {
  /**
   * Nobody waits for the answer: the operation is resumed after a restart, or because what it waits for may have come. A
   * daemon that does not answer yet leaves it standing, and a guest gets a moment, not the time that was asked for.
   */
  recovering?: boolean
  /** Milliseconds that this caller waits for a guest's release, where it differs from the first one's. */
  timeoutMs?: number
  signal?: AbortSignal
  onProgress?: StepContext['onProgress']
}

/** What a finished operation answers: the nouns that it reached. */
export interface Answer {
  volume: Volume | null
  export: unknown
  disk: unknown
  /**
   * Where a disk of this host's was taken away. False: it took no flush, and what the host had not written to it yet may
   * be lost.
   */
  flushed?: boolean
}

/**
 * Runs an operation to its end, from wherever its journal says that it is. Used for a new operation and, after a crash,
 * for an old one.
 * @throws StorageError of the failed step, with `info.undone`: what was made and is gone again
 */
export async function run(rooms: Rooms, operation: Operation, options: RunOptions = {}): Promise<Answer> {
  if (operation.state === 'undoing') return undo(rooms, {...operation, keep: keeps(operation, options)}, options)
  return operation.direction === 'make' ? make(rooms, operation, options) : unmake(rooms, operation, options)
}

// Long enough for a guest that has let go already and only has to be asked once more.
const recoveringReleaseMs = 500

function releaseTimeout({recovering, timeoutMs}: RunOptions): number | undefined {
  return recovering ? recoveringReleaseMs : timeoutMs
}

function planned(operation: Operation): Step[] {
  return steps.filter(({name}) => operation.plan.includes(name))
}

/** The nouns that exist when the operation starts, or that its finished steps have given. */
function startingPath(rooms: Rooms, operation: Operation): Path {
  const {store} = rooms
  const {volume, export: exported, device, disk} = operation.direction === 'make' ? (operation.finished as Path) : {}
  return {
    volume: volume ?? store.volumes.get(operation.subject),
    export: exported ?? store.exports.get(operation.subject),
    device,
    disk,
  }
}

/** A daemon that does not answer may answer later: then a recovery tries once more. */
const unreachable = ['COMPUTE_UNAVAILABLE', 'TARGET_UNAVAILABLE', 'INITIATOR_UNAVAILABLE', 'TIMEOUT'] as const
/** Why what was resumed is told to stop when the daemon ends: it stays in the journal, and the next start goes on with it. */
export const daemonEnds = new StorageError('CANCELLED', 'The daemon ends: the operation goes on at its next start')

async function make(rooms: Rooms, begun: Operation, options: RunOptions): Promise<Answer> {
  const {journal} = rooms
  const {recovering, signal, onProgress} = options
  let operation = begun
  let path = startingPath(rooms, operation)
  const remaining = planned(operation).filter(({name}) => !(name in operation.finished))
  try {
    for (const step of remaining) {
      if (signal?.aborted) throw new StorageError('CANCELLED', 'The request was cancelled', {op: step.name})
      const context = {rooms, operation, signal, onProgress, recovering}
      path = await step.make(context, path).catch(async error => {
        const changes = await step.failed?.(context).catch((): Change[] => [])
        if (changes?.length) await rooms.store.write(changes)
        throw error
      })
      const changes = step.made(context, path)
      if (step === remaining.at(-1) && !signal?.aborted) {
        await journal.complete(operation, 'done', answer(path), changes)
        return answer(path)
      }
      operation = await journal.stepMade(operation, step.name, pieceOf(path, step.name), changes)
    }
    // Whoever has cancelled is told that nothing is left, also where the last step had made its effect meanwhile.
    if (signal?.aborted) throw new StorageError('CANCELLED', 'The request was cancelled', {op: operation.kind})
  } catch (error) {
    if (recovering && (hasCode(error, ...unreachable) || signal?.reason === daemonEnds)) {
      await stand(rooms, operation, error)
      throw error
    }
    const failing = await journal.failing(operation, describe(error), keeps(begun, options)).catch(cause => {
      throw unrecorded(operation, error, cause)
    })
    return undo(rooms, failing, options, error)
  }
  await journal.complete(operation, 'done', answer(path))
  return answer(path)
}

/**
 * True where the volume and its export have to outlive a failed operation: an earlier run had come so far that an initiator
 * may have written since, a guest that had the disk while no daemon ran, for example. `found` is what the journal said when
 * this run began.
 */
function keeps(found: Operation, {recovering}: RunOptions): boolean {
  if (found.keep) return true
  if (!recovering) return false
  const isCutOffAt = (step: StepName) => unfinishedStep(found)?.name === step && !found.undone?.includes(step)
  const isExported = 'export' in found.finished
  // A run that was cut off in the middle of an export may have opened it; one that has seen it fail has not.
  if (!found.plan.includes('disk')) return isExported || (found.state === 'running' && isCutOffAt('export'))
  // An export that is made for a disk lets nobody in but that disk's initiator, who comes when the export is journalled.
  return isExported && (found.state === 'running' || 'disk' in found.finished || isCutOffAt('disk'))
}

/** Whether an undo that cannot go on at `step` has to keep the volume, since somebody may write to it meanwhile. */
function keepsAt(step: StepName, {plan, finished}: Operation, error: unknown): boolean {
  if (step === 'volume' || !('export' in finished)) return false
  // When the disk is back, the export made for it has no other user than one whose session was seen.
  return step !== 'export' || !plan.includes('disk') || hasCode(error, 'DETACH_PENDING', 'TARGET_IN_USE')
}

/** The first step that is not known to be made. It may have had its effect all the same. */
function unfinishedStep(operation: Operation): Step | undefined {
  return planned(operation).find(({name}) => !(name in operation.finished))
}

/** The store took neither the step nor its failure: the journal still says that the operation goes on. */
function unrecorded({id, kind}: Operation, error: unknown, cause: unknown): StorageError {
  const message = `${kind} is not finished, and its failure cannot be recorded: ${(error as Error).message}. The operation goes on when the store can be written`
  return new StorageError('STORE_FAILED', message, {op: kind, info: {operation: id, stands: true}, cause})
}

/** Notes why an operation stands. It is for people: where the store does not take it, the operation stands all the same. */
async function stand(rooms: Rooms, operation: Operation, error: unknown, keep = operation.keep): Promise<void> {
  const {message} = error as Error
  const unknownDisk = hasCode(error, 'DETACH_PENDING') && error.info.problem === 'disk-unknown-to-libvirt'
  const waits = unknownDisk ? {message, problem: 'disk-unknown-to-libvirt' as const} : {message}
  await rooms.journal.waiting(operation, waits, keep).catch(() => undefined)
}

function pieceOf(path: Path, step: StepName): unknown {
  return step === 'size' ? null : path[step]
}

function answer(path: Path): Answer {
  return {volume: path.volume ?? null, export: path.export ?? null, disk: path.disk ?? null}
}

/** What an undo leaves alone where `keep` says so: what somebody has written, and how he gets at it. */
const stays: readonly StepName[] = ['volume', 'export']

/**
 * Takes back what the operation itself has made, in reverse. The step that failed is taken back too, unless its error proves
 * that it has made nothing: whether an effect is in the world is asked of the world. Where a step cannot be undone now (its
 * daemon is dead, a guest keeps its disk), the operation stays in the journal as `undoing`, and the reconciler goes on with it.
 */
async function undo(rooms: Rooms, failing: Operation, options: RunOptions, cause?: unknown): Promise<never> {
  let operation = failing
  const undone: StepName[] = []
  const kept: StepName[] = []
  const failed = unfinishedStep(operation)
  const isRefusal = !options.recovering && failed?.refusals.includes(operation.error!.code)
  const suspect = isRefusal ? undefined : failed
  for (const step of planned(operation).reverse()) {
    const isMade = step.name in operation.finished
    if (!isMade && step !== suspect) continue
    if (operation.keep && isMade && stays.includes(step.name)) {
      kept.push(step.name)
      continue
    }
    const context = {rooms, operation, releaseTimeoutMs: releaseTimeout(options)}
    try {
      await step.unmake(context)
    } catch (error) {
      await stand(rooms, operation, error, operation.keep || keepsAt(step.name, operation, error))
      throw failureOf(operation, cause, {undone, notUndone: step.name, undoError: nativeFacts(error)})
    }
    operation = await rooms.journal.stepUnmade(operation, step.name, step.unmade(context))
    if (step !== suspect) undone.push(step.name)
  }
  // A secret is stored with the intent, before the export that it belongs to: it goes also where no step was made.
  const isWithout = operation.plan.includes('export') && !kept.includes('export')
  const secrets: Change[] = isWithout ? [{table: 'secrets', id: operation.subject, value: null}] : []
  const ended = kept.length > 0 ? {...operation, error: withKept(operation, kept)} : operation
  await rooms.journal.complete(ended, 'failed', null, secrets)
  throw failureOf(ended, cause, {undone, ...(kept.length > 0 ? {kept} : {})})
}

function withKept({error, subject}: Operation, kept: StepName[]): Operation['error'] {
  const what = kept.includes('export') ? 'the volume and its export stay' : 'the volume stays'
  const remedy = kept.includes('export')
    ? `lunpath export delete ${subject}, then lunpath volume delete ${subject}`
    : `lunpath volume delete ${subject}`
  const message = `${error!.message}. An initiator may have written to ${subject}, so ${what}: attach it, or remove it with ${remedy}`
  return {...error!, message, info: {...error!.info, kept}}
}

function failureOf(operation: Operation, cause: unknown, facts: Record<string, unknown>): StorageError {
  const {code, message, op, info} = operation.error!
  return new StorageError(code as StorageError['code'], message, {
    op: op ?? operation.kind,
    info: {...info, ...facts},
    cause: (cause as Error | undefined)?.cause ?? cause,
  })
}

/** An error as it is journalled and answered: never with a secret, since no error of ours holds one. */
export function describe(error: unknown): NonNullable<Operation['error']> {
  if (error instanceof StorageError) {
    const {code, message, op, info} = error
    return {code, message, op, info, cause: nativeFacts(error.cause)}
  }
  return {code: 'INTERNAL', message: error instanceof Error ? error.message : String(error), cause: nativeFacts(error)}
}

async function unmake(rooms: Rooms, begun: Operation, options: RunOptions): Promise<Answer> {
  const {recovering} = options
  let operation = begun
  const remaining = planned(operation)
    .reverse()
    .filter(({name}) => !(name in operation.finished))
  const path = startingPath(rooms, operation)
  const ended = (): Answer => ({...answer(path), ...(operation.finished.device as Unmade | undefined)})
  for (const step of remaining) {
    const context = {rooms, operation, releaseTimeoutMs: releaseTimeout(options)}
    let unmade: Unmade | undefined
    try {
      unmade = await step.unmake(context)
    } catch (error) {
      // Once a step is done the rest must follow, a guest may release its disk later, and after a restart a daemon may
      // not answer yet: then the operation stands. Else nothing was done, and it is as if never asked.
      const untouched = Object.keys(operation.finished).length === 0
      const waits = hasCode(error, 'DETACH_PENDING') || (recovering && hasCode(error, ...unreachable))
      if (untouched && !waits) await rooms.journal.complete({...operation, error: describe(error)}, 'failed', null)
      else await stand(rooms, operation, error)
      throw error
    }
    const changes = step.unmade(context)
    if (step === remaining.at(-1)) {
      const result = {...ended(), ...unmade}
      await rooms.journal.complete(operation, 'done', result, changes)
      return result
    }
    operation = await rooms.journal.stepUnmade(operation, step.name, changes, unmade)
  }
  return ended()
}
