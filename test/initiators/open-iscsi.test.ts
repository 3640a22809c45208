// The kernel's initiator in the lab, against a tgtd in a network of its own: what it makes, what it takes away again, and
// what happens when one of the two dies.
import {spawn} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {once} from 'node:events'
import {closeSync, constants, existsSync, openSync} from 'node:fs'
import {mkdir, mkdtemp, open, readdir, readFile, rm, stat, symlink, writeFile} from 'node:fs/promises'
import {connect as dial} from 'node:net'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import test, {type ExecutionContext} from 'ava'
import {run} from '../../src/exec.js'
import {OpenIscsiInitiator} from '../../src/initiators/open-iscsi.js'
import {ietWwid} from '../../src/targets/iet-spec.js'
import type {Device} from '../../src/types.js'
import {fileRange, initiatorContract, refusal, sha256} from '../contract/initiators.js'
import {until} from '../fixtures/cli.js'
import {type HandMadeLun, makeLun} from '../fixtures/lun-by-hand.js'
import {openAsIet, openPortal} from '../fixtures/portals.js'
import {type HandStartedTgtd, startTgtd} from '../fixtures/tgtd-by-hand.js'
import {traceExecve} from '../fixtures/trace.js'
import {
  initiatorName,
  multipathd,
  prepareInitiator,
  type SystemDaemon,
  scsiDisks,
  sessionDirectories,
  udevd,
} from '../lab/initiator.js'
import {insideLab, lab} from '../lab/lab.js'
import {makeStorageNetwork, type StorageNetwork} from '../lab/storage-network.js'

lab.options({deadlineMs: 540_000})

const nodes = '/etc/iscsi/nodes'
const MiB = 2 ** 20
let network: StorageNetwork
let iscsid: SystemDaemon
let udev: SystemDaemon
let tgtd: HandStartedTgtd
let initiator: OpenIscsiInitiator
let lastTid = 0

test.before(async () => {
  if (!insideLab) return
  network = await makeStorageNetwork(2)
  iscsid = await prepareInitiator()
  await iscsid.start()
  tgtd = await startTgtd({...network, port: 3260})
  initiator = new OpenIscsiInitiator({initiatorName})
  await initiator.open()
})

test.after.always(async () => {
  if (!insideLab) return
  await initiator?.close()
  await tgtd?.stop()
  await udev?.stop()
  await iscsid?.stop()
  await network?.remove()
})

async function lun(
  t: ExecutionContext,
  options: Parameters<typeof makeLun>[2] = {},
): Promise<HandMadeLun & {tid: number}> {
  const tid = ++lastTid
  const made = await makeLun(tgtd, tid, options)
  t.teardown(() => made.remove())
  return {...made, tid}
}

function spec(unit: HandMadeLun, cables = 1) {
  const portals = network.addresses.slice(0, cables).map(address => ({address, port: tgtd.port}))
  const {iqn, wwid, serial, sizeBytes} = unit
  return {iqn, lun: 1, portals, initiatorName, expected: {wwid, serial, sizeBytes}}
}

/** A test that fails must not spoil those after it. */
test.afterEach.always(async () => {
  if (!insideLab) return
  const left = new Set((await initiator.sessions()).map(({iqn}) => iqn))
  for (const iqn of left) await initiator.disconnect(iqn, {force: true}).catch(() => undefined)
})

async function nothingLeft(t: ExecutionContext, {iqn}: {iqn: string}): Promise<void> {
  t.deepEqual(await sessionDirectories(), [], 'sessions')
  t.deepEqual(await scsiDisks(), [], 'disks')
  t.false(existsSync(`${nodes}/${iqn}`), 'node records')
}

/** What runs in the lab. */
async function programs(): Promise<string[]> {
  const pids = (await readdir('/proc')).filter(name => /^\d+$/.test(name))
  const names = await Promise.all(pids.map(pid => readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '')))
  return names.map(name => name.trim())
}

