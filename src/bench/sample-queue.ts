// A reader that is late now and then gets every sample; one that does not read costs no more memory than these.
const mostWaiting = 16

/** Samples on their way from a run to its one reader. What a slow reader misses is merged into the last that waits. */
export class SampleQueue<S> implements AsyncIterable<S> {
  readonly #merge: (waiting: S, next: S) => void
  readonly #waiting: S[] = []
  #ended = false
  #error: unknown
  #wake: () => void = () => {}

  constructor(merge: (waiting: S, next: S) => void) {
    this.#merge = merge
  }

  push(sample: S): void {
    if (this.#waiting.length < mostWaiting) this.#waiting.push(sample)
    else this.#merge(this.#waiting.at(-1)!, sample)
    this.#wake()
  }

  end(): void {
    this.#ended = true
    this.#wake()
  }

  fail(error: unknown): void {
    this.#error = error
    this.end()
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<S> {
    for (;;) {
      const sample = this.#waiting.shift()
      if (sample) {
        yield sample
      } else if (this.#ended) {
        if (this.#error) throw this.#error
        return
      } else {
        await new Promise<void>(resolve => {
          this.#wake = resolve
        })
      }
    }
  }
}
