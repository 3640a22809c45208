import {EventEmitter} from 'node:events'
import {StorageError} from '../errors.js'
import type {TargetEvent} from './driver.js'
import {type IetControl, request} from './iet-control.js'
import {ExchangeError, type Link, linkTo, unavailable} from './iet-link.js'
import {hanging} from './iet-listings.js'
import {putInPlace} from './iet-restoration.js'
import type {Entry, IetTargets} from './iet-targets.js'

const pollMs = 400
/** One client that stays silent keeps ietd from all others. */
const answerMs = 500
const pollLostMs = 50
const lookAroundMs = 2_000
const recoveryDeadlineMs = 20_000

/**
 * Looks after ietd and the targets of exports: what ends with ietd, or by a close of the control device, is noticed and put
 * back. Operations go through attempt(), which knows of a recovery under way.
 */
export class IetWatch {
  readonly #control: IetControl
  readonly #targets: IetTargets
  readonly #timeoutMs: number
  readonly #setUp: (link: Link) => Promise<void>
  readonly #lookAround: () => Promise<string[]>
  #lookAroundAt = 0
  readonly #events = new EventEmitter()
  #pid = 0
  #state: 'new' | 'open' | 'closed' = 'new'
  #isRestored = false
  #isLost = false
  #recovery: Promise<void> | undefined
  #checking: Promise<void> | undefined
  #timer: NodeJS.Timeout | undefined

  /**
   * `setUp` is what a new ietd needs beside the exports; `lookAround` looks at what is neither ietd nor a target, every few
   * seconds, and gives the names of the targets whose rules it has put back.
   */
  constructor(
    control: IetControl,
    targets: IetTargets,
    {
      timeoutMs,
      setUp,
      lookAround,
    }: {timeoutMs: number; setUp: (link: Link) => Promise<void>; lookAround: () => Promise<string[]>},
  ) {
    this.#control = control
    this.#targets = targets
    this.#timeoutMs = timeoutMs
    this.#setUp = setUp
    this.#lookAround = lookAround
  }

  /** Of the ietd in use; 0 before begin(). */
  get pid(): number {
    return this.#pid
  }

  get state(): 'new' | 'open' | 'closed' {
    return this.#state
  }

  begin(pid: number): void {
    this.#pid = pid
    this.#state = 'open'
    this.#watch()
  }

  /** From now on a new ietd gets the exports. */
  restored(): void {
    this.#isRestored = true
  }

  /** Looks no more; what is under way ends. */
  async stop(): Promise<void> {
    clearTimeout(this.#timer)
    await this.#checking
  }

  close(): void {
    this.#state = 'closed'
  }

  on(event: TargetEvent, listener: (facts: Record<string, unknown>) => void): void {
    this.#events.on(event, listener)
  }

  /** As attempt(), in the turn of that name. */
  async attemptInTurn<T>(iqn: string, task: (link: Link) => Promise<T>): Promise<T> {
    const overtaken = Symbol('overtaken')
    for (;;) {
      // Whoever waits for a recovery must not have the turn, which the recovery needs for the name's target.
      const outcome = await this.attempt(() =>
        this.#targets.queue.run(iqn, async () =>
          this.#recovery !== undefined ? overtaken : task(this.#link(this.#pid)),
        ),
      )
      if (outcome !== overtaken) return outcome as T
    }
  }