initiatorContract(lab, {
  connect: async ({portal, ...login}) => {
    const device = await initiator.connect({...login, portals: [portal]})
    const file = await open(device.path, 'r+')
    let closed: Promise<unknown> | undefined
    return {
      identity: device,
      async read(offset, length) {
        // What the kernel has cached is not what the target holds.
        await run('blockdev', ['--flushbufs', device.path])
        return (await file.read(Buffer.alloc(length), 0, length, offset)).buffer
      },
      write: (offset, data) => file.write(data, 0, data.length, offset),
      flush: () => file.datasync(),
      close: () => {
        closed ??= file.close().then(() => initiator.disconnect(login.iqn))
        return closed.then(() => initiator.disconnect(login.iqn))
      },
    }
  },
  tgtd: () => tgtd,
  portal: () => ({address: network.addresses[0]!, port: tgtd.port}),
  ipv6: async () => {
    const address = 'fd99::2'
    await tgtd.adm('--mode', 'portal', '--op', 'new', '--param', `portal=[${address}]:${tgtd.port}`)
    return {address, port: tgtd.port}
  },
  firstTid: 1001,
})

lab('1. a login is one process, and no argument of it is a secret', async t => {
  const auth = {
    incoming: {user: 'traced', secret: 'traced-secret-in'},
    outgoing: {user: 'back', secret: 'traced-secret-out'},
  }
  const unit = await lun(t, {auth})
  let device: Device | undefined
  const programs = await traceExecve(async () => {
    device = await initiator.connect({...spec(unit), auth})
  })
  t.is(programs.length, 1, programs.join('\n'))
  t.regex(programs[0]!, /"iscsiadm", "-m", "node", .*"--login"/)
  t.false(programs.join().includes('traced-secret'))
  t.like(device, {
    multipath: 'single',
    missingPortals: [],
    wwid: unit.wwid,
    serial: unit.serial,
    sizeBytes: unit.sizeBytes,
  })

  const directory = `${nodes}/${unit.iqn}/${network.addresses[0]},${tgtd.port},1`
  const modes = await Promise.all(
    [directory, `${directory}/default`].map(async path => (await stat(path)).mode & 0o777),
  )
  t.deepEqual(modes, [0o700, 0o600])
  const record = await readFile(`${directory}/default`, 'utf8')
  t.true(record.includes('traced-secret-in') && record.includes('node.startup = manual'))
  t.false(JSON.stringify(await initiator.nodes()).includes('traced-secret'))
  t.false(JSON.stringify(await initiator.sessions()).includes('traced-secret'))

  t.deepEqual(await initiator.disconnect(unit.iqn), {flushed: true})
  await nothingLeft(t, unit)
})

lab('2. only our LUN becomes a disk', async t => {
  const unit = await lun(t)
  const other = await lun(t)
  const second = ['--mode', 'logicalunit', '--tid', `${unit.tid}`, '--lun', '2', '--op', 'new', '-b', other.path]
  await tgtd.adm(...second)
  await initiator.connect(spec(unit))
  t.is((await scsiDisks()).length, 1)
  await initiator.disconnect(unit.iqn)
})

lab('3. connecting twice is connecting once, and so with disconnecting', async t => {
  const unit = await lun(t)
  const first = await initiator.connect(spec(unit))
  const programs = await traceExecve(async () => t.deepEqual(await initiator.connect(spec(unit)), first))
  t.deepEqual(programs, [])
  await initiator.disconnect(unit.iqn)
  t.deepEqual(await initiator.disconnect(unit.iqn), {flushed: true})
  await nothingLeft(t, unit)
})

