// The host route in the lab: a volume, tgtd in a network of its own, the kernel's initiator, and a disk in a domain that has
// no system, and so releases at once what it is asked for.
import {randomBytes} from 'node:crypto'
import {existsSync} from 'node:fs'
import {mkdtemp, open, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import test, {type ExecutionContext} from 'ava'
import {run} from '../../src/exec.js'
import {OpenIscsiInitiator} from '../../src/initiators/open-iscsi.js'
import {PrivateLibvirtd} from '../../src/sandbox/libvirtd.js'
import {request, TgtControl, TgtError} from '../../src/targets/tgt-control.js'
import type {Disk, Export, Volume} from '../../src/types.js'
import {fileRange, sha256} from '../contract/initiators.js'
import {lunpath, until} from '../fixtures/cli.js'
import {runUnderCrash} from '../fixtures/crash.js'
import {Node} from '../fixtures/node.js'
import {type HandStartedTgtd, startTgtd} from '../fixtures/tgtd-by-hand.js'
import {traceExecve} from '../fixtures/trace.js'
import {prepareInitiator, type SystemDaemon, scsiDisks, sessionDirectories, udevd} from '../lab/initiator.js'
import {insideLab, lab} from '../lab/lab.js'
import {makeStorageNetwork, type StorageNetwork} from '../lab/storage-network.js'

lab.options({deadlineMs: 900_000, memoryMiB: 1536})

interface Attached {
  volume: Volume
  export: Export
  disk: Disk
}

const MiB = 2 ** 20
const domain = 'vm'
let network: StorageNetwork
let iscsid: SystemDaemon
let udev: SystemDaemon
let tgtd: HandStartedTgtd
let libvirtd: PrivateLibvirtd
let node: Node

test.before(async () => {
  if (!insideLab) return
  network = await makeStorageNetwork()
  iscsid = await prepareInitiator()
  udev = udevd()
  libvirtd = new PrivateLibvirtd({cacheDirectory: '/tmp/libvirt-cache'})
  await Promise.all([iscsid.start(), udev.start(), libvirtd.start()])
  tgtd = await startTgtd({...network, port: 3260})
  await libvirtd.connection.defineXml(`<domain type='qemu'><name>${domain}</name><memory unit='MiB'>16</memory>
    <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
    <devices><controller type='scsi' index='0' model='virtio-scsi'/><controller type='usb' model='none'/>
    <memballoon model='none'/></devices></domain>`)
  await libvirtd.connection.start(domain)
  node = await Node.make({
    tgtd,
    targets: {portals: [`${network.addresses[0]}:${tgtd.port}`]},
    compute: {uri: libvirtd.uri},
  })
})

test.beforeEach(async () => {
  if (insideLab) await node.start()
})

/** A test that fails must not spoil those after it. */
test.afterEach.always(async () => {
  if (!insideLab) return
  await node.stopDaemon()
  const initiator = new OpenIscsiInitiator()
  for (const {iqn} of await initiator.sessions()) await initiator.disconnect(iqn, {force: true}).catch(() => undefined)
  await initiator.close()
})

test.after.always(async () => {
  if (!insideLab) return
  await node?.stop()
  await libvirtd?.stop()
  await udev?.stop()
  await iscsid?.stop()
  await network?.remove()
})

function attach(more: object = {}): Promise<Attached> {
  const body = {domain, sizeBytes: 64 * MiB, bus: 'scsi', route: 'host', ...more}
  return node.api.call<Attached>('POST', '/attachments', body)
}

async function takeDown(id: string): Promise<void> {
  await node.api.call('DELETE', `/attachments/${id}`)
  await node.api.call('DELETE', `/volumes/${id}`)
}

/** At 1 MiB. */
async function writeDevice(path: string, data: Buffer): Promise<void> {
  const file = await open(path, 'r+')
  await file.write(data, 0, data.length, MiB)
  await file.datasync()
  await file.close()
}

/** No session, disk, record, export, volume, disk of the domain or unfinished operation. */
async function nothingLeft(t: ExecutionContext, when = ''): Promise<void> {
  const {rooms} = node.daemon.operations
  const left = {
    sessions: await sessionDirectories(),
    disks: await scsiDisks(),
    records: await rooms.host.nodes(),
    targets: (await rooms.targets.list()).map(({iqn}) => iqn),
    images: await node.poolFiles(),
    inDomain: (await rooms.compute.disks(domain)).map(({serial}) => serial),
    stored: [...node.store.volumes.keys(), ...node.store.exports.keys(), ...node.store.attachments.keys()],
    unfinished: rooms.journal.unfinished(),
  }
  for (const [what, found] of Object.entries(left)) t.deepEqual(found, [], `${when} ${what}`)
}

lab('1. attach --route host: one process, a proven disk in the domain, and all of it goes again', async t => {
  let made: Attached | undefined
  const programs = await traceExecve(async () => {
    made = await attach()
  })
  t.is(programs.length, 1, programs.join('\n'))
  t.regex(programs[0]!, /"iscsiadm".*"--login"/)
  const {volume, disk} = made!
  t.like(disk, {serial: volume.id, live: true})
  const [device] = await scsiDisks()
  t.deepEqual(disk.source, {type: 'block', path: `/dev/${device}`})
  const stored = node.store.attachments.get(volume.id)!
  t.deepEqual(stored.source, {type: 'block', path: `/dev/disk/by-id/wwn-0x6000000000000000${volume.id}`})
  t.is(stored.route, 'host')

  const data = randomBytes(MiB)
  await writeDevice(stored.source.type === 'block' ? stored.source.path : '', data)
  t.is(sha256(await fileRange(volume.path, MiB, MiB)), sha256(data))
  await takeDown(volume.id)
  await nothingLeft(t)
})

lab('2. a definition that is kept has the name that udev gives the disk, with CHAP too', async t => {
  const auth = {incoming: {user: 'vm', secret: 'secret-of-the-vm'}}
  const {volume} = await attach({persistent: true, auth})
  const path = `/dev/disk/by-id/wwn-0x6000000000000000${volume.id}`
  const disks = await node.daemon.operations.rooms.compute.disks(domain)
  t.like(disks, {0: {persistent: true, live: true, source: {type: 'block', path}}})
  await takeDown(volume.id)
  await nothingLeft(t)
})

for (const window of ['connect', 'verify'] as const) {
  lab(`3. another volume behind the target before ${window}(): IDENTITY_MISMATCH, and all is undone`, async t => {
    const directory = await mkdtemp(join(tmpdir(), 'other-'))
    t.teardown(() => rm(directory, {recursive: true}))
    const other = join(directory, 'volume')
    await writeFile(other, Buffer.alloc(64 * MiB))
    const {rooms} = node.daemon.operations
    const {host} = rooms
    let swapped = false
    // What is under test is the driver as it is: only the world is changed, right before it looks.
    rooms.host = new Proxy(host, {
      get: (driver, property) => {
        const member = Reflect.get(driver, property) as (...args: unknown[]) => Promise<unknown>
        if (property !== window) return member
        return async (...args: unknown[]) => {
          const [{iqn}] = args as [{iqn: string}]
          const [target] = (await rooms.targets.list()).filter(one => one.iqn === iqn)
          await putBehind(target!.tid, other)
          swapped = true
          return member(...args)
        }
      },
    })
    await t.throwsAsync(attach(), {code: 'IDENTITY_MISMATCH'})
    t.true(swapped)
    // A LUN that leads to a stranger's file makes the target a stranger's: lunpath removes none of those.
    for (const {tid} of await rooms.targets.list()) {
      await tgtd.adm('--mode', 'target', '--op', 'delete', '--force', '--tid', `${tid}`)
    }
    await node.daemon.reconcile('test')
    await nothingLeft(t)
  })
}

/** In one exchange: between two calls of tgtadm the daemon's look would find a LUN that is gone, and put it back. */
async function putBehind(tid: number, path: string): Promise<void> {
  const serial = 'fedcba9876543210'
  const control = new TgtControl(tgtd.socketPath)
  const swap = [
    request.deleteLun(tid, 1),
    request.newLun(tid, 1, path),
    request.updateLun(tid, 1, {scsi_id: serial, scsi_sn: serial}),
  ]
  try {
    await until('no read by udev is under way', async () => {
      const {replies, failure} = await control.run([swap], {timeoutMs: 10_000})
      if (failure) throw failure
      const refused = replies[0]!.find(({error}) => error !== 0)
      if (!refused && replies[0]!.length === swap.length) return true
      if (refused?.error !== TgtError.lunActive) throw new Error(`tgtd refused to swap the LUN: ${refused?.error}`)
      return false
    })
  } finally {
    await control.close()
  }
}

lab('4. a portal that is dead, and an iscsid that is: the attach fails with a reason and is undone', async t => {
  await network.setCable(0, false)
  const unreachable = await t.throwsAsync(attach())
  await network.setCable(0, true)
  t.true(['TIMEOUT', 'INITIATOR_FAILED'].includes((unreachable as unknown as {code: string}).code), unreachable.message)
  await until('it is undone', () => node.daemon.operations.rooms.journal.unfinished().length === 0)
  await nothingLeft(t, 'portal')
  await iscsid.stop()
  await t.throwsAsync(attach(), {code: 'INITIATOR_UNAVAILABLE'})
  await iscsid.start()
  await nothingLeft(t, 'iscsid')
})

lab('5. a session that iscsid has given up comes back by a new login, and the stale disk is told of', async t => {
  const {volume, export: exported} = await attach()
  const {rooms} = node.daemon.operations
  const [session] = await rooms.host.sessions()
  await writeFile(`/sys/class/iscsi_session/session${session!.sid}/recovery_tmo`, '3')
  tgtd.kill('SIGKILL')
  const state = async () => (await rooms.host.sessions())[0]?.state
  await until('the kernel gives up', async () => (await state()) === 'FREE')
  await tgtd.restart()
  // iscsid may be faster than the daemon, which then still ends the session that it had found dead, and makes another.
  const again = await until(
    'the session is back, and the daemon is done with it',
    async () => {
      const [found] = await rooms.host.sessions()
      return found?.state === 'LOGGED_IN' && node.daemon.operations.idle(volume.id) && found
    },
    120_000,
  )
  t.is(again.iqn, exported.iqn)
  if (again.sid !== session!.sid) {
    await node.daemon.reconcile('test')
    const {problems} = await node.api.call<{problems: {problem: string}[]}>('GET', '/status')
    t.true(problems.some(({problem}) => problem === 'disk-stale'))
  }
  await until('the reconciler has ended', () => node.daemon.operations.idle(volume.id))
  await takeDown(volume.id)
  await nothingLeft(t)
})

lab('6. tgtd and the daemon start anew, and iscsid meets its portal without the target: the disk is back', async t => {
  const {volume} = await attach()
  const [before] = await node.daemon.operations.rooms.host.sessions()
  await node.stopDaemon()
  tgtd.kill('SIGKILL')
  await tgtd.restart()
  const initiator = new OpenIscsiInitiator()
  const state = async () => (await initiator.sessions())[0]?.state
  await until('the session has failed', async () => (await state()) === 'FAILED')
  // Several of iscsid's attempts.
  await sleep(10_000)
  t.is(await state(), 'FAILED')
  await initiator.close()
  await node.start()
  // By iscsid, or where it has given up by another login of lunpath's.
  const again = await until(
    'the session is back, and the daemon is done with it',
    async () => {
      const [found] = await node.daemon.operations.rooms.host.sessions()
      return found?.state === 'LOGGED_IN' && node.daemon.operations.idle(volume.id) && found
    },
    120_000,
  )
  t.log(again.sid === before!.sid ? 'by iscsid' : 'by a new login')
  const data = randomBytes(4096)
  const write = () => writeDevice(`/dev/disk/by-id/wwn-0x6000000000000000${volume.id}`, data)
  // The link leads to the stale disk, then nowhere, then to the new one, as udevd hears of each.
  const works = () =>
    write().then(
      () => true,
      () => false,
    )
  await until('the disk takes a write by its stable path', works)
  t.deepEqual(await fileRange(volume.path, MiB, data.length), data)
  await takeDown(volume.id)
  await nothingLeft(t)
})

lab('7. sessions that no attachment needs are logged out; those of people and of other daemons stay', async t => {
  const made = await node.api.call<{volume: Volume; export: Export}>('POST', '/exports', {
    sizeBytes: 64 * MiB,
    access: {addresses: ['ALL'], names: []},
  })
  const {iqn, portals} = made.export
  const owners = {
    ours: new OpenIscsiInitiator({user: node.directory}),
    others: new OpenIscsiInitiator({user: '/var/lib/another'}),
  }
  for (const [whose, initiator] of Object.entries(owners)) {
    await initiator.connect({iqn, lun: 1, portals})
    await node.daemon.reconcile('test')
    t.is((await sessionDirectories()).length, whose === 'ours' ? 0 : 1, whose)
    await initiator.disconnect(iqn)
    await initiator.close()
  }
  await node.api.call('DELETE', `/exports/${made.volume.id}`)
  await node.api.call('DELETE', `/volumes/${made.volume.id}`)
  await nothingLeft(t)
})

lab('7a. another tool’s node record is in the way of an attach, and by force it is replaced', async t => {
  const {volume, export: exported} = await node.api.call<Attached>('POST', '/exports', {sizeBytes: 64 * MiB})
  const {rooms} = node.daemon.operations
  const portal = `${network.addresses[0]}:${tgtd.port}`
  await run('iscsiadm', ['-m', 'node', '-o', 'new', '-T', exported.iqn, '-p', portal])
  const before = await rooms.host.nodes()
  t.like(before, {length: 1, 0: {owner: null}})
  const cli = (...args: string[]) =>
    lunpath(['attach', domain, '--volume', volume.id, '--bus', 'scsi', '--json', ...args], {
      env: {LUNPATH_SOCKET: node.socket},
    })
  const errorOf = ({stdout}: {stdout: string}) => (JSON.parse(stdout) as {error: {code: string; message: string}}).error
  const refused = errorOf(await cli('--route', 'host'))
  t.is(refused.code, 'NODE_FOREIGN', refused.message)
  t.regex(refused.message, /lunpath attach with --force/)
  t.deepEqual(await rooms.host.nodes(), before)
  t.deepEqual([await sessionDirectories(), [...node.store.attachments.keys()]], [[], []])
  t.is(errorOf(await cli('--route', 'qemu', '--force')).code, 'INVALID_ARGUMENT', 'there it means nothing')
  await t.throwsAsync(attach({force: true}), {code: 'INVALID_ARGUMENT'}, 'nobody has a record of a new volume')

  const forced = await cli('--route', 'host', '--force')
  t.is(forced.exitCode, 0, forced.stdout)
  t.like(await rooms.host.nodes(), {length: 1, 0: {owner: 'attach'}})
  await node.api.call('DELETE', `/attachments/${volume.id}`)
  await node.api.call('DELETE', `/exports/${volume.id}`)
  await node.api.call('DELETE', `/volumes/${volume.id}`)
  await nothingLeft(t)
})

lab('8. lunpath connect, session list, node list, disconnect and /metrics speak of one session', async t => {
  const made = await node.api.call<{volume: Volume; export: Export}>('POST', '/exports', {sizeBytes: 64 * MiB})
  const {iqn, portals} = made.export
  const portal = `${portals[0]!.address}:${portals[0]!.port}`
  const cli = async (...args: string[]) => {
    const ended = await lunpath(['--socket', node.socket, ...args])
    t.is(ended.exitCode, 0, ended.stderr)
    return ended.stdout
  }
  const connected = await cli('connect', iqn, '--portal', portal, '--serial', made.volume.id)
  t.regex(connected, /device\s+\/dev\/sd[a-z]/)
  const listed = await cli('session', 'list')
  t.true(listed.includes('Of this host') && listed.includes('lunpath connect') && listed.includes('LOGGED_IN'), listed)
  t.regex(await cli('node', 'list'), new RegExp(`${portal},1 +${iqn} +manual +no +lunpath connect`))
  const metrics = await node.daemon.metrics.text()
  t.regex(metrics, new RegExp(`^iscsi_initiator_session_up{target="${iqn}",address="${portal}"} 1$`, 'm'))
  t.regex(metrics, new RegExp(`^iscsi_initiator_session_received_bytes_total{target="${iqn}",.*} [1-9]`, 'm'))
  const refused = await lunpath(['--socket', node.socket, 'node', 'delete', iqn])
  t.is(refused.exitCode, 4)
  t.true((await cli('disconnect', iqn)).includes(`disconnected ${iqn}`))
  t.false(existsSync(`/etc/iscsi/nodes/${iqn}`))
  t.regex(await node.daemon.metrics.text(), new RegExp(`^iscsi_initiator_session_received_bytes_total.*${iqn}`, 'm'))
  await node.api.call('DELETE', `/exports/${made.volume.id}`)
  await node.api.call('DELETE', `/volumes/${made.volume.id}`)
  await nothingLeft(t)
})

const crashes = [
  {attach: ['before', 'attach:stepMade:device'], detach: ['before', 'detach:stepUnmade:disk']},
  {attach: ['after', 'attach:stepMade:device'], detach: ['before', 'detach:stepUnmade:device']},
  {attach: ['before', 'attach:complete'], detach: ['after', 'detach:stepUnmade:device']},
] as const

lab('9. kill -9 around the writes of the device step: a new daemon ends what was begun', async t => {
  await node.stopDaemon()
  for (const {attach, detach} of crashes) {
    const token = `t-${Math.random()}`
    const body = {domain, sizeBytes: 64 * MiB, bus: 'scsi', route: 'host'}
    const request = () => node.api.call<Attached>('POST', '/attachments', body, {token})
    await runUnderCrash(node, {when: attach[0], at: attach[1]}, request)
    await node.start()
    const {volume} = await request()
    t.is(node.store.attachments.size, 1, attach.join(' '))
    t.is((await sessionDirectories()).length, 1, attach.join(' '))
    await node.stopDaemon()

    const takeOff = () => node.api.call('DELETE', `/attachments/${volume.id}`)
    await runUnderCrash(node, {when: detach[0], at: detach[1]}, takeOff)
    await node.start()
    await until('the detach has ended', () => node.daemon.operations.rooms.journal.unfinished().length === 0)
    t.deepEqual(await sessionDirectories(), [], detach.join(' '))
    await node.api.call('DELETE', `/volumes/${volume.id}`)
    await nothingLeft(t, `${attach.join(' ')}, ${detach.join(' ')}`)
    await node.stopDaemon()
  }
})
