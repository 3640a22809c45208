// An attached volume grows, on both routes, in the lab: LIO can change a LUN under a session.
import {readFile} from 'node:fs/promises'
import test from 'ava'
import type {Export, Volume} from '../../src/types.js'
import {Node} from '../fixtures/node.js'
import {scsiDisks, sessionDirectories} from '../lab/initiator.js'
import {KernelPath} from '../lab/kernel-path.js'
import {insideLab, lab} from '../lab/lab.js'

lab.options({deadlineMs: 420_000, memoryMiB: 1536})

const MiB = 2 ** 20
const domain = 'vm'
let path: KernelPath
let node: Node

test.before(async () => {
  if (!insideLab) return
  path = await KernelPath.start()
  await path.startDomain(domain)
  node = await Node.make({targets: path.lio, compute: {uri: path.libvirtd.uri}})
  await node.start()
})

test.after.always(async () => {
  if (!insideLab) return
  await node?.stop()
  await path?.stop()
})

for (const route of ['qemu', 'host'] as const) {
  lab(`route ${route}: volume extend reaches the LUN, the host's disk and the domain's`, async t => {
    const body = {domain, sizeBytes: 64 * MiB, bus: 'scsi', route}
    const {volume, export: exported} = await node.api.call<{volume: Volume; export: Export}>(
      'POST',
      '/attachments',
      body,
    )
    const sizeBytes = 96 * MiB
    await node.api.call('POST', `/volumes/${volume.id}/extend`, {sizeBytes})
    t.is(node.store.volumes.get(volume.id)?.sizeBytes, sizeBytes)
    t.is(node.store.exports.get(volume.id)?.sizeBytes, sizeBytes)
    const target = await node.daemon.operations.rooms.targets.get(exported.iqn)
    t.is(target?.luns[0]?.sizeBytes, sizeBytes)
    if (route === 'host') {
      const [disk] = await scsiDisks()
      t.is(Number(await readFile(`/sys/block/${disk}/size`, 'utf8')) * 512, sizeBytes)
    }
    // QEMU refuses a size that its disk has not (block/iscsi.c, block/file-posix.c): what it takes it has seen.
    const grownFurther = node.daemon.operations.rooms.compute.resize(domain, volume.id, sizeBytes + MiB)
    await t.throwsAsync(grownFurther, {code: 'COMPUTE_FAILED'})
    await t.notThrowsAsync(node.daemon.operations.rooms.compute.resize(domain, volume.id, sizeBytes))
    await node.api.call('DELETE', `/attachments/${volume.id}`)
    await node.api.call('DELETE', `/volumes/${volume.id}`)
    t.deepEqual(await sessionDirectories(), [])
    t.deepEqual(await node.poolFiles(), [])
  })
}
