// The whole path through the kernel, with a guest that runs in the lab: what was written to the logical volume is what the
// guest reads, and what the guest writes is in the logical volume.
import {randomBytes} from 'node:crypto'
import test from 'ava'
import {Guest} from '../../src/sandbox/guest.js'
import type {Disk, Volume} from '../../src/types.js'
import {sha256} from '../contract/initiators.js'
import {Node} from '../fixtures/node.js'
import {KernelPath, pathState, readDirect, writeDirect} from '../lab/kernel-path.js'
import {insideLab, lab, labDisk} from '../lab/lab.js'

const MiB = 2 ** 20
const group = 'vg0'
const domain = 'guest'
// It is emulated: where the lab is too, it boots in more than a minute.
const guestMs = 480_000

lab.options({
  memoryMiB: 2048,
  disksBytes: [512 * MiB],
  modules: ['dm-mod'],
  deadlineMs: 900_000,
})

let path: KernelPath
let guest: Guest
let node: Node

test.before(async t => {
  if (!insideLab) return
  t.timeout(guestMs)
  path = await KernelPath.start()
  guest = new Guest({libvirtd: path.libvirtd, name: domain, accelerator: 'qemu'})
  await guest.boot()
  node = await Node.make({targets: path.lio, compute: {uri: path.libvirtd.uri}})
  await node.start()
  await node.api.call('POST', '/pools', {group, devices: [labDisk(1)]})
  await guest.waitReady({timeoutMs: guestMs})
})

test.after.always(async () => {
  if (!insideLab) return
  await node?.stop()
  await path?.stop()
})

lab('a guest reads what is in the volume and writes into it, and nothing is left when its disk is gone', async t => {
  t.timeout(guestMs)
  const {volume} = await node.api.call<{volume: Volume}>('POST', '/volumes', {pool: group, sizeBytes: 64 * MiB})
  const {id, sizeBytes} = volume
  const before = randomBytes(MiB)
  await writeDirect(volume.path, {offsetMiB: 7, data: before})

  const body = {domain, volume: id, bus: 'scsi', route: 'host'}
  const {disk} = await node.api.call<{disk: Disk}>('POST', '/attachments', body)
  t.like(disk, {serial: id, live: true, source: {type: 'block'}})
  const seen = await guest.waitForDisk(id, {timeoutMs: guestMs})
  t.is(seen.sizeBytes, sizeBytes)
  t.is(await guest.sha256(id, {offsetBytes: 7 * MiB, lengthBytes: MiB}), sha256(before))
  const nonce = randomBytes(4096)
  await guest.write(id, 9 * MiB, nonce)
  t.deepEqual((await guest.stats()).kernelIoErrors, [])

  await node.api.call('DELETE', `/attachments/${id}`)
  await guest.waitForDiskGone(id, {timeoutMs: guestMs})
  const after = await readDirect(volume.path, {offsetMiB: 9, lengthMiB: 1})
  t.is(sha256(after.subarray(0, nonce.length)), sha256(nonce))
  t.is(sha256(await readDirect(volume.path, {offsetMiB: 7, lengthMiB: 1})), sha256(before))
  await node.api.call('DELETE', `/volumes/${id}`)
  const left = await pathState(node, {group, domains: [domain]})
  for (const [what, found] of Object.entries(left)) t.deepEqual(found, [], what)
})
