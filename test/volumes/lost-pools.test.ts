// Pools that go and come back while the daemon runs: a volume group that is renamed, a file system that is unmounted.
import {mkdir, readdir} from 'node:fs/promises'
import {join} from 'node:path'
import {run} from '../../src/exec.js'
import type {Volume} from '../../src/types.js'
import {MiB} from '../contract/observe.js'
import {until} from '../fixtures/cli.js'
import {Node} from '../fixtures/node.js'
import {lab, labDisk} from '../lab/lab.js'

lab.options({disksBytes: [256 * MiB, 256 * MiB], modules: ['dm-mod', 'ext4'], deadlineMs: 900_000})

interface Status {
  problems: {problem: string; subject: string; message: string}[]
}

const make = (node: Node, pool: string) =>
  node.api.call<{volume: Volume}>('POST', '/volumes', {sizeBytes: 8 * MiB, pool}).then(({volume}) => volume)
const remove = (node: Node, {id}: Volume) => node.api.call('DELETE', `/volumes/${id}`)
const pools = (node: Node) =>
  node.api.call<{pools: {pool: string}[]; unusable: {pool: string; reason: string}[]}>('GET', '/pools')
const problems = async (node: Node) => (await node.api.call<Status>('GET', '/status')).problems
const metrics = async (node: Node) => (await fetch(`http://127.0.0.1:${node.metricsPort}/metrics`)).text()

lab('01. a group that is renamed stays listed as unusable, is a problem, and works again under its name', async t => {
  const node = await Node.make()
  t.teardown(() => node.stop())
  await node.start()
  await node.api.call('POST', '/pools', {group: 'vg0', devices: [labDisk(1)]})
  const volume = await make(node, 'vg0')
  const lvm = (...args: string[]) => run('lvm', args, {env: {LVM_SYSTEM_DIR: join(node.directory, 'lvm/vg0')}})
  await lvm('vgrename', 'vg0', 'renamed')
  const hint = /renamed to renamed: vgrename renamed vg0/
  await until('it is a problem', async () =>
    (await problems(node)).some(({problem, message}) => problem === 'pool-unusable' && hint.test(message)),
  )
  const {unusable} = await pools(node)
  t.deepEqual(
    unusable.map(({pool}) => pool),
    ['vg0'],
  )
  t.regex(unusable[0]!.reason, hint)
  t.deepEqual(
    (await problems(node)).map(({problem}) => problem),
    ['pool-unusable'],
    'and its volumes are not missing',
  )
  const text = await metrics(node)
  t.regex(text, /^lunpath_problems\{problem="pool-unusable"\} 1$/m)
  t.notRegex(text, /^lunpath_pool_size_bytes\{pool="vg0"/m)
  await t.throwsAsync(make(node, 'vg0'), {code: 'POOL_UNUSABLE', message: hint})
  await t.throwsAsync(remove(node, volume), {code: 'POOL_UNUSABLE', message: hint})

  await lvm('vgrename', 'renamed', 'vg0')
  await until('no problem is left', async () => (await problems(node)).length === 0)
  t.deepEqual((await pools(node)).unusable, [])
  t.regex(await metrics(node), /^lunpath_pool_metadata_area_free_bytes\{pool="vg0",driver="lvm"\} \d{7}$/m)
  await remove(node, await make(node, 'vg0'))

  // One that goes is found by whoever asks first, too.
  await lvm('vgrename', 'vg0', 'renamed')
  await t.throwsAsync(remove(node, volume), {code: 'POOL_UNUSABLE'})
  t.deepEqual(
    (await pools(node)).unusable.map(({pool}) => pool),
    ['vg0'],
  )
  await lvm('vgrename', 'renamed', 'vg0')
  await until('the pool is back', async () => (await pools(node)).unusable.length === 0)
  await remove(node, volume)
  t.is(node.store.volumes.size, 0)
})

lab('02. a pool on a file system that is unmounted, and mounted again', async t => {
  const node = await Node.make()
  t.teardown(() => node.stop())
  const directory = join(node.directory, 'volumes')
  await run('mkfs.ext4', ['-q', labDisk(2)])
  await mkdir(directory, {mode: 0o700})
  const mount = async () => {
    await run('mount', [labDisk(2), directory])
    await run('chmod', ['700', directory])
  }
  await mount()
  t.teardown(() => run('umount', ['--lazy', directory]))
  await node.start()
  const volume = await make(node, 'default')
  // The daemon has the directory open.
  await run('umount', ['--lazy', directory])
  await t.throwsAsync(remove(node, volume), {code: 'POOL_UNUSABLE', message: /Mount its file system/})
  await t.throwsAsync(make(node, 'default'), {code: 'POOL_UNUSABLE'})
  await until('it is a problem', async () => (await problems(node)).length > 0)
  t.deepEqual(await readdir(directory), [])
  await mount()
  await until('no problem is left', async () => (await problems(node)).length === 0)
  await remove(node, volume)

  await node.stopDaemon()
  await run('umount', [directory])
  await node.start()
  t.deepEqual(
    (await pools(node)).unusable.map(({pool}) => pool),
    ['default'],
  )
  await t.throwsAsync(make(node, 'default'), {code: 'POOL_UNUSABLE'})
  t.deepEqual(await readdir(directory), [])
  await mount()
  await until('the pool is back', async () => (await pools(node)).unusable.length === 0)
  await remove(node, await make(node, 'default'))
})
