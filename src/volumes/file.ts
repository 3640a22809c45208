import {randomBytes} from 'node:crypto'
import type {Stats} from 'node:fs'
import * as fs from 'node:fs'
import {
  chmod,
  type FileHandle,
  link,
  lstat,
  mkdir,
  open,
  readdir,
  readFile,
  realpath,
  rename,
  stat,
  unlink,
} from 'node:fs/promises'
import {dirname, join} from 'node:path'
import {promisify} from 'node:util'
import {fileUse} from '../device-use.js'
import {type ErrorCode, ignoreErrno, StorageError} from '../errors.js'
import {KeyedQueue} from '../lock.js'
import {checkSize, formatSize, sectorBytes} from '../size.js'
import type {Volume, VolumeId} from '../types.js'
import {copyFileContents, reflink} from './copy.js'
import {DirectorySync} from './directory-sync.js'
import type {CloneVolume, CreateVolume, PoolCapacity, VolumeDriver} from './driver.js'
import {existsError, shrinkError, throwIfAborted} from './errors.js'
import {examineFileSystem, type FileSystem} from './file-system.js'
import {checkVolumeId, isVolumeId} from './id.js'
import {checkBackingPath} from './path.js'
import {reserveSpace} from './preallocate.js'
import {SparseFiles} from './sparse-files.js'

/**
 * What is remembered of a pool elsewhere, so that the empty directory below a file system that is not mounted is not taken
 * for it.
 */
export interface PoolIdentity {
  /** The id in the pool's marker; undefined where none has been remembered. */
  markerId(): string | undefined
  /** The volumes that the pool is to hold. */
  volumeIds(): readonly VolumeId[]
  /** Remembers the marker's id, durably. */
  keep(markerId: string): Promise<void>
}

export interface FilePoolOptions {
  /** Name of the pool, as `Volume.pool` carries it. */
  pool: string
  /** Absolute path. Made by open() where only its last part is missing. */
  directory: string
  /** Most that may be provisioned, as a multiple of the file system's size; default 1. */
  overcommitRatio?: number
  /** Default: any directory that is a pool, or can become one, is this pool. */
  identity?: PoolIdentity
}

const fileName = (id: VolumeId) => `${id}.img`

/** Says that a directory is a pool of ours, so that a directory with somebody else's images is never taken for one. */
export const poolMarker = '.lunpath-pool'
const markerVersion = 1

const volumeName = /^([0-9a-f]{16})\.img$/
/** What is being made or removed: nothing that anybody was promised. */
const transientName = /^\.(tmp|quarantine)-[0-9a-f]{16}-[0-9a-f]+$/
const markerInMaking = /^\.lunpath-pool-[0-9a-f]{8}$/
const scanConcurrency = 32

const {O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_RDONLY, O_RDWR, O_WRONLY} = fs.constants

const openFd = promisify(fs.open)
const fstatFd = promisify(fs.fstat) as (fd: number) => Promise<Stats>

interface IndexEntry {
  sizeBytes: number
  allocation: Volume['allocation']
}

/**
 * A directory of raw image files, `<id>.img`.
 *
 * A sparse volume is made under its own name, many in one go: open with O_EXCL, ftruncate, fsync, then an fsync of the
 * directory. A file of size 0 is therefore one that nobody was promised, and open() removes
 * it. What takes longer (a preallocation, a copy) is made under a temporary name and linked to its own when it is whole,
 * because link(2), other than rename(2), never replaces a file.
 *
 * `allocation` is observed, not recorded: a volume whose blocks are all there counts as preallocated.
 * One process at a time may have a pool open; the daemon's store lock sees to that.
 */
