import {EventEmitter} from 'node:events'
import {realpath} from 'node:fs/promises'
import {setTimeout as sleep} from 'node:timers/promises'
import {familyOf, samePortal} from '../address.js'
import {checkChap} from '../chap.js'
import {hasCode, ignoreErrno, StorageError} from '../errors.js'
import {run} from '../exec.js'
import {checkForeignName, formatPortal} from '../iqn.js'
import {KeyedQueue} from '../lock.js'
import type {Device, KernelSession, Portal} from '../types.js'
import {differences, type Identity, mismatch, readIdentity, scsiIdOf, stablePathOf} from './block-identity.js'
import {diskUse, holdersOf, sessionUse} from './disk-use.js'
import type {ConnectSpec, HostInitiator, ObservedSession} from './driver.js'
import {IscsiSysfs, type SessionDisk} from './iscsi-sysfs.js'
import {
  databaseError,
  hostInitiatorName,
  iscsiadm,
  iscsiadmVersion,
  iscsidListens,
  multipathdListens,
  nothingFound,
  reconnecting,
  sessionExists,
} from './iscsiadm.js'
import {type ConnectionCounters, type DeviceCall, KernelIo} from './kernel-io.js'
import {LibiscsiInitiator} from './libiscsi.js'
import {type LoginTries, type NodeRecord, NodeRecords, type RecordOwner, type RecordSnapshot} from './node-record.js'
import {foreignRecord, foreignSessions, inUse, lostInUse, sessionGone} from './refusals.js'

export interface OpenIscsiOptions {
  /** open-iscsi's data base; default: where the installation has it. */
  nodesDirectory?: string
  /** Names the daemon, beside others on this host: sessions that it has made to attach are told from theirs by it. */
  user?: string
  /**
   * The name that lunpath logs in with. Unless it is the host's own too, a session with that name and without a node record is
   * lunpath's: iscsid may end a login only when lunpath has given up and taken its record back.
   */
  initiatorName?: string
  /** Milliseconds for a scan, a rescan, a flush or the removal of a disk; default 10,000. */
  deviceTimeoutMs?: number
  /** Milliseconds for one attempt to log out; default 10,000. */
  logoutTimeoutMs?: number
  /** Milliseconds that multipathd gets to join several paths; default 5,000. */
  multipathWaitMs?: number
}

interface Events {
  /** A disk was taken away that took no flush. */
  unflushed: [facts: {iqn: string; devices: KernelSession['devices']}]
}

const loginTimeoutMs = 15_000
/** iscsid ends a login by itself; iscsiadm, which waits for it, gets this much longer. */
const iscsidGraceMs = 3_000
/** open-iscsi's own, node.conn[0].timeo.login_timeout of iscsid.conf. */
const longestTrySeconds = 15
const diagnoseMs = 2_000
const recordsPauseMs = 50
const logoutAttempts = 3
const logoutPauseMs = 500
const diskPollMs = 2
/** udev takes some 0.2 s, and many times that on a busy machine. */
const stablePathMs = 30_000
/** iscsid brings a lost connection back in this time where it can. */
const recoveryMs = 10_000
/** udev has looked into a device by then. */
const probedMs = 3_000

/** What a disk is looked for by, in one target. */
interface Wanted {
  iqn: string
  lun: number
  portals: Portal[]
  expected: Partial<Identity>
  /** Sessions that the call has found: what the kernel remembers of their disks may be old, and their disks stay. */
  before: KernelSession[]
}

/**
 * The kernel's initiator by open-iscsi: a node record written as a file, one spawn of iscsiadm for the login, and sysfs for
 * all the rest. No discovery, no udev, no listing by a tool.
 */
export class OpenIscsiInitiator extends EventEmitter<Events> implements HostInitiator {
  readonly name = 'open-iscsi'
  readonly #sysfs = new IscsiSysfs()
  readonly #io = new KernelIo()
  readonly #records: NodeRecords
  readonly #initiatorName: string | undefined
  readonly #deviceTimeoutMs: number
  readonly #logoutTimeoutMs: number
  readonly #multipathWaitMs: number
  /** One at a time for a target: two logins at once to one portal would make two sessions, or none (open-iscsi races). */
  readonly #queue = new KeyedQueue()
  readonly #stuck = new Map<string, string>()
  #manualScan: Promise<boolean> | undefined

