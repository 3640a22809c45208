import {StorageError} from '../errors.js'
import {formatPortal, parsePortal} from '../iqn.js'
import {isListenedOn} from '../port-holders.js'
import type {ChapAuth, Export, ExportSpec, ObservedTarget, Portal, TakenTarget, TargetSession} from '../types.js'
import type {
  ForeignTarget,
  IdentityPages,
  LunCounters,
  ParameterValue,
  TargetDriver,
  TargetEvent,
  TargetParameters,
  TargetSupports,
} from './driver.js'
import {type Found, IetAccess} from './iet-access.js'
import {accountLists, setAccounts} from './iet-accounts.js'
import {IetControl, type IetWay, request} from './iet-control.js'
import {ietdPid, refuseOtherVersions, refusePortalsOfOthers} from './iet-examine.js'
import {foreignTargets, identityOf} from './iet-foreign.js'
import {exchangeOne, type Link} from './iet-link.js'
import {IetListings} from './iet-listings.js'
import {ietProcDirectory, keepsTargetsInUse} from './iet-names.js'
import {observed, toSession} from './iet-observed.js'
import {describeParameters, settleParameters} from './iet-parameters.js'
import type {IetTargetVolumes} from './iet-procfs.js'
import {putInPlace} from './iet-restoration.js'
import {readParameters, writeParameters} from './iet-settings.js'
import {idsOf, ietWwid, lunOf} from './iet-spec.js'
import {type Entry, IetTargets, ruleOf, unmade} from './iet-targets.js'
import {IetWatch} from './iet-watch.js'
import {dialledPortals, isLocalAddress, noSuchAddress, type PortalState} from './portals.js'

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

