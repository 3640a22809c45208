import {EventEmitter} from 'node:events'
import {setTimeout as sleep} from 'node:timers/promises'
import {isDeepStrictEqual} from 'node:util'
import {samePortal} from '../address.js'
import {StorageError} from '../errors.js'
import {formatPortal} from '../iqn.js'
import {KeyedQueue} from '../lock.js'
import {portalHolders} from '../port-holders.js'
import type {ChapCredentials, Export, ExportSpec, ObservedTarget, Portal, TargetSession} from '../types.js'
import {firstLun, type LunCounters, type TargetDriver, type TargetEvent} from './driver.js'
import {refuseUnrestored} from './errors.js'
import {covers, dialledPortals, isLocalAddress, noSuchAddress, type PortalState} from './portals.js'
import {type Entry, type Losses, TgtAudit} from './tgt-audit.js'
import {
  describeTgtError,
  Mode,
  request,
  TgtControl,
  TgtError,
  type TgtReply,
  type TgtRequest,
  tgtFact,
} from './tgt-control.js'
import {EmptiedTargets} from './tgt-emptied.js'
import {
  parseAccounts,
  parseConnections,
  parsePortals,
  parseStatistics,
  parseTargets,
  type ShownTarget,
} from './tgt-show.js'
import {checkSpec, lunParameters, ruleTexts, tgtWwid} from './tgt-spec.js'
import {Tgtd, type TgtdOptions, tgtdSocketPath} from './tgtd.js'

interface CommonOptions {
  portals: Portal[]
  /** Milliseconds for one exchange with tgtd, waiting included; default 10,000. */
  timeoutMs?: number
}

/** A tgtd that we start and supervise. It outlives a crash of this process, and the next open() adopts it. */
export interface ManagedTgt extends CommonOptions, TgtdOptions {
  managed: true
  /** close() leaves tgtd and its targets in place, as for a restart of the daemon under running guests. */
  keepOnClose?: boolean
}

/** A tgtd that runs already, with targets of others in it. */
export interface UnmanagedTgt extends CommonOptions {
  managed: false
  /** The control socket; the system's tgtd has `/var/run/tgtd/socket.0`. */
  socketPath: string
}

export type TgtOptions = ManagedTgt | UnmanagedTgt

/** A CHAP account as tgtd holds it: one secret for a user, whatever the number of targets. */
interface Account {
  secret: string
  iqns: Set<string>
}

/** What one listing of tgtd said. */
interface Listing {
  targets: ShownTarget[]
  accounts: string[]
  portals: Portal[]
}

/** Sends sequences to the one tgtd process that the operation began with. */
type Run = (sequences: TgtRequest[][]) => Promise<TgtReply[][]>

/** The exchange with tgtd broke off; whether its last request took effect is not known. */
class ExchangeError extends Error {
  readonly fact: Error & {code: string}

  constructor(fact: Error & {code: string}) {
    super(fact.message, {cause: fact})
    this.fact = fact
  }
}

const pollMs = 200
// Initiators wait for a tgtd that is gone, and a connect that is refused costs next to nothing.
const pollLostMs = 20
const forceDeadlineMs = 10_000
const recoveryDeadlineMs = 10_000
const maxBackOffMs = 5_000
const steadyAfterMs = 10_000
/** Looks that are left out in a row because requests are in flight. */
const mostLeftOut = 5
/** How often it is tried to open a portal whose address is there. */
const portalRetryMs = 5_000
/** Up to so many are put back one by one; for more of them one listing of all targets is worth its cost. */
const fewExports = 20
/** How often it is looked whether another tool has changed something. */
const auditMs = 1_000

/**
 * The tgt driver. It keeps an index of what it exports, so no operation of the hot path lists anything, and an export is
 * one exchange with tgtd.
 *
 * tgtd numbers targets by the caller's choice (tid). The index gives out each number once; where others have taken one,
 * tgtd says so and the next is tried. Numbers are valid for one tgtd process, and every request is bound to that process.
 */
export class TgtDriver implements TargetDriver {
  readonly name = 'tgt'
  readonly supports = {
    dataPath: true,
    accessRules: true,
    addressRules: true,
    chap: true,
    mutualChap: true,
    chapUserPerTarget: false,
    ipv6: true,
    ioTypes: false,
    resizeInUse: false,
    sessionsOfAnybody: true,
    byteCounters: true,
    commandCounters: true,
  }

