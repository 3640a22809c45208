import {mkdir, readFile, rm} from 'node:fs/promises'
import {join} from 'node:path'
import type {FastifyInstance} from 'fastify'
import type {DestinationStream, Logger} from 'pino'
import {createApi, listenOnSocket} from './api/server.js'
import {Operations} from './attach/operations.js'
import type {Rooms} from './attach/rooms.js'
import {daemonEnds} from './attach/run.js'
import {exportSpec} from './attach/steps.js'
import {RunningBenches} from './bench/running.js'
import {checkChap, parseChapFile} from './chap.js'
import {LibvirtDriver} from './compute/libvirt.js'
import type {Config} from './config.js'
import {hasCode, StorageError} from './errors.js'
import {LibiscsiInitiator} from './initiators/libiscsi.js'
import {OpenIscsiInitiator} from './initiators/open-iscsi.js'
import {instrument} from './instrument.js'
import {parsePortal} from './iqn.js'
import {registerBenchMetrics} from './metrics/bench.js'
import {registerDiskMetrics} from './metrics/disks.js'
import {registerInitiatorMetrics} from './metrics/initiator.js'
import {registerNodeMetrics} from './metrics/node.js'
import {Metrics} from './metrics/registry.js'
import {registerTargetMetrics, type TargetCollector} from './metrics/targets.js'
import {packageVersion} from './native.js'
import {examineNode} from './node-check.js'
import {pino} from './packages/daemon.js'
import {type Observed, observeDisks, shownAttachments} from './reconcile/observe.js'
import {Reconciler} from './reconcile/reconciler.js'
import type {DeletedPool, NewPool, Service} from './service.js'
import {BenchResults} from './state/bench-results.js'
import {Journal} from './state/journal.js'
import {guestDevices} from './state/peek.js'
import {filePoolIdentity} from './state/pool-identity.js'
import {madePools, Store} from './state/store.js'
import type {TargetDriver} from './targets/driver.js'
import {IetDriver} from './targets/iet.js'
import {LioDriver} from './targets/lio.js'
import {TgtDriver} from './targets/tgt.js'
import type {ChapAuth} from './types.js'
import type {PoolCapacity, VolumeDriver} from './volumes/driver.js'
import {FileVolumeDriver} from './volumes/file.js'
import {openImported} from './volumes/imported.js'
import {LvmVolumeDriver} from './volumes/lvm.js'
import {createGroup, defaultThinPool} from './volumes/lvm-create.js'
import {deleteGroup} from './volumes/lvm-delete.js'
import {checkLvmName} from './volumes/lvm-grammar.js'
import {Pools} from './volumes/pools.js'

const retryMs = 15_000
/** How old what is said of a pool may be. */
const poolLookMs = 5000
/** Between two looks; the share of the time that they take has a bound as well. */
const lookMs = 3_000
const shareOfLooks = 1 / 20
const longestLookMs = 15_000
/** iscsid tries every few seconds: a session that is not up this long after its target's return needs another login. */
const failedGraceMs = 30_000
const tokenExpiryMs = 3600 * 1000

type LvmPool = Config['volumes']['lvm'][number] & {name: string}

export interface DaemonOptions {
  /** Where log lines go; default standard output. */
  logTo?: DestinationStream
  /** Wraps the journal, so that a test can end the process between two steps. */
  wrapJournal?: (journal: Journal) => Journal
  /** Ends the start, and what it has resumed. */
  signal?: AbortSignal
}

/** The drivers, the desired state and what serves them. This is the only place that chooses drivers. */
export class Daemon {
  readonly config: Config
  readonly log: Logger
  readonly metrics = new Metrics()
  readonly benches = new RunningBenches()
  operations!: Operations
  /** Resolves when all operations of before the start have ended, or have been found to have to wait. */
  recovered: Promise<void> = Promise.resolve()
  #store: Store | undefined
  #api: FastifyInstance | undefined
  #collector: TargetCollector | undefined
  #reconciler!: Reconciler
  readonly #ending = new AbortController()
  #isOpen = false
  /** When the target daemon had lost exports last, and they were back. */
  #restoredAt: number | undefined
  #timers = new Set<NodeJS.Timeout>()
  #closed = false
  readonly #opened: {close(): Promise<void>}[] = []

