import {Counter, Gauge, type Registry} from 'prom-client'
import type {LunCounters, TargetDriver} from '../targets/driver.js'
import type {ObservedTarget} from '../types.js'
import type {Collector} from './registry.js'

/**
 * Counters per LUN and session that do not fall when a session ends. The target daemon counts per session and forgets
 * at logout, so each reading adds what has come since the last one.
 */
export class TargetTotals {
  readonly #last = new Map<string, LunCounters>()
  readonly #luns = new Map<string, LunTotals>()
  readonly #sessions = new Map<string, SessionTotals>()

  /** Takes one reading of all counters. */
  add(readings: LunCounters[]): void {
    const seen = new Set<string>()
    for (const reading of readings) {
      const key = `${reading.iqn} ${reading.lun} ${reading.sid}`
      seen.add(key)
      const last = this.#last.get(key)
      // A count that fell belongs to a new session with a number that was used before.
      const fresh = !last || reading.readBytes < last.readBytes || reading.writtenBytes < last.writtenBytes
      this.#count(reading, fresh ? zero : last)
      this.#last.set(key, reading)
    }
    for (const key of this.#last.keys()) if (!seen.has(key)) this.#last.delete(key)
  }

  #count(reading: LunCounters, last: Counts): void {
    const {iqn, lun, initiator} = reading
    const totals = getOrMake(this.#luns, `${iqn} ${lun}`, () => ({iqn, lun, ...zero}))
    totals.readBytes += reading.readBytes - last.readBytes
    totals.writtenBytes += reading.writtenBytes - last.writtenBytes
    totals.readCommands += wrapped(reading.readCommands - last.readCommands)
    totals.writeCommands += wrapped(reading.writeCommands - last.writeCommands)
    totals.errors += wrapped(reading.errors - last.errors)
    const session = getOrMake(this.#sessions, `${iqn} ${initiator}`, () => ({
      iqn,
      initiator,
      sentBytes: 0,
      receivedBytes: 0,
    }))
    session.sentBytes += reading.readBytes - last.readBytes
    session.receivedBytes += reading.writtenBytes - last.writtenBytes
  }

  /** Forgets a target that is no longer exported. */
  forget(iqn: string): void {
    for (const map of [this.#luns, this.#sessions, this.#last] as Map<string, unknown>[]) {
      for (const key of map.keys()) if (key.startsWith(`${iqn} `)) map.delete(key)
    }
  }

  luns(): Iterable<LunTotals> {
    return this.#luns.values()
  }
  sessions(): Iterable<SessionTotals> {
    return this.#sessions.values()
  }
}

interface Counts {
  readBytes: number
  writtenBytes: number
  readCommands: number
  writeCommands: number
  errors: number
}
interface LunTotals extends Counts {
  iqn: string
  lun: number
}
interface SessionTotals {
  iqn: string
  initiator: string
  sentBytes: number
  receivedBytes: number
}

const zero: Counts = {readBytes: 0, writtenBytes: 0, readCommands: 0, writeCommands: 0, errors: 0}

/** tgtd's command counters are 32 bits wide and wrap. */
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

/** The target room's part of /metrics. */
export interface TargetCollector extends Collector {
  /** Reads the counters alone, between scrapes: they are lost when a session ends between two readings. */
  sample(): Promise<void>
  /** Forgets the totals of a target that is no longer exported. */
  forget(iqn: string): void
}

/**
 * Registers the families of targets, sessions and LUNs. Bytes are named from the target's side: what an initiator reads
 * is sent.
 */
