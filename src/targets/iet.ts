import {EventEmitter} from 'node:events'
import {readFile, stat} from 'node:fs/promises'
import {setTimeout as sleep} from 'node:timers/promises'
import {getSystemErrorMap, isDeepStrictEqual} from 'node:util'
import {StorageError} from '../errors.js'
import {formatPortal, parsePortal} from '../iqn.js'
import {KeyedQueue} from '../lock.js'
import {portalHolders} from '../port-holders.js'
import type {ChapAuth, Export, ExportSpec, ObservedTarget, Portal, TakenTarget, TargetSession} from '../types.js'
import type {
  ForeignTarget,
  ForeignUnit,
  IdentityPages,
  LunCounters,
  ParameterValue,
  TargetDriver,
  TargetParameters,
  TargetSupports,
} from './driver.js'
import {type Found, IetAccess, type Rule} from './iet-access.js'
import {
  type AccountDirection,
  call,
  type IetAnswer,
  type IetCall,
  IetControl,
  type IetOutcome,
  type IetRequest,
  type IetWay,
  type ParameterType,
  request,
} from './iet-control.js'
import {foreignUnit, identityOf} from './iet-foreign.js'
import {hanging, IetListings} from './iet-listings.js'
import {ietProcDirectory, supportedIet} from './iet-names.js'
import {changedParameters, describeParameters, differingKeys, settleParameters} from './iet-parameters.js'
import type {IetSession, IetTargetVolumes, IetVolume} from './iet-procfs.js'
import {checkIetSpec, expectedVolume, type IetVolumeOptions, ietWwid, lunOf, volumeArguments} from './iet-spec.js'
import {ruleAddress} from './spec.js'

export interface IetOptions {
  /** Where ietd listens. IET has no portals that could be opened or closed for a target. */
  portals: Portal[]
  /** The abstract name of ietd's socket. */
  socketName?: string
  /** Where the listings are; default /proc/net/iet. */
  procDirectory?: string
  /** False: initiators.allow is never written, and exports that ask for rules are refused. */
  accessFiles?: boolean
  /** Where ietd looks for initiators.allow, the first one first; default /etc/iet, /etc. */
  accessDirectories?: readonly string[]
  /** Bytes of a logical block; default 512. */
  blockSizeBytes?: number
  /** How block devices are offered; default `blockio`. */
  blockDevices?: 'blockio' | 'fileio'
  /** What discovery asks for. Absent: ietd's own accounts for it, if any, are left alone. */
  discoveryAuth?: ChapAuth
  /** close() leaves the targets in place, as for a restart of the daemon under running guests. */
  keepOnClose?: boolean
  /** Milliseconds for one exchange with ietd or one batch of calls; default 10,000. */
  timeoutMs?: number
}

/** What was set of a target beside its export, and is set again with it. */
interface Settings {
  session: Map<string, number>
  target: Map<string, number>
  redirect: string
}

/** An export that is wanted. Without a tid it was never in the kernel. */
interface Entry {
  spec: ExportSpec
  tid: number
  settings: Settings
}

/** One ietd, to which a whole operation is bound: tids of the one before mean nothing there. */
interface Link {
  pid: number
  exchange: (sequences: IetRequest[][]) => Promise<IetAnswer[][]>
  call: (sequences: IetCall[][]) => Promise<IetAnswer[][]>
}

/** The exchange broke off; whether its last request took effect is not known. */
class ExchangeError extends Error {
  readonly fact: Error & {code: string}

  constructor(fact: Error & {code: string}) {
    super(fact.message, {cause: fact})
    this.fact = fact
  }
}

export const ietSupports: TargetSupports = {
  dataPath: true,
  accessRules: true,
  addressRules: true,
  chap: true,
  mutualChap: true,
  chapUserPerTarget: true,
  ipv6: true,
  resizeInUse: false,
  sessionsOfAnybody: true,
  byteCounters: false,
  commandCounters: false,
}

const enoent = 2
const eperm = 1
const ebusy = 16
const eexist = 17
const einval = 22
const enosys = 38

const pollMs = 400
/** One client that stays silent keeps ietd from all others. */
const answerMs = 500
const pollLostMs = 50
const recoveryDeadlineMs = 20_000
const forceDeadlineMs = 10_000
/** An initiator's logout is answered before its session has gone. */
const logoutMs = 500
const waitMs = 20

/**
 * The IET driver: targets and accounts over ietd's socket, volumes, parameters and information by ioctl over ietd's own
 * descriptor of the control device, which is never opened here: each close of it deletes all targets.
 *
 * What is closed by others, or goes with ietd, is noticed by a look every 0.4 s and put back, with the numbers that it had.
 */
export class IetDriver implements TargetDriver {
  readonly name = 'iet'
  readonly supports: TargetSupports

  readonly #options: IetOptions
  readonly #control: IetControl
  readonly #listings: IetListings
  readonly #access: IetAccess | undefined
  readonly #volumeOptions: IetVolumeOptions
  readonly #events = new EventEmitter()
  readonly #queue = new KeyedQueue()
  readonly #entries = new Map<string, Entry>()
  /** Exports that could not be put back: what they had, should they be asked for again. */
  readonly #former = new Map<string, Entry>()
  /** Names of exports that broke off in the middle: what may be there of them goes as soon as ietd answers again. */
  readonly #debris = new Set<string>()
  #pid = 0
  #state: 'new' | 'open' | 'closed' = 'new'
  #isRestored = false
  #isLost = false
  #recovery: Promise<void> | undefined
  #checking: Promise<void> | undefined
  #timer: NodeJS.Timeout | undefined
  /** The highest number seen while this ietd runs. */
  #highestTid = 0
  /** After a wipe ietd still lists targets under their old numbers, and would answer for new ones that have those. */
  #hasStaleTids = false