  private constructor(config: Config, options: DaemonOptions) {
    this.config = config
    this.log = pino(
      {name: 'lunpath', level: config.daemon.logLevel, redact: ['*.secret', '*.auth']},
      options.logTo ?? pino.destination(1),
    )
  }

  /**
   * Opens the store and listens; then opens the pools, the target daemon and libvirt, puts the exports in place and goes on with
   * what an earlier daemon has left unfinished, which may last: `recovered` says when that is over. A failure closes what was
   * opened. @throws what the drivers' open() throw; STORE_LOCKED, STORE_CORRUPT, STORE_TOO_NEW; CANCELLED by the signal
   */
  static async start(config: Config, options: DaemonOptions = {}): Promise<Daemon> {
    const daemon = new Daemon(config, options)
    const {signal} = options
    const end = () => daemon.#ending.abort(daemonEnds)
    if (signal?.aborted) end()
    else signal?.addEventListener('abort', end, {once: true})
    try {
      await daemon.#start(options)
      return daemon
    } catch (error) {
      await daemon.close()
      throw error
    }
  }

  async #start({wrapJournal}: DaemonOptions): Promise<void> {
    const {config, log, metrics} = this
    await mkdir(config.daemon.directory, {recursive: true, mode: 0o700})
    const store = await Store.open(join(config.daemon.directory, 'store.db'))
    this.#store = store
    const journal = new Journal(store)
    const targets = await chooseTargets(config)
    const rooms = this.#chooseDrivers(store, wrapJournal ? wrapJournal(journal) : journal, targets)
    this.operations = new Operations(rooms)
    this.#reconciler = new Reconciler(this.operations, log, this.#ending.signal)
    this.#registerMetrics(rooms)
    if (config.metrics.listen !== '') await metrics.listen(parsePortal(config.metrics.listen))
    this.#api = await createApi(this.#service(), log)
    await listenOnSocket(this.#api, config.daemon.socket)
    log.info({socket: config.daemon.socket, unfinished: journal.unfinished().length}, 'listening')

    await this.#openRooms(rooms, targets)
    this.#listenToDrivers(rooms)
    this.#beginTasks(rooms)
    this.#isOpen = true
    const facts = {portals: rooms.targets.portals(), volumes: store.volumes.size, exports: store.exports.size}
    log.info({socket: config.daemon.socket, ...facts}, 'serving')
    this.recovered = this.#reconciler.settled().then(() => this.#keepNumbers(rooms))
    this.recovered.catch(err => log.error({err}, 'the numbers of the targets could not be stored'))
  }

