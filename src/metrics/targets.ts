import {realpath} from 'node:fs/promises'
import {basename} from 'node:path'
import type {Registry} from 'prom-client'
import {KeyedQueue} from '../lock.js'
import {Counter, Gauge} from '../packages/daemon.js'
import type {TargetDriver} from '../targets/driver.js'
import type {ObservedTarget} from '../types.js'
import type {Collector} from './registry.js'
import {TargetTotals} from './totals.js'

/** The target room's part of /metrics. */
export interface TargetCollector extends Collector {
  /** Reads the counters alone, between scrapes: they are lost when a session ends between two readings. */
  sample(): Promise<void>
  /** The target daemon has started anew, and counts from zero. */
  restarted(): void
}

/**
 * Registers the families of targets, sessions and LUNs. Bytes are named from the target's side: what an initiator reads
 * is sent. `wanted` tells the targets that are exported; what it does not want is not shown.
 */
export function registerTargetMetrics(
  registry: Registry,
  targets: TargetDriver,
  wanted: (iqn: string) => boolean,
): TargetCollector {
  const totals = new TargetTotals()
  const queue = new KeyedQueue()
  const registers = [registry]
  const gauge = (name: string, help: string, labelNames: string[] = []) =>
    new Gauge({name, help, labelNames: ['target', ...labelNames], registers})
  const counter = (name: string, help: string, labelNames: string[] = []) =>
    new Counter({name, help, labelNames: ['target', ...labelNames], registers})

  const info = gauge('iscsi_target_info', 'A target that is offered; always 1.', ['driver', 'tid'])
  const enabled = gauge('iscsi_target_enabled', '1 where the target has a disk that is online, else 0.')
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
  const logins = counter('iscsi_session_logins_total', 'Sessions of the initiator that have been seen.', ['initiator'])
  const readBytes = counter('iscsi_lun_read_bytes_total', 'Bytes read from the disk.', ['lun'])
  const writtenBytes = counter('iscsi_lun_written_bytes_total', 'Bytes written to the disk.', ['lun'])
  const reads = counter(
    'iscsi_lun_reads_completed_total',
    'Commands that the disk has answered with data, inquiries included.',
    ['lun'],
  )
  const writes = counter('iscsi_lun_writes_completed_total', 'Commands with data for the disk that it has completed.', [
    'lun',
  ])
  const errors = counter(
    'iscsi_lun_errors_total',
    'Commands that the disk has refused, the unit attention at the begin of a session included.',
    ['lun'],
  )
  const restorations = new Counter({
    name: 'lunpath_target_restorations_total',
    help: 'Times that the target had lost exports, and lunpath has put them back.',
    registers,
  })
  const observations = [info, enabled, sessionCount, lunInfo, lunSize, sessionInfo, connections]
  const counters = [
    ...[sent, received, sessionSent, sessionReceived, logins],
    ...[readBytes, writtenBytes, reads, writes, errors],
  ]

  const clear = () => {
    for (const family of observations) family.reset()
  }
  const describe = (found: ObservedTarget[], devices: Map<string, string>) => {
    clear()
    for (const {iqn, tid, luns, sessions} of found) {
      info.set({target: iqn, driver: targets.name, tid}, 1)
      sessionCount.set({target: iqn}, sessions.length)
      enabled.set({target: iqn}, luns.some(({online}) => online) ? 1 : 0)
      for (const {lun, path, sizeBytes, readOnly, ioType} of luns) {
        const device = devices.get(path) ?? ''
        const kept = device === '' ? 'file' : 'block'
        const backstore = ioType === 'nullio' ? 'none' : kept
        lunInfo.set({target: iqn, lun, device, path, backstore, mode: readOnly ? 'ro' : 'rw'}, 1)
        lunSize.set({target: iqn, lun}, sizeBytes)
      }
      for (const {initiator, sid, connections: open} of sessions) {
        const [first] = open
        sessionInfo.set({target: iqn, initiator, sid, address: first?.address ?? '', state: first?.state ?? ''}, 1)
        connections.inc({target: iqn, initiator}, open.length)
      }
    }
  }
  const count = () => {
    for (const family of counters) family.reset()
    for (const {iqn, lun, ...total} of totals.luns()) {
      readBytes.inc({target: iqn, lun}, total.readBytes)
      writtenBytes.inc({target: iqn, lun}, total.writtenBytes)
      if (total.readCommands !== null) reads.inc({target: iqn, lun}, total.readCommands)
      if (total.writeCommands !== null) writes.inc({target: iqn, lun}, total.writeCommands)
      if (total.errors !== null) errors.inc({target: iqn, lun}, total.errors)
      sent.inc({target: iqn}, total.readBytes)
      received.inc({target: iqn}, total.writtenBytes)
    }
    for (const {iqn, initiator, ...total} of totals.sessions()) {
      sessionSent.inc({target: iqn, initiator}, total.sentBytes)
      sessionReceived.inc({target: iqn, initiator}, total.receivedBytes)
      logins.inc({target: iqn, initiator}, total.logins)
    }
  }

  // One reading after the other: two that overtake each other would look like a session that starts anew.
  const sample = () =>
    queue.run('counters', async () => {
      const readings = await targets.counters()
      totals.add(readings.filter(({iqn}) => wanted(iqn)))
      totals.keep(wanted)
    })
  return {
    name: targets.name,
    sample,
    async collect() {
      const [listed] = await Promise.all([targets.list(), sample()])
      const found = listed.filter(({iqn}) => wanted(iqn))
      describe(found, await blockDevices(found))
      count()
    },
    clear,
    restarted() {
      totals.restarted()
      restorations.inc()
    },
  }
}

/** The kernel's names of the devices behind the disks, as node_exporter has them in `device`; files have none. */
async function blockDevices(targets: ObservedTarget[]): Promise<Map<string, string>> {
  const paths = targets.flatMap(({luns}) => luns.map(({path}) => path)).filter(path => path.startsWith('/dev/'))
  const names = paths.map(async path => [path, basename(await realpath(path).catch(() => path))] as const)
  return new Map(await Promise.all(names))
}
