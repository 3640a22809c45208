import {isDeepStrictEqual} from 'node:util'
import {StorageError} from '../errors.js'
import {KeyedQueue} from '../lock.js'
import type {ExportSpec} from '../types.js'
import type {IetAccess, Rule} from './iet-access.js'
import {dropAccounts, hasAccounts, setAccounts} from './iet-accounts.js'
import {call, request} from './iet-control.js'
import {errno, errnoFact, type Link, refusal, type TargetKey} from './iet-link.js'
import type {IetListings} from './iet-listings.js'
import {changedParameters} from './iet-parameters.js'
import type {IetTargetVolumes} from './iet-procfs.js'
import {type Doing, IetSessions, inUse} from './iet-sessions.js'
import {applySettings, readParameters, type Settings, settingsOf} from './iet-settings.js'
import {checkIetSpec, expectedVolume, fit, type IetVolumeOptions, lunOf, pathOf, volumeArguments} from './iet-spec.js'
import {IetUnits} from './iet-units.js'
import {refuseUnfitVolume} from './spec.js'

/** An export that is wanted. Without a tid it was never in the kernel. */
export interface Entry {
  spec: ExportSpec
  tid: number
  settings: Settings
}

export interface IetTargetsOptions {
  listings: IetListings
  /** Absent: initiators.allow is not ours to write. */
  access: IetAccess | undefined
  volumes: IetVolumeOptions
  timeoutMs: number
}

/** The targets of exports: how they are made, adopted, put back and removed. */
export class IetTargets {
  /** Exports that are in place. */
  readonly entries = new Map<string, Entry>()
  /** Exports that could not be put back: what they had, should they be asked for again. */
  readonly former = new Map<string, Entry>()
  /** Work on one name runs one after the other. */
  readonly queue = new KeyedQueue()
  readonly sessions: IetSessions
  readonly units: IetUnits
  readonly #listings: IetListings
  readonly #access: IetAccess | undefined
  readonly #volumeOptions: IetVolumeOptions
  /** Names of exports that broke off in the middle: what may be there of them goes as soon as ietd answers again. */
  readonly #debris = new Set<string>()
  /** The highest number seen while this ietd runs. */
  #highestTid = 0
  /** After a wipe ietd still lists targets under their old numbers, and would answer for new ones that have those. */
  #hasStaleTids = false

  constructor({listings, access, volumes, timeoutMs}: IetTargetsOptions) {
    this.#listings = listings
    this.#access = access
    this.#volumeOptions = volumes
    this.sessions = new IetSessions(listings)
    this.units = new IetUnits(listings, {...volumes, timeoutMs})
  }

  /** Another ietd runs, and numbers begin anew. */
  begunAnew(): void {
    this.#hasStaleTids = false
    this.#highestTid = 0
  }

  /** Targets have gone while ietd runs on. */
  wiped(): void {
    this.#hasStaleTids = true
  }

