// Which bytes a path leads to: the same by every name, and others where nothing is shared.
import {link, mkdtemp, readdir, readFile, rm, stat, truncate, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {basename, join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import test, {type ExecutionContext} from 'ava'
import {backingAt, backingOfLun, backingOfScsi, overlap} from '../src/backing.js'
import {run} from '../src/exec.js'
import {attachLoop, MiB} from './contract/observe.js'
import {withLoop} from './fixtures/with-loop.js'
import {lab, labDisk} from './lab/lab.js'
import {TestGroup} from './volumes/lvm-group.js'

async function image(t: ExecutionContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'lp-backing-'))
  t.teardown(() => rm(directory, {recursive: true}))
  const path = join(directory, 'image')
  await writeFile(path, '')
  await truncate(path, 16 * MiB)
  return path
}

async function shares(one: string, other: string): Promise<boolean> {
  const [a, b] = await Promise.all([backingAt(one), backingAt(other)])
  const forth = overlap(a!, b!)
  if (forth !== overlap(b!, a!)) throw new Error('it depends on who is asked first')
  return forth
}

test('a file is the same by a hard link, another file is not, and what is not there is nothing', async t => {
  const path = await image(t)
  await link(path, `${path}.link`)
  t.true(await shares(path, `${path}.link`))
  t.false(await shares(path, await image(t)))
  t.is(await backingAt(`${path}.none`), undefined)
})

test('a LUN is the same at every portal, and is the volume where the target is our own', async t => {
  const path = await image(t)
  const iqn = 'iqn.2026-01.test:one'
  const own = (name: string, lun: number) => (name === iqn && lun === 1 ? path : undefined)
  t.true(overlap(await backingOfLun(iqn, 1), await backingOfLun(iqn.toUpperCase(), 1)))
  t.false(overlap(await backingOfLun(iqn, 1), await backingOfLun(iqn, 2)))
  t.true(overlap(await backingOfLun(iqn, 1, own), (await backingAt(path))!))
  t.false(overlap(await backingOfLun(iqn, 2, own), (await backingAt(path))!))
})

withLoop('a loop device is its file, and two over parts of it are the same where the parts meet', async t => {
  const path = await image(t)
  const [first, second, whole] = [
    await attachLoop(t, path, ['--sizelimit', String(4 * MiB)]),
    await attachLoop(t, path, ['--offset', String(4 * MiB)]),
    await attachLoop(t, path),
  ]
  for (const {device} of [first, second, whole]) t.true(await shares(device, path))
  t.true(await shares(first.device, whole.device))
  t.false(await shares(first.device, second.device))
  const nested = await attachLoop(t, second.device)
  t.true(await shares(nested.device, path))
  t.false(await shares(nested.device, first.device))
})

lab.options({disksBytes: [64 * MiB], modules: ['loop', 'dm-mod', 'sd_mod']})

/** Two hosts with one disk each, and one WWID for both: two paths to one disk. */
async function twoPaths(): Promise<string[]> {
  await run('modprobe', ['scsi_debug', 'add_host=2', 'vpd_use_hostno=0', 'dev_size_mb=16'])
  for (let tries = 0; tries < 100; tries++) {
    const names = (await readdir('/sys/block')).filter(name => /^sd/.test(name))
    if (names.length === 2) return names.sort()
    await sleep(50)
  }
  throw new Error('scsi_debug made no disks')
}

lab('a SCSI disk by its paths, its address and its partitions', async t => {
  const [name, other] = (await twoPaths()) as [string, string]
  const disk = `/dev/${name}`
  t.true(await shares(disk, `/dev/${other}`), 'two paths have one WWID')
  const directory = await run('readlink', ['--canonicalize', `/sys/block/${name}/device`])
  const byAddress = await backingOfScsi(basename(directory.stdout.trim()))
  t.true(overlap(byAddress!, (await backingAt(disk))!))

  await run('addpart', [disk, '1', '64', '2048'])
  await run('addpart', [disk, '2', '4096', '2048'])
  t.true(await shares(disk, `${disk}1`))
  t.true(await shares(`${disk}2`, `/dev/${other}`))
  t.false(await shares(`${disk}1`, `${disk}2`))
  const [major, minor] = (await readFile(`/sys/class/block/${name}1/dev`, 'utf8')).trim().split(':')
  const node = join(await mkdtemp(join(tmpdir(), 'lp-backing-')), 'node')
  await run('mknod', [node, 'b', major!, minor!])
  t.true(await shares(node, `${disk}1`))
  t.false(await shares(node, `${disk}2`))
})

lab('a logical volume is its dm node, shares with its disk, and shares nothing with its neighbour', async t => {
  const group = await TestGroup.make('vgbytes', labDisk(1))
  t.teardown(() => group.shell.close())
  for (const name of ['one', 'two']) await group.run('lvcreate', '--size', '8m', '--name', name, 'vgbytes')
  const {rdev} = await stat('/dev/vgbytes/one')
  const names = (await readdir('/sys/block')).filter(name => /^dm-/.test(name))
  const nodes = await Promise.all(names.map(async name => ({name, rdev: (await stat(`/dev/${name}`)).rdev})))
  const node = nodes.find(one => one.rdev === rdev)!
  t.true(await shares('/dev/vgbytes/one', `/dev/${node.name}`))
  t.true(await shares('/dev/vgbytes/one', labDisk(1)))
  t.false(await shares('/dev/vgbytes/one', '/dev/vgbytes/two'))
  const {device} = await attachLoop(t, '/dev/vgbytes/one')
  t.true(await shares(device, `/dev/${node.name}`))
  t.true(await shares(device, labDisk(1)))
  t.false(await shares(device, '/dev/vgbytes/two'))
})
