import {StorageError} from '../errors.js'
import {formatPortal} from '../iqn.js'
import type {KernelSession} from '../types.js'
import type {ConnectSpec} from './driver.js'
import type {NodeRecord} from './node-record.js'

/** What the kernel's initiator refuses or has lost, in the words of the errors that say it. */

export function sessionGone({iqn, sid}: KernelSession): StorageError {
  return new StorageError('INITIATOR_FAILED', `The session ${sid} with ${iqn} has ended meanwhile`, {
    op: 'initiator.find',
    info: {iqn, sid},
  })
}

/** Another tool's record is left as it is, and so it is said in what it differs from lunpath's. */
export function foreignRecord(
  {iqn, portal, path, ...record}: NodeRecord,
  {initiatorName, auth, owner}: ConnectSpec,
): StorageError {
  const name = (given: string | null | undefined) => given ?? 'this host’s own name'
  const chap = (has: boolean) => (has ? 'with CHAP' : 'without CHAP')
  const has = `it logs in as ${name(record.initiatorName)}, ${chap(record.hasAuth)}${record.startup === null ? '' : `, startup ${record.startup}`}`
  const wanted = `${name(initiatorName)}, ${chap(auth !== undefined)}, startup manual`
  const at = formatPortal(portal)
  const isByHand = owner === 'hand'
  // A session of another tool's is a stranger's to an attach.
  const orByIt = `log in by that record (iscsiadm -m node -T ${iqn} -p ${at} --login) and repeat the request, which then takes that session; or `
  return new StorageError(
    'NODE_FOREIGN',
    `Another tool has a node record of ${iqn} at ${at} (${path}): ${has}; lunpath would log in as ${wanted}. Either ${isByHand ? orByIt : ''}run lunpath node delete ${iqn} first; or lunpath ${isByHand ? 'connect' : 'attach'} with --force, which replaces the record`,
    {op: 'initiator.connect', info: {iqn, portal: at, path, ...record}},
  )
}

/** Sessions that no record of lunpath's is of, and what was asked for. */
export function foreignSessions(
  iqn: string,
  sessions: KernelSession[],
  verb: 'attach' | 'connect' | 'disconnect',
): StorageError {
  const which = sessions.map(({sid, portal}) => `${sid} at ${formatPortal(portal)}`).join(', ')
  const why =
    verb !== 'disconnect'
      ? `its connection is lost, and a new session would take its place`
      : `lunpath disconnect ends what lunpath connect has made`
  return new StorageError(
    'NODE_FOREIGN',
    `Another tool has made the session with ${iqn} (session ${which}): ${why}. End it with that tool (iscsiadm -m session -r ${sessions[0]!.sid} --logout), or run lunpath ${verb === 'attach' ? verb : `${verb} ${iqn}`} with --force`,
    {
      op: verb === 'disconnect' ? 'initiator.disconnect' : 'initiator.connect',
      info: {iqn, sids: sessions.map(({sid}) => sid)},
    },
  )
}

export function lostInUse(
  {iqn, sid, portal}: KernelSession,
  {device, how}: {device: string; how: string},
): StorageError {
  return new StorageError(
    'DEVICE_IN_USE',
    `The connection of the session with ${iqn} at ${formatPortal(portal)} is lost, and its disk /dev/${device} ${how}. iscsid goes on trying to bring it back, and a new session would take the disk away: end that use, or run lunpath disconnect ${iqn} --force`,
    {op: 'initiator.connect', info: {iqn, sid, device: `/dev/${device}`}},
  )
}

export function inUse(device: string, how: string, cause?: unknown): StorageError {
  return new StorageError('DEVICE_IN_USE', `/dev/${device} cannot be taken away: it ${how}`, {
    op: 'initiator.disconnect',
    info: {device: `/dev/${device}`},
    cause,
  })
}
