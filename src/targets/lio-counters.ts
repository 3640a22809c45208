import type {LunCounters} from './driver.js'

/** What configfs says of one initiator's rule, or of all sessions without a rule together, at one moment. */
export interface LioReading {
  iqn: string
  lun: number
  initiator: string
  /** The session that LIO shows; undefined where nobody is logged in. */
  sid: string | undefined
  /** Exact, of that session since its login; undefined where LIO has no such figure. */
  sessionReadBytes: number | undefined
  sessionWrittenBytes: number | undefined
  /** Of all sessions since the rule was made; whole megabytes. */
  readMebibytes: number
  writtenMebibytes: number
}

interface Account {
  iqn: string
  readBytes: Tally
  writtenBytes: Tally
  rows: Map<string, LunCounters>
  latest: string | undefined
  /** Periods without an own number of a session. */
  periods: number
}

const mebibyte = 2 ** 20

/**
 * Counters per session, from what LIO has: exact bytes of the session that it shows, which may lack some (data that come
 * with the command itself are not in rxdata_octs: drivers/target/iscsi/iscsi_target.c), and whole megabytes of all
 * sessions of a rule, which lack nothing that is behind the last whole one. Each is a lower bound, so the larger is the
 * better one. What comes is put down to the session that is shown.
 */
export class LioCounters {
  readonly #accounts = new Map<string, Account>()

  /** Takes one reading of each rule; gives a row for each session that was shown since the rule's first login. */
  add(readings: LioReading[]): LunCounters[] {
    return readings.flatMap(reading => this.#rows(reading))
  }

  /** The target was made anew, or is gone: LIO counts from zero. */
  forget(iqn: string): void {
    for (const [key, account] of this.#accounts) if (account.iqn === iqn) this.#accounts.delete(key)
  }

  #rows(reading: LioReading): LunCounters[] {
    const key = `${reading.iqn} ${reading.initiator}`
    const account: Account = this.#accounts.get(key) ?? {
      iqn: reading.iqn,
      readBytes: new Tally(),
      writtenBytes: new Tally(),
      rows: new Map(),
      latest: undefined,
      periods: 0,
    }
    this.#accounts.set(key, account)
    const sid = reading.sid === '' ? (account.latest ?? `period-${++account.periods}`) : reading.sid
    const readBytes = account.readBytes.add(sid, reading.sessionReadBytes, reading.readMebibytes)
    const writtenBytes = account.writtenBytes.add(sid, reading.sessionWrittenBytes, reading.writtenMebibytes)
    const shown = sid ?? account.latest
    if (shown === undefined) return []
    const row = account.rows.get(shown) ?? newRow(reading, shown)
    row.readBytes += readBytes
    row.writtenBytes += writtenBytes
    account.rows.set(shown, row)
    account.latest = sid
    const rows = [...account.rows.values()].map(each => ({...each}))
    // The last time that they are given: nobody is logged in any more.
    if (sid === undefined) account.rows.clear()
    return rows
  }
}

/** Bytes of one direction, by both of LIO's figures. */
class Tally {
  #exact = 0
  #given = 0
  #base: number | undefined
  readonly #sessions = new Map<string, number>()

  /** What has come since the last reading. */
  add(sid: string | undefined, sessionBytes: number | undefined, mebibytes: number): number {
    if (sid === undefined) this.#sessions.clear()
    if (sid !== undefined && sessionBytes !== undefined) {
      this.#exact += Math.max(0, sessionBytes - (this.#sessions.get(sid) ?? 0))
      this.#sessions.set(sid, sessionBytes)
    }
    // At the first reading it is not known what of the whole megabytes was before: none where there are none, else the
    // last of them may have been begun by then.
    this.#base ??= mebibytes === 0 ? 0 : (mebibytes + 1) * mebibyte - this.#exact
    const total = Math.max(this.#exact, mebibytes * mebibyte - this.#base)
    const come = Math.max(0, total - this.#given)
    this.#given += come
    return come
  }
}

function newRow({iqn, lun, initiator}: LioReading, sid: string): LunCounters {
  return {
    iqn,
    lun,
    sid,
    initiator,
    readBytes: 0,
    writtenBytes: 0,
    readCommands: null,
    writeCommands: null,
    errors: null,
  }
}
