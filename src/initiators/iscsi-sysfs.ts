import {readdir, readFile, readlink} from 'node:fs/promises'
import {join} from 'node:path'
import type {KernelSession} from '../types.js'

/** A session's place in sysfs. */
export interface SessionPlace {
  sid: number
  iqn: string
  /** `host3`: iscsi_tcp makes a SCSI host for each session. */
  host: string
  channel: number
  /** The target's number on that host. */
  targetId: number
}

/** A SCSI disk of a session. */
export interface SessionDisk {
  /** `sdb` */
  device: string
  lun: number
  /** Its SCSI device: /sys/…/H:C:T:L */
  directory: string
}

/**
 * The kernel's sessions, their connections and their disks, from sysfs alone (drivers/scsi/scsi_transport_iscsi.c). A
 * look costs a few short files: nothing is spawned and nothing is waited for.
 */
export class IscsiSysfs {
  readonly #root: string
  /** Target names by session: a session never changes its own, and there may be thousands. */
  readonly #names = new Map<number, string>()

  constructor(root = '/sys') {
    this.#root = root
  }

  /** False where the kernel's initiator is not loaded. */
  async present(): Promise<boolean> {
    return (await list(join(this.#root, 'class/iscsi_transport'))).includes('tcp')
  }

  async #sids(): Promise<number[]> {
    const entries = await list(join(this.#root, 'class/iscsi_session'))
    const sids = entries.flatMap(entry => (/^session\d+$/.test(entry) ? [Number(entry.slice(7))] : []))
    const there = new Set(sids)
    for (const sid of this.#names.keys()) if (!there.has(sid)) this.#names.delete(sid)
    return sids
  }

  /** All sessions of this node, whoever has made them. */
  async sessions(): Promise<KernelSession[]> {
    const found = await Promise.all((await this.#sids()).map(sid => this.session(sid)))
    return found.filter(session => session !== undefined).sort((a, b) => a.sid - b.sid)
  }

  /** The sessions with one target, oldest first. */
  async sessionsOf(iqn: string): Promise<KernelSession[]> {
    const sids = await this.#sids()
    const named = await Promise.all(sids.map(async sid => ((await this.#name(sid)) === iqn ? sid : undefined)))
    const found = await Promise.all(named.filter(sid => sid !== undefined).map(sid => this.session(sid)))
    return found.filter(session => session?.iqn === iqn).sort((a, b) => a!.sid - b!.sid) as KernelSession[]
  }

  async #name(sid: number): Promise<string | undefined> {
    const known = this.#names.get(sid)
    if (known !== undefined) return known
    const name = await this.#attribute(sid, 'targetname')
    if (name) this.#names.set(sid, name)
    return name
  }

  #directory(sid: number): string {
    return join(this.#root, 'class/iscsi_session', `session${sid}`)
  }

  #attribute(sid: number, name: string): Promise<string | undefined> {
    return read(join(this.#directory(sid), name))
  }

  /** One session; undefined where it is gone, or goes while we look. */
  async session(sid: number): Promise<KernelSession | undefined> {
    const [iqn, initiator, state, tpgt, recovery] = await Promise.all(
      ['targetname', 'initiatorname', 'state', 'tpgt', 'recovery_tmo'].map(name => this.#attribute(sid, name)),
    )
    const connection = join(this.#root, 'class/iscsi_connection', `connection${sid}:0`)
    const [address, port, connectionState, headerDigest, dataDigest] = await Promise.all(
      ['persistent_address', 'persistent_port', 'state', 'header_digest', 'data_digest'].map(name =>
        read(join(connection, name)),
      ),
    )
    if (!iqn || state === undefined) return undefined
    const disks = await this.disks(sid)
    return {
      sid,
      iqn,
      initiator: initiator ?? '',
      portal: {address: address ?? '', port: Number(port ?? 0)},
      tpgt: Number(tpgt ?? 0),
      state,
      connectionState: connectionState ?? '',
      headerDigest: headerDigest === '1',
      dataDigest: dataDigest === '1',
      recoveryTimeoutSeconds: Number(recovery ?? 0),
      devices: await Promise.all(
        disks.map(async ({device, lun, directory}) => ({
          device,
          lun,
          state: (await read(join(directory, 'state'))) ?? '',
          sizeBytes: Number((await read(join(this.#root, 'block', device, 'size'))) ?? 0) * 512,
        })),
      ),
    }
  }

  async place(sid: number): Promise<SessionPlace | undefined> {
    const link = await readlink(this.#directory(sid)).catch(() => '')
    const host = /\/(host\d+)\/session\d+\//.exec(link)?.[1]
    const [iqn, targetId] = await Promise.all([this.#attribute(sid, 'targetname'), this.#attribute(sid, 'target_id')])
    if (!host || !iqn || targetId === undefined) return undefined
    return {sid, iqn, host, channel: 0, targetId: Number(targetId)}
  }

  scanFile(host: string): string {
    return join(this.#root, 'class/scsi_host', host, 'scan')
  }

  /** The SCSI disks of a session; a LUN without a disk (tgt's controller) has none. */
  async disks(sid: number): Promise<SessionDisk[]> {
    const device = join(this.#directory(sid), 'device')
    const targets = (await list(device)).filter(entry => entry.startsWith('target'))
    const disks: SessionDisk[] = []
    for (const target of targets) {
      for (const entry of await list(join(device, target))) {
        const lun = /^\d+:\d+:\d+:(\d+)$/.exec(entry)?.[1]
        if (lun === undefined) continue
        const directory = join(device, target, entry)
        const [name] = await list(join(directory, 'block'))
        if (name !== undefined) disks.push({device: name, lun: Number(lun), directory})
      }
    }
    return disks
  }

  /** True where the kernel has found something at a LUN, a disk or not. */
  async hasUnit(sid: number, lun: number): Promise<boolean> {
    const device = join(this.#directory(sid), 'device')
    const targets = (await list(device)).filter(entry => entry.startsWith('target'))
    const units = await Promise.all(targets.map(target => list(join(device, target))))
    return units.flat().some(entry => new RegExp(`^\\d+:\\d+:\\d+:${lun}$`).test(entry))
  }

  /** The device-mapper devices, and others, that sit on a block device. */
  async holders(device: string): Promise<{device: string; uuid: string}[]> {
    const names = await list(join(this.#root, 'block', device, 'holders'))
    const uuids = await Promise.all(names.map(name => read(join(this.#root, 'block', name, 'dm/uuid'))))
    return names.map((name, index) => ({device: name, uuid: uuids[index] ?? ''}))
  }

  /** `sdb1`, `sdb2` */
  async partitions(device: string): Promise<string[]> {
    const entries = await list(join(this.#root, 'block', device))
    return entries.filter(entry => entry.startsWith(device))
  }

  blockSizeBytes(device: string): Promise<number> {
    return read(join(this.#root, 'block', device, 'size')).then(text => Number(text ?? 0) * 512)
  }

  blockAttribute(device: string, name: string): Promise<string | undefined> {
    return read(join(this.#root, 'block', device, name))
  }

  blockFile(device: string, name: string): string {
    return join(this.#root, 'block', device, name)
  }
}

/** An attribute, trimmed; undefined where it is not there, or its object goes in mid-read. */
async function read(path: string): Promise<string | undefined> {
  return readFile(path, 'utf8').then(
    text => text.trim(),
    () => undefined,
  )
}

async function list(directory: string): Promise<string[]> {
  return readdir(directory).catch(() => [])
}
