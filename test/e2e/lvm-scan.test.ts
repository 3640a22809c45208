// What is exported to guests stays out of the host's own LVM, in the lab: a disk of the kernel's initiator on the node that
// has the pool too, with LVM's labels on it as a guest writes them, and without a target.
import {rm, writeFile} from 'node:fs/promises'
import test from 'ava'
import {run} from '../../src/exec.js'
import type {Disk, Volume} from '../../src/types.js'
import {until} from '../fixtures/cli.js'
import {LogLines, Node} from '../fixtures/node.js'
import {KernelPath, pathState, readDirect, writeDirect} from '../lab/kernel-path.js'
import {insideLab, lab, labDisk} from '../lab/lab.js'

const MiB = 2 ** 20
const domain = 'vm'
const group = 'vg0'

lab.options({
  disksBytes: [512 * MiB, 128 * MiB, 128 * MiB],
  modules: ['dm-mod', 'dm-thin-pool'],
  memoryMiB: 1536,
  deadlineMs: 600_000,
})

let path: KernelPath

test.before(async () => {
  if (!insideLab) return
  path = await KernelPath.start()
  await path.startDomain(domain)
})

test.after.always(async () => {
  if (insideLab) await path?.stop()
})

/** LVM as an operator runs it, with the host's own configuration, and that sees these devices alone. */
function lvmOn(devices: string[], ...args: string[]) {
  const accepted = devices.map(device => `"a|^${device}$|"`)
  return run(args[0]!, ['--config', `devices { filter=[${[...accepted, '"r|.*|"'].join(',')}] }`, ...args.slice(1)])
}

