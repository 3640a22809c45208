import {randomBytes} from 'node:crypto'
import {run} from '../exec.js'
import {signatureOf} from '../signatures.js'
import type {VolumeId} from '../types.js'
import {Batches} from './batches.js'
import {type LogicalVolume, makingTag, type Role, tag} from './lvm-facts.js'
import {openExclusively} from './wipe.js'

/** What making needs of the group's driver. */
export interface CreationAccess {
  group: string
  /** One command of LVM. */
  lvm(...args: string[]): Promise<unknown>
  /** The logical volumes that are there, of those names. */
  look(names: readonly string[]): Promise<Map<string, LogicalVolume>>
  /** Makes one by a command that wipes it as well, and explains what fails. */
  makeAlone(wanted: WantedVolume): Promise<void>
  /** Takes back what is half made. */
  remove(volume: {name: string; role: Role; id: VolumeId; thin: boolean}): Promise<void>
}

export interface WantedVolume {
  id: VolumeId
  /** Whole extents. */
  sizeBytes: number
}

/** More would have the first one wait long for the last. */
const atMost = 8

/**
 * Makes thick volumes, those that wait at the same time together: `lvcreate` makes one a command, and spends a third of it
 * on a search for old signatures, which is done here instead while LVM makes the next volume. Until then the volume
 * carries the tag `lunpath:making`, which one command takes from all of them. A volume that waits alone is
 * made by one command of LVM.
 */
export class Creations {
  readonly #access: CreationAccess
  readonly #batches: Batches<WantedVolume>

  constructor(access: CreationAccess) {
    this.#access = access
    this.#batches = new Batches(wanted => this.#makeAll(wanted), {atMost})
  }

  create(wanted: WantedVolume): Promise<void> {
    return this.#batches.add(wanted)
  }

  async #makeAll(wanted: readonly WantedVolume[]): Promise<Map<WantedVolume, unknown>> {
    const failures = new Map<WantedVolume, unknown>()
    const alone = async (one: WantedVolume) => {
      await this.#access.makeAlone(one).catch(error => failures.set(one, error))
    }
    if (wanted.length === 1) {
      await alone(wanted[0]!)
      return failures
    }
    const made = randomBytes(4).toString('hex')
    const outcomes = await Promise.allSettled(wanted.map(one => this.#make(one, made)))
    const whole = wanted.filter((_, index) => outcomes[index]!.status === 'fulfilled')
    const published = await this.#publish(whole)
    for (const one of wanted) {
      if (published.has(one)) continue
      // What stands in the way of one does not stand in the way of the others; made alone it says what that is.
      await this.#takeBack(one, made).then(
        () => alone(one),
        error => failures.set(one, error),
      )
    }
    return failures
  }

  async #make({id, sizeBytes}: WantedVolume, made: string): Promise<void> {
    const tags = [tag('id', id), tag('made', made), makingTag].flatMap(text => ['--addtag', text])
    const space = ['--zero', 'y', '--wipesignatures', 'n', '--size', `${sizeBytes}b`, this.#access.group]
    await this.#access.lvm('lvcreate', '--name', id, ...tags, ...space)
    await this.#wipeSignatures(`/dev/${this.#access.group}/${id}`)
  }

  /** LVM has made the first 4 KiB zeros: what some formats have elsewhere, as at the end of a member of an array, may be left. */
  async #wipeSignatures(path: string): Promise<void> {
    const handle = await openExclusively(path)
    try {
      if ((await signatureOf(handle.fd)) === undefined) return
    } finally {
      await handle.close()
    }
    await run('wipefs', ['--all', path], {timeoutMs: 60_000})
  }

  /** Returns those that are volumes now. */
  async #publish(whole: readonly WantedVolume[]): Promise<Set<WantedVolume>> {
    if (whole.length === 0) return new Set()
    try {
      await this.#access.lvm('lvchange', '--deltag', makingTag, ...whole.map(({id}) => `${this.#access.group}/${id}`))
      return new Set(whole)
    } catch {
      const rows = await this.#access.look(whole.map(({id}) => id))
      return new Set(whole.filter(({id}) => rows.get(id)?.role === 'id'))
    }
  }

  async #takeBack({id}: WantedVolume, made: string): Promise<void> {
    const left = (await this.#access.look([id])).get(id)
    if (left?.made === made && left.role === 'making') {
      await this.#access.remove({name: id, role: 'making', id, thin: false})
    }
  }
}
