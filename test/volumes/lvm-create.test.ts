// Groups that pool create makes, and pool delete removes: each killed at each of its steps, and asked for again.
import {mkdtemp, open} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {fileURLToPath} from 'node:url'
import test, {type ExecutionContext} from 'ava'
import {run} from '../../src/exec.js'
import {signatureOf} from '../../src/signatures.js'
import {mappedDevices} from '../../src/volumes/device-mapper.js'
import {createGroup, type GroupSpec} from '../../src/volumes/lvm-create.js'
import {deleteGroup} from '../../src/volumes/lvm-delete.js'
import type {GroupCrash} from '../fixtures/crash-group.js'
import {dyingLvm, type MapperRequest, mapperLibrary} from '../fixtures/dying-lvm.js'
import {insideLab, lab, labDisk} from '../lab/lab.js'

const MiB = 2 ** 20
const devices = [labDisk(1), labDisk(2)]
const group = 'vg0'
const thinPool = 'thin'

lab.options({
  disksBytes: [512 * MiB, 256 * MiB],
  modules: ['dm-mod', 'dm-thin-pool'],
  deadlineMs: 540_000,
})

// Compiled once, and not under emulation.
if (!insideLab) test.before(mapperLibrary)

async function makeSpec() {
  return {group, devices, thinPool, thinBytes: 256 * MiB, systemDirectory: await mkdtemp(join(tmpdir(), 'lp-group-'))}
}

const fixture = fileURLToPath(new URL('../fixtures/crash-group.js', import.meta.url))

/** True where it died as it was to. */
async function killed(spec: object, crash: GroupCrash, path = process.env.PATH!): Promise<boolean> {
  const args = [fixture, JSON.stringify({...spec, ...crash})]
  const ended = run(process.execPath, args, {env: {PATH: path}, timeoutMs: 120_000})
  return ended.then(
    () => false,
    ({info}: {info: {exitSignal?: string}}) => info.exitSignal === 'SIGKILL',
  )
}

/** The lab has no udevd. */
const withoutUdevd = ['--config', 'activation{udev_sync=0 udev_rules=0}']

/** LVM as an operator runs it. */
async function lvm(...args: string[]): Promise<string[]> {
  const {stdout} = await run('lvm', args)
  return stdout.split('\n').flatMap(line => line.trim().replaceAll(/ +/g, ' ') || [])
}

/** What a killed command has left, for the log. */
async function remains(): Promise<string> {
  const groups = await lvm('vgs', '--noheadings', '-o', 'vg_name,vg_tags')
  const volumes = await lvm('lvs', '-a', '--noheadings', '-o', 'lv_name,lv_size')
  const devices = (await mappedDevices()).map(({name}) => name)
  return [groups, volumes, devices].map(list => list.join(', ')).join(' | ')
}

async function isWhole(t: ExecutionContext, when: string): Promise<void> {
  t.deepEqual(await lvm('vgs', '--noheadings', '-o', 'vg_tags,pv_count', group), ['lunpath:group=made 2'], when)
  t.deepEqual(
    await lvm('lvs', '--noheadings', '-o', 'lv_name,lv_layout,lv_when_full', group),
    ['thin thin,pool error'],
    when,
  )
}

async function isGone(t: ExecutionContext, when: string): Promise<void> {
  t.deepEqual(await lvm('vgs', '--noheadings', '-o', 'vg_name'), [], when)
  t.deepEqual(await mappedDevices(), [], when)
  for (const device of devices) {
    const disk = await open(device)
    t.is(await signatureOf(disk.fd), undefined, `${when}: ${device}`)
    await disk.close()
  }
}

/** Asks again for what a killed process has left, and takes it away. */
async function goesOn(t: ExecutionContext, spec: GroupSpec): Promise<void> {
  t.log(`left ${await remains()}`)
  t.is((await createGroup(spec)).name, group)
  await isWhole(t, 'asked for again')
  t.is(await deleteGroup(spec), 'removed')
  await isGone(t, 'deleted')
}

for (const command of ['vgcreate', 'vgchange']) {
  lab(`a pool create that was killed after ${command} goes on where it is asked for again`, async t => {
    const spec = await makeSpec()
    t.true(await killed(spec, {what: 'create', when: 'after', command}))
    await goesOn(t, spec)
  })
}

