import {createHash, randomUUID} from 'node:crypto'
import {isFinal, StorageError} from '../errors.js'
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
  /** What nobody else may touch until it ends, beside the subject. Absent in rows of older versions. */
  locks?: string[]
  /** The client's idempotency token, where it gave one. */
  token: string | null
  requestHash: string
  request: Request
  /** The steps that this operation itself takes: all that an undo may touch. In the order of making. */
  plan: StepName[]
  /** Of those, the ones that are known to be made (direction `unmake`: unmade), with what each gave. */
  finished: Partial<Record<StepName, unknown>>
  /** `joined`: no operation of its own, but the token of a request that has joined the operation `joins`. */
  state: 'running' | 'undoing' | 'joined' | 'done' | 'failed'
  joins?: string
  /**
   * An undo leaves the volume and its export as they are: an initiator may have written to the volume, and only
   * `volume delete` removes what somebody has written.
   */
  keep?: boolean
  /** Of direction `make`: the steps that its undo has taken back, in that order. */
  undone?: StepName[]
  /** Why an unfinished operation stands, for people; `problem` where somebody has to act. */
  waits?: {message: string; problem?: 'disk-unknown-to-libvirt'}
  /** The answer of a finished operation: the result, or the error. */
  result?: unknown
  error?: {code: string; message: string; op?: string; info?: Record<string, unknown>; cause?: unknown}
  startedAt: string
}

/** Final answers are kept this long under their tokens, to give the same answer to the same request. */
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
  /** Which unfinished operation needs a key: a subject, or one of `locks`. */
  readonly #holders = new Map<string, Operation>()
  /** Requests that have joined an unfinished operation, by its id. */
  readonly #joined = new Map<string, Operation[]>()

  constructor(store: Store) {
    this.#store = store
    // Those that have joined come after what they have joined.
    const rows = [...store.operations.values()].sort(
      (a, b) => Number(a.state === 'joined') - Number(b.state === 'joined'),
    )
    for (const row of rows) if (row.state !== 'joined' || this.#isUnfinished(row.joins)) this.#index(row)
  }

  #index(operation: Operation): void {
    const {id, token, subject, state} = operation
    if (token !== null) this.#byToken.set(token, id)
    if (state === 'joined') {
      this.#joined.set(operation.joins!, [...(this.#joined.get(operation.joins!) ?? []), operation])
      return
    }
    const isUnfinished = state === 'running' || state === 'undoing'
    const indexes: [Map<string, Operation>, string[]][] = [
      [this.#unfinishedBySubject, [subject]],
      [this.#holders, [subject, ...(operation.locks ?? [])]],
    ]
    for (const [index, keys] of indexes) {
      for (const key of keys) {
        if (isUnfinished) index.set(key, operation)
        else if (index.get(key)?.id === id) index.delete(key)
      }
    }
  }

  #isUnfinished(id: string | undefined): boolean {
    const state = this.#store.operations.get(id ?? '')?.state
    return state === 'running' || state === 'undoing'
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
    if (operation.direction === 'unmake') {
      return this.#update({...operation, finished: {...operation.finished, [step]: result}}, changes)
    }
    return this.#update({...operation, finished: others, undone: [...(operation.undone ?? []), step]}, changes)
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

  /** The request is a stronger one now. Nobody may be at work on the operation. */
  async amend(operation: Operation, request: unknown): Promise<Operation> {
    return this.#update({...operation, request}, [])
  }

  /**
   * A request with a token of its own has joined an unfinished operation: its token is to have the answer too. False where
   * the operation has ended meanwhile.
   */
  async join({id, kind, direction, subject}: Operation, token: string, requestHash: string): Promise<boolean> {
    // A request that comes back to what it has joined already.
    if (this.#store.operations.get(this.#byToken.get(token) ?? '')?.joins === id) return true
    const row = {kind, direction, subject, token, requestHash, request: null, plan: [], finished: {}}
    const joined = {...row, id: randomUUID(), joins: id, state: 'joined' as const, startedAt: new Date().toISOString()}
    await this.#update(joined, [])
    if (this.unfinishedOn(subject)?.id === id) return true
    // One that was ending may have taken it along.
    if (this.#store.operations.get(joined.id)?.state === 'joined') await this.#forget([joined])
    return false
  }

  /** The end. A final answer is kept for each token that may ask again; all else is forgotten. */
  async complete(
    operation: Operation,
    state: 'done' | 'failed',
    result: unknown,
    changes: Change[] = [],
  ): Promise<Operation> {
    const ended: Operation = {...operation, state, result}
    const joined = this.#joined.get(ended.id) ?? []
    await this.#end([ended, ...joined.map(row => endedWith(row, ended))], changes)
    // Requests that have joined during that write.
    const late = (this.#joined.get(ended.id) ?? []).filter(row => !joined.includes(row))
    this.#joined.delete(ended.id)
    if (late.length > 0) await this.#end(late.map(row => endedWith(row, ended)))
    return ended
  }

  async #end(rows: Operation[], changes: Change[] = []): Promise<void> {
    const writes = rows.map((row): Change => ({table: 'operations', id: row.id, value: isKept(row) ? row : null}))
    await this.#store.write([...changes, ...writes])
    for (const row of rows) {
      this.#index(row)
      if (!isKept(row) && row.token !== null) this.#byToken.delete(row.token)
    }
  }

  async #forget(rows: Operation[]): Promise<void> {
    await this.#store.write(rows.map(({id}) => ({table: 'operations', id, value: null})))
    for (const {id, token} of rows) if (token !== null && this.#byToken.get(token) === id) this.#byToken.delete(token)
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

  /** The unfinished operation that needs this key: as its subject, or as one of its locks. */
  holderOf(key: string): Operation | undefined {
    return this.#holders.get(key)
  }

  /**
   * The operation that was begun with this token, or joined (`joined`, while that is unfinished).
   * @throws TOKEN_CONFLICT where the token came with another request
   */
  withToken(token: string | null, requestHash: string): Operation | undefined {
    const operation = token === null ? undefined : this.#store.operations.get(this.#byToken.get(token) ?? '')
    // An older version has kept answers that are not final.
    if (!operation || (operation.state === 'failed' && !isKept(operation))) return undefined
    if (operation.requestHash !== requestHash) {
      throw new StorageError('TOKEN_CONFLICT', `The token ${JSON.stringify(token)} was used for another request`, {
        info: {token, kind: operation.kind},
      })
    }
    return operation
  }

  /** Forgets answers older than a day, and the oldest above 100,000. */
  async expireTokens(now = Date.now()): Promise<number> {
    const ended = [...this.#store.operations.values()]
      .filter(({state, joins}) => state === 'done' || state === 'failed' || (joins && !this.#isUnfinished(joins)))
      .sort((a, b) => a.startedAt.localeCompare(b.startedAt))
    const surplus = ended.length - maxTokens
    const expired = ended.filter(
      ({startedAt}, index) => index < surplus || now - Date.parse(startedAt) > tokenLifetimeMs,
    )
    if (expired.length > 0) await this.#forget(expired)
    return expired.length
  }
}

/** The answer of the operation that a request has joined, under the request's own token. */
function endedWith(joined: Operation, {state, result, error}: Operation): Operation {
  return {...joined, state, result, ...(error && {error})}
}

function isKept({token, state, error}: Operation): boolean {
  return token !== null && (state === 'done' || (state === 'failed' && error !== undefined && isFinal(error.code)))
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