export function registerTargetMetrics(
  registry: Registry,
  targets: TargetDriver,
  ours: (iqn: string) => boolean,
): TargetCollector {
  const totals = new TargetTotals()
  const registers = [registry]
  const gauge = (name: string, help: string, labelNames: string[] = []) =>
    new Gauge({name, help, labelNames: ['target', ...labelNames], registers})
  const counter = (name: string, help: string, labelNames: string[] = []) =>
    new Counter({name, help, labelNames: ['target', ...labelNames], registers})

  const info = gauge('iscsi_target_info', 'A target that is offered; always 1.', ['driver', 'tid'])
  const enabled = gauge('iscsi_target_enabled', '1 where initiators can reach a disk of the target.')
  const sessionCount = gauge('iscsi_target_sessions', 'Sessions that are logged in to the target.')
  const lunInfo = gauge('iscsi_lun_info', 'A disk of a target; always 1.', [
    'lun',
    'device',
    'path',
    'backstore',
    'mode',
  ])
  const lunSize = gauge('iscsi_lun_size_bytes', 'Size of the disk in bytes.', ['lun'])
  const sessionInfo = gauge('iscsi_session_info', 'A session; always 1.', ['initiator', 'sid', 'address', 'state'])
  const connections = gauge('iscsi_session_connections', 'Connections of the sessions of an initiator.', ['initiator'])
  const sent = counter('iscsi_target_sent_bytes_total', 'Bytes that initiators have read from the target.')
  const received = counter('iscsi_target_received_bytes_total', 'Bytes that initiators have written to the target.')
  const sessionSent = counter('iscsi_session_sent_bytes_total', 'Bytes that the initiator has read.', ['initiator'])
  const sessionReceived = counter('iscsi_session_received_bytes_total', 'Bytes that the initiator has written.', [
    'initiator',
  ])
  const readBytes = counter('iscsi_lun_read_bytes_total', 'Bytes read from the disk.', ['lun'])
  const writtenBytes = counter('iscsi_lun_written_bytes_total', 'Bytes written to the disk.', ['lun'])
  const reads = counter('iscsi_lun_reads_completed_total', 'Read commands that the disk has completed.', ['lun'])
  const writes = counter('iscsi_lun_writes_completed_total', 'Write commands that the disk has completed.', ['lun'])
  const errors = counter('iscsi_lun_errors_total', 'Commands that the disk has failed.', ['lun'])
  const families = [info, enabled, sessionCount, lunInfo, lunSize, sessionInfo, connections]
  const counters = [sent, received, sessionSent, sessionReceived, readBytes, writtenBytes, reads, writes, errors]

  const describe = (found: ObservedTarget[]) => {
    for (const family of families) family.reset()
    for (const {iqn, tid, luns, sessions} of found) {
      info.set({target: iqn, driver: targets.name, tid}, 1)
      sessionCount.set({target: iqn}, sessions.length)
      enabled.set({target: iqn}, luns.some(({online}) => online) ? 1 : 0)
      for (const {lun, path, sizeBytes, readOnly} of luns) {
        lunInfo.set(
          {target: iqn, lun, device: path.split('/').at(-1)!, path, backstore: 'rdwr', mode: readOnly ? 'ro' : 'rw'},
          1,
        )
        lunSize.set({target: iqn, lun}, sizeBytes)
      }
      for (const {initiator, sid, connections: open} of sessions) {
        sessionInfo.set({target: iqn, initiator, sid, address: open[0]?.address ?? '', state: open[0]?.state ?? ''}, 1)
        connections.inc({target: iqn, initiator}, open.length)
      }
    }
  }
  const count = () => {
    for (const family of counters) family.reset()
    for (const {iqn, lun, ...total} of totals.luns()) {
      readBytes.inc({target: iqn, lun}, total.readBytes)
      writtenBytes.inc({target: iqn, lun}, total.writtenBytes)
      reads.inc({target: iqn, lun}, total.readCommands)
      writes.inc({target: iqn, lun}, total.writeCommands)
      errors.inc({target: iqn, lun}, total.errors)
      sent.inc({target: iqn}, total.readBytes)
      received.inc({target: iqn}, total.writtenBytes)
    }
    for (const {iqn, initiator, sentBytes, receivedBytes} of totals.sessions()) {
      sessionSent.inc({target: iqn, initiator}, sentBytes)
      sessionReceived.inc({target: iqn, initiator}, receivedBytes)
    }
  }

  const sample = async () => totals.add((await targets.counters()).filter(({iqn}) => ours(iqn)))
  return {
    name: targets.name,
    sample,
    async collect() {
      const [found] = await Promise.all([targets.list(), sample()])
      describe(found.filter(({iqn}) => ours(iqn)))
      count()
    },
    forget: iqn => totals.forget(iqn),
  }
}