  /** Runs `task` against the ietd of now; where that dies on the way, once more against its successor. */
  async attempt<T>(task: (link: Link) => Promise<T>): Promise<T> {
    if (this.#state === 'new') throw new StorageError('TARGET_UNAVAILABLE', 'This IET driver is not open')
    for (let again = 0; ; again++) {
      await this.#recovered()
      if (this.#state === 'closed') throw new StorageError('TARGET_UNAVAILABLE', 'This IET driver is closed')
      try {
        return await task(this.#link(this.#pid))
      } catch (error) {
        if (!(error instanceof ExchangeError)) throw error
        const {fact} = error
        if (fact.code === 'ETIMEDOUT' || fact.code === 'IET_STUCK') throw hanging(fact, {})
        if (again > 0) throw unavailable(this.#control.socketName, fact)
        // A look that is under way may have had its answer before the exchange broke.
        await this.#checking
        await this.#lookAfter()
        if (this.#isLost) throw unavailable(this.#control.socketName, fact)
      }
    }
  }

  async #recovered(): Promise<void> {
    if (!this.#recovery) return
    const timeout = AbortSignal.timeout(recoveryDeadlineMs)
    const late = new Promise(resolve => timeout.addEventListener('abort', resolve))
    await Promise.race([this.#recovery.catch(() => undefined), late])
    if (timeout.aborted) {
      throw new StorageError('TARGET_UNAVAILABLE', 'ietd has been restarted and its exports are not all back yet')
    }
  }

  #watch(): void {
    if (this.#state !== 'open') return
    this.#timer = setTimeout(
      () => void this.#lookAfter().finally(() => this.#watch()),
      this.#isLost ? pollLostMs : pollMs,
    )
    this.#timer.unref()
  }

  /** One at a time. */
  #lookAfter(): Promise<void> {
    this.#checking ??= this.#lookOnce()
      .catch(error => this.#tellLost({pid: this.#pid, message: (error as Error).message}))
      .finally(() => {
        this.#checking = undefined
      })
    return this.#checking
  }

  async #lookOnce(): Promise<void> {
    const [seen, missing] = await Promise.all([
      this.#control.exchange([[request.nothing()]], {timeoutMs: Math.min(answerMs, this.#timeoutMs)}),
      this.#targets.missing(),
    ])
    if (this.#state !== 'open') return
    const {failure, pid} = seen
    if (failure) {
      this.#tellLost({pid: this.#pid, code: failure.code, message: failure.message})
      return
    }
    if (pid !== this.#pid) return this.#recover(pid)
    if (missing.length > 0) return this.#bringBack(missing)
    this.#isLost = false
    if (performance.now() >= this.#lookAroundAt) {
      this.#lookAroundAt = performance.now() + lookAroundMs
      const rules = await this.#lookAround()
      if (rules.length > 0) this.#events.emit('mended', {rules})
    }
    this.#targets.sweep(this.#link(pid), () => this.#state === 'open')
  }

  /** Somebody has closed the control device, or deleted targets of ours, while ietd runs on. */
  async #bringBack(missing: Entry[]): Promise<void> {
    const began = performance.now()
    this.#tellLost({message: 'targets were removed by somebody else', exports: missing.map(({spec}) => spec.iqn)})
    const restored = await putInPlace(this.#targets, this.#link(this.#pid), missing)
    this.#isLost = false
    this.#tellRestarted({...restored, began})
  }

  /** Another ietd answers, and it knows nothing of ours. */
  #recover(pid: number): Promise<void> {
    this.#recovery = this.#recoverFrom(pid).finally(() => {
      this.#recovery = undefined
    })
    return this.#recovery
  }

  async #recoverFrom(pid: number): Promise<void> {
    const began = performance.now()
    const previousPid = this.#pid
    this.#tellLost({pid: previousPid, message: 'ietd has been restarted'})
    this.#pid = pid
    this.#targets.numbers.begunAnew()
    if (!this.#isRestored) return
    try {
      const link = this.#link(pid)
      await this.#setUp(link)
      const entries = [...this.#targets.entries.values()]
      const restored = await putInPlace(this.#targets, link, entries)
      this.#isLost = false
      this.#tellRestarted({pid, previousPid, ...restored, began})
    } catch (error) {
      // The next look finds this pid unknown again and starts over.
      this.#pid = 0
      throw error
    }
  }

  /** Once for each time that they go. */
  #tellLost(facts: Record<string, unknown>): void {
    if (this.#isLost) return
    this.#isLost = true
    this.#events.emit('lost', facts)
  }

  #tellRestarted({began, ...facts}: Record<string, unknown> & {began: number}): void {
    this.#events.emit('restarted', {...facts, durationMs: performance.now() - began})
  }

  #link(pid: number): Link {
    return linkTo(this.#control, {pid, timeoutMs: this.#timeoutMs})
  }
}