lab('4. two logins at once to one target give one session, also beside a stranger’s iscsiadm', async t => {
  const unit = await lun(t)
  const both = await Promise.all([initiator.connect(spec(unit)), initiator.connect(spec(unit))])
  t.deepEqual(both[0], both[1])
  t.is((await sessionDirectories()).length, 1)
  await initiator.disconnect(unit.iqn)

  const connecting = initiator.connect(spec(unit))
  await until('a record', async () => (await initiator.nodes()).some(({iqn}) => iqn === unit.iqn), 10_000)
  await run('iscsiadm', ['-m', 'node', '-T', unit.iqn, '--login'], {accept: [0, 15]}).catch(error =>
    t.log(error.message),
  )
  const device = await connecting
  t.is(device.serial, unit.serial)
  t.is((await sessionDirectories()).length, 1)
  await initiator.disconnect(unit.iqn)
  await nothingLeft(t, unit)
})

lab('4b. another target’s record that vanishes while iscsiadm reads does not hide how a login went', async t => {
  const auth = {incoming: {user: 'user', secret: 'right-secret-1'}}
  const unit = await lun(t, {auth})
  const stranger = `${nodes}/iqn.2001-04.com.example:stranger`
  await mkdir(stranger, {recursive: true})
  t.teardown(() => rm(stranger, {recursive: true}))
  await symlink('gone', `${stranger}/192.0.2.1,3260,1`)

  const wrong = {incoming: {user: 'user', secret: 'wrong-secret-1'}}
  const refused = await refusal(initiator.connect({...spec(unit), auth: wrong, timeoutMs: 2000}))
  t.is(refused.code, 'AUTH_FAILED')
  t.is(refused.info.exitCode, 6)
  await nothingLeft(t, unit)

  const programs = await traceExecve(async () => {
    t.is((await initiator.connect({...spec(unit), auth})).serial, unit.serial)
  })
  t.is(programs.length, 1, programs.join('\n'))
  await initiator.disconnect(unit.iqn)
  await nothingLeft(t, unit)
})

lab('5. a disk that is not the volume is taken away, and nothing stays', async t => {
  const unit = await lun(t)
  for (const wrong of [{serial: '0123456789abcdef'}, {wwid: 'naa.60014050000000000'}, {sizeBytes: 512}]) {
    const refused = await refusal(initiator.connect({...spec(unit), expected: {...spec(unit).expected, ...wrong}}))
    t.is(refused.code, 'IDENTITY_MISMATCH')
    t.like(refused.info, {expected: wrong, found: {serial: unit.serial}})
    await nothingLeft(t, unit)
  }
})

/** A file system on the disk, mounted until the test ends. */
async function mounted(t: ExecutionContext, {path}: Device): Promise<string> {
  const mountPoint = await mkdtemp(join(tmpdir(), 'mounted-'))
  await run('mkfs.ext4', ['-q', path])
  await run('mount', [path, mountPoint])
  t.teardown(async () => {
    await run('umount', [mountPoint], {accept: [0, 32]})
    await rm(mountPoint, {recursive: true, force: true})
  })
  return mountPoint
}

/** Writes a file through to the disk. */
async function writeDurably(path: string): Promise<void> {
  const file = await open(path, 'w')
  await file.write(randomBytes(4096))
  await file.sync()
  await file.close()
}

const recordOf = ({iqn}: {iqn: string}) => readFile(`${nodes}/${iqn}/${network.addresses[0]},${tgtd.port},1/default`)

