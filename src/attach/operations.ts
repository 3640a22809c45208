import {hasCode, StorageError} from '../errors.js'
import {KeyedQueue} from '../lock.js'
import {hashRequest, type Operation, type StepName} from '../state/journal.js'
import type {Change} from '../state/store.js'
import type {Rooms} from './rooms.js'
import {type Answer, type RunOptions, run} from './run.js'
import type {UnmakeRequest} from './steps.js'

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
  /** Looks at the world once more, under the locks and right before the intent: what it throws ends the request. */
  check?: () => Promise<void>
  /** The request takes bytes by a path: its check and its intent come before or after those of another such request. */
  claims?: boolean
}

type Resumable = Pick<Operation, 'id' | 'subject' | 'kind'>

/**
 * Begins operations and runs each at most once at a time. A volume or attachment has one operation at a time: a second
 * caller gets CONFLICT, not a wait.
 */
export class Operations {
  readonly rooms: Rooms
  readonly #running = new Map<
    string,
    {answer: Promise<Answer>; recovering: boolean; request: unknown; cancel: AbortController}
  >()
  readonly #locked = new Set<string>()
  readonly #claiming = new KeyedQueue()

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
    for (;;) {
      const earlier = this.rooms.journal.withToken(token, requestHash)
      if (!earlier) break
      const answer = await this.#again(earlier, options)
      if (answer) return answer
    }
    const unlockToken = token === null ? null : this.lock(`token ${token}`)
    try {
      for (;;) {
        const {changes, locks = [], check, claims, ...wanted} = await prepare()
        const standing = this.rooms.journal.unfinishedOn(wanted.subject)
        if (standing) {
          const answer = await this.#join(standing, {...wanted, token, requestHash}, options)
          if (answer) return answer
          continue
        }
        const unlock = this.claim(wanted.subject, ...locks)
        try {
          const begin = async () => {
            await check?.()
            return this.rooms.journal.begin({...wanted, locks, token, requestHash}, changes)
          }
          const operation = await (claims ? this.#claiming.run('claims', begin) : begin())
          return await this.#run(operation, options)
        } finally {
          unlock()
        }
      }
    } finally {
      unlockToken?.()
    }
  }