  readonly #options: TgtOptions
  readonly #control: TgtControl
  readonly #tgtd: Tgtd | undefined
  readonly #events = new EventEmitter()
  readonly #queue = new KeyedQueue()
  readonly #entries = new Map<string, Entry>()
  readonly #accounts = new Map<string, Account>()
  /** Exports that broke off in the middle, by IQN: removed as soon as tgtd answers again. */
  readonly #debris = new Map<string, ExportSpec>()
  /** Of a tgtd of our own: in another's a crash of this process would leave them there for good. */
  readonly #emptied = new EmptiedTargets({
    remove: (iqn, tid) => this.#removeEmptied(iqn, tid),
    quietMs: () => (this.#inFlight > 0 || this.#lost ? 0 : performance.now() - this.#askedAt),
  })
  readonly #initiators = new Map<string, string>()
  readonly #names = new Map<number, string>()
  #nextTid = 1
  #takenTids = new Set<number>()
  #pid = 0
  #state: 'new' | 'open' | 'closed' = 'new'
  #restored = false
  readonly #closing = new AbortController()
  #lost = false
  #inFlight = 0
  #askedAt = 0
  #recovery: Promise<void> | undefined
  #checking: Promise<void> | undefined
  #timer: NodeJS.Timeout | undefined
  #backOffMs = 0
  #startedAt = 0
  #leftOut = 0
  #auditAt = 0
  readonly #audit: TgtAudit
  /** Why our portals are not open, by their text; one that is open is not in it. */
  readonly #closedPortals = new Map<string, {reason: string; triedAt: number}>()

  constructor(options: TgtOptions) {
    if (options.managed) {
      this.#control = new TgtControl(tgtdSocketPath(options.directory))
      this.#tgtd = new Tgtd(options, this.#control)
    } else {
      this.#control = new TgtControl(options.socketPath)
    }
    this.#options = options
    this.#audit = new TgtAudit(this.#entries, this.#queue, {bindsRules: options.managed})
    for (const portal of options.portals)
      this.#closedPortals.set(formatPortal(portal), {reason: 'tgtd has not been told to open it yet', triedAt: 0})
  }

  /** Process id of the tgtd in use; 0 before open(). */
  get pid(): number {
    return this.#pid
  }

  async open(): Promise<void> {
    if (this.#state === 'open') return
    if (this.#state === 'closed') throw new StorageError('TARGET_UNAVAILABLE', 'This tgt driver is closed')
    if (this.#tgtd) {
      const {pid} = await this.#tgtd.start()
      this.#startedAt = Date.now()
      this.#pid = pid
    } else {
      const {pid, failure} = await this.#control.run([[request.showPortals()]], {timeoutMs: this.#timeoutMs})
      if (failure) throw this.#unavailable(failure)
      this.#pid = pid
    }
    await this.#refusePortalsOfOthers()
    const listing = await this.#listing(this.#bound(this.#pid))
    this.#learnTids(listing.targets)
    if (this.#tgtd) this.#tgtd.onExit = () => void this.#check()
    this.#state = 'open'
    this.#watch()
  }

  async restore(specs: ExportSpec[]): Promise<void> {
    for (const spec of specs) checkSpec(spec)
    this.#restored = true
    const failed = await this.#attempt(async run => {
      for (const spec of specs) {
        if (!this.#entries.has(spec.iqn)) this.#entries.set(spec.iqn, {spec, tid: undefined})
      }
      return this.#putInPlace(run)
    })
    refuseUnrestored(failed, specs.length)
  }

  check(spec: ExportSpec): void {
    checkSpec(spec)
    this.#checkAccounts(spec)
  }

  async export(spec: ExportSpec): Promise<Export> {
    checkSpec(spec)
    await this.#queue.run(spec.iqn, () =>
      this.#attempt(async run => {
        const entry = this.#entries.get(spec.iqn)
        if (entry?.tid !== undefined && (await this.#isThere(run, entry.tid))) {
          await this.#amend(run, entry.spec, entry.tid, spec)
        } else {
          await this.#create(run, spec)
        }
      }),
    )
    return this.#exported(spec)
  }

  async unexport(iqn: string, {force = false}: {force?: boolean} = {}): Promise<void> {
    await this.#queue.run(iqn, () =>
      this.#attempt(async run => {
        if (this.#emptied.has(iqn)) return
        const entry = this.#entries.get(iqn)
        const found = await this.#find(run, iqn, entry)
        const mayWait = this.#tgtd !== undefined && !force && this.#emptied.isWorthwhile(this.#entries.size)
        if (found && mayWait) await this.#empty(run, {iqn, ...found})
        else if (found) await this.#remove(run, {iqn, force, ...found})
        if (entry) await this.#forget(run, entry.spec)
      }),
    )
  }

  async resize(spec: ExportSpec): Promise<Export> {
    checkSpec(spec)
    await this.#queue.run(spec.iqn, () =>
      this.#attempt(async run => {
        const entry = this.#entries.get(spec.iqn)
        const found = entry && (await this.#find(run, spec.iqn, entry))
        if (!entry || !found) {
          throw new StorageError('EXPORT_NOT_FOUND', `${spec.iqn} is not exported`, {op: 'target.resize'})
        }
        // tgtd keeps the size that it saw at opening: the LUN must be taken away and added anew, which an initiator that
        // is logged in would see as a disk that fails.
        await this.#closeToNewLogins(run, {
          iqn: spec.iqn,
          tid: found.tid,
          rules: found.rules,
          doing: 'resize',
          remedy: 'detach it first',
        })
        const rules = ruleTexts(spec)
        const sequence = [
          request.deleteLun(found.tid, firstLun),
          request.newLun(found.tid, firstLun, spec.volume.path),
          request.updateLun(found.tid, firstLun, lunParameters(spec)),
          ...rules.map(rule => request.bind(found.tid, rule)),
        ]
        const [replies = []] = await run([sequence])
        this.#refuseError(sequence, replies, 'target.resize', spec.iqn)
        entry.spec = {...spec, auth: entry.spec.auth}
      }),
    )
    return this.#exported(spec)
  }

  portals(): Portal[] {
    return dialledPortals(this.#options.portals)
  }

  portalStates(): PortalState[] {
    return this.#options.portals.map(portal => {
      const reason = this.#closedPortals.get(formatPortal(portal))?.reason ?? null
      return {...portal, open: reason === null, reason}
    })
  }

  isInPlace(iqn: string): boolean {
    return this.#entries.get(iqn)?.tid !== undefined
  }

  async list(): Promise<ObservedTarget[]> {
    return this.#attempt(async run => {
      const before = this.#audit.settled()
      const {targets} = await this.#listing(run, {targetsOnly: true})
      // Not awaited: what is put back waits for operations, and those may wait for whoever has asked.
      void this.#makeGood(run, this.#audit.compare(before, targets)).catch(() => undefined)
      return targets.flatMap(({outgoingAccount: _, ...target}) =>
        this.#emptied.has(target.iqn) ? [] : [{...target, luns: this.#withExactSizes(target)}],
      )
    })
  }

  /**
   * What of an export tgtd still has: the LUN and the sessions are asked for; rules and accounts, which tgtd shows in a
   * full listing alone, are as this driver set them. A target that is not ours costs that listing.
   */
  async get(iqn: string): Promise<ObservedTarget | undefined> {
    return this.#attempt(async run => {
      const entry = this.#entries.get(iqn)
      if (entry?.tid === undefined) return (await this.list()).find(target => target.iqn === iqn)
      const {spec, tid} = entry
      const [[lun] = [], [connections] = []] = await run([
        [request.lunStatistics(tid, firstLun)],
        [request.showConnections(tid)],
      ])
      if (!lun || !connections || lun.error === TgtError.noTarget) return undefined
      const {id, path, sizeBytes} = spec.volume
      const shown = {lun: firstLun, path, sizeBytes, serial: id, scsiId: id, readOnly: spec.readOnly, online: true}
      return {
        iqn,
        tid,
        luns: lun.error === TgtError.success ? [shown] : [],
        access: {
          addresses: ruleTexts({access: {...spec.access, names: []}}),
          names: ruleTexts({access: {...spec.access, addresses: []}}),
        },
        accounts: usersOf(spec),
        sessions: parseConnections(iqn, connections.text),
      }
    })
  }

  async sessions(): Promise<TargetSession[]> {
    return this.#attempt(async run => {
      const [[reply] = []] = await run([[request.allStatistics()]])
      // Statistics have a line for each session: cheap at any number of targets, where a listing is not.
      const tids = [...new Set(parseStatistics(reply?.text ?? '').map(row => row.tid))]
      return [...(await this.#sessionsOf(run, tids)).values()].flat()
    })
  }

  async counters(): Promise<LunCounters[]> {
    return this.#attempt(async run => {
      const [[reply] = []] = await run([[request.allStatistics()]])
      const rows = parseStatistics(reply?.text ?? '').filter(row => row.lun !== 0)
      await this.#learnInitiators(run, rows)
      return rows.map(({tid, ...row}) => ({
        iqn: this.#names.get(tid) ?? '',
        initiator: this.#initiators.get(`${tid}/${row.sid}`) ?? '',
        ...row,
      }))
    })
  }

  async close(): Promise<void> {
    if (this.#state === 'closed') return
    this.#state = 'closed'
    this.#closing.abort()
    clearTimeout(this.#timer)
    this.#emptied.close()
    if (this.#tgtd) this.#tgtd.onExit = undefined
    await this.#checking
    if (this.#tgtd && this.#options.managed && !this.#options.keepOnClose && this.#tgtd.pid !== 0) {
      // The portals first, so that nobody logs in to what is about to go. What fails here, the kill ends all the same.
      await this.#control.run(
        [
          ...this.#options.portals.map(portal => [request.deletePortal(formatPortal(portal))]),
          ...[...this.#entries.values()].flatMap(({tid}) => (tid === undefined ? [] : [[request.deleteTarget(tid)]])),
        ],
        {timeoutMs: this.#timeoutMs, expectedPid: this.#tgtd.pid},
      )
      await this.#tgtd.kill()
    }
    await this.#control.close()
  }

  on(event: TargetEvent, listener: (facts: Record<string, unknown>) => void): void {
    this.#events.on(event, listener)
  }

  // ---- one export ----

  /** Makes the target in one exchange, the access rules last. */
  async #create(run: Run, spec: ExportSpec): Promise<void> {
    const emptied = this.#emptied.take(spec.iqn)
    if (emptied !== undefined) await run([[request.deleteTarget(emptied)]])
    for (;;) {
      const tid = this.#takeTid()
      const newAccounts = this.#reserveAccounts(spec)
      const sequence = createSequence(spec, tid, newAccounts)
      let replies: TgtReply[]
      try {
        replies = (await run([sequence]))[0] ?? []
      } catch (error) {
        this.#releaseAccounts(spec)
        this.#debris.set(spec.iqn, spec)
        throw error
      }
      const {error, step} = outcomeOf(sequence, replies)
      if (error === TgtError.success) {
        this.#entries.set(spec.iqn, {spec, tid})
        this.#names.set(tid, spec.iqn)
        this.#debris.delete(spec.iqn)
        return
      }
      const unused = this.#releaseAccounts(spec)
      if (error === TgtError.targetExists && replies.length === 1) {
        const {targets, accounts} = await this.#listing(run)
        const present = targets.find(target => target.iqn === spec.iqn)
        if (present) return this.#adopt(run, spec, present, targets, accounts)
        this.#learnTids(targets)
        continue
      }
      // Where the first step was refused, the number may be another target's.
      if (replies.length === 1) throw this.#refusal(step, error, 'target.export', spec.iqn)
      await this.#remove(run, {iqn: spec.iqn, tid, rules: ruleTexts(spec), force: true})
      const made = sequence.slice(0, replies.length - 1).flatMap(({mode, op}, index) => {
        return mode === Mode.account && op === 0 ? [newAccounts[index - firstAccountStep]!] : []
      })
      await run(made.filter(user => unused.includes(user)).map(user => [request.deleteAccount(user)]))
      if (error === TgtError.userExists) {
        const user = newAccounts[replies.length - 1 - firstAccountStep]
        if (user && (await this.#reclaimAccount(run, user))) continue
        throw new StorageError(
          'CONFLICT',
          `tgtd has a CHAP user ${user} already that lunpath did not make; choose another name, or remove it: tgtadm --lld iscsi --mode account --op delete --user ${user}`,
          {op: 'target.export', info: {iqn: spec.iqn, user}, cause: tgtFact(error)},
        )
      }
      throw this.#refusal(step, error, 'target.export', spec.iqn)
    }
  }

  /** A target of our name that is in tgtd and not in the index: ours from before a crash, or somebody else's. */
  async #adopt(
    run: Run,
    spec: ExportSpec,
    present: ShownTarget,
    targets: ShownTarget[],
    accounts: string[],
  ): Promise<void> {
    refuseForeign(spec, present)
    this.#learnTids(targets)
    const rules = [...present.access.addresses, ...present.access.names]
    if (isStale(spec, present)) {
      await this.#remove(run, {iqn: spec.iqn, tid: present.tid, rules, force: false})
      await this.#dropOrphans(run, [spec], [present], {targets, accounts})
      return this.#create(run, spec)
    }
    const sameUsers = isDeepStrictEqual(present.accounts, usersOf(spec))
    const hasLun = present.luns.length > 0
    if ((hasLun && !isComplete(spec, present)) || !sameUsers) {
      throw new StorageError(
        'TARGET_IN_USE',
        `${spec.iqn} is in use with another ${sameUsers ? 'identity' : 'CHAP account'} than asked for; log out its initiators first`,
        {op: 'target.export', info: {iqn: spec.iqn, sessions: present.sessions.map(({initiator}) => initiator)}},
      )
    }
    this.#reserveAccounts(spec)
    const wanted = ruleTexts(spec)
    const sequence = [
      ...rules.filter(rule => !wanted.includes(rule)).map(rule => request.unbind(present.tid, rule)),
      ...(hasLun ? [] : [request.newLun(present.tid, firstLun, spec.volume.path)]),
      request.updateLun(present.tid, firstLun, lunParameters(spec)),
      ...wanted.filter(rule => !rules.includes(rule)).map(rule => request.bind(present.tid, rule)),
    ]
    const [replies = []] = await run([sequence])
    this.#refuseError(sequence, replies, 'target.export', spec.iqn)
    this.#entries.set(spec.iqn, {spec, tid: present.tid})
    this.#names.set(present.tid, spec.iqn)
  }

  /** Brings an export of ours from one spec to another. */
  async #amend(run: Run, from: ExportSpec, tid: number, to: ExportSpec): Promise<void> {
    if (from.volume.id !== to.volume.id || from.volume.path !== to.volume.path) {
      throw new StorageError('TARGET_EXISTS', `${to.iqn} exports volume ${from.volume.id} already`, {
        op: 'target.export',
        info: {iqn: to.iqn, volumeId: from.volume.id},
      })
    }
    const before = ruleTexts(from)
    const wanted = ruleTexts(to)
    const same =
      isDeepStrictEqual(from.auth, to.auth) && from.readOnly === to.readOnly && from.writeCache === to.writeCache
    if (!same) {
      await this.#closeToNewLogins(run, {
        iqn: to.iqn,
        tid,
        rules: before,
        doing: 'change',
        remedy: 'log out its initiators first',
      })
      await this.#remove(run, {iqn: to.iqn, tid, rules: [], force: false})
      await this.#forget(run, from)
      return this.#create(run, to)
    }
    const sequence = [
      ...wanted.filter(rule => !before.includes(rule)).map(rule => request.bind(tid, rule)),
      ...before.filter(rule => !wanted.includes(rule)).map(rule => request.unbind(tid, rule)),
    ]
    if (sequence.length > 0) {
      const [replies = []] = await run([sequence])
      this.#refuseError(sequence, replies, 'target.export', to.iqn)
    }
    this.#entries.set(to.iqn, {spec: {...to, volume: {...to.volume, sizeBytes: from.volume.sizeBytes}}, tid})
  }

  async #isThere(run: Run, tid: number): Promise<boolean> {
    const [[reply] = []] = await run([[request.lunStatistics(tid, firstLun)]])
    return reply?.error === TgtError.success
  }

  /**
   * Where the target of this name is now. In a tgtd that others use too, the number of our target may have become that
   * of another one, so there the name is looked up before anything is destroyed.
   */
  async #find(run: Run, iqn: string, entry: Entry | undefined): Promise<{tid: number; rules: string[]} | undefined> {
    if (this.#tgtd && entry?.tid !== undefined) return {tid: entry.tid, rules: ruleTexts(entry.spec)}
    const {targets} = await this.#listing(run, {targetsOnly: true})
    const present = targets.find(target => target.iqn === iqn)
    if (!present) return undefined
    const path = present.luns.find(({lun}) => lun === firstLun)?.path
    const foreign = !this.#tgtd && (!entry || (path !== undefined && path !== entry.spec.volume.path))
    if (foreign) {
      throw new StorageError('TARGET_EXISTS', `The target ${iqn} is not lunpath's: it is left alone`, {
        op: 'target.unexport',
        info: {iqn, tid: present.tid},
      })
    }
    return {tid: present.tid, rules: [...present.access.addresses, ...present.access.names]}
  }

  /**
   * Takes the rules away, so that nobody logs in from here on, and makes sure that nobody is. Looks before it touches:
   * an initiator that reconnects must not find the rule gone for a moment.
   */
  async #closeToNewLogins(
    run: Run,
    {iqn, tid, rules, doing, remedy}: {iqn: string; tid: number; rules: string[]; doing: string; remedy: string},
  ): Promise<void> {
    const inUse = (text: string) => {
      const sessions = parseConnections(iqn, text)
      if (sessions.length === 0) return undefined
      const initiators = sessions.map(({initiator}) => initiator)
      const count = sessions.length === 1 ? 'one session is' : `${sessions.length} sessions are`
      return new StorageError('TARGET_IN_USE', `Cannot ${doing} ${iqn}: ${count} logged in; ${remedy}`, {
        op: `target.${doing}`,
        info: {iqn, initiators},
      })
    }
    const [[before] = []] = await run([[request.showConnections(tid)]])
    const refused = inUse(before?.text ?? '')
    if (refused) throw refused
    const replies = await run([...rules.map(rule => [request.unbind(tid, rule)]), [request.showConnections(tid)]])
    const late = inUse(replies.at(-1)?.[0]?.text ?? '')
    if (!late) return
    await run(rules.map(rule => [request.bind(tid, rule)]))
    throw late
  }

  /**
   * All of a removal but its end: with rules, sessions and LUN gone there is nothing of the export left, and the rest of the
   * target goes when tgtd has time for it.
   */
  async #empty(run: Run, {iqn, tid, rules}: {iqn: string; tid: number; rules: string[]}): Promise<void> {
    await this.#closeToNewLogins(run, {iqn, tid, rules, doing: 'unexport', remedy: 'log out first, or use force'})
    const [[lun] = []] = await run([[request.deleteLun(tid, firstLun)]])
    const isWithoutLun = lun?.error === TgtError.success || lun?.error === TgtError.noLun
    if (isWithoutLun) this.#emptied.add(iqn, tid)
    else await this.#remove(run, {iqn, tid, rules: [], force: false})
  }

  async #removeEmptied(iqn: string, tid: number): Promise<{gone: boolean; inUse: boolean}> {
    return this.#queue.run(iqn, async () => {
      if (!this.#emptied.has(iqn)) return {gone: true, inUse: false}
      const {replies} = await this.#control.run([[request.allStatistics()], [request.deleteTarget(tid)]], {
        timeoutMs: this.#timeoutMs,
        expectedPid: this.#pid,
      })
      const [[statistics] = [], [target] = []] = replies
      const gone = target?.error === TgtError.success || target?.error === TgtError.noTarget
      return {gone, inUse: parseStatistics(statistics?.text ?? '').length > 0}
    })
  }

  /** Rules, connections, LUN, target: in another order tgtd refuses, or fails I/O that it has accepted. */
  async #remove(
    run: Run,
    {iqn, tid, rules, force}: {iqn: string; tid: number; rules: string[]; force: boolean},
  ): Promise<void> {
    if (!force) {
      await this.#closeToNewLogins(run, {iqn, tid, rules, doing: 'unexport', remedy: 'log out first, or use force'})
    } else {
      await run(rules.map(rule => [request.unbind(tid, rule)]))
    }
    const deadline = Date.now() + forceDeadlineMs
    for (;;) {
      if (force) {
        const [[shown] = []] = await run([[request.showConnections(tid)]])
        const connections = parseConnections(iqn, shown?.text ?? '').flatMap(({sid, connections}) =>
          connections.map(({cid}) => [request.deleteConnection(tid, sid, cid)]),
        )
        if (connections.length > 0) await run(connections)
      }
      const [[lun] = [], [target] = []] = await run([[request.deleteLun(tid, firstLun)], [request.deleteTarget(tid)]])
      if (target?.error === TgtError.success || target?.error === TgtError.noTarget) return
      if (Date.now() > deadline) {
        const error = target?.error ?? lun?.error ?? 1
        throw new StorageError('TARGET_FAILED', `tgtd does not let go of ${iqn}: ${describeTgtError(error)}`, {
          op: 'target.unexport',
          info: {iqn, tid},
          cause: tgtFact(error),
        })
      }
      // Commands in flight end first.
      await sleep(5)
    }
  }

  /** Drops an export from the index and, where it was the last of its CHAP users, those from tgtd. */
  async #forget(run: Run, spec: ExportSpec): Promise<void> {
    const entry = this.#entries.get(spec.iqn)
    if (entry?.tid !== undefined) this.#names.delete(entry.tid)
    this.#entries.delete(spec.iqn)
    const unused = this.#releaseAccounts(spec)
    if (unused.length > 0) await run(unused.map(user => [request.deleteAccount(user)]))
  }

  #exported(spec: ExportSpec): Export {
    const {id, sizeBytes} = this.#entries.get(spec.iqn)?.spec.volume ?? spec.volume
    return {
      volumeId: id,
      driver: this.name,
      iqn: spec.iqn,
      lun: firstLun,
      portals: this.portals(),
      wwid: tgtWwid(id),
      serial: id,
      sizeBytes,
    }
  }

  // ---- accounts: tgtd keeps one list for all targets ----

  /** @throws CONFLICT */
  #checkAccounts(spec: ExportSpec): void {
    for (const {user, secret} of credentialsOf(spec)) {
      const account = this.#accounts.get(user)
      if (account && account.secret !== secret) {
        throw new StorageError(
          'CONFLICT',
          `CHAP user ${user} has another secret for ${[...account.iqns][0]}: tgt keeps one secret for a user`,
          {op: 'target.export', info: {iqn: spec.iqn, user}},
        )
      }
    }
  }

  /** Takes part in the accounts of `spec`; returns the users that tgtd does not have yet. @throws CONFLICT */
  #reserveAccounts(spec: ExportSpec): string[] {
    this.#checkAccounts(spec)
    const added: string[] = []
    for (const {user, secret} of credentialsOf(spec)) {
      const account = this.#accounts.get(user)
      if (account) {
        account.iqns.add(spec.iqn)
      } else {
        this.#accounts.set(user, {secret, iqns: new Set([spec.iqn])})
        added.push(user)
      }
    }
    return added
  }

  /** Gives them back; returns the users that no export of ours needs any more. */
  #releaseAccounts(spec: ExportSpec): string[] {
    const unused: string[] = []
    for (const {user} of credentialsOf(spec)) {
      const account = this.#accounts.get(user)
      account?.iqns.delete(spec.iqn)
      if (account?.iqns.size === 0) {
        this.#accounts.delete(user)
        unused.push(user)
      }
    }
    return unused
  }

  /**
   * Deletes the accounts of targets that were just removed, and those which the specs want and nobody has: what secret
   * they hold is not known. Elsewhere than in a tgtd of our own, an account that no target had is somebody's.
   */
  async #dropOrphans(
    run: Run,
    specs: ExportSpec[],
    removed: ShownTarget[],
    {targets, accounts}: Pick<Listing, 'targets' | 'accounts'>,
  ): Promise<string[]> {
    const bound = new Set(targets.filter(target => !removed.includes(target)).flatMap(target => target.accounts))
    const wereBound = new Set(removed.flatMap(target => target.accounts))
    const candidates = new Set([...wereBound, ...(this.#tgtd ? specs.flatMap(usersOf) : [])])
    const orphans = accounts.filter(user => candidates.has(user) && !bound.has(user) && !this.#accounts.has(user))
    await run(orphans.map(user => [request.deleteAccount(user)]))
    return orphans
  }

  /** Removes an account that a crash left behind, where it is certain that it was ours: no target has it. */
  async #reclaimAccount(run: Run, user: string): Promise<boolean> {
    if (!this.#tgtd || this.#accounts.has(user)) return false
    const {targets} = await this.#listing(run, {targetsOnly: true})
    if (targets.some(target => target.accounts.includes(user))) return false
    await run([[request.deleteAccount(user)]])
    return true
  }

  // ---- all exports: after open() and after a restart of tgtd ----

  /** Puts every entry of the index in place, then opens the portals. Returns what could not be put back. */
  async #putInPlace(
    run: Run,
    wanted: Iterable<Entry> = this.#entries.values(),
  ): Promise<{iqn: string; code: string; message: string}[]> {
    const listing = await this.#listing(run)
    this.#learnTids(listing.targets)
    if (this.#tgtd) for (const {iqn, tid} of listing.targets.filter(isEmptied)) this.#emptied.add(iqn, tid)
    const present = new Map(listing.targets.map(target => [target.iqn, target]))
    const entries = [...wanted].filter(({tid}) => tid === undefined)
    const failed: {iqn: string; code: string; message: string}[] = []
    const attempt = async ({spec}: Entry, task: () => Promise<void>) => {
      try {
        await task()
      } catch (error) {
        if (!(error instanceof StorageError)) throw error
        failed.push({iqn: spec.iqn, code: error.code, message: error.message})
      }
    }
    const missing = entries.filter(({spec}) => !present.has(spec.iqn))
    if (missing.length > 0) await this.#closePortals(run, listing.portals)

    // Targets with sessions come first: the accounts that they log in with stay, and others may share them.
    const stale: {entry: Entry; target: ShownTarget}[] = []
    for (const entry of entries) {
      const target = present.get(entry.spec.iqn)
      if (!target) continue
      await attempt(entry, async () => {
        refuseForeign(entry.spec, target)
        if (isStale(entry.spec, target)) stale.push({entry, target})
        else await this.#adopt(run, entry.spec, target, listing.targets, listing.accounts)
      })
    }
    for (const {entry, target} of stale) {
      await attempt(entry, async () => {
        const rules = [...target.access.addresses, ...target.access.names]
        await this.#remove(run, {iqn: entry.spec.iqn, tid: target.tid, rules, force: false})
        missing.push(entry)
      })
    }
    const specs = missing.map(({spec}) => spec)
    const dropped = await this.#dropOrphans(
      run,
      specs,
      stale.map(({target}) => target),
      listing,
    )
    const accounts = listing.accounts.filter(user => !dropped.includes(user))
    for (const entry of await this.#createAll(run, missing, accounts)) {
      await attempt(entry, () => this.#create(run, entry.spec))
    }
    await this.#openPortals(run)
    return failed
  }

  /** One exchange for all of them. Returns those that did not succeed, with nothing of them left in tgtd. */
  async #createAll(run: Run, entries: Entry[], existingAccounts: string[]): Promise<Set<Entry>> {
    const unmade = new Set<Entry>()
    const plans: {entry: Entry; tid: number; sequence: TgtRequest[]}[] = []
    const newAccounts = new Set<string>()
    for (const entry of entries) {
      try {
        for (const user of this.#reserveAccounts(entry.spec)) newAccounts.add(user)
      } catch {
        unmade.add(entry)
        continue
      }
      const users = usersOf(entry.spec)
      // An account of unknown origin needs a closer look, one export at a time.
      if (users.some(user => newAccounts.has(user) && existingAccounts.includes(user))) {
        for (const user of this.#releaseAccounts(entry.spec)) newAccounts.delete(user)
        unmade.add(entry)
        continue
      }
      const tid = this.#takeTid()
      plans.push({entry, tid, sequence: createSequence(entry.spec, tid, [])})
    }
    const accounts = [...newAccounts].map(user => [request.newAccount(user, this.#accounts.get(user)!.secret)])
    const replies = await run([...accounts, ...plans.map(({sequence}) => sequence)])
    for (const [index, {entry, tid, sequence}] of plans.entries()) {
      const {error, step} = outcomeOf(sequence, replies[accounts.length + index] ?? [])
      if (error === TgtError.success) {
        entry.tid = tid
        this.#names.set(tid, entry.spec.iqn)
        continue
      }
      for (const user of this.#releaseAccounts(entry.spec)) await run([[request.deleteAccount(user)]])
      if (step?.mode !== Mode.target || step.op !== 0) {
        await this.#remove(run, {iqn: entry.spec.iqn, tid, rules: ruleTexts(entry.spec), force: true})
      }
      unmade.add(entry)
    }
    return unmade
  }

  /** Closes those of our portals that are open; others' are not looked at. */
  async #closePortals(run: Run, open: Portal[]): Promise<void> {
    const ours = this.#options.portals.filter(portal => open.some(other => samePortal(portal, other)))
    if (ours.length > 0) await run(ours.map(portal => [request.deletePortal(formatPortal(portal))]))
  }

  /** Opens those that can be opened now; #lookAtPortals() tries the others again. */
  async #openPortals(run: Run): Promise<void> {
    const wanted = this.#options.portals
    const replies = await run([
      ...wanted.map(portal => [request.newPortal(formatPortal(portal))]),
      [request.showPortals()],
    ])
    const open = parsePortals(replies.at(-1)?.[0]?.text ?? '')
    for (const portal of wanted) await this.#noteState(portal, open)
  }

  async #noteState(portal: Portal, open: Portal[]): Promise<void> {
    const text = formatPortal(portal)
    const isLocal = isLocalAddress(portal.address)
    if (isLocal && open.some(other => covers(other, portal))) {
      this.#closedPortals.delete(text)
      return
    }
    const taken = isLocal ? await this.#portalTaken(portal, {dualStack: true}) : undefined
    const reason = isLocal
      ? (taken?.message ?? 'tgtd cannot listen there, and its holder cannot be seen')
      : noSuchAddress
    this.#closedPortals.set(text, {reason, triedAt: performance.now()})
  }

  /** What is not open any more, or could not be opened, is opened as soon as that can be. */
  async #lookAtPortals(run: Run, open: Portal[]): Promise<void> {
    const now = performance.now()
    const due = this.#options.portals.filter(portal => {
      const state = this.#closedPortals.get(formatPortal(portal))
      const isOpen = open.some(other => covers(other, portal))
      const isLocal = isLocalAddress(portal.address)
      if (isOpen) return state !== undefined || !isLocal
      return state === undefined || (isLocal && (state.reason === noSuchAddress || now > state.triedAt + portalRetryMs))
    })
    if (due.length === 0) return
    await this.#openPortals(run)
    const opened = due.map(formatPortal).filter(text => !this.#closedPortals.has(text))
    if (opened.length > 0) this.#events.emit('mended', {portals: opened})
  }

  async #refusePortalsOfOthers(): Promise<void> {
    for (const portal of this.#options.portals) {
      const taken = await this.#portalTaken(portal, {dualStack: false})
      if (taken) {
        await this.close()
        throw taken
      }
    }
  }

  async #portalTaken(portal: Portal, options: {dualStack: boolean}): Promise<StorageError | undefined> {
    const holder = (await portalHolders(portal, options)).find(({pid}) => pid !== this.#pid)
    if (!holder) return undefined
    return new StorageError(
      'PORTAL_IN_USE',
      `${formatPortal(portal)} is held by process ${holder.pid} (${holder.command})`,
      {op: 'target.open', info: {portal: formatPortal(portal), pid: holder.pid, process: holder.command}},
    )
  }

  // ---- the watch over tgtd ----

  #watch(): void {
    if (this.#state !== 'open') return
    this.#timer = setTimeout(
      () => {
        // A request in flight tells as much, and would make the look wait behind it.
        const isBusy = this.#inFlight > 0 && this.#leftOut < mostLeftOut
        this.#leftOut = isBusy ? this.#leftOut + 1 : 0
        const look = isBusy ? Promise.resolve() : this.#check()
        void look.finally(() => this.#watch())
      },
      this.#lost ? pollLostMs : pollMs,
    )
    this.#timer.unref()
  }

  /** Looks whether the same tgtd still answers; brings it, or what it has forgotten, back. One at a time. */
  #check(): Promise<void> {
    this.#checking ??= this.#checkOnce().finally(() => {
      this.#checking = undefined
    })
    return this.#checking
  }

  async #checkOnce(): Promise<void> {
    const {pid, replies, failure} = await this.#control.run([[request.showPortals()]], {timeoutMs: this.#timeoutMs})
    if (this.#state !== 'open') return
    if (!failure && pid === this.#pid) {
      this.#lost = false
      // Not awaited: it takes its turn behind exports of the same name, and those may be waiting for this look.
      if (this.#debris.size > 0) void this.#sweep()
      await this.#lookForLosses(parsePortals(replies[0]?.[0]?.text ?? ''))
      return
    }
    if (!failure) return this.#recover(pid)
    this.#tellLost({pid: this.#pid, code: failure.code, message: failure.message})
    if (this.#tgtd && !(await this.#tgtd.alive())) await this.#startAgain()
  }

  /** What another tool has changed in the tgtd that runs. Where tgtd goes meanwhile, the next look begins anew. */
  async #lookForLosses(open: Portal[]): Promise<void> {
    if (!this.#restored || this.#recovery || performance.now() < this.#auditAt) return
    this.#auditAt = performance.now() + auditMs
    const run = this.#bound(this.#pid)
    try {
      await this.#makeGood(run, await this.#audit.look(run, this.#pid))
      await this.#lookAtPortals(run, open)
    } catch (error) {
      if (!(error instanceof ExchangeError)) throw error
    }
  }

  async #makeGood(run: Run, {gone, unbound}: Losses): Promise<void> {
    if (this.#state !== 'open' || !this.#restored || this.#recovery !== undefined) return
    if (unbound.length > 0) {
      await run(unbound.flatMap(({entry, rules}) => rules.map(rule => [request.bind(entry.tid!, rule)])))
      this.#events.emit('mended', {rules: unbound.map(({entry}) => entry.spec.iqn)})
    }
    // A look has several exchanges, between which requests may have ended an export, or be at work on it.
    const lost = gone.filter(entry => {
      const {iqn} = entry.spec
      return this.#entries.get(iqn) === entry && !this.#queue.busy(iqn)
    })
    if (lost.length === 0 || this.#recovery !== undefined) return
    this.#recovery = this.#putBack(lost).finally(() => {
      this.#recovery = undefined
    })
    await this.#recovery
  }

  async #putBack(gone: Entry[]): Promise<void> {
    const began = performance.now()
    for (const entry of gone) {
      this.#names.delete(entry.tid!)
      entry.tid = undefined
    }
    const exports = gone.map(({spec}) => spec.iqn)
    this.#tellLost({message: 'another tool has removed targets', exports})
    const run = this.#bound(this.#pid)
    const failed = await (gone.length > fewExports ? this.#putInPlace(run, gone) : this.#createEach(run, gone))
    this.#lost = false
    const facts = {pid: this.#pid, exports: gone.length - failed.length, failed}
    this.#events.emit('restarted', {...facts, durationMs: performance.now() - began})
  }

  /** As #putInPlace(), but without a listing of all targets. */
  async #createEach(run: Run, entries: Entry[]): Promise<{iqn: string; code: string; message: string}[]> {
    const failed: {iqn: string; code: string; message: string}[] = []
    const [[portals] = []] = await run([[request.showPortals()]])
    await this.#closePortals(run, parsePortals(portals?.text ?? ''))
    for (const {spec} of entries) {
      try {
        await this.#create(run, spec)
      } catch (error) {
        if (!(error instanceof StorageError)) throw error
        failed.push({iqn: spec.iqn, code: error.code, message: error.message})
      }
    }
    await this.#openPortals(run)
    return failed
  }

  async #startAgain(): Promise<void> {
    // The first restart is at once; a tgtd that keeps dying is not started in a loop.
    this.#backOffMs = Date.now() - this.#startedAt > steadyAfterMs ? 0 : Math.max(50, this.#backOffMs * 2)
    this.#backOffMs = Math.min(this.#backOffMs, maxBackOffMs)
    if (this.#backOffMs > 0)
      await sleep(this.#backOffMs, undefined, {signal: this.#closing.signal}).catch(() => undefined)
    if (this.#state !== 'open') return
    try {
      const {pid} = await this.#tgtd!.start()
      this.#startedAt = Date.now()
      await this.#recover(pid)
    } catch (error) {
      this.#tellLost({pid: 0, message: (error as Error).message})
    }
  }

  /** Once for each time that tgtd goes. */
  #tellLost(facts: Record<string, unknown>): void {
    if (this.#lost) return
    this.#lost = true
    this.#events.emit('lost', facts)
  }

  /** Another process answers, and it knows nothing of ours. */
  #recover(pid: number): Promise<void> {
    this.#recovery = this.#recoverFrom(pid).finally(() => {
      this.#recovery = undefined
    })
    return this.#recovery
  }

  async #recoverFrom(pid: number): Promise<void> {
    const began = performance.now()
    const before = this.#pid
    this.#pid = pid
    this.#takenTids = new Set()
    this.#accounts.clear()
    this.#names.clear()
    this.#initiators.clear()
    this.#debris.clear()
    this.#emptied.clear()
    for (const entry of this.#entries.values()) entry.tid = undefined
    if (!this.#restored) return
    try {
      const failed = await this.#putInPlace(this.#bound(pid))
      this.#lost = false
      this.#events.emit('restarted', {
        pid,
        previousPid: before,
        exports: this.#entries.size - failed.length,
        failed,
        durationMs: performance.now() - began,
      })
    } catch (error) {
      // The next look finds this pid unknown again and starts over.
      this.#pid = 0
      this.#tellLost({pid, message: (error as Error).message})
    }
  }

  /** Removes what broken-off exports may have left: only what has their name and their volume or no LUN at all. */
  async #sweep(): Promise<void> {
    const debris = [...this.#debris]
    this.#debris.clear()
    for (const [iqn, spec] of debris) {
      await this.#queue.run(iqn, async () => {
        if (this.#entries.has(iqn) || this.#state !== 'open') return
        const run = this.#bound(this.#pid)
        try {
          const {targets} = await this.#listing(run, {targetsOnly: true})
          const left = targets.find(target => target.iqn === iqn)
          if (!left || left.luns.some(({path}) => path !== spec.volume.path)) return
          await this.#remove(run, {iqn, tid: left.tid, rules: ruleTexts(spec), force: true})
        } catch {
          // The next look tries again.
          this.#debris.set(iqn, spec)
        }
      })
    }
  }

  // ---- exchanges ----

  get #timeoutMs(): number {
    return this.#options.timeoutMs ?? 10_000
  }

  /** Runs `task` against the tgtd of now; where that dies on the way, once more against its successor. */
  async #attempt<T>(task: (run: Run) => Promise<T>): Promise<T> {
    if (this.#state === 'new') throw new StorageError('TARGET_UNAVAILABLE', 'This tgt driver is not open')
    for (let again = 0; ; again++) {
      await this.#recovered()
      if (this.#state === 'closed') throw new StorageError('TARGET_UNAVAILABLE', 'This tgt driver is closed')
      try {
        return await task(this.#bound(this.#pid))
      } catch (error) {
        if (!(error instanceof ExchangeError)) throw error
        if (again > 0 || error.fact.code === 'ETIMEDOUT') throw this.#unavailable(error.fact)
        if (!(await this.#returned())) throw this.#unavailable(error.fact)
      }
    }
  }

  /** After a broken exchange: true once tgtd answers again. One that is not ours to start gets no time to come back. */
  async #returned(): Promise<boolean> {
    const deadline = Date.now() + recoveryDeadlineMs
    // A look that is under way may have had its answer before the exchange broke.
    await this.#checking
    for (;;) {
      await this.#check()
      if (!this.#lost) return true
      if (!this.#tgtd || this.#state !== 'open' || Date.now() > deadline) return false
      await sleep(10)
    }
  }

  async #recovered(): Promise<void> {
    if (!this.#recovery) return
    const timeout = AbortSignal.timeout(recoveryDeadlineMs)
    await Promise.race([this.#recovery, new Promise(resolve => timeout.addEventListener('abort', resolve))])
    if (timeout.aborted) {
      throw new StorageError('TARGET_UNAVAILABLE', 'tgtd has been restarted and its exports are not all back yet')
    }
  }

  #bound(pid: number): Run {
    return async sequences => {
      if (sequences.length === 0) return []
      this.#inFlight++
      try {
        const {replies, failure} = await this.#control.run(sequences, {timeoutMs: this.#timeoutMs, expectedPid: pid})
        if (failure) throw new ExchangeError(failure)
        return replies
      } finally {
        this.#inFlight--
        this.#askedAt = performance.now()
      }
    }
  }

  async #listing(run: Run, {targetsOnly = false} = {}): Promise<Listing> {
    const [[targets] = [], [accounts] = [], [portals] = []] = await run([
      [request.showTargets()],
      ...(targetsOnly ? [] : [[request.showAccounts()], [request.showPortals()]]),
    ])
    return {
      targets: parseTargets(targets?.text ?? ''),
      accounts: parseAccounts(accounts?.text ?? ''),
      portals: parsePortals(portals?.text ?? ''),
    }
  }

  async #sessionsOf(run: Run, tids: number[]): Promise<Map<number, TargetSession[]>> {
    if (tids.some(tid => !this.#names.has(tid))) {
      const {targets} = await this.#listing(run, {targetsOnly: true})
      this.#learnTids(targets)
    }
    const replies = await run(tids.map(tid => [request.showConnections(tid)]))
    return new Map(
      tids.map((tid, index) => [
        tid,
        parseConnections(
          this.#names.get(tid) ?? '',
          replies[index]?.[0]?.error ? '' : (replies[index]?.[0]?.text ?? ''),
        ),
      ]),
    )
  }

  async #learnInitiators(run: Run, rows: {tid: number; sid: string}[]): Promise<void> {
    const keys = new Set(rows.map(({tid, sid}) => `${tid}/${sid}`))
    // A session number may come again for another initiator once its session is gone.
    for (const key of this.#initiators.keys()) if (!keys.has(key)) this.#initiators.delete(key)
    const unknown = rows.filter(({tid, sid}) => !this.#initiators.has(`${tid}/${sid}`) || !this.#names.has(tid))
    const sessions = await this.#sessionsOf(run, [...new Set(unknown.map(({tid}) => tid))])
    for (const [tid, list] of sessions) {
      for (const {sid, initiator} of list) this.#initiators.set(`${tid}/${sid}`, initiator)
    }
  }

  #learnTids(targets: ShownTarget[]): void {
    for (const {tid, iqn} of targets) {
      this.#takenTids.add(tid)
      this.#names.set(tid, iqn)
      if (tid >= this.#nextTid && tid < 2 ** 30) this.#nextTid = tid + 1
    }
  }

  /** Numbers are given out once and go up: an initiator that still remembers an old target meets no new one. */
  #takeTid(): number {
    while (this.#takenTids.has(this.#nextTid)) this.#nextTid++
    return this.#nextTid++
  }

  /** tgtd shows whole megabytes; of our own LUNs the exact size is known. */
  #withExactSizes(target: ObservedTarget): ObservedTarget['luns'] {
    const spec = this.#entries.get(target.iqn)?.spec
    return target.luns.map(lun =>
      spec && lun.lun === firstLun && lun.path === spec.volume.path ? {...lun, sizeBytes: spec.volume.sizeBytes} : lun,
    )
  }

  #refuseError(sequence: TgtRequest[], replies: TgtReply[], op: string, iqn: string): void {
    const {error, step} = outcomeOf(sequence, replies)
    if (error !== TgtError.success) throw this.#refusal(step, error, op, iqn)
  }

  #refusal(step: TgtRequest | undefined, error: number, op: string, iqn: string): StorageError {
    return new StorageError('TARGET_FAILED', `tgtd refused ${stepName(step)} of ${iqn}: ${describeTgtError(error)}`, {
      op,
      info: {iqn, tgtError: error},
      cause: tgtFact(error),
    })
  }

  #unavailable(cause: Error & {code: string}): StorageError {
    return new StorageError(
      'TARGET_UNAVAILABLE',
      `tgtd at ${this.#control.socketPath} cannot be used: ${cause.message}`,
      {
        op: 'target',
        info: {socket: this.#control.socketPath},
        cause,
      },
    )
  }
}

// Steps of createSequence() before the accounts.
const firstAccountStep = 3

/** Target, LUN, identity, accounts, and the rules last: nobody can log in before all else is right. */
function createSequence(spec: ExportSpec, tid: number, newAccounts: string[]): TgtRequest[] {
  const credentials = credentialsOf(spec)
  const secretOf = (user: string) => credentials.find(credential => credential.user === user)!.secret
  return [
    request.newTarget(tid, spec.iqn),
    request.newLun(tid, firstLun, spec.volume.path),
    request.updateLun(tid, firstLun, lunParameters(spec)),
    ...newAccounts.map(user => request.newAccount(user, secretOf(user))),
    ...credentials.map(({user}, index) => request.bindAccount(tid, user, index === 1)),
    ...ruleTexts(spec).map(rule => request.bind(tid, rule)),
  ]
}

/** The incoming credentials, then the outgoing ones. */
function credentialsOf({auth}: ExportSpec): ChapCredentials[] {
  if (!auth) return []
  return auth.outgoing ? [auth.incoming, auth.outgoing] : [auth.incoming]
}

function usersOf(spec: ExportSpec): string[] {
  return credentialsOf(spec).map(({user}) => user)
}

/** @throws TARGET_EXISTS where the target of our name offers something else than our volume */
function refuseForeign(spec: ExportSpec, target: ShownTarget): void {
  const foreign = target.luns.find(({lun, path}) => lun !== firstLun || path !== spec.volume.path)
  if (!foreign) return
  throw new StorageError(
    'TARGET_EXISTS',
    `A target ${spec.iqn} exists already that is not lunpath's: its LUN ${foreign.lun} is ${foreign.path}`,
    {op: 'target.export', info: {iqn: spec.iqn, tid: target.tid, lun: foreign.lun, path: foreign.path}},
  )
}

/** What an unexport leaves for later. An export that a crash broke off looks like that too, and is made anew. */
function isEmptied({luns, access, accounts, sessions}: ShownTarget): boolean {
  return [luns, access.addresses, access.names, accounts, sessions].every(list => list.length === 0)
}

function isComplete({volume, readOnly}: ExportSpec, {luns: [lun]}: ShownTarget): boolean {
  return lun?.serial === volume.id && lun.scsiId === volume.id && lun.readOnly === readOnly
}

/**
 * True for a target that nobody uses and that is better made anew than completed: half-made, or with accounts, of which
 * tgtd shows no secrets.
 */
function isStale(spec: ExportSpec, target: ShownTarget): boolean {
  const accounts = target.accounts.length + usersOf(spec).length
  return target.sessions.length === 0 && (!isComplete(spec, target) || accounts > 0)
}

/** The first error and the request that met it. */
function outcomeOf(sequence: TgtRequest[], replies: TgtReply[]): {error: number; step: TgtRequest | undefined} {
  const error = replies.at(-1)?.error ?? TgtError.success
  return {error, step: error === TgtError.success ? undefined : sequence[replies.length - 1]}
}

function stepName(step: TgtRequest | undefined): string {
  if (step?.mode === Mode.device) return step.op === 0 ? 'the LUN' : 'the identity'
  if (step?.mode === Mode.account) return 'the CHAP account'
  return step?.op === 0 ? 'the target' : 'the access rule'
}
