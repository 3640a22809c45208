import {randomBytes} from 'node:crypto'
import {stat} from 'node:fs/promises'
import {deviceNumber} from '../device-number.js'
import {blockDeviceUse, type Use} from '../device-use.js'
import {StorageError} from '../errors.js'
import type {VolumeId} from '../types.js'
import {Batches} from './batches.js'
import {hiddenName, type LogicalVolume, type Role, tag} from './lvm-facts.js'
import {openExclusively, type WipePolicy, wipe} from './wipe.js'

/** What removing needs of the group's driver. */
export interface RemovalAccess {
  group: string
  policy: WipePolicy
  /** One command of LVM. */
  lvm(...args: string[]): Promise<unknown>
  /** The logical volumes that are there, of those names. */
  look(names: readonly string[]): Promise<Map<string, LogicalVolume>>
  /** Work that nobody waits for. */
  inBackground(work: Promise<void>): void
  /** Ends wipes. */
  signal(): AbortSignal
}

/** A logical volume that is to go: under which name, in which role. */
export interface Doomed {
  name: string
  role: Role
  id: VolumeId
  thin: boolean
}

/** `lvchange` takes three words for each volume, and a line has at most 64 (lvm-grammar.ts). */
const atMost = 20

type Failures = Map<Doomed, unknown>

/**
 * Removes logical volumes for good, those that wait at the same time with the same commands, each with its own outcome.
 *
 * A volume whose data need no wipe goes by one `lvremove`: LVM deactivates it, which the kernel refuses while anybody has it
 * open, and the commit of the metadata without it is the commit point. LVM commits once for all volumes of a command that
 * are not thin, and not at all where one of them is in use.
 *
 * Of a volume that is to be wiped the tag `lunpath:deleted` is the commit point. Nobody has it open then, since it was
 * deactivated before. After that it gets another name, is wiped and removed. Those that are retired together share one
 * tag, with the id of the first of them, because `lvchange` gives all its volumes the same tags.
 */
export class Removals {
  readonly #access: RemovalAccess
  readonly #removing: Batches<Doomed>
  readonly #retiring: Batches<Doomed>
  readonly #activating: Batches<Doomed>
  /** What the last look at an activated one has found. */
  readonly #active = new WeakMap<Doomed, LogicalVolume>()
  /** Removals by the name that they will give free. */
  readonly #leaving = new Map<string, Promise<void>>()

  constructor(access: RemovalAccess) {
    this.#access = access
    this.#removing = new Batches(doomed => this.#removeAll(doomed), {atMost})
    this.#retiring = new Batches(doomed => this.#retireAll(doomed), {atMost})
    this.#activating = new Batches(doomed => this.#activateAll(doomed), {atMost})
  }

  /**
   * Takes a volume out of use, for good. What is gone, or is something else by now, is success.
   * @throws VOLUME_IN_USE with who it is, as far as the kernel tells it
   */
  remove(volume: Doomed): Promise<void> {
    if (volume.role === 'deleted') throw new TypeError(`${volume.name} is in quarantine already`)
    const removal = (this.#isWiped(volume) ? this.#retiring : this.#removing).add(volume)
    this.#leave(volume.name, removal)
    return removal
  }

  /** Wipes and removes what is in quarantine, in the background. */
  finish(volume: Doomed): void {
    this.#access.inBackground(this.#destroy(volume))
  }

  /** Resolves when no volume of that name is being removed, and the name is free where one was. */
  async left(name: string): Promise<void> {
    for (let leaving = this.#leaving.get(name); leaving; leaving = this.#leaving.get(name)) await leaving
  }

  #leave(name: string, work: Promise<unknown>): void {
    const done = () => {
      if (this.#leaving.get(name) === leaving) this.#leaving.delete(name)
    }
    const leaving: Promise<void> = work.then(done, done)
    this.#leaving.set(name, leaving)
  }

  /** The blocks of a thin volume are zeroed when another one gets them (lvmthin(7), zeroing). */
  #isWiped({thin}: Doomed): boolean {
    return !thin && this.#access.policy !== 'none'
  }

  // ---- At once --------------------------------------------------------------------------------------------------

  async #removeAll(doomed: readonly Doomed[]): Promise<Failures> {
    const {failures, present} = await this.#examine(doomed)
    let left = present
    let cause: unknown
    // With one volume that is in use LVM commits nothing, and an interrupted command may have done anything.
    for (let attempt = 1; left.length > 0 && attempt <= 3; attempt++) {
      try {
        await this.#access.lvm('lvremove', ...left.map(({name}) => this.#full(name)))
        left = []
      } catch (error) {
        cause = error
        const there = await this.#stillThere(left)
        for (const [volume, found] of there) {
          const refusal = await this.#refusal(found, error)
          if (refusal) failures.set(volume, refusal)
        }
        left = [...there.keys()].filter(volume => !failures.has(volume))
      }
    }
    for (const volume of left) failures.set(volume, cause)
    await this.#reactivate(left)
    return failures
  }

