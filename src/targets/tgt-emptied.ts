import {setTimeout as sleep} from 'node:timers/promises'

export interface EmptiedOptions {
  /** Removes one; false where tgtd does not let go of it yet. `inUse`: some target of this tgtd has a session. */
  remove(iqn: string, tid: number): Promise<{gone: boolean; inUse: boolean}>
  /** Milliseconds since tgtd was last asked for anything else. */
  quietMs(): number
}

/** A burst of requests has no such pauses. */
const quietLongEnoughMs = 200
/** While guests do I/O, removals take this share of tgtd's time. */
const shareInUse = 0.1
const retryMs = 1_000
/** This many new targets may stand beside those that wait for their removal; each further one has to make room first. */
const mostBeside = 512
/** Below this number of targets a removal takes less than anybody notices. */
const worthwhileFrom = 512

/**
 * Targets without rule, session and LUN: nobody can log in, no initiator is told of them, and they lead nowhere. tgtd 1.0.85
 * needs a time for the removal of a target that grows with the square of their number, since it looks up the name of each by
 * a walk through all (usr/iscsi/isns.c, isns_target_deregister): 10 ms at 2,000 targets, in which it moves no guest's data
 * either. So they are removed when nobody waits for tgtd.
 */
export class EmptiedTargets {
  readonly #options: EmptiedOptions
  readonly #tids = new Map<string, number>()
  readonly #closing = new AbortController()
  #isDraining = false
  /** Targets made since one began to wait. */
  #madeMeanwhile = 0

  constructor(options: EmptiedOptions) {
    this.#options = options
  }

  /** Whether one of `targets` is better removed later. */
  isWorthwhile(targets: number): boolean {
    return targets + this.#tids.size >= worthwhileFrom
  }

  has(iqn: string): boolean {
    return this.#tids.has(iqn)
  }

  add(iqn: string, tid: number): void {
    this.#tids.set(iqn, tid)
    if (!this.#isDraining) void this.#drain()
  }

  /**
   * The number of one that must go before a target of this name is made: of the same name, or the oldest if so many have been
   * made that a burst without an end would make all removals slower. It is not here any more.
   */
  take(iqn: string): number | undefined {
    const [oldest] = this.#tids.keys()
    if (oldest === undefined) return undefined
    const key = this.#tids.has(iqn) ? iqn : oldest
    if (key !== iqn && ++this.#madeMeanwhile <= mostBeside) return undefined
    const tid = this.#tids.get(key)
    this.#tids.delete(key)
    return tid
  }

  /** For a tgtd that has forgotten all. */
  clear(): void {
    this.#tids.clear()
  }

  close(): void {
    this.#closing.abort()
    this.#tids.clear()
  }

  async #drain(): Promise<void> {
    this.#isDraining = true
    let pauseMs = quietLongEnoughMs
    for (;;) {
      await sleep(pauseMs, undefined, {ref: false, signal: this.#closing.signal}).catch(() => undefined)
      const [next] = this.#tids
      if (!next) break
      const missingMs = quietLongEnoughMs - this.#options.quietMs()
      pauseMs = missingMs > 0 ? missingMs : await this.#removeOne(...next)
    }
    this.#isDraining = false
    this.#madeMeanwhile = 0
  }

  /** Gives the milliseconds until the next one. */
  async #removeOne(iqn: string, tid: number): Promise<number> {
    const began = performance.now()
    const {gone, inUse} = await this.#options.remove(iqn, tid).catch(() => ({gone: false, inUse: true}))
    const tookMs = performance.now() - began
    if (gone) {
      if (this.#tids.get(iqn) === tid) this.#tids.delete(iqn)
      return inUse ? tookMs / shareInUse : 0
    }
    // The others are not to wait for it.
    if (this.#tids.delete(iqn)) this.#tids.set(iqn, tid)
    return retryMs
  }
}
