import {StorageError} from '../errors.js'
import type {BenchJob} from './job.js'
import type {BenchResult} from './result.js'
import {type BenchRun, type StartOptions, start} from './run.js'

/** One run of several. */
export interface Round {
  /** From 1. */
  number: number
  /** How many there are at most. */
  of: number
  /** `iodepth=8`, `round 3`. */
  label: string
}

export interface RoundOptions extends StartOptions {
  /** Called when a round begins. */
  onRun?: (run: BenchRun, round: Round) => void
}

/** How several runs of a report ended. */
export interface Ending {
  /** `finished`; `cancelled`, also between two rounds; else why the last round did not finish, `failed` where that did not even begin. */
  state: BenchResult['state']
  /** Of a round that measured nothing; the rounds before it are in the report. Null where every round that was begun measured. */
  error: {round: string; code: string; message: string} | null
}

/** The rounds of a report, one after the other. */
export class Rounds {
  readonly results: BenchResult[] = []
  #error: Ending['error'] = null
  readonly #options: RoundOptions

  constructor(options: RoundOptions) {
    this.#options = options
  }

  /**
   * Measures one more. Undefined where nothing was measured: then the report ends with what there is, since hours may be in it.
   * @throws StorageError as start(), of the first round: there is nothing to be kept
   */
  async next(job: BenchJob, round: Round): Promise<BenchResult | undefined> {
    const {onRun, ...options} = this.#options
    try {
      const run = start(job, options)
      onRun?.(run, round)
      const result = await run.result
      this.results.push(result)
      return result
    } catch (error) {
      if (this.results.length === 0 || !(error instanceof StorageError)) throw error
      this.#error = {round: round.label, code: error.code, message: error.message}
      return undefined
    }
  }

  get ending(): Ending {
    const error = this.#error
    if (error) return {state: error.code === 'CANCELLED' ? 'cancelled' : 'failed', error}
    return {state: this.results.at(-1)!.state, error}
  }
}
