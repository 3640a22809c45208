import {randomBytes} from 'node:crypto'
import {EventEmitter} from 'node:events'
import {constants} from 'node:fs'
import {type FileHandle, open} from 'node:fs/promises'
import {hasCode, StorageError} from '../errors.js'
import {run} from '../exec.js'
import {KeyedQueue} from '../lock.js'
import {checkSize, formatSize} from '../size.js'
import type {Volume, VolumeId} from '../types.js'
import {copyFileContents} from './copy.js'
import {mappedDevices, mappedName, orphanedDevices, suspendedVolumes} from './device-mapper.js'
import type {CloneVolume, CreateVolume, PoolCapacity, VolumeDriver} from './driver.js'
import {existsError, shrinkError, throwIfAborted} from './errors.js'
import {checkVolumeId, isVolumeId} from './id.js'
import {Ledger, type Promised} from './ledger.js'
import {type LvmSystem, withoutUdevd, writeLvmSystemDirectory} from './lvm-config.js'
import type {ScannableOptions} from './lvm-devices.js'
import {
  groupFields,
  hiddenName,
  inBytes,
  isOurName,
  type LogicalVolume,
  type Role,
  readGroup,
  readThinPool,
  readVolume,
  type ThinPool,
  tag,
  thinFields,
  type VolumeGroup,
  volumeFields,
} from './lvm-facts.js'
import {checkLvmName} from './lvm-grammar.js'
import {Removals} from './lvm-removal.js'
import type {LvmRow} from './lvm-report.js'
import {type LvmRun, LvmShell, wasInterrupted} from './lvm-shell.js'
import {openExclusively, type WipePolicy, zeroRange} from './wipe.js'

export interface LvmPoolOptions {
  /** Name of the pool, as `Volume.pool` carries it. */
  pool: string
  /** The volume group. It may hold volumes of others, which are left alone. */
  group: string
  /** A thin pool in the group. With one, volumes are thin unless they are to be preallocated. */
  thinPool?: string
  /** How many times the thin pool's size may be promised; below 1 it holds for the whole group. Default 1. */
  overcommitRatio?: number
  /** What happens to the data of deleted volumes that are not thin; default `zero`. */
  wipe?: WipePolicy
  /** Nothing thin is made or grown where more of the thin pool's data or metadata space is in use; default 90. */
  thinLimitPercent?: number
  /** A directory of the driver's own for LVM's configuration (LVM_SYSTEM_DIR). */
  systemDirectory: string
  /** Which devices LVM may look at. */
  scan?: ScannableOptions
  /** Default `lvm` of the PATH. */
  program?: string
  /** Milliseconds for one command of LVM; default 60,000. */
  commandTimeoutMs?: number
}

interface Events {
  /** Something that nobody waits for went wrong, or was mended. */
  warning: [message: string, facts: Record<string, unknown>]
}

interface Entry extends Promised {
  uuid: string
}

/**
 * Bytes of the group's metadata for one volume. Measured with our tags: 370 thick or thin, 410 for a thin snapshot, 100 for
 * each further segment; the host's name is among them.
 */
const volumeMetadataBytes = 512
/** Tags and names of what is being deleted are longer than those of volumes. */
const metadataReserveBytes = 32 * 1024
/** A look at the thin pool that is younger than this serves for the next volume as well. */
const thinAgeMs = 1000
/** The copy of the metadata for vgcfgrestore(8) follows a change after this, together with those that came meanwhile. */
const backupMs = 5000
/** What each of these leaves is the same after twice as after once, as they are used here. */
const repeatable = new Set(['lvs', 'vgs', 'lvchange'])
/** A device that is suspended for longer than this is so for good: LVM suspends for milliseconds. */
const suspendedMs = 1000

/**
 * Logical volumes of one volume group, named by their ids and tagged with them (`lunpath:id=ID`) in the command that
 * makes them. With a thin pool both kinds can be had: `sparse` volumes are thin, `preallocated` ones are not.
 *
 * The tag alone says what is ours. One change of tags, which LVM commits as a whole, makes a volume of what was being
 * made, and something to be destroyed of a volume; names follow. What carries `making` or `deleted` at open() is what a
 * crash has left, and is removed.
 *
 * Commands run in one `lvm` shell, in the order in which they were asked for (lvm-shell.ts). What a killed one leaves in
 * device-mapper is cleared up before the next. One process at a time may have a pool open; the daemon's store lock sees
 * to that. Others may use LVM meanwhile: LVM's own locks hold, and each look corrects the index.
 */
export class LvmVolumeDriver extends EventEmitter<Events> implements VolumeDriver {
  readonly name = 'lvm'
  readonly pool: string
  readonly group: string
  readonly thinPool: string | undefined
  readonly #options: Required<Pick<LvmPoolOptions, 'overcommitRatio' | 'wipe' | 'thinLimitPercent'>> & LvmPoolOptions
  readonly #queue = new KeyedQueue()
  readonly #ledger = new Ledger<Entry>()
  readonly #running = new Set<Promise<unknown>>()
  readonly #background = new Set<Promise<void>>()
  readonly #removals: Removals
  #shell: LvmShell | undefined
  #system: LvmSystem | undefined
  #group: VolumeGroup | undefined
  /** Creations and extensions under way, and all since the last look at the group. */
  #changing = 0
  #changedSince = 0
  #thin: {look: Promise<ThinPool>; at: number} | undefined
  /** As the last look has found it. */
  #thinSeen: ThinPool | undefined
  #listing: Promise<void> | undefined
  #stop = new AbortController()
  #backup: NodeJS.Timeout | undefined
  #opening: Promise<void> | undefined
  #closing: Promise<void> | undefined

