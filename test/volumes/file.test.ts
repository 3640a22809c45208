import {spawn} from 'node:child_process'
import {createHash, randomBytes} from 'node:crypto'
import {
  chmod,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  realpath,
  rm,
  stat,
  statfs,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {fileURLToPath} from 'node:url'
import test, {type ExecutionContext} from 'ava'
import {StorageError} from '../../src/errors.js'
import {run} from '../../src/exec.js'
import {examinePool, FileVolumeDriver, poolMarker} from '../../src/volumes/file.js'
import {newVolumeId} from '../../src/volumes/id.js'
import {codeOf, MiB, readAt, writeAt} from '../contract/observe.js'
import {volumeContract} from '../contract/volumes.js'

async function temporary(t: ExecutionContext): Promise<string> {
  const directory = await realpath(await mkdtemp(join(tmpdir(), 'lp-file-')))
  t.teardown(() => rm(directory, {recursive: true}))
  return directory
}

async function openDriver(t: ExecutionContext, directory: string, pool = 'test') {
  const driver = new FileVolumeDriver({pool, directory})
  await driver.open()
  t.teardown(() => driver.close())
  return driver
}

function script(name: string): string {
  return fileURLToPath(new URL(`./${name}.js`, import.meta.url))
}

/** Names in a pool's directory that are neither a volume nor the marker. */
async function strays(directory: string): Promise<string[]> {
  return (await readdir(directory)).filter(name => name !== poolMarker && !/^[0-9a-f]{16}\.img$/.test(name))
}

volumeContract('file', async (t, {limitBytes}) => {
  const parent = await temporary(t)
  const {blocks, bsize} = await statfs(parent)
  // Half a byte more keeps the product from being rounded down to one less.
  const overcommitRatio = (limitBytes + 0.5) / (blocks * bsize)
  const make = () => new FileVolumeDriver({pool: 'test', directory: join(parent, 'pool'), overcommitRatio})
  return {driver: make(), again: make}
})

test('open makes the directory with mode 0700 where only its last part is missing', async t => {
  const parent = await temporary(t)
  await openDriver(t, join(parent, 'pool'))
  t.is((await stat(join(parent, 'pool'))).mode & 0o7777, 0o700)
  const marker = JSON.parse(await readFile(join(parent, 'pool', poolMarker), 'utf8')) as {id: string}
  t.like(marker, {version: 1, driver: 'file'})
  t.regex(marker.id, /^[0-9a-f]{16}$/)
  const deep = new FileVolumeDriver({pool: 'test', directory: join(parent, 'no', 'such')})
  t.is(await codeOf(deep.open()), 'POOL_UNUSABLE')
  t.deepEqual(await readdir(parent), ['pool'])
})

test('open refuses what cannot hold a pool and says why', async t => {
  const parent = await temporary(t)
  const cases: [directory: string, reason: RegExp][] = [
    ['/proc', /proc is an interface of the kernel/],
    ['/sys/kernel', /sysfs is an interface of the kernel/],
    [join(parent, 'file'), /not a directory/],
    [join(parent, 'open'), /every user may write/],
    [join(parent, 'foreign'), /holds "disk\.img" and no \.lunpath-pool/],
    [join(parent, 'damaged'), /\.lunpath-pool is damaged/],
    [join(parent, 'other'), /\.lunpath-pool is damaged: it names no driver/],
    [join(parent, 'newer'), /version 2, and this lunpath knows 1/],
  ]
  await writeFile(join(parent, 'file'), '')
  for (const name of ['open', 'foreign', 'damaged', 'other', 'newer']) await mkdir(join(parent, name))
  await chmod(join(parent, 'open'), 0o777)
  await writeFile(join(parent, 'foreign', 'disk.img'), 'precious')
  await writeFile(join(parent, 'damaged', poolMarker), '{"version":')
  await writeFile(join(parent, 'other', poolMarker), '{"version":1}')
  await writeFile(join(parent, 'newer', poolMarker), '{"version":2,"driver":"file"}')
  for (const [directory, reason] of cases) {
    const error = await t.throwsAsync(new FileVolumeDriver({pool: 'test', directory}).open(), {
      instanceOf: StorageError,
      message: reason,
    })
    t.is((error as StorageError).code, 'POOL_UNUSABLE', directory)
  }
  t.deepEqual(await readdir(join(parent, 'foreign')), ['disk.img'])
  t.is(await codeOf(new FileVolumeDriver({pool: 'test', directory: `${parent}/a,b`}).open()), 'NAME_INVALID')
})

test('open takes a directory with other files, and leaves them and what looks like volumes alone', async t => {
  const directory = await temporary(t)
  await writeFile(join(directory, 'README'), 'mine')
  const driver = await openDriver(t, directory)
  const volume = await driver.create({id: newVolumeId(), sizeBytes: MiB})
  await writeFile(join(directory, 'disk.img'), Buffer.alloc(512))
  await writeFile(join(directory, '0123456789ABCDEF.img'), Buffer.alloc(512))
  await writeFile(join(directory, '0000000000000001.img'), 'an odd size')
  await mkdir(join(directory, '0000000000000002.img'))
  await symlink('/etc/passwd', join(directory, '0000000000000003.img'))
  t.deepEqual(await driver.list(), [volume])
  for (const id of ['0000000000000001', '0000000000000002', '0000000000000003']) {
    t.is(await driver.get(id), undefined)
    t.is(await codeOf(driver.create({id, sizeBytes: MiB})), 'VOLUME_EXISTS', id)
    t.is(await codeOf(driver.create({id, sizeBytes: MiB, preallocate: true})), 'VOLUME_EXISTS', id)
  }
  await driver.close()
  await driver.open()
  t.deepEqual(await driver.list(), [volume])
  t.is((await readdir(directory)).length, 8)
})

test('files of a volume are for their owner alone, those of clones too', async t => {
  const directory = await temporary(t)
  const driver = await openDriver(t, directory)
  const sparse = await driver.create({id: newVolumeId(), sizeBytes: MiB})
  const preallocated = await driver.create({id: newVolumeId(), sizeBytes: MiB, preallocate: true})
  await chmod(sparse.path, 0o644)
  const clone = await driver.clone(sparse, {id: newVolumeId()})
  for (const {path} of [preallocated, clone]) t.is((await stat(path)).mode & 0o7777, 0o600)
})

test('a sparse volume takes no space, a preallocated one all of it, and a copy keeps holes', async t => {
  const directory = await temporary(t)
  const driver = await openDriver(t, directory)
  const allocatedBytes = async (path: string) => (await stat(path)).blocks * 512
  const sparse = await driver.create({id: newVolumeId(), sizeBytes: 64 * MiB})
  t.is(await allocatedBytes(sparse.path), 0)
  const preallocated = await driver.create({id: newVolumeId(), sizeBytes: 8 * MiB, preallocate: true})
  t.true((await allocatedBytes(preallocated.path)) >= 8 * MiB)
  const grown = await driver.extend(preallocated, 12 * MiB)
  t.true((await allocatedBytes(grown.path)) >= 12 * MiB)
  await writeAt(sparse.path, randomBytes(MiB), 20 * MiB)
  const clone = await driver.clone(sparse, {id: newVolumeId()})
  t.deepEqual(await readAt(clone.path, MiB, 20 * MiB), await readAt(sparse.path, MiB, 20 * MiB))
  t.true((await allocatedBytes(clone.path)) <= 2 * MiB)
})

test('a file that a process has locked, as QEMU locks its images, is VOLUME_IN_USE', async t => {
  const directory = await temporary(t)
  const driver = await openDriver(t, directory)
  const volume = await driver.create({id: newVolumeId(), sizeBytes: MiB})
  const holder = spawn('flock', ['--exclusive', volume.path, 'sh', '-c', 'echo held; exec sleep 300'], {
    detached: true,
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const ended = new Promise(resolve => holder.once('close', resolve))
  const release = async () => {
    if (holder.exitCode === null && holder.signalCode === null) process.kill(-holder.pid!, 'SIGKILL')
    await ended
  }
  t.teardown(release)
  await new Promise(resolve => holder.stdout!.once('data', resolve))
  t.is(await codeOf(driver.delete(volume)), 'VOLUME_IN_USE')
  await release()
  await driver.delete(volume)
  t.is(await driver.get(volume.id), undefined)
})

test('open finishes what a crash interrupted', async t => {
  const directory = await temporary(t)
  const driver = await openDriver(t, directory)
  const volume = await driver.create({id: newVolumeId(), sizeBytes: MiB})
  await driver.close()
  const id = newVolumeId()
  await writeFile(join(directory, `.quarantine-${id}-0a1b2c3d`), Buffer.alloc(4096))
  await writeFile(join(directory, `.tmp-${id}-0a1b2c3d`), Buffer.alloc(4096))
  await writeFile(join(directory, `${poolMarker}-0a1b2c3d`), '{')
  await writeFile(join(directory, `${id}.img`), '')
  await driver.open()
  t.deepEqual(await readdir(directory), [poolMarker, `${volume.id}.img`])
  t.deepEqual(await driver.list(), [volume])
})

test('examinePool changes nothing', async t => {
  const parent = await temporary(t)
  await t.throwsAsync(examinePool(join(parent, 'pool'), {make: false}), {instanceOf: StorageError})
  t.deepEqual(await readdir(parent), [])
  const {marked, directory} = await examinePool(parent, {make: false})
  t.false(marked)
  t.is(directory, parent)
  t.deepEqual(await readdir(parent), [])
})

test('a pool behind a symbolic link has real paths', async t => {
  const parent = await temporary(t)
  await mkdir(join(parent, 'real'), {mode: 0o700})
  await symlink(join(parent, 'real'), join(parent, 'link'))
  const driver = await openDriver(t, join(parent, 'link'))
  const volume = await driver.create({id: newVolumeId(), sizeBytes: MiB})
  t.is(volume.path, join(parent, 'real', `${volume.id}.img`))
})

test('a clone whose source ends early fails and leaves nothing', async t => {
  const directory = await temporary(t)
  const driver = await openDriver(t, join(directory, 'pool'))
  const path = join(directory, 'shrinking.raw')
  await writeFile(path, randomBytes(8 * MiB))
  let cut = false
  const cloning = driver.clone(
    {
      id: newVolumeId(),
      driver: 'imported',
      pool: directory,
      path,
      kind: 'file',
      sizeBytes: 8 * MiB,
      allocation: 'sparse',
      imported: true,
    },
    {
      id: newVolumeId(),
      onProgress: async ({copiedBytes}) => {
        if (cut || copiedBytes === 8 * MiB) return
        cut = true
        await truncate(path, 2 * MiB)
      },
    },
  )
  const code = await codeOf(cloning)
  if (!cut) return t.is(code, 'no error', 'a reflink is one step')
  t.is(code, 'VOLUME_MISSING')
  t.deepEqual(await readdir(join(directory, 'pool')), [poolMarker])
})

test('a full disk is POOL_FULL, leaves nothing half-made, and what was there goes on', async t => {
  const directory = await temporary(t)
  const mountPoint = join(directory, 'small')
  await mkdir(mountPoint)
  const asRoot = process.getuid?.() === 0 ? [] : ['--map-root-user']
  const {stdout} = await run('unshare', [
    ...asRoot,
    '--mount',
    '--propagation',
    'private',
    '--',
    process.execPath,
    script('full-disk'),
    mountPoint,
    directory,
  ])
  const report = JSON.parse(stdout)
  t.is(report.fileSystem, 'tmpfs')
  t.is(report.preallocateBeyondFree, 'POOL_FULL')
  t.deepEqual(report.afterPreallocateBeyondFree.names, [poolMarker])
  t.deepEqual(report.parallelPreallocations, ['POOL_FULL', 'ok'])
  t.is(report.extendBeyondFree, 'POOL_FULL')
  t.deepEqual(report.afterExtend.volumes, [6 * MiB])
  t.is(report.afterExtend.names.length, 2)
  t.true(report.afterExtend.freeBytes >= MiB, 'what extend had reserved is free again')
  t.is(report.cloneBeyondFree, 'POOL_FULL')
  t.is(report.afterClone.names.length, 2)
  t.is(report.afterClone.provisionedBytes, 6 * MiB)
  t.is(report.deleteWhileFull, 'ok')
  t.deepEqual(report.afterDelete.names, [poolMarker])
  t.deepEqual(report.inodes.outcomes, ['ok', 'ok', 'POOL_FULL', 'POOL_FULL'])
  t.is(report.inodes.volumes, 2)
  t.is(report.inodes.provisionedBytes, 2 * MiB)
  t.is(report.readOnly, 'POOL_UNUSABLE')
  t.is(report.openWhileFull, 'ok')
  t.is(report.raced.extend, 'POOL_FULL')
  t.true(report.raced.allocatedBytes < 3 * MiB, 'what extend had reserved is free again')
  t.is(report.raced.create, 'POOL_FULL')
  t.deepEqual(report.raced.volumes, report.raced.expected)
  t.is(report.raced.fillerBytes, 12 * MiB)
  t.is(report.raced.names, 4, 'marker, volume, filler, lost+found')
})

test('a process killed at any moment leaves whole volumes, all that it was promised and nothing else', async t => {
  const directory = join(await temporary(t), 'pool')
  const setUp = new FileVolumeDriver({pool: 'churn', directory})
  await setUp.open()
  const source = await setUp.create({id: newVolumeId(), sizeBytes: 4 * MiB})
  await writeAt(source.path, randomBytes(4 * MiB), 0)
  await setUp.close()
  const digest = async (path: string) =>
    createHash('sha256')
      .update((await readFile(path)).subarray(0, 4 * MiB))
      .digest('hex')
  const expected = await digest(source.path)

  const interrupted = new Set<string>()
  for (let round = 0; round < 12; round++) {
    const child = spawn(process.execPath, [script('churn'), directory, source.id], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    let said = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      said += text
    })
    const ended = new Promise(resolve => child.once('close', resolve))
    while (said.length < 2000 && child.exitCode === null) await sleep(5)
    await sleep(Math.random() * 60)
    child.kill('SIGKILL')
    await ended
    t.is(child.signalCode, 'SIGKILL')
    for (const name of await strays(directory)) interrupted.add(name.replace(/-.*/, ''))

    const driver = new FileVolumeDriver({pool: 'churn', directory})
    await driver.open()
    t.deepEqual(await strays(directory), [])
    const volumes = new Map((await driver.list()).map(volume => [volume.id, volume]))
    t.is((await readdir(directory)).length, volumes.size + 1)

    const events = said
      .split('\n')
      .filter(line => line.endsWith('}'))
      .map(line => JSON.parse(line) as {op: string; kind: string; phase: string; id: string; sizeBytes: number})
    const promised = new Map<string, number>()
    const open = new Set<string>()
    const clones = new Set<string>()
    for (const {op, kind, phase, id, sizeBytes} of events) {
      if (kind === 'clone') clones.add(id)
      if (phase === 'begun') open.add(id)
      else open.delete(id)
      if (phase !== 'done') continue
      if (op === 'delete') promised.delete(id)
      else promised.set(id, sizeBytes)
    }
    for (const [id, sizeBytes] of promised) {
      if (open.has(id)) continue
      t.is(volumes.get(id)?.sizeBytes, sizeBytes, `promised volume ${id}`)
    }
    for (const [id, volume] of volumes) {
      if (id === source.id) continue
      t.true(promised.has(id) || open.has(id), `nobody knows of volume ${id}`)
      t.true([4 * MiB, 6 * MiB].includes(volume.sizeBytes))
      if (clones.has(id)) t.is(await digest(volume.path), expected, `clone ${id}`)
      await driver.delete(volume)
    }
    await driver.close()
  }
  t.log(`left behind by the kills and cleaned: ${[...interrupted].join(' ')}`)
})