  constructor(options: OpenIscsiOptions = {}) {
    super()
    this.#records = new NodeRecords({directory: options.nodesDirectory, user: options.user})
    this.#initiatorName = options.initiatorName
    this.#deviceTimeoutMs = options.deviceTimeoutMs ?? 10_000
    this.#logoutTimeoutMs = options.logoutTimeoutMs ?? 10_000
    this.#multipathWaitMs = options.multipathWaitMs ?? 5_000
  }

  async open(): Promise<void> {
    await this.#scansByHand()
  }

  async close(): Promise<void> {
    this.#io.close()
  }

  /** Asked once: `node.session.scan` came with 2.0.874, and 2.1.10 hangs with it (open-iscsi issue 484). */
  #scansByHand(): Promise<boolean> {
    this.#manualScan ??= iscsiadmVersion().then(version => version !== undefined && canScanByHand(version))
    return this.#manualScan
  }

  async connect(spec: ConnectSpec): Promise<Device> {
    checkConnect(spec)
    return this.#queue.run(spec.iqn, async () => {
      const {iqn, lun, portals, expected = {}} = spec
      const before = await this.#sysfs.sessionsOf(iqn)
      if (!spec.force) await this.#refuseForeign(spec, before)
      const records = await this.#records.snapshot(iqn)
      try {
        const kept = await this.#dropLost(spec, before)
        const missing = portals.filter(portal => !kept.some(session => samePortal(session.portal, portal)))
        if (missing.length > 0) await this.#login(spec, missing)
        return await this.#find({iqn, lun, portals, expected, before})
      } catch (error) {
        await this.#takeBack(iqn, before, records)
        throw error
      }
    })
  }

  /**
   * A login needs a record of its own, and a lost session of another tool's would have to go first: neither is lunpath's to
   * take. A session that is up serves, whoever has made it. @throws NODE_FOREIGN
   */
  async #refuseForeign(spec: ConnectSpec, before: KernelSession[]): Promise<void> {
    const {iqn, portals} = spec
    const records = await this.#records.of(iqn)
    for (const portal of portals) {
      const at = (one: {portal: Portal}) => samePortal(one.portal, portal)
      const session = before.find(at)
      if (session && isLoggedIn(session)) continue
      if (session && !(await this.#isOwn(session, records.filter(at))))
        throw foreignSessions(iqn, [session], spec.owner === 'hand' ? 'connect' : 'attach')
      const record = records.find(one => at(one) && one.owner === null)
      if (record) throw foreignRecord(record, spec)
    }
  }

  /** Whether lunpath has made a session, by the node records of its target and portal. */
  async #isOwn({initiator}: KernelSession, records: NodeRecord[]): Promise<boolean> {
    if (records.length > 0) return records.some(({owner}) => owner !== null)
    return initiator === this.#initiatorName && initiator !== (await hostInitiatorName())
  }

  /**
   * Logs out the sessions whose connection is lost, so that new ones can take their place, and gives the others. A disk that
   * is in use would be lost with its session, which iscsid may still bring back: that session stays, except where this
   * daemon has made it for an attachment and is to make it anew. @throws DEVICE_IN_USE where no portal is left
   */
  async #dropLost({iqn, portals, owner = 'attach'}: ConnectSpec, before: KernelSession[]): Promise<KernelSession[]> {
    const lost = before.filter(session => !isLoggedIn(session))
    if (lost.length === 0) return before
    const records = await this.#records.of(iqn)
    const at = (session: KernelSession) => (one: {portal: Portal}) => samePortal(one.portal, session.portal)
    const dropped: KernelSession[] = []
    let refusal: StorageError | undefined
    for (const session of lost) {
      const isOurs = owner === 'attach' && records.find(at(session))?.owner === 'attach'
      if (!isOurs && !portals.some(portal => at(session)({portal}))) continue
      const use = isOurs ? undefined : await sessionUse(this.#sysfs, session)
      if (use) refusal = lostInUse(session, use)
      else dropped.push(session)
    }
    const kept = before.filter(session => !dropped.includes(session))
    const isUsable = (portal: Portal) => kept.every(session => isLoggedIn(session) || !at(session)({portal}))
    if (refusal && !portals.some(isUsable)) throw refusal
    await this.#logout(iqn, dropped)
    return kept
  }

  /** Writes the records and logs in: one process for all portals. @throws where not one session is there afterwards */
  async #login(spec: ConnectSpec, missing: ConnectSpec['portals']): Promise<void> {
    const {iqn, initiatorName, auth, owner = 'attach', timeoutMs = loginTimeoutMs} = spec
    const manualScan = await this.#scansByHand()
    await this.#requireIscsid(iqn)
    const login = loginTries(timeoutMs)
    for (const {tpgt = 1, ...portal} of missing) {
      await this.#records.write({iqn, portal, tpgt, initiatorName, auth, login, manualScan, owner})
    }
    // Without a portal iscsiadm logs in at all of the target's: those of a stranger's record too.
    const strangers = (await this.#records.of(iqn)).some(({portal}) => !spec.portals.some(p => samePortal(p, portal)))
    const rounds = missing.length > 1 && !strangers ? [[]] : missing.map(portal => ['-p', portalArgument(portal)])
    const options = {
      op: 'initiator.connect',
      timeoutMs: login.tries * login.trySeconds * 1000 + iscsidGraceMs,
      info: {iqn, portals: missing.map(formatPortal)},
      accept: [sessionExists],
    }
    const lastStart = Date.now() + timeoutMs
    for (;;) {
      let failure: unknown
      for (const portal of rounds) {
        await iscsiadm(['-m', 'node', '-T', iqn, ...portal, '--login'], options).catch(error => {
          failure = error
        })
      }
      if (!failure || (await this.#sysfs.sessionsOf(iqn)).some(isLoggedIn)) return
      // It reads all records to find one, and tells of any that vanished meanwhile in place of how the login went.
      if (statusOf(failure) !== databaseError || Date.now() + recordsPauseMs > lastStart)
        throw await diagnosed(failure, spec)
      await sleep(recordsPauseMs)
    }
  }

  /** Ends what a failed connect has made. Sessions and records that were there before stay as they were. */
  async #takeBack(iqn: string, before: KernelSession[], records: RecordSnapshot): Promise<void> {
    const made = async () =>
      (await this.#sysfs.sessionsOf(iqn)).filter(({sid}) => !before.some(session => session.sid === sid))
    const unused: KernelSession[] = []
    for (const session of await made()) if (!(await sessionUse(this.#sysfs, session))) unused.push(session)
    await this.#logout(iqn, unused).catch(() => undefined)
    const left = await made()
    await this.#records
      .restore(
        iqn,
        records,
        left.map(({portal}) => portal),
      )
      .catch(() => undefined)
  }

  async #requireIscsid(iqn: string): Promise<void> {
    if (await iscsidListens()) return
    const installed = (await iscsiadmVersion()) !== undefined
    throw installed
      ? new StorageError(
          'INITIATOR_UNAVAILABLE',
          'iscsid does not run, and nobody else logs in or out: systemctl start iscsid.socket',
          {op: 'initiator.iscsid', info: {iqn}},
        )
      : new StorageError('DEPENDENCY_MISSING', 'open-iscsi is not installed: apt-get install open-iscsi', {
          op: 'initiator.iscsid',
          info: {iqn},
        })
  }

  /** The disk in each session with the target, proven, and what stands for all of them. */
  async #find(wanted: Wanted): Promise<Device> {
    const {iqn, lun, portals, expected} = wanted
    const all = (await this.#sysfs.sessionsOf(iqn)).filter(session => isAtOne(portals, session))
    const sessions = all.filter(isLoggedIn)
    if (sessions.length === 0) {
      const states = all.map(({state}) => state)
      const what = states.length === 0 ? 'There is no session' : `The connection is lost (${states}) of the session`
      throw new StorageError('INITIATOR_FAILED', `${what} with ${iqn}`, {
        op: 'initiator.find',
        info: {iqn, portals: portals.map(formatPortal), states},
      })
    }
    const found = await Promise.all(sessions.map(session => this.#provenDisk(session, wanted)))
    const [{identity}] = found as [(typeof found)[0]]
    // The volume's own identity is known; without one the paths must at least agree with each other.
    const odd = found.find(one => differences(one.identity, {...identity, ...expected}).length > 0)
    if (odd) {
      throw mismatch(`/dev/${odd.disk.device}`, {
        found: odd.identity,
        expected: {...identity, ...expected},
        info: {iqn, lun},
      })
    }
    const paths = found.map(({session, disk}) => ({device: disk.device, sid: session.sid, portal: session.portal}))
    const joined = await this.#joined(paths.map(({device}) => device))
    if (joined !== undefined) await this.#checkJoined(joined, identity, wanted)
    return {
      iqn,
      lun,
      path: `/dev/${joined ?? paths[0]!.device}`,
      stablePath: stablePathOf(identity.wwid, joined !== undefined),
      ...identity,
      paths,
      missingPortals: portals
        .filter(portal => !sessions.some(session => samePortal(portal, session.portal)))
        .map(({address, port}) => ({address, port})),
      multipath: joined !== undefined ? 'dm' : paths.length > 1 ? 'first-path' : 'single',
    }
  }

  /**
   * The disk at the LUN of one session. One that this very call has brought and that is not the volume is removed and looked
   * for once more. One that was there before stays: somebody may use it as what it is.
   */
  async #provenDisk(
    session: KernelSession,
    {lun, expected, before}: Wanted,
  ): Promise<{session: KernelSession; disk: SessionDisk; identity: Identity}> {
    const {iqn, sid} = session
    for (let attempt = 0; ; attempt++) {
      const {disk, isNew} = await this.#disk(session, lun)
      const wasThere = !isNew && before.some(one => one.sid === sid)
      if (wasThere) await this.#refresh(iqn, disk)
      const identity = await readIdentity(this.#sysfs, disk.device)
      if (identity && differences(identity, expected).length === 0) return {session, disk, identity}
      const isRemoved = !wasThere && (await this.#removeUnused(iqn, disk))
      if (isRemoved && attempt === 0) continue
      const info = {iqn, lun, device: disk.device, portal: formatPortal(session.portal)}
      const found = identity ?? {wwid: '', serial: '', sizeBytes: 0}
      throw mismatch(`LUN ${lun} of ${iqn} (/dev/${disk.device})`, {found, expected, info})
    }
  }

  /** Removes a disk that nobody uses; false where somebody does. */
  async #removeUnused(iqn: string, disk: SessionDisk): Promise<boolean> {
    try {
      await this.#removeDisks(iqn, [disk], {force: false})
      return true
    } catch (error) {
      if (hasCode(error, 'DEVICE_IN_USE')) return false
      throw error
    }
  }

  /** The disk at a LUN; the session is scanned for that LUN alone where the kernel does not have it yet. */
  async #disk(session: KernelSession, lun: number): Promise<{disk: SessionDisk; isNew: boolean}> {
    const there = async () => (await this.#sysfs.disks(session.sid)).find(disk => disk.lun === lun)
    const known = await there()
    if (known) return {disk: known, isNew: false}
    const place = await this.#sysfs.place(session.sid)
    if (!place) throw sessionGone(session)
    const {host, channel, targetId} = place
    await this.#io.writeAttribute(this.#sysfs.scanFile(host), `${channel} ${targetId} ${lun}`, this.#on(session.iqn))
    // The scan ends with the SCSI device; its driver makes the disk a little later (sd probes asynchronously).
    const deadline = performance.now() + this.#deviceTimeoutMs
    for (;;) {
      const disk = await there()
      if (disk) return {disk, isNew: true}
      const late = performance.now() >= deadline
      if (late || !(await this.#sysfs.hasUnit(session.sid, lun))) {
        throw new StorageError(
          late ? 'TIMEOUT' : 'INITIATOR_FAILED',
          late
            ? `LUN ${lun} of ${session.iqn} did not become a disk within ${this.#deviceTimeoutMs} ms`
            : `${session.iqn} has no LUN ${lun}, or shows it to others alone`,
          {op: 'initiator.scan', info: {iqn: session.iqn, lun, sid: session.sid}},
        )
      }
      await sleep(diskPollMs)
    }
  }

  #on(iqn: string): DeviceCall {
    return {iqn, timeoutMs: this.#deviceTimeoutMs}
  }

  /** Reads the VPD pages and the capacity again (drivers/scsi/scsi_scan.c, scsi_rescan_device). */
  #refresh(iqn: string, {directory}: SessionDisk): Promise<void> {
    return this.#io.writeAttribute(`${directory}/rescan`, '1', this.#on(iqn)).catch(ignoreErrno(...gone))
  }

  #remove(iqn: string, {directory}: SessionDisk): Promise<void> {
    return this.#io.writeAttribute(`${directory}/delete`, '1', this.#on(iqn)).catch(ignoreErrno(...gone))
  }

  /** The device-mapper device that multipathd has made of these paths; waited for where there is something to join. */
  async #joined(devices: string[]): Promise<string | undefined> {
    const look = async () => {
      const [joined, ...others] = await Promise.all(
        devices.map(async device => (await holdersOf(this.#sysfs, device)).joined),
      )
      return others.every(other => other === joined) ? joined : undefined
    }
    const found = await look()
    if (found !== undefined || devices.length === 1 || !(await multipathdListens())) return found
    const deadline = performance.now() + this.#multipathWaitMs
    while (performance.now() < deadline) {
      await sleep(50)
      const joined = await look()
      if (joined !== undefined) return joined
    }
    return undefined
  }

  async #checkJoined(joined: string, identity: Identity, {iqn, lun}: Wanted): Promise<void> {
    const [uuid, sizeBytes] = await Promise.all([
      this.#sysfs.blockAttribute(joined, 'dm/uuid'),
      this.#sysfs.blockSizeBytes(joined),
    ])
    const id = scsiIdOf(identity.wwid)
    const wwid = id !== undefined && uuid === `mpath-${id}` ? identity.wwid : (uuid ?? '')
    const found = {wwid, serial: identity.serial, sizeBytes}
    if (differences(found, identity).length > 0) {
      throw mismatch(`/dev/${joined}`, {found, expected: identity, info: {iqn, lun, device: joined}})
    }
  }

  async verify(device: Device, expected: Partial<Identity>): Promise<Device> {
    const {iqn, lun, paths, missingPortals} = device
    const portals = [...paths.map(({portal}) => portal), ...missingPortals]
    return this.#queue.run(iqn, async () => {
      await this.#awaitRecovery(iqn, portals)
      return this.#find({iqn, lun, portals, expected, before: await this.#sysfs.sessionsOf(iqn)})
    })
  }

  /** A connection that is lost for a moment is brought back by iscsid, within seconds where the portal answers. */
  async #awaitRecovery(iqn: string, portals: readonly Portal[]): Promise<void> {
    const until = performance.now() + recoveryMs
    while (performance.now() < until) {
      const sessions = (await this.#sysfs.sessionsOf(iqn)).filter(session => isAtOne(portals, session))
      if (sessions.some(isLoggedIn) || !sessions.some(({state}) => state === 'FAILED')) return
      await sleep(100)
    }
  }

  async rescan(device: Device, sizeBytes: number): Promise<Device> {
    const {wwid, serial} = device
    if (device.multipath === 'dm') {
      const {iqn} = device
      for (const {device: path} of device.paths) {
        const file = this.#sysfs.blockFile(path, 'device/rescan')
        await this.#io.writeAttribute(file, '1', this.#on(iqn))
      }
      const name = await this.#sysfs.blockAttribute(device.path.slice('/dev/'.length), 'dm/name')
      await run('multipathd', ['resize', 'map', name ?? ''], {timeoutMs: this.#deviceTimeoutMs}).catch(cause => {
        throw new StorageError('INITIATOR_FAILED', `multipathd did not resize ${device.path}`, {
          op: 'initiator.rescan',
          info: {iqn, device: device.path},
          cause,
        })
      })
    }
    return this.verify(device, {wwid, serial, sizeBytes})
  }

  async awaitStablePath({path, stablePath}: Device, timeoutMs = stablePathMs): Promise<string> {
    const deadline = performance.now() + timeoutMs
    for (;;) {
      if ((await realpath(stablePath).catch(() => '')) === path) return stablePath
      if (performance.now() >= deadline) {
        throw new StorageError(
          'TIMEOUT',
          `udev has not shown ${path} as ${stablePath} within ${timeoutMs} ms: does systemd-udevd run?`,
          {op: 'initiator.stable-path', info: {path, stablePath}},
        )
      }
      await sleep(20)
    }
  }

  async disconnect(
    iqn: string,
    {force = false, owner}: {force?: boolean; owner?: RecordOwner} = {},
  ): Promise<{flushed: boolean}> {
    checkForeignName(iqn)
    return this.#queue.run(iqn, async () => {
      const [all, records] = await Promise.all([this.#sysfs.sessionsOf(iqn), this.#records.of(iqn)])
      const recordsAt = ({portal}: KernelSession) => records.filter(record => samePortal(record.portal, portal))
      const isOwn = await Promise.all(all.map(session => this.#isOwn(session, recordsAt(session))))
      const isOwners = (session: KernelSession, index: number) =>
        isOwn[index]! && recordsAt(session).every(record => record.owner === owner)
      const sessions = owner === undefined ? all : all.filter(isOwners)
      const foreign = all.filter((_, index) => !isOwn[index])
      if (owner === undefined && !force && foreign.length > 0) throw foreignSessions(iqn, foreign, 'disconnect')
      const flushed = await this.#letGo(iqn, sessions, force)
      if (!flushed) this.emit('unflushed', {iqn, devices: sessions.flatMap(({devices}) => devices)})
      await this.#logout(iqn, sessions)
      for (const record of records) {
        const isMeant = owner === undefined ? record.owner !== null : record.owner === owner
        if (isMeant) await this.#records.removeFile(record)
      }
      this.#stuck.delete(iqn)
      return {flushed}
    })
  }

  /**
   * Flushes the disks and removes them. A disk without a path takes no flush: it would wait for the whole recovery, and so
   * would its removal; the logout takes it away.
   */
  async #letGo(iqn: string, sessions: KernelSession[], force: boolean): Promise<boolean> {
    const alive: SessionDisk[] = []
    let areAllAlive = true
    for (const session of sessions) {
      for (const disk of await this.#sysfs.disks(session.sid)) {
        if (isAlive(session, disk)) {
          alive.push(disk)
          continue
        }
        areAllAlive = false
        const use = force ? undefined : await diskUse(this.#sysfs, disk.device)
        if (use) throw inUse(disk.device, use.how)
      }
    }
    return (await this.#removeDisks(iqn, alive, {force})) && areAllAlive
  }

  /** Takes disks out of the kernel, each as far as it is joined with others. @throws DEVICE_IN_USE unless by force */
  async #removeDisks(iqn: string, disks: SessionDisk[], {force}: {force: boolean}): Promise<boolean> {
    const tops = new Set<string>()
    for (const {device} of disks) {
      const use = force ? undefined : await diskUse(this.#sysfs, device)
      if (use) throw inUse(device, use.how)
      tops.add((await holdersOf(this.#sysfs, device)).joined ?? device)
    }
    let flushed = true
    for (const top of tops) {
      await this.#io.flush(`/dev/${top}`, this.#on(iqn)).catch(error => {
        if ((error as NodeJS.ErrnoException).code === 'EBUSY' && !force)
          throw inUse(top, 'is mounted elsewhere or held', error)
        flushed = false
      })
      if (top.startsWith('dm-')) await this.#unjoin(top, force)
    }
    // One that hangs here is taken away by the logout, or the session is stuck: that is said there.
    for (const disk of disks) await this.#remove(iqn, disk).catch(() => undefined)
    return flushed
  }

  /**
   * multipathd's device goes before its paths do. One that was written to is opened once more when its writer closes it, by
   * udev, which looks what is on it now (udev(7), "watch"): it is busy for that long.
   */
  async #unjoin(device: string, force: boolean): Promise<void> {
    const name = await this.#sysfs.blockAttribute(device, 'dm/name')
    if (name === undefined) return
    const until = performance.now() + probedMs
    for (;;) {
      try {
        await run('multipath', ['-f', name], {timeoutMs: this.#deviceTimeoutMs})
        return
      } catch (error) {
        if (performance.now() >= until || !hasCode(error, 'COMMAND_FAILED')) {
          if (!force) throw inUse(device, 'is not given up by multipathd', error)
          return
        }
      }
      await sleep(100)
    }
  }

  /** @throws INITIATOR_FAILED, INITIATOR_UNAVAILABLE where sessions are left after some attempts: they are stuck */
  async #logout(iqn: string, sessions: KernelSession[]): Promise<void> {
    const left = async () => {
      const now = await this.#sysfs.sessionsOf(iqn)
      return now.filter(({sid}) => sessions.some(session => session.sid === sid))
    }
    let failure: unknown
    let remaining = sessions.length === 0 ? [] : await left()
    const deadline = performance.now() + this.#logoutTimeoutMs
    for (let attempts = 0; remaining.length > 0 && attempts < logoutAttempts; ) {
      if (failure) await sleep(logoutPauseMs)
      try {
        await this.#requireIscsid(iqn)
        await Promise.all(remaining.map(session => this.#logoutOne(session)))
      } catch (error) {
        failure = error
        if (hasCode(error, 'INITIATOR_UNAVAILABLE', 'DEPENDENCY_MISSING')) break
        // Not to be counted: iscsid answers at once, and is right a moment later.
        if ((error as StorageError).info.exitCode === reconnecting && performance.now() < deadline) continue
      }
      attempts++
      remaining = await left()
    }
    if (remaining.length === 0) return
    const sids = remaining.map(({sid}) => sid)
    const why = failure instanceof Error ? failure.message : 'the session stays'
    this.#stuck.set(iqn, why)
    throw new StorageError(
      hasCode(failure, 'INITIATOR_UNAVAILABLE') ? 'INITIATOR_UNAVAILABLE' : 'INITIATOR_FAILED',
      `The session with ${iqn} is stuck: it could not be logged out (${why})`,
      {op: 'initiator.disconnect', info: {iqn, sids, state: 'stuck'}, cause: failure},
    )
  }

  async #logoutOne({iqn, sid}: KernelSession): Promise<void> {
    await iscsiadm(['-m', 'session', '-r', String(sid), '--logout'], {
      op: 'initiator.disconnect',
      timeoutMs: this.#logoutTimeoutMs,
      info: {iqn, sid},
      accept: [nothingFound],
    })
  }

  async sessions(): Promise<ObservedSession[]> {
    const [sessions, records] = await Promise.all([this.#sysfs.sessions(), this.#records.list()])
    for (const iqn of this.#stuck.keys()) if (!sessions.some(session => session.iqn === iqn)) this.#stuck.delete(iqn)
    return sessions.map(session => {
      const record = records.find(({iqn, portal}) => iqn === session.iqn && samePortal(portal, session.portal))
      const owner = record === undefined ? 'unknown' : (record.owner ?? 'other')
      return {...session, owner, stuck: this.#stuck.get(session.iqn) ?? null}
    })
  }

  async counters(): Promise<(ConnectionCounters & {iqn: string; initiator: string})[]> {
    const sessions = await this.#sysfs.sessions()
    const read = await this.#io.counters(sessions.map(({sid}) => ({sid, cid: 0})))
    return read.flatMap(counters => {
      const session = sessions.find(({sid}) => sid === counters.sid)
      return session ? [{...counters, iqn: session.iqn, initiator: session.initiator}] : []
    })
  }

  nodes(): Promise<NodeRecord[]> {
    return this.#records.list()
  }

  async deleteNode(iqn: string, portal?: Portal): Promise<NodeRecord[]> {
    checkForeignName(iqn)
    return this.#queue.run(iqn, async () => {
      const meant = (one: {portal: Portal}) => portal === undefined || samePortal(one.portal, portal)
      const records = (await this.#records.of(iqn)).filter(meant)
      const at = portal ? ` at ${formatPortal(portal)}` : ''
      if (records.length === 0) {
        throw new StorageError('NOT_FOUND', `There is no node record of ${iqn}${at}`, {info: {iqn}})
      }
      if ((await this.#sysfs.sessionsOf(iqn)).some(meant)) {
        const message = `${iqn}${at} is logged in: lunpath disconnect ${iqn}`
        throw new StorageError('TARGET_IN_USE', message, {info: {iqn}})
      }
      for (const record of records) await this.#records.remove(iqn, record.portal)
      return records
    })
  }
}

function isAtOne(portals: readonly Portal[], {portal}: KernelSession): boolean {
  return portals.some(one => samePortal(one, portal))
}

function isLoggedIn({state}: KernelSession): boolean {
  return state === 'LOGGED_IN'
}

function isAlive(session: KernelSession, {device}: SessionDisk): boolean {
  return isLoggedIn(session) && session.devices.some(one => one.device === device && one.state === 'running')
}

/**
 * Few of iscsiadm's exit statuses tell why: a target that cannot prove itself looks like one that is not there, and a port
 * that refuses like one that is silent. A login in user space tells, and nobody waits for anything else by then.
 */
async function diagnosed(failure: unknown, {portals, iqn, lun, initiatorName, auth}: ConnectSpec): Promise<unknown> {
  const vague = [4, 5, databaseError, 8, 19].includes(statusOf(failure)!)
  if (!(failure instanceof StorageError && vague) || initiatorName === undefined) return failure
  for (const portal of portals) {
    try {
      const session = await new LibiscsiInitiator().connect({
        portal,
        iqn,
        lun,
        initiatorName,
        auth,
        timeoutMs: diagnoseMs,
      })
      await session.close()
    } catch (cause) {
      const {code, message} = cause as StorageError
      return new StorageError(code, message, {op: failure.op, info: {...failure.info, said: failure.message}, cause})
    }
  }
  return failure
}

/**
 * A login in several tries. LIO drops the connection that it is answering when it takes another target off the same portal
 * (drivers/target/iscsi/iscsi_target_login.c: its thread gets a signal), and iscsid 2.1.8 notices that in mid-login by its
 * timer alone: where one try had all of the time, such a login would have failed.
 */
function loginTries(timeoutMs: number): LoginTries {
  const seconds = Math.ceil(timeoutMs / 1000)
  const trySeconds = Math.min(Math.ceil(seconds / 3), longestTrySeconds)
  return {trySeconds, tries: Math.ceil(seconds / trySeconds)}
}

/** iscsiadm's exit status. */
function statusOf(failure: unknown): number | undefined {
  return failure instanceof StorageError ? (failure.info.exitCode as number | undefined) : undefined
}

/** What a write to an attribute of a device that has left fails with. */
const gone = ['ENOENT', 'ENODEV']

function portalArgument({tpgt = 1, ...portal}: Portal & {tpgt?: number}): string {
  return `${formatPortal(portal)},${tpgt}`
}

/** @throws NAME_INVALID, INVALID_ARGUMENT */
function checkConnect({iqn, lun, portals, initiatorName, auth, timeoutMs = loginTimeoutMs}: ConnectSpec): void {
  checkForeignName(iqn)
  if (initiatorName !== undefined) checkForeignName(initiatorName)
  if (auth) checkChap(auth)
  const refuse = (what: string, info: Record<string, unknown>): never => {
    throw new StorageError('INVALID_ARGUMENT', what, {op: 'initiator.connect', info})
  }
  const whole = (value: number, least: number, most: number) =>
    Number.isInteger(value) && value >= least && value <= most
  if (!whole(lun, 0, 255)) refuse('A LUN is a whole number from 0 to 255', {lun})
  if (!whole(timeoutMs, 1, 3_600_000))
    refuse('timeoutMs is a whole number of milliseconds, at most an hour', {timeoutMs})
  if (portals.length === 0) refuse('A login needs a portal', {iqn})
  for (const {address, port, tpgt = 1} of portals) {
    if (familyOf(address) === 0 || !whole(port, 1, 65_535) || !whole(tpgt, 0, 65_535)) {
      refuse('A portal is an IP address, a port and a portal group tag', {address, port, tpgt})
    }
  }
}

function canScanByHand(version: string): boolean {
  const [major = 0, minor = 0, patch = 0] = version.split(/[.-]/).map(Number)
  if (major === 2 && minor === 1 && patch === 10) return false
  return major > 2 || (major === 2 && (minor > 0 || patch >= 874))
}