export const ietSupports: TargetSupports = {
  dataPath: true,
  accessRules: true,
  addressRules: true,
  chap: true,
  mutualChap: true,
  chapUserPerTarget: true,
  ipv6: true,
  ioTypes: true,
  resizeInUse: false,
  sessionsOfAnybody: true,
  byteCounters: false,
  commandCounters: false,
}

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
  readonly #targets: IetTargets
  readonly #watch: IetWatch
  #portalStates: PortalState[]

  constructor(options: IetOptions) {
    this.#options = options
    this.#portalStates = options.portals.map(portal => ({...portal, open: false, reason: 'it was not looked at yet'}))
    const {accessFiles = true, accessDirectories, procDirectory = ietProcDirectory} = options
    const timeoutMs = this.#timeoutMs
    this.#control = new IetControl({socketName: options.socketName})
    this.#listings = new IetListings(this.#control, {directory: procDirectory, timeoutMs})
    this.#access = accessFiles ? new IetAccess(accessDirectories) : undefined
    this.supports = {...ietSupports, accessRules: accessFiles, addressRules: accessFiles}
    const {blockSizeBytes = 512, blockDevices = 'blockio'} = options
    this.#targets = new IetTargets({
      listings: this.#listings,
      access: this.#access,
      volumes: {blockSizeBytes, blockDevices},
      timeoutMs,
    })
    this.#watch = new IetWatch(this.#control, this.#targets, {
      timeoutMs,
      setUp: link => this.#setDiscoveryAccounts(link),
      lookAround: () => this.#lookAround(),
    })
  }

  get #timeoutMs(): number {
    return this.#options.timeoutMs ?? 10_000
  }

  /** Process id of the ietd in use; 0 before open(). */
  get pid(): number {
    return this.#watch.pid
  }

  /** Whether calls go over the control device or ietd's socket, and then why; undefined before open(). */
  get way(): IetWay | undefined {
    return this.#control.way
  }

  async open(): Promise<void> {
    const {state} = this.#watch
    if (state === 'open') return
    if (state === 'closed') throw new StorageError('TARGET_UNAVAILABLE', 'This IET driver is closed')
    const timeoutMs = this.#timeoutMs
    const pid = await ietdPid(this.#control, timeoutMs)
    const version = await refuseOtherVersions(this.#control, await this.#listings.volumes(), {pid, timeoutMs})
    this.#targets.keepsTargetsInUse = version !== undefined && keepsTargetsInUse(version)
    await refusePortalsOfOthers(this.#options.portals, pid)
    await this.#access?.load()
    await this.#lookAtPortals()
    this.#watch.begin(pid)
  }

  async restore(specs: ExportSpec[]): Promise<void> {
    for (const spec of specs) this.#targets.check(spec)
    const wanted = this.#targets.expect(specs)
    const {failed} = await this.#watch.attempt(async link => {
      await this.#setDiscoveryAccounts(link)
      return putInPlace(this.#targets, link, wanted)
    })
    this.#watch.restored()
    if (failed.length > 0) {
      throw new StorageError(
        'TARGET_FAILED',
        `${failed.length} of ${specs.length} exports could not be restored, the others are in place: ${failed[0]!.message}`,
        {op: 'target.restore', info: {failed}},
      )
    }
  }

  check(spec: ExportSpec): void {
    this.#targets.check(spec)
  }

  async export(spec: ExportSpec): Promise<Export> {
    this.#targets.check(spec)
    await this.#watch.attemptInTurn(spec.iqn, async link => {
      const entry = this.#targets.entries.get(spec.iqn)
      if (entry && entry.spec.volume.id !== spec.volume.id) {
        throw new StorageError('TARGET_EXISTS', `${spec.iqn} exports volume ${entry.spec.volume.id} already`, {
          op: 'target.export',
          info: {iqn: spec.iqn, volumeId: entry.spec.volume.id},
        })
      }
      if (entry && (await this.#targets.isWhole(entry))) await this.#targets.amend(link, entry, spec)
      else await this.#targets.place(link, {...(entry ?? this.#targets.former.get(spec.iqn) ?? unmade(spec)), spec})
      await this.#targets.allow([[spec.iqn, ruleOf(spec)]])
    })
    return this.#exported(spec)
  }

  async unexport(iqn: string, {force = false}: {force?: boolean} = {}): Promise<void> {
    await this.#watch.attemptInTurn(iqn, async link => {
      const entry = this.#targets.entries.get(iqn)
      const known = entry ?? this.#targets.former.get(iqn)
      const isTaken = known?.spec.taken !== undefined
      const found = isTaken ? undefined : await this.#targets.present(iqn, entry)
      if (found) {
        if (!entry && !this.#access?.has(iqn)) {
          throw new StorageError('TARGET_EXISTS', `The target ${iqn} is not lunpath's: it is left alone`, {
            op: 'target.unexport',
            info: {iqn, tid: found.tid},
          })
        }
        await this.#targets.remove(link, found, {force, doing: 'unexport', remedy: 'log out first, or use force'})
      } else if (!isTaken) {
        await this.#targets.forgetLost(link, {iqn, tid: known?.tid ?? 0})
      }
      this.#targets.entries.delete(iqn)
      this.#targets.former.delete(iqn)
      if (this.#access?.has(iqn)) await this.#targets.allow([[iqn, null]])
    })
  }

  async resize(spec: ExportSpec): Promise<Export> {
    this.#targets.check(spec)
    if (spec.taken) {
      throw new StorageError('UNSUPPORTED', `${spec.iqn} was taken over: lunpath does not resize it`, {
        op: 'target.resize',
        info: {iqn: spec.iqn},
      })
    }
    await this.#watch.attemptInTurn(spec.iqn, async link => {
      const entry = this.#targets.entries.get(spec.iqn)
      const found = entry && (await this.#targets.present(spec.iqn, entry))
      if (!entry || !found) {
        throw new StorageError('EXPORT_NOT_FOUND', `${spec.iqn} is not exported`, {op: 'target.resize'})
      }
      // IET keeps the size that it saw when the LUN was added.
      await this.#targets.closeToNewLogins(
        {iqn: spec.iqn, tid: entry.tid},
        {doing: 'resize', remedy: 'detach it first'},
      )
      const {sizeBytes} = spec.volume
      const resized = {...entry.spec, volume: {...entry.spec.volume, sizeBytes}}
      await this.#targets.units.replace(link, {iqn: spec.iqn, tid: entry.tid}, resized)
      entry.spec = resized
      await this.#targets.allow([[spec.iqn, entry.spec.access]])
    })
    return this.#exported(spec)
  }

  portals(): Portal[] {
    return dialledPortals(this.#options.portals)
  }

  portalStates(): PortalState[] {
    return this.#portalStates
  }

  isInPlace(iqn: string): boolean {
    return this.#targets.entries.has(iqn)
  }

  async list(): Promise<ObservedTarget[]> {
    return this.#watch.attempt(async link => {
      const [targets, sessions, access] = await Promise.all([
        this.#listings.volumes(),
        this.#listings.sessions(),
        this.#lookAtAccess(),
      ])
      const byTid = new Map(sessions.map(one => [one.tid, one]))
      const foreign = targets.filter(({iqn, tid}) => this.#targets.entries.get(iqn)?.tid !== tid)
      const accounts = await accountLists(
        link,
        foreign.map(({tid}) => tid),
      )
      return targets.map(target => {
        const own = byTid.get(target.tid)
        const seen = own?.iqn === target.iqn ? own.sessions : []
        return observed(target, seen, {
          spec: this.#ownSpec(target),
          access: access(target.iqn).access,
          accounts: accounts.get(target.tid)?.flat(),
        })
      })
    })
  }

  /**
   * What of an export the kernel still has: its LUN and its sessions are looked at; rules and accounts are as this driver
   * set them. A target that is not in the index costs a full listing.
   */
  async get(iqn: string): Promise<ObservedTarget | undefined> {
    return this.#watch.attempt(async () => {
      const entry = this.#targets.entries.get(iqn)
      if (!entry) return (await this.list()).find(target => target.iqn === iqn)
      const [target, sessions, access] = await Promise.all([
        this.#listings.find({tid: entry.tid, iqn}),
        this.#listings.findSessions({tid: entry.tid, iqn}),
        entry.spec.taken ? this.#lookAtAccess().then(look => look(iqn).access) : entry.spec.access,
      ])
      return target && observed(target, sessions?.sessions ?? [], {spec: entry.spec, access, accounts: []})
    })
  }

  async sessions(): Promise<TargetSession[]> {
    return this.#watch.attempt(async () => {
      const targets = await this.#listings.sessions()
      return targets.flatMap(({iqn, sessions}) => sessions.map(session => toSession(iqn, session)))
    })
  }

  /** IET counts nothing. */
  async counters(): Promise<LunCounters[]> {
    return this.#watch.attempt(async () => [])
  }

  /** Closes one session of any target, over ietd's socket, and waits until it is gone. @throws NOT_FOUND, TIMEOUT */
  async deleteSession(iqn: string, sid: string): Promise<void> {
    await this.#watch.attempt(async link => {
      const target = (await this.#listings.sessions()).find(one => one.iqn === iqn)
      const session = target?.sessions.find(one => String(one.sid) === sid)
      if (!target || !session) {
        throw new StorageError('NOT_FOUND', `${iqn} has no session ${sid}`, {op: 'target.session', info: {iqn, sid}})
      }
      await this.#targets.sessions.end(link, target, [session])
    })
  }

  /**
   * Parameters of a target; with `sid` those that this session has agreed on. @throws EXPORT_NOT_FOUND, TARGET_FAILED
   */
  async parameters(iqn: string, {sid = '0'}: {sid?: string} = {}): Promise<TargetParameters> {
    return this.#watch.attempt(async link => {
      const {tid} = await this.#named(iqn)
      const [session, target] = await readParameters(link, tid, BigInt(sid), iqn)
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
    await this.#watch.attemptInTurn(iqn, async link => {
      const entry = await this.#inPlace(iqn, 'target.parameters')
      await writeParameters(link, {iqn, tid: entry.tid}, BigInt(sid), settled)
      if (sid !== '0') return
      for (const type of ['session', 'target'] as const) {
        for (const [key, value] of settled[type]) entry.settings[type].set(key, value)
      }
    })
    return this.parameters(iqn, {sid})
  }

  /** Sends initiators that log in to another portal; null ends that. @throws EXPORT_NOT_FOUND, NAME_INVALID */
  async redirect(iqn: string, portal: Portal | null): Promise<void> {
    const to = portal ? formatPortal(parsePortal(formatPortal(portal))) : ''
    await this.#watch.attemptInTurn(iqn, async link => {
      const entry = await this.#inPlace(iqn, 'target.redirect')
      await exchangeOne(link, request.redirect(entry.tid, to), {
        op: 'target.redirect',
        what: 'the redirection',
        iqn,
      })
      entry.settings.redirect = to
    })
  }

  /** Each costs exchanges with ietd and, of its backing store, a stat(2). */
  async foreign(): Promise<ForeignTarget[]> {
    return this.#watch.attempt(async link => {
      const [targets, sessions] = await Promise.all([this.#listings.volumes(), this.#listings.sessions()])
      const others = targets.filter(({iqn}) => !this.#targets.entries.has(iqn))
      return foreignTargets(link, {targets: others, sessions}, spec => this.#refuseToTake(spec))
    })
  }

  #refuseToTake(spec: ExportSpec): void {
    this.#targets.check(spec)
    if (!this.#access?.has(spec.iqn)) return
    throw new StorageError('TARGET_EXISTS', 'lunpath has made it, and this store does not know it')
  }

  identify(target: {iqn: string; lun: number}, pages: IdentityPages): Pick<TakenTarget, 'scsiId' | 'scsiSn'> {
    return identityOf(target, pages)
  }

  numbers(): Map<string, number> {
    return new Map([...this.#targets.entries].map(([iqn, {tid}]) => [iqn, tid]))
  }

  async close(): Promise<void> {
    const {state} = this.#watch
    if (state === 'closed') return
    await this.#watch.stop()
    if (state === 'open' && !this.#options.keepOnClose) {
      const names = [...this.#targets.entries.keys()]
      await Promise.all(names.map(iqn => this.unexport(iqn, {force: true}).catch(() => undefined)))
    }
    this.#watch.close()
    this.#control.close()
  }

  on(event: TargetEvent, listener: (facts: Record<string, unknown>) => void): void {
    this.#watch.on(event, listener)
  }

  /** What else others may have changed. */
  async #lookAround(): Promise<string[]> {
    await this.#lookAtPortals()
    return (await this.#access?.mend()) ?? []
  }

  /** ietd listens by its own configuration: nothing of that is lunpath's to mend. */
  async #lookAtPortals(): Promise<void> {
    this.#portalStates = await Promise.all(
      this.#options.portals.map(async portal => {
        const isLocal = isLocalAddress(portal.address)
        const open = isLocal && (await isListenedOn(portal))
        const closed = isLocal
          ? 'ietd does not listen there: see its option --address, and start it again'
          : noSuchAddress
        return {...portal, open, reason: open ? null : closed}
      }),
    )
  }

  async #setDiscoveryAccounts(link: Link): Promise<void> {
    const {discoveryAuth} = this.#options
    if (discoveryAuth) await setAccounts(link, {iqn: 'discovery', tid: 0}, discoveryAuth)
  }

  async #lookAtAccess(): Promise<(iqn: string) => Found> {
    if (this.#access) return this.#access.look()
    return () => ({file: null, ours: false, access: {addresses: ['ALL'], names: []}})
  }

  async #named(iqn: string): Promise<IetTargetVolumes> {
    const found = await this.#targets.present(iqn, this.#targets.entries.get(iqn))
    if (found) return found
    throw new StorageError('EXPORT_NOT_FOUND', `IET has no target ${iqn}`, {op: 'target', info: {iqn}})
  }

  /** Its number is that of another's target, or of none, from a close of the control device until it is put back. */
  async #inPlace(iqn: string, op: string): Promise<Entry> {
    const entry = this.#targets.entries.get(iqn)
    if (!entry) throw new StorageError('EXPORT_NOT_FOUND', `${iqn} is not exported`, {op})
    if (await this.#targets.isWhole(entry)) return entry
    throw new StorageError(
      'TARGET_UNAVAILABLE',
      `IET has lost the target ${iqn}, and lunpath puts it back: try again in a moment`,
      {op, info: {iqn, tid: entry.tid}},
    )
  }

  #ownSpec({iqn, tid}: {iqn: string; tid: number}): ExportSpec | undefined {
    const entry = this.#targets.entries.get(iqn)
    return entry?.tid === tid ? entry.spec : undefined
  }

  #exported({iqn}: ExportSpec): Export {
    const {spec, tid} = this.#targets.entries.get(iqn)!
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
}