export class FileVolumeDriver implements VolumeDriver {
  readonly name = 'file'
  readonly pool: string
  readonly #directoryGiven: string
  readonly #overcommitRatio: number
  readonly #identity: PoolIdentity | undefined
  readonly #queue = new KeyedQueue()
  readonly #index = new Map<VolumeId, IndexEntry>()
  readonly #background = new Set<Promise<void>>()
  readonly #running = new Set<Promise<unknown>>()
  #directory = ''
  #directoryFd: number | undefined
  /** `st_dev:st_ino` of what was opened. */
  #opened = ''
  #directorySync: DirectorySync | undefined
  #sparseFiles: SparseFiles | undefined
  #fileSystem: FileSystem | undefined
  #provisionedBytes = 0
  /** Bytes that a running create, clone or extension will add: taken before its first await, so that parallel ones cannot pass the limit. */
  readonly #reservations = new Map<VolumeId, number>()
  #reservedBytes = 0
  #closing: Promise<void> | undefined

  constructor({pool, directory, overcommitRatio = 1, identity}: FilePoolOptions) {
    if (!(overcommitRatio > 0)) throw new TypeError(`An over-commit ratio must be above 0, not ${overcommitRatio}`)
    this.pool = pool
    this.#directoryGiven = directory
    this.#overcommitRatio = overcommitRatio
    this.#identity = identity
  }

  /** Name and size of the file system below, as open() or the last capacity() found it. */
  get fileSystem(): FileSystem | undefined {
    return this.#fileSystem
  }

  get isOpen(): boolean {
    return this.#directoryFd !== undefined
  }

