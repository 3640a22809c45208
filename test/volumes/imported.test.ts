import {spawn} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {mkdir, mkdtemp, readFile, realpath, rm, stat, symlink, truncate, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import {StorageError} from '../../src/errors.js'
import {run} from '../../src/exec.js'
import {FileVolumeDriver} from '../../src/volumes/file.js'
import {newVolumeId} from '../../src/volumes/id.js'
import {openImported} from '../../src/volumes/imported.js'
import {attachLoop, codeOf, MiB} from '../contract/observe.js'
import {lab} from '../lab/lab.js'

async function temporary(t: ExecutionContext): Promise<string> {
  const directory = await realpath(await mkdtemp(join(tmpdir(), 'lp-import-')))
  t.teardown(() => rm(directory, {recursive: true}))
  return directory
}

/** An image file and a loop device over it: a real block device of our own. */
async function blockDevice(t: ExecutionContext, sizeBytes = 8 * MiB, options: string[] = []) {
  const image = join(await temporary(t), 'disk.raw')
  await writeFile(image, '')
  await truncate(image, sizeBytes)
  return {image, device: (await attachLoop(t, image, options)).device}
}

/** The message of the DEVICE_IN_USE that the import must fail with. */
async function useOf(t: ExecutionContext, path: string): Promise<string> {
  const error = await t.throwsAsync<StorageError>(openImported(path, newVolumeId()), {instanceOf: StorageError})
  t.is(error?.code, 'DEVICE_IN_USE')
  return error?.message ?? ''
}

test('a file becomes a volume and is not changed', async t => {
  const directory = await temporary(t)
  const path = join(directory, 'image.raw')
  const bytes = randomBytes(MiB)
  await writeFile(path, bytes)
  const before = await stat(path)
  const id = newVolumeId()
  t.deepEqual(await openImported(path, id), {
    id,
    driver: 'imported',
    pool: directory,
    path,
    kind: 'file',
    sizeBytes: MiB,
    allocation: 'preallocated',
    imported: true,
  })
  t.deepEqual(await readFile(path), bytes)
  t.is((await stat(path)).mtimeMs, before.mtimeMs)
})

test('a symbolic link is resolved, and what it leads to is what is checked', async t => {
  const directory = await temporary(t)
  await writeFile(join(directory, 'image.raw'), Buffer.alloc(4096))
  await symlink('image.raw', join(directory, 'link'))
  t.is((await openImported(join(directory, 'link'), newVolumeId())).path, join(directory, 'image.raw'))
  await writeFile(join(directory, 'a,b'), Buffer.alloc(4096))
  await symlink('a,b', join(directory, 'innocent'))
  t.is(await codeOf(openImported(join(directory, 'innocent'), newVolumeId())), 'NAME_INVALID')
})

test('paths that the rooms cannot carry are NAME_INVALID', async t => {
  const directory = await temporary(t)
  for (const name of ['a,b', 'a\nb', 'a\x7fb', 'a\tb']) await writeFile(join(directory, name), Buffer.alloc(512))
  const paths = [
    ...['a,b', 'a\nb', 'a\x7fb', 'a\tb'].map(name => join(directory, name)),
    'relative.raw',
    '',
    `${directory}/../etc/passwd`,
    `${directory}//image`,
    `${directory}/./image`,
    `/${'x'.repeat(1100)}`,
    '/nul\0byte',
  ]
  for (const path of paths) t.is(await codeOf(openImported(path, newVolumeId())), 'NAME_INVALID', path)
  t.is(await codeOf(openImported(join(directory, 'image'), 'NOT-AN-ID')), 'NAME_INVALID')
})

test('what is no image gets a clear error', async t => {
  const directory = await temporary(t)
  await writeFile(join(directory, 'odd'), Buffer.alloc(513))
  await writeFile(join(directory, 'empty'), '')
  await mkdir(join(directory, 'directory'))
  await symlink('nowhere', join(directory, 'dangling'))
  await run('mkfifo', [join(directory, 'fifo')])
  const expected: Record<string, string> = {
    [join(directory, 'odd')]: 'SIZE_INVALID',
    [join(directory, 'empty')]: 'SIZE_INVALID',
    [join(directory, 'directory')]: 'UNSUPPORTED',
    [join(directory, 'dangling')]: 'VOLUME_MISSING',
    [join(directory, 'nothing')]: 'VOLUME_MISSING',
    [join(directory, 'fifo')]: 'UNSUPPORTED',
    '/dev/null': 'UNSUPPORTED',
  }
  for (const [path, code] of Object.entries(expected))
    t.is<string, string>(await codeOf(openImported(path, newVolumeId())), code, path)
})

test("a pool's own volume cannot be imported, also through a link", async t => {
  const directory = await temporary(t)
  const driver = new FileVolumeDriver({pool: 'test', directory: join(directory, 'pool')})
  await driver.open()
  const volume = await driver.create({id: newVolumeId(), sizeBytes: MiB})
  await driver.close()
  await symlink(volume.path, join(directory, 'link'))
  t.is(await codeOf(openImported(volume.path, newVolumeId())), 'VOLUME_EXISTS')
  t.is(await codeOf(openImported(join(directory, 'link'), newVolumeId())), 'VOLUME_EXISTS')
})

test("a loop device's backing file is in use, the loop device is not", async t => {
  const {image, device} = await blockDevice(t)
  t.regex(await useOf(t, image), new RegExp(`backing file of ${device}$`))
  const id = newVolumeId()
  const volume = await openImported(device, id)
  t.like(volume, {id, kind: 'block', sizeBytes: 8 * MiB, allocation: 'preallocated', imported: true})
  t.is(await realpath(volume.path), device)
})

test('a device with a size that is no multiple of a sector is counted in whole sectors', async t => {
  const {device} = await blockDevice(t, 8 * MiB + 100)
  t.is((await openImported(device, newVolumeId())).sizeBytes, 8 * MiB)
})

test('a mounted device is in use', async t => {
  const {device} = await blockDevice(t, 16 * MiB)
  await run('mkfs.ext4', ['-q', device])
  const mountPoint = join(await temporary(t), 'a b')
  await mkdir(mountPoint)
  await run('mount', [device, mountPoint])
  t.teardown(() => run('umount', [mountPoint], {accept: [0, 32]}))
  t.true((await useOf(t, device)).endsWith(`it is mounted at ${mountPoint}`))
  // That it is free after the umount is not asked: a mount namespace that another test made meanwhile has a copy of the
  // mount for as long as it lives (mount_namespaces(7)), and the kernel is right to say so.
})

test('a device mounted in another namespace, where no list of mounts here shows it, is in use', async t => {
  const {device} = await blockDevice(t, 16 * MiB)
  await run('mkfs.ext4', ['-q', device])
  const mountPoint = join(await temporary(t), 'elsewhere')
  await mkdir(mountPoint)
  const script = 'mount -- "$0" "$1" && echo mounted && exec sleep 300'
  const holder = spawn('unshare', ['--mount', '--propagation', 'private', 'sh', '-c', script, device, mountPoint], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const ended = new Promise(resolve => holder.once('close', resolve))
  t.teardown(async () => {
    holder.kill('SIGKILL')
    await ended
  })
  await new Promise(resolve => holder.stdout.once('data', resolve))
  t.false((await readFile('/proc/self/mountinfo', 'utf8')).includes(mountPoint))
  t.regex(await useOf(t, device), /claimed by another part of the kernel$/)
})

test('a swap device is in use', async t => {
  const {device} = await blockDevice(t, 16 * MiB)
  await run('mkswap', [device])
  await run('swapon', [device])
  t.teardown(() => run('swapoff', [device], {accept: [0, 4, 255]}))
  t.regex(await useOf(t, device), /it is swap space$/)
  await run('swapoff', [device])
  t.is(await codeOf(openImported(device, newVolumeId())), 'no error')
})

test('a disk whose partition is mounted is in use', async t => {
  const {device} = await blockDevice(t, 32 * MiB, ['--partscan'])
  await run('addpart', [device, '1', '2048', '40960'])
  t.teardown(() => run('delpart', [device, '1']))
  const partition = `${device}p1`
  await run('mkfs.ext4', ['-q', partition])
  t.is(await codeOf(openImported(partition, newVolumeId())), 'no error')
  const mountPoint = join(await temporary(t), 'partition')
  await mkdir(mountPoint)
  await run('mount', [partition, mountPoint])
  t.teardown(() => run('umount', [mountPoint], {accept: [0, 32]}))
  t.true((await useOf(t, device)).endsWith(`it is mounted at ${mountPoint}`))
  t.true((await useOf(t, partition)).endsWith(`it is mounted at ${mountPoint}`))
  await run('umount', [mountPoint])
})

lab.options({modules: ['loop', 'dm-mod']})

lab('a device under device-mapper is in use', async t => {
  const {device} = await blockDevice(t, 16 * MiB)
  const name = `lunpath-test-${process.pid}`
  const table = `0 ${(16 * MiB) / 512} linear ${device} 0`
  await run('dmsetup', ['create', name, '--noudevsync', '--table', table])
  t.teardown(() => run('dmsetup', ['remove', '--noudevsync', name]))
  t.regex(await useOf(t, device), /it is held by dm-\d+$/)
})
