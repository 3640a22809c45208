import {readFile} from 'node:fs/promises'
import type {KeyedQueue} from '../lock.js'
import type {ExportSpec} from '../types.js'
import {firstLun} from './driver.js'
import {request, TgtError, type TgtReply, type TgtRequest} from './tgt-control.js'
import type {ShownTarget} from './tgt-show.js'
import {ruleTexts} from './tgt-spec.js'

/** An export that is wanted. Without a tid it is not in tgtd: it could not be put back. */
export interface Entry {
  spec: ExportSpec
  tid: number | undefined
}

/** What another tool has taken out of a tgtd that runs on. */
export interface Losses {
  /** The target is gone, or its LUN. */
  gone: Entry[]
  /** The target is there, and a rule is gone: `rules` has those to be bound. */
  unbound: {entry: Entry; rules: string[]}[]
}

/** How the driver reaches the tgtd that runs. */
type Run = (sequences: TgtRequest[][]) => Promise<TgtReply[][]>

// A look a second at these takes some 2 ms of processor time, in tgtd and here.
const perLook = 20
const perExchange = 100
/** Looks at all exports may take this part of the time. */
const shareOfTime = 1 / 100

/**
 * Finds out whether another tool has changed what lunpath has made in tgtd. A listing of all targets would hold up tgtd's
 * I/O for as long as it takes (86 ms for 2,000 targets), so there are three cheaper looks: each time at a few exports, one
 * after the other; at all of them when tgtd's number of threads says that a LUN has gone; and at every listing that
 * somebody has asked for anyway.
 */
export class TgtAudit {
  readonly #entries: ReadonlyMap<string, Entry>
  readonly #queue: KeyedQueue
  /** Bind the rules anew at each look. Only where no target of others can have got the number of one of ours. */
  readonly #bindsRules: boolean
  #names: IterableIterator<string>
  #threads: {pid: number; perLun: number; others: number} | undefined
  #isSuspicious = false
  #allAgainAt = 0

  constructor(entries: ReadonlyMap<string, Entry>, queue: KeyedQueue, {bindsRules}: {bindsRules: boolean}) {
    this.#entries = entries
    this.#queue = queue
    this.#bindsRules = bindsRules
    this.#names = entries.keys()
  }

  /** Looks at some exports, or at all where there is reason to. */
  async look(run: Run, pid: number): Promise<Losses> {
    if (await this.#lunsHaveGone(pid)) this.#isSuspicious = true
    const began = performance.now()
    if (!this.#isSuspicious || began < this.#allAgainAt) return this.#probe(run, this.#next(perLook))
    this.#isSuspicious = false
    const losses: Losses = {gone: [], unbound: []}
    const all = [...this.#entries.values()]
    for (let from = 0; from < all.length; from += perExchange) {
      const {gone, unbound} = await this.#probe(run, all.slice(from, from + perExchange))
      losses.gone.push(...gone)
      losses.unbound.push(...unbound)
    }
    const ended = performance.now()
    this.#allAgainAt = ended + (ended - began) / shareOfTime
    return losses
  }

  /** Exports that nobody is at work on, as they are before a listing is asked for: compare() takes them. */
  settled(): Map<Entry, ExportSpec> {
    return new Map(
      [...this.#entries.values()].filter(entry => this.#isSettled(entry)).map(entry => [entry, entry.spec]),
    )
  }

  /** What a listing lacks of the exports that were settled before it and are so still. */
  compare(before: Map<Entry, ExportSpec>, targets: ShownTarget[]): Losses {
    const losses: Losses = {gone: [], unbound: []}
    const shown = new Map(targets.map(target => [target.iqn, target]))
    for (const [entry, spec] of before) {
      if (!this.#isSettled(entry) || entry.spec !== spec) continue
      const target = shown.get(spec.iqn)
      const hasLun = target?.luns.some(({lun, path}) => lun === firstLun && path === spec.volume.path)
      if (!target || target.tid !== entry.tid || !hasLun) {
        losses.gone.push(entry)
        continue
      }
      const bound = [...target.access.addresses, ...target.access.names]
      const rules = ruleTexts(spec).filter(rule => !bound.includes(rule))
      if (rules.length > 0) losses.unbound.push({entry, rules})
    }
    return losses
  }

  #isSettled({spec, tid}: Entry): boolean {
    return tid !== undefined && !this.#queue.busy(spec.iqn)
  }

  /** The next exports in turn. */
  #next(count: number): Entry[] {
    const entries: Entry[] = []
    for (let left = Math.min(count, this.#entries.size); left > 0; left--) {
      let next = this.#names.next()
      if (next.done) {
        this.#names = this.#entries.keys()
        next = this.#names.next()
      }
      const entry = this.#entries.get(next.value as string)
      if (entry) entries.push(entry)
    }
    return entries
  }

  /** Requests of one exchange are answered in a row, so an operation that begins meanwhile comes before or after it. */
  async #probe(run: Run, entries: Entry[]): Promise<Losses> {
    const settled = entries.filter(entry => this.#isSettled(entry))
    const rulesOf = (entry: Entry) => (this.#bindsRules ? ruleTexts(entry.spec) : [])
    const replies = await run(
      settled.flatMap(entry => [
        [request.lunStatistics(entry.tid!, firstLun)],
        ...rulesOf(entry).map(rule => [request.bind(entry.tid!, rule)]),
      ]),
    )
    const losses: Losses = {gone: [], unbound: []}
    let at = 0
    for (const entry of settled) {
      const {error} = replies[at++]![0]!
      const bound = rulesOf(entry).filter(() => replies[at++]![0]!.error === TgtError.success)
      if (this.#entries.get(entry.spec.iqn) !== entry || !this.#isSettled(entry)) continue
      if (error === TgtError.noTarget || error === TgtError.noLun) losses.gone.push(entry)
      else if (bound.length > 0) losses.unbound.push({entry, rules: []})
    }
    return losses
  }

  /**
   * tgtd has some threads for each LUN (usr/bs.c, bs_thread_open), so their number falls when one goes. Those of ours are
   * known and left out, and while an operation is at work nobody can say whose they are.
   */
  async #lunsHaveGone(pid: number): Promise<boolean> {
    const found = this.#queue.idle ? await threadsOf(pid) : undefined
    if (found === undefined || !this.#queue.idle) return false
    const perLun = this.#threads?.pid === pid ? this.#threads.perLun : await threadsPerLun(pid)
    let ours = 0
    for (const {tid} of this.#entries.values()) if (tid !== undefined) ours++
    const others = found - perLun * ours
    const before = this.#threads?.pid === pid ? this.#threads.others : others
    this.#threads = {pid, perLun, others}
    return others < before
  }
}

/** proc(5). Undefined where it cannot be read. */
async function threadsOf(pid: number): Promise<number | undefined> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '')
  const count = /^Threads:\s+(\d+)$/m.exec(status)?.[1]
  return count === undefined ? undefined : Number(count)
}

/** tgtd(8), `--nr_iothreads`: 16 where it is not given. */
async function threadsPerLun(pid: number): Promise<number> {
  const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
  return Number(/\0(?:-t\0?|--nr_iothreads[=\0])(\d+)(?:\0|$)/.exec(command)?.[1] ?? 16)
}
