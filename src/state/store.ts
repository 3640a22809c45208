import {once} from 'node:events'
import {chmod, mkdir, open, stat} from 'node:fs/promises'
import {dirname} from 'node:path'
import {Worker} from 'node:worker_threads'
import {StorageError} from '../errors.js'
import {nameKey} from '../iqn.js'
import type {AccessRules, ChapAuth, DiskSource, Export, ExportSpec, Volume, VolumeId} from '../types.js'
import type {Operation} from './journal.js'
import {type Opened, type OpenFailure, type StoreReply, type Table, tables, type Write} from './store-protocol.js'

/** A volume that was asked for, with its name and date. */
export interface VolumeRecord extends Volume {
  /** The user's own name for it, or null. Unique where given. */
  name: string | null
  createdAt: string
}

/** An export that was asked for: enough to put it back after the target daemon has forgotten it. */
export interface ExportRecord extends Export {
  access: AccessRules
  writeCache: 'through' | 'back'
  readOnly: boolean
  /** IET: as it was asked for. */
  ioType?: ExportSpec['ioType']
  /** The CHAP credentials lie in the `secrets` table under the volume's id. */
  hasAuth: boolean
  /** IET: what `iet param set` and `iet redirect` have set. */
  parameters?: ExportSpec['parameters']
  redirect?: string
  /** IET: what `import iet` has taken over. Its access rules are not lunpath's, and are not in the record. */
  taken?: ExportSpec['taken']
  createdAt: string
}

/** A disk that was asked for. Its state is observed, never stored. */
export interface AttachmentRecord {
  /** The volume's id, or one of its own for `--device PATH`. The disk's serial and alias are made from it. */
  id: VolumeId
  volumeId: VolumeId | null
  iqn: string | null
  domain: string
  domainUuid: string
  target: string
  bus: string
  source: DiskSource
  /** Who logs in: QEMU, or this host's kernel. Absent in records of before the host route: `qemu`. */
  route?: 'qemu' | 'host'
  persistent: boolean
  readOnly: boolean
  /** True where this attach made the export, so that detach takes it back. */
  madeExport: boolean
  createdAt: string
}

/** A pool that `pool create` has made; those in LVM that the configuration names are not recorded. */
export interface LvmPoolRecord {
  /** Its name. */
  id: string
  driver: 'lvm'
  group: string
  thinPool: string | null
  createdAt: string
}

/** What tells the configured pool of files from an empty mount point. */
export interface FilePoolRecord {
  /** Its name. */
  id: string
  driver: 'file'
  /** As it was configured then. */
  directory: string
  /** The id in its marker. */
  marker: string
  createdAt: string
}

export type PoolRecord = LvmPoolRecord | FilePoolRecord

/** The pools that `pool create` has made. */
export function madePools({pools}: Pick<Store, 'pools'>): LvmPoolRecord[] {
  return [...pools.values()].filter(record => record.driver === 'lvm')
}

interface Rows {
  volumes: VolumeRecord
  exports: ExportRecord
  attachments: AttachmentRecord
  operations: Operation
  secrets: ChapAuth
  pools: PoolRecord
}

/** One call of `write` that waits for its commit. */
interface Pending {
  writes: Write[]
  settle: (error: Error | null) => void
}

/** A change to the desired state; `value` null deletes. */
export type Change = {[T in Table]: {table: T; id: string; value: Rows[T] | null}}[Table]

/**
 * The desired state, durable. All of it is held in memory (reads are Map look-ups) and each change is committed before
 * `write` resolves. Changes that arrive while a commit runs, or in one turn of the event loop, are committed together: a
 * commit costs a wake-up of the store's thread, an fsync and a wake-up of this one, however much it carries.
 */
export class Store {
  readonly volumes = new Map<string, VolumeRecord>()
  readonly exports = new Map<string, ExportRecord>()
  readonly attachments = new Map<string, AttachmentRecord>()
  readonly operations = new Map<string, Operation>()
  readonly secrets = new Map<string, ChapAuth>()
  readonly pools = new Map<string, PoolRecord>()

  readonly #byIqn = new Map<string, ExportRecord>()
  readonly #worker: Worker
  #waiting: Pending[] = []
  #committing: Pending[] | null = null
  #closed = false
  /** Commits since the store was opened: for tests and metrics. */
  commits = 0

