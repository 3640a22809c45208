import {execFile} from 'node:child_process'
import {existsSync} from 'node:fs'
import {mkdtemp, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {promisify} from 'node:util'
import {buildDiskXml} from '../src/compute/disk-xml.js'
import {LibvirtDriver} from '../src/compute/libvirt.js'
import {Guest} from '../src/sandbox/guest.js'
import {PrivateLibvirtd} from '../src/sandbox/libvirtd.js'
import type {DiskSource} from '../src/types.js'
import {makeLun} from '../test/fixtures/lun-by-hand.js'
import {startTgtd} from '../test/fixtures/tgtd-by-hand.js'

const run = promisify(execFile)
const domain = 'bench'
const settleMs = 100
const tmpfs = '/dev/shm'

export interface ComputeOptions {
  step: 'attach' | 'detach'
  bus: 'virtio' | 'scsi'
  /** Attachments in a sample; the sample is their median. */
  count: number
}

/**
 * One iSCSI disk comes to a running guest and leaves it: our driver in this process against `virsh attach-device` and
 * `detach-device` with the same XML. A sample is milliseconds until the call is back, which for a detach is after the
 * guest's release on both sides. The other half of each round trip is not measured.
 *
 * Two things of the machine would fall on both sides by chance and are kept out. An emulated guest that finds a disk takes
 * a whole processor for some milliseconds, in which libvirtd waits for its turn on a machine of two: the guest gives way
 * to all others. And in a virtual machine memory that was left alone for a while is slow at its next touch: both sides
 * have just looked at the domain before each attach, as who attaches has.
 */
export async function computeComparison(
  {step, bus, count}: ComputeOptions,
  release: (cleanup: () => Promise<void>) => void,
): Promise<{ours: () => Promise<number>; other: () => Promise<number>; otherName: string}> {
  const directory = await mkdtemp(join(tmpdir(), 'lp-bench-'))
  release(() => rm(directory, {recursive: true, force: true}))
  const tgtd = await startTgtd()
  release(() => tgtd.stop())
  const lun = await makeLun(tgtd, 1)
  release(() => lun.remove())
  const libvirtd = new PrivateLibvirtd({directory: await makeStateDirectory(release)})
  release(() => libvirtd.stop())
  await libvirtd.start()
  const guest = new Guest({libvirtd, name: domain, idlePriority: true})
  release(() => guest.stop())
  await guest.boot()
  const driver = new LibvirtDriver({uri: libvirtd.uri})
  release(() => driver.close())
  await driver.open()
  await guest.waitReady()

  const {id} = lun
  const portal = {address: '127.0.0.1', port: tgtd.port}
  const source: DiskSource = {type: 'iscsi', iqn: lun.iqn, lun: lun.lun, portal}
  const target = bus === 'virtio' ? 'vda' : 'sda'
  const xml = join(directory, 'disk.xml')
  const address = {controller: 0, unit: 0}
  await writeFile(xml, buildDiskXml({id, source, bus, target, address, readOnly: false, cache: 'none'}))
  const virsh = (command: string, ...args: string[]) => run('virsh', ['-c', libvirtd.uri, command, domain, ...args])
  const virshDevice = (command: string) => virsh(command, xml, '--live')

  const sides = {
    ours: {attach: () => driver.attach({domain, id, source, bus}), detach: () => driver.detach(domain, id)},
    other: {attach: () => virshDevice('attach-device'), detach: () => virshDevice('detach-device')},
  }
  async function sample({attach, detach}: (typeof sides)['ours' | 'other']): Promise<number> {
    const times: number[] = []
    for (let i = 0; i < count; i++) {
      await virsh('domblklist')
      await driver.disks(domain)
      const attached = await milliseconds(attach)
      // A guest that is still looking at a new disk releases it later.
      await guest.waitForDisk(id)
      const detached = await milliseconds(detach)
      await guest.waitForDiskGone(id)
      // The guest and QEMU are busy for a moment after a removal, which would fall on whichever side starts faster.
      await sleep(settleMs)
      times.push(step === 'attach' ? attached : detached)
    }
    return times.sort((a, b) => a - b)[times.length >> 1]!
  }
  return {ours: () => sample(sides.ours), other: () => sample(sides.other), otherName: `virsh ${step}-device`}
}

/**
 * libvirt writes a domain's state several times in the course of an attach, and syncs it each time (virFileRewrite). As a
 * service it has that in /run, a tmpfs; on a disk both sides would wait for that disk.
 */
async function makeStateDirectory(release: (cleanup: () => Promise<void>) => void): Promise<string> {
  const directory = await mkdtemp(join(existsSync(tmpfs) ? tmpfs : tmpdir(), 'lp-bench-'))
  release(() => rm(directory, {recursive: true, force: true}))
  return directory
}

async function milliseconds(task: () => Promise<unknown>): Promise<number> {
  const began = process.hrtime.bigint()
  await task()
  return Number(process.hrtime.bigint() - began) / 1e6
}
