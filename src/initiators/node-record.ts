import {randomBytes} from 'node:crypto'
import {constants} from 'node:fs'
import {access, lstat, mkdir, open, readdir, readFile, rename, rm, rmdir} from 'node:fs/promises'
import {dirname, join} from 'node:path'
import {samePortal} from '../address.js'
import {ignoreErrno} from '../errors.js'
import {checkForeignName} from '../iqn.js'
import type {ChapAuth, Portal} from '../types.js'

/** Who has asked lunpath for a session: the attach path, or a person with `lunpath connect`. */
export type RecordOwner = 'attach' | 'hand'

export interface NodeRecord {
  iqn: string
  portal: Portal
  /** −1 where it is not known. */
  tpgt: number
  /** `manual`, `automatic` or `onboot`; null where the record does not say. */
  startup: string | null
  hasAuth: boolean
  /** The name that it logs in with; null where that is this host's own. */
  initiatorName: string | null
  /** Null: not lunpath's. */
  owner: RecordOwner | null
  path: string
}

/** After the last of them iscsid gives up. A lost session is logged in again in tries of that length, without end. */
export interface LoginTries {
  tries: number
  trySeconds: number
}

export interface NewNodeRecord {
  iqn: string
  portal: Portal
  tpgt: number
  initiatorName?: string
  auth?: ChapAuth
  login: LoginTries
  /** False where this version cannot: it then finds all LUNs by itself. */
  manualScan: boolean
  owner: RecordOwner
}

/** Files of one target, secrets included. */
export type RecordSnapshot = {portal: Portal; path: string; content: Buffer}[]

const mark = '# Made by lunpath, which removes it at the logout. Owner: '

/**
 * open-iscsi's data base of nodes: a file for each target and portal. It is written without a discovery, which would
 * cost a process and hold the lock of the whole data base for as long as a portal keeps silent.
 */
export class NodeRecords {
  readonly #given: string | undefined
  readonly #user: string
  #directory: string | undefined

  /**
   * Without `directory` the installation is looked at. `user` names the daemon that attaches: a session that another one
   * on this host has made for its attachments is another's.
   */
  constructor({directory, user = ''}: {directory?: string; user?: string} = {}) {
    this.#given = directory
    this.#user = user
  }

  /** Debian has /etc/iscsi/nodes; Red Hat and SUSE have /var/lib/iscsi/nodes, which their packages bring. */
  async directory(): Promise<string> {
    if (this.#given !== undefined) return this.#given
    this.#directory ??= (await exists('/var/lib/iscsi')) ? '/var/lib/iscsi/nodes' : '/etc/iscsi/nodes'
    return this.#directory
  }

  /**
   * Writes one record, in place of whatever record this target has at this portal. The file is complete and durable
   * before it is seen; mode 0600, since it holds the CHAP secrets, and nothing else does.
   */
  async write(record: NewNodeRecord): Promise<void> {
    const {iqn, portal, tpgt} = record
    const target = join(await this.directory(), checkForeignName(iqn))
    const node = join(target, portalName(portal, tpgt))
    await this.remove(iqn, portal)
    await this.#place(target, join(node, 'default'), recordText(record, this.#user))
  }

  /** Puts one file in place, in a directory of its own below that of its target, or there itself. */
  async #place(target: string, path: string, text: string | Buffer): Promise<void> {
    const node = dirname(path)
    await mkdir(node, {recursive: true, mode: 0o700})
    // Outside of the directories that iscsiadm reads.
    const temporary = join(dirname(await this.directory()), `.lunpath-${randomBytes(6).toString('hex')}`)
    try {
      const file = await open(temporary, 'wx', 0o600)
      try {
        await file.writeFile(text)
        await file.sync()
      } finally {
        await file.close()
      }
      await rename(temporary, path)
    } catch (error) {
      await rm(temporary, {force: true})
      await this.#prune(...new Set([target, node]))
      throw error
    }
    await syncDirectory(node)
    await syncDirectory(target)
  }

  /** All that this target has now, to be put back as it is by restore(). */
  async snapshot(iqn: string): Promise<RecordSnapshot> {
    const records = await this.of(iqn)
    return Promise.all(records.map(async ({portal, path}) => ({portal, path, content: await readFile(path)})))
  }

  /** Puts back what a target had, and removes what it has since got, except at the portals in `keep`. */
  async restore(iqn: string, before: RecordSnapshot, keep: Portal[]): Promise<void> {
    const isKept = (portal: Portal) => keep.some(one => samePortal(one, portal))
    const now = await this.snapshot(iqn)
    const isSame = (a: RecordSnapshot[number]) => (b: RecordSnapshot[number]) =>
      a.path === b.path && a.content.equals(b.content)
    for (const record of now) {
      if (!isKept(record.portal) && !before.some(isSame(record))) await this.remove(iqn, record.portal)
    }
    const target = join(await this.directory(), checkForeignName(iqn))
    const left = await this.snapshot(iqn)
    for (const record of before) {
      if (!isKept(record.portal) && !left.some(isSame(record))) await this.#place(target, record.path, record.content)
    }
  }

  /** Removes a target's record at a portal, of both layouts; a target without records goes with its last. */
  async remove(iqn: string, portal: Portal): Promise<void> {
    await this.#remove(iqn, one => samePortal(one, portal))
  }