lab('5b. a mounted disk stays, whatever a later connect(), verify() or rescan() expects of it', async t => {
  const unit = await lun(t)
  const device = await initiator.connect({...spec(unit), owner: 'hand'})
  const mountPoint = await mounted(t, device)
  const record = await recordOf(unit)
  const [session] = await initiator.sessions()
  const wrong = {...spec(unit).expected, serial: '0123456789abcdef'}
  const attempts = [
    () => initiator.connect({...spec(unit), owner: 'hand', expected: wrong}),
    () => initiator.connect({...spec(unit), expected: wrong}),
    // A login at a second portal of the same target, taken back again.
    () => initiator.connect({...spec(unit, 2), expected: wrong}),
    () => initiator.verify(device, wrong),
    () => initiator.rescan(device, 128 * MiB),
  ]
  for (const [index, attempt] of attempts.entries()) {
    t.is((await refusal(attempt())).code, 'IDENTITY_MISMATCH', `${index}`)
    await writeDurably(join(mountPoint, 'file'))
    t.deepEqual(await scsiDisks(), [device.path.slice('/dev/'.length)], `${index}`)
    t.deepEqual(await initiator.sessions(), [session!], `${index}`)
    t.deepEqual(await recordOf(unit), record, `${index}`)
  }
  t.is((await refusal(initiator.disconnect(unit.iqn))).code, 'DEVICE_IN_USE')
  await run('umount', [mountPoint])
  await initiator.disconnect(unit.iqn)
  await nothingLeft(t, unit)
})

lab('5c. a lost session whose disk is mounted is left to iscsid, and comes back with it', async t => {
  const unit = await lun(t)
  const mountPoint = await mounted(t, await initiator.connect({...spec(unit), owner: 'hand'}))
  const [before] = await initiator.sessions()
  tgtd.kill('SIGKILL')
  await until('the session is lost', async () => (await initiator.sessions())[0]?.state !== 'LOGGED_IN')
  for (const owner of ['hand', 'attach'] as const) {
    const refused = await refusal(initiator.connect({...spec(unit), owner}))
    t.is(refused.code, 'DEVICE_IN_USE')
    t.true(refused.message.includes(mountPoint), refused.message)
  }
  t.is((await refusal(initiator.disconnect(unit.iqn))).code, 'DEVICE_IN_USE')
  await tgtd.restart(unit.restore)
  await until('the session is back', async () => (await initiator.sessions())[0]?.state === 'LOGGED_IN')
  t.is((await initiator.sessions())[0]?.sid, before?.sid)
  await writeDurably(join(mountPoint, 'file'))
})

lab('5d. a node record that was there before a connect that fails is there after it, as it was', async t => {
  const unit = await lun(t)
  const portal = `${network.addresses[0]}:${tgtd.port}`
  await run('iscsiadm', ['-m', 'node', '-o', 'new', '-T', unit.iqn, '-p', portal])
  await mkdir(`${nodes}/${unit.iqn}/192.0.2.1,3260,1`, {recursive: true})
  await writeFile(`${nodes}/${unit.iqn}/192.0.2.1,3260,1/default`, `node.name = ${unit.iqn}\nnode.startup = onboot\n`)
  const found = async () =>
    Promise.all((await initiator.nodes()).map(async ({path}) => [path, await readFile(path, 'utf8')]))
  const before = await found()
  const expected = {...spec(unit).expected, serial: '0123456789abcdef'}
  t.is((await refusal(initiator.connect({...spec(unit), expected}))).code, 'NODE_FOREIGN')
  t.deepEqual(await found(), before)
  t.is((await refusal(initiator.connect({...spec(unit), expected, force: true}))).code, 'IDENTITY_MISMATCH')
  t.deepEqual(await found(), before)
  t.deepEqual(await sessionDirectories(), [])
  await initiator.deleteNode(unit.iqn)
})

lab('5e. what was made for an attachment goes, and a person’s session with the same target stays', async t => {
  const unit = await lun(t)
  await initiator.connect({...spec(unit), owner: 'hand'})
  await initiator.connect(spec(unit, 2))
  t.is((await sessionDirectories()).length, 2)
  await initiator.disconnect(unit.iqn, {owner: 'attach'})
  t.deepEqual(
    (await initiator.sessions()).map(({portal, owner}) => [portal.address, owner]),
    [[network.addresses[0], 'hand']],
  )
  t.is((await scsiDisks()).length, 1)
  t.deepEqual(
    (await initiator.nodes()).map(({owner}) => owner),
    ['hand'],
  )
  await initiator.disconnect(unit.iqn)
  await nothingLeft(t, unit)
})

