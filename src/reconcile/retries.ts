import type {Problem} from './plan.js'

interface Tried {
  nextAt: number
  pauseMs: number
  wasThere: boolean
  problem: Problem
}

const first = {restore: 3_000, connect: 15_000}
const longestMs = 60_000

/**
 * What could not be put back, and when it is tried again: after pauses that grow to a minute, or at once when what was missing
 * is there.
 */
export class Retries {
  readonly #tried = new Map<string, Tried>()

  /** Undefined where it is time to try; else what the last attempt has said. */
  waiting(key: string, isThere: boolean): Problem | undefined {
    const tried = this.#tried.get(key)
    if (!tried) return undefined
    const hasCome = isThere && !tried.wasThere
    tried.wasThere = isThere
    return hasCome || performance.now() >= tried.nextAt ? undefined : tried.problem
  }

  failed(key: string, {kind, isThere, problem}: {kind: keyof typeof first; isThere: boolean; problem: Problem}): void {
    const pauseMs = Math.min(longestMs, (this.#tried.get(key)?.pauseMs ?? first[kind] / 2) * 2)
    this.#tried.set(key, {nextAt: performance.now() + pauseMs, pauseMs, wasThere: isThere, problem})
  }

  /** An occasion, or a success, ends the pause. */
  forget(key?: string): void {
    if (key === undefined) this.#tried.clear()
    else this.#tried.delete(key)
  }
}