  // ---- By quarantine --------------------------------------------------------------------------------------------

  async #retireAll(doomed: readonly Doomed[]): Promise<Failures> {
    const {failures, present} = await this.#examine(doomed)
    const closed = await this.#deactivate(present, failures)
    const [first] = closed
    if (!first) return failures
    // A tag that a volume does not have is none to take away.
    const own = closed.flatMap(({role, id}) => ['--deltag', tag(role, id)])
    const tags = ['--addtag', tag('deleted', first.id), ...own]
    let retired = closed
    try {
      await this.#access.lvm('lvchange', ...tags, ...closed.map(({name}) => this.#full(name)))
    } catch (error) {
      const now = await this.#access.look(closed.map(({name}) => name))
      retired = closed.filter(({name}) => now.get(name)?.role === 'deleted')
      const kept = closed.filter(volume => !retired.includes(volume))
      for (const volume of kept) failures.set(volume, error)
      await this.#reactivate(kept)
    }
    for (const {name, thin} of retired) this.#hide({name, role: 'deleted', id: first.id, thin})
    return failures
  }

  /** The kernel deactivates only what nobody has open. Returns those that are inactive now. */
  async #deactivate(volumes: readonly Doomed[], failures: Failures): Promise<Doomed[]> {
    if (volumes.length === 0) return []
    try {
      await this.#access.lvm('lvchange', '--activate', 'n', ...volumes.map(({name}) => this.#full(name)))
      return [...volumes]
    } catch (error) {
      const there = await this.#stillThere(volumes)
      for (const [volume, found] of [...there].filter(([, one]) => isActive(one))) {
        failures.set(volume, (await this.#refusal(found, error)) ?? error)
      }
      // With a thin volume LVM deactivates the pool below it where it sees nobody else there. After a command was killed it
      // may not see who is: then the pool's deactivation failed, not the volume's.
      return [...there.keys()].filter(volume => !failures.has(volume))
    }
  }

  /** Gives a retired volume's name free, and goes on to destroy it. */
  #hide(volume: Doomed): void {
    const {name, id} = volume
    const quarantine = hiddenName('deleted', id, randomBytes(4).toString('hex'))
    const renamed = this.#access.lvm('lvrename', this.#access.group, name, quarantine).then(
      () => quarantine,
      // It is to be destroyed under whichever name it has.
      async () => ((await this.#access.look([quarantine])).has(quarantine) ? quarantine : name),
    )
    this.#leave(name, renamed)
    this.#access.inBackground(renamed.then(now => this.#destroy({...volume, name: now})))
  }

  /** Wipes and removes what is in quarantine, and nothing else. */
  async #destroy(volume: Doomed): Promise<void> {
    if (this.#isWiped(volume)) {
      await this.#activating.add(volume)
      const found = this.#active.get(volume)
      if (!found) return
      const handle = await openExclusively(`/dev/${this.#full(volume.name)}`, found.device)
      try {
        const {policy, signal} = this.#access
        await wipe(handle, {sizeBytes: found.sizeBytes, policy, signal: signal()})
      } finally {
        await handle.close()
      }
    }
    await this.#removing.add(volume)
  }

  /** What is gone already is no failure. */
  async #activateAll(doomed: readonly Doomed[]): Promise<Failures> {
    const failures: Failures = new Map()
    let cause: unknown
    await this.#activate(doomed).catch(error => {
      cause = error
    })
    const rows = await this.#access.look(doomed.map(({name}) => name))
    for (const volume of doomed) {
      const found = rows.get(volume.name)
      if (!found) continue
      if (!isSame(volume, found)) failures.set(volume, notInQuarantine(volume))
      else if (!isActive(found)) failures.set(volume, cause)
      else this.#active.set(volume, found)
    }
    return failures
  }

  // ---- Looking --------------------------------------------------------------------------------------------------

  /** Which of them are there and not in use; the failures say who uses the others. */
  async #examine(doomed: readonly Doomed[]): Promise<{failures: Failures; present: Doomed[]}> {
    const failures: Failures = new Map()
    const there = await this.#stillThere(doomed)
    for (const [volume, found] of there) {
      const error = await this.#refusal(found)
      if (error) failures.set(volume, error)
    }
    return {failures, present: [...there.keys()].filter(volume => !failures.has(volume))}
  }

  /** Who has it open is asked only where somebody has. */
  async #refusal({name, hasSnapshots, isOpen}: LogicalVolume, cause?: unknown): Promise<StorageError | undefined> {
    if (hasSnapshots) return this.#inUse(name, {how: 'has snapshots that live on it', info: {}}, cause)
    if (!isOpen) return undefined
    const path = `/dev/${this.#full(name)}`
    const stats = await stat(path).catch(() => undefined)
    const use = stats?.isBlockDevice() ? await blockDeviceUse(path, deviceNumber(stats.rdev)) : undefined
    // udev opens a device for a moment when somebody who could write has closed it. LVM waits for that, and decides.
    if (!use && cause === undefined) return undefined
    return this.#inUse(name, use ?? {how: 'is open', info: {}}, cause)
  }

  async #stillThere(doomed: readonly Doomed[]): Promise<Map<Doomed, LogicalVolume>> {
    const rows = await this.#access.look(doomed.map(({name}) => name))
    return new Map(
      doomed.flatMap(volume => {
        const found = rows.get(volume.name)
        return found && isSame(volume, found) ? [[volume, found]] : []
      }),
    )
  }

  #inUse(name: string, {how, info}: Use, cause?: unknown): StorageError {
    const path = `/dev/${this.#full(name)}`
    return new StorageError('VOLUME_IN_USE', `Cannot delete ${name}: ${path} ${how}`, {
      op: 'volume.delete',
      info: {id: name, path, ...info},
      cause,
    })
  }

  /** What was deactivated and stays is to be had again. */
  async #reactivate(volumes: readonly Doomed[]): Promise<void> {
    await this.#activate(volumes.filter(({role}) => role === 'id')).catch(() => undefined)
  }

  async #activate(volumes: readonly Doomed[]): Promise<void> {
    if (volumes.length === 0) return
    const names = volumes.map(({name}) => this.#full(name))
    await this.#access.lvm('lvchange', '--activate', 'y', '--ignoreactivationskip', ...names)
  }

  #full(name: string): string {
    return `${this.#access.group}/${name}`
  }
}

function isSame({role, id}: Doomed, found: LogicalVolume | undefined): boolean {
  return found?.role === role && found.id === id
}

function isActive({device}: LogicalVolume): boolean {
  return !device.startsWith('-1')
}

function notInQuarantine({name, id}: Doomed): StorageError {
  return new StorageError('IDENTITY_MISMATCH', `${name} is not in quarantine: it is left alone`, {info: {name, id}})
}
