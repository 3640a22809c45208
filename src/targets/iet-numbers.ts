import {nameKey} from '../iqn.js'
import {call, type IetAnswer, request} from './iet-control.js'
import {errno, errnoFact, type Link, refusal, type TargetKey} from './iet-link.js'
import type {IetSessions} from './iet-sessions.js'

/** Numbers from here on are somebody's own choice: lunpath does not count on from them. */
const largest = 0x7fffffff
/** How many numbers are asked for at once where the first one was not free. */
const perQuestion = 32
/** Where a search for a lost number looks: at the first numbers, and as far from the highest one that was seen. */
const searched = {first: 1024, beyond: 256}
/** A longer exchange would keep others from ietd. */
const perSearch = 128

/**
 * The numbers (tids) of targets. After a close of the control device the kernel has no target and counts from 1 again, while
 * ietd still lists the old ones by their numbers. A new target that were given such a number would get the sessions of the old
 * name, so the kernel's own choice is never taken: lunpath chooses, and asks ietd whether it knows the number before the
 * target is made.
 */
export class IetNumbers {
  readonly #sessions: IetSessions
  #last = 0
  /** Names, by nameKey(), that ietd lists under a number that could not be mended yet. */
  readonly #stale = new Map<string, number>()

  constructor(sessions: IetSessions) {
    this.#sessions = sessions
  }

  /** Another ietd runs, which lists nothing that the kernel has lost. */
  begunAnew(): void {
    this.#stale.clear()
  }

  /** This number is in use, or is kept for an export. */
  note(tid: number): void {
    if (tid <= largest) this.#last = Math.max(this.#last, tid)
  }

  /** The target is there, and ietd lists its name under that number. */
  made({iqn, tid}: TargetKey): void {
    this.note(tid)
    this.#stale.delete(nameKey(iqn))
  }

  /** Reserved at once: whoever asks next gets another one. */
  next(): number {
    this.#last = this.#last === largest ? 1 : this.#last + 1
    return this.#last
  }

  /** A number that is reserved for the caller, and that ietd does not know. */
  async free(link: Link): Promise<number> {
    for (let count = 1; ; count = perQuestion) {
      const tids = Array.from({length: count}, () => this.next())
      const known = await this.known(link, tids)
      const found = tids.find(tid => !known.has(tid))
      if (found !== undefined) return found
    }
  }

  /** Those of these numbers, which the kernel has not, that ietd knows, under whatever name. */
  async known(link: Link, tids: number[]): Promise<Set<number>> {
    const answers = await link.exchange(tids.map(tid => [request.isKnown(tid)]))
    return new Set(tids.filter((tid, index) => this.isKnown(tid, answers[index]![0]!)))
  }

  /** What the answer to request.isKnown() says. */
  isKnown(tid: number, {error}: IetAnswer): boolean {
    if (error === 0 || error === errno.enoent) return error === 0
    throw refusal(error, {op: 'target.export', what: 'the question', iqn: `tid ${tid}`})
  }

  /**
   * Numbers that ietd knows and the kernel has lost, and that are nobody's in `taken`, by a search that takes some tenths of a
   * second. One that another export is given meanwhile is none of them: the search reserves what it asks for.
   */
  async lost(link: Link, taken: ReadonlySet<number>): Promise<number[]> {
    const {first, beyond} = searched
    const last = this.#last
    for (let count = 0; count < beyond; count++) this.next()
    const from = (low: number, high: number) => Array.from({length: Math.max(0, high - low + 1)}, (_, at) => low + at)
    const asked = new Set([...from(1, first), ...from(Math.max(1, last - beyond), Math.min(last + beyond, largest))])
    const others = new Set(this.#stale.values())
    const open = [...asked].filter(tid => !taken.has(tid) && !others.has(tid))
    const lost: number[] = []
    for (let at = 0; at < open.length; at += perSearch) {
      lost.push(...(await this.known(link, open.slice(at, at + perSearch))))
    }
    return lost
  }

  /** The number under which ietd lists that name although the kernel does not have it, as far as that is known; else 0. */
  staleNumber(iqn: string): number {
    return this.#stale.get(nameKey(iqn)) ?? 0
  }

  /**
   * Makes ietd give up a number that it knows and the kernel has lost: it does so only once the kernel has it again. Behind a
   * rule that lets nobody in. Gives the reason where that cannot be.
   */
  async mend(link: Link, {iqn, tid}: TargetKey): Promise<{why: string; cause?: Error} | undefined> {
    for (;;) {
      const [[added] = []] = await link.call([[call.addTarget(tid, iqn)]])
      const reason = this.mended({iqn, tid}, added!.error)
      if (reason) return reason
      // The device may have been closed once more between the two.
      if (await this.deleteEmpty(link, {iqn, tid})) break
    }
    this.#stale.delete(nameKey(iqn))
    return undefined
  }

  /** What an answer to call.addTarget() says; a name that could not be mended is remembered. */
  mended({iqn, tid}: TargetKey, error: number): {why: string; cause?: Error} | undefined {
    if (error === 0) return undefined
    this.#stale.set(nameKey(iqn), tid)
    if (error === errno.enosys) return {why: 'the control device cannot be had to mend that'}
    return {why: `another target has its number ${tid}`, cause: errnoFact(error)}
  }

  /**
   * Ends a target without a unit that the kernel was given again; whoever has logged in meanwhile, maybe by another name, goes.
   * False where the kernel has lost it again.
   */
  async deleteEmpty(link: Link, {iqn, tid}: TargetKey): Promise<boolean> {
    for (;;) {
      const [[deleted] = []] = await link.exchange([[request.deleteTarget(tid)]])
      if (deleted!.error === 0 || deleted!.error === errno.enoent) return deleted!.error === 0
      if (deleted!.error !== errno.ebusy)
        throw refusal(deleted!.error, {op: 'target.export', what: 'the removal of what it had lost', iqn})
      await this.#sessions.endAll(link, {iqn, tid})
    }
  }
}
