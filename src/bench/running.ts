import {EventEmitter} from 'node:events'
import type {BenchRun} from './run.js'
import type {BenchSample} from './sample.js'

/** A benchmark that is on. */
export interface RunningBench {
  /** Counts from 1 since the process began. */
  number: number
  name: string
  startedAt: string
  /** Of a sweep or of rounds: `iodepth=8`. Empty for a single run. */
  step: string
  /** The last one; null before the first. */
  sample: BenchSample | null
}

interface Events {
  sample: [RunningBench]
  end: [Pick<RunningBench, 'number' | 'name'>]
}

/** The benchmarks that are on, for whoever looks on: metrics and the API's event stream. */
export class RunningBenches extends EventEmitter<Events> {
  readonly #running = new Map<number, RunningBench>()
  #lastNumber = 0
  /** Runs that have ended, by state; a run that measured nothing is `refused`. */
  readonly ended = new Map<string, number>()

  constructor() {
    super()
    // One listener for each client that looks on.
    this.setMaxListeners(0)
  }

  list(): RunningBench[] {
    return [...this.#running.values()]
  }

  /** Shows a run until it ends, and gives each sample on to `onSample`. Resolves at its end; never rejects. */
  async watch(
    run: BenchRun,
    {name, step}: {name: string; step: string},
    onSample: (sample: BenchSample) => void,
  ): Promise<void> {
    const number = ++this.#lastNumber
    const bench: RunningBench = {number, name, startedAt: new Date().toISOString(), step, sample: null}
    this.#running.set(number, bench)
    try {
      for await (const sample of run.samples) {
        bench.sample = sample
        onSample(sample)
        this.emit('sample', bench)
      }
      this.#tally((await run.result).state)
    } catch {
      // Who awaits the result learns why.
      this.#tally('refused')
    } finally {
      this.#running.delete(number)
      this.emit('end', {number, name})
    }
  }

  #tally(state: string): void {
    this.ended.set(state, (this.ended.get(state) ?? 0) + 1)
  }
}