  /** Removes one record alone: beside it, for other interfaces, there may be others of this portal. */
  async removeFile({iqn, path}: Pick<NodeRecord, 'iqn' | 'path'>): Promise<void> {
    await rm(path, {force: true})
    const target = join(await this.directory(), checkForeignName(iqn))
    await this.#prune(...new Set([target, dirname(path)]))
  }

  async #remove(iqn: string, isMeant: (portal: Portal) => boolean): Promise<void> {
    const target = join(await this.directory(), checkForeignName(iqn))
    for (const entry of await names(target)) {
      const parsed = parsePortalName(entry)
      if (parsed && isMeant(parsed.portal)) await rm(join(target, entry), {recursive: true, force: true})
    }
    await this.#prune(target)
  }

  async #prune(...directories: string[]): Promise<void> {
    // ENOENT: it never was there. ENOTEMPTY: others still need it.
    for (const directory of directories.reverse()) {
      await rmdir(directory).catch(ignoreErrno('ENOENT', 'ENOTEMPTY'))
    }
    await syncDirectory(await this.directory()).catch(ignoreErrno('ENOENT'))
  }

  /** Every record of this node, whoever has made it. */
  async list(): Promise<NodeRecord[]> {
    const targets = await names(await this.directory())
    const found = await Promise.all(targets.map(iqn => this.#ofDirectory(iqn)))
    return found.flat()
  }

  async of(iqn: string): Promise<NodeRecord[]> {
    return this.#ofDirectory(checkForeignName(iqn))
  }

  async #ofDirectory(iqn: string): Promise<NodeRecord[]> {
    const target = join(await this.directory(), iqn)
    const records: NodeRecord[] = []
    for (const entry of await names(target)) {
      const parsed = parsePortalName(entry)
      if (!parsed) continue
      const path = join(target, entry)
      // ADDRESS,PORT,TPGT is a directory with a file for each interface. `-o new` writes a file ADDRESS,PORT.
      const files = (await isDirectory(path)) ? (await names(path)).map(name => join(path, name)) : [path]
      for (const file of files) {
        const text = await readFile(file, 'utf8').catch(() => undefined)
        if (text !== undefined) records.push({iqn, ...parsed, ...describe(text, this.#user), path: file})
      }
    }
    return records
  }
}

function recordText(record: NewNodeRecord, user: string): string {
  const {iqn, portal, tpgt, initiatorName, auth, login, manualScan, owner} = record
  const settings: [string, string | number | undefined][] = [
    ['node.name', iqn],
    ['node.tpgt', tpgt],
    ['node.startup', 'manual'],
    ['node.discovery_type', 'static'],
    ['iface.iscsi_ifacename', 'default'],
    ['iface.transport_name', 'tcp'],
    ['iface.initiatorname', initiatorName],
    ['node.session.scan', manualScan ? 'manual' : undefined],
    // This many times the login's timeout, iscsid tries a first login: longer than we wait it would log in to nobody's use.
    ['node.session.initial_login_retry_max', login.tries],
    ['node.session.auth.authmethod', auth ? 'CHAP' : 'None'],
    ['node.session.auth.username', auth?.incoming.user],
    ['node.session.auth.password', auth?.incoming.secret],
    ['node.session.auth.username_in', auth?.outgoing?.user],
    ['node.session.auth.password_in', auth?.outgoing?.secret],
    ['node.conn[0].address', portal.address],
    ['node.conn[0].port', portal.port],
    ['node.conn[0].startup', 'manual'],
    ['node.conn[0].timeo.login_timeout', login.trySeconds],
  ]
  const lines = settings.flatMap(([key, value]) => (value === undefined ? [] : [`${key} = ${value}`]))
  return `${[markOf(owner, user), ...lines].join('\n')}\n`
}

function markOf(owner: RecordOwner, user: string): string {
  return `${mark}${owner}${owner === 'attach' ? ` ${JSON.stringify(user)}` : ''}`
}

function describe(text: string, user: string): Omit<NodeRecord, 'iqn' | 'portal' | 'tpgt' | 'path'> {
  const value = (key: string) =>
    new RegExp(`^${key.replaceAll(/[.[\]]/g, '\\$&')}\\s*=\\s*(\\S+)\\s*$`, 'm').exec(text)?.[1] ?? null
  const [first] = text.split('\n')
  const owner = (['attach', 'hand'] as const).find(one => first === markOf(one, user))
  return {
    startup: value('node.startup'),
    hasAuth: value('node.session.auth.authmethod') === 'CHAP',
    initiatorName: value('iface.initiatorname'),
    owner: owner ?? null,
  }
}

/** As open-iscsi names a portal: `ADDRESS,PORT,TPGT`, IPv6 without brackets. */
function portalName({address, port}: Portal, tpgt: number): string {
  return `${address},${port},${tpgt}`
}

function parsePortalName(name: string): {portal: Portal; tpgt: number} | undefined {
  const [, address, port, tpgt] = /^([^,/]+),(\d{1,5})(?:,(-?\d{1,5}))?$/.exec(name) ?? []
  if (address === undefined) return undefined
  return {portal: {address, port: Number(port)}, tpgt: Number(tpgt ?? -1)}
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    await directory.sync()
  } finally {
    await directory.close()
  }
}

async function names(directory: string): Promise<string[]> {
  return (await readdir(directory).catch(ignoreErrno('ENOENT', 'ENOTDIR'))) ?? []
}

async function isDirectory(path: string): Promise<boolean> {
  return (await lstat(path).catch(() => undefined))?.isDirectory() ?? false
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  )
}