  constructor(options: IetOptions) {
    this.#options = options
    this.#control = new IetControl({socketName: options.socketName})
    this.#listings = new IetListings(this.#control, {
      directory: options.procDirectory ?? ietProcDirectory,
      timeoutMs: this.#timeoutMs,
    })
    const {accessFiles = true, accessDirectories} = options
    this.#access = accessFiles ? new IetAccess(accessDirectories) : undefined
    this.supports = {...ietSupports, accessRules: accessFiles, addressRules: accessFiles}
    this.#volumeOptions = {
      blockSizeBytes: options.blockSizeBytes ?? 512,
      blockDevices: options.blockDevices ?? 'blockio',
    }
  }

  /** Process id of the ietd in use; 0 before open(). */
  get pid(): number {
    return this.#pid
  }

  /** Whether calls go over the control device or ietd's socket, and then why; undefined before open(). */
  get way(): IetWay | undefined {
    return this.#control.way
  }

  async open(): Promise<void> {
    if (this.#state === 'open') return
    if (this.#state === 'closed') throw new StorageError('TARGET_UNAVAILABLE', 'This IET driver is closed')
    this.#pid = await this.#ietdPid()
    await this.#refuseOtherVersions(await this.#listings.volumes())
    await this.#refusePortalsOfOthers()
    await this.#access?.load()
    this.#state = 'open'
    this.#watch()
  }

  async restore(specs: ExportSpec[]): Promise<void> {
    for (const spec of specs) this.#check(spec)
    const failed = await this.#attempt(async link => {
      await this.#setDiscoveryAccounts(link)
      const wanted = specs.filter(({iqn}) => !this.#entries.has(iqn))
      return this.#putInPlace(
        link,
        wanted.map(spec => unmade(spec)),
      )
    })
    this.#isRestored = true
    if (failed.length > 0) {
      throw new StorageError(
        'TARGET_FAILED',
        `${failed.length} of ${specs.length} exports could not be restored, the others are in place: ${failed[0]!.message}`,
        {op: 'target.restore', info: {failed}},
      )
    }
  }

  async export(spec: ExportSpec): Promise<Export> {
    this.#check(spec)
    await this.#queue.run(spec.iqn, () =>
      this.#attempt(async link => {
        const entry = this.#entries.get(spec.iqn)
        if (entry && entry.spec.volume.id !== spec.volume.id) {
          throw new StorageError('TARGET_EXISTS', `${spec.iqn} exports volume ${entry.spec.volume.id} already`, {
            op: 'target.export',
            info: {iqn: spec.iqn, volumeId: entry.spec.volume.id},
          })
        }
        if (entry && (await this.#isWhole(entry))) await this.#amend(link, entry, spec)
        else await this.#place(link, {...(entry ?? this.#former.get(spec.iqn) ?? unmade(spec)), spec})
        await this.#allow([[spec.iqn, ruleOf(spec)]])
      }),
    )
    return this.#exported(spec)
  }

  async unexport(iqn: string, {force = false}: {force?: boolean} = {}): Promise<void> {
    await this.#queue.run(iqn, () =>
      this.#attempt(async link => {
        const entry = this.#entries.get(iqn)
        const isTaken = (entry ?? this.#former.get(iqn))?.spec.taken !== undefined
        const found = isTaken ? undefined : await this.#present(iqn, entry)
        if (found) {
          if (!entry && !this.#access?.has(iqn)) {
            throw new StorageError('TARGET_EXISTS', `The target ${iqn} is not lunpath's: it is left alone`, {
              op: 'target.unexport',
              info: {iqn, tid: found.tid},
            })
          }
          await this.#remove(link, found, {force, doing: 'unexport', remedy: 'log out first, or use force'})
        }
        this.#entries.delete(iqn)
        this.#former.delete(iqn)
        if (this.#access?.has(iqn)) await this.#allow([[iqn, null]])
      }),
    )
  }

  async resize(spec: ExportSpec): Promise<Export> {
    this.#check(spec)
    if (spec.taken) {
      throw new StorageError('UNSUPPORTED', `${spec.iqn} was taken over: lunpath does not resize it`, {
        op: 'target.resize',
        info: {iqn: spec.iqn},
      })
    }
    await this.#queue.run(spec.iqn, () =>
      this.#attempt(async link => {
        const entry = this.#entries.get(spec.iqn)
        const found = entry && (await this.#present(spec.iqn, entry))
        if (!entry || !found) {
          throw new StorageError('EXPORT_NOT_FOUND', `${spec.iqn} is not exported`, {op: 'target.resize'})
        }
        // IET keeps the size that it saw when the LUN was added.
        await this.#closeToNewLogins(entry, {doing: 'resize', remedy: 'detach it first'})
        const {sizeBytes} = spec.volume
        const resized = {...entry.spec, volume: {...entry.spec.volume, sizeBytes}}
        await this.#replaceVolume(link, {iqn: spec.iqn, tid: entry.tid}, resized)
        entry.spec = resized
        await this.#allow([[spec.iqn, entry.spec.access]])
      }),
    )
    return this.#exported(spec)
  }

  portals(): Portal[] {
    return this.#options.portals.map(portal => ({...portal}))
  }

  async list(): Promise<ObservedTarget[]> {
    return this.#attempt(async link => {
      const [targets, sessions, access] = await Promise.all([
        this.#listings.volumes(),
        this.#listings.sessions(),
        this.#lookAtAccess(),
      ])
      const byTid = new Map(sessions.map(one => [one.tid, one]))
      const foreign = targets.filter(({iqn, tid}) => this.#entries.get(iqn)?.tid !== tid)
      const accounts = await this.#accountsOf(
        link,
        foreign.map(({tid}) => tid),
      )
      return targets.map(target => {
        const own = byTid.get(target.tid)
        const seen = own?.iqn === target.iqn ? own.sessions : []
        return this.#observed(target, seen, {access: access(target.iqn).access, accounts: accounts.get(target.tid)})
      })
    })
  }

  /**
   * What of an export the kernel still has: its LUN and its sessions are looked at; rules and accounts are as this driver
   * set them. A target that is not in the index costs a full listing.
   */
  async get(iqn: string): Promise<ObservedTarget | undefined> {
    return this.#attempt(async () => {
      const entry = this.#entries.get(iqn)
      if (!entry) return (await this.list()).find(target => target.iqn === iqn)
      const [target, sessions, access] = await Promise.all([
        this.#listings.find({tid: entry.tid, iqn}),
        this.#listings.findSessions({tid: entry.tid, iqn}),
        entry.spec.taken ? this.#lookAtAccess().then(look => look(iqn).access) : entry.spec.access,
      ])
      return target && this.#observed(target, sessions?.sessions ?? [], {access, accounts: []})
    })
  }

  async sessions(): Promise<TargetSession[]> {
    return this.#attempt(async () => {
      const targets = await this.#listings.sessions()
      return targets.flatMap(({iqn, sessions}) => sessions.map(session => toSession(iqn, session)))
    })
  }

  /** IET counts nothing. */
  async counters(): Promise<LunCounters[]> {
    return this.#attempt(async () => [])
  }

  /** Closes one session of any target, over ietd's socket, and waits until it is gone. @throws NOT_FOUND, TIMEOUT */
  async deleteSession(iqn: string, sid: string): Promise<void> {
    await this.#attempt(async link => {
      const target = (await this.#listings.sessions()).find(one => one.iqn === iqn)
      const session = target?.sessions.find(one => String(one.sid) === sid)
      if (!target || !session) {
        throw new StorageError('NOT_FOUND', `${iqn} has no session ${sid}`, {op: 'target.session', info: {iqn, sid}})
      }
      await this.#endSessions(link, target, [session])
    })
  }

  /**
   * Parameters of a target; with `sid` those that this session has agreed on. @throws EXPORT_NOT_FOUND, TARGET_FAILED
   */
  async parameters(iqn: string, {sid = '0'}: {sid?: string} = {}): Promise<TargetParameters> {
    return this.#attempt(async link => {
      const {tid} = await this.#named(iqn)
      const [session, target] = await this.#readParameters(link, tid, BigInt(sid), iqn)
      return {session: describeParameters('session', session!), target: describeParameters('target', target!)}
    })
  }

  /**
   * Sets parameters of a target of lunpath's, for sessions to come, or of one session. Those of the target are set again
   * whenever it has to be put back. @throws INVALID_ARGUMENT, EXPORT_NOT_FOUND, TARGET_FAILED where IET keeps other values
   */
  async setParameters(
    iqn: string,
    asked: Record<string, ParameterValue>,
    {sid = '0'}: {sid?: string} = {},
  ): Promise<TargetParameters> {
    const settled = settleParameters(asked)
    if (sid !== '0' && settled.target.size > 0) {
      throw new StorageError('INVALID_ARGUMENT', `A session has no ${[...settled.target.keys()].join(', ')}`, {
        op: 'target.parameters',
      })
    }
    await this.#queue.run(iqn, () =>
      this.#attempt(async link => {
        const entry = this.#entries.get(iqn)
        if (!entry) throw new StorageError('EXPORT_NOT_FOUND', `${iqn} is not exported`, {op: 'target.parameters'})
        await this.#writeParameters(link, entry, BigInt(sid), settled)
        if (sid !== '0') return
        for (const type of ['session', 'target'] as const) {
          for (const [key, value] of settled[type]) entry.settings[type].set(key, value)
        }
      }),
    )
    return this.parameters(iqn, {sid})
  }

  /** Sends initiators that log in to another portal; null ends that. @throws EXPORT_NOT_FOUND, NAME_INVALID */
  async redirect(iqn: string, portal: Portal | null): Promise<void> {
    const to = portal ? formatPortal(parsePortal(formatPortal(portal))) : ''
    await this.#queue.run(iqn, () =>
      this.#attempt(async link => {
        const entry = this.#entries.get(iqn)
        if (!entry) throw new StorageError('EXPORT_NOT_FOUND', `${iqn} is not exported`, {op: 'target.redirect'})
        await this.#exchangeOne(link, request.redirect(entry.tid, to), {
          op: 'target.redirect',
          what: 'the redirection',
          iqn,
        })
        entry.settings.redirect = to
      }),
    )
  }

  /** Each costs exchanges with ietd and, of its backing store, a stat(2). */
  async foreign(): Promise<ForeignTarget[]> {
    return this.#attempt(async link => {
      const [targets, sessions] = await Promise.all([this.#listings.volumes(), this.#listings.sessions()])
      const foreign = targets.filter(({iqn}) => !this.#entries.has(iqn))
      const accounts = await this.#accountLists(
        link,
        foreign.map(({tid}) => tid),
      )
      const found: ForeignTarget[] = []
      for (const target of foreign) {
        const {iqn, tid} = target
        const [incoming = [], outgoing = []] = accounts.get(tid)!
        const unit = await foreignUnit(target)
        const [session, own] = await this.#readParameters(link, tid, 0n, iqn)
        const parameters = {...describeChanged('session', session!), ...describeChanged('target', own!)}
        found.push({
          iqn,
          tid,
          sessions: sessions.find(one => one.tid === tid && one.iqn === iqn)?.sessions.length ?? 0,
          accounts: {incoming, outgoing},
          unit: typeof unit === 'string' ? null : unit,
          parameters,
          refused: typeof unit === 'string' ? unit : this.#whyNotOurs(iqn, unit, parameters),
        })
      }
      return found
    })
  }

  #whyNotOurs(iqn: string, unit: ForeignUnit, parameters: Record<string, ParameterValue>): string | null {
    if (this.#access?.has(iqn)) return 'lunpath has made it, and this store does not know it'
    const {volume, readOnly, writeCache, ...taken} = unit
    try {
      this.#check({
        ...{iqn, readOnly, writeCache, access: {addresses: [], names: []}},
        volume: {...volume, id: '0'.repeat(16)},
        taken: {...taken, wwid: '', scsiId: null, scsiSn: ''},
      })
      settleParameters(parameters)
      return null
    } catch (error) {
      return (error as Error).message
    }
  }

  identify(target: {iqn: string; lun: number}, pages: IdentityPages): Pick<TakenTarget, 'scsiId' | 'scsiSn'> {
    return identityOf(target, pages)
  }

  numbers(): Map<string, number> {
    return new Map([...this.#entries].map(([iqn, {tid}]) => [iqn, tid]))
  }

  async close(): Promise<void> {
    if (this.#state === 'closed') return
    const opened = this.#state === 'open'
    clearTimeout(this.#timer)
    await this.#checking
    if (opened && !this.#options.keepOnClose) {
      await Promise.all([...this.#entries.keys()].map(iqn => this.unexport(iqn, {force: true}).catch(() => undefined)))
    }
    this.#state = 'closed'
    this.#control.close()
  }

  on(event: 'restarted' | 'lost', listener: (facts: Record<string, unknown>) => void): void {
    this.#events.on(event, listener)
  }

  // ---- one export ----

  #check(spec: ExportSpec): void {
    checkIetSpec(spec, {...this.#volumeOptions, accessFiles: this.#access !== undefined})
  }

  /**
   * Makes the target, or makes whole what is there of it, behind a rule that lets nobody in. Whoever calls opens it. A
   * failure removes what this call has made.
   */
  async #place(link: Link, wanted: Entry): Promise<void> {
    const {spec} = wanted
    const {iqn} = spec
    await refuseUnfitVolume(spec)
    // One pass may miss it, but ietd does not: it refuses the name.
    const present = (await this.#listings.glance()).find(target => target.iqn === iqn)
    if (present) return this.#adopt(link, wanted, present)
    const wasOurs = this.#access?.has(iqn) ?? false
    await this.#allow([[iqn, 'closed']])
    let tid = 0
    try {
      tid = await this.#newTarget(link, {iqn, tid: wanted.tid})
      await this.#setAccounts(link, {iqn, tid}, spec.auth)
      await this.#endEarlySessions(link, {iqn, tid})
      await this.#addVolume(link, {iqn, tid}, spec)
      await this.#applySettings(link, {...wanted, tid})
    } catch (error) {
      // ietd may have made it of ietd.conf since the look.
      const made = spec.taken && tid === 0 ? await this.#present(iqn, undefined) : undefined
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
    this.#entries.set(entry.spec.iqn, entry)
    this.#former.delete(entry.spec.iqn)
  }

  /** After a failure in the midst. What cannot be undone now is ours by its rule, and is found by its name later. */
  async #undo(link: Link, {iqn, tid, wasOurs}: {iqn: string; tid: number; wasOurs: boolean}): Promise<void> {
    try {
      if (tid !== 0) {
        await this.#remove(link, {iqn, tid, volumes: []}, {force: true, doing: 'export', remedy: ''})
      }
      if (!wasOurs || tid !== 0) await this.#allow([[iqn, null]])
    } catch {
      // The error that led here says more.
    }
  }

  /** The number that it had, else the kernel's choice. */
  async #newTarget(link: Link, {iqn, tid: wantedTid}: {iqn: string; tid: number}, {left = 4} = {}): Promise<number> {
    const asked = wantedTid !== 0 ? wantedTid : this.#hasStaleTids ? this.#highestTid + 1 : 0
    const [[answer] = []] = await link.exchange([[request.newTarget(asked, iqn)]])
    const {error, tid} = answer!
    if (error === 0) {
      const made = tid === 0 ? asked : tid
      this.#highestTid = Math.max(this.#highestTid, made)
      return made
    }
    if (error !== eexist && error !== einval) throw refusal(error, {op: 'target.export', what: 'the target', iqn})
    // To ietd names that differ in their case alone are one.
    const targets = await this.#listings.volumes()
    const present = targets.find(target => target.iqn.toLowerCase() === iqn)
    if (present || left === 0) throw this.#foreign(iqn, present)
    if (error === einval) {
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
  async #mend(link: Link, {iqn, tid}: {iqn: string; tid: number}): Promise<void> {
    const stale = (why: string, cause?: unknown) =>
      new StorageError(
        'TARGET_FAILED',
        `ietd still lists ${iqn}, which the kernel has not: ${why}. Restart ietd, and lunpath puts its exports back`,
        {op: 'target.export', info: {iqn, tid}, cause},
      )
    this.#hasStaleTids = true
    if (tid === 0) throw stale('its number is not known')
    const [[added] = []] = await link.call([[call.addTarget(tid, iqn)]])
    if (added!.error === enosys) throw stale('the control device cannot be had to mend that')
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
    const others = present.volumes.some(({lun, path}) => lun !== lunOf(spec) || path !== spec.volume.path)
    if (!ours || others) throw this.#foreign(iqn, present)
    const expected = expectedVolume(spec, this.#volumeOptions)
    const isSame = isDeepStrictEqual(present.volumes, [expected])
    if (present.volumes.length === 0) {
      await this.#addVolume(link, {iqn, tid}, spec)
    } else if (!isSame || !this.#access) {
      // What is not as it should be, or may have another identity, is made anew; under sessions it is not touched.
      await this.#closeToNewLogins({tid, spec}, {doing: 'change', remedy: 'log out its initiators first'})
      await this.#replaceVolume(link, {iqn, tid}, spec)
    }
    if (!(await this.#hasAccounts(link, tid, spec.auth))) {
      await this.#allow([[iqn, 'closed']])
      await this.#setAccounts(link, {iqn, tid}, spec.auth)
    }
    const [session, target] = await this.#readParameters(link, tid, 0n, iqn)
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
      await this.#allow([[iqn, 'closed']])
      await this.#setAccounts(link, {iqn, tid}, spec.auth)
      await this.#addVolume(link, {iqn, tid}, spec)
      await this.#applySettings(link, {...wanted, tid})
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

  #foreign(iqn: string, present: IetTargetVolumes | undefined): StorageError {
    const offers = present?.volumes.map(({path}) => path || 'nullio').join(', ') || 'nothing'
    return new StorageError(
      'TARGET_EXISTS',
      `A target ${iqn} exists already that is not lunpath's: it offers ${offers}`,
      {op: 'target.export', info: {iqn, tid: present?.tid, luns: present?.volumes.map(({lun, path}) => ({lun, path}))}},
    )
  }

  /** Brings an export of ours from one spec to another. */
  async #amend(link: Link, entry: Entry, to: ExportSpec): Promise<void> {
    const {spec: from, tid} = entry
    const wanted = {...to, volume: {...to.volume, sizeBytes: from.volume.sizeBytes}}
    const isSameVolume = volumeArguments(from, this.#volumeOptions) === volumeArguments(wanted, this.#volumeOptions)
    if (!isSameVolume || !isDeepStrictEqual(from.auth, to.auth)) {
      await this.#closeToNewLogins(entry, {doing: 'change', remedy: 'log out its initiators first'})
      if (!isSameVolume) await this.#replaceVolume(link, {iqn: to.iqn, tid}, wanted)
      await this.#setAccounts(link, {iqn: to.iqn, tid}, to.auth)
    }
    entry.spec = wanted
  }

  /** Takes the target away. Its rule stays, and lets nobody in. */
  async #remove(
    link: Link,
    {iqn, tid}: IetTargetVolumes,
    {force, doing, remedy}: {force: boolean; doing: string; remedy: string},
  ): Promise<void> {
    const spec = this.#entries.get(iqn)?.spec
    if (force) {
      await this.#allow([[iqn, 'closed']])
      await this.#endAllSessions(link, {iqn, tid})
    } else {
      await this.#closeToNewLogins({tid, spec: spec ?? {iqn}}, {doing, remedy})
    }
    await this.#untilNoneIsDeleted({iqn, tid})
    await this.#dropAccounts(link, tid)
    for (;;) {
      const [[answer] = []] = await link.exchange([[request.deleteTarget(tid)]])
      if (answer!.error === 0) return
      if (answer!.error === ebusy && force) {
        await this.#endAllSessions(link, {iqn, tid})
        continue
      }
      if (answer!.error === ebusy) {
        if (spec) await this.#allow([[iqn, ruleOf(spec)]])
        throw inUse(iqn, [], {doing, remedy})
      }
      if (answer!.error === enoent && !(await this.#listings.find({iqn, tid}))) return
      throw refusal(answer!.error, {op: `target.${doing}`, what: 'the removal', iqn})
    }
  }

  /**
   * Looks for sessions before it touches anything, then lets nobody in any more, while sessions go on, and looks again.
   * @throws TARGET_IN_USE, with all as it was before
   */
  async #closeToNewLogins(
    {tid, spec}: {tid: number; spec: Pick<ExportSpec, 'iqn'> & Partial<ExportSpec>},
    {doing, remedy}: {doing: string; remedy: string},
  ): Promise<void> {
    const {iqn} = spec
    const refuseSessions = async ({leavingMs = 0} = {}) => {
      const deadline = performance.now() + leavingMs
      let found = await this.#sessionsOf({iqn, tid})
      while (found.length > 0 && performance.now() < deadline) {
        await sleep(waitMs)
        found = await this.#sessionsOf({iqn, tid})
      }
      if (found.length > 0) throw inUse(iqn, found, {doing, remedy})
    }
    await refuseSessions({leavingMs: logoutMs})
    if (!this.#access) return
    await this.#allow([[iqn, 'closed']])
    try {
      await refuseSessions()
    } catch (error) {
      if (spec.access) await this.#allow([[iqn, spec.access]])
      throw error
    }
  }

  async #sessionsOf(target: {iqn: string; tid: number}): Promise<IetSession[]> {
    return (await this.#listings.findSessions(target))?.sessions ?? []
  }

  /**
   * Over ietd's socket, and with a deadline: the same by ioctl can hang beyond a SIGKILL of this process.
   * @throws TIMEOUT
   */
  async #endAllSessions(link: Link, target: {iqn: string; tid: number}): Promise<void> {
    const deadline = performance.now() + forceDeadlineMs
    for (;;) {
      const sessions = await this.#sessionsOf(target)
      if (sessions.length === 0) return
      await this.#endSessions(link, target, sessions, deadline)
    }
  }

  async #endSessions(
    link: Link,
    target: {iqn: string; tid: number},
    sessions: IetSession[],
    deadline = performance.now() + forceDeadlineMs,
  ): Promise<void> {
    const answers = await link.exchange(sessions.map(({sid}) => [request.deleteSession(target.tid, sid)]))
    const failed = answers.map(([answer]) => answer!.error).find(error => error !== 0 && error !== enoent)
    if (failed !== undefined)
      throw refusal(failed, {op: 'target.session', what: 'the end of a session', iqn: target.iqn})
    const ended = new Set(sessions.map(({sid}) => sid))
    while ((await this.#sessionsOf(target)).some(({sid}) => ended.has(sid))) {
      if (performance.now() > deadline) {
        throw new StorageError('TIMEOUT', `A session of ${target.iqn} does not end: its I/O hangs`, {
          op: 'target.session',
          info: {iqn: target.iqn, state: 'stuck'},
        })
      }
      await sleep(waitMs)
    }
  }

  /** Without rules a target is open from the moment at which it is made, before its accounts are. */
  async #endEarlySessions(link: Link, target: {iqn: string; tid: number}): Promise<void> {
    if (!this.#access) await this.#endAllSessions(link, target)
  }

  async #allow(rules: [iqn: string, rule: Rule | null][]): Promise<void> {
    await this.#access?.set(rules)
  }

  async #lookAtAccess(): Promise<(iqn: string) => Found> {
    if (this.#access) return this.#access.look()
    return () => ({file: null, ours: false, access: {addresses: ['ALL'], names: []}})
  }

  // ---- volumes ----

  async #addVolume(link: Link, {iqn, tid}: {iqn: string; tid: number}, spec: ExportSpec): Promise<void> {
    const args = volumeArguments(spec, this.#volumeOptions)
    const lun = lunOf(spec)
    const [[answer] = []] = await link.call([[call.addVolume(tid, lun, args)]])
    if (answer!.error !== 0) {
      throw refusal(answer!.error, {op: 'target.export', what: `the volume ${spec.volume.path}`, iqn})
    }
    // IET may have forgotten an error on the way and made something else.
    const expected = expectedVolume(spec, this.#volumeOptions)
    const found = (await this.#listings.find({iqn, tid}))?.volumes.find(one => one.lun === lun)
    if (isDeepStrictEqual(found, expected)) return
    const differing = (Object.keys(expected) as (keyof IetVolume)[]).filter(key => expected[key] !== found?.[key])
    throw new StorageError(
      'TARGET_FAILED',
      found
        ? `IET has made another volume than it was asked for: ${differing.map(key => `${key} is ${found[key]}, not ${expected[key]}`).join('; ')}`
        : `IET said that it made the volume of ${iqn}, and does not list it`,
      {op: 'target.export', info: {iqn, expected, found}},
    )
  }

  /** Without sessions. */
  async #replaceVolume(link: Link, target: {iqn: string; tid: number}, spec: ExportSpec): Promise<void> {
    await refuseUnfitVolume(spec)
    const found = await this.#untilNoneIsDeleted(target)
    if (found?.volumes.some(({lun}) => lun === lunOf(spec))) {
      const [[answer] = []] = await link.call([[call.deleteVolume(target.tid, lunOf(spec))]])
      if (answer!.error !== 0 && answer!.error !== enoent) {
        throw refusal(answer!.error, {op: 'target.export', what: 'the removal of the volume', iqn: target.iqn})
      }
      await this.#untilNoneIsDeleted(target)
    }
    await this.#addVolume(link, target, spec)
  }

  /**
   * A LUN that is deleted and has commands in flight is never deleted again: IET would count its LUNs wrong, and hide
   * others. @throws TIMEOUT
   */
  async #untilNoneIsDeleted(target: {iqn: string; tid: number}): Promise<IetTargetVolumes | undefined> {
    const deadline = performance.now() + this.#timeoutMs
    for (;;) {
      const found = await this.#listings.find(target)
      if (!found?.volumes.some(({deleted}) => deleted)) return found
      if (performance.now() > deadline) {
        throw new StorageError('TIMEOUT', `A deleted LUN of ${target.iqn} still has commands in flight`, {
          op: 'target',
          info: {...target, state: 'stuck'},
        })
      }
      await sleep(waitMs)
    }
  }

  // ---- accounts ----

  /** Only under a rule that lets nobody in, or where it does not matter: for a moment there are none. */
  async #setAccounts(link: Link, {iqn, tid}: {iqn: string; tid: number}, auth: ChapAuth | undefined): Promise<void> {
    await this.#dropAccounts(link, tid)
    const wanted = (['incoming', 'outgoing'] as const).flatMap(direction => {
      const account = auth?.[direction]
      return account ? [{direction, ...account}] : []
    })
    const answers = await link.exchange(
      wanted.map(({direction, user, secret}) => [request.newAccount(tid, direction, user, secret)]),
    )
    const error = answers.map(([answer]) => answer!.error).find(one => one !== 0)
    if (error !== undefined) throw refusal(error, {op: 'target.export', what: 'the CHAP account', iqn})
    const [incoming, outgoing] = await this.#listAccounts(link, tid)
    const present = [incoming, outgoing].map(names => names!.join())
    if (!isDeepStrictEqual(present, [auth?.incoming.user ?? '', auth?.outgoing?.user ?? ''])) {
      throw new StorageError('TARGET_FAILED', `ietd has other CHAP accounts for ${iqn} than it was given`, {
        op: 'target.export',
        info: {iqn, tid},
      })
    }
  }

  /** True where ietd has these accounts and no other, with these secrets. */
  async #hasAccounts(link: Link, tid: number, auth: ChapAuth | undefined): Promise<boolean> {
    const present = await this.#listAccounts(link, tid)
    const wanted = [auth?.incoming, auth?.outgoing]
    if (
      !isDeepStrictEqual(
        present,
        wanted.map(one => (one ? [one.user] : [])),
      )
    )
      return false
    const checks = (['incoming', 'outgoing'] as const).flatMap(direction => {
      const account = auth?.[direction]
      return account ? [[request.checkAccount(tid, direction, account.user, account.secret)]] : []
    })
    return (await link.exchange(checks)).every(([answer]) => answer!.error === 0 && answer!.numbers[0] === 1)
  }

  /** A number that is used again has the accounts of the target before. */
  async #dropAccounts(link: Link, tid: number): Promise<void> {
    for (const [index, direction] of (['incoming', 'outgoing'] as const).entries()) {
      for (;;) {
        const names = (await this.#listAccounts(link, tid))[index]!
        if (names.length === 0) break
        const answers = await link.exchange(names.map(name => [request.deleteAccount(tid, direction, name)]))
        const error = answers.map(([answer]) => answer!.error).find(one => one !== 0)
        if (error !== undefined)
          throw refusal(error, {op: 'target', what: 'the removal of a CHAP account', iqn: `tid ${tid}`})
      }
    }
  }

  /** Incoming and outgoing. */
  async #listAccounts(link: Link, tid: number): Promise<string[][]> {
    return (await this.#accountLists(link, [tid])).get(tid)!
  }

  async #accountsOf(link: Link, tids: number[]): Promise<Map<number, string[]>> {
    const lists = await this.#accountLists(link, tids)
    return new Map([...lists].map(([tid, names]) => [tid, names.flat()]))
  }

  async #accountLists(link: Link, tids: number[]): Promise<Map<number, string[][]>> {
    const directions: AccountDirection[] = ['incoming', 'outgoing']
    const wanted = tids.flatMap(tid => directions.map(direction => ({tid, direction})))
    const answers = await link.exchange(wanted.map(({tid, direction}) => [request.listAccounts(tid, direction)]))
    const lists = new Map<number, string[][]>(tids.map(tid => [tid, []]))
    for (const [index, {tid, direction}] of wanted.entries()) {
      let answer = answers[index]![0]!
      while (answer.error === 0 && answer.numbers[0] !== 0) {
        const most = answer.names.length + answer.numbers[0]! + 16
        answer = (await link.exchange([[request.listAccounts(tid, direction, most)]]))[0]![0]!
      }
      lists.get(tid)!.push(answer.error === 0 ? answer.names : [])
    }
    return lists
  }

  async #setDiscoveryAccounts(link: Link): Promise<void> {
    const {discoveryAuth} = this.#options
    if (discoveryAuth) await this.#setAccounts(link, {iqn: 'discovery', tid: 0}, discoveryAuth)
  }

  // ---- parameters ----

  async #readParameters(link: Link, tid: number, sid: bigint, iqn: string): Promise<number[][]> {
    const types = ['session', 'target'] as const
    const answers = await link.call(types.map(type => [call.getParameters(tid, type === 'session' ? sid : 0n, type)]))
    return answers.map(([answer]) => {
      if (answer!.error !== 0) throw refusal(answer!.error, {op: 'target.parameters', what: 'its parameters', iqn})
      return answer!.numbers
    })
  }

  /** The kernel takes values out of range without a word, as other ones: so they are read back. */
  async #writeParameters(
    link: Link,
    {tid, spec: {iqn}}: Entry,
    sid: bigint,
    wanted: Record<ParameterType, Map<string, number>>,
  ): Promise<void> {
    const types = (['session', 'target'] as const).filter(type => wanted[type].size > 0)
    if (types.length === 0) return
    const answers = await link.call(types.map(type => [call.setParameters(tid, sid, type, wanted[type])]))
    const error = answers.map(([answer]) => answer!.error).find(one => one !== 0)
    if (error !== undefined) throw refusal(error, {op: 'target.parameters', what: 'the parameters', iqn})
    const [session, target] = await this.#readParameters(link, tid, sid, iqn)
    const found = {session: session!, target: target!}
    const differing = types.flatMap(type => differingKeys(type, wanted[type], found[type]))
    if (differing.length === 0) return
    throw new StorageError('TARGET_FAILED', `IET did not keep the values of ${differing.join(', ')} for ${iqn}`, {
      op: 'target.parameters',
      info: {iqn, keys: differing},
    })
  }

  async #applySettings(link: Link, entry: Entry): Promise<void> {
    await this.#writeParameters(link, entry, 0n, entry.settings)
    const {redirect} = entry.settings
    if (redirect === '') return
    const facts = {op: 'target.redirect', what: 'the redirection', iqn: entry.spec.iqn}
    await this.#exchangeOne(link, request.redirect(entry.tid, redirect), facts)
  }

  // ---- looks ----

  /** The target of that name in the kernel, by the number that it should have or by a search. */
  async #present(iqn: string, entry: Pick<Entry, 'tid'> | undefined): Promise<IetTargetVolumes | undefined> {
    const known = entry && (await this.#listings.find({tid: entry.tid, iqn}))
    if (known) return known
    return (await this.#listings.volumes()).find(target => target.iqn === iqn)
  }

  async #named(iqn: string): Promise<IetTargetVolumes> {
    const found = await this.#present(iqn, this.#entries.get(iqn))
    if (found) return found
    throw new StorageError('EXPORT_NOT_FOUND', `IET has no target ${iqn}`, {op: 'target', info: {iqn}})
  }

  async #isWhole({tid, spec}: Entry): Promise<boolean> {
    const found = await this.#listings.find({tid, iqn: spec.iqn})
    return found?.volumes.some(({lun, deleted}) => lun === lunOf(spec) && !deleted) ?? false
  }

  #observed(
    {iqn, tid, volumes}: IetTargetVolumes,
    sessions: IetSession[],
    found: {access: ObservedTarget['access']; accounts: string[] | undefined},
  ): ObservedTarget {
    const spec = this.#ownSpec({iqn, tid})
    const {incoming, outgoing} = spec?.auth ?? {}
    return {
      iqn,
      tid,
      luns: volumes.map(({lun, deleted, ioType, ioMode, blocks = 0, blockSizeBytes = 0, path}) => {
        const own = spec && lun === lunOf(spec) && path === spec.volume.path ? idsOf(spec) : {serial: '', scsiId: ''}
        const sizeBytes = blocks * blockSizeBytes
        const shown = {lun, path, sizeBytes, ...own, readOnly: ioMode === 'ro', online: !deleted}
        return {...shown, ioType, ioMode, blockSizeBytes}
      }),
      access:
        spec && !spec.taken
          ? {addresses: spec.access.addresses.map(ruleAddress), names: spec.access.names}
          : found.access,
      accounts: spec ? [incoming, outgoing].flatMap(one => one?.user ?? []) : (found.accounts ?? []),
      sessions: sessions.map(session => toSession(iqn, session)),
    }
  }

  #ownSpec({iqn, tid}: {iqn: string; tid: number}): ExportSpec | undefined {
    const entry = this.#entries.get(iqn)
    return entry?.tid === tid ? entry.spec : undefined
  }

  #exported({iqn}: ExportSpec): Export {
    const {spec, tid} = this.#entries.get(iqn)!
    const {volume, taken} = spec
    return {
      volumeId: volume.id,
      driver: this.name,
      iqn,
      lun: lunOf(spec),
      tid,
      portals: this.portals(),
      wwid: taken?.wwid ?? ietWwid(volume.id),
      serial: idsOf(spec).serial,
      sizeBytes: volume.sizeBytes,
    }
  }

  // ---- before all else ----

  async #ietdPid(): Promise<number> {
    const {pid, answers, failure} = await this.#control.exchange([[request.nothing()]], {timeoutMs: this.#timeoutMs})
    if (failure) throw this.#unavailable(failure)
    if (answers[0]?.[0]?.error === eperm) {
      throw new StorageError('TARGET_UNAVAILABLE', 'ietd lets nobody but root in: run the daemon as root', {
        op: 'target.open',
      })
    }
    return pid
  }

  /** 1.4.18 and 1.4.19 have other request numbers. */
  async #refuseOtherVersions(targets: IetTargetVolumes[]): Promise<void> {
    const {answers, failure} = await this.#control.call([[call.moduleInfo()]], {
      timeoutMs: this.#timeoutMs,
      expectedPid: this.#pid,
    })
    if (failure) throw this.#unavailable(failure)
    const said = answers[0]?.[0]
    const version = (said?.error === 0 ? said.names[0] : undefined) ?? (await moduleVersion())
    const showsNoBlocks = targets.some(({volumes}) => volumes.some(({blocks}) => blocks === undefined))
    const isRefused = said?.error !== 0 && said?.error !== enosys
    const isKnown = version === undefined ? !isRefused : supportedIet.test(version)
    if (isKnown && !isRefused && !showsNoBlocks) return
    const found = version ?? (showsNoBlocks ? 'of 1.4.18 or 1.4.19' : 'older than 1.4.20')
    throw new StorageError(
      'UNSUPPORTED',
      `The IET of this machine is ${found}: lunpath knows the interface of 1.4.20 to 1.4.20.3. Install 1.4.20.2, or use targets.driver = "lio" or "tgt"`,
      {op: 'target.open', info: {version: version ?? null}},
    )
  }

  async #refusePortalsOfOthers(): Promise<void> {
    for (const portal of this.#options.portals) {
      const holder = (await portalHolders(portal, {dualStack: false})).find(
        ({pid, command}) => pid !== this.#pid && command !== 'ietd',
      )
      if (!holder) continue
      throw new StorageError(
        'PORTAL_IN_USE',
        `${formatPortal(portal)} is held by process ${holder.pid} (${holder.command}), not by ietd`,
        {op: 'target.open', info: {portal: formatPortal(portal), pid: holder.pid, process: holder.command}},
      )
    }
  }

  // ---- all exports: after open(), and when they have gone ----

  /** Whole targets first, behind rules that let nobody in; then all rules at once. Returns what could not be put back. */
  async #putInPlace(link: Link, wanted: Entry[]): Promise<{iqn: string; code: string; message: string}[]> {
    const failed: {iqn: string; code: string; message: string}[] = []
    const placed: Entry[] = []
    // Those that are in the kernel may have sessions, and stay open to them; what is not there must not be open.
    const present = new Set((await this.#listings.volumes()).map(({iqn}) => iqn))
    await this.#allow(wanted.filter(({spec}) => !present.has(spec.iqn)).map(({spec}) => [spec.iqn, 'closed']))
    const results = await Promise.allSettled(wanted.map(entry => this.#place(link, entry)))
    for (const [index, result] of results.entries()) {
      const entry = wanted[index]!
      if (result.status === 'fulfilled') {
        placed.push(entry)
        continue
      }
      const {reason} = result
      if (!(reason instanceof StorageError)) throw reason
      failed.push({iqn: entry.spec.iqn, code: reason.code, message: reason.message})
      this.#entries.delete(entry.spec.iqn)
      this.#former.set(entry.spec.iqn, entry)
    }
    const settled = wanted.filter(entry => entry.spec.taken || placed.includes(entry))
    await this.#allow(settled.map(({spec}) => [spec.iqn, ruleOf(spec)]))
    return failed
  }

  #watch(): void {
    if (this.#state !== 'open') return
    this.#timer = setTimeout(
      () => void this.#lookAfter().finally(() => this.#watch()),
      this.#isLost ? pollLostMs : pollMs,
    )
    this.#timer.unref()
  }

  /** One at a time. */
  #lookAfter(): Promise<void> {
    this.#checking ??= this.#lookOnce()
      .catch(error => this.#tellLost({pid: this.#pid, message: (error as Error).message}))
      .finally(() => {
        this.#checking = undefined
      })
    return this.#checking
  }

  async #lookOnce(): Promise<void> {
    const [seen, missing] = await Promise.all([
      this.#control.exchange([[request.nothing()]], {timeoutMs: Math.min(answerMs, this.#timeoutMs)}),
      this.#missing(),
    ])
    if (this.#state !== 'open') return
    const {failure, pid} = seen
    if (failure) {
      this.#tellLost({pid: this.#pid, code: failure.code, message: failure.message})
      return
    }
    if (pid !== this.#pid) return this.#recover(pid)
    if (missing.length > 0) return this.#bringBack(missing)
    this.#isLost = false
    // Not awaited: it takes its turn behind exports of the same name, and those may be waiting for this look.
    for (const iqn of this.#debris) if (!this.#queue.busy(iqn)) void this.#sweep(iqn)
  }

  async #sweep(iqn: string): Promise<void> {
    await this.#queue.run(iqn, async () => {
      if (this.#entries.has(iqn) || !this.#debris.has(iqn) || this.#state !== 'open') return
      try {
        const found = await this.#present(iqn, undefined)
        const isForeign = this.#access !== undefined && !this.#access.has(iqn)
        const link = this.#link(this.#pid)
        if (found && !isForeign) await this.#remove(link, found, {force: true, doing: 'export', remedy: ''})
        if (!isForeign) await this.#allow([[iqn, null]])
        this.#debris.delete(iqn)
      } catch {
        // The next look tries again.
      }
    })
  }

  /** Exports that the kernel has not, or not whole, and that nobody is at work on. */
  async #missing(): Promise<Entry[]> {
    const isGone = (targets: IetTargetVolumes[]) => {
      const byName = new Map(targets.map(target => [target.iqn, target]))
      return ({spec, tid}: Entry) => {
        const target = byName.get(spec.iqn)
        return target?.tid !== tid || target.volumes.every(({lun}) => lun !== lunOf(spec))
      }
    }
    const glance = await this.#listings.glance()
    const suspects = [...this.#entries.values()].filter(isGone(glance))
    for (const {tid} of glance) this.#highestTid = Math.max(this.#highestTid, tid)
    if (suspects.length === 0) return []
    const gone = suspects.filter(isGone(await this.#listings.volumes()))
    return gone.filter(entry => this.#entries.get(entry.spec.iqn) === entry && !this.#queue.busy(entry.spec.iqn))
  }

  /** Somebody has closed the control device, or deleted targets of ours, while ietd runs on. */
  async #bringBack(missing: Entry[]): Promise<void> {
    const began = performance.now()
    this.#tellLost({message: 'targets were removed by somebody else', exports: missing.map(({spec}) => spec.iqn)})
    this.#hasStaleTids = true
    const failed = await this.#putInPlace(this.#link(this.#pid), missing)
    this.#isLost = false
    this.#tellRestarted({exports: missing.length - failed.length, failed, began})
  }

  /** Another ietd answers, and it knows nothing of ours. */
  #recover(pid: number): Promise<void> {
    this.#recovery = this.#recoverFrom(pid).finally(() => {
      this.#recovery = undefined
    })
    return this.#recovery
  }

  async #recoverFrom(pid: number): Promise<void> {
    const began = performance.now()
    const previousPid = this.#pid
    this.#tellLost({pid: previousPid, message: 'ietd has been restarted'})
    this.#pid = pid
    this.#hasStaleTids = false
    this.#highestTid = 0
    if (!this.#isRestored) return
    try {
      const link = this.#link(pid)
      await this.#setDiscoveryAccounts(link)
      const entries = [...this.#entries.values()]
      const failed = await this.#putInPlace(link, entries)
      this.#isLost = false
      this.#tellRestarted({pid, previousPid, exports: entries.length - failed.length, failed, began})
    } catch (error) {
      // The next look finds this pid unknown again and starts over.
      this.#pid = 0
      throw error
    }
  }

  /** Once for each time that they go. */
  #tellLost(facts: Record<string, unknown>): void {
    if (this.#isLost) return
    this.#isLost = true
    this.#events.emit('lost', facts)
  }

  #tellRestarted({began, ...facts}: Record<string, unknown> & {began: number}): void {
    this.#events.emit('restarted', {...facts, durationMs: performance.now() - began})
  }

  // ---- exchanges ----

  get #timeoutMs(): number {
    return this.#options.timeoutMs ?? 10_000
  }

  /** Runs `task` against the ietd of now; where that dies on the way, once more against its successor. */
  async #attempt<T>(task: (link: Link) => Promise<T>): Promise<T> {
    if (this.#state === 'new') throw new StorageError('TARGET_UNAVAILABLE', 'This IET driver is not open')
    for (let again = 0; ; again++) {
      await this.#recovered()
      if (this.#state === 'closed') throw new StorageError('TARGET_UNAVAILABLE', 'This IET driver is closed')
      try {
        return await task(this.#link(this.#pid))
      } catch (error) {
        if (!(error instanceof ExchangeError)) throw error
        const {fact} = error
        if (fact.code === 'ETIMEDOUT' || fact.code === 'IET_STUCK') throw hanging(fact, {})
        if (again > 0) throw this.#unavailable(fact)
        await this.#lookAfter()
        if (this.#isLost) throw this.#unavailable(fact)
      }
    }
  }

  async #recovered(): Promise<void> {
    if (!this.#recovery) return
    const timeout = AbortSignal.timeout(recoveryDeadlineMs)
    const late = new Promise(resolve => timeout.addEventListener('abort', resolve))
    await Promise.race([this.#recovery.catch(() => undefined), late])
    if (timeout.aborted) {
      throw new StorageError('TARGET_UNAVAILABLE', 'ietd has been restarted and its exports are not all back yet')
    }
  }

  #link(pid: number): Link {
    const options = {timeoutMs: this.#timeoutMs, expectedPid: pid}
    const answersOf = ({answers, failure}: IetOutcome): IetAnswer[][] => {
      if (failure) throw new ExchangeError(failure)
      return answers
    }
    return {
      pid,
      exchange: async sequences =>
        sequences.length === 0 ? [] : answersOf(await this.#control.exchange(sequences, options)),
      call: async sequences => (sequences.length === 0 ? [] : answersOf(await this.#control.call(sequences, options))),
    }
  }

  async #exchangeOne(
    link: Link,
    asked: IetRequest,
    facts: {op: string; what: string; iqn: string},
  ): Promise<IetAnswer> {
    const [[answer] = []] = await link.exchange([[asked]])
    if (answer!.error !== 0) throw refusal(answer!.error, facts)
    return answer!
  }

  #unavailable(cause: Error & {code: string}): StorageError {
    const why =
      cause.code === 'ECONNREFUSED'
        ? 'no ietd listens: start it (systemctl start iscsitarget, or ietd), which needs the module iscsi_trgt'
        : cause.message
    return new StorageError('TARGET_UNAVAILABLE', `ietd cannot be used: ${why}`, {
      op: 'target',
      info: {socket: this.#control.socketName, code: cause.code},
      cause,
    })
  }
}

/** Nobody's rule is touched of a target that was taken over: what others have written for it counts. */
function ruleOf({access, taken}: ExportSpec): Rule | null {
  return taken ? null : access
}

function idsOf({volume, taken}: ExportSpec): {serial: string; scsiId: string} {
  return taken ? {serial: taken.scsiSn, scsiId: taken.scsiId ?? ''} : {serial: volume.id, scsiId: volume.id}
}

/** Those of `values` that were set, in words. */
function describeChanged(type: ParameterType, values: number[]): Record<string, ParameterValue> {
  const changed = changedParameters(type, values)
  return Object.fromEntries(Object.entries(describeParameters(type, values)).filter(([name]) => changed.has(name)))
}

function unmade(spec: ExportSpec): Entry {
  return {
    spec,
    tid: spec.tid ?? 0,
    settings: {...settleParameters(spec.parameters ?? {}), redirect: spec.redirect ?? ''},
  }
}

function toSession(iqn: string, {sid, initiator, connections}: IetSession): TargetSession {
  return {
    iqn,
    initiator,
    sid: String(sid),
    connections,
  }
}

/** The version of the loaded module, where it says so. */
async function moduleVersion(): Promise<string | undefined> {
  const text = await readFile('/sys/module/iscsi_trgt/version', 'utf8').catch(() => '')
  return text.trim() || undefined
}

/** IET would export a file that is too short, and a directory it would refuse without a word. @throws TARGET_FAILED */
async function refuseUnfitVolume({iqn, volume}: ExportSpec): Promise<void> {
  const refuse = (why: string, cause?: unknown) =>
    new StorageError('TARGET_FAILED', `IET cannot export ${volume.path} as ${iqn}: ${why}`, {
      op: 'target.export',
      info: {iqn, path: volume.path},
      cause,
    })
  const found = await stat(volume.path).catch(cause => {
    throw refuse((cause as Error).message, cause)
  })
  if (volume.kind === 'block' && !found.isBlockDevice()) throw refuse('it is no block device')
  if (volume.kind === 'file' && !found.isFile()) throw refuse('it is no regular file')
  if (volume.kind === 'file' && found.size !== volume.sizeBytes) {
    throw refuse(`it has ${found.size} bytes, the volume ${volume.sizeBytes}`)
  }
}

function inUse(iqn: string, sessions: IetSession[], {doing, remedy}: {doing: string; remedy: string}): StorageError {
  const count = sessions.length === 1 ? 'one session is' : `${sessions.length || 'some'} sessions are`
  return new StorageError('TARGET_IN_USE', `Cannot ${doing} ${iqn}: ${count} logged in; ${remedy}`, {
    op: `target.${doing}`,
    info: {iqn, initiators: sessions.map(({initiator}) => initiator)},
  })
}

/** The native fact behind a refusal, for a StorageError's `cause`. */
function errnoFact(error: number): Error {
  const [code, description] = getSystemErrorMap().get(-error) ?? ['EUNKNOWN', `error ${error}`]
  return Object.assign(new Error(`IET: ${description}`), {code, errno: error})
}

function refusal(error: number, {op, what, iqn}: {op: string; what: string; iqn: string}): StorageError {
  const cause = errnoFact(error)
  return new StorageError('TARGET_FAILED', `IET refused ${what} of ${iqn}: ${cause.message}`, {
    op,
    info: {iqn, errno: (cause as NodeJS.ErrnoException).code},
    cause,
  })
}
