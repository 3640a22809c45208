import {join} from 'node:path'
import {StorageError} from '../errors.js'
import type {IetControl} from './iet-control.js'
import {
  IetListingError,
  type IetTargetSessions,
  type IetTargetVolumes,
  parseSessions,
  parseVolumes,
} from './iet-procfs.js'

type Name = 'volume' | 'session'

/** A reading that all who have asked for it before it began share. */
interface Reading<T> {
  running: Promise<T>
  next: Promise<T> | undefined
}

/**
 * The two listings, as they are now. A pass over a long one is several system calls, between which targets may be skipped
 * or repeated, so that a whole listing is what two passes in a row agree on. The lines of one target are always of one
 * moment: what is found in one pass is true.
 */
export class IetListings {
  readonly #control: IetControl
  readonly #directory: string
  readonly #timeoutMs: number
  readonly #volumes = {reading: undefined as Reading<IetTargetVolumes[]> | undefined}
  readonly #glances = {reading: undefined as Reading<IetTargetVolumes[]> | undefined}
  readonly #sessions = {reading: undefined as Reading<IetTargetSessions[]> | undefined}

  constructor(control: IetControl, {directory, timeoutMs}: {directory: string; timeoutMs: number}) {
    this.#control = control
    this.#directory = directory
    this.#timeoutMs = timeoutMs
  }

  /** All targets, newest first. @throws TARGET_UNAVAILABLE, TARGET_FAILED, TIMEOUT */
  volumes(): Promise<IetTargetVolumes[]> {
    return shared(this.#volumes, async () => this.#parsed('volume', await this.#agreed('volume'), parseVolumes))
  }

  /** All targets with their sessions, newest first. @throws as volumes() */
  sessions(): Promise<IetTargetSessions[]> {
    return shared(this.#sessions, async () => this.#parsed('session', await this.#agreed('session'), parseSessions))
  }

  /** One pass over all targets: one that is missing in it may be there. @throws as volumes() */
  glance(): Promise<IetTargetVolumes[]> {
    return shared(this.#glances, async () => torn(await this.#pass('volume'), parseVolumes) ?? this.volumes())
  }

  /** One target with its volumes; undefined where it is absent. A new one costs one read of the kernel's. */
  find(target: {tid: number; iqn: string}): Promise<IetTargetVolumes | undefined> {
    return this.#findIn('volume', target, parseVolumes, () => this.volumes())
  }

  /** One target with its sessions; undefined where it is absent. */
  findSessions(target: {tid: number; iqn: string}): Promise<IetTargetSessions | undefined> {
    return this.#findIn('session', target, parseSessions, () => this.sessions())
  }

  async #findIn<T extends {tid: number; iqn: string}>(
    name: Name,
    {tid, iqn}: {tid: number; iqn: string},
    parse: (text: string) => T[],
    all: () => Promise<T[]>,
  ): Promise<T | undefined> {
    const isIt = (one: T) => one.tid === tid && one.iqn === iqn
    const text = await this.#pass(name, `tid:${tid} name:${iqn}\n`)
    return torn(text, parse)?.find(isIt) ?? (await all()).find(isIt)
  }

  /** @throws TIMEOUT where the targets change all the time */
  async #agreed(name: Name): Promise<string> {
    const deadline = performance.now() + this.#timeoutMs
    let before = await this.#pass(name)
    while (performance.now() < deadline) {
      const now = await this.#pass(name)
      if (now === before) return now
      before = now
    }
    throw new StorageError('TIMEOUT', `IET's targets change so fast that ${join(this.#directory, name)} cannot be read`)
  }

  async #pass(name: Name, until?: string): Promise<string> {
    const path = join(this.#directory, name)
    try {
      return await this.#control.read(path, {timeoutMs: this.#timeoutMs, until})
    } catch (cause) {
      const {code} = cause as NodeJS.ErrnoException
      if (code === 'ETIMEDOUT' || code === 'IET_STUCK') throw hanging(cause as Error, {path})
      const why =
        code === 'ENOENT'
          ? 'the module iscsi_trgt is not loaded (modprobe iscsi_trgt), or this is not the initial network namespace'
          : (cause as Error).message
      throw new StorageError('TARGET_UNAVAILABLE', `IET's listing ${path} cannot be read: ${why}`, {
        op: 'target',
        cause,
      })
    }
  }

  #parsed<T>(name: Name, text: string, parse: (text: string) => T): T {
    try {
      return parse(text)
    } catch (cause) {
      throw new StorageError(
        'TARGET_FAILED',
        `${join(this.#directory, name)} cannot be true, and nothing is done on its word: ${(cause as Error).message}`,
        {op: 'target', cause},
      )
    }
  }
}

/** Of one pass: undefined where it cannot be true, which a change in its midst can do. */
function torn<T>(text: string, parse: (text: string) => T): T | undefined {
  try {
    return parse(text)
  } catch (error) {
    if (error instanceof IetListingError) return undefined
    throw error
  }
}

/** A call or a reading that the kernel does not end. */
export function hanging(cause: Error, info: Record<string, unknown>): StorageError {
  const isStuck = (cause as NodeJS.ErrnoException).code === 'IET_STUCK'
  return new StorageError('TIMEOUT', cause.message, {
    op: 'target',
    info: {...info, ...(isStuck && {state: 'stuck'})},
    cause,
  })
}

/** A reading that has begun may be older than what the caller has just done: it waits for the next one. */
function shared<T>(holder: {reading: Reading<T> | undefined}, read: () => Promise<T>): Promise<T> {
  const start = (): Promise<T> => {
    const reading: Reading<T> = {running: read(), next: undefined}
    holder.reading = reading
    const ended = () => {
      if (holder.reading === reading) holder.reading = undefined
    }
    void reading.running.then(ended, ended)
    return reading.running
  }
  const {reading} = holder
  if (!reading) return start()
  reading.next ??= reading.running.then(start, start)
  return reading.next
}
