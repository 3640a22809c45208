import type {Logger} from 'pino'
import type {Operations} from '../attach/operations.js'
import {named} from '../attach/rooms.js'
import type {Operation} from '../state/journal.js'
import {apply, resume, stillHolds} from './apply.js'
import {type Observed, Observer} from './observe.js'
import {type Problem, plan} from './plan.js'
import {Retries} from './retries.js'

/** What a look must have asked for to say that a problem is over. The others are in every look. */
const seenIn: Partial<Record<Problem['problem'], keyof Observed>> = {
  'volume-missing': 'volumes',
  'volume-unknown': 'volumes',
  'export-unknown': 'targets',
  'session-lost': 'sessions',
  'session-stuck': 'sessions',
  'disk-stale': 'sessions',
}

/** How long an operation that stands is left alone where nothing has happened. */
const resumeAgainMs = 15_000

/**
 * Brings the world to what the store says, and knows what is left to people. An occasion (the start, a daemon that is back) is a
 * full look; in between a look every few seconds, at bounded cost, keeps the problems young.
 */
export class Reconciler {
  readonly #operations: Operations
  readonly #log: Logger
  readonly #observer: Observer
  readonly #retries = new Retries()
  readonly #ending: AbortSignal
  readonly #resuming = new Map<string, Promise<void>>()
  readonly #resumedAt = new Map<string, number>()
  #problems: Problem[] = []
  #looking: Promise<void> = Promise.resolve()
  #hasFailed = false

  /** `ending` fires when the daemon is told to end: what is resumed then stops, and stays in the journal. */
  constructor(operations: Operations, log: Logger, ending: AbortSignal) {
    this.#operations = operations
    this.#log = log
    this.#observer = new Observer(operations.rooms)
    this.#ending = ending
  }

  /** What the last look found and lunpath does not mend by itself. */
  problems(): Problem[] {
    return this.#problems
  }

  /** Something has happened in a domain, or in any: the next look reads it anew. */
  domainChanged(uuid?: string): void {
    this.#observer.domainChanged(uuid)
  }

  /**
   * Looks, plans and acts; one at a time. Operations that stand go on in the background: settled() waits for them. A failure is
   * logged, and the next look tries again.
   */
  look(occasion: string, {full, giveUpFailed}: {full: boolean; giveUpFailed: boolean}): Promise<void> {
    this.#looking = this.#looking.then(async () => {
      if (this.#ending.aborted) return
      try {
        await this.#look(occasion, {full, giveUpFailed})
        this.#hasFailed = false
      } catch (error) {
        const level = full || !this.#hasFailed ? 'error' : 'debug'
        this.#log[level]({err: error, occasion}, 'reconciliation failed')
        this.#hasFailed = true
      }
    })
    return this.#looking
  }

  async #look(occasion: string, {full, giveUpFailed}: {full: boolean; giveUpFailed: boolean}): Promise<void> {
    const {store, journal, iqnPrefix} = this.#operations.rooms
    // Requests go on meanwhile: what they change during the look is left out, by comparing and locking.
    const desired = {
      volumes: [...store.volumes.values()],
      exports: [...store.exports.values()],
      attachments: [...store.attachments.values()].map(record => named(this.#operations.rooms, record)),
      unfinished: journal.unfinished(),
    }
    if (full) this.#retries.forget()
    const observed = await this.#observer.observe({full})
    const actions = plan(desired, observed, iqn => iqn.startsWith(`${iqnPrefix}:`), {giveUpFailed})
    const {restored, problems, resumable} = await apply(this.#operations, actions, this.#retries)
    if (restored.length > 0) this.#log.warn({restored, occasion}, 'exports were missing and are back')
    this.#keep(problems, observed, occasion)
    for (const operation of resumable) this.#resume(operation, occasion, full)
  }

  /** Those of which this look could say nothing are as they were. */
  #keep(found: Problem[], observed: Observed, occasion: string): void {
    const isUnseen = ({problem}: Problem) => {
      const part = seenIn[problem]
      return part !== undefined && observed[part] === null
    }
    const kept = this.#problems.filter(problem => isUnseen(problem) && stillHolds(this.#operations, problem))
    const keyOf = ({problem, subject}: Problem) => `${problem} ${subject}`
    const all = new Map([...kept, ...found].map(problem => [keyOf(problem), problem]))
    const before = new Set(this.#problems.map(keyOf))
    for (const [key, problem] of all) if (!before.has(key)) this.#log.error({...problem, occasion}, problem.message)
    for (const {problem, subject} of this.#problems)
      if (!all.has(`${problem} ${subject}`)) this.#log.info({problem, subject}, 'a problem is over')
    this.#problems = [...all.values()]
  }

  #resume(operation: Operation, occasion: string, must: boolean): void {
    const {id} = operation
    const recent = performance.now() - (this.#resumedAt.get(id) ?? Number.NEGATIVE_INFINITY) < resumeAgainMs
    if (this.#resuming.has(id) || this.#ending.aborted || (recent && !must)) return
    // What a client has begun and is at work on is nothing to be resumed.
    if (!this.#operations.standing().some(one => one.id === id)) return
    this.#resumedAt.set(id, performance.now())
    const running = resume(this.#operations, operation, this.#ending)
      .then(ended => {
        if (!ended) return
        if (ended.error === null) this.#resumedAt.delete(id)
        const level = ended.error === null || this.#ending.aborted ? 'info' : 'error'
        this.#log[level]({...ended, occasion}, 'an unfinished operation was resumed')
      })
      .finally(() => this.#resuming.delete(id))
    this.#resuming.set(id, running)
  }

  /** Operations that are being resumed. */
  get resuming(): ReadonlySet<string> {
    return new Set(this.#resuming.keys())
  }

  /** Resolves when the look under way, and all that was resumed, have ended. */
  async settled(): Promise<void> {
    await this.#looking
    await Promise.all(this.#resuming.values())
  }
}
