interface Waiting<Item> {
  item: Item
  settle: (failure: unknown) => void
}

/** Runs a batch; returns the failures of those items that failed. What it throws is the failure of all. */
export type RunBatch<Item> = (items: readonly Item[]) => Promise<ReadonlyMap<Item, unknown>>

/**
 * Group commit: items that are added while a batch runs make up the next batch together, and so do those that are added in
 * one turn of the event loop.
 */
export class Batches<Item> {
  readonly #run: RunBatch<Item>
  readonly #atMost: number
  #waiting: Waiting<Item>[] = []
  #running = false

  constructor(run: RunBatch<Item>, {atMost}: {atMost: number}) {
    this.#run = run
    this.#atMost = atMost
  }

  /** Settles with the item's own outcome. */
  add(item: Item): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({item, settle: failure => (failure === undefined ? resolve() : reject(failure))})
      if (!this.#running) void this.#runAll()
    })
  }

  async #runAll(): Promise<void> {
    this.#running = true
    await new Promise(resolve => setImmediate(resolve))
    while (this.#waiting.length > 0) {
      const batch = this.#waiting.splice(0, this.#atMost)
      const items = batch.map(({item}) => item)
      const failures = await this.#run(items).catch(error => new Map(items.map(item => [item, error])))
      for (const {item, settle} of batch) settle(failures.get(item))
    }
    this.#running = false
  }
}
