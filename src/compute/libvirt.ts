import {EventEmitter} from 'node:events'
import {hasCode, StorageError} from '../errors.js'
import {KeyedQueue} from '../lock.js'
import type {ChapCredentials, Disk, Domain, DomainState, Feed, VolumeId} from '../types.js'
import {
  buildScsiController,
  chooseScsiController,
  freePciAddresses,
  freeUnit,
  type Place,
  takenUnits,
} from './addresses.js'
import {
  affectConfig,
  affectLive,
  closeInTurn,
  type LibvirtConnection,
  type LibvirtEvent,
  type NativeDomain,
  newConnection,
  whileWanted,
} from './connection.js'
import {
  aliasOf,
  buildDiskXml,
  buildSecretXml,
  checkSource,
  checkTarget,
  type Definition,
  type DiskPlan,
  describeDomain,
  freeTarget,
  idOfAlias,
  parseDomain,
  sameSource,
  secretUsage,
} from './disk-xml.js'
import type {AttachSpec, ComputeDriver, DetachOptions, DiskCounters} from './driver.js'
import {
  type ErrorContext,
  isAddressTaken,
  isConnectionLoss,
  isDeviceMissing,
  isDomainGone,
  isLeftoverNode,
  isLibvirtError,
  isUnplugPending,
  isWithoutDirectIo,
  toStorageError,
} from './libvirt-error.js'

export interface LibvirtOptions {
  /** libvirt's URI: `qemu:///system`, or a private libvirtd's. */
  uri: string
  /** Milliseconds for a call that only asks; default 10,000. */
  queryTimeoutMs?: number
  /** Milliseconds for a call that changes a domain; default 60,000: libvirt itself gives up its job lock after 30 s. */
  changeTimeoutMs?: number
  /** Milliseconds that a call waits for a connection that is being made again; default 3,000. */
  connectWaitMs?: number
}

const reconnectMs = {first: 50, longest: 5_000}
// A guest that is asked while it boots takes no notice, so it is asked again. Not at once, and not right after it was
// resumed: libvirt 9.0 that is asked at the very moment of the release removes the disk twice. It crashes then
// (virStorageSourceGetActualType of what is freed), or leaves QEMU logged in to the target.
const askAgainMs = 5_000
// A guest that lets go at all does so within this; one that is silent must not hold up the others for longer.
const promptReleaseMs = 2_000
// QEMU's part of a removal takes some milliseconds.
const leastRemovalMs = 500
const leftoverRetries = 5
const addressRetries = 8
const targetRetries = 5
/** Rings when a connection is there; never the UUID of a domain. */
const connectionBell = 'connection'

// enum virDomainState, in its order (libvirt-domain.h)
const states: DomainState[] = [
  'nostate',
  'running',
  'blocked',
  'paused',
  'shutdown',
  'shutoff',
  'crashed',
  'pmsuspended',
]

/**
 * Attaches disks to the domains of one libvirtd. A lost connection is made again in the background, with growing pauses;
 * calls wait for it a while and then fail with COMPUTE_UNAVAILABLE. CHAP secrets are kept in this process's memory and
 * given to libvirt, as ephemeral secrets, before each attach and after each reconnect.
 */
export class LibvirtDriver implements ComputeDriver {
  readonly name = 'libvirt'
  readonly #uri: string
  readonly #queryTimeoutMs: number
  readonly #changeTimeoutMs: number
  readonly #connectWaitMs: number
  readonly #queue = new KeyedQueue()
  readonly #events = new EventEmitter()
  /** Rings with a domain's UUID when something that a detach waits for may have happened there. */
  readonly #bell = new EventEmitter()
  readonly #secrets = new Map<string, ChapCredentials>()
  /** `UUID alias` of disks that a guest was asked to release, and when, on the clock of performance.now(). */
  readonly #leaving = new Map<string, number>()
  readonly #known = new Map<string, Domain>()
  /** By UUID: what libvirt wrote at the last look at all domains, and what it said. */
  readonly #definitions = new Map<string, {inForce: string; forNextStart: string | null; feeds: Feed[]}>()
  /** By UUID: a domain can be renamed, and its UUID stays. */
  readonly #names = new Map<string, string>()
  /** By what a domain was asked for: its UUID when it was last looked up. Whoever uses it sees whether it still holds. */
  readonly #uuids = new Map<string, string>()
  #connection: LibvirtConnection | undefined
  #connecting: Promise<void> | undefined
  /** The connection that is being opened. */
  #attempt: LibvirtConnection | undefined
  #retry: NodeJS.Timeout | undefined
  #pauseMs = reconnectMs.first
  #lastFailure: unknown
  #state: 'new' | 'open' | 'closed' = 'new'
  #wasConnected = false
  #closing: Promise<void> | undefined

