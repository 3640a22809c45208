import {hasCode, StorageError} from '../errors.js'
import {hashRequest, type Operation, type StepName} from '../state/journal.js'
import type {Change} from '../state/store.js'
import type {Rooms} from './rooms.js'
import {type Answer, type RunOptions, run} from './run.js'

/** What a caller may say about any operation. */
export interface Asked extends RunOptions {
  /** Idempotency token: the same token with the same request gives the same answer. */
  token?: string | null
}

export interface Wanted {
  kind: string
  direction: Operation['direction']
  subject: string
  plan: StepName[]
  request: unknown
  /** Rows that recovery needs from the intent on. */
  changes?: Change[]
  /** What else nobody may touch meanwhile, beside the subject: a name, the source of a clone, a device's path. */
  locks?: string[]
}

type Resumable = Pick<Operation, 'id' | 'subject' | 'kind'>

/**
 * Begins operations and runs each at most once at a time. A volume or attachment has one operation at a time: a second
 * caller gets CONFLICT, not a wait.
 */
export class Operations {
  readonly rooms: Rooms
  readonly #running = new Map<string, {answer: Promise<Answer>; recovering: boolean; cancel: AbortController}>()
  readonly #locked = new Set<string>()

  constructor(rooms: Rooms) {
    this.rooms = rooms
  }

  /**
   * Answers a request. `prepare` settles it (checks, ids, plan) and runs only where the token is new, under no lock; what
   * it returns is journalled and run. @throws TOKEN_CONFLICT, CONFLICT, and all that the steps throw
   */
  async perform(
    kind: string,
    asked: unknown,
    options: Asked,
    prepare: () => Promise<Wanted> | Wanted,
  ): Promise<Answer> {
    const token = options.token ?? null
    const requestHash = token === null ? '' : hashRequest(kind, asked)
    const earlier = this.rooms.journal.withToken(token, requestHash)
    if (earlier) return this.#again(earlier, options)
    const unlockToken = token === null ? null : this.lock(`token ${token}`)
    try {
      const {changes, locks, ...wanted} = await prepare()
      const standing = this.rooms.journal.unfinishedOn(wanted.subject)
      if (standing) return await this.#join(standing, wanted, options)
      const unlock = this.lock(wanted.subject, ...(locks ?? []))
      try {
        const operation = await this.rooms.journal.begin({...wanted, token, requestHash}, changes)
        return await this.#run(operation, options)
      } finally {
        unlock()
      }
    } finally {
      unlockToken?.()
    }
  }