// lvcreate zeroes the spare copy of the metadata, then the metadata, each as a volume; then it activates the pool, which
// has three layers.
const inLvcreate: [MapperRequest, number, string][] = [
  ['create', 1, 'a device without a table'],
  ['remove', 1, 'a node of a device that is gone'],
  ['create', 4, 'one layer of the pool, and another without a table'],
  ['resume', 5, 'the whole pool'],
]

for (const [request, nth, left] of inLvcreate) {
  lab(`a pool create whose lvcreate was killed and has left ${left} goes on where it is asked for again`, async t => {
    const spec = await makeSpec()
    const dying = await dyingLvm(request, nth)
    t.teardown(dying.remove)
    const path = `${dying.directory}:${process.env.PATH}`
    t.true(await killed(spec, {what: 'create', when: 'during', command: 'lvcreate'}, path))
    await goesOn(t, spec)
  })
}

lab('a pool delete takes back what a killed pool create has left', async t => {
  const spec = await makeSpec()
  t.true(await killed(spec, {what: 'create', when: 'after', command: 'lvcreate'}))
  t.is(await deleteGroup(spec), 'removed')
  await isGone(t, 'deleted')
})

lab('a pool delete that was killed with the group still there goes on', async t => {
  const spec = await makeSpec()
  await createGroup(spec)
  t.true(await killed(spec, {what: 'delete', when: 'after', command: 'vgchange'}))
  t.log(`left ${await remains()}`)
  t.is(await deleteGroup(spec), 'removed')
  await isGone(t, 'deleted')
})

lab('labels without a group are a signature like any other', async t => {
  const spec = await makeSpec()
  await createGroup(spec)
  t.true(await killed(spec, {what: 'delete', when: 'before', command: 'pvremove'}))
  t.is(await deleteGroup(spec), 'absent')
  await t.throwsAsync(createGroup(spec), {code: 'DEVICE_IN_USE', message: /LVM2_member.*wipefs --all/})
  await lvm('pvremove', ...devices)
})

lab('others’ volumes and groups stay', async t => {
  const spec = await makeSpec()
  const foreign = () => lvm('lvcreate', ...withoutUdevd, '--yes', '--size', '8M', '--name', 'database', group)
  const removeForeign = (name: string) => lvm('lvremove', ...withoutUdevd, '--yes', `${group}/${name}`)
  t.true(await killed(spec, {what: 'create', when: 'after', command: 'vgcreate'}))
  await foreign()
  await t.throwsAsync(createGroup(spec), {code: 'POOL_IN_USE', message: /database/})
  await t.throwsAsync(deleteGroup(spec), {code: 'POOL_IN_USE', message: /database/})
  await t.throwsAsync(createGroup({...spec, devices: []}), {code: 'POOL_UNUSABLE', message: /run the same command/})
  t.deepEqual(await lvm('lvs', '--noheadings', '-o', 'lv_name', group), ['database'])
  await removeForeign('database')
  await createGroup(spec)
  await foreign()
  await t.throwsAsync(deleteGroup(spec), {code: 'POOL_IN_USE', message: /database/})
  await removeForeign('database')
  // A thin volume of another's too.
  const theirs = ['--virtualsize', '8M', '--thin', `${group}/thin`, '--name', 'theirs']
  await lvm('lvcreate', ...withoutUdevd, '--yes', ...theirs)
  await t.throwsAsync(deleteGroup(spec), {code: 'POOL_IN_USE', message: /theirs/})
  await removeForeign('theirs')
  await isWhole(t, 'after refusals')
  await t.throwsAsync(createGroup({...spec, devices: [labDisk(1)]}), {code: 'VOLUME_EXISTS'})
  t.is(await deleteGroup(spec), 'removed')
  await isGone(t, 'ours')

  await run('vgcreate', [group, ...devices])
  await createGroup({...spec, devices: [], thinPool: undefined})
  t.is(await deleteGroup(spec), 'kept')
  t.deepEqual(await lvm('vgs', '--noheadings', '-o', 'vg_name'), [group])
})