  constructor({uri, queryTimeoutMs = 10_000, changeTimeoutMs = 60_000, connectWaitMs = 3_000}: LibvirtOptions) {
    this.#uri = uri
    this.#queryTimeoutMs = queryTimeoutMs
    this.#changeTimeoutMs = changeTimeoutMs
    this.#connectWaitMs = connectWaitMs
    this.#bell.setMaxListeners(0)
    this.#events.setMaxListeners(0)
  }

  /**
   * Connects. Where that fails it rejects, and the driver goes on trying in the background until close().
   * @throws COMPUTE_UNAVAILABLE, DEPENDENCY_MISSING
   */
  async open(): Promise<void> {
    if (this.#state === 'new') this.#state = 'open'
    this.#connect()
    await this.#connected()
  }

  async close(): Promise<void> {
    this.#state = 'closed'
    this.#closing ??= this.#disconnect()
    await this.#closing
  }

  async #disconnect(): Promise<void> {
    clearTimeout(this.#retry)
    const connection = this.#connection
    this.#connection = undefined
    if (this.#attempt) dispose(this.#attempt)
    this.#ringAll()
    if (!connection) return
    if ((await within(closeInTurn(connection), this.#queryTimeoutMs)) === late) connection.abandon()
  }

  /** What `virsh list --all` shows. */
  async domains(): Promise<Domain[]> {
    const found = await this.#query('list the domains', {}, connection => connection.domains())
    this.#learnNames(found)
    return found.map(describe)
  }

  async domain(nameOrUuid: string): Promise<Domain> {
    checkDomainName(nameOrUuid)
    const action = `find domain ${nameOrUuid}`
    const found = await this.#query(action, {domain: nameOrUuid}, connection => connection.domain(nameOrUuid))
    this.#uuids.set(nameOrUuid, found.uuid)
    this.#names.set(found.uuid, found.name)
    return describe(found)
  }

  nameOf(uuid: string): string | undefined {
    return this.#names.get(uuid)
  }

  /** From a list of all domains. */
  #learnNames(domains: Pick<Domain, 'uuid' | 'name'>[]): void {
    this.#names.clear()
    for (const {uuid, name} of domains) this.#names.set(uuid, name)
  }

  /** What `virsh domblklist` shows, live and persistent together. @throws DOMAIN_NOT_FOUND */
  async disks(domain: string): Promise<Disk[]> {
    return (await this.#inspect(domain)).disks
  }

  /** Definitions that have not changed since the last look are not parsed again. */
  async feeds(): Promise<Feed[]> {
    const domains = await this.domains()
    const known = new Map(this.#definitions)
    this.#definitions.clear()
    const found = await Promise.all(
      domains.map(async ({uuid}) => {
        const [inForce, forNextStart] = await this.#definitionsOf(uuid).catch((error: unknown) => {
          if (hasCode(error, 'DOMAIN_NOT_FOUND')) return [undefined, null] as const
          throw error
        })
        if (inForce === undefined) return []
        const before = known.get(uuid)
        const isKnown = before?.inForce === inForce && before.forNextStart === forNextStart
        const feeds = isKnown ? before.feeds : describeTexts(inForce, forNextStart).feeds
        this.#definitions.set(uuid, {inForce, forNextStart, feeds})
        return feeds
      }),
    )
    return found.flat()
  }

  /**
   * Keeps the CHAP secret for a target and gives it to libvirt now and after each reconnect: a domain whose definition
   * names it starts only while libvirt has it. attach() does this by itself for the source that it is given.
   */
  async rememberSecret(iqn: string, credentials: ChapCredentials): Promise<void> {
    this.#secrets.set(iqn, credentials)
    const action = `give libvirt the CHAP secret for ${iqn}`
    await this.#query(action, {iqn}, connection => giveSecret(connection, iqn, credentials))
  }

  async attach(spec: AttachSpec): Promise<Disk> {
    checkSpec(spec)
    const known = this.#uuids.get(spec.domain)
    if (known !== undefined) {
      try {
        return await this.#attachTo(known, spec)
      } catch (error) {
        if (!hasCode(error, 'DOMAIN_NOT_FOUND')) throw error
        this.#uuids.delete(spec.domain)
      }
    }
    return await this.#attachTo((await this.domain(spec.domain)).uuid, spec)
  }

  async #attachTo(uuid: string, spec: AttachSpec): Promise<Disk> {
    const inTurn = (bus: string) =>
      this.#inSlots(bus, uuid, () => this.#queue.run(uuid, () => this.#ensureWithTarget(spec, uuid, bus === 'virtio')))
    // A SCSI disk has no slot of its own, but the controller that it may need first has.
    return (await inTurn(spec.bus)) ?? (await inTurn('virtio'))!
  }

  /** Undefined where a slot is needed and `mayTakeSlot` is false. */
  async #ensureWithTarget(spec: AttachSpec, uuid: string, mayTakeSlot: boolean): Promise<Disk | undefined> {
    for (let attempt = 0; ; attempt++) {
      try {
        return await this.#ensureAttached(spec, uuid, mayTakeSlot)
      } catch (error) {
        // Somebody else has taken the name that we chose in between: choose again.
        const chosen = spec.target === undefined && hasCode(error, 'DISK_TARGET_IN_USE')
        if (!chosen || attempt >= targetRetries) throw error
      }
    }
  }

  async #ensureAttached(spec: AttachSpec, uuid: string, mayTakeSlot: boolean): Promise<Disk | undefined> {
    const {id} = spec
    const found = await this.#inspect(uuid)
    const {name} = found.domain
    if (spec.domain !== name && spec.domain !== uuid) {
      throw new StorageError('DOMAIN_NOT_FOUND', `There is no domain ${spec.domain}: it is called ${name} now`, {
        op,
        info: {domain: spec.domain},
      })
    }
    const places = placesFor(spec, found.domain)
    const alias = aliasOf(id)
    const info = {domain: name, id}
    if (this.#leaving.has(`${uuid} ${alias}`) && found.disks.some(disk => disk.alias === alias && disk.live)) {
      throw new StorageError('DETACH_PENDING', `Disk ${id} is still leaving domain ${name}`, {op, info})
    }
    refuseOtherUses(spec, name, found)
    const ours = found.disks.filter(disk => disk.alias === alias)
    const missing = places.filter(place => !ours.some(disk => disk[place]))
    if (missing.length === 0) return ours.find(disk => disk[places[0]!])!

    const controller = spec.bus === 'scsi' ? chooseScsiController(found.devices, missing) : undefined
    if (controller?.missing.includes('live') && !mayTakeSlot) return undefined
    const source = (await spec.confirm?.()) ?? spec.source
    if (source !== spec.source) refuseOtherUses({...spec, source}, name, found)
    const plan = planDisk({...spec, source}, name, found, {target: ours[0]?.target, controller: controller?.index})
    const context = {op, action: `attach disk ${id} to domain ${name}`, info}
    if (controller) await this.#addController(uuid, controller, context)
    if (source.type === 'iscsi' && source.auth) await this.rememberSecret(source.iqn, source.auth)
    await this.#attachDevice(uuid, {plan, places: missing, devices: found.devices}, context)
    const has = (place: Place) => missing.includes(place) || ours.some(disk => disk[place])
    return {
      domain: name,
      target: plan.target,
      bus: plan.bus,
      alias,
      serial: id,
      source: withoutSecret(source),
      live: has('live'),
      persistent: has('persistent'),
      readOnly: plan.readOnly,
    }
  }

  async detach(domain: string, id: VolumeId, options: DetachOptions = {}): Promise<void> {
    const {timeoutMs = 20_000, persistent = true} = options
    checkId(id)
    const found = await this.domain(domain).catch((error: unknown) => {
      if (hasCode(error, 'DOMAIN_NOT_FOUND')) return undefined
      throw error
    })
    if (!found) return
    const {uuid, name} = found
    const alias = aliasOf(id)
    const context = {op: 'compute.detach', action: `detach disk ${id} from domain ${name}`, info: {domain: name, id}}
    const deadline = performance.now() + timeoutMs
    const bus = await this.#queue.run(uuid, async () => {
      const disks = await this.#disksOrNone(uuid)
      if (persistent && disks.some(disk => disk.alias === alias && disk.persistent)) {
        await this.#askRelease(uuid, alias, affectConfig, context)
      }
      await this.#forgetSecretOf(disks, alias, persistent)
      return disks.find(disk => disk.alias === alias && disk.live)?.bus
    })
    const pending = (cause?: unknown) =>
      new StorageError(
        'DETACH_PENDING',
        `The guest of domain ${name} has not released disk ${id} within ${timeoutMs} ms. The request stands: the disk goes when the guest lets it; detaching again waits again`,
        {op: context.op, info: context.info, cause},
      )
    if (bus !== undefined) {
      const prompt = () => this.#release(uuid, alias, Math.min(deadline, performance.now() + promptReleaseMs), context)
      const gone = (await this.#inSlots(bus, uuid, prompt)) || (await this.#release(uuid, alias, deadline, context))
      if (!gone) throw pending()
    }
    await this.#removalEnds(uuid, alias, deadline).catch((error: unknown) => {
      throw hasCode(error, 'TIMEOUT') ? pending(error) : error
    })
  }

  /**
   * One after the other for disks with a PCI slot of their own. A guest's ACPI hears of all pending removals whenever
   * any slot changes (QEMU, docs/specs/acpi_pci_hotplug) and may eject a slot twice: the second time that takes out the
   * disk that was just attached there.
   */
  #inSlots<T>(bus: string, uuid: string, task: () => Promise<T>): Promise<T> {
    return bus === 'virtio' ? this.#queue.run(`slots ${uuid}`, task) : task()
  }

  /** Asks, waits and asks again; false where the disk is still there at the deadline. */
  async #release(uuid: string, alias: string, deadline: number, context: Omit<ErrorContext, 'secrets'>) {
    const key = `${uuid} ${alias}`
    for (;;) {
      // The bell is listened to before the request, since the guest may be faster than libvirt's answer to us.
      const rings = this.#listen(uuid)
      try {
        const askedAt = this.#leaving.get(key)
        if (askedAt === undefined || performance.now() >= askedAt + askAgainMs) {
          await this.#queue.run(uuid, () => this.#askRelease(uuid, alias, affectLive, context))
          this.#leaving.set(key, performance.now())
        }
        const until = Math.min(deadline, (this.#leaving.get(key) ?? performance.now()) + askAgainMs)
        do {
          if (await this.#hasLeft(uuid, alias)) {
            this.#leaving.delete(key)
            return true
          }
        } while (await rings.next(until - performance.now()))
      } finally {
        rings.stop()
      }
      if (performance.now() >= deadline) return false
    }
  }

  async #hasLeft(uuid: string, alias: string): Promise<boolean> {
    try {
      return !(await this.#disksOrNone(uuid)).some(disk => disk.alias === alias && disk.live)
    } catch (error) {
      // The guest has been asked: a connection that is lost meanwhile rings when it is back.
      if (hasCode(error, 'COMPUTE_UNAVAILABLE') && this.#state === 'open') return false
      throw error
    }
  }

  /**
   * libvirt takes a disk out of its XML first and out of QEMU then, under the domain's job (qemu_hotplug.c,
   * qemuDomainRemoveDiskDevice). QEMU logs out in its main loop meanwhile: a target that went away now would freeze the
   * guest for as long as QEMU looks for it. Block statistics need the same job, so their answer, whatever it is, comes when
   * the removal has ended. @throws TIMEOUT, COMPUTE_UNAVAILABLE
   */
  async #removalEnds(uuid: string, alias: string, deadline: number): Promise<void> {
    const context = {op: 'compute.detach', action: `see the end of the removal of ${alias}`, info: {domain: uuid}}
    const timeoutMs = Math.max(leastRemovalMs, deadline - performance.now())
    try {
      await this.#call(context, timeoutMs, connection => connection.blockStats(uuid, alias))
    } catch (error) {
      if (hasCode(error, 'TIMEOUT', 'COMPUTE_UNAVAILABLE')) throw error
    }
  }

  async resize(domain: string, id: VolumeId, sizeBytes: number): Promise<void> {
    if (!Number.isSafeInteger(sizeBytes) || sizeBytes <= 0 || sizeBytes % 512 !== 0) {
      throw new StorageError(
        'SIZE_INVALID',
        `${sizeBytes} bytes is no size for a disk: it must be a positive multiple of 512`,
      )
    }
    const {uuid, target} = await this.#liveDisk(domain, id)
    const context = {
      op: 'compute.resize',
      action: `resize disk ${id} of domain ${domain}`,
      info: {domain, id, sizeBytes},
    }
    await this.#queue.run(uuid, () =>
      this.#call(context, this.#changeTimeoutMs, connection => connection.blockResize(uuid, target, sizeBytes)),
    )
  }

  async counters(domain: string, id: VolumeId): Promise<DiskCounters> {
    const {uuid, target} = await this.#liveDisk(domain, id)
    const action = `read the counters of disk ${id} of domain ${domain}`
    const stats = await this.#query(action, {domain, id}, connection => connection.blockStats(uuid, target))
    // QEMU has no count of errors for all its disks; libvirt says -1 then.
    return {...stats, errors: Math.max(0, stats.errors)}
  }

  on(event: 'connected' | 'lost' | 'removed' | 'domain', listener: (facts: Record<string, unknown>) => void): void {
    this.#events.on(event, listener)
  }

  // --- attaching and detaching, step by step

  /** Gives the domain a virtio-scsi controller where it lacks it. It stays when its disks have gone. */
  async #addController(
    uuid: string,
    {index, missing}: {index: number; missing: Place[]},
    context: Omit<ErrorContext, 'secrets'>,
  ): Promise<void> {
    if (missing.length === 0) return
    const xml = buildScsiController(index)
    const action = `${context.action}: it needs a virtio-scsi controller first`
    await this.#call({...context, action}, this.#changeTimeoutMs, connection =>
      connection.attachDevice(uuid, xml, flagsOf(missing)),
    ).catch(async error => {
      // Somebody else may have added it in between.
      const {devices} = await this.#inspect(uuid)
      if (chooseScsiController(devices, missing).missing.length > 0) throw error
    })
  }

  async #attachDevice(
    uuid: string,
    {plan, places, devices}: {plan: DiskPlan; places: Place[]; devices: Definition['devices']},
    context: Omit<ErrorContext, 'secrets'>,
  ): Promise<void> {
    const addresses = otherAddresses(plan, devices)
    let current = plan
    let leftovers = 0
    for (;;) {
      try {
        const xml = buildDiskXml(current)
        await this.#call(context, this.#changeTimeoutMs, connection =>
          connection.attachDevice(uuid, xml, flagsOf(places)),
        )
        return
      } catch (error) {
        const cause = (error as Error).cause
        if (!isLibvirtError(cause)) throw error
        const next = isAddressTaken(cause) ? addresses.next() : undefined
        if (next && !next.done) current = {...current, ...next.value}
        else if (isWithoutDirectIo(cause) && current.cache === 'none') current = {...current, cache: 'writethrough'}
        else if (!isLeftoverNode(cause) || leftovers++ >= leftoverRetries) throw error
      }
    }
  }

  /** Asks for the removal; what is gone already, and a guest that is still thinking, are as good as asked. */
  async #askRelease(uuid: string, alias: string, flags: number, context: Omit<ErrorContext, 'secrets'>): Promise<void> {
    try {
      await this.#call(context, this.#changeTimeoutMs, connection => connection.detachAlias(uuid, alias, flags))
    } catch (error) {
      const cause = (error as Error).cause
      if (!isLibvirtError(cause)) throw error
      if (!isDomainGone(cause) && !isDeviceMissing(cause) && !isUnplugPending(cause)) throw error
    }
  }

  async #forgetSecretOf(disks: Disk[], alias: string, persistent: boolean): Promise<void> {
    const disk = disks.find(it => it.alias === alias)
    const stays = disks.some(it => it.alias === alias && it.persistent && !persistent)
    if (disk?.source.type !== 'iscsi' || stays) return
    const {iqn} = disk.source
    const known = this.#secrets.delete(iqn)
    if (!known) return
    // QEMU has had its own copy since the attach.
    await this.#query(`take back the CHAP secret for ${iqn}`, {iqn}, async connection => {
      const uuid = await connection.findSecret(secretUsage(iqn))
      if (uuid !== null) await connection.undefineSecret(uuid)
    })
  }

  #definitionsOf(domain: string): Promise<[string, string | null]> {
    return this.#query(`read domain ${domain}`, {domain}, connection =>
      Promise.all([connection.xml(domain), connection.inactiveXml(domain)]),
    )
  }

  async #inspect(domain: string): Promise<Definition> {
    checkDomainName(domain)
    // Both at once, and one is parsed while libvirt writes the other.
    const [inForce, forNextStart] = await this.#query(`read domain ${domain}`, {domain}, connection =>
      Promise.all([
        connection.xml(domain).then(parseDomain),
        connection.inactiveXml(domain).then(xml => (xml === null ? null : parseDomain(xml))),
      ]),
    )
    return describeDomain(inForce, forNextStart)
  }

  async #disksOrNone(uuid: string): Promise<Disk[]> {
    try {
      return await this.disks(uuid)
    } catch (error) {
      if (hasCode(error, 'DOMAIN_NOT_FOUND')) return []
      throw error
    }
  }

  async #liveDisk(domain: string, id: VolumeId): Promise<{uuid: string; target: string}> {
    checkId(id)
    const found = await this.#inspect(domain)
    const disk = found.disks.find(it => it.alias === aliasOf(id) && it.live)
    if (!disk) {
      throw new StorageError('ATTACHMENT_NOT_FOUND', `Disk ${id} is not attached to the running domain ${domain}`, {
        info: {domain, id},
      })
    }
    return {uuid: found.domain.uuid, target: disk.target}
  }

  // --- calls

  #query<T>(action: string, info: Record<string, unknown>, call: (connection: LibvirtConnection) => Promise<T>) {
    return this.#call({op: 'compute.query', action, info}, this.#queryTimeoutMs, call)
  }

  async #call<T>(
    context: Omit<ErrorContext, 'secrets'>,
    timeoutMs: number,
    call: (connection: LibvirtConnection) => Promise<T>,
  ): Promise<T> {
    // Without a pause where there is a connection: close() waits for the calls that came before it.
    const connection = this.#connection ?? (await this.#connected())
    const waiting = new AbortController()
    let result: T | typeof late
    try {
      result = await within(call(whileWanted(connection, waiting.signal)), timeoutMs)
    } catch (error) {
      if (isLibvirtError(error) && isConnectionLoss(error)) this.#lost(connection, {message: error.message})
      const secrets = [...this.#secrets.values()].map(({secret}) => secret)
      throw toStorageError(error, {...context, secrets})
    }
    if (result === late) {
      waiting.abort()
      const {op, action, info} = context
      throw new StorageError('TIMEOUT', `Cannot ${action}: libvirt has not answered within ${timeoutMs} ms`, {op, info})
    }
    return result
  }

  // --- the connection

  /** The connection, waited for a while where it is being made (again). @throws COMPUTE_UNAVAILABLE */
  async #connected(): Promise<LibvirtConnection> {
    if (!this.#connection && this.#state === 'open') {
      if (this.#wasConnected) {
        const rings = this.#listen(connectionBell)
        await rings.next(this.#connectWaitMs)
        rings.stop()
      } else {
        await within(this.#connecting ?? Promise.resolve(), this.#queryTimeoutMs)
      }
    }
    if (this.#connection) return this.#connection
    const failure = this.#lastFailure instanceof Error ? this.#lastFailure.message : 'no answer yet'
    const reason = this.#state === 'open' ? failure : this.#state === 'new' ? 'not open yet' : 'closed'
    if (hasCode(this.#lastFailure, 'DEPENDENCY_MISSING')) throw this.#lastFailure
    throw new StorageError('COMPUTE_UNAVAILABLE', `No connection to libvirt at ${this.#uri}: ${reason}`, {
      op: 'compute.connect',
      info: {uri: this.#uri},
      cause: this.#lastFailure,
    })
  }

  /** Starts an attempt unless one is under way or waits for its turn. Never rejects. */
  #connect(): void {
    if (this.#connection || this.#connecting || this.#retry || this.#state !== 'open') return
    this.#connecting = this.#tryConnect().finally(() => {
      this.#connecting = undefined
      if (!this.#connection) this.#connectLater()
    })
  }

  async #tryConnect(): Promise<void> {
    let connection: LibvirtConnection | undefined
    try {
      const made = newConnection(event => this.#hear(made, event))
      connection = made
      this.#attempt = made
      await connection.open(this.#uri)
      for (const [iqn, credentials] of this.#secrets) await giveSecret(connection, iqn, credentials)
      const domains = (await connection.domains()).map(describe)
      if (this.#state !== 'open') {
        dispose(connection)
        return
      }
      this.#connection = connection
      this.#wasConnected = true
      this.#pauseMs = reconnectMs.first
      this.#lastFailure = undefined
      this.#compare(domains)
      this.#events.emit('connected', {uri: this.#uri, domains: domains.length})
      // What was waited for may have happened while nobody listened.
      this.#ringAll()
    } catch (error) {
      this.#lastFailure = error
      if (connection) dispose(connection)
    } finally {
      this.#attempt = undefined
    }
  }

  #connectLater(): void {
    if (this.#retry || this.#state !== 'open') return
    this.#retry = setTimeout(() => {
      this.#retry = undefined
      this.#connect()
    }, this.#pauseMs).unref()
    this.#pauseMs = Math.min(this.#pauseMs * 2, reconnectMs.longest)
  }

  #lost(connection: LibvirtConnection, facts: Record<string, unknown>): void {
    if (this.#connection !== connection) return
    this.#connection = undefined
    this.#lastFailure = new Error('the connection was lost')
    dispose(connection)
    this.#events.emit('lost', {uri: this.#uri, ...facts})
    this.#connectLater()
  }

  #ringAll(): void {
    for (const bell of this.#bell.eventNames()) this.#bell.emit(bell)
  }

  #hear(connection: LibvirtConnection, event: LibvirtEvent): void {
    if (event.kind === 'closed') {
      this.#lost(connection, {reason: event.reason})
      return
    }
    const {domain, uuid} = event
    if (event.kind === 'deviceRemoved') {
      this.#leaving.delete(`${uuid} ${event.alias}`)
      const id = idOfAlias(event.alias) ?? null
      this.#events.emit('removed', {domain, uuid, alias: event.alias, id})
    }
    if (event.kind === 'lifecycle') this.#noteLifecycle(uuid, domain, event)
    this.#bell.emit(uuid)
  }

  #noteLifecycle(uuid: string, domain: string, {event, detail}: {event: number; detail: number}): void {
    this.#events.emit('domain', {domain, uuid, event: lifecycle[event] ?? String(event), detail})
    const known = this.#known.get(uuid)
    const state = stateAfter[event]
    // A rename is told as the end of the old name and the definition of the new one.
    if (lifecycle[event] !== 'undefined') this.#names.set(uuid, domain)
    else if (this.#names.get(uuid) === domain) this.#names.delete(uuid)
    if (known && state) this.#known.set(uuid, {...known, state})
    if (state === 'shutoff') this.#forgetLeaving(uuid)
    if (state === 'running') this.#deferAsking(uuid)
  }

  /** A guest that runs again has a request to answer. */
  #deferAsking(uuid: string): void {
    for (const key of this.#leaving.keys()) if (key.startsWith(`${uuid} `)) this.#leaving.set(key, performance.now())
  }

  /** Tells what happened to domains while the connection was lost: events of that time are not all delivered. */
  #compare(domains: Domain[]): void {
    const now = new Map(domains.map(domain => [domain.uuid, domain]))
    for (const {uuid, name, state} of this.#known.values()) {
      const after = now.get(uuid)
      if (after?.state === state) continue
      const event = after ? after.state : 'gone'
      this.#events.emit('domain', {domain: name, uuid, event, detail: null})
      if (!after || after.id === null) this.#forgetLeaving(uuid)
      else if (after.state === 'running') this.#deferAsking(uuid)
    }
    this.#known.clear()
    for (const domain of domains) this.#known.set(domain.uuid, domain)
    this.#learnNames(domains)
  }

  #forgetLeaving(uuid: string): void {
    for (const key of this.#leaving.keys()) if (key.startsWith(`${uuid} `)) this.#leaving.delete(key)
  }

  /** Counts the bell's rings for a domain from now on; next() takes one, or gives false after `timeoutMs`. */
  #listen(uuid: string): {next(timeoutMs: number): Promise<boolean>; stop(): void} {
    let rung = 0
    let wake: (() => void) | undefined
    const onRing = () => {
      rung++
      wake?.()
    }
    this.#bell.on(uuid, onRing)
    return {
      next: async timeoutMs => {
        if (rung === 0 && timeoutMs > 0) {
          await new Promise<void>(resolve => {
            const timer = setTimeout(resolve, timeoutMs)
            wake = () => {
              clearTimeout(timer)
              resolve()
            }
          })
        }
        const any = rung > 0
        rung = 0
        return any
      },
      stop: () => this.#bell.off(uuid, onRing),
    }
  }
}

const op = 'compute.attach'

const flagOf: Record<Place, number> = {live: affectLive, persistent: affectConfig}

function flagsOf(places: Place[]): number {
  return places.reduce((sum, place) => sum | flagOf[place], 0)
}

// virDomainEventType (libvirt-domain.h)
const lifecycle = [
  'defined',
  'undefined',
  'started',
  'suspended',
  'resumed',
  'stopped',
  'shutdown',
  'pmsuspended',
  'crashed',
]
const stateAfter: (DomainState | undefined)[] = [
  undefined,
  undefined,
  'running',
  'paused',
  'running',
  'shutoff',
  'shutdown',
  'pmsuspended',
  'crashed',
]

function describeTexts(inForce: string, forNextStart: string | null): Definition {
  return describeDomain(parseDomain(inForce), forNextStart === null ? null : parseDomain(forNextStart))
}

function describe({name, uuid, id, state, persistent}: NativeDomain): Domain {
  return {name, uuid, id, state: states[state] ?? 'nostate', persistent}
}

/** Where the disk is to be. @throws DOMAIN_INACTIVE, CONFLICT */
function placesFor({live, persistent = false}: AttachSpec, domain: Definition['domain']): Place[] {
  const active = domain.id !== null
  const {name} = domain
  const info = {domain: name}
  if (live ? !active : !active && !persistent) {
    throw new StorageError('DOMAIN_INACTIVE', `Domain ${name} is shut off: start it, or attach persistently`, {
      op,
      info,
    })
  }
  if (persistent && !domain.persistent) {
    throw new StorageError('CONFLICT', `Domain ${name} is transient: it has no definition to keep a disk in`, {
      op,
      info,
    })
  }
  const places: Place[] = []
  if (live ?? active) places.push('live')
  if (persistent) places.push('persistent')
  if (places.length === 0) {
    throw new StorageError('INVALID_ARGUMENT', 'Neither live nor persistent: nothing to attach to', {op, info})
  }
  return places
}

/** libvirt attaches one LUN twice without a word, and two file systems' worth of damage follows. */
function refuseOtherUses({id, source, shared}: AttachSpec, domain: string, {disks}: Definition): void {
  const alias = aliasOf(id)
  for (const disk of disks) {
    if (disk.alias === alias && !sameSource(disk.source, source)) {
      throw new StorageError('ATTACHMENT_EXISTS', `Disk ${id} of domain ${domain} has another source already`, {
        op,
        info: {domain, id, target: disk.target},
      })
    }
    if (!shared && disk.alias !== alias && sameSource(disk.source, source)) {
      throw new StorageError('ATTACHMENT_EXISTS', `The same source is attached to domain ${domain} as ${disk.target}`, {
        op,
        info: {domain, id, target: disk.target, alias: disk.alias},
      })
    }
  }
}

/** @throws DISK_TARGET_IN_USE */
function planDisk(
  spec: AttachSpec,
  domain: string,
  {disks, devices}: Definition,
  given: {target: string | undefined; controller: number | undefined},
): DiskPlan {
  const alias = aliasOf(spec.id)
  const taken = new Set(disks.filter(disk => disk.alias !== alias).map(disk => disk.target))
  const target = spec.target ?? given.target ?? freeTarget(spec.bus, taken)
  if (taken.has(target)) {
    throw new StorageError('DISK_TARGET_IN_USE', `Domain ${domain} has a disk ${target} already`, {
      op,
      info: {domain, id: spec.id, target},
    })
  }
  const {controller} = given
  return {
    id: spec.id,
    source: spec.source,
    bus: spec.bus,
    target,
    address: controller === undefined ? undefined : {controller, unit: freeUnit(takenUnits(devices, controller))},
    readOnly: spec.readOnly ?? false,
    shared: spec.shared ?? false,
    cache: 'none',
  }
}

/** Where else a disk can go if QEMU has something at its address that libvirt does not know. */
function* otherAddresses({address}: DiskPlan, devices: Definition['devices']): Generator<Partial<DiskPlan>> {
  const free = freePciAddresses(devices)
  const taken = address ? takenUnits(devices, address.controller) : new Set<number>()
  for (let retry = 0, unit = address?.unit ?? 0; retry < addressRetries; retry++) {
    if (address) {
      unit = freeUnit(taken.add(unit))
      yield {address: {...address, unit}}
    } else {
      const pciAddress = free[retry]
      if (!pciAddress) return
      yield {pciAddress}
    }
  }
}

function withoutSecret(source: AttachSpec['source']): Disk['source'] {
  if (source.type !== 'iscsi') return source
  const {auth: _, ...rest} = source
  return rest
}

function checkSpec({domain, id, source, bus, target}: AttachSpec): void {
  checkDomainName(domain)
  checkId(id)
  if (bus !== 'virtio' && bus !== 'scsi') {
    throw new StorageError('INVALID_ARGUMENT', `Unknown bus ${JSON.stringify(bus)}: expected virtio or scsi`, {op})
  }
  checkSource(source)
  if (target !== undefined) checkTarget(target, bus)
}

function checkId(id: string): void {
  if (!/^[0-9a-f]{16}$/.test(id)) {
    throw new StorageError(
      'INVALID_ARGUMENT',
      `${JSON.stringify(id.slice(0, 80))} is no volume id: 16 lowercase hex digits`,
    )
  }
}

function checkDomainName(name: string): void {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  if (name === '' || name.length > 255 || /[\u0000-\u001f\u007f/]/.test(name)) {
    throw new StorageError('NAME_INVALID', `${JSON.stringify(name.slice(0, 80))} is no name of a domain`, {
      info: {domain: name.slice(0, 256)},
    })
  }
}

/** Defines the secret, or gives the one that is there its value. Two drivers may do so at once. */
async function giveSecret(connection: LibvirtConnection, iqn: string, {secret}: ChapCredentials): Promise<void> {
  const uuid =
    (await connection.findSecret(secretUsage(iqn))) ??
    (await connection.defineSecret(buildSecretXml(iqn)).catch(async error => {
      const other = await connection.findSecret(secretUsage(iqn))
      if (other === null) throw error
      return other
    }))
  const bytes = Buffer.from(secret)
  try {
    await connection.setSecret(uuid, bytes)
  } finally {
    bytes.fill(0)
  }
}

const late = Symbol('late')

/** What `promise` settles to, or `late`: what has begun goes on, and its outcome is dropped. */
async function within<T>(promise: Promise<T>, timeoutMs: number): Promise<T | typeof late> {
  let timer: NodeJS.Timeout | undefined
  promise.catch(() => {})
  try {
    return await Promise.race([
      promise,
      new Promise<typeof late>(resolve => {
        timer = setTimeout(resolve, timeoutMs, late)
      }),
    ])
  } finally {
    clearTimeout(timer)
  }
}

/** For a connection that is lost or of no use: it closes in its own time, which may be never where the peer hangs. */
function dispose(connection: LibvirtConnection): void {
  connection.close().catch(() => {})
  connection.abandon()
}
