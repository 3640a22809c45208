import {isDeepStrictEqual} from 'node:util'
import {StorageError} from '../errors.js'
import {nameKey} from '../iqn.js'
import {KeyedQueue} from '../lock.js'
import type {ChapAuth, ExportSpec} from '../types.js'
import type {IetAccess, Rule} from './iet-access.js'
import {accountRequests, dropAccounts, hasAccounts, hasAnswered, setAccounts} from './iet-accounts.js'
import {request} from './iet-control.js'
import {errno, type Link, refusal, type TargetKey} from './iet-link.js'
import type {IetListings} from './iet-listings.js'
import {IetNumbers} from './iet-numbers.js'
import {changedParameters} from './iet-parameters.js'
import type {IetTargetVolumes} from './iet-procfs.js'
import {type Doing, IetSessions, inUse} from './iet-sessions.js'
import {applySettings, readParameters, type Settings, settingsOf} from './iet-settings.js'
import {checkIetSpec, expectedVolume, fit, type IetVolumeOptions, lunOf, pathOf, volumeArguments} from './iet-spec.js'
import {IetUnits} from './iet-units.js'
import {refuseUnfitVolume} from './spec.js'

/** How often a target is tried to be made where others take its number, or ietd lists its name. */
const attempts = 8

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
  /** Exports that are to be put back, or could not be: what they had, should they be asked for again. */
  readonly former = new Map<string, Entry>()
  /** ietd refuses to delete a target with sessions: 1.4.20 and 1.4.20.1 do not, so that it must be closed to new ones before. */
  keepsTargetsInUse = false
  /** Work on one name runs one after the other. */
  readonly queue = new KeyedQueue()
  readonly sessions: IetSessions
  readonly units: IetUnits
  readonly numbers: IetNumbers
  readonly listings: IetListings
  readonly #access: IetAccess | undefined
  readonly #volumeOptions: IetVolumeOptions
  /** Exports that broke off in the middle, with their numbers: what may be there of them goes as soon as ietd answers again. */
  readonly #debris = new Map<string, number>()

  constructor({listings, access, volumes, timeoutMs}: IetTargetsOptions) {
    this.listings = listings
    this.#access = access
    this.#volumeOptions = volumes
    this.sessions = new IetSessions(listings)
    this.numbers = new IetNumbers(this.sessions)
    this.units = new IetUnits(listings, {...volumes, timeoutMs})
  }

  /** Who may log in is ours to say, so that a target can be closed while it is made. */
  get hasRules(): boolean {
    return this.#access !== undefined
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
    // One pass may miss it, but ietd does not: it refuses the name.
    const [targets] = await Promise.all([this.listings.glance(), refuseUnfitVolume(spec, fit)])
    for (const {tid} of targets) this.numbers.note(tid)
    const present = targets.find(target => target.iqn === iqn)
    if (present) return this.#adopt(link, wanted, present)
    const wasOurs = this.#access?.has(iqn) ?? false
    let tid = 0
    try {
      const isTaken = targets.some(target => target.tid === wanted.tid)
      const made = await this.#newTarget(link, {iqn, tid: isTaken ? 0 : wanted.tid}, spec.auth)
      tid = made.tid
      if (!made.hasAccounts) await setAccounts(link, {iqn, tid}, spec.auth)
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
      else if (!spec.taken) this.#debris.set(iqn, tid)
      throw error
    }
    this.keep({...wanted, tid})
  }

  /** The export is in place. */
  keep(entry: Entry): void {
    const {iqn} = entry.spec
    this.numbers.made({iqn, tid: entry.tid})
    this.entries.set(iqn, entry)
    this.former.delete(iqn)
    this.#debris.delete(iqn)
  }

  /** Nobody has changed or ended that export since it was taken for one that is to be put back. */
  isWanted(entry: Entry): boolean {
    const {iqn} = entry.spec
    return this.entries.get(iqn) === entry || this.former.get(iqn) === entry
  }

  /** What is to be put back of these: an unexport, or an export, that comes before it is there makes it unwanted. */
  expect(specs: ExportSpec[]): Entry[] {
    const wanted = specs.filter(({iqn}) => !this.entries.has(iqn)).map(unmade)
    for (const entry of wanted) {
      this.former.set(entry.spec.iqn, entry)
      this.numbers.note(entry.tid)
    }
    return wanted
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

  /**
   * Under the number that it had, which the kernel does not have, or under a free one; behind a rule that lets nobody in.
   * `hasAccounts`: those that were asked for are there, and no other.
   */
  async #newTarget(
    link: Link,
    {iqn, tid: wantedTid}: TargetKey,
    auth: ChapAuth | undefined,
  ): Promise<{tid: number; hasAccounts: boolean}> {
    await this.allow([[iqn, 'closed']])
    let tid = wantedTid || this.numbers.next()
    for (let left = attempts; left > 0; left--) {
      const sequence = [request.isKnown(tid), request.newTarget(tid, iqn), ...accountRequests(tid, auth)]
      const [[asked, made, ...answers] = []] = await link.exchange([sequence])
      if (this.numbers.isKnown(tid, asked!)) {
        // Where it cannot be given up, another number is as good, unless it is this very name that ietd lists.
        const isGivenUp = tid === wantedTid && !(await this.numbers.mend(link, {iqn, tid}))
        if (!isGivenUp) tid = await this.numbers.free(link)
        continue
      }
      const {error} = made!
      if (error === 0) return {tid, hasAccounts: hasAnswered(answers, auth)}
      if (error !== errno.eexist && error !== errno.einval)
        throw refusal(error, {op: 'target.export', what: 'the target', iqn})
      const targets = await this.listings.volumes()
      for (const target of targets) this.numbers.note(target.tid)
      // To ietd names that differ in their case alone are one.
      const present = targets.find(target => nameKey(target.iqn) === nameKey(iqn))
      if (present) throw this.#notOurs(iqn, present)
      if (error === errno.einval) await this.#mendName(link, iqn, targets)
      // Somebody else has that number now.
      else tid = this.numbers.next()
    }
    throw new StorageError('TARGET_FAILED', `IET has given the numbers of ${attempts} tries for ${iqn} to others`, {
      op: 'target.export',
      info: {iqn},
    })
  }

  /** ietd lists a target that the kernel does not have, since somebody closed the control device. */
  async #mendName(link: Link, iqn: string, targets: IetTargetVolumes[]): Promise<void> {
    const tid = this.numbers.staleNumber(iqn)
    const isTaken = targets.some(target => target.tid === tid)
    const isKnown = isTaken || (tid !== 0 && (await this.numbers.known(link, [tid])).has(tid))
    const failed = isKnown ? await this.numbers.mend(link, {iqn, tid}) : await this.#mendLost(link, iqn, targets)
    if (!failed) return
    throw new StorageError(
      'TARGET_FAILED',
      `ietd still lists ${iqn}, which the kernel has not: ${failed.why}. Restart ietd, and lunpath puts its exports back`,
      {op: 'target.export', info: {iqn, tid}, cause: 'cause' in failed ? failed.cause : undefined},
    )
  }

  /**
   * Of that name ietd does not say the number, and every number that is asked for may be another target's, whose initiators wait
   * for it. Where one number alone is left, it is the name's.
   */
  async #mendLost(
    link: Link,
    iqn: string,
    targets: IetTargetVolumes[],
  ): Promise<{why: string; cause?: Error} | undefined> {
    const exports = [...this.entries.values(), ...this.former.values()].map(({spec, tid}) => ({iqn: spec.iqn, tid}))
    const debris = [...this.#debris].map(([name, tid]) => ({iqn: name, tid}))
    const others = [...targets, ...exports, ...debris].filter(one => one.iqn !== iqn)
    const lost = await this.numbers.lost(link, new Set(others.map(({tid}) => tid)))
    // Meanwhile targets may have been made and removed.
    const present = new Set((await this.listings.volumes()).map(({tid}) => tid))
    const [tid, ...more] = await this.numbers.known(
      link,
      lost.filter(one => !present.has(one)),
    )
    if (tid === undefined) return {why: 'its number is not known, and none of those that were asked for is its'}
    if (more.length > 0)
      return {why: `it has one of the numbers ${[tid, ...more].join(', ')}, and ietd does not say which`}
    return this.numbers.mend(link, {iqn, tid})
  }

  /**
   * A target that the kernel has lost, by a close of the control device: ietd, which still lists it, gives it up. What cannot be
   * mended now is tried again when the name is exported again.
   */
  async forgetLost(link: Link, {iqn, tid: known}: TargetKey): Promise<void> {
    const tid = known || this.numbers.staleNumber(iqn)
    if (tid === 0) return
    const isTaken = (await this.listings.volumes()).some(target => target.tid === tid)
    if (!isTaken && !(await this.numbers.known(link, [tid])).has(tid)) return
    if (this.#access?.has(iqn)) await this.allow([[iqn, 'closed']])
    await this.numbers.mend(link, {iqn, tid})
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
      await applySettings(link, {iqn, tid}, wanted.settings)
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
    this.keep({spec, tid, settings})
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
    this.keep({...wanted, tid})
  }

  #notOurs(iqn: string, present: IetTargetVolumes | undefined): StorageError {
    const offers = present?.volumes.map(({path}) => path || 'nullio').join(', ') || 'nothing'
    return new StorageError(
      'TARGET_EXISTS',
      `A target ${present?.iqn ?? iqn} exists already that is not lunpath's: it offers ${offers}`,
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

  /** Takes the target away. Its rule stays, and lets nobody in where that was needed. */
  async remove(
    link: Link,
    {iqn, tid, volumes}: TargetKey & {volumes?: IetTargetVolumes['volumes']},
    {force, doing, remedy}: Doing & {force: boolean},
  ): Promise<void> {
    const spec = this.entries.get(iqn)?.spec
    if (force) {
      await this.allow([[iqn, 'closed']])
      await this.sessions.endAll(link, {iqn, tid})
    } else if (this.keepsTargetsInUse) {
      await this.sessions.refuse({iqn, tid}, {doing, remedy}, {leaving: true})
    } else {
      await this.closeToNewLogins({iqn, tid}, {doing, remedy})
    }
    if (volumes?.every(({deleted}) => !deleted) !== true) await this.units.untilNoneIsDeleted({iqn, tid})
    for (;;) {
      // Accounts go last: without them a target would be open to everybody whom its rule names.
      const sequence = [request.deleteTarget(tid), ...accountRequests(tid, undefined)]
      const [[answer, ...lists] = []] = await link.exchange([sequence])
      if (answer!.error === 0) {
        if (!hasAnswered(lists, undefined)) await dropAccounts(link, tid)
        return
      }
      if (answer!.error === errno.ebusy && force) {
        await this.sessions.endAll(link, {iqn, tid})
        continue
      }
      if (answer!.error === errno.ebusy) {
        if (spec) await this.allow([[iqn, ruleOf(spec)]])
        throw inUse(iqn, [], {doing, remedy})
      }
      if (answer!.error === errno.enoent && !(await this.listings.find({iqn, tid}))) {
        return this.forgetLost(link, {iqn, tid})
      }
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

  /** Exports that the kernel has not, or not whole, and that nobody is at work on. */
  async missing(): Promise<Entry[]> {
    const isGone = (targets: IetTargetVolumes[]) => {
      const byName = new Map(targets.map(target => [target.iqn, target]))
      return ({spec, tid}: Entry) => {
        const target = byName.get(spec.iqn)
        return target?.tid !== tid || target.volumes.every(({lun}) => lun !== lunOf(spec))
      }
    }
    const glance = await this.listings.glance()
    const suspects = [...this.entries.values()].filter(isGone(glance))
    for (const {tid} of glance) this.numbers.note(tid)
    if (suspects.length === 0) return []
    const gone = suspects.filter(isGone(await this.listings.volumes()))
    return gone.filter(entry => this.entries.get(entry.spec.iqn) === entry && !this.queue.busy(entry.spec.iqn))
  }

  /** Takes away what broke off in the midst, name by name, once those at work on it have ended. */
  sweep(link: Link, isWanted: () => boolean): void {
    // Not awaited: it takes its turn behind exports of the same name, and those may be waiting for whoever calls.
    for (const iqn of this.#debris.keys()) if (!this.queue.busy(iqn)) void this.#sweepOne(link, iqn, isWanted)
  }

  async #sweepOne(link: Link, iqn: string, isWanted: () => boolean): Promise<void> {
    await this.queue.run(iqn, async () => {
      if (this.entries.has(iqn) || !this.#debris.has(iqn) || !isWanted()) return
      try {
        const found = await this.present(iqn, undefined)
        const isForeign = this.#access !== undefined && !this.#access.has(iqn)
        if (found && !isForeign) await this.remove(link, found, {force: true, doing: 'export', remedy: ''})
        if (!found) await this.forgetLost(link, {iqn, tid: this.#debris.get(iqn)!})
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
    const known = entry && (await this.listings.find({tid: entry.tid, iqn}))
    if (known) return known
    return (await this.listings.volumes()).find(target => target.iqn === iqn)
  }

  async isWhole({tid, spec}: Entry): Promise<boolean> {
    const found = await this.listings.find({tid, iqn: spec.iqn})
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