  private constructor(worker: Worker) {
    this.#worker = worker
    worker.on('message', (reply: StoreReply) => this.#committed(reply.error))
    worker.on('error', error => this.#lost(error.message))
    worker.on('exit', () => this.#lost('the store thread ended'))
  }

  /**
   * Opens or creates the store at `path` (mode 0600) and loads it.
   * @throws STORE_LOCKED (another daemon has it), STORE_CORRUPT, STORE_TOO_NEW
   */
  static async open(path: string): Promise<Store> {
    await mkdir(dirname(path), {recursive: true, mode: 0o700})
    for (const file of [path, `${path}.lock`]) {
      const handle = await open(file, 'a', 0o600)
      await handle.close()
      if (((await stat(file)).mode & 0o077) !== 0) await chmod(file, 0o600)
    }
    const worker = new Worker(new URL('./store-worker.js', import.meta.url), {workerData: {path}, execArgv: []})
    const [message] = (await once(worker, 'message')) as [Opened | OpenFailure]
    if (!message.opened) {
      await worker.terminate()
      throw new StorageError(message.code, message.message, {op: 'store.open', info: {path}})
    }
    const store = new Store(worker)
    for (const {table, id, body} of message.rows) store.#show({table, id, value: JSON.parse(body)})
    return store
  }

  /**
   * Commits all `changes` together, then shows them in the maps. @throws STORE_FAILED: nothing was changed.
   */
  async write(changes: Change[]): Promise<void> {
    if (this.#closed) throw new StorageError('STORE_FAILED', 'The store is closed', {op: 'store.write'})
    const writes = changes.map(({table, id, value}) => ({
      table,
      id,
      body: value === null ? null : JSON.stringify(value),
    }))
    await new Promise<void>((resolve, reject) => {
      const settle = (error: Error | null) => {
        if (error) return reject(error)
        for (const change of changes) this.#show(change)
        resolve()
      }
      this.#waiting.push({writes, settle})
      if (this.#waiting.length === 1 && this.#committing === null) setImmediate(() => this.#commitNext())
    })
  }

  #show({table, id, value}: Change): void {
    if (table === 'exports') {
      const before = this.exports.get(id)
      if (before) this.#byIqn.delete(nameKey(before.iqn))
      if (value) this.#byIqn.set(nameKey(value.iqn), value)
    }
    const map = this[table] as Map<string, unknown>
    if (value === null) map.delete(id)
    else map.set(id, value)
  }

  #commitNext(): void {
    if (this.#committing !== null || this.#waiting.length === 0) return
    this.#committing = this.#waiting
    this.#waiting = []
    this.#worker.postMessage({writes: this.#committing.flatMap(({writes}) => writes)})
  }

  #committed(error: string | null): void {
    const settled = this.#committing ?? []
    this.#committing = null
    this.commits++
    setImmediate(() => this.#commitNext())
    const failure =
      error === null
        ? null
        : new StorageError('STORE_FAILED', `The store could not commit: ${error}`, {op: 'store.write'})
    for (const {settle} of settled) settle(failure)
  }

  #lost(reason: string): void {
    if (this.#closed) return
    this.#closed = true
    const failure = new StorageError('STORE_FAILED', `The store is gone: ${reason}`, {op: 'store.write'})
    for (const {settle} of [...(this.#committing ?? []), ...this.#waiting]) settle(failure)
    this.#committing = null
    this.#waiting = []
  }

  /** Waits for pending commits and gives the store free. Safe to call twice. */
  async close(): Promise<void> {
    if (this.#closed) return
    while (this.#committing !== null || this.#waiting.length > 0) await new Promise(resolve => setTimeout(resolve, 1))
    this.#closed = true
    this.#worker.removeAllListeners('message')
    const exited = once(this.#worker, 'exit')
    this.#worker.postMessage('close')
    await exited
  }

  /** Volume by id or by the user's name. @throws VOLUME_NOT_FOUND */
  volume(idOrName: string): VolumeRecord {
    const found = this.volumes.get(idOrName) ?? [...this.volumes.values()].find(({name}) => name === idOrName)
    if (!found) {
      throw new StorageError('VOLUME_NOT_FOUND', `There is no volume ${JSON.stringify(idOrName)}`, {
        info: {volume: idOrName},
      })
    }
    return found
  }

  /** The export of that name, in whatever case it is spelled. */
  exportOf(iqn: string): ExportRecord | undefined {
    return this.#byIqn.get(nameKey(iqn))
  }

  /**
   * The volume that a target is, or was, named for: of one that was taken over its export says so, of others the last part of
   * the name.
   */
  volumeIdOf(iqn: string): VolumeId {
    return this.#byIqn.get(nameKey(iqn))?.volumeId ?? iqn.slice(-16)
  }

  /** Everything, for comparison with the world. Secrets are left out. */
  snapshot(): Record<Exclude<Table, 'secrets'>, unknown[]> {
    const rows = tables.filter(table => table !== 'secrets').map(table => [table, [...this[table].values()]])
    return Object.fromEntries(rows) as Record<Exclude<Table, 'secrets'>, unknown[]>
  }
}
