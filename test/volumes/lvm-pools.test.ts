// Pools in LVM as their users have them: the daemon in the lab, and the command line against it.
import {randomBytes} from 'node:crypto'
import {writeFile} from 'node:fs/promises'
import {run} from '../../src/exec.js'
import type {PoolCapacity} from '../../src/volumes/driver.js'
import {readAt, writeAt} from '../contract/observe.js'
import {lunpath} from '../fixtures/cli.js'
import {LogLines, Node} from '../fixtures/node.js'
import {lab, labDisk} from '../lab/lab.js'

const MiB = 2 ** 20

lab.options({
  disksBytes: [1024 * MiB, 512 * MiB],
  modules: ['dm-mod', 'dm-thin-pool', 'loop'],
  deadlineMs: 900_000,
})

interface Volume {
  id: string
  pool: string
  driver: string
  path: string
  sizeBytes: number
  allocation: string
}

lab('pools in LVM: made, listed, used, exported, measured, and there again after a restart', async t => {
  const node = await Node.make()
  t.teardown(() => node.stop())
  const log = new LogLines()
  await node.start({logTo: log})
  const cli = async (...args: string[]) => lunpath(['--socket', node.socket, ...args])
  const json = async <T>(...args: string[]): Promise<T> => {
    const {exitCode, stdout} = await cli(...args, '--json')
    t.is(exitCode, 0, `${args.join(' ')}: ${stdout}`)
    return JSON.parse(stdout) as T
  }
  const refused = async (code: string, ...args: string[]) => {
    const {stdout} = await cli(...args, '--json')
    t.is((JSON.parse(stdout) as {error?: {code: string}}).error?.code, code, `${args.join(' ')}: ${stdout}`)
  }
  // What is no command about pools goes the short way: in the lab a program of Node's takes two seconds to start.
  const make = async (body: object) => (await node.api.call<{volume: Volume}>('POST', '/volumes', body)).volume
  const remove = (key: string) => node.api.call('DELETE', `/volumes/${key}`)
  const usable = async () => (await node.api.call<{unusable: object[]}>('GET', '/pools')).unusable.length === 0

  const thick = await json<PoolCapacity>('pool', 'create', '--vg', 'vg0', labDisk(1))
  t.like(thick, {pool: 'vg0', driver: 'lvm', provisionedBytes: 0})
  await refused('DEVICE_IN_USE', 'pool', 'create', '--vg', 'other', labDisk(1))
  await refused('VOLUME_EXISTS', 'pool', 'create', '--vg', 'vg0', labDisk(2))
  const thin = await json<PoolCapacity>('pool', 'create', '--vg', 'vg1', '--name', 'fast', '--thin', labDisk(2))
  t.is(thin.thin?.name, 'thin')
  const listed = await json<{pools: PoolCapacity[]}>('pool', 'list')
  t.deepEqual(listed.pools.map(({pool, driver}) => `${pool} ${driver}`).sort(), ['default file', 'fast lvm', 'vg0 lvm'])
  t.regex((await cli('pool', 'show', 'fast')).stdout, /fast +lvm .* % of .* %\n$/)

  const file = await make({sizeBytes: 8 * MiB})
  t.like(file, {pool: 'default', driver: 'file'})
  const volume = await json<Volume>('volume', 'create', '--size', '10MiB', '--pool', 'vg0', '--name', 'db1')
  t.like(volume, {pool: 'vg0', driver: 'lvm', sizeBytes: 12 * MiB, allocation: 'preallocated'})
  t.is(volume.path, `/dev/vg0/${volume.id}`)
  await t.throwsAsync(make({sizeBytes: 8 * MiB, pool: 'vg0', preallocate: false}), {code: 'UNSUPPORTED'})
  await refused('UNSUPPORTED', 'volume', 'snapshot', 'db1')
  const sparse = await json<Volume>('volume', 'create', '--size', '64MiB', '--pool', 'fast', '--thin', '--name', 'db2')
  t.is(sparse.allocation, 'sparse')

  const data = randomBytes(4096)
  await writeAt(sparse.path, data, MiB)
  const snapshot = await json<Volume>('volume', 'snapshot', 'db2', '--name', 'monday')
  await writeAt(sparse.path, randomBytes(4096), MiB)
  t.deepEqual(await readAt(snapshot.path, 4096, MiB), data)
  const copy = await json<Volume>('volume', 'clone', 'monday', '--pool', 'vg0', '--name', 'copy')
  t.like(copy, {pool: 'vg0', allocation: 'preallocated', sizeBytes: 64 * MiB})
  t.deepEqual(await readAt(copy.path, 4096, MiB), data)
  t.is((await json<Volume>('volume', 'extend', 'copy', '--size', '80MiB')).sizeBytes, 80 * MiB)

  await node.api.call('POST', '/exports', {volume: 'copy'})
  const bench = await json<{total: {ios: number; errors: number}}>('bench', 'copy', '--runtime', '1', '--iodepth', '2')
  t.true(bench.total.ios > 0)
  await t.throwsAsync(remove('copy'), {code: 'VOLUME_IN_USE'})
  await node.api.call('DELETE', '/exports/copy')

  const metrics = await (await fetch(`http://127.0.0.1:${node.metricsPort}/metrics`)).text()
  t.regex(metrics, /^lunpath_pool_size_bytes\{pool="vg0",driver="lvm"\} \d+$/m)
  t.regex(metrics, /^lunpath_pool_thin_data_used_ratio\{pool="fast",driver="lvm"\} 0\.\d+$/m)
  t.regex(metrics, /lunpath_step_duration_seconds_count\{step="volume.create",driver="lvm"\} 3$/m)

  // One group is away at the next start, and comes back later.
  await node.stopDaemon()
  await run('vgchange', ['--config', 'activation{udev_sync=0 udev_rules=0}', '-an', 'vg0', 'vg1'])
  await run('vgexport', ['vg1'])
  const config = `${node.directory}/unused.toml`
  await writeFile(config, '[[volumes.lvm]]\ngroup = "vg0"\n[[volumes.lvm]]\ngroup = "absent"\n')
  const doctor = await lunpath(['doctor', '--config', config])
  t.regex(doctor.stdout, /ok +volumes: LVM .*device-mapper answers/)
  t.regex(doctor.stdout, /ok +volumes: pool vg0 .*free/)
  t.regex(doctor.stdout, /MISSING +volumes: pool absent/)
  await node.start({logTo: log})
  const {unusable} = await json<{unusable: {pool: string; reason: string}[]}>('pool', 'list')
  t.deepEqual(
    unusable.map(({pool}) => pool),
    ['fast'],
  )
  t.regex(unusable[0]!.reason, /exported/)
  const status = await json<{problems: {problem: string; subject: string}[]}>('status')
  t.deepEqual(
    status.problems.map(({problem, subject}) => `${problem} ${subject}`),
    ['pool-unusable fast'],
  )
  await t.throwsAsync(make({sizeBytes: 8 * MiB, pool: 'fast'}), {code: 'POOL_UNUSABLE'})
  t.deepEqual(await readAt(copy.path, 4096, MiB), data, 'active again')
  await run('vgimport', ['vg1'])
  for (let tries = 0; !(await usable()); tries++) {
    t.true(tries < 60, 'the pool does not come back')
    await new Promise(resolve => setTimeout(resolve, 1000))
  }
  t.deepEqual(await readAt(snapshot.path, 4096, MiB), data)
  await refused('POOL_IN_USE', 'pool', 'delete', 'fast')
  for (const name of ['copy', 'monday', 'db2', 'db1', file.id]) await remove(name)
  t.deepEqual(await node.api.call('GET', '/volumes'), [])

  await refused('INVALID_ARGUMENT', 'pool', 'delete', 'default')
  await refused('NOT_FOUND', 'pool', 'delete', 'nosuch')
  // By the name of another pool's group.
  await refused('NOT_FOUND', 'pool', 'delete', 'vg1')
  // Somebody else's volume in the same group: nothing is removed, and the pool goes on.
  for (const name of ['vg0', 'fast']) await node.daemon.operations.rooms.volumes.pool(name).settled()
  const withoutUdevd = ['--config', 'activation{udev_sync=0 udev_rules=0}', '--yes']
  await run('lvcreate', [...withoutUdevd, '--size', '8M', '--name', 'database', 'vg0'])
  await refused('POOL_IN_USE', 'pool', 'delete', 'vg0')
  const still = await make({sizeBytes: 8 * MiB, pool: 'vg0'})
  await remove(still.id)
  await run('lvremove', [...withoutUdevd, 'vg0/database'])
  await node.daemon.operations.rooms.volumes.pool('vg0').settled()
  t.deepEqual(await json('pool', 'delete', 'vg0'), {pool: 'vg0', group: 'vg0', groupRemoved: true})
  const deleted = await cli('pool', 'delete', 'fast')
  t.is(deleted.stdout, 'deleted fast; the volume group vg1 is removed with it\n')
  t.is((await run('pvs', ['--noheadings'])).stdout.trim(), '')
  // A group that was there before is forgotten, and stays.
  await run('vgcreate', ['theirs', labDisk(1)])
  await json('pool', 'create', '--vg', 'theirs')
  t.like(await json('pool', 'delete', 'theirs'), {groupRemoved: false})
  t.regex((await run('vgs', ['--noheadings', '-o', 'vg_name'])).stdout, /theirs/)
  await node.stopDaemon()
  await node.start({logTo: log})
  t.deepEqual(
    (await json<{pools: PoolCapacity[]}>('pool', 'list')).pools.map(({pool}) => pool),
    ['default'],
  )
})
