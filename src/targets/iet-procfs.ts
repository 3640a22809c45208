import {isIPv4} from 'node:net'

/**
 * Reads the listings of IET, /proc/net/iet/volume and session. Nothing in them is escaped, so a name or a path with a
 * newline forges lines; lunpath lets no such name in, and what cannot be true is an error here, not data.
 */

export interface IetVolume {
  lun: number
  /** True while a LUN that was deleted still has commands in flight. */
  deleted: boolean
  ioType: 'fileio' | 'blockio' | 'nullio'
  ioMode: 'wt' | 'wb' | 'ro'
  /** Undefined where IET is 1.4.18 or 1.4.19, which do not show it. */
  blocks: number | undefined
  blockSizeBytes: number | undefined
  /** Empty for nullio. */
  path: string
}

export interface IetTargetVolumes {
  tid: number
  iqn: string
  volumes: IetVolume[]
}

export interface IetConnection {
  cid: number
  /** IPv6 in its shortest form, without brackets. */
  address: string
  state: 'active' | 'closing' | 'unknown'
  headerDigest: boolean
  dataDigest: boolean
}

export interface IetSession {
  /** Bits 48 to 63 are the TSIH, the others the ISID: a JS number cannot hold it. */
  sid: bigint
  initiator: string
  connections: IetConnection[]
}

export interface IetTargetSessions {
  tid: number
  iqn: string
  sessions: IetSession[]
}

/** A listing has a line that no IET writes. */
export class IetListingError extends Error {
  readonly code = 'IET_LISTING'
  readonly line: number

  constructor(what: string, line: number, text: string) {
    super(`Line ${line} of IET's listing ${what}: ${JSON.stringify(text.slice(0, 200))}`)
    this.name = 'IetListingError'
    this.line = line
  }
}

const maxU32 = 0xffffffff
const maxU64 = 0xffffffffffffffffn
const maxLun = 0x3fff
const maxNameBytes = 255
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const control = /[\u0000-\u0008\u000a-\u001f\u007f]|[^\t]\t/

const targetLine = /^tid:(0|[1-9]\d{0,9}) name:(.+)$/
const volumeLine =
  /^\tlun:(0|[1-9]\d{0,4}) state:([01]) iotype:(fileio|blockio|nullio) iomode:(wt|wb|ro)(?: blocks:(0|[1-9]\d{0,19}) blocksize:([1-9]\d{2,3}))?(?: path:(.+))?$/
const sessionLine = /^\tsid:(0|[1-9]\d{0,19}) initiator:(.+)$/
const connectionLine =
  /^\t\tcid:(0|[1-9]\d{0,4}) ip:(\S+) state:(active|closing|unknown) hd:(none|crc32c) dd:(none|crc32c)$/
const blockSizes = [512, 1024, 2048, 4096]

/** Where a parser is, for what it has to say. */
class Reader {
  readonly #lines: string[]
  #at = 0