  async open(): Promise<void> {
    if (this.isOpen) return
    await this.#closing
    const make = this.#identity?.markerId() === undefined && this.#storedIds().length === 0
    const examined = await examinePool(this.#directoryGiven, {make}).catch(error => {
      throw make ? error : this.#notThePool((error as Error).message, error)
    })
    this.#directory = examined.directory
    this.#fileSystem = examined.fileSystem
    try {
      const markerId = await this.#identify(examined)
      if (examined.markerId !== markerId) await writeMarker(this.#directory, markerId)
      if (this.#identity && this.#identity.markerId() !== markerId) await this.#identity.keep(markerId)
      const fd = await openFd(this.#directory, O_RDONLY | O_DIRECTORY)
      this.#directoryFd = fd
      this.#opened = deviceAndInode(await fstatFd(fd))
      this.#directorySync = new DirectorySync(fd)
      this.#sparseFiles = new SparseFiles(this.#directory)
      await this.#finishInterrupted()
    } catch (error) {
      await this.close()
      throw poolError('volume.open', error, {pool: this.pool, directory: this.#directory})
    }
  }

  /** The id of the pool's marker: what it has, or is to get. @throws POOL_UNUSABLE where this is not the pool */
  async #identify({directory, marked, markerId}: ExaminedPool): Promise<string> {
    const known = this.#identity?.markerId()
    if (known !== undefined && known === markerId) return known
    const ids = this.#storedIds()
    if (known !== undefined || ids.length > 0) {
      if (!marked) throw this.#notThePool(`${directory} has no ${poolMarker}`)
      if (known !== undefined && markerId !== undefined) {
        throw this.#notThePool(`the ${poolMarker} in ${directory} is that of another pool (${markerId}, not ${known})`)
      }
      // A marker from before they had ids, or a store from before it knew them: the volumes tell.
      const images = new Set(await readdir(directory))
      const there = ids.filter(id => images.has(fileName(id)))
      if (there.length * 2 < ids.length) {
        throw this.#notThePool(`${directory} has ${there.length} of its ${ids.length} volumes`)
      }
    }
    return known ?? markerId ?? randomBytes(8).toString('hex')
  }

  #storedIds(): readonly VolumeId[] {
    return this.#identity?.volumeIds() ?? []
  }

  #notThePool(reason: string, cause?: unknown): StorageError {
    const directory = this.#directoryGiven
    return new StorageError(
      'POOL_UNUSABLE',
      `The pool ${this.pool} is not at ${directory}: ${reason}. Mount its file system there (findmnt --target ${directory} shows what is); lunpath looks again by itself`,
      {op: 'volume.open', info: {pool: this.pool, directory, markerId: this.#identity?.markerId()}, cause},
    )
  }

  async look(): Promise<void> {
    await this.#checkUsable('volume.look')
  }

  async create({id, sizeBytes, preallocate = false}: CreateVolume): Promise<Volume> {
    checkSize(sizeBytes)
    return this.#change('volume.create', id, async () => {
      const existing = await this.#adopt(id, sizeBytes)
      if (existing) return existing
      return this.#withReservation(id, sizeBytes, async () => {
        if (!preallocate) return this.#createSparse(id, sizeBytes)
        return this.#publish(id, async temporary => {
          await makeFile(temporary, sizeBytes)
          await this.#reserve(temporary, sizeBytes)
        })
      })
    })
  }

  clone(source: Volume, {id, sizeBytes, onProgress, signal}: CloneVolume): Promise<Volume> {
    return this.#change('volume.clone', id, async () => {
      const from = await openSource(source)
      try {
        const {sizeBytes: sourceBytes} = from
        const wanted = checkSize(sizeBytes ?? sourceBytes)
        if (wanted < sourceBytes) throw shrinkError('A clone', {from: sourceBytes, to: wanted})
        const existing = await this.#adopt(id, wanted)
        if (existing) return existing
        throwIfAborted(signal, id)
        return await this.#withReservation(id, wanted, () =>
          this.#publish(id, async temporary => {
            const progress = (copiedBytes: number) => onProgress?.({copiedBytes, totalBytes: sourceBytes})
            if (source.kind === 'file' && (await reflink(source.path, temporary))) {
              // A reflink takes the mode of its source with it.
              await chmod(temporary, 0o600)
              await resizeFile(temporary, wanted)
              progress(sourceBytes)
              return
            }
            await makeFile(temporary, wanted)
            const target = await open(temporary, O_WRONLY | O_NOFOLLOW)
            try {
              await copyFileContents({
                source: from.handle,
                target,
                sizeBytes: sourceBytes,
                blank: true,
                onProgress: progress,
                beforeChunk: () => throwIfAborted(signal, id),
              })
            } finally {
              await target.close()
            }
          }),
        )
      } finally {
        await from.handle.close()
      }
    })
  }

  snapshot(source: Volume, id: VolumeId): Promise<Volume> {
    return this.#change('volume.snapshot', id, async () => {
      this.#ownPath(source)
      const from = await openSource(source)
      const {sizeBytes} = from
      await from.handle.close()
      const existing = await this.#adopt(id, sizeBytes)
      if (existing) return existing
      return this.#withReservation(id, sizeBytes, () =>
        this.#publish(id, async temporary => {
          if (await reflink(source.path, temporary)) return chmod(temporary, 0o600)
          throw new StorageError(
            'UNSUPPORTED',
            `${this.#fileSystem?.name} has no reflinks, so a snapshot of ${source.id} would be a copy: clone it instead`,
            {info: {id: source.id, fileSystem: this.#fileSystem?.name}},
          )
        }),
      )
    })
  }

  extend(volume: Volume, sizeBytes: number): Promise<Volume> {
    return this.#change('volume.extend', volume.id, async () => {
      checkSize(sizeBytes)
      const path = this.#ownPath(volume)
      const current = await this.#look(volume.id)
      if (!current) throw missingError(path, volume.id)
      if (current.sizeBytes === sizeBytes) return this.#volume(volume.id, current)
      if (sizeBytes < current.sizeBytes) throw shrinkError('A volume', {from: current.sizeBytes, to: sizeBytes})
      const growth = sizeBytes - current.sizeBytes
      return this.#withReservation(volume.id, growth, async () => {
        if (current.allocation === 'preallocated') {
          await this.#reserve(path, growth, current.sizeBytes).catch(async error => {
            // What was reserved beyond the old end, or written there as zeros, goes again.
            await resizeFile(path, current.sizeBytes)
            throw error
          })
        }
        await resizeFile(path, sizeBytes)
        return this.#remember(volume.id)
      })
    })
  }

  delete(volume: Volume): Promise<void> {
    return this.#change('volume.delete', volume.id, async () => {
      const path = this.#ownPath(volume)
      const stats = await lstat(path).catch(ignoreErrno('ENOENT'))
      if (stats === undefined) {
        this.#forget(volume.id)
        // An earlier delete may have been killed between its rename and its fsync.
        await this.#sync()
        return
      }
      const use = stats.isFile()
        ? await fileUse(path, stats)
        : {how: 'is not a regular file any more', info: {mode: stats.mode}}
      if (use) {
        throw new StorageError('VOLUME_IN_USE', `Cannot delete volume ${volume.id}: ${path} ${use.how}`, {
          op: 'volume.delete',
          info: {id: volume.id, path, ...use.info},
        })
      }
      const quarantine = this.#hidden('quarantine', volume.id)
      await rename(path, quarantine)
      this.#forget(volume.id)
      await this.#sync()
      this.#inBackground(unlink(quarantine))
    })
  }

  async list(): Promise<Volume[]> {
    await this.#checkUsable('volume.list')
    const known = new Set(this.#index.keys())
    const ids = await this.#scan()
    const present = new Set(ids)
    for (const id of known) if (!present.has(id)) await this.#look(id)
    return ids.flatMap(id => {
      const entry = this.#index.get(id)
      return entry ? [this.#volume(id, entry)] : []
    })
  }

  async get(id: VolumeId): Promise<Volume | undefined> {
    if (!isVolumeId(id)) return undefined
    await this.#checkUsable('volume.get')
    const entry = await this.#look(id)
    return entry && this.#volume(id, entry)
  }

  async capacity(): Promise<PoolCapacity> {
    await this.#checkUsable('volume.capacity')
    const {totalBytes, freeBytes} = await this.#refreshFileSystem()
    return {
      pool: this.pool,
      driver: this.name,
      totalBytes,
      freeBytes,
      provisionedBytes: this.#provisionedBytes,
      limitBytes: this.#limitBytes(),
    }
  }

  async settled(): Promise<void> {
    while (this.#background.size > 0) await Promise.all(this.#background)
  }

  async close(): Promise<void> {
    const fd = this.#directoryFd
    if (fd !== undefined) {
      this.#directoryFd = undefined
      this.#closing = this.#finish(fd)
    }
    await this.#closing
  }

  async #finish(fd: number): Promise<void> {
    await Promise.allSettled(this.#running)
    await this.settled()
    this.#directorySync = undefined
    this.#sparseFiles = undefined
    this.#index.clear()
    this.#provisionedBytes = 0
    fs.closeSync(fd)
  }

  async #createSparse(id: VolumeId, sizeBytes: number): Promise<Volume> {
    await this.#sparseFiles!.create(fileName(id), sizeBytes)
    const entry: IndexEntry = {sizeBytes, allocation: 'sparse'}
    this.#setEntry(id, entry)
    return this.#volume(id, entry)
  }

  /** Makes a file under a temporary name and gives it its own when it is whole and durable. */
  async #publish(id: VolumeId, make: (temporary: string) => Promise<void>): Promise<Volume> {
    const temporary = this.#hidden('tmp', id)
    const path = this.#path(id)
    try {
      await make(temporary)
      await syncFile(temporary)
      await link(temporary, path)
    } finally {
      await unlink(temporary).catch(ignoreErrno('ENOENT'))
    }
    try {
      await this.#sync()
      return await this.#remember(id)
    } catch (error) {
      await this.#discard(id)
      throw error
    }
  }

  /** Removes what a failed create has put under the volume's own name. */
  async #discard(id: VolumeId): Promise<void> {
    await unlink(this.#path(id)).catch(() => undefined)
    this.#forget(id)
  }

  /** What an earlier attempt has left under this id: nothing, the same volume, or a conflict. */
  async #adopt(id: VolumeId, sizeBytes: number): Promise<Volume | undefined> {
    const path = this.#path(id)
    const known = this.#index.get(id)
    // The index may lack a file that appeared since open(); O_EXCL and link(2) find that out without a stat each time.
    if (known === undefined) return undefined
    const entry = await this.#look(id)
    if (entry === undefined) return undefined
    if (entry.sizeBytes !== sizeBytes) throw existsError(id, path, {sizeBytes, existingBytes: entry.sizeBytes})
    await syncFile(path)
    await this.#sync()
    return this.#volume(id, entry)
  }

  /**
   * One change at a time per id, after a check of what the caller gave. EEXIST here means that a file appeared behind
   * the driver's back: it is looked at, and the change tried once more.
   */
  #change<T>(op: string, id: VolumeId, task: () => Promise<T>): Promise<T> {
    const change = this.#queue.run(id, async () => {
      checkVolumeId(id, op)
      await this.#checkUsable(op)
      try {
        return await task()
      } catch (error) {
        if (!isErrno(error, 'EEXIST')) throw poolError(op, error, {pool: this.pool, id})
        await this.#look(id)
        if (!this.#index.has(id)) {
          throw new StorageError('VOLUME_EXISTS', `${this.#path(id)} exists and is not a volume of lunpath`, {
            op,
            info: {id, path: this.#path(id)},
            cause: error,
          })
        }
      }
      return task().catch(error => {
        throw poolError(op, error, {pool: this.pool, id})
      })
    })
    this.#running.add(change)
    const done = () => this.#running.delete(change)
    change.then(done, done)
    return change
  }

  async #withReservation<T>(id: VolumeId, bytes: number, task: () => Promise<T>): Promise<T> {
    if (!this.#fits(bytes)) {
      // The file system may have grown since it was last looked at.
      await this.#refreshFileSystem()
      if (!this.#fits(bytes)) throw this.#limitError(bytes)
    }
    this.#reservations.set(id, bytes)
    this.#reservedBytes += bytes
    try {
      return await task()
    } finally {
      this.#redeem(id, bytes)
      this.#reservations.delete(id)
    }
  }

  /** Takes from an id's reservation what is counted as provisioned from now on, or what is not needed any more. */
  #redeem(id: VolumeId, bytes: number): void {
    const reserved = this.#reservations.get(id) ?? 0
    const redeemed = Math.max(0, Math.min(reserved, bytes))
    this.#reservations.set(id, reserved - redeemed)
    this.#reservedBytes -= redeemed
  }

  #fits(bytes: number): boolean {
    return this.#provisionedBytes + this.#reservedBytes + bytes <= this.#limitBytes()
  }

  #limitBytes(): number {
    return Math.floor((this.#fileSystem?.totalBytes ?? 0) * this.#overcommitRatio)
  }

  #limitError(bytes: number): StorageError {
    const limitBytes = this.#limitBytes()
    const provisionedBytes = this.#provisionedBytes + this.#reservedBytes
    return new StorageError(
      'POOL_FULL',
      `Pool ${this.pool} may provision ${formatSize(limitBytes)} and has provisioned ${formatSize(provisionedBytes)}: ${formatSize(bytes)} more do not fit`,
      {info: {pool: this.pool, limitBytes, provisionedBytes, wantedBytes: bytes}},
    )
  }

  /** One reservation of real space at a time: of two that run at once and do not both fit, each could fail the other. */
  async #reserve(path: string, lengthBytes: number, offsetBytes = 0): Promise<void> {
    await this.#queue.run('reserve', async () => {
      const {freeBytes} = await this.#refreshFileSystem()
      if (lengthBytes <= freeBytes) return reserveSpace(path, lengthBytes, offsetBytes)
      throw new StorageError(
        'POOL_FULL',
        `Pool ${this.pool} has ${formatSize(freeBytes)} free: ${formatSize(lengthBytes)} cannot be reserved`,
        {info: {pool: this.pool, freeBytes, wantedBytes: lengthBytes}},
      )
    })
  }

  async #refreshFileSystem(): Promise<FileSystem> {
    this.#fileSystem = await examineFileSystem(this.#directory).catch(cause => {
      throw poolError('volume.capacity', cause, {pool: this.pool, directory: this.#directory})
    })
    return this.#fileSystem
  }

  /**
   * Reads one volume's state from the disk, and corrects the index by it, except where a change has set the entry while
   * this looked.
   */
  async #look(id: VolumeId): Promise<IndexEntry | undefined> {
    const before = this.#index.get(id)
    const stats = await lstat(this.#path(id)).catch(ignoreErrno('ENOENT'))
    if (this.#index.get(id) !== before) return this.#index.get(id)
    // Size 0 is a create that runs, or one that was killed and promised nothing.
    if (!stats?.isFile() || stats.size === 0 || stats.size % sectorBytes !== 0) {
      this.#forget(id)
      return undefined
    }
    const allocation = stats.blocks * 512 >= stats.size ? 'preallocated' : 'sparse'
    const entry: IndexEntry = {sizeBytes: stats.size, allocation}
    this.#setEntry(id, entry)
    return entry
  }

  async #remember(id: VolumeId): Promise<Volume> {
    const entry = await this.#look(id)
    if (!entry) throw missingError(this.#path(id), id)
    return this.#volume(id, entry)
  }

  #setEntry(id: VolumeId, entry: IndexEntry): void {
    const growth = entry.sizeBytes - (this.#index.get(id)?.sizeBytes ?? 0)
    this.#provisionedBytes += growth
    this.#index.set(id, entry)
    if (this.#reservations.has(id)) this.#redeem(id, growth)
  }

  #forget(id: VolumeId): void {
    this.#provisionedBytes -= this.#index.get(id)?.sizeBytes ?? 0
    this.#index.delete(id)
  }

  /** Ids of all volumes on disk; the index is brought up to date on the way. */
  async #scan(): Promise<VolumeId[]> {
    const entries = await readdir(this.#directory)
    const candidates = entries.flatMap(name => volumeName.exec(name)?.[1] ?? [])
    const present: VolumeId[] = []
    await inParallel(candidates, async id => {
      if (await this.#look(id)) present.push(id)
    })
    return present.sort()
  }

  async #finishInterrupted(): Promise<void> {
    const entries = await readdir(this.#directory)
    await inParallel(entries, async name => {
      const path = join(this.#directory, name)
      const interrupted =
        transientName.test(name) || markerInMaking.test(name) || (volumeName.test(name) && (await isEmptyFile(path)))
      if (interrupted) await unlink(path).catch(ignoreErrno('ENOENT'))
    })
    await this.#sync()
    await this.#scan()
  }

  #volume(id: VolumeId, {sizeBytes, allocation}: IndexEntry): Volume {
    return {
      id,
      driver: this.name,
      pool: this.pool,
      path: this.#path(id),
      kind: 'file',
      sizeBytes,
      allocation,
      imported: false,
    }
  }

  #path(id: VolumeId): string {
    return `${this.#directory}/${fileName(id)}`
  }

  #hidden(kind: 'tmp' | 'quarantine', id: VolumeId): string {
    return `${this.#directory}/.${kind}-${id}-${randomBytes(4).toString('hex')}`
  }

  /** The path of a volume that this pool owns. */
  #ownPath(volume: Volume): string {
    const info = {id: volume.id, path: volume.path, pool: volume.pool}
    if (volume.imported) {
      throw new StorageError(
        'VOLUME_IMPORTED',
        `Volume ${volume.id} was imported: lunpath never resizes or removes it`,
        {
          info,
        },
      )
    }
    const path = this.#path(volume.id)
    if (volume.driver !== this.name || volume.pool !== this.pool || volume.path !== path) {
      throw new StorageError('INVALID_ARGUMENT', `Volume ${volume.id} at ${volume.path} is not of pool ${this.pool}`, {
        info,
      })
    }
    return path
  }

  /**
   * What was opened is still what its path leads to: where the file system was unmounted, the path leads to the empty
   * directory below it. @throws POOL_UNUSABLE
   */
  async #checkUsable(op: string): Promise<void> {
    if (!this.isOpen) {
      throw new StorageError('POOL_UNUSABLE', `Pool ${this.pool} is not open`, {op, info: {pool: this.pool}})
    }
    const there = await stat(this.#directory).catch((error: Error) => error)
    if (there instanceof Error) throw this.#notThePool(there.message, there)
    if (deviceAndInode(there) !== this.#opened) {
      throw this.#notThePool('another file system or another directory is there than the one that was opened')
    }
  }

  async #sync(): Promise<void> {
    await this.#directorySync!.sync()
  }

  /** What fails here is tried again by the next open(). */
  #inBackground(work: Promise<void>): void {
    const settled: Promise<void> = work.catch(() => undefined).finally(() => this.#background.delete(settled))
    this.#background.add(settled)
  }
}

