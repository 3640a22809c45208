import {execFile} from 'node:child_process'
import {link, mkdir, mkdtemp, readFile, rm, symlink, truncate, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {promisify} from 'node:util'
import anyTest, {type ExecutionContext, type TestFn} from 'ava'
import {LibiscsiInitiator} from '../../src/initiators/libiscsi.js'
import {attachLoop} from '../contract/observe.js'
import {Host, Node} from '../fixtures/node.js'

/**
 * One disk, many names: whatever a path or a host is called, two volumes or two guests never get the same bytes, and nobody
 * gets bytes that this host uses itself.
 */
const test = anyTest.serial as TestFn
const run = promisify(execFile)
const sizeBytes = 16 * 2 ** 20
const isRoot = process.getuid?.() === 0
const asRoot = isRoot ? test : (test.skip as unknown as TestFn)

let host: Host
let node: Node
let directory: string
test.before(async () => {
  host = await Host.start()
  node = await Node.make({outliving: true, compute: {uri: host.libvirtd.uri}})
  await node.start()
  directory = await mkdtemp(join(tmpdir(), 'lp-bytes-'))
  await host.libvirtd.connection.defineXml(
    `<domain type='qemu'><name>other</name><memory unit='MiB'>64</memory><os><type arch='x86_64' machine='pc'>hvm</type></os><devices><controller type='scsi' model='virtio-scsi' index='0'/></devices></domain>`,
  )
})
test.after.always(async () => {
  await node?.stop()
  await host?.stop()
  await rm(directory, {recursive: true, force: true})
})

interface Made {
  volume: {id: string; path: string} | null
  export: {iqn: string; portals: {address: string; port: number}[]} | null
  disk: {target: string; serial: string} | null
}
const post = (path: string, body: object) => node.api.call<Made>('POST', path, body)
const importPath = (path: string) => post('/volumes/import', {path})
const attachDevice = (device: string, more: object = {}) => post('/attachments', {domain: 'vm', device, ...more})
const detach = ({disk}: Made) => node.api.call('DELETE', `/attachments/${disk!.serial}`)
const remove = ({volume}: Made) => node.api.call('DELETE', `/volumes/${volume!.id}`)

/** Takes the elements of a kind out of the definition of the domain that is off. */
async function dropFromDefinition(kind: string): Promise<void> {
  const {connection} = host.libvirtd
  await connection.defineXml((await connection.xml('other')).replace(new RegExp(`<${kind} [^]*</${kind}>`), ''))
}

let count = 0
async function image(bytes = sizeBytes): Promise<string> {
  const path = join(directory, `image-${++count}`)
  await writeFile(path, '')
  await truncate(path, bytes)
  return path
}

/** The request is refused, and nothing has become of it. */
async function refused(
  t: ExecutionContext,
  call: () => Promise<Made>,
  codes: string[],
  message?: RegExp,
): Promise<void> {
  const before = JSON.stringify([node.store.snapshot(), await node.poolFiles()])
  const done: Made[] = []
  const outcome = await call().then(
    made => void done.push(made),
    (error: Error & {code: string}) => error,
  )
  for (const made of done) {
    t.fail(`it was done: ${JSON.stringify(made.disk ?? made.volume)}`)
    await (made.disk ? detach(made) : remove(made))
  }
  if (!outcome) return
  t.true(codes.includes(outcome.code), `${outcome.code}: ${outcome.message}`)
  if (message) t.regex(outcome.message, message)
  t.is(JSON.stringify([node.store.snapshot(), await node.poolFiles()]), before, 'something has changed')
}

test('01 a file is imported once: not by a symbolic link, a hard link, or a path with other letters in between', async t => {
  const path = await image()
  const made = await importPath(path)
  await symlink(path, `${path}.symlink`)
  await link(path, `${path}.hardlink`)
  for (const other of [path, `${path}.symlink`, `${path}.hardlink`])
    await refused(t, () => importPath(other), ['VOLUME_EXISTS'], new RegExp(made.volume!.id))
  await remove(made)
})

test('02 three imports at once of one file make one volume', async t => {
  const path = await image()
  await link(path, `${path}.hardlink`)
  const outcomes = await Promise.allSettled([path, path, `${path}.hardlink`].map(importPath))
  const made = outcomes.flatMap(outcome => (outcome.status === 'fulfilled' ? [outcome.value] : []))
  t.is(made.length, 1)
  t.is([...node.store.volumes.values()].filter(one => one.imported).length, 1)
  for (const one of made) await remove(one)
})

test('03 an image of the pool is no file to import, by another hard link either', async t => {
  const made = await post('/volumes', {sizeBytes})
  await link(made.volume!.path, join(directory, 'stolen'))
  await refused(t, () => importPath(join(directory, 'stolen')), ['VOLUME_EXISTS'])
  await refused(t, () => attachDevice(join(directory, 'stolen')), ['VOLUME_EXISTS'])
  await refused(t, () => attachDevice(made.volume!.path), ['VOLUME_EXISTS'])
  await remove(made)
})

asRoot('04 a loop device over an imported file, another node of a device, and a loop over a part of it', async t => {
  const path = await image()
  const ofFile = await importPath(path)
  const device = await attachLoop(t, path)
  await refused(t, () => importPath(device.device), ['VOLUME_EXISTS'])
  await remove(ofFile)

  const ofDevice = await importPath(device.device)
  const {stdout} = await run('stat', ['--format=%Hr %Lr', device.device])
  const [major, minor] = stdout.trim().split(' ')
  await run('mknod', [join(directory, 'node'), 'b', major!, minor!])
  await refused(t, () => importPath(join(directory, 'node')), ['VOLUME_EXISTS'])
  await refused(t, () => importPath(path), ['VOLUME_EXISTS'])
  const part = await attachLoop(t, path, ['--offset', '1048576'])
  await refused(t, () => importPath(part.device), ['VOLUME_EXISTS'])
  await remove(ofDevice)
})

asRoot(
  '05 attach --device refuses what this host uses: mounted, swap, under a loop device, open for writing',
  async t => {
    const mounted = await attachLoop(t, await image())
    await run('mkfs.ext4', ['-q', mounted.device])
    await mkdir(join(directory, 'mnt'))
    await run('mount', [mounted.device, join(directory, 'mnt')])
    try {
      await refused(t, () => attachDevice(mounted.device), ['DEVICE_IN_USE'], /mounted at/)
    } finally {
      await run('umount', [join(directory, 'mnt')])
    }

    const swap = await attachLoop(t, await image())
    await run('mkswap', [swap.device])
    const swaps = await run('swapon', [swap.device]).then(
      () => true,
      () => false,
    )
    if (swaps) {
      try {
        await refused(t, () => attachDevice(swap.device), ['DEVICE_IN_USE'], /swap/)
      } finally {
        await run('swapoff', [swap.device])
      }
    } else t.log('this kernel has no swap: not tried')

    const under = await attachLoop(t, mounted.device)
    await refused(t, () => attachDevice(mounted.device), ['DEVICE_IN_USE'], /under \/dev\/loop/)
    await under.detach()

    const path = await image()
    const writer = await openElsewhere(path)
    t.teardown(() => void writer.kill())
    await refused(t, () => attachDevice(path), ['DEVICE_IN_USE'], /open for writing/)
  },
)

/** A process other than this one that has a file open for writing. */
async function openElsewhere(path: string) {
  const child = execFile('bash', ['-c', 'exec 9<>"$1"; echo open; exec sleep 60', 'bash', path])
  await new Promise<void>(resolve => child.stdout!.once('data', () => resolve()))
  return child
}

asRoot('06 one disk for two guests: by another node, and the file behind a device that is attached', async t => {
  const path = await image()
  const device = await attachLoop(t, path)
  const made = await attachDevice(device.device)
  const {stdout} = await run('stat', ['--format=%Hr %Lr', device.device])
  const [major, minor] = stdout.trim().split(' ')
  const alias = join(directory, 'second-node')
  await run('mknod', [alias, 'b', major!, minor!])
  for (const other of [device.device, alias, path]) {
    await refused(t, () => attachDevice(other), ['ATTACHMENT_EXISTS', 'DEVICE_IN_USE'])
    const elsewhere = {domain: 'other', persistent: true}
    await refused(t, () => attachDevice(other, elsewhere), ['ATTACHMENT_EXISTS', 'DEVICE_IN_USE'])
    await refused(t, () => importPath(other), ['ATTACHMENT_EXISTS', 'DEVICE_IN_USE'])
  }
  const shared = await attachDevice(alias, {domain: 'other', persistent: true, shared: true})
  t.regex(await host.libvirtd.connection.xml('other'), /<shareable\/>/)
  await detach(shared)
  await detach(made)
})

test('07 a domain that is off has its disks too: what its definition names is taken', async t => {
  const path = await image()
  await link(path, `${path}.hardlink`)
  const made = await attachDevice(`${path}.hardlink`, {domain: 'other', persistent: true})
  await refused(t, () => attachDevice(path), ['ATTACHMENT_EXISTS'], /other/)
  await detach(made)
  // The same of a disk that lunpath knows nothing of.
  const xml = `<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='${path}'/><target dev='vdb' bus='virtio'/></disk>`
  await host.libvirtd.connection.attachDevice('other', xml, 2)
  for (const other of [path, `${path}.hardlink`]) {
    await refused(t, () => attachDevice(other), ['ATTACHMENT_EXISTS'], /the domain other/)
    await refused(t, () => importPath(other), ['ATTACHMENT_EXISTS'], /the domain other/)
  }
  await dropFromDefinition('disk')
})

test('08 a LUN that a domain has by host name, or as a SCSI device handed on, is not given to it or to another', async t => {
  const made = await post('/exports', {sizeBytes, access: {addresses: ['ALL'], names: []}})
  const {iqn, portals} = made.export!
  const source = (protocol: string) =>
    `<source protocol='iscsi' name='${iqn}/1'${protocol}><host name='localhost' port='${portals[0]!.port}'/>`
  const elements = {
    disk: `<disk type='network' device='disk'><driver name='qemu' type='raw'/>${source('')}</source><target dev='vdq' bus='virtio'/></disk>`,
    hostdev: `<hostdev mode='subsystem' type='scsi'>${source('')}<initiator><iqn name='iqn.2026-01.test:guest'/></initiator></source></hostdev>`,
  }
  for (const [kind, element] of Object.entries(elements)) {
    await host.libvirtd.connection.attachDevice('other', element, 2)
    for (const domain of ['vm', 'other']) {
      const persistent = domain === 'other'
      await refused(
        t,
        () => post('/attachments', {domain, persistent, volume: made.volume!.id}),
        ['ATTACHMENT_EXISTS'],
        /the domain other/,
      )
    }
    await dropFromDefinition(kind)
  }
  await node.api.call('DELETE', `/exports/${made.volume!.id}`)
  await remove(made)
})

test('09 an image that is not raw is not taken for a disk: it says what it is, and the format can be named', async t => {
  const path = await image(0)
  await writeFile(path, emptyQcow2())
  await refused(t, () => importPath(path), ['UNSUPPORTED'], /qcow2.*qemu-img convert/)
  await refused(t, () => attachDevice(path), ['UNSUPPORTED'], /--format qcow2/)
  const made = await attachDevice(path, {format: 'qcow2'})
  await host.guest.waitForDisk(made.disk!.serial)
  const disk = (await host.guest.disks()).find(({serial}) => serial === made.disk!.serial)
  t.is(disk?.sizeBytes, sizeBytes)
  await detach(made)
  t.is((await readFile(path)).subarray(0, 3).toString(), 'QFI')
})

test('10 a volume whose target has a stranger’s session is attached with --shared alone', async t => {
  const made = await post('/exports', {sizeBytes, access: {addresses: ['ALL'], names: []}})
  const {iqn, portals} = made.export!
  const initiatorName = 'iqn.2026-01.test:stranger'
  const session = await new LibiscsiInitiator().connect({portal: portals[0]!, iqn, lun: 1, initiatorName})
  t.teardown(() => session.close())
  const attach = (more: object = {}) => post('/attachments', {domain: 'vm', volume: made.volume!.id, ...more})
  await refused(t, attach, ['TARGET_IN_USE'], /iqn\.2026-01\.test:stranger \(127\.0\.0\.1\).*--shared/)
  await detach(await attach({shared: true}))
  await session.close()
  await detach(await attach())
  await node.api.call('DELETE', `/exports/${made.volume!.id}`)
  await remove(made)
})

asRoot('11 a volume that this host uses itself is neither exported nor attached', async t => {
  const made = await post('/volumes', {sizeBytes})
  const loop = await attachLoop(t, made.volume!.path)
  await refused(t, () => post('/exports', {volume: made.volume!.id}), ['DEVICE_IN_USE'], /loop/)
  await refused(t, () => post('/attachments', {domain: 'vm', volume: made.volume!.id}), ['DEVICE_IN_USE'], /loop/)
  await loop.detach()
  await detach(await post('/attachments', {domain: 'vm', volume: made.volume!.id}))
  await remove(made)
})

/** An image of `sizeBytes` that has no clusters yet; the layout is that of QEMU's docs/interop/qcow2.txt, version 2. */
function emptyQcow2(): Buffer {
  const cluster = 2 ** 16
  const file = Buffer.alloc(4 * cluster)
  const header = {
    version: 4,
    clusterBits: 20,
    size: 24,
    l1Size: 36,
    l1Offset: 40,
    refcountOffset: 48,
    refcountClusters: 56,
  }
  file.write('QFI\xfb', 'latin1')
  file.writeUInt32BE(2, header.version)
  file.writeUInt32BE(16, header.clusterBits)
  file.writeBigUInt64BE(BigInt(sizeBytes), header.size)
  file.writeUInt32BE(1, header.l1Size)
  file.writeBigUInt64BE(BigInt(3 * cluster), header.l1Offset)
  file.writeBigUInt64BE(BigInt(cluster), header.refcountOffset)
  file.writeUInt32BE(1, header.refcountClusters)
  file.writeBigUInt64BE(BigInt(2 * cluster), cluster)
  for (let used = 0; used < 4; used++) file.writeUInt16BE(1, 2 * cluster + 2 * used)
  return file
}
