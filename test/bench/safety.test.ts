// What a benchmark must not write to, each on a real device, and by every name that leads to it.
import {spawn} from 'node:child_process'
import {once} from 'node:events'
import {constants} from 'node:fs'
import {
  link,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  realpath,
  rm,
  stat,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {basename, join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import test, {type ExecutionContext} from 'ava'
import {admitForWriting, type WriteTo} from '../../src/bench/safety.js'
import {deviceNumber} from '../../src/device-number.js'
import {StorageError} from '../../src/errors.js'
import {run} from '../../src/exec.js'
import {attachLoop, MiB, readAt, writeAt} from '../contract/observe.js'
import {lab, labDisk} from '../lab/lab.js'
import {TestGroup} from '../volumes/lvm-group.js'

async function temporary(t: ExecutionContext): Promise<string> {
  const directory = await realpath(await mkdtemp(join(tmpdir(), 'lp-safety-')))
  t.teardown(() => rm(directory, {recursive: true}))
  return directory
}

/** A loop device of our own over an image of zeros. */
async function blockDevice(t: ExecutionContext, options: string[] = []) {
  const image = join(await temporary(t), 'disk.raw')
  await writeFile(image, '')
  await truncate(image, 32 * MiB)
  const {device} = await attachLoop(t, image, options)
  return {image, device, writeTo: await numberOf(device)}
}

/** What the operator has to say of a device without a serial number. */
async function numberOf(device: string, sizeBytes = 32 * MiB): Promise<WriteTo> {
  return {identity: (await readFile(`/sys/class/block/${basename(device)}/dev`, 'utf8')).trim(), sizeBytes}
}

async function admitted(t: ExecutionContext, path: string, writeTo: WriteTo) {
  const target = await admitForWriting(path, writeTo)
  t.teardown(target.release)
  return target
}

/** The refusal of `path`, which must come whatever the operator says, by a link to it, and leave no claim behind. */
async function refused(t: ExecutionContext, path: string, writeTo: WriteTo | undefined, why: RegExp): Promise<void> {
  const byId = join(await temporary(t), 'virtio-by-id:0')
  await symlink(path, byId)
  for (const name of [path, byId]) {
    const error = await t.throwsAsync<StorageError>(admitForWriting(name, writeTo), {instanceOf: StorageError})
    t.is(error?.code, 'DEVICE_IN_USE', error?.message)
    t.regex(error?.message ?? '', why)
  }
}

async function mounted(t: ExecutionContext, device: string): Promise<string> {
  const mountPoint = join(await temporary(t), 'a b')
  await mkdir(mountPoint)
  await run('mount', [device, mountPoint])
  t.teardown(() => run('umount', [mountPoint], {accept: [0, 32]}))
  return mountPoint
}

test('an empty device whose number and size are repeated may be written to, by one run at a time', async t => {
  const {device, writeTo} = await blockDevice(t)
  const target = await admitted(t, device, writeTo)
  t.like(target, {path: device, ...writeTo})
  await refused(t, device, writeTo, /is written to by another benchmark/)
  target.release()
  const again = await admitted(t, device, writeTo)
  t.is(again.stats.rdev, target.stats.rdev)
})

test('a device that somebody has claimed, as a running benchmark has', async t => {
  const {device, writeTo} = await blockDevice(t)
  const holder = await open(device, constants.O_RDONLY | constants.O_EXCL)
  await refused(t, device, writeTo, /is claimed by another part of the kernel/)
  await holder.close()
  t.is((await admitted(t, device, writeTo)).path, device)
})

test('nothing is written where the operator does not repeat what it is', async t => {
  const {device, writeTo} = await blockDevice(t)
  const error = await t.throwsAsync(admitForWriting(device, undefined), {code: 'INVALID_ARGUMENT'})
  t.true(error?.message.includes(`--write-to ${writeTo.identity} --size-is ${32 * MiB}`), error?.message)
  for (const wrong of [
    {...writeTo, sizeBytes: 32 * MiB + 512},
    {...writeTo, identity: '7:999'},
    {...writeTo, identity: ''},
  ])
    await t.throwsAsync(admitForWriting(device, wrong), {code: 'IDENTITY_MISMATCH', message: /Nothing was written/})
  const other = await blockDevice(t)
  await t.throwsAsync(admitForWriting(device, other.writeTo), {code: 'IDENTITY_MISMATCH'})
})

test('a mounted device', async t => {
  const {device, writeTo} = await blockDevice(t)
  await run('mkfs.ext4', ['-q', device])
  const mountPoint = await mounted(t, device)
  await refused(t, device, writeTo, new RegExp(`is mounted at ${mountPoint}`))
})

test('a disk with a partition', async t => {
  const {device} = await blockDevice(t, ['--partscan'])
  await run('addpart', [device, '1', '2048', '40960'])
  t.teardown(() => run('delpart', [device, '1']))
  const partition = `${device}p1`
  const disk = await numberOf(device)
  const part = await numberOf(partition, 40960 * 512)
  await refused(t, device, disk, /has partitions: loop\d+p1/)
  t.is((await admitted(t, partition, part)).identity, part.identity, 'a partition by itself may be written to')
})

test('the disk is refused while its partition is mounted', async t => {
  const {device} = await blockDevice(t, ['--partscan'])
  await run('addpart', [device, '1', '2048', '40960'])
  t.teardown(() => run('delpart', [device, '1']))
  const partition = `${device}p1`
  await run('mkfs.ext4', ['-q', partition])
  const mountPoint = await mounted(t, partition)
  t.teardown(() => run('umount', [mountPoint], {accept: [0, 32]}))
  await refused(t, device, await numberOf(device), new RegExp(`is mounted at ${mountPoint}`))
  await refused(t, partition, await numberOf(partition, 40960 * 512), new RegExp(`is mounted at ${mountPoint}`))
})

test('swap', async t => {
  const {device, writeTo} = await blockDevice(t)
  await run('mkswap', [device])
  await refused(t, device, writeTo, /holds swap/)
  await run('swapon', [device])
  t.teardown(() => run('swapoff', [device], {accept: [0, 4, 255]}))
  await refused(t, device, writeTo, /is swap space/)
})

test('a file system, a table of partitions and a member of LVM, none of them in use', async t => {
  const {device, writeTo} = await blockDevice(t)
  await run('mkfs.ext4', ['-q', device])
  await refused(t, device, writeTo, /holds ext4 \(filesystem\).*wipefs --all/)
  await run('wipefs', ['--all', device])
  const table = Buffer.alloc(512)
  table.writeUInt8(0x83, 446 + 4)
  table.writeUInt32LE(2048, 446 + 8)
  table.writeUInt32LE(8192, 446 + 12)
  table.writeUInt16LE(0xaa55, 510)
  await writeAt(device, table, 0)
  await refused(t, device, writeTo, /holds dos \(partitions\)/)
  await writeAt(device, Buffer.alloc(4096), 0)
  t.is((await admitted(t, device, writeTo)).path, device)
})

test('a device that the kernel has set read-only', async t => {
  const {device, writeTo} = await blockDevice(t, ['--read-only'])
  await refused(t, device, writeTo, /is read-only/)
})

test('a device that another process has open for writing without a claim, as tgtd has', async t => {
  const {device, writeTo} = await blockDevice(t)
  const holder = spawn('sh', ['-c', 'exec 3<>"$0"; echo open; exec sleep 300', device], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const ended = once(holder, 'close')
  t.teardown(async () => {
    holder.kill('SIGKILL')
    await ended
  })
  await once(holder.stdout!, 'data')
  await refused(t, device, writeTo, new RegExp(`is open for writing in process ${holder.pid} \\(sleep\\)`))
  const node = join(await temporary(t), 'node')
  const [major, minor] = writeTo.identity.split(':')
  await run('mknod', [node, 'b', major!, minor!])
  await refused(t, node, writeTo, /is open for writing/)
})

test('a device that a process has open for writing beside many other files', async t => {
  const {device, writeTo} = await blockDevice(t)
  const handle = await open(device, 'r+')
  const others = Array<'ignore'>(200).fill('ignore')
  const holder = spawn('sleep', ['300'], {stdio: [...others, handle.fd]})
  const ended = once(holder, 'close')
  t.teardown(async () => {
    holder.kill('SIGKILL')
    await ended
  })
  await handle.close()
  await refused(t, device, writeTo, new RegExp(`is open for writing in process ${holder.pid} \\(sleep\\)`))
})

test('what lies under a loop device, by any name of it', async t => {
  const {image, device, writeTo} = await blockDevice(t)
  const file: WriteTo = {identity: `inode:${(await stat(image)).ino}`, sizeBytes: 32 * MiB}
  const hardLink = `${image}.link`
  await link(image, hardLink)
  await refused(t, image, file, new RegExp(`is the backing file of ${device}`))
  await refused(t, hardLink, file, new RegExp(`is the backing file of ${device}`))
  const upper = await attachLoop(t, device)
  await refused(t, device, writeTo, new RegExp(`is under ${upper.device}|is claimed`))
})

test('a file is written to where its inode and size are repeated, by one run at a time', async t => {
  const path = join(await temporary(t), 'file')
  await writeFile(path, Buffer.alloc(MiB, 'x'))
  const writeTo = {identity: `inode:${(await stat(path)).ino}`, sizeBytes: MiB}
  const target = await admitted(t, path, writeTo)
  await refused(t, path, writeTo, /is written to by another benchmark/)
  target.release()
  t.is((await admitted(t, path, writeTo)).sizeBytes, MiB)
})

test('a file that is an image of a file system, and one that is locked', async t => {
  const image = join(await temporary(t), 'disk.raw')
  await writeFile(image, '')
  await truncate(image, 32 * MiB)
  await run('mkfs.ext4', ['-q', image])
  const writeTo = {identity: `inode:${(await stat(image)).ino}`, sizeBytes: 32 * MiB}
  await refused(t, image, writeTo, /holds ext4/)
  const locked = join(await temporary(t), 'locked')
  await writeFile(locked, Buffer.alloc(4096))
  const holder = spawn('flock', [locked, '-c', 'echo locked; sleep 300'], {
    stdio: ['ignore', 'pipe', 'inherit'],
    detached: true,
  })
  t.teardown(() => process.kill(-holder.pid!, 'SIGKILL'))
  await once(holder.stdout!, 'data')
  await refused(t, locked, {identity: `inode:${(await stat(locked)).ino}`, sizeBytes: 4096}, /is locked by/)
})

test('what is no device and no file, and what is not there', async t => {
  const directory = await temporary(t)
  const writeTo = {identity: 'x', sizeBytes: 512}
  for (const path of [directory, '/dev/null'])
    await t.throwsAsync(admitForWriting(path, writeTo), {code: 'UNSUPPORTED'}, path)
  await symlink('nowhere', join(directory, 'dangling'))
  for (const name of ['dangling', 'nothing'])
    await t.throwsAsync(admitForWriting(join(directory, name), writeTo), {code: 'VOLUME_MISSING'}, name)
})

test('what lunpath itself has', async t => {
  const {device, writeTo} = await blockDevice(t)
  const owned = admitForWriting(device, writeTo, path => (path === device ? 'is the volume db1' : undefined))
  await t.throwsAsync(owned, {code: 'DEVICE_IN_USE', message: /it is the volume db1$/})
})

lab.options({
  disksBytes: [64 * MiB, 256 * MiB],
  modules: ['loop', 'dm-mod', 'sd_mod', 'scsi_debug', 'md-mod', 'raid1'],
})

lab('a device under device-mapper, and the mapped device by its own uuid', async t => {
  const {device, writeTo} = await blockDevice(t)
  const name = 'safety'
  const dmsetup = (args: string[]) => run('dmsetup', args, {env: {DM_DISABLE_UDEV: '1'}})
  await dmsetup(['create', name, '--uuid', 'SAFETY-1', '--table', `0 65536 linear ${device} 0`])
  t.teardown(() => dmsetup(['remove', '--retry', name]))
  await refused(t, device, writeTo, /is held by dm-\d+/)
  const mapped = `/dev/mapper/${name}`
  const target = await admitForWriting(mapped, {identity: 'SAFETY-1', sizeBytes: 32 * MiB})
  target.release()
  const {major, minor} = deviceNumber(target.stats.rdev)
  const number = {identity: `${major}:${minor}`, sizeBytes: 32 * MiB}
  await t.throwsAsync(admitForWriting(mapped, number), {code: 'IDENTITY_MISMATCH'})
})

lab('a physical volume of LVM, and the logical volume that has a file system', async t => {
  const group = await TestGroup.make('vgsafe', labDisk(2))
  t.teardown(() => group.shell.close())
  await refused(t, labDisk(2), await numberOf(labDisk(2), 256 * MiB), /holds LVM2_member/)
  await group.run('lvcreate', '--size', '32m', '--name', 'lv', 'vgsafe')
  await refused(t, labDisk(2), await numberOf(labDisk(2), 256 * MiB), /is held by dm-\d+/)
  await run('mkfs.ext4', ['-q', '/dev/vgsafe/lv'])
  await refused(t, '/dev/vgsafe/lv', {identity: 'any', sizeBytes: 32 * MiB}, /holds ext4/)
  const mountPoint = await mounted(t, '/dev/vgsafe/lv')
  await refused(t, '/dev/vgsafe/lv', {identity: 'any', sizeBytes: 32 * MiB}, new RegExp(`mounted at ${mountPoint}`))
})

lab('a member of an md array', async t => {
  const {device, writeTo} = await blockDevice(t)
  await writeFile('/sys/module/md_mod/parameters/new_array', 'md_safety')
  const md = (name: string, value: string) => writeFile(`/sys/block/md_safety/md/${name}`, value)
  await md('metadata_version', 'none')
  await md('level', 'raid1')
  await md('raid_disks', '1')
  await md('new_dev', writeTo.identity)
  await refused(t, device, writeTo, /is held by md_safety/)
})

lab('a SCSI disk and its partition are known by the serial number', async t => {
  const isDebug = async (name: string) =>
    (await readFile(`/sys/block/${name}/device/model`, 'utf8')).includes('scsi_debug')
  let name: string | undefined
  // The scan of a new host goes on after the module is loaded.
  for (let tries = 0; name === undefined && tries < 100; tries++) {
    for (const disk of await readdir('/sys/block')) if (/^sd/.test(disk) && (await isDebug(disk))) name = disk
    await sleep(50)
  }
  const page = await readFile(`/sys/block/${name}/device/vpd_pg80`)
  const serial = page.toString('latin1', 4).trim()
  t.regex(serial, /^\d+$/)
  const sizeBytes = Number(await readFile(`/sys/block/${name}/size`, 'utf8')) * 512
  const disk = `/dev/${name}`
  await t.throwsAsync(admitForWriting(disk, await numberOf(disk, sizeBytes)), {code: 'IDENTITY_MISMATCH'})
  const target = await admitForWriting(disk, {identity: serial, sizeBytes})
  target.release()
  await run('addpart', [disk, '1', '64', '2048'])
  await t.throwsAsync(admitForWriting(`${disk}1`, {identity: serial, sizeBytes: MiB}), {code: 'IDENTITY_MISMATCH'})
  const partition = await admitForWriting(`${disk}1`, {identity: `${serial}-part1`, sizeBytes: MiB})
  partition.release()
  const data = await readAt(disk, 4096, 0)
  t.true(data.equals(Buffer.alloc(4096)), 'a claim writes nothing')
})
