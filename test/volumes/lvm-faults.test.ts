// What goes wrong under volumes in LVM: killed and hung shells, volumes in use, full and failing disks, crashes.
import {createHash, randomBytes} from 'node:crypto'
import {chmod, mkdir, mkdtemp, open, readdir, readFile, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import test, {type ExecutionContext} from 'ava'
import {type ErrorCode, StorageError} from '../../src/errors.js'
import {run} from '../../src/exec.js'
import {signatureOf} from '../../src/signatures.js'
import {mappedDevices, mappedName} from '../../src/volumes/device-mapper.js'
import {newVolumeId} from '../../src/volumes/id.js'
import {LvmVolumeDriver} from '../../src/volumes/lvm.js'
import {createGroup} from '../../src/volumes/lvm-create.js'
import {codeOf, MiB, readAt, writeAt} from '../contract/observe.js'
import {dyingLvm, mapperLibrary} from '../fixtures/dying-lvm.js'
import {insideLab, lab, labDisk} from '../lab/lab.js'
import {TestGroup} from './lvm-group.js'

lab.options({
  disksBytes: [2048 * MiB, 512 * MiB, 256 * MiB, 256 * MiB],
  modules: ['dm-mod', 'dm-thin-pool', 'dm-snapshot', 'dm-flakey', 'loop', 'ext4'],
  deadlineMs: 540_000,
})

// Compiled once, and not under emulation.
if (!insideLab) test.before(mapperLibrary)

let made: Promise<TestGroup> | undefined
/** One group for most tests: each leaves it empty. */
async function group(t: ExecutionContext): Promise<TestGroup> {
  made ??= TestGroup.make('vg', labDisk(1), {name: 'thin', size: '256m'})
  const own = await made
  t.teardown(() => own.empty())
  return own
}

/** Without a udevd dmsetup makes the nodes below /dev/mapper itself only where it is told so. */
const dmsetup = (args: string[], input?: string) => run('dmsetup', args, {input, env: {DM_DISABLE_UDEV: '1'}})

/** Not in the group's shell: that would refuse to change properties from then on. */
const activate = (own: TestGroup, how: 'y' | 'n', name: string, program = 'lvm') => {
  const args = ['lvchange', '--yes', '--activate', how, `${own.name}/${name}`]
  return run(program, args, {env: {LVM_SYSTEM_DIR: own.systemDirectory}})
}

const until = async (holds: () => Promise<boolean> | boolean) => {
  for (let tries = 0; tries < 600; tries++) {
    if (await holds()) return
    await sleep(50)
  }
  throw new Error('it did not come about')
}

/** Device-mapper has a device for each volume of the group and none besides, and none is suspended. */
async function devicesAgree(t: ExecutionContext, own: TestGroup): Promise<void> {
  const names = [...(await own.volumes()).keys()].map(name => mappedName(own.name, name)).sort()
  const devices = (await mappedDevices()).filter(
    ({name}) => name.startsWith(`${own.name}-`) && !name.startsWith(`${own.name}-thin`),
  )
  t.deepEqual(devices.map(({name}) => name).sort(), names)
  t.deepEqual(
    devices.filter(({suspended}) => suspended).map(({name}) => name),
    [],
  )
}

lab('01. shells killed in mid-command: every create ends, well or with an error, and nothing is left over', async t => {
  const own = await group(t)
  const driver = await own.open(t, {thinPool: 'thin'})
  let kills = 0
  for (let round = 0; round < 6; round++) {
    const specs = Array.from({length: 6}, (_, index) => ({
      id: newVolumeId(),
      sizeBytes: 4 * MiB,
      preallocate: index % 2 === 0,
    }))
    const outcomes = Promise.all(specs.map(spec => codeOf(driver.create(spec))))
    await sleep(100 + Math.random() * 900)
    if (driver.lvm.pid !== undefined) {
      process.kill(driver.lvm.pid, 'SIGKILL')
      kills++
    }
    const codes = await outcomes
    const there = new Set((await driver.list()).map(({id}) => id))
    for (const [index, {id}] of specs.entries()) t.is(there.has(id), codes[index] === 'no error', codes[index])
    // One command was running, and it is tried once more.
    t.true(codes.filter(code => code === 'no error').length >= 5, codes.join(' '))
    for (const volume of await driver.list()) await driver.delete(volume)
    await driver.settled()
    await devicesAgree(t, own)
    t.deepEqual(await own.volumes(), new Map())
  }
  t.true(kills > 0)
  t.is((await driver.capacity()).provisionedBytes, 0)
})

lab('02. a killed shell’s orphans in device-mapper go, and what others have there stays', async t => {
  const own = await group(t)
  const driver = await own.open(t)
  const [row] = await own.run('vgs', '-o', 'vg_uuid', own.name)
  const groupUuid = row!.vg_uuid!.replaceAll('-', '')
  const device = async (name: string, uuid: string) => {
    await dmsetup(['create', name, '--uuid', uuid], '0 8 zero\n')
  }
  const ids = Array.from({length: 3}, () => newVolumeId())
  const random = () => randomBytes(16).toString('hex')
  const orphans = [`vg-${ids[0]}`, `vg-lunpath--deleted--${ids[1]}--01234567`]
  const foreign = ['vg-database', `other-${ids[2]}`, `vg-${ids[2]}`]
  for (const name of [...orphans, foreign[0]!]) await device(name, `LVM-${groupUuid}${random()}`)
  await device(foreign[1]!, `LVM-${random()}${random()}`)
  await device(foreign[2]!, `LVM-${random()}${random()}`)
  t.teardown(async () => {
    for (const name of foreign) await dmsetup(['remove', name])
  })
  const {pid} = driver.lvm
  const creating = driver.create({id: newVolumeId(), sizeBytes: 4 * MiB})
  await sleep(20)
  process.kill(pid!, 'SIGKILL')
  const volume = await creating
  await until(async () => !(await mappedDevices()).some(({name}) => orphans.includes(name)))
  const names = (await mappedDevices()).map(({name}) => name)
  for (const name of foreign) t.true(names.includes(name), name)
  t.deepEqual(await driver.list(), [volume])
})

const halfActive: [string, (own: TestGroup, t: ExecutionContext) => Promise<unknown>][] = [
  ['a part', own => activate(own, 'y', 'thin_tmeta')],
  [
    'both parts, and the pool without a table',
    async (own, t) => {
      const dying = await dyingLvm('create', 3)
      t.teardown(dying.remove)
      await t.throwsAsync(activate(own, 'y', 'thin', dying.program), {message: /SIGKILL/})
    },
  ],
]

for (const [left, leave] of halfActive) {
  lab(`02b. a thin pool of which a killed command left ${left} can be used`, async t => {
    const own = await group(t)
    const driver = await own.open(t, {thinPool: 'thin'})
    await activate(own, 'n', 'thin')
    await leave(own, t)
    const {pid} = driver.lvm
    // The shell dies with the command before it can say what it makes of what is left.
    process.kill(pid!, 'SIGSTOP')
    const creating = driver.create({id: newVolumeId(), sizeBytes: 4 * MiB})
    await sleep(20)
    process.kill(pid!, 'SIGKILL')
    const volume = await creating
    t.deepEqual(await driver.list(), [volume])
    // A deletion renames it and changes its tags, in the shell that has cleared up.
    await driver.delete(volume)
    await driver.settled()
    t.deepEqual(await own.volumes(), new Map())
  })
}

lab('03. a shell that hangs is ended at the deadline, and the commands behind it run', async t => {
  const own = await group(t)
  const driver = await own.open(t, {commandTimeoutMs: 4000})
  const {pid} = driver.lvm
  process.kill(pid!, 'SIGSTOP')
  const specs = Array.from({length: 3}, () => ({id: newVolumeId(), sizeBytes: 4 * MiB}))
  const volumes = await Promise.all(specs.map(spec => driver.create(spec)))
  t.not(driver.lvm.pid, pid)
  t.is(driver.lvm.mode, 'shell')
  t.is((await driver.list()).length, volumes.length)
  await devicesAgree(t, own)
})

lab('04. where the shell cannot work each command is a process, and all goes on', async t => {
  const own = await group(t)
  const directory = await mkdtemp(join(tmpdir(), 'lp-noshell-'))
  const program = join(directory, 'lvm')
  await writeFile(program, '#!/bin/sh\n[ $# -gt 0 ] || exit 3\nexec /sbin/lvm "$@"\n')
  await chmod(program, 0o755)
  const warnings: string[] = []
  const driver = own.driver({program})
  driver.on('warning', message => warnings.push(message))
  t.teardown(() => driver.close())
  await driver.open()
  t.is(driver.lvm.mode, 'spawn')
  t.regex(warnings.join('\n'), /each command is a process of its own/)
  const volume = await driver.create({id: newVolumeId(), sizeBytes: 4 * MiB})
  t.is(await codeOf(driver.create({id: newVolumeId(), sizeBytes: 2 ** 40})), 'POOL_FULL')
  t.is((await driver.extend(volume, 8 * MiB)).sizeBytes, 8 * MiB)
  await driver.delete(volume)
  await driver.settled()
  t.deepEqual(await own.volumes(), new Map())
})

lab('05. a volume that is open, mounted or held is not deleted, whoever has it', async t => {
  const own = await group(t)
  const driver = await own.open(t)
  const volume = await driver.create({id: newVolumeId(), sizeBytes: 16 * MiB})
  const refused = async (who: RegExp) => {
    const error = await t.throwsAsync(driver.delete(volume), {instanceOf: StorageError, message: who})
    t.is((error as StorageError).code, 'VOLUME_IN_USE')
    t.deepEqual(await driver.get(volume.id), volume)
  }
  // A plain descriptor, as tgtd has one: only device-mapper knows.
  const handle = await open(volume.path, 'r')
  await refused(/is open/)
  await handle.close()
  await run('mkfs.ext4', ['-q', volume.path])
  const directory = await mkdtemp(join(tmpdir(), 'lp-mount-'))
  await run('mount', [volume.path, directory])
  await refused(/is mounted at/)
  await run('umount', [directory])
  await run('dmsetup', ['create', 'holder'], {input: `0 8 linear ${volume.path} 0\n`})
  await refused(/is held by dm-/)
  await dmsetup(['remove', 'holder'])
  await driver.delete(volume)
  await driver.settled()
  t.deepEqual(await own.volumes(), new Map())
})

lab('06. deleted data is wiped before its space is free, and volumes of others stay untouched', async t => {
  const own = await group(t)
  await own.run('lvcreate', '--size', '8m', '--name', 'database', own.name)
  await own.run('lvcreate', '--size', '8m', '--name', 'fedcba9876543210', own.name)
  await own.run('lvcreate', '--size', '8m', '--name', 'lunpath-deleted-fedcba9876543210-00000000', own.name)
  for (const name of (await own.volumes()).keys()) await writeAt(`/dev/vg/${name}`, Buffer.from('precious'), 8192)
  const secret = Buffer.from(randomBytes(32).toString('hex'))
  /** Where the byte 3 MiB of a volume lies on the disk: past the page cache of either. */
  const locate = async (name: string) => {
    const [row] = await own.run('lvs', '--units', 'b', '--nosuffix', '-o', 'seg_pe_ranges,vg_extent_size', `vg/${name}`)
    const [pv] = await own.run('pvs', '--units', 'b', '--nosuffix', '-o', 'pe_start', labDisk(1))
    const [, firstExtent] = /:(\d+)-\d+$/.exec(row!.seg_pe_ranges!)!
    const offset = Number(pv!.pe_start) + Number(firstExtent) * Number(row!.vg_extent_size) + 3 * MiB
    return async () => {
      const block = [`if=${labDisk(1)}`, 'iflag=direct', 'bs=4096', 'count=1', `skip=${offset / 4096}`, 'status=none']
      return (await run('dd', block)).stdout.includes(secret.toString())
    }
  }
  const driver = await own.open(t)
  const volume = await driver.create({id: newVolumeId(), sizeBytes: 8 * MiB})
  await writeAt(volume.path, secret, 3 * MiB)
  const wasThere = await locate(volume.id)
  t.true(await wasThere())
  await driver.delete(volume)
  await driver.settled()
  t.false(await wasThere())
  t.is(await codeOf(driver.create({id: 'fedcba9876543210', sizeBytes: 8 * MiB})), 'VOLUME_EXISTS')
  t.is(await driver.get('fedcba9876543210'), undefined)
  t.deepEqual(await driver.list(), [])
  await driver.close()
  await driver.open()
  await driver.settled()
  for (const name of ['database', 'fedcba9876543210', 'lunpath-deleted-fedcba9876543210-00000000']) {
    t.is((await readAt(`/dev/vg/${name}`, 8, 8192)).toString(), 'precious', name)
  }
  const kept = own.driver({wipe: 'none', pool: 'kept'})
  await kept.open()
  t.teardown(() => kept.close())
  const other = await kept.create({id: newVolumeId(), sizeBytes: 8 * MiB})
  await writeAt(other.path, secret, 3 * MiB)
  const isThere = await locate(other.id)
  await kept.delete(other)
  await kept.settled()
  t.true(await isThere(), 'with wipe none it is left')
})

lab('07. open finishes what a crash has left: deletions, half copies, volumes without a device', async t => {
  const own = await group(t)
  const first = await own.open(t)
  const [kept, deleted, renamed] = await Promise.all(
    Array.from({length: 3}, () => first.create({id: newVolumeId(), sizeBytes: 8 * MiB})),
  )
  await writeAt(kept!.path, Buffer.from('kept'), 4096)
  await first.close()
  // After the commit point and before the new name, after both, and in the middle of a copy.
  const retag = (id: string, name: string) =>
    own.run('lvchange', '--deltag', `lunpath:id=${id}`, '--addtag', `lunpath:deleted=${id}`, `vg/${name}`)
  await retag(deleted!.id, deleted!.id)
  await own.run('lvchange', '--activate', 'n', `vg/${renamed!.id}`)
  await retag(renamed!.id, renamed!.id)
  await own.run('lvrename', 'vg', renamed!.id, `lunpath-deleted-${renamed!.id}-01234567`)
  const half = newVolumeId()
  await own.run('lvcreate', '--size', '8m', '--name', half, '--addtag', `lunpath:making=${half}`, 'vg')
  await own.run('lvchange', '--activate', 'n', `vg/${kept!.id}`)
  const next = await own.open(t)
  await next.settled()
  t.deepEqual(await next.list(), [kept])
  t.is((await readAt(kept!.path, 4, 4096)).toString(), 'kept')
  t.deepEqual([...(await own.volumes()).keys()], [kept!.id])
})

lab('08. thin: a snapshot is at once and for itself, also of a volume in use', async t => {
  const own = await group(t)
  const driver = await own.open(t, {thinPool: 'thin'})
  const source = await driver.create({id: newVolumeId(), sizeBytes: 32 * MiB})
  await writeAt(source.path, Buffer.from('before'), 0)
  const user = await open(source.path, 'r+')
  const snapshot = await driver.snapshot(source, newVolumeId())
  await user.write(Buffer.from('after!'), 0, 6, 0)
  await user.close()
  t.is((await readAt(snapshot.path, 6, 0)).toString(), 'before')
  await driver.delete(source)
  await driver.settled()
  t.is((await readAt(snapshot.path, 6, 0)).toString(), 'before')
  t.deepEqual(await driver.list(), [snapshot])
  const thick = await driver.create({id: newVolumeId(), sizeBytes: 8 * MiB, preallocate: true})
  t.is(await codeOf(driver.snapshot(thick, newVolumeId())), 'UNSUPPORTED')
  const plain = await own.open(t, {pool: 'plain'})
  t.is(await codeOf(plain.create({id: newVolumeId(), sizeBytes: 8 * MiB, preallocate: false})), 'UNSUPPORTED')
})

lab('09. thin pool full: nothing thin is made from the limit on, nothing becomes thick, deleting helps', async t => {
  const own = await group(t)
  await own.run('lvchange', '--errorwhenfull', 'y', 'vg/thin')
  const driver = await own.open(t, {thinPool: 'thin', overcommitRatio: 4, thinLimitPercent: 50})
  const volume = await driver.create({id: newVolumeId(), sizeBytes: 512 * MiB})
  const small = await driver.create({id: newVolumeId(), sizeBytes: 16 * MiB})
  const fill = await open(volume.path, 'r+')
  const block = randomBytes(4 * MiB)
  for (let position = 0; position < 160 * MiB; position += block.length)
    await fill.write(block, 0, block.length, position)
  await fill.sync()
  await sleep(1500)
  t.true((await driver.capacity()).thin!.dataPercent > 50)
  for (const attempt of [
    () => driver.create({id: newVolumeId(), sizeBytes: 4 * MiB}),
    () => driver.clone(small, {id: newVolumeId()}),
    () => driver.snapshot(small, newVolumeId()),
    () => driver.extend(small, 32 * MiB),
  ]) {
    t.is(await codeOf(attempt()), 'POOL_FULL')
  }
  t.is((await driver.list()).length, 2)
  // Now to the brim: its users get errors, and the pool can still be managed.
  const failure = await t.throwsAsync(async () => {
    for (let position = 160 * MiB; position < 400 * MiB; position += block.length) {
      await fill.write(block, 0, block.length, position)
      await fill.sync()
    }
  })
  t.regex(String((failure as NodeJS.ErrnoException).code), /^(EIO|ENOSPC)$/)
  await fill.close().catch(() => undefined)
  t.is(await codeOf(driver.create({id: newVolumeId(), sizeBytes: 4 * MiB})), 'POOL_FULL')
  await driver.delete(volume)
  await driver.settled()
  await sleep(1500)
  await driver.create({id: newVolumeId(), sizeBytes: 4 * MiB})
  t.is(await codeOf(driver.create({id: newVolumeId(), sizeBytes: 2048 * MiB})), 'POOL_FULL', 'over the limit')
})

lab('10. a disk that fails under the group: errors, nothing half-made, and work again when it is back', async t => {
  // Behind the disk's first MiB: its own label would make LVM see one disk twice.
  const sectors = (511 * MiB) / 512
  await run('dmsetup', ['create', 'disk'], {input: `0 ${sectors} linear ${labDisk(2)} 2048\n`})
  const {number} = (await mappedDevices()).find(({name}) => name === 'disk')!
  const own = await TestGroup.make('vgdm', `/dev/dm-${number.split(':')[1]}`)
  const driver = await own.open(t)
  const volume = await driver.create({id: newVolumeId(), sizeBytes: 8 * MiB})
  await writeAt(volume.path, Buffer.from('kept'), 4096)
  const table = async (text: string) => {
    await dmsetup(['suspend', '--noflush', '--nolockfs', 'disk'])
    await dmsetup(['load', 'disk'], text)
    await dmsetup(['resume', 'disk'])
  }
  for (const broken of [`0 ${sectors} error\n`, `0 ${sectors} flakey ${labDisk(2)} 2048 0 60\n`]) {
    await table(broken)
    t.is(await codeOf(driver.create({id: newVolumeId(), sizeBytes: 8 * MiB})), 'POOL_UNUSABLE', broken)
    t.is(await codeOf(driver.extend(volume, 16 * MiB)), 'POOL_UNUSABLE', broken)
    await table(`0 ${sectors} linear ${labDisk(2)} 2048\n`)
    t.deepEqual(await driver.list(), [volume], broken)
    t.is((await readAt(volume.path, 4, 4096)).toString(), 'kept')
    t.is((await driver.capacity()).provisionedBytes, 8 * MiB)
  }
  // A deletion whose wipe fails is not lost: it is told, and the next open finishes it.
  const victim = await driver.create({id: newVolumeId(), sizeBytes: 256 * MiB})
  const warnings: string[] = []
  driver.on('warning', message => warnings.push(message))
  await driver.delete(victim)
  await table(`0 ${sectors} error\n`)
  await driver.settled()
  await table(`0 ${sectors} linear ${labDisk(2)} 2048\n`)
  await driver.close()
  await driver.open()
  await driver.settled()
  t.log(`told: ${warnings.join('; ')}`)
  t.deepEqual([...(await own.volumes()).keys()], [volume.id])
  await driver.delete(volume)
  await driver.close()
  await own.run('vgremove', '--force', 'vgdm')
  await own.shell.close()
  await dmsetup(['remove', '--retry', 'disk'])
})

lab('11. a group is made of empty devices alone, and the reason is said', async t => {
  const systemDirectory = await mkdtemp(join(tmpdir(), 'lp-create-'))
  const create = (devices: string[], group = 'fresh') =>
    createGroup({group, devices, thinPool: 'thin', systemDirectory})
  const refused = async (devices: string[], code: ErrorCode, why: RegExp) => {
    const error = (await t.throwsAsync(create(devices), {message: why})) as StorageError
    t.is(error.code, code)
  }
  await run('mkfs.ext4', ['-q', labDisk(4)])
  await refused([labDisk(3), labDisk(4)], 'DEVICE_IN_USE', /holds ext4 \(filesystem\).*wipefs/)
  await mkdir('/tmp/mounted', {recursive: true})
  await run('mount', [labDisk(4), '/tmp/mounted'])
  await refused([labDisk(4)], 'DEVICE_IN_USE', /mounted|claimed/)
  await run('umount', ['/tmp/mounted'])
  await run('wipefs', ['--all', labDisk(4)])
  await run('mkswap', [labDisk(4)])
  await refused([labDisk(4)], 'DEVICE_IN_USE', /holds swap/)
  await run('wipefs', ['--all', labDisk(4)])
  // An MBR with one partition, as fdisk writes it.
  const table = Buffer.alloc(512)
  table.writeUInt8(0x83, 446 + 4)
  table.writeUInt32LE(2048, 446 + 8)
  table.writeUInt32LE(8192, 446 + 12)
  table.writeUInt16LE(0xaa55, 510)
  await writeAt(labDisk(4), table, 0)
  await refused([labDisk(4)], 'DEVICE_IN_USE', /holds dos \(partitions\)|has partitions/)
  await writeAt(labDisk(4), Buffer.alloc(4096), 0)
  const holder = await dmsetup(['create', 'holds'], `0 8 linear ${labDisk(4)} 0\n`)
  t.is(holder.code, 0)
  await refused([labDisk(4)], 'DEVICE_IN_USE', /claimed|held by/)
  await dmsetup(['remove', 'holds'])
  await refused(['/dev/null'], 'UNSUPPORTED', /no block device/)
  await refused(['/dev/nosuch'], 'VOLUME_MISSING', /cannot be reached/)
  await refused([], 'NOT_FOUND', /name the devices/)

  const disk = await open(labDisk(3), 'r')
  t.is(await signatureOf(disk.fd), undefined, 'no refusal has written anything')
  const fresh = await create([labDisk(3), labDisk(4)])
  t.deepEqual(await signatureOf(disk.fd), {type: 'LVM2_member', usage: 'raid'})
  await disk.close()
  t.is(fresh.name, 'fresh')
  await refused([labDisk(4)], 'VOLUME_EXISTS', /is not changed/)
  t.is(
    (await createGroup({group: 'fresh', devices: [], thinPool: 'thin', systemDirectory})).name,
    'fresh',
    'taken as it is',
  )
  const driver = new LvmVolumeDriver({pool: 'fresh', group: 'fresh', thinPool: 'thin', systemDirectory})
  await driver.open()
  const volume = await driver.create({id: newVolumeId(), sizeBytes: 64 * MiB})
  t.is(volume.allocation, 'sparse')
  await driver.delete(volume)
  await driver.close()
})

lab('12. a thick clone is a copy with progress, and beyond its source it reads zeros', async t => {
  const own = await group(t)
  // What lies on the disk where the clone will be.
  const dirty = await own.open(t, {wipe: 'none'})
  const old = await dirty.create({id: newVolumeId(), sizeBytes: 64 * MiB})
  const junk = await open(old.path, 'r+')
  for (let position = 0; position < 64 * MiB; position += MiB) await junk.write(randomBytes(MiB), 0, MiB, position)
  await junk.close()
  const directory = await mkdtemp(join(tmpdir(), 'lp-source-'))
  const path = join(directory, 'image')
  await writeFile(path, Buffer.concat([Buffer.alloc(2 * MiB), randomBytes(MiB), Buffer.alloc(MiB)]))
  await dirty.delete(old)
  await dirty.settled()
  const source = {id: newVolumeId(), driver: 'imported', pool: directory, path, kind: 'file' as const}
  const sourceVolume = {...source, sizeBytes: 4 * MiB, allocation: 'sparse' as const, imported: true}
  const clone = await dirty.clone(sourceVolume, {id: newVolumeId(), sizeBytes: 16 * MiB})
  const sum = (data: Buffer) => createHash('sha256').update(data).digest('hex')
  const expected = Buffer.concat([await readFile(path), Buffer.alloc(12 * MiB)])
  t.is(sum(await readAt(clone.path, 16 * MiB, 0)), sum(expected))
  t.deepEqual(
    (await readdir('/dev/vg')).filter(name => name.startsWith('lunpath')),
    [],
  )
})
