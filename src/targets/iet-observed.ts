import type {ExportSpec, ObservedTarget, TargetSession} from '../types.js'
import type {IetSession, IetTargetVolumes} from './iet-procfs.js'
import {idsOf, lunOf, pathOf} from './iet-spec.js'
import {ruleAddress} from './spec.js'

/** One target as it is shown. Of an export of ours the rules and accounts are those that were set. */
export function observed(
  {iqn, tid, volumes}: IetTargetVolumes,
  sessions: IetSession[],
  found: {spec: ExportSpec | undefined; access: ObservedTarget['access']; accounts: string[] | undefined},
): ObservedTarget {
  const {spec} = found
  const {incoming, outgoing} = spec?.auth ?? {}
  return {
    iqn,
    tid,
    luns: volumes.map(({lun, deleted, ioType, ioMode, blocks = 0, blockSizeBytes = 0, path}) => {
      const own = spec && lun === lunOf(spec) && path === pathOf(spec) ? idsOf(spec) : {serial: '', scsiId: ''}
      const sizeBytes = blocks * blockSizeBytes
      const shown = {lun, path, sizeBytes, ...own, readOnly: ioMode === 'ro', online: !deleted}
      return {...shown, ioType, ioMode, blockSizeBytes}
    }),
    access:
      spec && !spec.taken
        ? {addresses: spec.access.addresses.map(ruleAddress), names: spec.access.names}
        : found.access,
    accounts: spec ? [incoming, outgoing].flatMap(one => one?.user ?? []) : (found.accounts ?? []),
    sessions: sessions.map(session => toSession(iqn, session)),
  }
}

export function toSession(iqn: string, {sid, initiator, connections}: IetSession): TargetSession {
  return {
    iqn,
    initiator,
    sid: String(sid),
    connections,
  }
}