  /** The same token again: the answer that was given, or a part in the run that is on. */
  #again(operation: Operation, options: RunOptions): Promise<Answer> {
    if (operation.state === 'done') return Promise.resolve(operation.result as Answer)
    if (operation.state === 'failed') {
      const {code, message, op, info, cause} = operation.error!
      throw new StorageError(code as StorageError['code'], message, {op, info, cause})
    }
    return this.resume(operation, options)
  }

  /** Another request meets an operation that stands: one that asks for the same goes on with it. */
  #join(standing: Operation, wanted: Wanted, options: RunOptions): Promise<Answer> {
    if (standing.kind === wanted.kind && standing.direction === 'unmake') return this.resume(standing, options)
    throw this.#conflict(wanted.subject, standing.kind)
  }

  /**
   * Goes on with an unfinished operation: after a restart, or when what it waits for has come. One that runs is joined.
   * @throws CONFLICT where it has ended meanwhile and another one is at work, and all that the steps throw
   */
  async resume({id, subject, kind}: Resumable, options: RunOptions = {}): Promise<Answer> {
    const running = this.#running.get(id)
    if (running) return this.#share(running, {id, subject, kind}, options)
    const unlock = this.lock(subject)
    try {
      // What the caller holds may be old: the journal knows how far the operation has come, and whether it has ended.
      const operation = this.rooms.journal.unfinishedOn(subject)
      if (operation?.id !== id) throw this.#conflict(subject, kind)
      return await this.#run(operation, options)
    } finally {
      unlock()
    }
  }

  async #share(
    {answer, recovering}: {answer: Promise<Answer>; recovering: boolean},
    operation: Resumable,
    options: RunOptions,
  ): Promise<Answer> {
    try {
      return await answer
    } catch (error) {
      // A recovery gives the guest a moment only; who asks for it waits as long as he has said.
      if (!recovering || options.recovering || !hasCode(error, 'DETACH_PENDING')) throw error
    }
    // The recovery's lock is given back first.
    await new Promise(resolve => setImmediate(resolve))
    return this.resume(operation, options)
  }

  async #run(operation: Operation, options: RunOptions): Promise<Answer> {
    const cancel = new AbortController()
    const signal = options.signal ? AbortSignal.any([options.signal, cancel.signal]) : cancel.signal
    const answer = run(this.rooms, operation, {...options, signal})
    this.#running.set(operation.id, {answer, recovering: options.recovering ?? false, cancel})
    try {
      return await answer
    } finally {
      this.#running.delete(operation.id)
    }
  }

  /**
   * Cancels an operation that makes something, by its own id or the name or id of what it is at work on: it is undone, and its
   * caller, where there is one, is told CANCELLED. Returns when that has ended.
   * @throws NOT_FOUND; CONFLICT for one that takes something away, which goes on; what an undo throws that cannot end now
   */
  async cancel(key: string): Promise<Pick<Operation, 'id' | 'kind' | 'subject'>> {
    const {journal, store} = this.rooms
    const subject = [...store.volumes.values()].find(({name}) => name === key)?.id ?? key
    const nameOf = ({request}: Operation) => (request as {volume?: {name?: string | null}}).volume?.name
    const found = journal
      .unfinished()
      .find(one => one.id === key || one.subject === subject || (one.direction === 'make' && nameOf(one) === key))
    if (!found) {
      throw new StorageError('NOT_FOUND', `No operation ${JSON.stringify(key)} is unfinished: see lunpath status`, {
        op: 'operation.cancel',
      })
    }
    const {id, kind} = found
    if (found.direction === 'unmake') {
      throw new StorageError(
        'CONFLICT',
        `The operation ${kind} takes something away, which goes on: see lunpath status`,
        {
          op: 'operation.cancel',
          info: {id, kind, subject: found.subject},
        },
      )
    }
    const running = this.#running.get(id)
    running?.cancel.abort()
    try {
      await (running?.answer ?? this.resume(found, {signal: AbortSignal.abort()}))
    } catch (error) {
      if (journal.unfinishedOn(found.subject)?.id === id) throw error
      return {id, kind, subject: found.subject}
    }
    throw new StorageError('CONFLICT', `The operation ${kind} has just ended: there is nothing to cancel any more`, {
      op: 'operation.cancel',
      info: {id, kind, subject: found.subject},
    })
  }

  isRunning(id: string): boolean {
    return this.#running.has(id)
  }

  /** Takes keys until the returned function is called. @throws CONFLICT where somebody has one of them */
  lock(...keys: string[]): () => void {
    const taken = keys.find(key => this.#locked.has(key))
    if (taken !== undefined) throw this.#conflict(taken)
    for (const key of keys) this.#locked.add(key)
    return () => {
      for (const key of keys) this.#locked.delete(key)
    }
  }

  #conflict(subject: string, kind?: string): StorageError {
    const what = kind === undefined ? 'Another operation' : `The operation ${kind}`
    return new StorageError('CONFLICT', `${what} is at work on ${subject}: try again when it has ended`, {
      info: {subject, kind},
    })
  }

  /** Unfinished operations that nobody is at work on. */
  standing(): Operation[] {
    return this.rooms.journal
      .unfinished()
      .filter(({id, subject}) => !this.#running.has(id) && !this.#locked.has(subject))
  }

  /** True where no operation is at work on the subject. */
  idle(subject: string): boolean {
    return !this.#locked.has(subject)
  }

  /** Waits for all that runs. */
  async settle(): Promise<void> {
    await Promise.allSettled([...this.#running.values()].map(({answer}) => answer))
  }
}