lab('6. verify() sees another volume behind the LUN of a session that goes on', async t => {
  const unit = await lun(t)
  const other = await lun(t)
  const device = await initiator.connect(spec(unit))
  t.deepEqual(await initiator.verify(device, spec(unit).expected), device)
  await putBehind(unit.tid, other.path, other.serial)
  // The kernel still shows what it has read at the login.
  t.is((await readFile(`/sys/block/${device.path.slice(5)}/device/wwid`, 'utf8')).trim(), unit.wwid)
  const refused = await refusal(initiator.verify(device, spec(unit).expected))
  t.is(refused.code, 'IDENTITY_MISMATCH')
  t.like(refused.info, {found: {serial: other.serial}})

  await putBehind(unit.tid, unit.path, unit.serial)
  t.like(await initiator.verify(device, spec(unit).expected), {serial: unit.serial, wwid: unit.wwid})
  await initiator.disconnect(unit.iqn)
  await nothingLeft(t, unit)
})

async function putBehind(tid: number, path: string, serial: string): Promise<void> {
  const unit = ['--mode', 'logicalunit', '--tid', `${tid}`, '--lun', '1']
  await tgtd.adm(...unit, '--op', 'delete')
  await tgtd.adm(...unit, '--op', 'new', '-b', path)
  await tgtd.adm(...unit, '--op', 'update', '--params', `scsi_id=${serial},scsi_sn=${serial}`)
}

lab('7. rescan() lets the kernel see that the volume has grown', async t => {
  const unit = await lun(t)
  const device = await initiator.connect(spec(unit))
  await run('truncate', ['-s', `${128 * MiB}`, unit.path])
  await putBehind(unit.tid, unit.path, unit.serial)
  const grown = await initiator.rescan(device, 128 * MiB)
  t.is(grown.sizeBytes, 128 * MiB)
  t.is(Number(await readFile(`/sys/block/${grown.path.slice(5)}/size`, 'utf8')) * 512, 128 * MiB)
  t.is((await refusal(initiator.rescan(grown, 256 * MiB))).code, 'IDENTITY_MISMATCH')
  await initiator.disconnect(unit.iqn)
})

lab('8. a disk that is held or open for writing is not taken away, unless by force', async t => {
  const unit = await lun(t)
  const device = await initiator.connect(spec(unit))
  const holder = await open(device.path, constants.O_RDONLY | constants.O_EXCL)
  t.is((await refusal(initiator.disconnect(unit.iqn))).code, 'DEVICE_IN_USE')
  t.is((await sessionDirectories()).length, 1)
  t.deepEqual(await initiator.disconnect(unit.iqn, {force: true}), {flushed: false})
  await holder.close()
  await nothingLeft(t, unit)

  // QEMU claims nothing: it only has the disk open.
  const again = await initiator.connect(spec(unit))
  const fd = openSync(again.path, 'r+')
  const writer = spawn('sleep', ['600'], {stdio: ['ignore', 'ignore', 'ignore', fd]})
  closeSync(fd)
  t.teardown(() => writer.kill('SIGKILL'))
  t.regex((await refusal(initiator.disconnect(unit.iqn))).message, /open for writing in process \d+ \(sleep\)/)
  writer.kill('SIGKILL')
  await once(writer, 'exit')
  await initiator.disconnect(unit.iqn)
  await nothingLeft(t, unit)
})

lab('9. the kernel’s byte counters come by netlink, and are those of iscsiadm', async t => {
  const unit = await lun(t)
  const device = await initiator.connect(spec(unit))
  const file = await open(device.path, 'r+')
  await file.write(randomBytes(MiB))
  await file.datasync()
  await file.close()
  const {stdout} = await run('iscsiadm', ['-m', 'session', '-s'])
  const said = (key: string) => Number(new RegExp(`${key}: (\\d+)`).exec(stdout)?.[1])
  const [counters] = await initiator.counters()
  t.like(counters, {iqn: unit.iqn, initiator: initiatorName, digestErrors: 0})
  t.true(counters!.sentBytes >= MiB)
  t.is(counters!.sentBytes, said('txdata_octets'))
  t.is(counters!.receivedBytes, said('rxdata_octets'))
  await initiator.disconnect(unit.iqn)
  t.deepEqual(await initiator.counters(), [])
})

