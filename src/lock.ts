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

  /** True while no task runs or waits. */
  get idle(): boolean {
    return this.#tails.size === 0
  }

  /** True while a task with this key runs or waits. */
  busy(key: string): boolean {
    return this.#tails.has(key)
  }
}
