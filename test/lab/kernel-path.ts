import {readdir, readFile, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {run} from '../../src/exec.js'
import {OpenIscsiInitiator} from '../../src/initiators/open-iscsi.js'
import {PrivateLibvirtd} from '../../src/sandbox/libvirtd.js'
import {mappedDevices, mappedName} from '../../src/volumes/device-mapper.js'
import type {Node} from '../fixtures/node.js'
import {present} from '../targets/lio-by-hand.js'
import {prepareInitiator, type SystemDaemon, scsiDisks, sessionDirectories, udevd} from './initiator.js'
import {makeStorageNetwork, type StorageNetwork} from './storage-network.js'

/**
 * What the path through the kernel needs around it: a network for the target, iscsid, udevd, and libvirt with domains that
 * have no system and so release a disk at once.
 */
export class KernelPath {
  readonly network: StorageNetwork
  readonly libvirtd: PrivateLibvirtd
  readonly #iscsid: SystemDaemon
  readonly #udev: SystemDaemon

  private constructor(parts: {
    network: StorageNetwork
    libvirtd: PrivateLibvirtd
    iscsid: SystemDaemon
    udev: SystemDaemon
  }) {
    this.network = parts.network
    this.libvirtd = parts.libvirtd
    this.#iscsid = parts.iscsid
    this.#udev = parts.udev
  }

  static async start(): Promise<KernelPath> {
    const network = await makeStorageNetwork()
    const iscsid = await prepareInitiator()
    const udev = udevd()
    const libvirtd = new PrivateLibvirtd({cacheDirectory: '/tmp/libvirt-cache'})
    await Promise.all([iscsid.start(), udev.start(), libvirtd.start()])
    return new KernelPath({network, libvirtd, iscsid, udev})
  }

  /** A running domain with a virtio-scsi controller and nothing else. */
  async startDomain(name: string): Promise<void> {
    await this.libvirtd.connection.defineXml(`<domain type='qemu'><name>${name}</name><memory unit='MiB'>16</memory>
      <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
      <devices><controller type='scsi' index='0' model='virtio-scsi'/><controller type='usb' model='none'/>
      <memballoon model='none'/></devices></domain>`)
    await this.libvirtd.connection.start(name)
  }

  /** The target in the kernel, in its network. */
  get lio() {
    return {driver: 'lio' as const, networkNamespace: this.network.name, portals: [`${this.network.addresses[0]}:3260`]}
  }

  /** Ends all sessions: a test that fails must not spoil those after it. */
  async logOut(): Promise<void> {
    const initiator = new OpenIscsiInitiator()
    for (const {iqn} of await initiator.sessions())
      await initiator.disconnect(iqn, {force: true}).catch(() => undefined)
    await initiator.close()
  }

  async stop(): Promise<void> {
    await this.logOut()
    await this.libvirtd.stop()
    await this.#udev.stop()
    await this.#iscsid.stop()
    await this.network.remove()
  }
}

/** What each place of the path holds, by the ids of volumes where it has them. */
export interface PathState {
  sessions: string[]
  scsiDisks: string[]
  records: string[]
  /** Targets and backstores in configfs, or those of a tgtd. */
  targets: string[]
  logicalVolumes: string[]
  mappedDevices: string[]
  inDomains: string[]
  volumeRows: string[]
  exportRows: string[]
  attachmentRows: string[]
  unfinished: string[]
}

/** Asks each place itself, and lunpath for its own store alone. */
export async function pathState(node: Node, {group, domains}: {group: string; domains: string[]}): Promise<PathState> {
  const {rooms} = node.daemon.operations
  await rooms.volumes.pool(group).settled()
  const sessions = await sessionDirectories()
  const disks = await Promise.all(domains.map(domain => rooms.compute.disks(domain)))
  return {
    sessions,
    scsiDisks: await scsiDisks(),
    records: await readdir('/etc/iscsi/nodes').catch(() => []),
    targets: node.tgtd ? await tgtTargets(node) : await present(),
    logicalVolumes: await logicalVolumes(group),
    mappedDevices: (await mappedDevices())
      .map(({name}) => name)
      .filter(name => name.startsWith(mappedName(group, '')) && !name.startsWith(mappedName(group, 'thin'))),
    inDomains: disks.flat().map(({serial}) => serial ?? 'no serial'),
    volumeRows: [...node.store.volumes.keys()],
    exportRows: [...node.store.exports.keys()],
    attachmentRows: [...node.store.attachments.keys()],
    unfinished: rooms.journal.unfinished().map(({kind, subject, state}) => `${kind} of ${subject} is ${state}`),
  }
}

async function tgtTargets(node: Node): Promise<string[]> {
  const shown = await node.tgtd!.adm('--mode', 'target', '--op', 'show')
  return [...shown.matchAll(/^Target \d+: (.*)$/gm)].map(([, iqn]) => iqn!)
}

/** All of the group but its thin pool, hidden ones too. */
async function logicalVolumes(group: string): Promise<string[]> {
  const {stdout} = await run('lvs', ['--noheadings', '-o', 'lv_name', group])
  const names = stdout.split('\n').map(line => line.trim())
  return names.filter(name => name !== '' && name !== 'thin')
}

/** Bytes as they are on the device, past the page cache. Offset and length in whole MiB. */
export async function readDirect(path: string, {offsetMiB, lengthMiB}: {offsetMiB: number; lengthMiB: number}) {
  const file = join(tmpdir(), `direct-${process.hrtime.bigint()}`)
  const range = ['bs=1M', `skip=${offsetMiB}`, `count=${lengthMiB}`]
  await run('dd', [`if=${path}`, `of=${file}`, 'iflag=direct', 'status=none', ...range])
  try {
    return await readFile(file)
  } finally {
    await rm(file)
  }
}

export async function writeDirect(path: string, {offsetMiB, data}: {offsetMiB: number; data: Buffer}): Promise<void> {
  const where = [`of=${path}`, 'oflag=direct', 'iflag=fullblock', 'conv=notrunc', 'bs=1M', `seek=${offsetMiB}`]
  await run('dd', [...where, 'status=none'], {input: data})
}
