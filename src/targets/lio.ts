import {EventEmitter} from 'node:events'
import {readFile} from 'node:fs/promises'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {isDeepStrictEqual} from 'node:util'
import {StorageError} from '../errors.js'
import {formatPortal} from '../iqn.js'
import {KeyedQueue} from '../lock.js'
import {portalHolders} from '../port-holders.js'
import type {Export, ExportSpec, ObservedTarget, Portal, TargetSession} from '../types.js'
import {Configfs, ConfigfsError, type Operation, type Outcome, op, undoing} from './configfs.js'
import {firstLun, type LunCounters, type TargetDriver, type TargetEvent} from './driver.js'
import {refuseUnrestored} from './errors.js'
import {LioCounters, type LioReading} from './lio-counters.js'
import {prepareKernel} from './lio-kernel.js'
import {
  backstoreKind,
  backstoreKinds,
  backstorePath,
  bodyOperations,
  checkLioSpec,
  fabricPath,
  groupPath,
  isForAll,
  lioWwid,
  lunPath,
  openingOperations,
  portalPath,
  ruleNames,
  ruleOperations,
  rulePath,
  sizeParameter,
} from './lio-spec.js'
import {
  auditOperations,
  deviceInInfo,
  hasBodyOf,
  isOurs,
  linkedIds,
  lookOperations,
  observed,
  parseSession,
  readTarget,
  removal,
  sizeInInfo,
  type TargetState,
  takeAudit,
  takeLook,
} from './lio-state.js'
import {dialledPortals, isLocalAddress, noSuchAddress, type PortalState} from './portals.js'
import {refuseUnfitVolume} from './spec.js'

export interface LioOptions {
  portals: Portal[]
  /** The network namespace, by its name in `ip netns`, whose addresses the portals are. Default: this process's. */
  networkNamespace?: string
  /** close() leaves the targets in place, as for a restart of the daemon under running guests. */
  keepOnClose?: boolean
  /** Milliseconds for one batch of system calls; default 30,000. */
  timeoutMs?: number
}

/** How often it is looked whether somebody has taken our targets away (`targetcli clearconfig`, rtslib's service). */
const watchMs = 2_000
/** Targets that are looked into at each look, in turn: some 0.1 ms each. */
const perLook = 200
/** The kernel answers a logout before it has ended the session. */
const logoutMs = 500
/** Initiators without a rule of their own are not told apart by LIO's counters. */
const allInitiators = 'ALL'

/**
 * The kernel's own target (LIO), by configfs alone. It keeps an index of what it exports, touches only the subtree of the
 * target at hand, and makes an export with one job of system calls; exports of different names are made at once.
 *
 * Everything is in the kernel: it outlives this process, and a reboot ends it. Whose a target is shows in configfs itself
 * (lio-state.ts, isOurs), so what a crash has left half-made is found by its name.
 */
export class LioDriver implements TargetDriver {
  readonly name = 'lio'
  readonly supports = {
    dataPath: true,
    accessRules: true,
    addressRules: false,
    chap: true,
    mutualChap: true,
    chapUserPerTarget: true,
    ipv6: true,
    ioTypes: false,
    resizeInUse: true,
    sessionsOfAnybody: false,
    byteCounters: true,
    commandCounters: false,
  }

  readonly #options: LioOptions
  readonly #configfs: Configfs
  readonly #events = new EventEmitter()
  readonly #queue = new KeyedQueue()
  readonly #counters = new LioCounters()
  /** What is exported, by IQN. */
  readonly #entries = new Map<string, ExportSpec>()
  #state: 'new' | 'open' | 'closed' = 'new'
  #timer: NodeJS.Timeout | undefined
  #isLost = false
  #checking: Promise<void> = Promise.resolve()
  #names = this.#entries.keys()