  /**
   * The same token again: the answer that was given, or a part in the run that is on. Undefined where that has come to
   * nothing for a reason that is over, as with a client that went away: then the request is to be done now.
   */
  async #again(operation: Operation, options: RunOptions): Promise<Answer | undefined> {
    if (operation.state === 'done') return operation.result as Answer
    if (operation.state === 'failed') throw errorOf(operation)
    const id = operation.joins ?? operation.id
    const wasUndoing = operation.state === 'undoing'
    try {
      return await this.resume({...operation, id}, options)
    } catch (error) {
      const mayPass = wasUndoing || hasCode(error, 'CANCELLED')
      if (!mayPass || options.signal?.aborted) throw error
      await released()
      if (this.rooms.journal.withToken(operation.token, operation.requestHash)) throw error
      return undefined
    }
  }

  /**
   * Another request meets an operation that stands: one that asks for the same goes on with it, and the stronger of the two
   * holds. Undefined where that operation has ended without what this request wants: then it is to be begun.
   */
  async #join(
    standing: Operation,
    wanted: Pick<Operation, 'kind' | 'subject' | 'request' | 'token' | 'requestHash'>,
    options: RunOptions,
  ): Promise<Answer | undefined> {
    const {journal} = this.rooms
    if (standing.kind !== wanted.kind || standing.direction !== 'unmake') {
      throw this.#conflict(wanted.subject, standing.kind)
    }
    const {token, requestHash} = wanted
    if (token !== null && !(await journal.join(standing, token, requestHash))) {
      await released()
      const ended = journal.withToken(token, requestHash)
      return ended && this.#again(ended, options)
    }
    const running = this.#running.get(standing.id)
    if (!running) {
      await released()
      const stronger = strongerRequest(standing.request, wanted.request)
      if (stronger) await this.#amend(standing, stronger)
      return this.resume(standing, options)
    }
    const isStronger = strongerRequest(running.request, wanted.request) !== undefined
    try {
      return await this.resume(standing, options)
    } catch (error) {
      if (!isStronger) throw error
      await released()
      return undefined
    }
  }

  async #amend({id, subject, kind}: Operation, request: unknown): Promise<void> {
    const unlock = this.lock(subject)
    try {
      const operation = this.rooms.journal.unfinishedOn(subject)
      if (operation?.id !== id) throw this.#conflict(subject, kind)
      await this.rooms.journal.amend(operation, request)
    } finally {
      unlock()
    }
  }

  /**
   * Goes on with an unfinished operation: after a restart, or when what it waits for has come. One that runs is joined.
   * @throws CONFLICT where it has ended meanwhile and another one is at work, and all that the steps throw
   */
  async resume({id, subject, kind}: Resumable, options: RunOptions = {}): Promise<Answer> {
    const running = this.#running.get(id)
    if (running) return this.#share(running, {id, subject, kind}, options)
    // What the caller holds may be old: the journal knows how far the operation has come, and whether it has ended.
    const operation = this.rooms.journal.unfinishedOn(subject)
    if (operation?.id !== id) throw this.#conflict(subject, kind)
    const unlock = this.lock(subject, ...(operation.locks ?? []))
    try {
      return await this.#run(operation, options)
    } finally {
      unlock()
    }
  }

  /** A part in a run that is on, for as long as this caller waits, which may be shorter or longer than the run does. */
  async #share(
    {answer, recovering}: {answer: Promise<Answer>; recovering: boolean},
    operation: Resumable,
    options: RunOptions,
  ): Promise<Answer> {
    const {timeoutMs} = options
    const deadline = timeoutMs === undefined ? undefined : performance.now() + timeoutMs
    try {
      return await (timeoutMs === undefined ? answer : this.#within(timeoutMs, answer, operation))
    } catch (error) {
      if (options.recovering || !hasCode(error, 'DETACH_PENDING')) throw error
      const leftMs = deadline === undefined ? undefined : Math.ceil(deadline - performance.now())
      // A recovery gives the guest a moment only, and another caller its own time.
      if (leftMs === undefined ? !recovering : leftMs <= 0) throw error
      await released()
      return this.resume(operation, {...options, timeoutMs: leftMs})
    }
  }

  async #within(timeoutMs: number, answer: Promise<Answer>, {subject, kind}: Resumable): Promise<Answer> {
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<never>((_resolve, reject) => {
      timer = setTimeout(() => {
        const message = `The ${kind} of ${subject} has not ended within ${timeoutMs} ms: the request stands`
        reject(new StorageError('DETACH_PENDING', message, {op: kind, info: {id: subject, timeoutMs}}))
      }, timeoutMs)
    })
    try {
      return await Promise.race([answer, late])
    } finally {
      clearTimeout(timer)
    }
  }

  async #run(operation: Operation, options: RunOptions): Promise<Answer> {
    const cancel = new AbortController()
    const signal = options.signal ? AbortSignal.any([options.signal, cancel.signal]) : cancel.signal
    const answer = run(this.rooms, operation, {...options, signal})
    this.#running.set(operation.id, {
      answer,
      recovering: options.recovering ?? false,
      request: operation.request,
      cancel,
    })
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
      await (running?.answer ?? this.resume(found, {signal: AbortSignal.abort(), recovering: true}))
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

  /**
   * Takes keys for a request until the returned function is called. What an unfinished operation needs is not free, whether
   * that runs or stands. @throws CONFLICT where somebody has one of them
   */
  claim(...keys: string[]): () => void {
    for (const key of keys) {
      const holder = this.rooms.journal.holderOf(key)
      if (holder) throw this.#conflict(key, holder.kind)
    }
    return this.lock(...keys)
  }

  /**
   * The same for the upkeep of what the store says (an export that is put back, a lost session): an operation that only
   * stands, perhaps for the lack of just that, does not keep it off. @throws CONFLICT where somebody is at work on one of them
   */
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

  /** True where nobody is at work on the subject; an operation on it may stand. */
  idle(subject: string): boolean {
    return !this.#locked.has(subject)
  }

  /** Waits for all that runs. */
  async settle(): Promise<void> {
    await Promise.allSettled([...this.#running.values()].map(({answer}) => answer))
  }
}

/** What the answer of a finished operation is thrown as. */
function errorOf({error}: Operation): StorageError {
  const {code, message, op, info, cause} = error!
  return new StorageError(code as StorageError['code'], message, {op, info, cause})
}

/**
 * The request of two that ask for the same, where the second asks for more than the first; else undefined. A caller's time to
 * wait is its own affair: each has its own.
 */
function strongerRequest(first: unknown, second: unknown): UnmakeRequest | undefined {
  const [weak, strong] = [first as UnmakeRequest, second as UnmakeRequest]
  return strong.force && !weak.force ? {...weak, force: true} : undefined
}

/** Whoever runs an operation gives its locks back before this resolves. */
function released(): Promise<void> {
  return new Promise(resolve => setImmediate(resolve))
}
