import type {LunCounters} from '../targets/driver.js'

interface Counts {
  readBytes: number
  writtenBytes: number
  /** Null where the target does not count them. */
  readCommands: number | null
  writeCommands: number | null
  errors: number | null
}

export interface LunTotals extends Counts {
  iqn: string
  lun: number
}

/** What the sessions of one initiator with one target have moved, from the target's side: what is read is sent. */
export interface SessionTotals {
  iqn: string
  initiator: string
  sentBytes: number
  receivedBytes: number
  /** Sessions that a reading has met for the first time. */
  logins: number
}

const zero: Counts = {readBytes: 0, writtenBytes: 0, readCommands: 0, writeCommands: 0, errors: 0}

/**
 * Counters per LUN and per initiator that do not fall when a session ends. The target daemon counts per session and
 * forgets at logout, so each reading adds what has come since the last one.
 */
export class TargetTotals {
  readonly #last = new Map<string, LunCounters>()
  readonly #luns = new Map<string, LunTotals>()
  readonly #sessions = new Map<string, SessionTotals>()

  /** Takes one reading of all counters. Readings must come in the order in which they were made. */
  add(readings: LunCounters[]): void {
    const sessions = new Set([...this.#last.values()].map(sessionKey))
    const seen = new Set<string>()
    for (const reading of readings) {
      // A session in the middle of its login has no name yet: the next reading takes all of it.
      if (reading.iqn === '' || reading.initiator === '') continue
      const key = `${sessionKey(reading)} ${reading.lun}`
      const last = this.#last.get(key)
      const goesOn = last !== undefined && isLater(reading, last)
      const isNewSession = last ? !goesOn : !sessions.has(sessionKey(reading))
      this.#count(reading, goesOn ? last : zero)
      if (isNewSession) this.#session(reading).logins++
      sessions.add(sessionKey(reading))
      seen.add(key)
      this.#last.set(key, reading)
    }
    for (const key of this.#last.keys()) if (!seen.has(key)) this.#last.delete(key)
  }

  /** The target daemon has started anew: it counts from zero and gives its session numbers out again. */
  restarted(): void {
    this.#last.clear()
  }

  /** Forgets the targets that are no longer wanted. */
  keep(wanted: (iqn: string) => boolean): void {
    for (const map of [this.#last, this.#luns, this.#sessions] as Map<string, {iqn: string}>[]) {
      for (const [key, {iqn}] of map) if (!wanted(iqn)) map.delete(key)
    }
  }

  luns(): Iterable<LunTotals> {
    return this.#luns.values()
  }

  sessions(): Iterable<SessionTotals> {
    return this.#sessions.values()
  }

  #count(reading: LunCounters, last: Counts): void {
    const {iqn, lun} = reading
    const readBytes = reading.readBytes - last.readBytes
    const writtenBytes = reading.writtenBytes - last.writtenBytes
    const totals = getOrMake(this.#luns, `${iqn} ${lun}`, () => ({iqn, lun, ...zero}))
    totals.readBytes += readBytes
    totals.writtenBytes += writtenBytes
    for (const key of ['readCommands', 'writeCommands', 'errors'] as const) {
      totals[key] = reading[key] === null ? null : (totals[key] ?? 0) + wrapped(reading[key] - (last[key] ?? 0))
    }
    const session = this.#session(reading)
    session.sentBytes += readBytes
    session.receivedBytes += writtenBytes
  }

  #session({iqn, initiator}: LunCounters): SessionTotals {
    const none = {iqn, initiator, sentBytes: 0, receivedBytes: 0, logins: 0}
    return getOrMake(this.#sessions, `${iqn} ${initiator}`, () => none)
  }
}

function sessionKey({iqn, sid}: LunCounters): string {
  return `${iqn} ${sid}`
}

/**
 * False where the count is that of another session with a number that was used before: bytes never fall in one session,
 * and commands, which are 32 bits wide and wrap, do so only after bytes have moved.
 */
function isLater(reading: LunCounters, last: LunCounters): boolean {
  if (reading.initiator !== last.initiator) return false
  if (reading.readBytes < last.readBytes || reading.writtenBytes < last.writtenBytes) return false
  const fell = (now: number | null, before: number | null) => (now ?? 0) < (before ?? 0)
  const readsFell = fell(reading.readCommands, last.readCommands) && reading.readBytes === last.readBytes
  const writesFell = fell(reading.writeCommands, last.writeCommands) && reading.writtenBytes === last.writtenBytes
  return !readsFell && !writesFell
}

function wrapped(difference: number): number {
  return difference < 0 ? difference + 2 ** 32 : difference
}

function getOrMake<V>(map: Map<string, V>, key: string, make: () => V): V {
  const found = map.get(key)
  if (found !== undefined) return found
  const made = make()
  map.set(key, made)
  return made
}