  /** Exports are in place before anything else can use them, and each step may be the last one where the daemon is told to end. */
  async #openRooms(rooms: Rooms, targets: TargetDriver): Promise<void> {
    const {signal} = this.#ending
    const steps = [
      async () => {
        this.#opened.push(rooms.volumes)
        await this.#openPools(rooms)
      },
      async () => {
        this.#opened.push(rooms.host)
        void rooms.host.open()
        this.#opened.push(rooms.targets)
        await rooms.targets.open()
        this.#tellWay(targets)
      },
      async () => {
        this.#opened.push(rooms.compute)
        await Promise.race([this.#openCompute(rooms), aborted(signal)])
      },
      () => this.#restoreExports(rooms),
      () => this.#look('start'),
      () => this.#keepNumbers(rooms),
    ]
    for (const step of steps) {
      signal.throwIfAborted()
      await step()
    }
    signal.throwIfAborted()
  }

  #listenToDrivers(rooms: Rooms): void {
    const {log} = this
    const inBackground = (occasion: string) => void this.#look(occasion)
    rooms.targets.on('restarted', facts => {
      const {level, text} = describeReturn(facts)
      log[level](facts, text)
      this.#collector?.restarted()
      this.#restoredAt = performance.now()
      void this.#look('target daemon restarted')
        .then(() => this.#keepNumbers(rooms))
        .catch(err => log.error({err}, 'the numbers of the targets could not be stored'))
    })
    rooms.targets.on('lost', facts => log.error(facts, 'the target does not answer, or has lost its exports'))
    rooms.targets.on('mended', facts => log.warn(facts, 'rules or portals of the target were missing: they are back'))
    rooms.compute.on('connected', () => inBackground('libvirt connected'))
    rooms.compute.on('lost', facts => log.error(facts, 'the connection to libvirt is lost'))
    for (const event of ['removed', 'domain'] as const) {
      rooms.compute.on(event, ({uuid}) => {
        this.#reconciler.domainChanged(uuid as string | undefined)
        void this.#resumeReleases()
      })
    }
  }

  #beginTasks(rooms: Rooms): void {
    this.metrics.onFailure = (collector, reason) => {
      if (reason === null) this.log.info({collector}, `the figures of ${collector} can be read again`)
      else this.log.warn({collector}, `the figures of ${collector} cannot be read, and are not in /metrics: ${reason}`)
      // What keeps figures from being read is likely to be a problem, which the next look might find late.
      void this.#look(`figures of ${collector}`)
    }
    this.#every(this.config.metrics.intervalMs, () => this.#collector!.sample())
    this.#lookAgain(lookMs)
    this.#every(retryMs, async () => {
      if (rooms.volumes.unusable().length === 0) return
      const opened = await this.#openPools(rooms)
      if (opened.length > 0) await this.#look(`pool ${opened.join(', ')} is back`)
    })
    this.#every(poolLookMs, () => this.#lookAtPools(rooms))
    this.#every(tokenExpiryMs, () => rooms.journal.expireTokens())
  }

  /** Looks again and again, with pauses. */
  #lookAgain(afterMs: number): void {
    if (this.#closed) return
    const timer = setTimeout(async () => {
      const began = performance.now()
      await this.#look('a look now and then', {full: false})
      this.#timers.delete(timer)
      this.#lookAgain(Math.min(longestLookMs, Math.max(lookMs, (performance.now() - began) / shareOfLooks)))
    }, afterMs)
    timer.unref()
    this.#timers.add(timer)
  }

  #tellWay(targets: TargetDriver): void {
    if (!(targets instanceof IetDriver) || !targets.way) return
    const {way, reason} = targets.way
    if (way === 'device')
      this.log.info({ietd: targets.pid}, 'IET is driven by its control device, over ietd’s descriptor')
    else this.log.warn({ietd: targets.pid, reason}, 'IET is driven by ietd’s socket alone')
  }

  #registerMetrics({targets, volumes, host, compute, store, journal}: Rooms): void {
    const {registry} = this.metrics
    const isExported = (iqn: string) => store.exportOf(iqn) !== undefined
    this.#collector = registerTargetMetrics(registry, targets, isExported)
    this.metrics.add(this.#collector)
    const shown = (disks: Observed['disks']) => shownAttachments(this.operations.rooms, disks)
    const attachments = {
      observed: async () => shown(await observeDisks(this.operations.rooms)),
      unobserved: () => shown(null),
    }
    this.metrics.add(registerDiskMetrics(registry, compute, attachments))
    const facts = {volumes, unfinished: () => journal.unfinished(), problems: () => this.#reconciler.problems()}
    this.metrics.add(registerNodeMetrics(registry, facts))
    this.metrics.add(registerInitiatorMetrics(registry, host))
    this.metrics.add(registerBenchMetrics(registry, this.benches))
  }

  #chooseDrivers(store: Store, journal: Journal, targetDriver: TargetDriver): Rooms {
    const {config, log, metrics} = this
    const observe = metrics.observeStep
    const {targets, compute, initiator} = config
    const host = new OpenIscsiInitiator({
      user: config.daemon.directory,
      initiatorName: config.initiator.name,
    })
    host.on('unflushed', facts =>
      log.error(facts, 'a disk took no flush before it went: what this host had not written to it yet may be lost'),
    )
    return {
      store,
      journal,
      volumes: this.#choosePools(store),
      importVolume: openImported,
      targets: instrument(targetDriver, 'target', ['export', 'unexport', 'resize', 'restore'], observe, log),
      initiator: instrument(new LibiscsiInitiator(), 'initiator', ['discover', 'probe'], observe, log),
      host: instrument(host, 'initiator', ['connect', 'verify', 'disconnect'], observe, log),
      compute: instrument(
        new LibvirtDriver({uri: compute.uri}),
        'compute',
        ['attach', 'detach', 'resize'],
        observe,
        log,
      ),
      iqnPrefix: targets.iqnPrefix,
      initiatorName: initiator.name,
      route: initiator.route as Rooms['route'],
      probeTimeoutMs: initiator.timeoutMs,
    }
  }

  /** The pool of files, the configured pools in LVM, and those that `pool create` has made. */
  #choosePools(store: Store): Pools {
    const {directory, overcommit, defaultPool, lvm} = this.config.volumes
    const hasVolumes = (pool: string) => [...store.volumes.values()].some(volume => volume.pool === pool)
    const pools = new Pools(defaultPool, {isKnown: pool => store.pools.has(pool) || hasVolumes(pool)})
    const identity = filePoolIdentity(store, {pool: 'default', directory})
    const files = new FileVolumeDriver({pool: 'default', directory, overcommitRatio: overcommit, identity})
    pools.add(this.#instrumentPool(files))
    for (const {name, ...given} of lvm) pools.add(this.#lvmPool({...given, name: name ?? given.group}))
    for (const {id, group, thinPool} of madePools(store)) {
      if (!pools.has(id)) pools.add(this.#lvmPool({name: id, group, thinPool: thinPool ?? undefined}))
    }
    if (!pools.has(defaultPool)) {
      throw new StorageError(
        'INVALID_ARGUMENT',
        `Configuration: volumes.defaultPool: there is no pool ${defaultPool}`,
        {
          op: 'config',
          info: {key: 'volumes.defaultPool', pool: defaultPool},
        },
      )
    }
    return pools
  }

  #lvmPool({name, group, thinPool, overcommit, wipe, thinLimit}: LvmPool): LvmVolumeDriver {
    const driver = new LvmVolumeDriver({
      pool: name,
      group,
      thinPool,
      overcommitRatio: overcommit,
      wipe,
      thinLimitPercent: thinLimit,
      systemDirectory: this.#lvmDirectory(name),
      scan: this.#lvmScan(),
    })
    driver.on('warning', (message, facts) => this.log.warn({...facts, pool: name}, message))
    return this.#instrumentPool(driver)
  }

  #lvmDirectory(pool: string): string {
    return join(this.config.daemon.directory, 'lvm', pool)
  }

  /** LVM must not look at what guests write. */
  #lvmScan() {
    return {sanTargets: this.config.volumes.sanTargets, guestDevices: () => guestDevices(this.#store!)}
  }

  #instrumentPool<D extends VolumeDriver>(pool: D): D {
    const methods = ['create', 'clone', 'snapshot', 'extend', 'delete'] as const
    return instrument(pool, 'volume', methods, this.metrics.observeStep, this.log)
  }

  /** One pool that cannot be opened, whose disk is not there yet, must not keep the others from working. */
  async #openPools({volumes}: Rooms): Promise<string[]> {
    const before = new Set(volumes.unusable().map(({pool}) => pool))
    const opened = await volumes.open()
    for (const {pool, reason} of volumes.unusable()) {
      if (!before.has(pool)) this.log.error({pool}, `the pool ${pool} cannot be used: ${reason}`)
    }
    return opened
  }

  /** A pool may go, or come back, at any time. */
  async #lookAtPools({volumes}: Rooms): Promise<void> {
    const {lost, back} = await volumes.look()
    for (const {pool, reason} of lost) this.log.error({pool}, `the pool ${pool} cannot be used: ${reason}`)
    if (lost.length + back.length === 0) return
    const names = [...lost.map(({pool}) => `${pool} is lost`), ...back.map(pool => `${pool} is back`)]
    await this.#look(`pool ${names.join(', ')}`)
  }

  /** `pool create`: a volume group, made of devices or taken as it is, becomes a pool. */
  async #createPool({name, group, devices, thin, thinBytes}: NewPool): Promise<PoolCapacity> {
    const {store, volumes} = this.operations.rooms
    const pool = checkLvmName(name ?? group, 'volume group')
    const unlock = this.operations.lock(`pool ${pool}`, `group ${group}`)
    try {
      const taken = madePools(store).find(record => record.group === group)?.id
      if (volumes.has(pool) || taken !== undefined) {
        throw new StorageError('VOLUME_EXISTS', `There is a pool ${taken ?? pool} already`, {
          info: {pool: taken ?? pool},
        })
      }
      const thinPool = thin ? defaultThinPool : undefined
      await createGroup({
        group,
        devices,
        thinPool,
        thinBytes,
        systemDirectory: this.#lvmDirectory(pool),
        scan: this.#lvmScan(),
      })
      const driver = this.#lvmPool({name: pool, group, thinPool})
      await driver.open()
      const value = {
        id: pool,
        driver: 'lvm' as const,
        group,
        thinPool: thinPool ?? null,
        createdAt: new Date().toISOString(),
      }
      await store.write([{table: 'pools', id: pool, value}]).catch(async error => {
        await driver.close()
        throw error
      })
      volumes.add(driver)
      return await driver.capacity()
    } finally {
      unlock()
    }
  }

  /**
   * `pool delete`: undoes `pool create`, also one that was killed half-way, of which there is no record: that goes by
   * its group's name. LVM is asked what is in the group when the pool takes nothing new any more.
   */
  async #deletePool(pool: string): Promise<DeletedPool> {
    const {rooms} = this.operations
    const {store, volumes} = rooms
    checkLvmName(pool, 'volume group')
    const record = madePools(store).find(({id}) => id === pool)
    const {lvm, defaultPool} = this.config.volumes
    const configured = lvm.some(({group, name = group}) => name === pool || group === record?.group)
    if (configured || pool === defaultPool || (!record && volumes.has(pool))) {
      throw new StorageError('INVALID_ARGUMENT', `The pool ${pool} is in the configuration: take it out there`, {
        op: 'pool.delete',
        info: {pool},
      })
    }
    const group = record?.group ?? pool
    const owners = [...lvm, ...madePools(store)]
    const noSuchPool = () =>
      new StorageError('NOT_FOUND', `There is no pool ${JSON.stringify(pool)}`, {op: 'pool.delete', info: {pool}})
    // Another pool's group of that name is not to go.
    if (!record && owners.some(owner => owner.group === group)) throw noSuchPool()
    const unlock = this.operations.lock(`pool ${pool}`, `group ${group}`)
    try {
      const inStore = [...store.volumes.values()].filter(volume => volume.driver === 'lvm' && volume.pool === pool)
      if (inStore.length > 0) {
        throw new StorageError('POOL_IN_USE', `The pool ${pool} has ${inStore.length} volumes: delete them first`, {
          op: 'pool.delete',
          info: {pool, volumes: inStore.map(({id}) => id)},
        })
      }
      const driver = volumes.remove(pool)
      await driver?.close()
      const systemDirectory = this.#lvmDirectory(pool)
      const thinPool = record ? (record.thinPool ?? undefined) : defaultThinPool
      const outcome = await deleteGroup({group, thinPool, systemDirectory, scan: this.#lvmScan()}).catch(
        async error => {
          if (driver) {
            volumes.add(driver)
            await this.#openPools(rooms)
          }
          throw error
        },
      )
      await rm(systemDirectory, {recursive: true, force: true})
      if (!record && outcome !== 'removed') throw noSuchPool()
      await store.write([{table: 'pools', id: pool, value: null}])
      return {pool, group, groupRemoved: outcome === 'removed'}
    } finally {
      unlock()
    }
  }

  /**
   * A storage node serves without a hypervisor, and libvirt may come later: the driver goes on trying. It is told the
   * secrets of what is attached, since libvirt forgets them when it restarts.
   */
  async #openCompute(rooms: Rooms): Promise<void> {
    const {attachments, secrets} = rooms.store
    await rooms.compute.open().catch(error => {
      if (!hasCode(error, 'COMPUTE_UNAVAILABLE', 'DEPENDENCY_MISSING')) throw error
      this.log.warn({err: error}, 'libvirt does not answer: nothing can be attached until it does')
    })
    for (const {id, iqn} of attachments.values()) {
      const auth = secrets.get(id)
      if (iqn === null || !auth) continue
      // The driver keeps it and gives it to libvirt when that answers.
      await rooms.compute
        .rememberSecret(iqn, auth.incoming)
        .catch(err => this.log.debug({err, iqn}, 'a secret has to wait'))
    }
  }

  /** One export that cannot be put back (its volume is gone) must not keep the others, and the daemon, from working. */
  async #restoreExports(rooms: Rooms): Promise<void> {
    const {volumes, exports} = rooms.store
    const specs = [...exports.values()].flatMap(record => {
      const volume = volumes.get(record.volumeId)
      return volume ? [exportSpec(rooms, record, volume)] : []
    })
    const present = this.#hasHostRoute(rooms) ? new Set((await rooms.targets.list()).map(({iqn}) => iqn)) : undefined
    await rooms.targets.restore(specs).catch(error => {
      if (!hasCode(error, 'TARGET_FAILED')) throw error
      this.log.error({err: error}, error.message)
    })
    if (present && specs.some(({iqn}) => !present.has(iqn))) this.#restoredAt = performance.now()
  }

  #hasHostRoute({store}: Rooms): boolean {
    return [...store.attachments.values()].some(({route}) => route === 'host')
  }

  /**
   * A target whose number somebody else had taken has another one now, and an older store has none at all: what is kept is what
   * the next restart asks for.
   */
  async #keepNumbers({targets, store}: Rooms): Promise<void> {
    for (const [iqn, tid] of targets.numbers?.() ?? []) {
      const record = store.exportOf(iqn)
      if (!record || record.tid === tid || this.#closed || !this.operations.idle(record.volumeId)) continue
      const unlock = this.operations.lock(record.volumeId)
      try {
        await store.write([{table: 'exports', id: record.volumeId, value: {...record, tid}}])
      } finally {
        unlock()
      }
    }
  }

  #service(): Service {
    return {
      version: packageVersion(),
      config: this.config,
      operations: this.operations,
      metrics: this.metrics,
      benches: this.benches,
      benchResults: new BenchResults(join(this.config.daemon.directory, 'bench')),
      problems: () => this.#reconciler.problems(),
      isOpen: () => this.#isOpen,
      resuming: () => this.#reconciler.resuming,
      createPool: asked => this.#createPool(asked),
      deletePool: pool => this.#deletePool(pool),
      doctor: () => examineNode(this.config, this.#store!, targetPids(this.operations.rooms.targets)),
    }
  }

  /** Runs a task again and again, never twice at once. */
  #every(intervalMs: number, task: () => Promise<unknown>): void {
    let running = false
    const timer = setInterval(() => {
      if (running) return
      running = true
      void task()
        .catch(error => this.log.debug({err: error}, 'a periodic task failed'))
        .finally(() => {
          running = false
        })
    }, intervalMs)
    timer.unref()
    this.#timers.add(timer)
  }

  /**
   * True for some time after the return of exports that had gone. Later a session that fails is another matter: iscsid's own,
   * as long as it waits.
   */
  #giveUpFailed(): boolean {
    const sinceMs = performance.now() - (this.#restoredAt ?? Number.NEGATIVE_INFINITY)
    return sinceMs > failedGraceMs && sinceMs < failedGraceMs + 4 * retryMs
  }

  #look(occasion: string, {full = true} = {}): Promise<void> {
    return this.#reconciler.look(occasion, {full, giveUpFailed: this.#giveUpFailed()})
  }

  /** Brings the world to what the store says, operations that stand included. A failure is logged. */
  async reconcile(occasion: string): Promise<void> {
    await this.#look(occasion)
    await this.#reconciler.settled()
  }

  /** A disk has left a domain, or a domain has changed its state: what stood because of a disk goes on. */
  async #resumeReleases(): Promise<void> {
    const waiting = this.operations.standing().filter(({plan}) => plan.includes('disk'))
    if (this.#closed) return
    await Promise.all(
      waiting.map(operation =>
        this.operations.resume(operation, {recovering: true}).catch(err => {
          // It stands, and is tried again.
          this.log.debug({err, operation: operation.id}, 'an operation goes on waiting')
        }),
      ),
    )
  }

  /** Refuses new requests, stops what was resumed, waits for running operations and closes everything, in reverse. Safe to call twice. */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    this.#ending.abort(daemonEnds)
    for (const timer of this.#timers) clearInterval(timer)
    await this.#api?.close()
    await this.metrics.close()
    await this.#reconciler?.settled()
    await this.operations?.settle()
    for (const opened of this.#opened.reverse())
      await opened.close().catch(error => this.log.error({err: error}, 'close failed'))
    await this.#store?.close()
    this.log.flush?.()
  }
}

