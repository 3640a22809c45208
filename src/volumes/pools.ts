import {hasCode, StorageError} from '../errors.js'
import {KeyedQueue} from '../lock.js'
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
  readonly #isKnown: (pool: string) => boolean
  /** Looks at a pool come one after the other. */
  readonly #queue = new KeyedQueue()
  /** Pools that have become usable or unusable since the last look() was told. */
  readonly #changed = new Set<string>()

  /** `isKnown`: a pool was in use before, so that it is waited for where it is not there. */
  constructor(defaultPool: string, {isKnown = () => false}: {isKnown?: (pool: string) => boolean} = {}) {
    this.defaultPool = defaultPool
    this.#isKnown = isKnown
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
    this.#changed.delete(name)
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

  /** The same; one that was lost is looked at first, since it may be back. @throws NOT_FOUND, POOL_UNUSABLE */
  async ready(name: string = this.defaultPool): Promise<VolumeDriver> {
    const driver = this.#drivers.get(name)
    if (driver && this.#unusable.has(name)) await this.#look(driver)
    return this.pool(name)
  }

  /**
   * Opens those that are not open yet, and those that were lost anew. Returns what became usable.
   * @throws what the default pool's open() throws where it was never in use: without it a node is of no use
   */
  async open(): Promise<string[]> {
    const opened = await Promise.all(
      [...this.#drivers.values()].map(driver =>
        this.#queue.run(driver.pool, async () => {
          const wasUnusable = this.#unusable.has(driver.pool)
          if (await this.#reopen(driver)) return wasUnusable ? [driver.pool] : []
          return []
        }),
      ),
    )
    return opened.flat()
  }

  /** Returns whether it is usable now. */
  async #reopen(driver: VolumeDriver): Promise<boolean> {
    const {pool} = driver
    try {
      if (this.#unusable.has(pool) && driver.isOpen) {
        await driver.look()
        // What it has of a pool that was lost is not to be relied on.
        await driver.close()
      }
      await driver.open()
      this.#unusable.delete(pool)
      if (!this.#isIn(driver)) await driver.close()
      return true
    } catch (error) {
      if (pool === this.defaultPool && !this.#unusable.has(pool) && !this.#isKnown(pool)) throw error
      this.#lose(driver, error)
      return false
    }
  }

  /** It may have been taken out while it was looked at. */
  #isIn(driver: VolumeDriver): boolean {
    return this.#drivers.get(driver.pool) === driver
  }

  #lose(driver: VolumeDriver, error: unknown): void {
    const {pool, name} = driver
    if (this.#isIn(driver)) this.#unusable.set(pool, {pool, driver: name, reason: (error as Error).message})
  }

  /**
   * Looks again at each pool: one that is not there any more becomes unusable, one that is back usable. Costs one call or
   * report a pool. Returns what has changed since the last look, whoever found it out.
   */
  async look(): Promise<{lost: UnusablePool[]; back: string[]}> {
    await Promise.all([...this.#drivers.values()].map(driver => this.#look(driver)))
    const changed = [...this.#changed]
    this.#changed.clear()
    return {
      lost: changed.flatMap(pool => this.#unusable.get(pool) ?? []),
      back: changed.filter(pool => this.#drivers.has(pool) && !this.#unusable.has(pool)),
    }
  }

  #look(driver: VolumeDriver): Promise<void> {
    const {pool} = driver
    return this.#queue.run(pool, async () => {
      if (!this.#isIn(driver)) return
      if (this.#unusable.has(pool)) {
        if (await this.#reopen(driver)) this.#changed.add(pool)
        return
      }
      const failure = await driver.look().then(
        () => undefined,
        (error: unknown) => error,
      )
      // Any other failure, as a deadline, does not say that the pool is gone.
      if (!hasCode(failure, 'POOL_UNUSABLE')) return
      this.#lose(driver, failure)
      this.#changed.add(pool)
    })
  }

  /** Where a pool fails as such it is looked at before the answer, so that what is said of it is true. */
  async #on<T>(pool: string | undefined, task: (driver: VolumeDriver) => Promise<T>): Promise<T> {
    const driver = await this.ready(pool)
    try {
      return await task(driver)
    } catch (error) {
      if (hasCode(error, 'POOL_UNUSABLE')) await this.#look(driver)
      throw error
    }
  }

  unusable(): UnusablePool[] {
    return [...this.#unusable.values()]
  }

  async create({pool, ...spec}: CreateVolume & {pool?: string}): Promise<Volume> {
    return this.#on(pool, driver => driver.create(spec))
  }

  /** A copy in the named pool, or in the source's own. */
  async clone(source: Volume, {pool, ...spec}: CloneVolume & {pool?: string}): Promise<Volume> {
    return this.#on(pool ?? (source.imported ? undefined : source.pool), driver => driver.clone(source, spec))
  }

  async snapshot(source: Volume, id: VolumeId): Promise<Volume> {
    return this.#on(source.pool, driver => driver.snapshot(source, id))
  }

  async extend(volume: Volume, sizeBytes: number): Promise<Volume> {
    return this.#on(volume.pool, driver => driver.extend(volume, sizeBytes))
  }

  async delete(volume: Volume): Promise<void> {
    return this.#on(volume.pool, driver => driver.delete(volume))
  }

  /** The volume of that id, from whichever usable pool has it. */
  async get(id: VolumeId): Promise<Volume | undefined> {
    const found = await Promise.all(this.#usable().map(({pool}) => this.#on(pool, driver => driver.get(id))))
    return found.find(volume => volume !== undefined)
  }

  /** The volumes of all usable pools, and the pools of which nobody can say what they hold. */
  async list(): Promise<{volumes: Volume[]; unusable: UnusablePool[]}> {
    const unseen: UnusablePool[] = []
    const lists = await Promise.all(
      this.#usable().map(({pool, name}) =>
        this.#on(pool, driver => driver.list()).catch((error: Error) => {
          unseen.push({pool, driver: name, reason: error.message})
          return []
        }),
      ),
    )
    const unusable = this.unusable()
    const known = new Set(unusable.map(({pool}) => pool))
    return {volumes: lists.flat(), unusable: [...unusable, ...unseen.filter(({pool}) => !known.has(pool))]}
  }

  /** Of each usable pool; one whose figures cannot be had is left out, and is unusable where it is not there any more. */
  async capacities(): Promise<PoolCapacity[]> {
    const all = await Promise.all(
      this.#usable().map(({pool}) => this.#on(pool, driver => driver.capacity()).catch(() => undefined)),
    )
    return all.filter(capacity => capacity !== undefined)
  }

  async close(): Promise<void> {
    await Promise.all([...this.#drivers.values()].map(driver => driver.close()))
  }

  #usable(): VolumeDriver[] {
    return [...this.#drivers.values()].filter(({pool}) => !this.#unusable.has(pool))
  }
}