lab('10. sessions and node records of others are listed, and ours are told from them', async t => {
  const ours = await lun(t)
  const theirs = await lun(t)
  await initiator.connect({...spec(ours), owner: 'hand'})
  const portal = `${network.addresses[0]}:${tgtd.port}`
  await run('iscsiadm', ['-m', 'node', '-o', 'new', '-T', theirs.iqn, '-p', portal])
  await run('iscsiadm', ['-m', 'node', '-T', theirs.iqn, '-p', portal, '--login'])
  const owners = async () => (await initiator.sessions()).map(({iqn, owner, state}) => [iqn, owner, state])
  t.deepEqual(await owners(), [
    [ours.iqn, 'hand', 'LOGGED_IN'],
    [theirs.iqn, 'other', 'LOGGED_IN'],
  ])
  const records = await initiator.nodes()
  t.is(records.find(({iqn}) => iqn === ours.iqn)?.owner, 'hand')
  t.is(records.find(({iqn}) => iqn === theirs.iqn)?.owner, null)
  t.is((await refusal(initiator.deleteNode(theirs.iqn))).code, 'TARGET_IN_USE')
  t.is((await refusal(initiator.disconnect(theirs.iqn))).code, 'NODE_FOREIGN')
  await initiator.disconnect(theirs.iqn, {force: true})
  await initiator.disconnect(ours.iqn)

  await mkdir(`${nodes}/${theirs.iqn}`, {recursive: true})
  await writeFile(`${nodes}/${theirs.iqn}/10.99.1.2,3260`, `node.name = ${theirs.iqn}\n`)
  t.is((await initiator.deleteNode(theirs.iqn)).length, 2, 'both layouts')
  t.is((await refusal(initiator.deleteNode(theirs.iqn))).code, 'NOT_FOUND')
  await nothingLeft(t, theirs)
})

lab('11. without iscsid a connect fails at once and says so; then it works again', async t => {
  const unit = await lun(t)
  await iscsid.stop()
  t.is((await refusal(initiator.connect(spec(unit)))).code, 'INITIATOR_UNAVAILABLE')
  await nothingLeft(t, unit)
  await iscsid.start()
  await initiator.connect(spec(unit))
  await iscsid.stop()
  const stuck = await refusal(initiator.disconnect(unit.iqn))
  t.is(stuck.code, 'INITIATOR_UNAVAILABLE')
  t.is((await initiator.sessions())[0]?.stuck?.includes('iscsid'), true)
  await iscsid.start()
  await initiator.disconnect(unit.iqn)
  await nothingLeft(t, unit)
})

lab('12. an iscsid that hangs is a TIMEOUT, and its iscsiadm does not stay', async t => {
  const unit = await lun(t)
  iscsid.kill('SIGSTOP')
  const refused = await refusal(initiator.connect({...spec(unit), timeoutMs: 1000}))
  iscsid.kill('SIGCONT')
  t.is(refused.code, 'TIMEOUT')
  t.false((await programs()).includes('iscsiadm'))
  // iscsid may still have read the request.
  await sleep(2_000)
  await initiator.disconnect(unit.iqn)
  await nothingLeft(t, unit)
})

