import {parsePortal} from '../iqn.js'
import type {ObservedTarget, Portal, TargetSession} from '../types.js'
import {isNameRule} from './tgt-control.js'

/**
 * Reads the listings of tgtd 1.0.85. They are made for people: the indentation, in steps of four blanks, is their
 * grammar.
 */

interface Line {
  depth: number
  text: string
}

function* lines(text: string): Generator<Line> {
  for (const line of text.split('\n')) {
    if (line.trim() === '') continue
    const depth = Math.floor((line.length - line.trimStart().length) / 4)
    yield {depth, text: line.trim()}
  }
}

/** `Key: value`, split at the first colon: values hold colons themselves. */
function field(text: string): [string, string] {
  const colon = text.indexOf(':')
  return colon < 0 ? [text, ''] : [text.slice(0, colon), text.slice(colon + 1).trim()]
}

export interface ShownTarget extends ObservedTarget {
  /** User of the outgoing account; `accounts` names the incoming ones first, then this one. */
  outgoingAccount: string | undefined
}

/**
 * The listing of all targets. Sizes are as tgtd prints them, in whole millions of bytes. The controller, LUN 0, is left
 * out.
 */
export function parseTargets(text: string): ShownTarget[] {
  const targets: ShownTarget[] = []
  let target: ShownTarget | undefined
  let section = ''
  let session: TargetSession | undefined
  let connection: TargetSession['connections'][number] | undefined
  let lun: ObservedTarget['luns'][number] | undefined
  for (const {depth, text: line} of lines(text)) {
    const [key, value] = field(line)
    if (depth === 0) {
      const match = /^Target (\d+): (\S+)$/.exec(line)
      target = match
        ? {
            iqn: match[2]!,
            tid: Number(match[1]),
            luns: [],
            access: {addresses: [], names: []},
            accounts: [],
            outgoingAccount: undefined,
            sessions: [],
          }
        : undefined
      if (target) targets.push(target)
      section = ''
      continue
    }
    if (!target) continue
    if (depth === 1) {
      section = key
    } else if (section === 'I_T nexus information') {
      if (key === 'I_T nexus') {
        session = {iqn: target.iqn, initiator: '', sid: value, connections: []}
        target.sessions.push(session)
      } else if (key === 'Initiator' && session) {
        session.initiator = value.split(' ')[0]!
      } else if (key === 'Connection' && session) {
        connection = {cid: Number(value), address: '', state: 'logged-in'}
        session.connections.push(connection)
      } else if (key === 'IP Address' && connection) {
        connection.address = value
      }
    } else if (section === 'LUN information') {
      if (depth === 2 && key === 'LUN') {
        lun = {lun: Number(value), path: '', sizeBytes: 0, serial: '', scsiId: '', readOnly: false, online: false}
        if (lun.lun !== 0) target.luns.push(lun)
      } else if (lun) {
        readLunField(lun, key, value)
      }
    } else if (section === 'Account information') {
      const outgoing = line.endsWith(' (outgoing)')
      const user = outgoing ? line.slice(0, -' (outgoing)'.length) : line
      if (outgoing) target.outgoingAccount = user
      target.accounts.push(user)
    } else if (section === 'ACL information') {
      if (isNameRule(line)) target.access.names.push(line)
      else target.access.addresses.push(line)
    }
  }
  return targets
}

function readLunField(lun: ObservedTarget['luns'][number], key: string, value: string): void {
  if (key === 'SCSI ID') lun.scsiId = value
  else if (key === 'SCSI SN') lun.serial = value
  else if (key === 'Size') lun.sizeBytes = Number.parseInt(value, 10) * 1e6
  else if (key === 'Online') lun.online = value === 'Yes'
  else if (key === 'Readonly') lun.readOnly = value === 'Yes'
  else if (key === 'Backing store path') lun.path = value
}

/** The connections of one target, grouped by session. */
export function parseConnections(iqn: string, text: string): TargetSession[] {
  const sessions = new Map<string, TargetSession>()
  let session: TargetSession | undefined
  for (const {text: line} of lines(text)) {
    const [key, value] = field(line)
    if (key === 'Session') {
      session = sessions.get(value) ?? {iqn, initiator: '', sid: value, connections: []}
      sessions.set(value, session)
    } else if (!session) {
    } else if (key === 'Connection') {
      session.connections.push({cid: Number(value), address: '', state: 'logged-in'})
    } else if (key === 'Initiator') {
      session.initiator = value
    } else if (key === 'IP Address') {
      const connection = session.connections.at(-1)
      if (connection) connection.address = value
    }
  }
  return [...sessions.values()]
}

export interface LunStatistics {
  tid: number
  lun: number
  sid: string
  readBytes: number
  readCommands: number
  writtenBytes: number
  writeCommands: number
  errors: number
}

/** Statistics: a line for each session and LUN. What was done is counted, not what was submitted. */
export function parseStatistics(text: string): LunStatistics[] {
  const rows: LunStatistics[] = []
  for (const {text: line} of lines(text)) {
    const columns = line.split(/\s+/)
    if (columns.length !== 12 || !columns.every(column => /^\d+$/.test(column))) continue
    rows.push({
      tid: Number(columns[0]),
      lun: Number(columns[1]),
      sid: columns[2]!,
      readBytes: Number(columns[5]),
      readCommands: Number(columns[6]),
      writtenBytes: Number(columns[9]),
      writeCommands: Number(columns[10]),
      errors: Number(columns[11]),
    })
  }
  return rows
}

/** `Portal: ADDRESS:PORT,TAG` a line. */
export function parsePortals(text: string): Portal[] {
  return [...text.matchAll(/^Portal: (.+),\d+$/gm)].map(match => parsePortal(match[1]!))
}

/** Users of all accounts, bound to a target or not. */
export function parseAccounts(text: string): string[] {
  return [...lines(text)].filter(line => line.depth === 1).map(line => line.text)
}
