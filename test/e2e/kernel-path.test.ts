// The whole path through the kernel in the lab: a logical volume, a target in a network of its own, the kernel's initiator,
// and a disk in a domain that has no system.
import {randomBytes} from 'node:crypto'
import {open, readFile} from 'node:fs/promises'
import test, {type ExecutionContext} from 'ava'
import type {DaemonOptions} from '../../src/daemon.js'
import {errorCodes, StorageError} from '../../src/errors.js'
import {run} from '../../src/exec.js'
import type {Disk, Export, Volume} from '../../src/types.js'
import {mappedDevices} from '../../src/volumes/device-mapper.js'
import {sha256} from '../contract/initiators.js'
import {lunpath, until} from '../fixtures/cli.js'
import {LogLines, Node} from '../fixtures/node.js'
import {generator, pick, seed} from '../fixtures/random.js'
import {startTgtd} from '../fixtures/tgtd-by-hand.js'
import {KernelPath, type PathState, pathState, readDirect, writeDirect} from '../lab/kernel-path.js'
import {insideLab, lab, labDisk} from '../lab/lab.js'

const MiB = 2 ** 20
const domains = ['vm1', 'vm2']
const group = 'vg0'

lab.options({
  disksBytes: [1536 * MiB, 256 * MiB],
  modules: ['dm-mod', 'dm-thin-pool'],
  memoryMiB: 1536,
  deadlineMs: 900_000,
})

interface Attached {
  volume: Volume
  export: Export
  disk: Disk
}

let path: KernelPath

test.before(async () => {
  if (!insideLab) return
  path = await KernelPath.start()
  for (const domain of domains) await path.startDomain(domain)
})

test.after.always(async () => {
  if (insideLab) await path?.stop()
})

/** A node whose pool is in `group`, which the first one makes. */
async function startNode(t: ExecutionContext, driver: 'lio' | 'tgt', options: DaemonOptions = {}): Promise<Node> {
  const compute = {uri: path.libvirtd.uri}
  const tgtd = driver === 'tgt' ? await startTgtd({...path.network, port: 3261}) : undefined
  const targets = tgtd ? {portals: [`${path.network.addresses[0]}:3261`]} : path.lio
  const known = (await run('vgs', ['--noheadings', '-o', 'vg_name'])).stdout.includes(group)
  const volumes = known ? {lvm: [{group, thinPool: 'thin'}]} : {}
  // Eight logins at once take an emulated processor some seconds.
  const node = await Node.make({tgtd, targets, compute, volumes, initiator: {timeoutMs: 60_000}})
  t.teardown(async () => {
    await node.stop()
    await path.logOut()
  })
  await node.start(options)
  if (!known) {
    await node.api.call('POST', '/pools', {group, devices: [labDisk(1)], thin: true, thinBytes: 512 * MiB})
  }
  return node
}

function attach(node: Node, more: object = {}): Promise<Attached> {
  const body = {domain: domains[0], pool: group, sizeBytes: 16 * MiB, bus: 'scsi', route: 'host', ...more}
  return node.api.call<Attached>('POST', '/attachments', body)
}

async function takeDown(node: Node, id: string): Promise<void> {
  await node.api.call('DELETE', `/attachments/${id}`)
  await node.api.call('DELETE', `/volumes/${id}`)
}

async function nothingLeft(t: ExecutionContext, node: Node, of = group): Promise<void> {
  const left = await pathState(node, {group: of, domains})
  for (const [what, found] of Object.entries(left)) t.deepEqual(found, [], what)
}

const wwids = {
  lio: (id: string) => `naa.6001405${id}000000000`,
  tgt: (id: string) => `naa.6000000000000000${id}`,
}

