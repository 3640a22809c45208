import {setTimeout as sleep} from 'node:timers/promises'
import {StorageError} from '../errors.js'
import type {Export, TargetSession} from '../types.js'
import type {Rooms} from './rooms.js'

/** A session that was closed a moment ago may still be in the target's list. */
const leavingMs = 500
const pauseMs = 20

/** Who is logged in to a target, asked of the target daemon now. */
export async function sessionsOf({targets}: Rooms, iqn: string): Promise<TargetSession[]> {
  return (await targets.get(iqn))?.sessions ?? []
}

/** Sessions that stay while one waits a moment; none where there are none. */
export async function lastingSessions(
  rooms: Rooms,
  iqn: string,
  counts: (session: TargetSession) => boolean = () => true,
): Promise<TargetSession[]> {
  const deadline = performance.now() + leavingMs
  for (;;) {
    const found = (await sessionsOf(rooms, iqn)).filter(counts)
    if (found.length === 0 || performance.now() >= deadline) return found
    await sleep(pauseMs)
  }
}

/** For a sentence: `iqn.… (10.0.0.2) is`. */
export function describeSessions(sessions: readonly TargetSession[]): string {
  const names = sessions.map(({initiator, connections}) => {
    const addresses = connections.map(({address}) => address).filter(address => address !== '')
    return addresses.length > 0 ? `${initiator} (${addresses.join(', ')})` : initiator
  })
  return `${names.join(' and ') || 'somebody'} ${names.length > 1 ? 'are' : 'is'}`
}

/**
 * Refuses a target to which somebody is logged in already: two hosts that write to one disk destroy what is on it. Sessions
 * that this host's kernel has for attachments of ours are no strangers. @throws TARGET_IN_USE
 */
export async function refuseStrangers(rooms: Rooms, {iqn, volumeId}: Pick<Export, 'iqn' | 'volumeId'>): Promise<void> {
  const first = await sessionsOf(rooms, iqn)
  if (first.length === 0) return
  const isOwn = ({owner, ...session}: {owner: string; iqn: string}) => owner === 'attach' && session.iqn === iqn
  const own = (await rooms.host.sessions()).filter(isOwn).length
  if (first.length <= own) return
  const found = await lastingSessions(rooms, iqn)
  if (found.length <= own) return
  const message = `${describeSessions(found)} logged in to ${iqn}: a second writer would destroy what is on ${volumeId}. Log out there first (lunpath session list), or say --shared where the guests share the disk knowingly`
  throw new StorageError('TARGET_IN_USE', message, {
    op: 'attach',
    info: {iqn, id: volumeId, initiators: found.map(({initiator}) => initiator)},
  })
}