  constructor(options: LvmPoolOptions) {
    super()
    const {pool, group, thinPool, overcommitRatio = 1, wipe: policy = 'zero', thinLimitPercent = 90} = options
    if (!(overcommitRatio > 0)) throw new TypeError(`An over-commit ratio must be above 0, not ${overcommitRatio}`)
    this.pool = pool
    this.group = checkLvmName(group, 'volume group')
    this.thinPool = thinPool === undefined ? undefined : checkLvmName(thinPool, 'thin pool')
    this.#options = {...options, overcommitRatio, wipe: policy, thinLimitPercent}
    const lvm = (...args: string[]) => this.#lvm(...args)
    const look = (names: readonly string[]) => this.#lookAt(names)
    this.#removals = new Removals({
      group,
      policy,
      lvm,
      look,
      inBackground: work => this.#inBackground(work),
      signal: () => this.#stop.signal,
    })
  }

  /** The shell's process, and whether there is one: `spawn` where each command has a process of its own. */
  get lvm(): {pid: number | undefined; mode: 'shell' | 'spawn'} {
    return {pid: this.#shell?.pid, mode: this.#shell?.mode ?? 'shell'}
  }

  get isOpen(): boolean {
    return this.#opening !== undefined
  }

  async open(): Promise<void> {
    await this.#closing
    this.#opening ??= this.#open().catch(async error => {
      this.#opening = undefined
      await this.#shell?.close()
      this.#shell = undefined
      throw poolError('volume.open', error, {pool: this.pool, group: this.group})
    })
    await this.#opening
  }

  async #open(): Promise<void> {
    const {systemDirectory, scan, program, commandTimeoutMs} = this.#options
    this.#stop = new AbortController()
    const system = await writeLvmSystemDirectory({...scan, directory: systemDirectory, program})
    this.#system = system
    const shell = new LvmShell({
      system,
      program,
      timeoutMs: commandTimeoutMs,
      recover: command => this.#clearUp(command),
    })
    shell.on('lost', facts =>
      this.emit('warning', `the LVM shell was lost and is started anew: ${facts.reason}`, facts),
    )
    shell.on('fallback', facts =>
      this.emit('warning', `no LVM shell can be had, each command is a process of its own: ${facts.reason}`, facts),
    )
    shell.on('unrecovered', error =>
      this.emit('warning', `what a killed LVM command left could not be cleared up: ${(error as Error).message}`, {
        err: error,
      }),
    )
    this.#shell = shell

    await this.#refreshGroup()
    const {unfit, missingDevices} = this.#group!
    if (unfit) throw this.#unusable(unfit)
    if (missingDevices > 0) {
      this.emit('warning', `${missingDevices} devices of the group ${this.group} are missing`, {group: this.group})
    }
    if (this.thinPool !== undefined) await this.#examineThinPool()
    await this.#clearUp(args => shell.run(args))
    const found = await this.#rows()
    for (const volume of found) this.#note(volume)
    await this.#activate()
    for (const {name, role, id, thin} of found) {
      if (role === 'deleted') this.#removals.finish({name, role, id: id!, thin})
      if (role === 'making') this.#inBackground(this.#removals.remove({name, role, id: id!, thin}))
    }
  }

  async create({id, sizeBytes, preallocate}: CreateVolume): Promise<Volume> {
    checkSize(sizeBytes)
    return this.#change('volume.create', id, async () => {
      const wanted: Promised = {sizeBytes: this.#roundUp(sizeBytes), thin: this.#isThin(preallocate)}
      const existing = await this.#adopt(id, wanted.sizeBytes)
      if (existing) return existing
      return this.#withReservation(id, wanted, () => this.#make({...wanted, id, name: id, role: 'id'}))
    })
  }

  clone(source: Volume, {id, sizeBytes, onProgress, signal}: CloneVolume): Promise<Volume> {
    return this.#change('volume.clone', id, async () => {
      const sourceBytes = await this.#sizeOf(source)
      const wantedBytes = checkSize(sizeBytes ?? sourceBytes)
      if (wantedBytes < sourceBytes) throw shrinkError('A clone', {from: sourceBytes, to: wantedBytes})
      const roundedBytes = this.#roundUp(wantedBytes)
      const existing = await this.#adopt(id, roundedBytes)
      if (existing) return existing
      throwIfAborted(signal, id)
      const wanted: Promised = {sizeBytes: roundedBytes, thin: this.#isThin(undefined)}
      const progress = (copiedBytes: number) => onProgress?.({copiedBytes, totalBytes: sourceBytes})
      if (!this.#isOwnThin(source)) {
        return this.#withReservation(id, wanted, () =>
          this.#copy(source, {id, wanted, sourceBytes, onProgress: progress, signal}),
        )
      }
      return this.#withReservation(id, wanted, async () => {
        const grows = roundedBytes > sourceBytes
        const made = await this.#makeSnapshot(source, grows ? 'making' : 'id', id, sourceBytes)
        if (grows) {
          await this.#orQuarantine(made, async () => {
            await this.#lvm('lvextend', '--size', `${roundedBytes}b`, this.#full(made.name))
            await this.#publish(made, id)
          })
          this.#ledger.entries.set(id, {sizeBytes: roundedBytes, thin: true, uuid: ''})
        }
        progress(sourceBytes)
        return this.#remember(id)
      })
    })
  }

  snapshot(source: Volume, id: VolumeId): Promise<Volume> {
    return this.#change('volume.snapshot', id, async () => {
      if (!this.#isOwnThin(source)) {
        throw new StorageError(
          'UNSUPPORTED',
          `${source.id} is not thin, and a snapshot of it would slow it down and live no longer than it: clone it instead`,
          {info: {id: source.id, allocation: source.allocation}},
        )
      }
      const sizeBytes = await this.#sizeOf(source)
      const existing = await this.#adopt(id, sizeBytes)
      if (existing) return existing
      return this.#withReservation(id, {sizeBytes, thin: true}, async () => {
        await this.#makeSnapshot(source, 'id', id, sizeBytes)
        return this.#remember(id)
      })
    })
  }

  extend(volume: Volume, sizeBytes: number): Promise<Volume> {
    return this.#change('volume.extend', volume.id, async () => {
      checkSize(sizeBytes)
      const {id} = volume
      this.#checkOwn(volume)
      const wantedBytes = this.#roundUp(sizeBytes)
      const current = await this.#look(id)
      if (!current) throw missingError(volume)
      if (current.sizeBytes === wantedBytes) return this.#volume(id, current)
      if (sizeBytes < current.sizeBytes) throw shrinkError('A volume', {from: current.sizeBytes, to: sizeBytes})
      return this.#withReservation(id, {sizeBytes: wantedBytes, thin: current.thin}, async () => {
        try {
          await this.#lvm('lvextend', '--size', `${wantedBytes}b`, this.#full(id))
        } catch (error) {
          const now = await this.#look(id)
          if (!now) throw missingError(volume)
          if (now.sizeBytes !== wantedBytes) {
            throw await this.#explain(error, {sizeBytes: wantedBytes - now.sizeBytes, thin: now.thin})
          }
          // The metadata has the new size; the device may have kept the old one.
          await this.#lvm('lvchange', '--refresh', this.#full(id))
        }
        return this.#remember(id)
      })
    })
  }

  delete(volume: Volume): Promise<void> {
    return this.#change('volume.delete', volume.id, async () => {
      const {id} = volume
      this.#checkOwn(volume)
      const entry = this.#ledger.entries.get(id) ?? (await this.#look(id))
      if (entry) await this.#removals.remove({name: id, role: 'id', id, thin: entry.thin})
      this.#ledger.entries.delete(id)
    })
  }

  async list(): Promise<Volume[]> {
    this.#checkOpen('volume.list')
    await this.#poolErrors('volume.list', () => this.#refresh())
    return [...this.#ledger.entries]
      .map(([id, entry]) => this.#volume(id, entry))
      .sort((a, b) => (a.id < b.id ? -1 : 1))
  }

  async get(id: VolumeId): Promise<Volume | undefined> {
    if (!isVolumeId(id)) return undefined
    this.#checkOpen('volume.get')
    const entry = await this.#poolErrors('volume.get', () => this.#look(id))
    return entry && this.#volume(id, entry)
  }

  async capacity(): Promise<PoolCapacity> {
    this.#checkOpen('volume.capacity')
    return this.#poolErrors('volume.capacity', async () => {
      const [group, thin] = await Promise.all([
        this.#refreshGroup(),
        this.thinPool === undefined ? undefined : this.#thinPool(),
      ])
      const thinFreeBytes = thin ? Math.floor(thin.sizeBytes * (1 - thin.dataPercent / 100)) : 0
      return {
        pool: this.pool,
        driver: this.name,
        totalBytes: group.sizeBytes,
        freeBytes: group.freeBytes + thinFreeBytes,
        provisionedBytes: this.#ledger.sum({settled: true}),
        limitBytes: this.#limitBytes(thin),
        metadataArea: {sizeBytes: group.metadataAreaBytes, freeBytes: group.metadataAreaFreeBytes},
        ...(thin && {
          thin: {
            name: thin.name,
            totalBytes: thin.sizeBytes,
            dataPercent: thin.dataPercent,
            metadataPercent: thin.metadataPercent,
          },
        }),
      }
    })
  }

  async look(): Promise<void> {
    this.#checkOpen('volume.look')
    await this.#poolErrors('volume.look', async () => {
      const {uuid} = this.#group!
      const group = await this.#refreshGroup()
      if (group.uuid !== uuid) {
        throw this.#unusable(`another group has its name now (${group.uuid}, and it was ${uuid})`)
      }
      if (group.unfit) throw this.#unusable(group.unfit)
      if (this.thinPool !== undefined) await this.#examineThinPool()
    })
  }

  async settled(): Promise<void> {
    while (this.#background.size > 0) await Promise.all(this.#background)
  }

  /** A wipe that runs ends between two pieces; the next open() does it again. */
  async close(): Promise<void> {
    if (this.#opening !== undefined) {
      const opening = this.#opening
      this.#opening = undefined
      this.#closing = this.#finish(opening)
    }
    await this.#closing
  }

  async #finish(opening: Promise<void>): Promise<void> {
    await opening.catch(() => undefined)
    await Promise.allSettled(this.#running)
    this.#stop.abort()
    await this.settled()
    if (this.#backup) await this.#backUp()
    await this.#shell?.close()
    this.#shell = undefined
    this.#ledger.entries.clear()
  }

  // ---- Making ---------------------------------------------------------------------------------------------------

  async #make({id, name, role, sizeBytes, thin}: Promised & {id: VolumeId; name: string; role: Role}): Promise<Volume> {
    const size = `${sizeBytes}b`
    const space = thin
      ? ['--virtualsize', size, '--thin', this.#full(this.thinPool!)]
      : ['--wipesignatures', 'y', '--zero', 'y', '--size', size, this.group]
    await this.#lvcreate({id, name, role, sizeBytes, thin}, space)
    const entry: Entry = {sizeBytes, thin, uuid: ''}
    if (role === 'id') this.#ledger.entries.set(id, entry)
    return this.#volume(id, entry)
  }

  /** One command. An interrupted one is cleared away, by the tag that it alone has set, and tried once more. */
  async #lvcreate(
    {id, name, role, sizeBytes, thin}: Promised & {id: VolumeId; name: string; role: Role},
    space: string[],
    again = true,
  ): Promise<void> {
    await this.#removals.left(name)
    const made = randomBytes(4).toString('hex')
    const tags = ['--addtag', tag(role, id), '--addtag', tag('made', made)]
    try {
      await this.#lvm('lvcreate', '--name', name, ...tags, ...space)
    } catch (error) {
      const left = await this.#row(name)
      // What this very command has made, and did not finish: it may not be active, or hold what was on the disk before.
      if (left?.made === made && left.role === role) await this.#removals.remove({name, role, id, thin: left.thin})
      else if (left) throw new ExistsError(left)
      if (again && wasInterrupted(error)) return this.#lvcreate({id, name, role, sizeBytes, thin}, space, false)
      throw await this.#explain(error, {sizeBytes, thin})
    }
  }

  /** A thin snapshot: a volume of its own that shares what neither has changed. */
  async #makeSnapshot(source: Volume, role: 'id' | 'making', id: VolumeId, sizeBytes: number): Promise<Making> {
    const name = role === 'id' ? id : hiddenName(role, id, randomBytes(4).toString('hex'))
    await flush(source.path)
    // Thin snapshots are made so that they stay inactive; -k n makes an ordinary volume of this one (lvmthin(7)).
    const space = ['--snapshot', '--setactivationskip', 'n', '--activate', 'y', this.#full(source.id)]
    await this.#lvcreate({id, name, role, sizeBytes, thin: true}, space).catch(async error => {
      if (!(await this.#row(source.id))) throw missingError(source)
      throw error
    })
    if (role === 'id') this.#ledger.entries.set(id, {sizeBytes, thin: true, uuid: ''})
    return {name, role, id, thin: true}
  }

  async #copy(
    source: Volume,
    {
      id,
      wanted,
      sourceBytes,
      onProgress,
      signal,
    }: {
      id: VolumeId
      wanted: Promised
      sourceBytes: number
      onProgress: (copiedBytes: number) => void
      signal: AbortSignal | undefined
    },
  ): Promise<Volume> {
    const from = await openSource(source)
    try {
      const made: Making = {
        name: hiddenName('making', id, randomBytes(4).toString('hex')),
        role: 'making',
        id,
        thin: wanted.thin,
      }
      await this.#make({...wanted, ...made})
      return await this.#orQuarantine(made, async () => {
        const target = await openExclusively(this.#path(made.name), (await this.#row(made.name))?.device ?? '')
        try {
          await copyFileContents({
            source: from,
            target,
            sizeBytes: sourceBytes,
            blank: wanted.thin,
            onProgress,
            beforeChunk: () => throwIfAborted(signal, id),
          })
          await target.sync()
          // Beyond its source a volume that is not thin would hold what was on the disk before.
          if (!wanted.thin) await zeroRange(target, {start: sourceBytes, end: wanted.sizeBytes, signal})
        } finally {
          await target.close()
        }
        throwIfAborted(signal, id)
        await this.#publish(made, id)
        return this.#remember(id)
      })
    } finally {
      await from.close()
    }
  }

  /** Makes a volume of what is whole. The change of its tags is the commit point. */
  async #publish({name, role}: Making, id: VolumeId): Promise<void> {
    await this.#removals.left(id)
    await this.#lvm('lvrename', this.group, name, id).catch(async error => {
      const there = await this.#row(id)
      if (there) throw new ExistsError(there)
      throw error
    })
    await this.#lvm('lvchange', '--addtag', tag('id', id), '--deltag', tag(role, id), this.#full(id))
  }

  async #orQuarantine<T>(made: Making, task: () => Promise<T>): Promise<T> {
    try {
      return await task()
    } catch (error) {
      const all = await this.#rows().catch(() => [])
      const left = all.find(volume => volume.role === made.role && volume.id === made.id)
      if (left) await this.#removals.remove({...made, name: left.name}).catch(() => undefined)
      throw error
    }
  }

  // ---- In the background ----------------------------------------------------------------------------------------

  /** Nobody waits for it: what fails is told, and tried again by the next open(). */
  #inBackground(work: Promise<void>): void {
    const settled: Promise<void> = work
      .catch(error => {
        if (this.#stop.signal.aborted) return
        this.emit('warning', `a deleted volume is not gone yet: ${(error as Error).message}`, {err: error})
      })
      .finally(() => this.#background.delete(settled))
    this.#background.add(settled)
  }

  // ---- Limits ---------------------------------------------------------------------------------------------------

  #isThin(preallocate: boolean | undefined): boolean {
    if (preallocate === false && this.thinPool === undefined) {
      throw new StorageError('UNSUPPORTED', `The pool ${this.pool} has no thin pool, so its volumes cannot be thin`, {
        info: {pool: this.pool, group: this.group},
      })
    }
    return this.thinPool !== undefined && preallocate !== true
  }

  /** Runs `task` with the volume's outcome reserved. @throws POOL_FULL */
  async #withReservation<T>(id: VolumeId, wanted: Promised, task: () => Promise<T>): Promise<T> {
    if (this.#objection(id, wanted)) {
      // The group or its thin pool may have grown since they were last looked at.
      this.#thin = undefined
      await Promise.all([this.#refreshGroup(), this.thinPool === undefined ? undefined : this.#thinPool()])
      const objection = this.#objection(id, wanted)
      if (objection) throw objection
    }
    // Without an await between check and reservation: of two that run at once the second sees the first.
    this.#changing++
    this.#changedSince++
    return this.#ledger
      .reserve(id, wanted, async () => {
        if (wanted.thin) this.#checkFill(await this.#thinPool())
        return task()
      })
      .finally(() => this.#changing--)
  }

  #objection(id: VolumeId, wanted: Promised): StorageError | undefined {
    const {metadataAreaFreeBytes} = this.#group!
    if (metadataAreaFreeBytes < metadataReserveBytes + (this.#changedSince + 1) * volumeMetadataBytes) {
      return this.#metadataError(this.#group!)
    }
    const limitBytes = this.#limitBytes(this.#thinSeen)
    const promisedBytes = this.#ledger.sum({with: [id, wanted]})
    if (promisedBytes > limitBytes) return this.#limitError({limitBytes, promisedBytes})
    if (!wanted.thin) return undefined
    const thinLimitBytes = Math.floor((this.#thinSeen?.sizeBytes ?? 0) * Math.max(1, this.#options.overcommitRatio))
    const thinBytes = this.#ledger.sum({with: [id, wanted], thin: true})
    return thinBytes > thinLimitBytes
      ? this.#limitError({limitBytes: thinLimitBytes, promisedBytes: thinBytes})
      : undefined
  }

  /** Thin space counts times the ratio; of the rest there is no more than there is. */
  #limitBytes(thin: ThinPool | undefined): number {
    const {overcommitRatio} = this.#options
    const thinBytes = thin?.sizeBytes ?? 0
    return Math.floor(thinBytes * overcommitRatio + (this.#group!.sizeBytes - thinBytes) * Math.min(1, overcommitRatio))
  }

  #limitError({limitBytes, promisedBytes}: {limitBytes: number; promisedBytes: number}): StorageError {
    return new StorageError(
      'POOL_FULL',
      `Pool ${this.pool} may provision ${formatSize(limitBytes)}: with this volume it would be ${formatSize(promisedBytes)}`,
      {info: {pool: this.pool, limitBytes, wantedBytes: promisedBytes}},
    )
  }

  #metadataError({metadataAreaBytes, metadataAreaFreeBytes}: VolumeGroup): StorageError {
    return new StorageError(
      'POOL_FULL',
      `The metadata area of the group ${this.group} has room for ${metadataAreaFreeBytes} bytes more, and a volume takes up to ${volumeMetadataBytes}; ${metadataReserveBytes} are kept for deletions. Delete volumes, or give the group a device with a larger area (pvcreate --metadatasize) and have LVM ignore the others (pvchange --metadataignore y)`,
      {info: {pool: this.pool, group: this.group, metadataAreaBytes, metadataAreaFreeBytes}},
    )
  }

  #checkFill({name, dataPercent, metadataPercent, health}: ThinPool): void {
    const {thinLimitPercent} = this.#options
    const full = Math.max(dataPercent, metadataPercent) >= thinLimitPercent || health !== ''
    if (!full) return
    throw new StorageError(
      'POOL_FULL',
      `The thin pool ${this.#full(name)} has ${dataPercent} % of its data and ${metadataPercent} % of its metadata space in use${health && `, and LVM says: ${health}`}; nothing thin is made from ${thinLimitPercent} % on. Grow it (lvextend, lvextend --poolmetadatasize) or delete volumes`,
      {info: {pool: this.pool, thinPool: name, dataPercent, metadataPercent, health}},
    )
  }

  /** What a failed command means, by a look at the world: LVM's exit status tells failures apart from nothing. */
  async #explain(error: unknown, {sizeBytes, thin}: Promised): Promise<unknown> {
    if (!hasCode(error, 'COMMAND_FAILED') || wasInterrupted(error)) return error
    if (thin) {
      this.#thin = undefined
      this.#checkFill(await this.#thinPool())
      return error
    }
    const {freeBytes} = await this.#refreshGroup()
    if (freeBytes >= sizeBytes) return error
    const wiping = this.#background.size > 0 ? '; what was deleted is still being wiped' : ''
    return new StorageError(
      'POOL_FULL',
      `The group ${this.group} has ${formatSize(freeBytes)} free: ${formatSize(sizeBytes)} do not fit${wiping}`,
      {info: {pool: this.pool, freeBytes, wantedBytes: sizeBytes}, cause: error},
    )
  }

  #roundUp(sizeBytes: number): number {
    const {extentBytes} = this.#group!
    return checkSize(Math.ceil(sizeBytes / extentBytes) * extentBytes)
  }

  // ---- Looking --------------------------------------------------------------------------------------------------

  async #refreshGroup(): Promise<VolumeGroup> {
    const look = (...groups: string[]) => this.#lvm('vgs', ...inBytes, '-o', groupFields, ...groups)
    const {rows} = await look(this.group).catch(async error => {
      if (!hasCode(error, 'COMMAND_FAILED') || wasInterrupted(error)) throw error
      // LVM has one exit status for "not there" and "cannot say". Where all can be listed the group is not there.
      const all = await look().catch(() => undefined)
      if (all && !all.rows.some(({vg_name}) => vg_name === this.group)) throw this.#missing(all.rows)
      throw error
    })
    const row = rows[0]
    if (!row) throw this.#missing([])
    this.#group = readGroup(row)
    // What is under way may be in the metadata already, or not.
    this.#changedSince = this.#changing
    return this.#group
  }

  #missing(others: readonly LvmRow[]): StorageError {
    const renamed = this.#group && others.find(({vg_uuid}) => vg_uuid === this.#group?.uuid)
    if (renamed) {
      const {vg_name: now} = renamed
      return this.#unusable(`it was renamed to ${now}: vgrename ${now} ${this.group} gives the name back`)
    }
    const forbidden = this.#system!.forbidden()
    const filters = `the filters of this host's lvm.conf forbid LVM to look at ${forbidden.join(', ')}`
    return this.#unusable(
      `there is no such group${forbidden.length > 0 ? `; ${filters}` : ''}. Bring its devices back (vgs and pvs show what LVM sees); lunpath looks again by itself`,
    )
  }

  async #examineThinPool(): Promise<void> {
    const {rows} = await this.#lvm('lvs', ...inBytes, '-o', thinFields, this.group)
    const row = rows.find(({lv_name}) => lv_name === this.thinPool)
    const isPool = row?.lv_layout?.split(',').includes('pool') && row.lv_layout.includes('thin')
    if (isPool) {
      await this.#thinPool()
      return
    }
    const what = row ? 'is no thin pool' : 'is not there'
    throw this.#unusable(
      `its thin pool ${this.thinPool} ${what}: make it with lunpath pool create --vg ${this.group} --thin`,
    )
  }

  /** The thin pool as it is, or was a moment ago: those who ask at once share one look. */
  #thinPool(): Promise<ThinPool> {
    const now = performance.now()
    if (this.#thin && now - this.#thin.at <= thinAgeMs) return this.#thin.look
    const look = this.#lvm('lvs', ...inBytes, '-o', thinFields, this.#full(this.thinPool!)).then(({rows}) => {
      this.#thinSeen = readThinPool(rows[0]!)
      return this.#thinSeen
    })
    this.#thin = {look, at: now}
    look.catch(() => {
      if (this.#thin?.look === look) this.#thin = undefined
    })
    return look
  }

  async #rows(): Promise<LogicalVolume[]> {
    const {rows} = await this.#lvm('lvs', ...inBytes, '-o', volumeFields, this.group)
    // A shell that has changed a thin pool shows its parts too, in brackets, though they were not asked for.
    return rows.filter(({lv_name}) => !lv_name!.startsWith('[')).map(readVolume)
  }

  /** One logical volume of any name, or undefined. */
  async #row(name: string): Promise<LogicalVolume | undefined> {
    return (await this.#lookAt([name])).get(name)
  }

  /** Those that are there, by name. */
  async #lookAt(names: readonly string[]): Promise<Map<string, LogicalVolume>> {
    const byName = (volumes: LogicalVolume[]) =>
      new Map(volumes.filter(({name}) => names.includes(name)).map(volume => [volume.name, volume]))
    try {
      const {rows} = await this.#lvm('lvs', ...inBytes, '-o', volumeFields, ...names.map(name => this.#full(name)))
      return byName(rows.map(readVolume))
    } catch (error) {
      if (!hasCode(error, 'COMMAND_FAILED')) throw error
      // LVM has one exit status for "not there" and "cannot say". Where all can be listed it is not there.
      return byName(await this.#rows())
    }
  }

  /** Brings the index up to date, except where a change has set an entry meanwhile. Callers at once share one look. */
  #refresh(): Promise<void> {
    this.#listing ??= this.#list().finally(() => {
      this.#listing = undefined
    })
    return this.#listing
  }

  async #list(): Promise<void> {
    const {entries} = this.#ledger
    const before = new Map(entries)
    const present = new Map((await this.#rows()).filter(isVolume).map(volume => [volume.id, volume]))
    for (const id of new Set([...before.keys(), ...present.keys()])) {
      if (entries.get(id!) !== before.get(id!)) continue
      const volume = present.get(id)
      if (volume) this.#note(volume)
      else entries.delete(id!)
    }
  }

  async #look(id: VolumeId): Promise<Entry | undefined> {
    const {entries} = this.#ledger
    const before = entries.get(id)
    const volume = await this.#row(id)
    if (entries.get(id) !== before) return entries.get(id)
    if (!volume || !isVolume(volume)) entries.delete(id)
    else this.#note(volume)
    return entries.get(id)
  }

  #note(volume: LogicalVolume): void {
    if (!isVolume(volume)) return
    const {id, sizeBytes, thin, uuid} = volume
    this.#ledger.entries.set(id!, {sizeBytes, thin, uuid})
  }

  async #remember(id: VolumeId): Promise<Volume> {
    const entry = await this.#look(id)
    if (!entry) throw missingError({id, path: this.#path(id)})
    return this.#volume(id, entry)
  }

  /** What an earlier attempt has left under this id: nothing, the same volume, or a conflict. */
  async #adopt(id: VolumeId, sizeBytes: number): Promise<Volume | undefined> {
    if (!this.#ledger.entries.has(id)) return undefined
    const entry = await this.#look(id)
    if (!entry) return undefined
    if (entry.sizeBytes !== sizeBytes)
      throw existsError(id, this.#path(id), {sizeBytes, existingBytes: entry.sizeBytes})
    return this.#volume(id, entry)
  }

  /** After a boot, or a kill in mid-command, volumes may have no device. */
  async #activate(): Promise<void> {
    const {rows} = await this.#lvm('lvs', '-o', 'lv_name,lv_active', this.group)
    const inactive = rows
      .filter(({lv_name, lv_active}) => lv_active !== 'active' && this.#ledger.entries.has(lv_name!))
      .map(({lv_name}) => this.#full(lv_name!))
    const atOnce = 32
    for (let start = 0; start < inactive.length; start += atOnce) {
      const some = inactive.slice(start, start + atOnce)
      await this.#lvm('lvchange', '--activate', 'y', '--ignoreactivationskip', ...some).catch(error =>
        this.emit('warning', `volumes could not be activated: ${(error as Error).message}`, {err: error}),
      )
    }
  }

  /** Killed while it activates the thin pool, LVM leaves parts of it active, and refuses the pool as long as they are. */
  async #releaseThinParts(command: LvmRun): Promise<void> {
    if (this.thinPool === undefined) return
    const active = new Set((await mappedDevices()).map(({name}) => name))
    const pool = mappedName(this.group, this.thinPool)
    if (active.has(pool) || active.has(`${pool}-tpool`)) return
    for (const part of [`${this.thinPool}_tmeta`, `${this.thinPool}_tdata`]) {
      if (!active.has(mappedName(this.group, part))) continue
      await command(['lvchange', '--activate', 'n', this.#full(part)])
      this.emit('warning', `deactivated ${part}, which a killed LVM command had left`, {volume: part})
    }
  }

  /**
   * Compares device-mapper with the metadata and removes the devices that a killed command of ours has left; resumes
   * what one has left suspended. Devices that are not of our volumes stay.
   */
  async #clearUp(command: LvmRun): Promise<void> {
    const {rows} = await command(['lvs', '-a', '-o', 'lv_name,lv_uuid,vg_uuid', this.group])
    const known = rows.map(row => ({name: row.lv_name!.replace(/^\[(.*)\]$/, '$1'), uuid: row.lv_uuid!}))
    const groupUuid = rows[0]?.vg_uuid ?? this.#group?.uuid
    if (groupUuid === undefined) return
    const facts = {group: this.group, groupUuid, known, isOurs: isOurName}
    for (const {name, number} of orphanedDevices(await mappedDevices(), facts)) {
      // dmsetup removes no device that is open (dmsetup(8)).
      await run('dmsetup', ['remove', '--retry', name], {timeoutMs: 30_000, env: withoutUdevd()})
      this.emit('warning', `removed ${name}, which a killed LVM command had left`, {device: name, number})
    }
    await this.#releaseThinParts(command)
    const suspended = suspendedVolumes(await mappedDevices(), facts)
    if (suspended.length === 0) return
    await new Promise(resolve => setTimeout(resolve, suspendedMs))
    const still = new Set(suspendedVolumes(await mappedDevices(), facts))
    for (const name of suspended.filter(
      one => still.has(one) && (isOurName(one) || one.startsWith(`${this.thinPool}`)),
    )) {
      await command(['lvchange', '--refresh', this.#full(name)])
      this.emit('warning', `resumed ${name}, which a killed LVM command had left suspended`, {volume: name})
    }
  }

  async #backUp(): Promise<void> {
    clearTimeout(this.#backup)
    this.#backup = undefined
    await this.#lvm('vgcfgbackup', this.group).catch(error =>
      this.emit('warning', `no copy of the metadata was written: ${(error as Error).message}`, {err: error}),
    )
  }

  // ---- Helpers --------------------------------------------------------------------------------------------------

  /** One change at a time per id, after a check of what the caller gave. */
  #change<T>(op: string, id: VolumeId, task: () => Promise<T>): Promise<T> {
    const change = this.#queue.run(id, async () => {
      checkVolumeId(id, op)
      this.#checkOpen(op)
      return this.#poolErrors(op, async () => {
        try {
          return await task()
        } catch (error) {
          if (!(error instanceof ExistsError)) throw error
          // A volume that appeared behind the driver's back: it is taken into the index, and the change tried again.
          if ((await this.#look(id)) === undefined) throw foreignError(error.found, this.#path(error.found.name))
          return await task()
        }
      })
    })
    this.#running.add(change)
    const done = () => {
      this.#running.delete(change)
      if (this.#shell) this.#backup ??= setTimeout(() => void this.#backUp(), backupMs).unref()
    }
    change.then(done, done)
    return change
  }

  async #poolErrors<T>(op: string, task: () => Promise<T>): Promise<T> {
    try {
      return await task()
    } catch (error) {
      throw poolError(op, error, {pool: this.pool, group: this.group})
    }
  }

  /** A command that is the same done twice is tried again where its shell was lost. */
  async #lvm(...args: string[]): ReturnType<LvmRun> {
    try {
      return await this.#shell!.run(args)
    } catch (error) {
      if (!wasInterrupted(error) || !repeatable.has(args[0]!)) throw error
      return this.#shell!.run(args)
    }
  }

  #full(name: string): string {
    return `${this.group}/${name}`
  }

  #path(name: string): string {
    return `/dev/${this.group}/${name}`
  }

  #volume(id: VolumeId, {sizeBytes, thin}: Promised): Volume {
    return {
      id,
      driver: this.name,
      pool: this.pool,
      path: this.#path(id),
      kind: 'block',
      sizeBytes,
      allocation: thin ? 'sparse' : 'preallocated',
      imported: false,
    }
  }

  #isOwnThin(source: Volume): boolean {
    return (
      !source.imported &&
      source.driver === this.name &&
      source.pool === this.pool &&
      source.allocation === 'sparse' &&
      source.path === this.#path(source.id)
    )
  }

  /** Bytes of a volume of this or another pool. */
  async #sizeOf(source: Volume): Promise<number> {
    if (this.#isOwnThin(source)) {
      const found = await this.#look(source.id)
      if (!found) throw missingError(source)
      return found.sizeBytes
    }
    const handle = await openSource(source)
    try {
      const stats = await handle.stat()
      // stat(2) gives no size for a block device.
      return stats.isFile() ? stats.size : source.sizeBytes
    } finally {
      await handle.close()
    }
  }

  #checkOwn(volume: Volume): void {
    const info = {id: volume.id, path: volume.path, pool: volume.pool}
    if (volume.imported) {
      throw new StorageError(
        'VOLUME_IMPORTED',
        `Volume ${volume.id} was imported: lunpath never resizes or removes it`,
        {info},
      )
    }
    if (volume.driver !== this.name || volume.pool !== this.pool || volume.path !== this.#path(volume.id)) {
      throw new StorageError('INVALID_ARGUMENT', `Volume ${volume.id} at ${volume.path} is not of pool ${this.pool}`, {
        info,
      })
    }
  }

  #checkOpen(op: string): void {
    if (!this.isOpen) {
      throw new StorageError('POOL_UNUSABLE', `Pool ${this.pool} is not open`, {op, info: {pool: this.pool}})
    }
  }

  #unusable(reason: string): StorageError {
    return new StorageError('POOL_UNUSABLE', `The volume group ${this.group} cannot be a pool: ${reason}`, {
      op: 'volume.open',
      info: {pool: this.pool, group: this.group},
    })
  }
}

