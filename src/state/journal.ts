import {createHash, randomUUID} from 'node:crypto'
import {StorageError} from '../errors.js'
import type {Change, Store} from './store.js'

export type StepName = 'volume' | 'export' | 'device' | 'disk' | 'size'

/**
 * What was asked for and how far it has come. It is stored before the first effect and after each finished step, so
 * that a daemon that was killed in between goes on where the last one stopped.
 */
export interface Operation<Request = unknown> {
  id: string
  kind: string
  /** `make` runs its steps forward, `unmake` undoes them in reverse. */
  direction: 'make' | 'unmake'
  /** The id of the volume or attachment that it works on. */
  subject: string
  /** The client's idempotency token, where it gave one. */
  token: string | null
  requestHash: string
  request: Request
  /** The steps that this operation itself takes: all that an undo may touch. In the order of making. */
  plan: StepName[]
  /** Of those, the ones that are known to be made (direction `unmake`: unmade), with what each gave. */
  finished: Partial<Record<StepName, unknown>>
  state: 'running' | 'undoing' | 'done' | 'failed'
  /**
   * An undo leaves the volume and its export as they are: an initiator may have written to the volume, and only
   * `volume delete` removes what somebody has written.
   */
  keep?: boolean
  /** Why an unfinished operation stands, for people; `problem` where somebody has to act. */
  waits?: {message: string; problem?: 'disk-unknown-to-libvirt'}
  /** The answer of a finished operation: the result, or the error. */
  result?: unknown
  error?: {code: string; message: string; op?: string; info?: Record<string, unknown>; cause?: unknown}
  startedAt: string
}

/** Finished operations with a token are kept this long, to give the same answer to the same request. */
export const tokenLifetimeMs = 24 * 3600 * 1000
const maxTokens = 100_000

/**
 * The one place that writes operations. Each method commits the operation and the rows that the step has changed in
 * one transaction, and resolves when that is durable.
 */
export class Journal {
  readonly #store: Store
  readonly #byToken = new Map<string, string>()
  readonly #unfinishedBySubject = new Map<string, Operation>()

  constructor(store: Store) {
    this.#store = store
    for (const operation of store.operations.values()) this.#index(operation)
  }

  #index(operation: Operation): void {
    if (operation.token !== null) this.#byToken.set(operation.token, operation.id)
    if (operation.state === 'running' || operation.state === 'undoing') {
      this.#unfinishedBySubject.set(operation.subject, operation)
    } else if (this.#unfinishedBySubject.get(operation.subject)?.id === operation.id) {
      this.#unfinishedBySubject.delete(operation.subject)
    }
  }

  /** The intent, before any effect. `changes` are rows that recovery needs from here on (a CHAP secret). */
  async begin(
    operation: Omit<Operation, 'id' | 'state' | 'finished' | 'startedAt'>,
    changes: Change[] = [],
  ): Promise<Operation> {
    const begun: Operation = {
      ...operation,
      id: randomUUID(),
      state: 'running',
      finished: {},
      startedAt: new Date().toISOString(),
    }
    return this.#update(begun, changes)
  }

  /** A step's effect is in the world: `result` is what it gave, `changes` the rows that describe it. */
  async stepMade(operation: Operation, step: StepName, result: unknown, changes: Change[]): Promise<Operation> {
    return this.#update({...operation, finished: {...operation.finished, [step]: result}}, changes)
  }

  /** A step's effect is out of the world again: `result` is what there is to say of that. */
  async stepUnmade(
    operation: Operation,
    step: StepName,
    changes: Change[],
    result: unknown = null,
  ): Promise<Operation> {
    const {[step]: _taken, ...others} = operation.finished
    const finished = operation.direction === 'unmake' ? {...operation.finished, [step]: result} : others
    return this.#update({...operation, finished}, changes)
  }

  /** A step failed, and what was made is being undone. From here on the operation can only end as failed. */
  async failing(operation: Operation, error: Operation['error'], keep?: boolean): Promise<Operation> {
    return this.#update({...operation, state: 'undoing', error, ...(keep ? {keep} : {})}, [])
  }

  /** It cannot go on now, and stands. */
  async waiting(operation: Operation, waits: Operation['waits'], keep?: boolean): Promise<Operation> {
    const isKnown = operation.waits?.message === waits?.message && operation.keep === keep
    return isKnown ? operation : this.#update({...operation, waits, ...(keep ? {keep} : {})}, [])
  }

  /** The end. Kept where a token may ask for the answer again, else forgotten. */
  async complete(
    operation: Operation,
    state: 'done' | 'failed',
    result: unknown,
    changes: Change[] = [],
  ): Promise<Operation> {
    const ended: Operation = {...operation, state, result}
    const value = ended.token === null ? null : ended
    await this.#store.write([...changes, {table: 'operations', id: ended.id, value}])
    this.#index(ended)
    return ended
  }

  async #update(operation: Operation, changes: Change[]): Promise<Operation> {
    await this.#store.write([...changes, {table: 'operations', id: operation.id, value: operation}])
    this.#index(operation)
    return operation
  }

  /** Operations that a restart must go on with, oldest first. */
  unfinished(): Operation[] {
    return [...this.#unfinishedBySubject.values()].sort((a, b) => a.startedAt.localeCompare(b.startedAt))
  }

  /** The unfinished operation on a volume or attachment, if any. */
  unfinishedOn(subject: string): Operation | undefined {
    return this.#unfinishedBySubject.get(subject)
  }

  /**
   * The operation that was begun with this token. @throws TOKEN_CONFLICT where the token came with another request.
   */
  withToken(token: string | null, requestHash: string): Operation | undefined {
    const operation = token === null ? undefined : this.#store.operations.get(this.#byToken.get(token) ?? '')
    if (operation && operation.requestHash !== requestHash) {
      throw new StorageError('TOKEN_CONFLICT', `The token ${JSON.stringify(token)} was used for another request`, {
        info: {token, kind: operation.kind},
      })
    }
    return operation
  }

  /** Forgets answers older than a day, and the oldest above 100,000. */
  async expireTokens(now = Date.now()): Promise<number> {
    const ended = [...this.#store.operations.values()]
      .filter(({state}) => state === 'done' || state === 'failed')
      .sort((a, b) => a.startedAt.localeCompare(b.startedAt))
    const surplus = ended.length - maxTokens
    const expired = ended.filter(
      ({startedAt}, index) => index < surplus || now - Date.parse(startedAt) > tokenLifetimeMs,
    )
    if (expired.length > 0) await this.#store.write(expired.map(({id}) => ({table: 'operations', id, value: null})))
    for (const {token} of expired) if (token !== null) this.#byToken.delete(token)
    return expired.length
  }
}

/** A hash of a request that does not depend on the order of its keys. Secrets may be part of it: it is one-way. */
export function hashRequest(kind: string, request: unknown): string {
  return createHash('sha256').update(kind).update('\0').update(canonicalJson(request)).digest('hex')
}

function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(',')}]`
  if (value === null || typeof value !== 'object') return JSON.stringify(value) ?? 'null'
  const entries = Object.entries(value)
    .filter(([, member]) => member !== undefined)
    .sort(([a], [b]) => (a < b ? -1 : 1))
  return `{${entries.map(([key, member]) => `${JSON.stringify(key)}:${canonicalJson(member)}`).join(',')}}`
}