lab('13. a portal that goes in mid-login is a TIMEOUT, and nothing stays', async t => {
  const unit = await lun(t)
  const vanishing = await openPortal(() => {})
  t.teardown(() => vanishing.close())
  const refused = await refusal(initiator.connect({...spec(unit), portals: [vanishing.portal], timeoutMs: 1000}))
  t.is(refused.code, 'TIMEOUT')
  await nothingLeft(t, unit)
  await network.setCable(0, false)
  const silent = await refusal(initiator.connect({...spec(unit), timeoutMs: 1000}))
  await network.setCable(0, true)
  t.true(['TIMEOUT', 'INITIATOR_FAILED'].includes(silent.code), silent.message)
  await nothingLeft(t, unit)
})

lab(
  '13b. a login that the target cuts off, as LIO does where another target goes, is tried again in its time',
  async t => {
    const unit = await lun(t)
    let connections = 0
    const portal = await openPortal(client => {
      if (++connections === 1) {
        client.once('data', () => client.destroy())
        return
      }
      const target = dial(tgtd.port, network.addresses[0])
      target.on('error', () => client.destroy()).pipe(client)
      client.on('close', () => target.destroy()).pipe(target)
    })
    t.teardown(() => portal.close())
    const device = await initiator.connect({...spec(unit), portals: [portal.portal], timeoutMs: 15_000})
    t.is(device.serial, unit.serial)
    t.is(connections, 2)
    await initiator.disconnect(unit.iqn)
    await nothingLeft(t, unit)
  },
)

lab('14. several portals: one session each; without multipathd the first path serves, and that is said', async t => {
  const unit = await lun(t)
  const device = await initiator.connect(spec(unit, 2))
  t.like(device, {multipath: 'first-path', missingPortals: []})
  t.deepEqual(device.paths.map(({portal}) => portal.address).sort(), [...network.addresses])
  t.is((await sessionDirectories()).length, 2)
  await initiator.disconnect(unit.iqn)
  await nothingLeft(t, unit)

  const absent = {address: network.addresses[1]!, port: 9}
  const half = await initiator.connect({...spec(unit), portals: [...spec(unit).portals, absent], timeoutMs: 2000})
  t.like(half, {multipath: 'single', missingPortals: [absent]})
  await initiator.disconnect(unit.iqn)
  await nothingLeft(t, unit)
})

lab('15. the stable path of a disk is waited for', async t => {
  const unit = await lun(t)
  const alone = await initiator.connect(spec(unit))
  t.is((await refusal(initiator.awaitStablePath(alone, 300))).code, 'TIMEOUT', 'without udevd')
  await initiator.disconnect(unit.iqn)
  udev = udevd()
  await udev.start()
  const device = await initiator.connect(spec(unit))
  t.is(await initiator.awaitStablePath(device, 60_000), `/dev/disk/by-id/wwn-0x6000000000000000${unit.id}`)
  await initiator.disconnect(unit.iqn)
  await until('the link goes', async () => !existsSync(device.stablePath))
})

/** Of a tgtd that gives IET's designator: what udev makes of it. */
async function asIet(t: ExecutionContext, unit: HandMadeLun, cables = 1) {
  const portals = await Promise.all(
    network.addresses.slice(0, cables).map(async address => {
      const own = await openAsIet({address, port: tgtd.port}, () => Buffer.from(unit.id))
      t.teardown(() => own.close())
      return own.portal
    }),
  )
  const given = spec(unit, cables)
  return {...given, portals, expected: {...given.expected, wwid: ietWwid(unit.id)}}
}

const ietHex = ({id}: HandMadeLun) => Buffer.from(`IET\0\0\0\0\0${id}`).toString('hex')

lab('15b. IET’s ids have a stable path too', async t => {
  const unit = await lun(t)
  const device = await initiator.connect(await asIet(t, unit))
  t.is(await initiator.awaitStablePath(device, 60_000), `/dev/disk/by-id/scsi-1${ietHex(unit)}`)
  t.like(await initiator.verify(device, {wwid: ietWwid(unit.id)}), {path: device.path})
  await initiator.disconnect(unit.iqn)
  await nothingLeft(t, unit)
})