/** A logical volume that is not there for good: under which name, in which role. */
interface Making {
  name: string
  role: Role
  id: VolumeId
  thin: boolean
}

/** Carries what was found under a name that was to be taken. */
class ExistsError extends Error {
  readonly found: LogicalVolume

  constructor(found: LogicalVolume) {
    super(`${found.name} exists`)
    this.found = found
  }
}

function isVolume({role, id, name}: LogicalVolume): boolean {
  return role === 'id' && id === name
}

async function openSource(source: Volume): Promise<FileHandle> {
  return open(source.path, constants.O_RDONLY).catch((cause: NodeJS.ErrnoException) => {
    throw cause.code === 'ENOENT' ? missingError(source) : cause
  })
}

/** Brings what the page cache holds for a device to it, so that a snapshot has it. */
async function flush(path: string): Promise<void> {
  const handle = await open(path, constants.O_RDONLY).catch(() => undefined)
  try {
    await handle?.sync()
  } finally {
    await handle?.close()
  }
}

function missingError({id, path}: Pick<Volume, 'id' | 'path'>): StorageError {
  return new StorageError('VOLUME_MISSING', `The volume ${id} is gone: ${path}`, {info: {id, path}})
}

function foreignError({name}: LogicalVolume, path: string): StorageError {
  return new StorageError('VOLUME_EXISTS', `${path} exists and is not a volume of lunpath`, {info: {id: name, path}})
}

/** LVM's failures, and errnos of the devices, as what the operator can act on. */
function poolError(op: string, error: unknown, info: Record<string, unknown>): unknown {
  if (error instanceof StorageError && error.code !== 'COMMAND_FAILED') return error
  const errno = (error as NodeJS.ErrnoException | null)?.code
  if (typeof errno !== 'string') return error
  return new StorageError('POOL_UNUSABLE', `${op} failed in pool ${info.pool}: ${(error as Error).message}`, {
    op,
    info: {...info, ...(error instanceof StorageError ? error.info : {})},
    cause: error,
  })
}