lab('guests’ LVM and dead disks are nothing to our pool', async t => {
  const log = new LogLines()
  const node = await Node.make({targets: path.lio, compute: {uri: path.libvirtd.uri}, initiator: {timeoutMs: 60_000}})
  t.teardown(async () => {
    await node.stop()
    await path.logOut()
  })
  await node.start({logTo: log})

  // What a guest's LVM would write, for a group of the same name as ours.
  await run('vgcreate', [group, labDisk(3)])
  const guestsLabel = await readDirect(labDisk(3), {offsetMiB: 0, lengthMiB: 2})
  await run('vgremove', ['--force', '--yes', group])
  await run('pvremove', [labDisk(3)])

  await node.api.call('POST', '/pools', {group, devices: [labDisk(1)], thin: true, thinBytes: 256 * MiB})
  const create = () => node.api.call<{volume: Volume}>('POST', '/volumes', {pool: group, sizeBytes: 16 * MiB})
  const seen = async () => {
    const {stdout} = await run('pvs', ['--reportformat', 'json', '-o', 'pv_name'], {
      env: {LVM_SYSTEM_DIR: `${node.directory}/lvm/${group}`},
    })
    const {report} = JSON.parse(stdout) as {report: {pv: {pv_name: string}[]}[]}
    return report.flatMap(({pv}) => pv.map(({pv_name}) => pv_name)).sort()
  }
  const work = async () => {
    const {volume} = await create()
    await node.api.call('DELETE', `/volumes/${volume.id}`)
    await node.daemon.operations.rooms.volumes.pool(group).settled()
    t.is((await node.daemon.operations.rooms.volumes.pool(group).list()).length, 1)
  }

  const body = {domain, pool: group, sizeBytes: 128 * MiB, preallocate: true, bus: 'scsi', route: 'host'}
  const attached = await node.api.call<{volume: Volume; disk: Disk}>('POST', '/attachments', body)
  const device = attached.disk.source.type === 'block' ? attached.disk.source.path : ''
  t.regex(device, /^\/dev\/sd/)
  const refused = {code: 'DEVICE_IN_USE', message: /iSCSI session/}
  await t.throwsAsync(node.api.call('POST', '/pools', {group: 'other', devices: [device]}), refused)

  await writeDirect(device, {offsetMiB: 0, data: guestsLabel})
  t.deepEqual(await seen(), [labDisk(1)])
  await work()

  // An imported disk is a guest's as well.
  const imported = await node.api.call<{volume: Volume}>('POST', '/volumes/import', {path: labDisk(3)})
  await writeDirect(labDisk(3), {offsetMiB: 0, data: guestsLabel})
  await work()
  t.deepEqual(await seen(), [labDisk(1)])
  await node.api.call('DELETE', `/volumes/${imported.volume.id}`)
  await run('wipefs', ['--all', labDisk(3)])

  // What an operator adds to the group by hand is there for the next command.
  await lvmOn([labDisk(1), labDisk(2)], 'vgextend', '--yes', group, labDisk(2))
  await work()
  t.deepEqual(await seen(), [labDisk(1), labDisk(2)])
  // The same with a device that was not there before. Its label is not where the disk's own would be.
  const table = `0 ${(64 * MiB) / 512} linear ${labDisk(3)} 8192\n`
  await run('dmsetup', ['create', 'later'], {input: table})
  await lvmOn([labDisk(1), labDisk(2), '/dev/mapper/later'], 'vgextend', '--yes', group, '/dev/mapper/later')
  await work()
  t.is((await seen()).length, 3)

  // Long enough for all of this test: I/O to the disk waits until then.
  const [session] = await node.daemon.operations.rooms.host.sessions()
  await writeFile(`/sys/class/iscsi_session/session${session!.sid}/recovery_tmo`, '600')
  await path.network.setCable(0, false)
  const state = async () => (await node.daemon.operations.rooms.host.sessions())[0]?.state
  await until('the session has failed', async () => (await state()) === 'FAILED', 60_000)
  const started = performance.now()
  await work()
  const doctor = await node.api.call<{name: string; status: string; found: string}[]>('GET', '/doctor')
  t.like(
    doctor.find(({name}) => name === `pool ${group}`),
    {status: 'ok'},
  )
  const tookMs = performance.now() - started
  t.log(`with a dead disk: ${Math.round(tookMs)} ms`)
  t.true(tookMs < 30_000)
  t.is(await state(), 'FAILED')
  await node.stopDaemon()
  await node.start({logTo: log})
  await work()
  t.is(await state(), 'FAILED')
  t.false(log.lines.some(line => /shell was lost/.test(line)))

  await path.network.setCable(0, true)
  await until('the session is back', async () => (await state()) === 'LOGGED_IN', 60_000)
  // The host's own configuration: doctor tells of it, and what it rejects is rejected here too.
  const hosts = async (text: string) => {
    await writeFile('/etc/lvm/lvmlocal.conf', `devices { ${text} }\n`)
    const checks = await node.api.call<{name: string; status: string}[]>('GET', '/doctor')
    return checks.find(({name}) => name === 'LVM and guests’ disks')?.status
  }
  t.teardown(() => rm('/etc/lvm/lvmlocal.conf', {force: true}))
  t.is(await hosts(''), 'warn')
  for (const key of ['filter', 'global_filter']) {
    t.is(await hosts(`${key}=["r|/dev/loop.*|"]`), 'ok')
    await node.stopDaemon()
    await node.start({logTo: log})
    await work()
    t.is((await seen()).length, 3, key)
  }
  // With both lunpath's takes the place of one, and what that one forbids stays forbidden.
  t.is(
    await hosts(`filter=["r|loop|"] global_filter=["a|^${labDisk(1).slice(0, -1)}|", "a|^/dev/dm-|", "r|.*|"]`),
    'ok',
  )
  await node.stopDaemon()
  await node.start({logTo: log})
  await work()
  t.is((await seen()).length, 3, 'both')
  await rm('/etc/lvm/lvmlocal.conf')
  await node.stopDaemon()
  await node.start({logTo: log})

  await node.api.call('DELETE', `/attachments/${attached.volume.id}`)
  await node.api.call('DELETE', `/volumes/${attached.volume.id}`)
  const left = await pathState(node, {group, domains: [domain]})
  for (const [what, found] of Object.entries(left)) t.deepEqual(found, [], what)
})