/** What a restoration has come to. */
function describeReturn({exports = 0, failed}: {exports?: number; failed?: unknown[]}): {
  level: 'info' | 'warn' | 'error'
  text: string
} {
  const left = failed?.length ?? 0
  if (left > 0) {
    return {
      level: 'error',
      text: `the target had lost its exports: ${exports} are back, and ${left} cannot be put back`,
    }
  }
  if (exports === 0) return {level: 'info', text: 'the target was started anew: no export had to be put back'}
  return {level: 'warn', text: 'the target had lost its exports: they are back'}
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise(resolve => signal.addEventListener('abort', () => resolve(), {once: true}))
}

/** @throws INVALID_ARGUMENT */
async function chooseTargets({targets, daemon, iet}: Config): Promise<TargetDriver> {
  const portals = targets.portals.map(parsePortal)
  if (targets.driver === 'iet') {
    return new IetDriver({
      portals,
      socketName: iet.socket,
      procDirectory: iet.procDir,
      accessFiles: iet.accessFiles,
      accessDirectories: iet.accessDirs,
      blockSizeBytes: iet.blockSize,
      blockDevices: iet.blockDevices,
      discoveryAuth: await readDiscoveryChap(iet.discoveryChapFile),
      keepOnClose: !targets.endWithDaemon,
    })
  }
  if (targets.driver === 'lio')
    return new LioDriver({portals, networkNamespace: targets.networkNamespace, keepOnClose: !targets.endWithDaemon})
  if (!targets.managed) return new TgtDriver({managed: false, socketPath: targets.socket, portals})
  return new TgtDriver({
    managed: true,
    directory: join(daemon.directory, 'tgtd'),
    portals,
    dieWithParent: targets.endWithDaemon,
    keepOnClose: !targets.endWithDaemon,
  })
}

/** @throws INVALID_ARGUMENT, which never quotes the file */
async function readDiscoveryChap(file: string | undefined): Promise<ChapAuth | undefined> {
  if (file === undefined) return undefined
  const text = await readFile(file, 'utf8').catch(cause => {
    const message = `Configuration: iet.discoveryChapFile cannot be read: ${(cause as Error).message}`
    throw new StorageError('INVALID_ARGUMENT', message, {op: 'config', info: {key: 'iet.discoveryChapFile'}, cause})
  })
  const auth = parseChapFile(text)
  checkChap(auth)
  return auth
}

/** The process of the target daemon that lunpath itself runs, where it has one. */
function targetPids(targets: TargetDriver): number[] {
  const hasProcess = targets instanceof TgtDriver || targets instanceof IetDriver
  return hasProcess && targets.pid > 0 ? [targets.pid] : []
}