function deviceAndInode({dev, ino}: Stats): string {
  return `${dev}:${ino}`
}

export interface ExaminedPool {
  /** Without symbolic links. */
  directory: string
  fileSystem: FileSystem
  /** The directory carries the marker of a pool. */
  marked: boolean
  /** The id in it; undefined in one that an older lunpath has written. */
  markerId: string | undefined
}

/**
 * Checks that `directory` is, or can become, a pool; `make` makes the directory where only its last part is missing.
 * Beyond that nothing is changed. @throws POOL_UNUSABLE with the reason
 */
export async function examinePool(directory: string, {make}: {make: boolean}): Promise<ExaminedPool> {
  checkBackingPath(directory)
  const unusable = (reason: string, cause?: unknown) =>
    new StorageError('POOL_UNUSABLE', `${directory} cannot be a pool: ${reason}`, {
      op: 'volume.open',
      info: {directory},
      cause,
    })
  try {
    if (make) await makeDirectory(directory)
    const real = checkBackingPath(await realpath(directory))
    const stats = await lstat(real)
    if (!stats.isDirectory()) throw unusable('it is not a directory')
    if (stats.mode & 0o002) throw unusable('every user may write to it')
    const fileSystem = await examineFileSystem(real)
    if (fileSystem.unfit) throw unusable(`${fileSystem.name} ${fileSystem.unfit}`)
    await promisify(fs.access)(real, fs.constants.W_OK | fs.constants.X_OK)
    const marker = await readMarker(real, unusable)
    if (!marker) {
      const foreign = (await readdir(real)).find(name => name.endsWith('.img') || transientName.test(name))
      if (foreign)
        throw unusable(`it holds ${JSON.stringify(foreign)} and no ${poolMarker}: the images are not lunpath's`)
    }
    return {directory: real, fileSystem, marked: marker !== undefined, markerId: marker?.id}
  } catch (error) {
    if (error instanceof StorageError) throw error
    throw unusable((error as Error).message, error)
  }
}

