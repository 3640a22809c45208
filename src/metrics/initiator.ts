import type {Registry} from 'prom-client'
import type {HostInitiator} from '../initiators/driver.js'
import {formatPortal} from '../iqn.js'
import {Counter, Gauge} from '../packages/daemon.js'
import type {Collector} from './registry.js'

type Counted = 'sentBytes' | 'receivedBytes' | 'digestErrors' | 'timeoutErrors'
const counted: readonly Counted[] = ['sentBytes', 'receivedBytes', 'digestErrors', 'timeoutErrors']

/**
 * Registers the families of the kernel's own sessions, where the host has any. Bytes are named from the initiator's side.
 * The kernel counts per session, from its login: what a session adds is summed up, so that a new login takes nothing away.
 */
export function registerInitiatorMetrics(
  registry: Registry,
  host: Pick<HostInitiator, 'name' | 'sessions' | 'counters'>,
): Collector {
  const registers = [registry]
  const gauge = (name: string, help: string, labelNames: string[] = []) =>
    new Gauge({name, help, labelNames: ['target', ...labelNames], registers})
  const counter = (name: string, help: string) =>
    new Counter({name, help, labelNames: ['target', 'initiator'], registers})

  const info = gauge('iscsi_initiator_session_info', 'A session of this host’s kernel; always 1.', [
    'initiator',
    'sid',
    'address',
    'header_digest',
    'data_digest',
    'state',
    'device',
  ])
  const up = gauge('iscsi_initiator_session_up', '1 where the session is logged in, else 0.', ['address'])
  const stuck = gauge('iscsi_initiator_session_stuck', '1 where the session could not be logged out, else 0.')
  const families: Record<Counted, Counter> = {
    sentBytes: counter('iscsi_initiator_session_sent_bytes_total', 'Bytes that this host has sent to the target.'),
    receivedBytes: counter('iscsi_initiator_session_received_bytes_total', 'Bytes that the target has sent here.'),
    digestErrors: counter('iscsi_initiator_session_digest_errors_total', 'PDUs with a wrong digest.'),
    timeoutErrors: counter('iscsi_initiator_session_timeout_errors_total', 'Requests that were not answered in time.'),
  }
  const last = new Map<number, Record<Counted, number>>()
  const clear = () => {
    for (const family of [info, up, stuck]) family.reset()
  }

  return {
    name: host.name,
    clear,
    async collect() {
      const [sessions, counters] = await Promise.all([host.sessions(), host.counters()])
      clear()
      for (const {
        iqn: target,
        initiator,
        sid,
        portal,
        state,
        headerDigest,
        dataDigest,
        devices,
        ...session
      } of sessions) {
        const address = formatPortal(portal)
        const digests = {header_digest: String(headerDigest), data_digest: String(dataDigest)}
        const device = devices.map(one => one.device).join(',')
        info.set({target, initiator, sid, address, ...digests, state, device}, 1)
        up.set({target, address}, state === 'LOGGED_IN' ? 1 : 0)
        stuck.set({target}, session.stuck === null ? 0 : 1)
      }
      const there = new Set(sessions.map(({sid}) => sid))
      for (const sid of last.keys()) if (!there.has(sid)) last.delete(sid)
      for (const {sid, iqn: target, initiator, ...now} of counters) {
        const before = last.get(sid)
        for (const key of counted) families[key].inc({target, initiator}, Math.max(0, now[key] - (before?.[key] ?? 0)))
        last.set(sid, now)
      }
    },
  }
}