lab('16. with multipathd the joined device is what is verified and handed on', async t => {
  const daemon = await multipathd()
  await daemon.start()
  t.teardown(() => daemon.stop())
  const patient = new OpenIscsiInitiator({initiatorName, multipathWaitMs: 60_000})
  t.teardown(() => patient.close())
  const unit = await lun(t)
  const device = await patient.connect(spec(unit, 2))
  t.is(device.multipath, 'dm')
  t.regex(device.path, /^\/dev\/dm-\d+$/)
  t.is(await patient.awaitStablePath(device, 60_000), `/dev/disk/by-id/dm-uuid-mpath-36000000000000000${unit.id}`)
  const data = randomBytes(MiB)
  const file = await open(device.path, 'r+')
  await file.write(data, 0, data.length, MiB)
  await file.datasync()
  await file.close()
  t.is(sha256(await fileRange(unit.path, MiB, MiB)), sha256(data))
  t.deepEqual(await patient.disconnect(unit.iqn), {flushed: true})
  await nothingLeft(t, unit)

  const like = await lun(t)
  const joined = await patient.connect(await asIet(t, like, 2))
  t.is(joined.multipath, 'dm')
  t.is(await patient.awaitStablePath(joined, 60_000), `/dev/disk/by-id/dm-uuid-mpath-1${ietHex(like)}`)
  await patient.disconnect(like.iqn)
  await nothingLeft(t, like)
})

lab('17. tgtd restarts with its portal last: the session comes back by itself and I/O goes on', async t => {
  const unit = await lun(t)
  const device = await initiator.connect(spec(unit))
  const file = await open(device.path, 'r+')
  await file.write(randomBytes(MiB))
  await tgtd.restart(unit.restore)
  const data = randomBytes(MiB)
  await file.write(data, 0, data.length, MiB)
  await file.datasync()
  await file.close()
  t.is(sha256(await fileRange(unit.path, MiB, MiB)), sha256(data))
  t.like(await initiator.verify(device, spec(unit).expected), {path: device.path})
  await initiator.disconnect(unit.iqn)
  await nothingLeft(t, unit)
})

lab('18. tgtd restarts and its target comes late: connecting again logs in anew', async t => {
  const unit = await lun(t)
  await initiator.connect(spec(unit))
  await tgtd.restart()
  await until('the session is lost', async () => (await initiator.sessions())[0]?.state !== 'LOGGED_IN')
  await sleep(3_000)
  await unit.restore()
  const before = (await initiator.sessions())[0]
  const device = await initiator.connect(spec(unit))
  t.is(device.serial, unit.serial)
  const [session, ...others] = await initiator.sessions()
  t.is(session?.state, 'LOGGED_IN')
  t.deepEqual(others, [])
  if (before?.state !== 'LOGGED_IN') t.not(session?.sid, before?.sid)
  t.is((await fileRange(device.path, 0, 512)).length, 512)
  await initiator.disconnect(unit.iqn)
  await nothingLeft(t, unit)
})

lab('18b. a session that iscsid is about to bring back is waited for before its disk is proven', async t => {
  const unit = await lun(t)
  const device = await initiator.connect(spec(unit))
  await tgtd.restart()
  await until('the session is lost', async () => (await initiator.sessions())[0]?.state !== 'LOGGED_IN')
  const verified = initiator.verify(device, spec(unit).expected)
  await sleep(500)
  await unit.restore()
  t.is((await verified).path, device.path)
  await initiator.disconnect(unit.iqn)
  await nothingLeft(t, unit)
})

lab('19. a target that is gone while logged in: the disconnect ends, without a flush, and nothing stays', async t => {
  const unit = await lun(t)
  await initiator.connect(spec(unit))
  await tgtd.stop()
  await until('the session is lost', async () => (await initiator.sessions())[0]?.state !== 'LOGGED_IN')
  t.deepEqual(await initiator.disconnect(unit.iqn), {flushed: false})
  await nothingLeft(t, unit)
})