  /** @throws what checkIetSpec() throws */
  check(spec: ExportSpec): void {
    checkIetSpec(spec, {...this.#volumeOptions, accessFiles: this.#access !== undefined})
  }

  /**
   * Makes the target, or makes whole what is there of it, behind a rule that lets nobody in. Whoever calls opens it. A
   * failure removes what this call has made.
   */
  async place(link: Link, wanted: Entry): Promise<void> {
    const {spec} = wanted
    const {iqn} = spec
    await refuseUnfitVolume(spec, fit)
    // One pass may miss it, but ietd does not: it refuses the name.
    const present = (await this.#listings.glance()).find(target => target.iqn === iqn)
    if (present) return this.#adopt(link, wanted, present)
    const wasOurs = this.#access?.has(iqn) ?? false
    await this.allow([[iqn, 'closed']])
    let tid = 0
    try {
      tid = await this.#newTarget(link, {iqn, tid: wanted.tid})
      await setAccounts(link, {iqn, tid}, spec.auth)
      // Without rules a target is open from the moment at which it is made, before its accounts are.
      if (!this.#access) await this.sessions.endAll(link, {iqn, tid})
      await this.units.add(link, {iqn, tid}, spec)
      await applySettings(link, {iqn, tid}, wanted.settings)
    } catch (error) {
      // ietd may have made it of ietd.conf since the look.
      const isLate = error instanceof StorageError && spec.taken !== undefined && tid === 0
      const made = isLate ? await this.present(iqn, undefined) : undefined
      if (made) return this.#adopt(link, wanted, made)
      if (error instanceof StorageError) await this.#undo(link, {iqn, tid, wasOurs})
      // Nobody knows what the request in hand has done. The rule stays, which lets nobody in, and says whose it is.
      else if (!spec.taken) this.#debris.add(iqn)
      throw error
    }
    this.#debris.delete(iqn)
    this.#keep({...wanted, tid})
  }

  #keep(entry: Entry): void {
    this.entries.set(entry.spec.iqn, entry)
    this.former.delete(entry.spec.iqn)
  }

  /** After a failure in the midst. What cannot be undone now is ours by its rule, and is found by its name later. */
  async #undo(link: Link, {iqn, tid, wasOurs}: {iqn: string; tid: number; wasOurs: boolean}): Promise<void> {
    try {
      if (tid !== 0) {
        await this.remove(link, {iqn, tid}, {force: true, doing: 'export', remedy: ''})
      }
      if (!wasOurs || tid !== 0) await this.allow([[iqn, null]])
    } catch {
      // The error that led here says more.
    }
  }

  /** The number that it had, else the kernel's choice. */
  async #newTarget(link: Link, {iqn, tid: wantedTid}: TargetKey, {left = 4} = {}): Promise<number> {
    const asked = wantedTid !== 0 ? wantedTid : this.#hasStaleTids ? this.#highestTid + 1 : 0
    const [[answer] = []] = await link.exchange([[request.newTarget(asked, iqn)]])
    const {error, tid} = answer!
    if (error === 0) {
      const made = tid === 0 ? asked : tid
      this.#highestTid = Math.max(this.#highestTid, made)
      return made
    }
    if (error !== errno.eexist && error !== errno.einval)
      throw refusal(error, {op: 'target.export', what: 'the target', iqn})
    // To ietd names that differ in their case alone are one.
    const targets = await this.#listings.volumes()
    const present = targets.find(target => target.iqn.toLowerCase() === iqn)
    if (present || left === 0) throw this.#notOurs(iqn, present)
    if (error === errno.einval) {
      await this.#mend(link, {iqn, tid: wantedTid})
      return this.#newTarget(link, {iqn, tid: wantedTid}, {left: left - 1})
    }
    // Somebody else has that number now.
    this.#highestTid = Math.max(this.#highestTid, asked, ...targets.map(({tid}) => tid))
    return this.#newTarget(link, {iqn, tid: 0}, {left: left - 1})
  }

  /**
   * ietd lists a target that the kernel does not have, since somebody closed the control device. It gives it up only once
   * the kernel has it again, under that number.
   */
  async #mend(link: Link, {iqn, tid}: TargetKey): Promise<void> {
    const stale = (why: string, cause?: unknown) =>
      new StorageError(
        'TARGET_FAILED',
        `ietd still lists ${iqn}, which the kernel has not: ${why}. Restart ietd, and lunpath puts its exports back`,
        {op: 'target.export', info: {iqn, tid}, cause},
      )
    this.#hasStaleTids = true
    if (tid === 0) throw stale('its number is not known')
    const [[added] = []] = await link.call([[call.addTarget(tid, iqn)]])
    if (added!.error === errno.enosys) throw stale('the control device cannot be had to mend that')
    if (added!.error !== 0) throw stale(`another target has its number ${tid}`, errnoFact(added!.error))
    const [[deleted] = []] = await link.exchange([[request.deleteTarget(tid)]])
    if (deleted!.error !== 0) throw stale('it cannot be deleted', errnoFact(deleted!.error))
  }

  /** A target of our name that is in the kernel: ours from before, or somebody else's. */
  async #adopt(link: Link, wanted: Entry, present: IetTargetVolumes): Promise<void> {
    const {spec} = wanted
    const {iqn, tid} = present
    if (spec.taken) return this.#takeOver(link, wanted, present)
    const ours = this.#access ? this.#access.has(iqn) : true
    const others = present.volumes.some(({lun, path}) => lun !== lunOf(spec) || path !== pathOf(spec))
    if (!ours || others) throw this.#notOurs(iqn, present)
    const expected = expectedVolume(spec, this.#volumeOptions)
    const isSame = isDeepStrictEqual(present.volumes, [expected])
    if (present.volumes.length === 0) {
      await this.units.add(link, {iqn, tid}, spec)
    } else if (!isSame || !this.#access) {
      // What is not as it should be, or may have another identity, is made anew; under sessions it is not touched.
      await this.closeToNewLogins({iqn, tid}, {doing: 'change', remedy: 'log out its initiators first'}, spec)
      await this.units.replace(link, {iqn, tid}, spec)
    }
    if (!(await hasAccounts(link, tid, spec.auth))) {
      await this.allow([[iqn, 'closed']])
      await setAccounts(link, {iqn, tid}, spec.auth)
    }
    const [session, target] = await readParameters(link, tid, 0n, iqn)
    const settings: Settings = {
      session: new Map([...changedParameters('session', session!), ...wanted.settings.session]),
      target: new Map([...changedParameters('target', target!), ...wanted.settings.target]),
      redirect: wanted.settings.redirect,
    }
    this.#highestTid = Math.max(this.#highestTid, tid)
    this.#keep({spec, tid, settings})
  }