for (const driver of ['lio', 'tgt'] as const) {
  lab(`1. LVM, ${driver}, open-iscsi, domain: the proven disk is the volume, and all of it goes again`, async t => {
    const node = await startNode(t, driver)
    const made = await Promise.all([
      attach(node, {preallocate: true, sizeBytes: 64 * MiB}),
      attach(node, {preallocate: false, sizeBytes: 64 * MiB}),
    ])
    t.deepEqual(
      made.map(({volume}) => volume.allocation),
      ['preallocated', 'sparse'],
    )
    for (const {volume, disk} of made) {
      const {id} = volume
      const wwid = wwids[driver](id)
      t.is(volume.path, `/dev/${group}/${id}`)
      t.like(disk, {serial: id, live: true, source: {type: 'block'}})
      const byId = `/dev/disk/by-id/wwn-${wwid.replace('naa.', '0x')}`
      t.deepEqual(node.store.attachments.get(id)?.source, {type: 'block', path: byId})
      const device = disk.source.type === 'block' ? disk.source.path : ''
      const sysfs = `/sys/block/${device.slice('/dev/'.length)}`
      t.is((await readFile(`${sysfs}/device/wwid`, 'utf8')).trim(), wwid)
      t.is(Number(await readFile(`${sysfs}/size`, 'utf8')) * 512, volume.sizeBytes)

      const [first, last] = [randomBytes(2 * MiB), randomBytes(MiB)]
      await writeDirect(byId, {offsetMiB: 5, data: first})
      await writeDirect(byId, {offsetMiB: 63, data: last})
      t.is(sha256(await readDirect(volume.path, {offsetMiB: 5, lengthMiB: 2})), sha256(first))
      t.is(sha256(await readDirect(volume.path, {offsetMiB: 63, lengthMiB: 1})), sha256(last))
      const below = randomBytes(MiB)
      await writeDirect(volume.path, {offsetMiB: 20, data: below})
      t.is(sha256(await readDirect(device, {offsetMiB: 20, lengthMiB: 1})), sha256(below))
    }
    for (const {volume} of made) await takeDown(node, volume.id)
    await nothingLeft(t, node)
  })
}

lab('2. a volume that somebody has open is not deleted, and can be attached again', async t => {
  const node = await startNode(t, 'lio')
  const {volume} = await attach(node)
  await t.throwsAsync(node.api.call('DELETE', `/volumes/${volume.id}`), {code: 'VOLUME_IN_USE'})
  await node.api.call('DELETE', `/attachments/${volume.id}`)
  const user = await open(volume.path)
  await t.throwsAsync(node.api.call('DELETE', `/volumes/${volume.id}`), {code: 'VOLUME_IN_USE', message: /is open/})
  await attach(node, {volume: volume.id, pool: undefined, sizeBytes: undefined})
  await user.close()
  await takeDown(node, volume.id)
  await nothingLeft(t, node)
})

lab('3. the disk under an exported volume fails: errors at each end, and it all comes down', async t => {
  const log = new LogLines()
  const node = await startNode(t, 'lio', {logTo: log})
  // Behind the disk's first MiB: its own label would make LVM see one disk twice.
  const sectors = (255 * MiB) / 512
  await run('dmsetup', ['create', 'disk'], {input: `0 ${sectors} linear ${labDisk(2)} 2048\n`})
  const {number} = (await mappedDevices()).find(({name}) => name === 'disk')!
  const table = async (text: string) => {
    await run('dmsetup', ['suspend', '--noflush', '--nolockfs', 'disk'])
    await run('dmsetup', ['load', 'disk'], {input: text})
    await run('dmsetup', ['resume', 'disk'])
  }
  const failing = 'failing'
  await node.api.call('POST', '/pools', {group: failing, devices: [`/dev/dm-${number.split(':')[1]}`]})
  const {volume, disk} = await attach(node, {pool: failing})
  const device = disk.source.type === 'block' ? disk.source.path : ''
  const data = randomBytes(MiB)
  await writeDirect(device, {offsetMiB: 3, data})

  await table(`0 ${sectors} error\n`)
  const range = {offsetMiB: 3, lengthMiB: 1}
  await t.throwsAsync(readDirect(device, range), {code: 'COMMAND_FAILED', message: /error/i})
  await t.throwsAsync(writeDirect(device, {offsetMiB: 4, data}), {code: 'COMMAND_FAILED', message: /error/i})
  // What a user has written and not synced yet must not keep it from coming down.
  const write = async (path: string) => {
    const user = await open(path, 'r+')
    await user.write(data)
    await user.close().catch(() => undefined)
  }
  await write(device)
  const url = `/attachments/${volume.id}`
  const token = 'the-same-answer-again'
  t.like(await node.api.call<object>('DELETE', url, undefined, {token}), {volume: {id: volume.id}, flushed: false})
  t.like(await node.api.call<object>('DELETE', url, undefined, {token}), {flushed: false})
  t.is(log.lines.filter(line => line.includes('took no flush') && line.includes(volume.id)).length, 1)
  await t.throwsAsync(node.api.call('DELETE', `/volumes/${volume.id}`), {code: 'POOL_UNUSABLE'})
  await t.throwsAsync(attach(node, {pool: failing}), {code: 'POOL_UNUSABLE'})

  await table(`0 ${sectors} linear ${labDisk(2)} 2048\n`)
  t.is(sha256(await readDirect(volume.path, range)), sha256(data))
  const again = {volume: volume.id, pool: undefined, sizeBytes: undefined}
  await attach(node, again)
  t.like(await node.api.call<object>('DELETE', url), {flushed: true})

  // The same once more, as the command line tells it.
  const {disk: second} = await attach(node, again)
  await table(`0 ${sectors} error\n`)
  await write(second.source.type === 'block' ? second.source.path : '')
  const detached = await lunpath(['--socket', node.socket, 'detach', volume.id])
  t.like(detached, {exitCode: 0, stdout: `detached ${volume.id}\n`})
  t.regex(detached.stderr, /could not be flushed: what this host had not written to it yet may be lost/)
  await table(`0 ${sectors} linear ${labDisk(2)} 2048\n`)
  await node.api.call('DELETE', `/volumes/${volume.id}`)
  await until('the journal is empty', () => node.daemon.operations.rooms.journal.unfinished().length === 0)
  await nothingLeft(t, node, failing)
  await node.stopDaemon()
  await run('vgremove', ['--force', '--yes', failing])
  await run('dmsetup', ['remove', '--retry', 'disk'])
})