async function makeDirectory(directory: string): Promise<void> {
  try {
    await mkdir(directory, {mode: 0o700})
  } catch (error) {
    if (isErrno(error, 'EEXIST')) return
    throw error
  }
  await syncDirectory(dirname(directory))
}

async function readMarker(
  directory: string,
  unusable: (reason: string, cause?: unknown) => StorageError,
): Promise<{id: string | undefined} | undefined> {
  const text = await readFile(join(directory, poolMarker), 'utf8').catch(ignoreErrno('ENOENT'))
  if (text === undefined) return undefined
  let version: unknown
  let id: unknown
  try {
    const marker = JSON.parse(text) as {version?: unknown; driver?: unknown; id?: unknown} | null
    if (marker?.driver !== 'file') throw new Error('it names no driver of this kind')
    version = marker.version
    id = marker.id
  } catch (cause) {
    throw unusable(`its ${poolMarker} is damaged: ${(cause as Error).message}`, cause)
  }
  if (version !== markerVersion)
    throw unusable(`its ${poolMarker} has version ${version}, and this lunpath knows ${markerVersion}`)
  return {id: typeof id === 'string' ? id : undefined}
}

async function writeMarker(directory: string, id: string): Promise<void> {
  const temporary = join(directory, `${poolMarker}-${randomBytes(4).toString('hex')}`)
  try {
    const handle = await open(temporary, 'wx', 0o600)
    try {
      await handle.writeFile(`${JSON.stringify({version: markerVersion, driver: 'file', id})}\n`)
      await handle.sync()
    } finally {
      await handle.close()
    }
    await rename(temporary, join(directory, poolMarker))
  } catch (error) {
    await unlink(temporary).catch(() => undefined)
    throw error
  }
  await syncDirectory(directory)
}

