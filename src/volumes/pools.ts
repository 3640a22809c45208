import {StorageError} from '../errors.js'
import type {Volume, VolumeId} from '../types.js'
import type {CloneVolume, CreateVolume, PoolCapacity, VolumeDriver} from './driver.js'

/** A pool that could not be opened, and why. */
export interface UnusablePool {
  pool: string
  driver: string
  reason: string
}

/**
 * The node's pools, each behind its driver. What concerns a volume goes to the pool that it is in; a pool that cannot be
 * opened keeps none of the others from working, and is tried again by open().
 */
export class Pools {
  /** The pool of volumes for which none is named. */
  readonly defaultPool: string
  readonly #drivers = new Map<string, VolumeDriver>()
  readonly #unusable = new Map<string, UnusablePool>()

  constructor(defaultPool: string) {
    this.defaultPool = defaultPool
  }

  /** Adds a pool that is not open yet, or is. @throws VOLUME_EXISTS where there is one of that name */
  add(driver: VolumeDriver): void {
    if (this.#drivers.has(driver.pool)) {
      throw new StorageError('VOLUME_EXISTS', `There is a pool ${driver.pool} already`, {info: {pool: driver.pool}})
    }
    this.#drivers.set(driver.pool, driver)
  }

  /** Takes a pool out and gives its driver, which the caller closes: nothing new is made in it from here on. */
  remove(name: string): VolumeDriver | undefined {
    const driver = this.#drivers.get(name)
    this.#drivers.delete(name)
    this.#unusable.delete(name)
    return driver
  }

  has(name: string): boolean {
    return this.#drivers.has(name)
  }

  /** The pool of that name, or the default one. @throws NOT_FOUND, POOL_UNUSABLE */
  pool(name: string = this.defaultPool): VolumeDriver {
    const driver = this.#drivers.get(name)
    if (!driver) {
      const known = [...this.#drivers.keys()].join(', ')
      throw new StorageError('NOT_FOUND', `There is no pool ${JSON.stringify(name)}: there are ${known}`, {
        info: {pool: name},
      })
    }
    const unusable = this.#unusable.get(name)
    if (unusable) {
      throw new StorageError('POOL_UNUSABLE', `The pool ${name} is not open: ${unusable.reason}`, {info: {pool: name}})
    }
    return driver
  }

  /**
   * Opens those that are not open yet. Returns what became usable. @throws what the default pool's open() throws: without
   * it a node is of no use
   */
  async open(): Promise<string[]> {
    const opened = await Promise.all(
      [...this.#drivers.values()].map(async driver => {
        const {pool, name} = driver
        try {
          await driver.open()
          return this.#unusable.delete(pool) ? [pool] : []
        } catch (error) {
          if (pool === this.defaultPool) throw error
          this.#unusable.set(pool, {pool, driver: name, reason: (error as Error).message})
          return []
        }
      }),
    )
    return opened.flat()
  }

  unusable(): UnusablePool[] {
    return [...this.#unusable.values()]
  }

  create({pool, ...spec}: CreateVolume & {pool?: string}): Promise<Volume> {
    return this.pool(pool).create(spec)
  }

  /** A copy in the named pool, or in the source's own. */
  clone(source: Volume, {pool, ...spec}: CloneVolume & {pool?: string}): Promise<Volume> {
    return this.pool(pool ?? (source.imported ? undefined : source.pool)).clone(source, spec)
  }

  snapshot(source: Volume, id: VolumeId): Promise<Volume> {
    return this.pool(source.pool).snapshot(source, id)
  }

  extend(volume: Volume, sizeBytes: number): Promise<Volume> {
    return this.pool(volume.pool).extend(volume, sizeBytes)
  }

  delete(volume: Volume): Promise<void> {
    return this.pool(volume.pool).delete(volume)
  }

  /** The volume of that id, from whichever usable pool has it. */
  async get(id: VolumeId): Promise<Volume | undefined> {
    const found = await Promise.all(this.#usable().map(driver => driver.get(id)))
    return found.find(volume => volume !== undefined)
  }

  /** The volumes of all usable pools, and the pools of which nobody can say what they hold. */
  async list(): Promise<{volumes: Volume[]; unusable: UnusablePool[]}> {
    const unusable = this.unusable()
    const lists = await Promise.all(
      this.#usable().map(async driver => {
        try {
          return await driver.list()
        } catch (error) {
          unusable.push({pool: driver.pool, driver: driver.name, reason: (error as Error).message})
          return []
        }
      }),
    )
    return {volumes: lists.flat(), unusable}
  }

  /** Of each usable pool; one whose figures cannot be had is left out. */
  async capacities(): Promise<PoolCapacity[]> {
    const all = await Promise.all(this.#usable().map(driver => driver.capacity().catch(() => undefined)))
    return all.filter(capacity => capacity !== undefined)
  }

  async close(): Promise<void> {
    await Promise.all([...this.#drivers.values()].map(driver => driver.close()))
  }

  #usable(): VolumeDriver[] {
    return [...this.#drivers.values()].filter(({pool}) => !this.#unusable.has(pool))
  }
}