  /**
   * A target that somebody else makes: as it is it becomes ours to put back. Without its volume it is one that a restoration
   * has broken off in the midst, and is made whole.
   */
  async #takeOver(link: Link, wanted: Entry, {tid, volumes}: IetTargetVolumes): Promise<void> {
    const {spec} = wanted
    const {iqn} = spec
    const expected = expectedVolume(spec, this.#volumeOptions)
    if (volumes.length === 0) {
      await this.allow([[iqn, 'closed']])
      await setAccounts(link, {iqn, tid}, spec.auth)
      await this.units.add(link, {iqn, tid}, spec)
      await applySettings(link, {iqn, tid}, wanted.settings)
    } else if (!isDeepStrictEqual(volumes, [expected])) {
      throw new StorageError(
        'TARGET_EXISTS',
        `The target ${iqn} is not as it was when it was taken over: it is left alone`,
        {op: 'target.export', info: {iqn, tid, expected, found: volumes}},
      )
    }
    this.#highestTid = Math.max(this.#highestTid, tid)
    this.#keep({...wanted, tid})
  }

  #notOurs(iqn: string, present: IetTargetVolumes | undefined): StorageError {
    const offers = present?.volumes.map(({path}) => path || 'nullio').join(', ') || 'nothing'
    return new StorageError(
      'TARGET_EXISTS',
      `A target ${iqn} exists already that is not lunpath's: it offers ${offers}`,
      {op: 'target.export', info: {iqn, tid: present?.tid, luns: present?.volumes.map(({lun, path}) => ({lun, path}))}},
    )
  }

  /** Brings an export of ours from one spec to another. */
  async amend(link: Link, entry: Entry, to: ExportSpec): Promise<void> {
    const {spec: from, tid} = entry
    const wanted = {...to, volume: {...to.volume, sizeBytes: from.volume.sizeBytes}}
    const isSameVolume = volumeArguments(from, this.#volumeOptions) === volumeArguments(wanted, this.#volumeOptions)
    if (!isSameVolume || !isDeepStrictEqual(from.auth, to.auth)) {
      await this.closeToNewLogins({iqn: to.iqn, tid}, {doing: 'change', remedy: 'log out its initiators first'})
      if (!isSameVolume) await this.units.replace(link, {iqn: to.iqn, tid}, wanted)
      await setAccounts(link, {iqn: to.iqn, tid}, to.auth)
    }
    entry.spec = wanted
  }

  /** Takes the target away. Its rule stays, and lets nobody in. */
  async remove(link: Link, {iqn, tid}: TargetKey, {force, doing, remedy}: Doing & {force: boolean}): Promise<void> {
    const spec = this.entries.get(iqn)?.spec
    if (force) {
      await this.allow([[iqn, 'closed']])
      await this.sessions.endAll(link, {iqn, tid})
    } else {
      await this.closeToNewLogins({iqn, tid}, {doing, remedy})
    }
    await this.units.untilNoneIsDeleted({iqn, tid})
    await dropAccounts(link, tid)
    for (;;) {
      const [[answer] = []] = await link.exchange([[request.deleteTarget(tid)]])
      if (answer!.error === 0) return
      if (answer!.error === errno.ebusy && force) {
        await this.sessions.endAll(link, {iqn, tid})
        continue
      }
      if (answer!.error === errno.ebusy) {
        if (spec) await this.allow([[iqn, ruleOf(spec)]])
        throw inUse(iqn, [], {doing, remedy})
      }
      if (answer!.error === errno.enoent && !(await this.#listings.find({iqn, tid}))) return
      throw refusal(answer!.error, {op: `target.${doing}`, what: 'the removal', iqn})
    }
  }

  /**
   * Looks for sessions before it touches anything, then lets nobody in any more, while sessions go on, and looks again.
   * @throws TARGET_IN_USE, with all as it was before
   */
  async closeToNewLogins(
    {iqn, tid}: TargetKey,
    doing: Doing,
    spec: ExportSpec | undefined = this.entries.get(iqn)?.spec,
  ): Promise<void> {
    await this.sessions.refuse({iqn, tid}, doing, {leaving: true})
    if (!this.#access) return
    await this.allow([[iqn, 'closed']])
    try {
      await this.sessions.refuse({iqn, tid}, doing)
    } catch (error) {
      if (spec) await this.allow([[iqn, ruleOf(spec)]])
      throw error
    }
  }

  /** Whole targets first, behind rules that let nobody in; then all rules at once. Returns what could not be put back. */
  async putInPlace(link: Link, wanted: Entry[]): Promise<{iqn: string; code: string; message: string}[]> {
    const failed: {iqn: string; code: string; message: string}[] = []
    const placed: Entry[] = []
    // Those that are in the kernel may have sessions, and stay open to them; what is not there must not be open.
    const present = new Set((await this.#listings.volumes()).map(({iqn}) => iqn))
    await this.allow(wanted.filter(({spec}) => !present.has(spec.iqn)).map(({spec}) => [spec.iqn, 'closed']))
    const results = await Promise.allSettled(wanted.map(entry => this.place(link, entry)))
    for (const [index, result] of results.entries()) {
      const entry = wanted[index]!
      if (result.status === 'fulfilled') {
        placed.push(entry)
        continue
      }
      const {reason} = result
      if (!(reason instanceof StorageError)) throw reason
      failed.push({iqn: entry.spec.iqn, code: reason.code, message: reason.message})
      this.entries.delete(entry.spec.iqn)
      this.former.set(entry.spec.iqn, entry)
    }
    const settled = wanted.filter(entry => entry.spec.taken || placed.includes(entry))
    await this.allow(settled.map(({spec}) => [spec.iqn, ruleOf(spec)]))
    return failed
  }

  /** Exports that the kernel has not, or not whole, and that nobody is at work on. */
  async missing(): Promise<Entry[]> {
    const isGone = (targets: IetTargetVolumes[]) => {
      const byName = new Map(targets.map(target => [target.iqn, target]))
      return ({spec, tid}: Entry) => {
        const target = byName.get(spec.iqn)
        return target?.tid !== tid || target.volumes.every(({lun}) => lun !== lunOf(spec))
      }
    }
    const glance = await this.#listings.glance()
    const suspects = [...this.entries.values()].filter(isGone(glance))
    for (const {tid} of glance) this.#highestTid = Math.max(this.#highestTid, tid)
    if (suspects.length === 0) return []
    const gone = suspects.filter(isGone(await this.#listings.volumes()))
    return gone.filter(entry => this.entries.get(entry.spec.iqn) === entry && !this.queue.busy(entry.spec.iqn))
  }

  /** Takes away what broke off in the midst, name by name, once those at work on it have ended. */
  sweep(link: Link, isWanted: () => boolean): void {
    // Not awaited: it takes its turn behind exports of the same name, and those may be waiting for whoever calls.
    for (const iqn of this.#debris) if (!this.queue.busy(iqn)) void this.#sweepOne(link, iqn, isWanted)
  }

  async #sweepOne(link: Link, iqn: string, isWanted: () => boolean): Promise<void> {
    await this.queue.run(iqn, async () => {
      if (this.entries.has(iqn) || !this.#debris.has(iqn) || !isWanted()) return
      try {
        const found = await this.present(iqn, undefined)
        const isForeign = this.#access !== undefined && !this.#access.has(iqn)
        if (found && !isForeign) await this.remove(link, found, {force: true, doing: 'export', remedy: ''})
        if (!isForeign) await this.allow([[iqn, null]])
        this.#debris.delete(iqn)
      } catch {
        // The next look tries again.
      }
    })
  }

  async allow(rules: [iqn: string, rule: Rule | null][]): Promise<void> {
    await this.#access?.set(rules)
  }

  /** The target of that name in the kernel, by the number that it should have or by a search. */
  async present(iqn: string, entry: Pick<Entry, 'tid'> | undefined): Promise<IetTargetVolumes | undefined> {
    const known = entry && (await this.#listings.find({tid: entry.tid, iqn}))
    if (known) return known
    return (await this.#listings.volumes()).find(target => target.iqn === iqn)
  }

  async isWhole({tid, spec}: Entry): Promise<boolean> {
    const found = await this.#listings.find({tid, iqn: spec.iqn})
    return found?.volumes.some(({lun, deleted}) => lun === lunOf(spec) && !deleted) ?? false
  }
}

/** Nobody's rule is touched of a target that was taken over: what others have written for it counts. */
export function ruleOf({access, taken}: ExportSpec): Rule | null {
  return taken ? null : access
}

export function unmade(spec: ExportSpec): Entry {
  return {
    spec,
    tid: spec.tid ?? 0,
    settings: settingsOf(spec),
  }
}
