/** Runs tasks one after the other per key; tasks with other keys run at once. Nothing is kept for an idle key. */
export class KeyedQueue {
  readonly #tails = new Map<string, Promise<unknown>>()

  /** Runs `task` after all earlier ones with this key have settled. */
  async run<T>(key: string, task: () => Promise<T>): Promise<T> {
    const previous = this.#tails.get(key) ?? Promise.resolve()
    const current = previous.then(task, task)
    this.#tails.set(key, current)
    try {
      return await current
    } finally {
      if (this.#tails.get(key) === current) this.#tails.delete(key)
    }
  }

  /** Runs `task` once it has the turn of all these keys, which it has till its end. */
  async runAll<T>(keys: readonly string[], task: () => Promise<T>): Promise<T> {
    // All turns are asked for at one moment, so that two who want the same keys cannot wait for each other.
    const previous = Promise.allSettled(keys.map(key => this.#tails.get(key)))
    const current = previous.then(task)
    for (const key of keys) this.#tails.set(key, current)
    try {
      return await current
    } finally {
      for (const key of keys) if (this.#tails.get(key) === current) this.#tails.delete(key)
    }
  }

  /** True while no task runs or waits. */
  get idle(): boolean {
    return this.#tails.size === 0
  }

  /** True while a task with this key runs or waits. */
  busy(key: string): boolean {
    return this.#tails.has(key)
  }
}