async function syncDirectory(directory: string): Promise<void> {
  const handle = await open(directory, O_RDONLY | O_DIRECTORY)
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

async function makeFile(path: string, sizeBytes: number): Promise<void> {
  const handle = await open(path, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW, 0o600)
  try {
    await handle.truncate(sizeBytes)
  } finally {
    await handle.close()
  }
}

async function resizeFile(path: string, sizeBytes: number): Promise<void> {
  const handle = await open(path, O_RDWR | O_NOFOLLOW)
  try {
    await handle.truncate(sizeBytes)
    await handle.sync()
  } finally {
    await handle.close()
  }
}

async function syncFile(path: string): Promise<void> {
  const handle = await open(path, O_RDONLY | O_NOFOLLOW)
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

async function openSource(source: Volume): Promise<{handle: FileHandle; sizeBytes: number}> {
  const handle = await open(source.path, O_RDONLY).catch((cause: unknown) => {
    throw isErrno(cause, 'ENOENT') ? missingError(source.path, source.id) : cause
  })
  try {
    const stats = await handle.stat()
    // stat(2) gives no size for a block device.
    return {handle, sizeBytes: stats.isFile() ? stats.size : source.sizeBytes}
  } catch (error) {
    await handle.close()
    throw error
  }
}

async function isEmptyFile(path: string): Promise<boolean> {
  const stats = await lstat(path).catch(ignoreErrno('ENOENT'))
  return stats?.isFile() === true && stats.size === 0
}

async function inParallel<T>(items: readonly T[], task: (item: T) => Promise<void>): Promise<void> {
  let next = 0
  const worker = async () => {
    while (next < items.length) await task(items[next++]!)
  }
  await Promise.all(Array.from({length: Math.min(scanConcurrency, items.length)}, worker))
}

function isErrno(error: unknown, code: string): boolean {
  return (error as NodeJS.ErrnoException | null)?.code === code && !(error instanceof StorageError)
}

function missingError(path: string, id: VolumeId): StorageError {
  return new StorageError('VOLUME_MISSING', `The file of volume ${id} is gone: ${path}`, {info: {id, path}})
}

/** errno of a file operation → what the operator can act on. */
const codeByErrno: Record<string, ErrorCode> = {
  ENOSPC: 'POOL_FULL',
  EDQUOT: 'POOL_FULL',
  EFBIG: 'SIZE_INVALID',
}

function poolError(op: string, error: unknown, info: Record<string, unknown>): unknown {
  const errno = (error as NodeJS.ErrnoException | null)?.code
  if (error instanceof StorageError || typeof errno !== 'string') return error
  const code = (op === 'volume.open' ? undefined : codeByErrno[errno]) ?? 'POOL_UNUSABLE'
  return new StorageError(code, `${op} failed in pool ${info.pool}: ${(error as Error).message}`, {
    op,
    info,
    cause: error,
  })
}
