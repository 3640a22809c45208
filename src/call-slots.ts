interface Waiting {
  key: string
  begin: () => void
}

/**
 * Calls into an addon that may hang, no more of them at once than the addon has threads. So a call waits here, where its
 * caller can still take it back, and never in the addon's own queue, where it would begin after its caller has given up.
 * Calls begin in the order in which they came, except that a key whose calls hang holds back no other key.
 */
export class CallSlots {
  readonly #total: number
  readonly #perKey: number
  readonly #busy = new Map<string, number>()
  readonly #waiting = new Set<Waiting>()
  readonly #idle: (() => void)[] = []
  #running = 0

  constructor({total, perKey = total}: {total: number; perKey?: number}) {
    this.#total = total
    this.#perKey = perKey
  }

  /** Begins `call` when a slot is free; rejects with the signal's reason, and never begins, if that is aborted before. */
  async run<T>(key: string, signal: AbortSignal, call: () => Promise<T>): Promise<T> {
    signal.throwIfAborted()
    if (this.#isFree(key)) this.#take(key)
    else await this.#turn(key, signal)
    try {
      signal.throwIfAborted()
      return await call()
    } finally {
      this.#give(key)
    }
  }

  /** Settles when no call runs or waits. */
  async idle(): Promise<void> {
    if (this.#running > 0) await new Promise<void>(resolve => this.#idle.push(resolve))
  }

  /** Waits until a slot has been taken for this call. */
  #turn(key: string, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const giveUp = () => {
        this.#waiting.delete(waiting)
        reject(signal.reason)
      }
      const waiting: Waiting = {
        key,
        begin: () => {
          signal.removeEventListener('abort', giveUp)
          resolve()
        },
      }
      signal.addEventListener('abort', giveUp, {once: true})
      this.#waiting.add(waiting)
    })
  }

  #isFree(key: string): boolean {
    return this.#running < this.#total && (this.#busy.get(key) ?? 0) < this.#perKey
  }

  #take(key: string): void {
    this.#running++
    this.#busy.set(key, (this.#busy.get(key) ?? 0) + 1)
  }

  #give(key: string): void {
    this.#running--
    const left = this.#busy.get(key)! - 1
    if (left === 0) this.#busy.delete(key)
    else this.#busy.set(key, left)
    for (const waiting of this.#waiting) {
      if (this.#running >= this.#total) return
      if (!this.#isFree(waiting.key)) continue
      this.#waiting.delete(waiting)
      this.#take(waiting.key)
      waiting.begin()
    }
    if (this.#running === 0) for (const resolve of this.#idle.splice(0)) resolve()
  }
}
