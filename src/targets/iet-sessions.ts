import {setTimeout as sleep} from 'node:timers/promises'
import {StorageError} from '../errors.js'
import {request} from './iet-control.js'
import {errno, type Link, refusal, type TargetKey} from './iet-link.js'
import type {IetListings} from './iet-listings.js'
import type {IetSession} from './iet-procfs.js'

const forceDeadlineMs = 10_000
/** An initiator's logout is answered before its session has gone. */
const logoutMs = 500
const waitMs = 20

/** What an operation is for which nobody may be logged in, and how that is brought about. */
export interface Doing {
  doing: string
  remedy: string
}

/** Sessions of targets. */
export class IetSessions {
  readonly #listings: IetListings

  constructor(listings: IetListings) {
    this.#listings = listings
  }

  async of(target: TargetKey): Promise<IetSession[]> {
    return (await this.#listings.findSessions(target))?.sessions ?? []
  }

  /** Sessions that are on their way out are waited for. @throws TARGET_IN_USE */
  async refuse(target: TargetKey, {doing, remedy}: Doing, {leaving = false} = {}): Promise<void> {
    const deadline = performance.now() + (leaving ? logoutMs : 0)
    let found = await this.of(target)
    while (found.length > 0 && performance.now() < deadline) {
      await sleep(waitMs)
      found = await this.of(target)
    }
    if (found.length > 0) throw inUse(target.iqn, found, {doing, remedy})
  }

  /**
   * Over ietd's socket, and with a deadline: the same by ioctl can hang beyond a SIGKILL of this process.
   * @throws TIMEOUT
   */
  async endAll(link: Link, target: TargetKey): Promise<void> {
    const deadline = performance.now() + forceDeadlineMs
    for (;;) {
      const sessions = await this.of(target)
      if (sessions.length === 0) return
      await this.end(link, target, sessions, deadline)
    }
  }

  async end(
    link: Link,
    target: TargetKey,
    sessions: IetSession[],
    deadline = performance.now() + forceDeadlineMs,
  ): Promise<void> {
    const answers = await link.exchange(sessions.map(({sid}) => [request.deleteSession(target.tid, sid)]))
    const failed = answers.map(([answer]) => answer!.error).find(error => error !== 0 && error !== errno.enoent)
    if (failed !== undefined)
      throw refusal(failed, {op: 'target.session', what: 'the end of a session', iqn: target.iqn})
    const ended = new Set(sessions.map(({sid}) => sid))
    while ((await this.of(target)).some(({sid}) => ended.has(sid))) {
      if (performance.now() > deadline) {
        throw new StorageError('TIMEOUT', `A session of ${target.iqn} does not end: its I/O hangs`, {
          op: 'target.session',
          info: {iqn: target.iqn, state: 'stuck'},
        })
      }
      await sleep(waitMs)
    }
  }
}

export function inUse(iqn: string, sessions: IetSession[], {doing, remedy}: Doing): StorageError {
  const count = sessions.length === 1 ? 'one session is' : `${sessions.length || 'some'} sessions are`
  return new StorageError('TARGET_IN_USE', `Cannot ${doing} ${iqn}: ${count} logged in; ${remedy}`, {
    op: `target.${doing}`,
    info: {iqn, initiators: sessions.map(({initiator}) => initiator)},
  })
}
