import type {VolumeId} from '../types.js'

/** What is, or is to be, promised to one volume. */
export interface Promised {
  sizeBytes: number
  thin: boolean
}

/**
 * Who was promised how much: the volumes that are there, and what running changes will make of them. A change reserves
 * its outcome before its first await, so that of several at once no more succeed than fit.
 */
export class Ledger<Entry extends Promised> {
  readonly entries = new Map<VolumeId, Entry>()
  readonly #reserved = new Map<VolumeId, Promised>()

  /**
   * Bytes promised to all volumes, or to thin ones alone. Those of running changes are included, and those of the one in
   * `with`, except where only what is `settled` is asked for.
   */
  sum({
    thin = false,
    settled = false,
    ...options
  }: {
    thin?: boolean
    settled?: boolean
    with?: [VolumeId, Promised]
  } = {}): number {
    const wanted = settled ? new Map<VolumeId, Promised>() : this.#reserved
    const [newId, newOutcome] = options.with ?? []
    const outcomeOf = (id: VolumeId) => (id === newId ? newOutcome : wanted.get(id))
    let bytes = 0
    for (const [id, entry] of this.entries) {
      if (entry.thin || !thin) bytes += Math.max(entry.sizeBytes, outcomeOf(id)?.sizeBytes ?? 0)
    }
    const coming = new Map(wanted)
    if (newId !== undefined) coming.set(newId, newOutcome!)
    for (const [id, outcome] of coming) {
      if (!this.entries.has(id) && (outcome.thin || !thin)) bytes += outcome.sizeBytes
    }
    return bytes
  }

  /** Reserves what the volume is to have until `task` has settled. */
  async reserve<T>(id: VolumeId, outcome: Promised, task: () => Promise<T>): Promise<T> {
    this.#reserved.set(id, outcome)
    try {
      return await task()
    } finally {
      this.#reserved.delete(id)
    }
  }
}