const workers = 8
const attachesAndDetaches = 50
const mostAttached = 10

lab('4. 50 attaches and detaches at random by 8 workers: every place agrees, and nothing is left over', async t => {
  t.log(`seed ${seed}`)
  const node = await startNode(t, 'lio')
  const {attachments, volumes} = node.store
  const failures: string[] = []
  const done = {attaches: 0, detaches: 0, deletions: 0, refusals: 0}

  /** Others may be at work on the same volume, and then it is refused. */
  const ask = async (what: keyof typeof done, ...[method, url, body]: Parameters<Node['api']['call']>) => {
    try {
      await node.api.call(method, url, body)
      done[what]++
    } catch (error) {
      done.refusals++
      const {code, message} = error as StorageError
      const told = error instanceof StorageError && code in errorCodes && expected.has(code)
      if (!told) failures.push(`${method} ${url} ${JSON.stringify(body)}: ${code} ${message}`)
    }
  }
  const expected = new Set([
    'CONFLICT',
    'ATTACHMENT_EXISTS',
    'ATTACHMENT_NOT_FOUND',
    'VOLUME_NOT_FOUND',
    'VOLUME_IN_USE',
  ])
  const work = async (worker: number) => {
    const random = generator(seed + worker)
    while (failures.length === 0 && done.attaches + done.detaches < attachesAndDetaches) {
      const chance = random()
      const attached = pick(random, attachments.keys())
      const idle = pick(
        random,
        [...volumes.keys()].filter(id => !attachments.has(id)),
      )
      if (attached && (attachments.size >= mostAttached || chance < 0.4)) {
        // Under emulation a detach can last longer than a caller waits by default.
        await ask('detaches', 'DELETE', `/attachments/${attached}?timeoutMs=120000`)
      } else if (idle && chance > 0.85) {
        await ask('deletions', 'DELETE', `/volumes/${idle}`)
      } else {
        const volume = idle && chance > 0.65 ? {volume: idle} : {pool: group, sizeBytes: 16 * MiB}
        const preallocate = 'volume' in volume ? {} : {preallocate: random() < 0.5}
        const domain = pick(random, domains)
        await ask('attaches', 'POST', '/attachments', {domain, bus: 'scsi', route: 'host', ...volume, ...preallocate})
      }
    }
  }
  await Promise.all(Array.from({length: workers}, (_, worker) => work(worker)))
  t.deepEqual(failures, [])
  t.is(node.daemon.operations.rooms.journal.unfinished().length, 0)
  t.log(JSON.stringify(done))
  t.true(done.attaches > workers && done.detaches > workers)
  agree(t, await pathState(node, {group, domains}))
  await Promise.all([...attachments.keys()].map(id => node.api.call('DELETE', `/attachments/${id}`)))
  await Promise.all([...volumes.keys()].map(id => node.api.call('DELETE', `/volumes/${id}`)))
  await nothingLeft(t, node)
})

function agree(t: ExecutionContext, state: PathState): void {
  const attached = state.attachmentRows.sort()
  const ids = (names: string[]) => names.map(name => /[0-9a-f]{16}$/.exec(name)?.[0]).sort()
  t.deepEqual(state.inDomains.sort(), attached)
  t.deepEqual(ids(state.records), attached)
  t.is(state.sessions.length, attached.length)
  t.is(state.scsiDisks.length, attached.length)
  t.deepEqual(state.exportRows.sort(), attached)
  // A target and a backstore for each.
  t.deepEqual(
    ids(state.targets),
    attached.flatMap(id => [id, id]),
  )
  t.deepEqual(state.logicalVolumes.sort(), state.volumeRows.sort())
  t.deepEqual(ids(state.mappedDevices), state.volumeRows)
}