  constructor(options: LioOptions) {
    this.#options = options
    const {timeoutMs, networkNamespace} = options
    this.#configfs = new Configfs({
      timeoutMs,
      networkNamespace: networkNamespace && join('/run/netns', networkNamespace),
    })
  }

  async open(): Promise<void> {
    if (this.#state === 'open') return
    if (this.#state === 'closed') throw new StorageError('TARGET_UNAVAILABLE', 'This LIO driver is closed')
    await prepareKernel()
    for (const portal of this.#options.portals) await this.#refuseHeldPortal(portal)
    // A namespace that cannot be entered shows here.
    await this.#targetNames()
    this.#state = 'open'
    this.#watch()
  }

  async restore(specs: ExportSpec[]): Promise<void> {
    this.#requireOpen()
    const isNew = ({iqn}: ExportSpec) => !this.#entries.has(iqn)
    const failed = await this.#putInPlace(specs.filter(isNew), isNew)
    refuseUnrestored(failed, specs.length)
  }

  check(spec: ExportSpec): void {
    checkLioSpec(spec)
  }

  async export(spec: ExportSpec): Promise<Export> {
    checkLioSpec(spec)
    this.#requireOpen()
    await this.#queue.run(spec.iqn, async () => {
      const present = this.#entries.get(spec.iqn)
      if (present && (present.volume.id !== spec.volume.id || present.volume.path !== spec.volume.path)) {
        throw new StorageError('TARGET_EXISTS', `${spec.iqn} exports volume ${present.volume.id} already`, {
          op: 'target.export',
          info: {iqn: spec.iqn, volumeId: present.volume.id},
        })
      }
      if (present && (await this.#isWhole(present))) await this.#amend(present, spec)
      else await this.#place(spec, {open: true})
    })
    return this.#exported(spec)
  }

  async unexport(iqn: string, {force = false}: {force?: boolean} = {}): Promise<void> {
    this.#requireOpen()
    await this.#queue.run(iqn, async () => {
      const state = await this.#read(iqn, this.#entries.get(iqn)?.volume.id)
      if (this.#entries.has(iqn) || (await this.#isOursToRemove(state))) {
        await this.#remove(state, {force, doing: 'unexport', remedy: 'log out first, or use force'})
      }
      this.#entries.delete(iqn)
    })
  }

  async resize(spec: ExportSpec): Promise<Export> {
    checkLioSpec(spec)
    this.#requireOpen()
    await this.#queue.run(spec.iqn, async () => {
      const present = this.#entries.get(spec.iqn)
      if (!present || !(await this.#isWhole(present))) {
        throw new StorageError('EXPORT_NOT_FOUND', `${spec.iqn} is not exported`, {op: 'target.resize'})
      }
      await this.#setSize(spec)
      this.#entries.set(spec.iqn, {...present, volume: {...present.volume, sizeBytes: spec.volume.sizeBytes}})
    })
    return this.#exported(spec)
  }

  portals(): Portal[] {
    return dialledPortals(this.#options.portals)
  }

  /** The kernel listens on an address also before this machine has it, so what is left to see is whether it does. */
  portalStates(): PortalState[] {
    const isElsewhere = this.#options.networkNamespace !== undefined
    return this.#options.portals.map(portal => {
      const open = this.#state === 'open' && (isElsewhere || isLocalAddress(portal.address))
      return {...portal, open, reason: open ? null : noSuchAddress}
    })
  }

  isInPlace(iqn: string): boolean {
    return this.#entries.has(iqn)
  }

  /** Ours by a look at each; of the others everything is read. */
  async list(): Promise<ObservedTarget[]> {
    this.#requireOpen()
    const names = await this.#targetNames()
    const others = names.filter(iqn => !this.#entries.has(iqn))
    const [ours, foreign] = await Promise.all([
      this.#look([...this.#entries.values()]),
      Promise.all(others.map(iqn => this.#observe(iqn))),
    ])
    return [...ours, ...foreign.flatMap(target => target ?? [])]
  }

  /**
   * What of an export the kernel still has: its LUN and its sessions are looked at; rules and accounts are as this driver
   * set them. Of a target that is not in the index everything is read.
   */
  async get(iqn: string): Promise<ObservedTarget | undefined> {
    this.#requireOpen()
    const entry = this.#entries.get(iqn)
    return entry ? (await this.#look([entry]))[0] : this.#observe(iqn)
  }

  /** Those of our own targets: to look at all others would be a walk of configfs. */
  async sessions(): Promise<TargetSession[]> {
    this.#requireOpen()
    return (await this.#look([...this.#entries.values()])).flatMap(({sessions}) => sessions)
  }

  async counters(): Promise<LunCounters[]> {
    this.#requireOpen()
    return this.#counters.add(await this.#readCounters([...this.#entries.values()]))
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
    this.#configfs.close()
  }

  on(event: TargetEvent, listener: (facts: Record<string, unknown>) => void): void {
    this.#events.on(event, listener)
  }

  // ---- one export ----

  /** Makes the target, adopts it where it is there already, or makes it anew where it is half-made or another one. */
  async #place(spec: ExportSpec, {open}: {open: boolean}): Promise<void> {
    await refuseUnfitVolume(spec, {target: 'LIO', isToldSize: true})
    try {
      await this.#make(spec, {open})
    } catch (error) {
      if (!(error instanceof ConfigfsError)) throw error
      if (!isAlreadyThere(error, spec)) throw await this.#refusal(error, spec)
      await this.#placeOver(spec, await this.#read(spec.iqn, spec.volume.id), {open})
    }
    this.#entries.set(spec.iqn, spec)
  }

  async #placeOver(spec: ExportSpec, state: TargetState, {open}: {open: boolean}): Promise<void> {
    const [offered] = linkedIds(state)
    if (state.present && (!isOurs(state) || (offered ?? spec.volume.id) !== spec.volume.id)) {
      throw new StorageError(
        'TARGET_EXISTS',
        `A target ${spec.iqn} exists already that is not lunpath's: it offers ${state.luns[0]?.backstore?.volumePath ?? 'nothing'}`,
        {
          op: 'target.export',
          info: {iqn: spec.iqn, luns: state.luns.map(({lun, backstore}) => ({lun, backstore: backstore?.path}))},
        },
      )
    }
    try {
      if (hasBodyOf(spec, state)) return await this.#adopt(spec, state)
      await this.#remove(state, {force: false, doing: 'change', remedy: 'log out its initiators first'})
      await this.#make(spec, {open})
    } catch (error) {
      throw error instanceof ConfigfsError ? await this.#refusal(error, spec) : error
    }
  }

  /** One job. What it has made when a call fails it takes back, unless nobody knows how that call ends. */
  async #make(spec: ExportSpec, {open}: {open: boolean}): Promise<void> {
    const operations = [...bodyOperations(spec), ...(open ? openingOperations(spec.iqn, this.#options.portals) : [])]
    this.#counters.forget(spec.iqn)
    try {
      await this.#configfs.run(operations)
    } catch (error) {
      if (error instanceof ConfigfsError && error.code !== 'ETIMEDOUT') {
        // What is left where this fails too is found by its name, by the next attempt or by unexport().
        await this.#configfs.run(undoing(operations.slice(0, error.index))).catch(() => undefined)
      }
      throw error
    }
  }

  /** A target that is whole already, perhaps with sessions: only its rules, portals and size may have to change. */
  async #adopt(spec: ExportSpec, state: TargetState): Promise<void> {
    const names = ruleNames(spec)
    const portals = this.#options.portals
    const info = state.luns[0]?.backstore?.info ?? ''
    await this.#configfs.run([
      ...portals
        .filter(portal => !state.portals.includes(formatPortal(portal)))
        .map(portal => op.mkdir(portalPath(spec.iqn, portal))),
      ...names
        .filter(name => state.rules.every(rule => rule.name !== name))
        .flatMap(name => ruleOperations(spec, name)),
    ])
    const removed = state.rules.filter(({name}) => !names.includes(name))
    await this.#configfs.run(removed.flatMap(({name}) => undoing(ruleOperations(spec, name))))
    if ((sizeInInfo(info) ?? spec.volume.sizeBytes) !== spec.volume.sizeBytes) await this.#setSize(spec)
  }

  /** Brings an export of ours from one spec to another. */
  async #amend(from: ExportSpec, to: ExportSpec): Promise<void> {
    const same =
      isDeepStrictEqual(from.auth, to.auth) &&
      from.readOnly === to.readOnly &&
      from.writeCache === to.writeCache &&
      isForAll(from) === isForAll(to)
    try {
      if (!same) {
        const state = await this.#read(to.iqn, to.volume.id)
        await this.#remove(state, {force: false, doing: 'change', remedy: 'log out its initiators first'})
        this.#entries.delete(to.iqn)
        await this.#make(to, {open: true})
        this.#entries.set(to.iqn, to)
        return
      }
      const [before, wanted] = [ruleNames(from), ruleNames(to)]
      await this.#configfs.run([
        ...wanted.filter(name => !before.includes(name)).flatMap(name => ruleOperations(to, name)),
        // Whoever is logged in by a rule that goes is logged out with it.
        ...before.filter(name => !wanted.includes(name)).flatMap(name => undoing(ruleOperations(to, name))),
      ])
    } catch (error) {
      throw error instanceof ConfigfsError ? await this.#refusal(error, to) : error
    }
    this.#entries.set(to.iqn, {...to, volume: {...to.volume, sizeBytes: from.volume.sizeBytes}})
  }

  /** Takes a target of ours away, in whatever state it is, and the backstore of its volume. */
  async #remove(
    state: TargetState,
    {force, doing, remedy}: {force: boolean; doing: string; remedy: string},
  ): Promise<void> {
    const {iqn} = state
    try {
      if (!force && state.enabled) await this.#closeToNewLogins(state, {doing, remedy})
      await this.#configfs.run(removal(state))
      await this.#configfs.run(
        [...new Set([state.id, ...linkedIds(state)])].flatMap(id =>
          backstoreKinds.map(kind => op.rmdir(backstorePath(kind, id))),
        ),
      )
      this.#counters.forget(iqn)
    } catch (error) {
      if (!(error instanceof ConfigfsError)) throw error
      throw new StorageError(
        error.code === 'ETIMEDOUT' ? 'TIMEOUT' : 'TARGET_FAILED',
        `LIO does not let go of ${iqn}: ${error.message}`,
        {op: `target.${doing}`, info: {iqn, path: error.path, errno: error.code}, cause: error},
      )
    }
  }

  /**
   * Looks before it touches, then takes the portals away, so that nobody logs in from here on while sessions go on, and
   * looks again.
   */
  async #closeToNewLogins(
    {iqn, portals}: TargetState,
    {doing, remedy}: {doing: string; remedy: string},
  ): Promise<void> {
    const refuseSessions = async ({leavingMs = 0} = {}) => {
      const deadline = performance.now() + leavingMs
      let {sessions: found} = await this.#read(iqn)
      while (found.length > 0 && performance.now() < deadline) {
        await sleep(20)
        found = (await this.#read(iqn)).sessions
      }
      if (found.length === 0) return
      const count = found.length === 1 ? 'one session is' : `${found.length} sessions are`
      throw new StorageError('TARGET_IN_USE', `Cannot ${doing} ${iqn}: ${count} logged in; ${remedy}`, {
        op: `target.${doing}`,
        info: {iqn, initiators: found.map(({initiator}) => initiator)},
      })
    }
    await refuseSessions({leavingMs: logoutMs})
    const paths = portals.map(portal => `${groupPath(iqn)}/np/${portal}`)
    await this.#configfs.run(paths.map(path => op.rmdir(path)))
    try {
      await refuseSessions()
    } catch (error) {
      await this.#configfs.run(paths.map(path => op.mkdir(path)))
      throw error
    }
  }

  /** Without an entry: true for what is lunpath's by all that configfs shows. @throws TARGET_EXISTS for a foreign one */
  async #isOursToRemove(state: TargetState): Promise<boolean> {
    if (!state.present) return state.ours.length > 0
    if (isOurs(state)) return true
    throw new StorageError('TARGET_EXISTS', `The target ${state.iqn} is not lunpath's: it is left alone`, {
      op: 'target.unexport',
      info: {iqn: state.iqn},
    })
  }

  async #setSize({volume}: ExportSpec): Promise<void> {
    // The size of a block device is the device's own.
    if (backstoreKind(volume) !== 'fileio') return
    try {
      await this.#configfs.run([
        op.write(`${backstorePath('fileio', volume.id)}/control`, sizeParameter(volume.sizeBytes)),
      ])
    } catch (cause) {
      throw new StorageError('TARGET_FAILED', `LIO refused the new size of ${volume.id}: ${(cause as Error).message}`, {
        op: 'target.resize',
        cause,
      })
    }
  }

  #exported(spec: ExportSpec): Export {
    const {id, sizeBytes} = this.#entries.get(spec.iqn)?.volume ?? spec.volume
    return {
      volumeId: id,
      driver: this.name,
      iqn: spec.iqn,
      lun: firstLun,
      portals: this.portals(),
      wwid: lioWwid(id),
      serial: id,
      sizeBytes,
    }
  }

  // ---- all exports: after open(), and when somebody has taken them away ----

  /**
   * All targets first, then their portals. Each is worked on in its turn, and only while `isWanted`: what a request has ended
   * or changed since is that request's. Returns what could not be put in place.
   */
  async #putInPlace(
    specs: ExportSpec[],
    isWanted: (spec: ExportSpec) => boolean,
  ): Promise<{iqn: string; code: string; message: string}[]> {
    const failed: {iqn: string; code: string; message: string}[] = []
    const isInPlace = (spec: ExportSpec) => this.#entries.get(spec.iqn) === spec
    const attempt = (spec: ExportSpec, task: () => Promise<void>) =>
      this.#queue.run(spec.iqn, task).catch(error => {
        if (!(error instanceof StorageError)) throw error
        failed.push({iqn: spec.iqn, code: error.code, message: error.message})
        if (isInPlace(spec)) this.#entries.delete(spec.iqn)
      })
    const place = async (spec: ExportSpec) => {
      if (!isWanted(spec)) return
      checkLioSpec(spec)
      await this.#place(spec, {open: false})
    }
    const open = async (spec: ExportSpec) => {
      if (isInPlace(spec)) await this.#openPortals(spec)
    }
    await Promise.all(specs.map(spec => attempt(spec, () => place(spec))))
    await Promise.all(specs.map(spec => attempt(spec, () => open(spec))))
    return failed
  }

  /** Of an adopted target they are open already. */
  async #openPortals(spec: ExportSpec): Promise<void> {
    const operations = openingOperations(spec.iqn, this.#options.portals)
    try {
      const [enabled] = await this.#configfs.run([op.read(`${groupPath(spec.iqn)}/enable`)])
      if (enabled!.texts[0] !== '1') await this.#configfs.run(operations)
    } catch (error) {
      if (!(error instanceof ConfigfsError)) throw error
      const refusal = await this.#refusal(error, spec)
      await this.#remove(await this.#read(spec.iqn, spec.volume.id), {force: true, doing: 'export', remedy: ''})
      throw refusal
    }
  }

  #watch(): void {
    if (this.#state !== 'open') return
    this.#timer = setTimeout(() => {
      this.#checking = this.#check()
        .catch(error => this.#tellLost({message: (error as Error).message}))
        .then(() => this.#watch())
    }, watchMs)
    this.#timer.unref()
  }

  async #check(): Promise<void> {
    if (this.#entries.size === 0) return
    const began = performance.now()
    const present = new Set(await this.#targetNames())
    // What an operation is at work on may be absent for a moment.
    const gone = [...this.#entries.values()].filter(({iqn}) => !present.has(iqn) && !this.#queue.busy(iqn))
    if (gone.length === 0) this.#isLost = false
    if (this.#state !== 'open') return
    if (gone.length === 0) return this.#lookInside()
    this.#tellLost({message: 'targets were removed by somebody else', exports: gone.map(({iqn}) => iqn)})
    await prepareKernel()
    const isWanted = (spec: ExportSpec) => this.#entries.get(spec.iqn) === spec
    const failed = await this.#putInPlace(gone, isWanted)
    this.#isLost = false
    const facts = {exports: gone.filter(isWanted).length, failed, durationMs: performance.now() - began}
    this.#events.emit('restarted', facts)
  }

  /** What of a target that is there others have taken away: its LUN, a portal, a rule, or its being enabled. */
  async #lookInside(): Promise<void> {
    const specs = this.#next(perLook)
    const outcomes = await this.#run(specs.flatMap(spec => auditOperations(spec.iqn)))
    for (const spec of specs) {
      const {isWhole, portals, rules} = takeAudit(outcomes)
      const portal = this.#options.portals.map(formatPortal).find(text => !portals.includes(text))
      const rule = ruleNames(spec).find(name => !rules.includes(name))
      if (isWhole && portal === undefined && rule === undefined) continue
      if (this.#queue.busy(spec.iqn) || this.#entries.get(spec.iqn) !== spec) continue
      await this.#mend(spec, {isWhole})
    }
  }

  async #mend(spec: ExportSpec, {isWhole}: {isWhole: boolean}): Promise<void> {
    const began = performance.now()
    const failed: {iqn: string; code: string; message: string}[] = []
    if (!isWhole) this.#tellLost({message: 'a target was changed by somebody else', exports: [spec.iqn]})
    try {
      await this.#queue.run(spec.iqn, async () => {
        if (this.#entries.get(spec.iqn) !== spec) return
        const state = await this.#read(spec.iqn, spec.volume.id)
        // Without its LUN a session has nothing to lose.
        if (!isWhole) await this.#remove(state, {force: true, doing: 'change', remedy: ''})
        if (isWhole) await this.#placeOver(spec, state, {open: true})
        else await this.#place(spec, {open: true})
      })
    } catch (error) {
      if (!(error instanceof StorageError)) throw error
      failed.push({iqn: spec.iqn, code: error.code, message: error.message})
      if (!isWhole) this.#entries.delete(spec.iqn)
    }
    this.#isLost = false
    if (!isWhole) {
      this.#events.emit('restarted', {exports: 1 - failed.length, failed, durationMs: performance.now() - began})
    } else if (failed.length === 0) this.#events.emit('mended', {rules: [spec.iqn]})
  }

  /** The next exports in turn. */
  #next(count: number): ExportSpec[] {
    const specs: ExportSpec[] = []
    for (let left = Math.min(count, this.#entries.size); left > 0; left--) {
      let next = this.#names.next()
      if (next.done) {
        this.#names = this.#entries.keys()
        next = this.#names.next()
      }
      const spec = this.#entries.get(next.value as string)
      if (spec && !this.#queue.busy(spec.iqn)) specs.push(spec)
    }
    return specs
  }

  /** Once, until all is back. */
  #tellLost(facts: Record<string, unknown>): void {
    if (this.#isLost) return
    this.#isLost = true
    this.#events.emit('lost', facts)
  }

  async #targetNames(): Promise<string[]> {
    const [outcome] = await this.#run([op.list(fabricPath)])
    return outcome!.texts.filter(name => /^(iqn|eui|naa)\./i.test(name))
  }

  // ---- looks ----

  /** True where the kernel still has the target, enabled and with its LUN. */
  async #isWhole(spec: ExportSpec): Promise<boolean> {
    const names = ruleNames(spec)
    const look = takeLook(spec.iqn, names, await this.#run(lookOperations(spec.iqn, names)))
    return look.present && look.enabled && look.hasLun
  }

  /** A look at targets of ours, in one job. Those that the kernel does not have are left out. */
  async #look(specs: ExportSpec[]): Promise<ObservedTarget[]> {
    const outcomes = await this.#run(specs.flatMap(spec => lookOperations(spec.iqn, ruleNames(spec))))
    return specs.flatMap(spec => {
      const {iqn, volume, readOnly, auth} = spec
      const names = ruleNames(spec)
      const {present, enabled, hasLun, index, sessions} = takeLook(iqn, names, outcomes)
      if (!present) return []
      const {id, path, sizeBytes} = volume
      const lun = {lun: firstLun, path, sizeBytes, serial: id, scsiId: id, readOnly, online: enabled}
      return [
        {
          iqn,
          tid: index,
          luns: hasLun ? [lun] : [],
          access: {addresses: isForAll(spec) ? ['ALL'] : [], names},
          accounts: auth ? [auth.incoming.user] : [],
          sessions,
        },
      ]
    })
  }

  async #observe(iqn: string): Promise<ObservedTarget | undefined> {
    const state = await this.#read(iqn)
    if (!state.present) return undefined
    const sizes = new Map<string, number>()
    for (const {backstore} of state.luns) {
      if (backstore) sizes.set(backstore.path, sizeInInfo(backstore.info) ?? (await deviceSize(backstore.info)))
    }
    return observed(state, sizes)
  }

  /** `id`: the volume whose backstore is looked for, where it is not the one that the IQN names. */
  #read(iqn: string, id?: string): Promise<TargetState> {
    return readTarget(operations => this.#run(operations), iqn, id)
  }

  /** One reading for each rule, and one for all sessions without a rule. Idle rules cost one system call's file. */
  async #readCounters(specs: ExportSpec[]): Promise<LioReading[]> {
    const rules = specs.flatMap(spec => ruleNames(spec).map(name => ({iqn: spec.iqn, name})))
    const open = specs.filter(isForAll)
    const outcomes = await this.#run([
      ...rules.flatMap(({iqn, name}) => {
        const rule = rulePath(iqn, name)
        const session = `${rule}/fabric_statistics/iscsi_sess_stats`
        const lun = `${rule}/lun_${firstLun}/statistics/scsi_auth_intr`
        const files = [`${session}/txdata_octs`, `${session}/rxdata_octs`, `${lun}/read_mbytes`, `${lun}/write_mbytes`]
        return [`${rule}/info`, ...files].map(file => op.read(file))
      }),
      ...open.flatMap(({iqn}) => {
        const port = `${lunPath(iqn)}/statistics/scsi_tgt_port`
        return [`${groupPath(iqn)}/dynamic_sessions`, `${port}/read_mbytes`, `${port}/write_mbytes`].map(file =>
          op.read(file),
        )
      }),
    ])
    const take = (count: number) => outcomes.splice(0, count).map(({texts}) => texts[0] ?? '')
    const byRule = rules.map(({iqn, name}): LioReading => {
      const [info, sent, received, readMebibytes, writtenMebibytes] = take(5)
      const session = parseSession(iqn, name, info!)
      return {
        iqn,
        lun: firstLun,
        initiator: name,
        sid: session?.sid,
        sessionReadBytes: session && Number(sent),
        sessionWrittenBytes: session && Number(received),
        readMebibytes: Number(readMebibytes),
        writtenMebibytes: Number(writtenMebibytes),
      }
    })
    const ofOthers = open.map((spec): LioReading => {
      const [names, readMebibytes, writtenMebibytes] = take(3)
      // The port counts rules' sessions too; what is behind their last whole megabyte may be in either.
      const known = byRule.filter(({iqn}) => iqn === spec.iqn)
      const rest = (total: string, part: (reading: LioReading) => number) =>
        Math.max(
          0,
          known.reduce((sum, reading) => sum - part(reading) - 1, Number(total)),
        )
      return {
        iqn: spec.iqn,
        lun: firstLun,
        initiator: allInitiators,
        sid: names!.replaceAll('\0', '').trim() === '' ? undefined : '',
        sessionReadBytes: undefined,
        sessionWrittenBytes: undefined,
        readMebibytes: rest(readMebibytes!, reading => reading.readMebibytes),
        writtenMebibytes: rest(writtenMebibytes!, reading => reading.writtenMebibytes),
      }
    })
    return [...byRule, ...ofOthers]
  }

  // ---- calls and their errors ----

  #requireOpen(): void {
    if (this.#state !== 'open') {
      throw new StorageError(
        'TARGET_UNAVAILABLE',
        `This LIO driver is ${this.#state === 'new' ? 'not open' : 'closed'}`,
      )
    }
  }

  /** For looks, whose failures say that LIO as a whole cannot be used. */
  async #run(operations: Operation[]): Promise<Outcome[]> {
    try {
      return await this.#configfs.run(operations)
    } catch (cause) {
      throw new StorageError('TARGET_UNAVAILABLE', `The kernel's target cannot be used: ${(cause as Error).message}`, {
        op: 'target',
        cause,
      })
    }
  }

  async #refusal(cause: ConfigfsError, spec: ExportSpec): Promise<StorageError> {
    const {iqn, volume} = spec
    const details = {op: 'target.export', info: {iqn, path: cause.path, errno: cause.code}, cause}
    if (cause.code === 'ETIMEDOUT') {
      return new StorageError('TIMEOUT', `LIO has not ended ${cause.message} of ${iqn}`, details)
    }
    if (cause.code === 'EACCES' || cause.code === 'EPERM') {
      return new StorageError(
        'TARGET_UNAVAILABLE',
        `Only root may change the kernel's target: ${cause.message}`,
        details,
      )
    }
    const portal = this.#options.portals.find(one => portalPath(iqn, one) === cause.path)
    if (portal) {
      // The kernel says EINVAL, whatever is in the way.
      return (
        (await this.#heldPortal(portal)) ??
        new StorageError(
          'TARGET_FAILED',
          `LIO cannot listen on ${formatPortal(portal)}: its family is switched off, or its holder cannot be seen`,
          details,
        )
      )
    }
    if (cause.path === `${backstorePath(backstoreKind(volume), volume.id)}/enable`) {
      const why = cause.code === 'EBUSY' ? 'it is mounted, exported already, or held by another driver' : cause.message
      return new StorageError('TARGET_FAILED', `LIO cannot open ${volume.path} of ${iqn}: ${why}`, details)
    }
    return new StorageError('TARGET_FAILED', `LIO refused ${iqn}: ${cause.message}`, details)
  }

  async #refuseHeldPortal(portal: Portal): Promise<void> {
    const held = await this.#heldPortal(portal)
    if (held) throw held
  }

  /** A portal that the kernel itself holds is LIO's, and is shared by all its targets. */
  async #heldPortal(portal: Portal): Promise<StorageError | undefined> {
    // Those of another namespace are not seen from here.
    if (this.#options.networkNamespace !== undefined) return undefined
    const [holder] = await portalHolders(portal, {dualStack: true})
    if (!holder) return undefined
    return new StorageError(
      'PORTAL_IN_USE',
      `${formatPortal(portal)} is held by process ${holder.pid} (${holder.command})`,
      {op: 'target.open', info: {portal: formatPortal(portal), pid: holder.pid, process: holder.command}},
    )
  }
}

/** True where the backstore's or the target's directory was there before. */
function isAlreadyThere({code, path}: ConfigfsError, {iqn, volume}: ExportSpec): boolean {
  const own = [`${fabricPath}/${iqn}`, ...backstoreKinds.map(kind => backstorePath(kind, volume.id))]
  return code === 'EEXIST' && own.includes(path)
}

/** Bytes of the block device that LIO has claimed. */
async function deviceSize(info: string): Promise<number> {
  const sectors = await readFile(`/sys/dev/block/${deviceInInfo(info)}/size`, 'utf8').catch(() => '0')
  return Number(sectors) * 512
}