  constructor(text: string) {
    this.#lines = text.split('\n')
    // What ends without a newline was cut off.
    if (this.#lines.pop() !== '') throw new IetListingError('has no end', this.#lines.length + 1, text.slice(-200))
  }

  *[Symbol.iterator](): Generator<string> {
    for (const line of this.#lines) {
      this.#at++
      if (control.test(line)) this.refuse('has a control character')
      yield line
    }
  }

  refuse(what: string): never {
    throw new IetListingError(what, this.#at, this.#lines[this.#at - 1] ?? '')
  }

  number(text: string, max: number, what: string): number {
    const value = Number(text)
    if (value > max) this.refuse(`has ${what} beyond ${max}`)
    return value
  }
}

/** Targets by their lines, in the order of the listing; `inner` takes the lines below each. */
function readTargets<T extends {tid: number; iqn: string}>(
  text: string,
  {make, inner}: {make: (tid: number, iqn: string) => T; inner: (target: T, line: string, reader: Reader) => void},
): T[] {
  const targets: T[] = []
  const tids = new Set<number>()
  const names = new Set<string>()
  const reader = new Reader(text)
  for (const line of reader) {
    const match = targetLine.exec(line)
    if (!match) {
      const target = targets.at(-1)
      if (!target) return reader.refuse('belongs to no target')
      inner(target, line, reader)
      continue
    }
    const tid = reader.number(match[1]!, maxU32, 'a number')
    const iqn = match[2]!
    if (tid === 0) reader.refuse('has a target without a number')
    if (Buffer.byteLength(iqn) > maxNameBytes) reader.refuse('has a name that is too long')
    if (tids.has(tid) || names.has(iqn)) reader.refuse('is a second target of that number or name')
    tids.add(tid)
    names.add(iqn)
    targets.push(make(tid, iqn))
  }
  return targets
}

/** @throws IetListingError */
export function parseVolumes(text: string): IetTargetVolumes[] {
  return readTargets<IetTargetVolumes>(text, {
    make: (tid, iqn) => ({tid, iqn, volumes: []}),
    inner({volumes}, line, reader) {
      const match = volumeLine.exec(line)
      if (!match) return reader.refuse('is no target and no logical unit')
      const [, lunText, state, ioType, ioMode, blocksText, blockSizeText, path = ''] = match
      const lun = reader.number(lunText!, maxLun, 'a logical unit')
      if (volumes.some(other => other.lun === lun)) reader.refuse('is a second logical unit of that number')
      if ((ioType === 'nullio') !== (path === '')) reader.refuse('has a path that does not go with its type')
      const blocks =
        blocksText === undefined ? undefined : reader.number(blocksText, Number.MAX_SAFE_INTEGER, 'a number of blocks')
      const blockSizeBytes = blockSizeText === undefined ? undefined : Number(blockSizeText)
      if (blockSizeBytes !== undefined && !blockSizes.includes(blockSizeBytes)) reader.refuse('has a wrong block size')
      volumes.push({
        lun,
        deleted: state === '1',
        ioType: ioType as IetVolume['ioType'],
        ioMode: ioMode as IetVolume['ioMode'],
        blocks,
        blockSizeBytes,
        path,
      })
    },
  })
}

/** @throws IetListingError */
export function parseSessions(text: string): IetTargetSessions[] {
  return readTargets<IetTargetSessions>(text, {
    make: (tid, iqn) => ({tid, iqn, sessions: []}),
    inner({sessions}, line, reader) {
      const session = sessionLine.exec(line)
      if (session) {
        const sid = BigInt(session[1]!)
        if (sid > maxU64) reader.refuse('has a session number beyond 64 bits')
        if (sessions.some(other => other.sid === sid)) reader.refuse('is a second session of that number')
        sessions.push({sid, initiator: session[2]!, connections: []})
        return
      }
      const connection = connectionLine.exec(line)
      const owner = sessions.at(-1)
      if (!connection || !owner) return reader.refuse('is no target, no session and no connection of one')
      const [, cidText, ip, state, headerDigest, dataDigest] = connection
      const cid = reader.number(cidText!, 0xffff, 'a connection')
      if (owner.connections.some(other => other.cid === cid)) reader.refuse('is a second connection of that number')
      const address = readAddress(ip!)
      if (address === undefined) return reader.refuse('has an address that is none')
      owner.connections.push({
        cid,
        address,
        state: state as IetConnection['state'],
        headerDigest: headerDigest === 'crc32c',
        dataDigest: dataDigest === 'crc32c',
      })
    },
  })
}

/** IPv6 has all its zeros and is in brackets. */
function readAddress(text: string): string | undefined {
  if (isIPv4(text)) return text
  const groups = /^\[([0-9a-f]{4}(?::[0-9a-f]{4}){7})\]$/.exec(text)?.[1]
  return groups === undefined ? undefined : new URL(`http://[${groups}]`).hostname.slice(1, -1)
}
