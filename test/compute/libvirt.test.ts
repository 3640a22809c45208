import {createHash, randomBytes} from 'node:crypto'
import {once} from 'node:events'
import {mkdtemp, open, rm, truncate} from 'node:fs/promises'
import {createServer} from 'node:net'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import {affectLive} from '../../src/compute/connection.js'
import {aliasOf, secretUsage} from '../../src/compute/disk-xml.js'
import type {AttachSpec} from '../../src/compute/driver.js'
import {LibvirtDriver} from '../../src/compute/libvirt.js'
import {nativeFacts, type StorageError} from '../../src/errors.js'
import {Guest} from '../../src/sandbox/guest.js'
import {PrivateLibvirtd} from '../../src/sandbox/libvirtd.js'
import {freePort} from '../../src/sandbox/ports.js'
import {newVolumeId} from '../../src/volumes/id.js'
import {processesOf} from '../fixtures/libvirt-processes.js'
import {type HandMadeLun, makeLun} from '../fixtures/lun-by-hand.js'
import {type HandStartedTgtd, startTgtd} from '../fixtures/tgtd-by-hand.js'

const MiB = 2 ** 20
const domain = 'g1'
const chap = {user: 'lunpath', secret: 'correct-horse-9'}

let libvirtd: PrivateLibvirtd
let guest: Guest
let tgtd: HandStartedTgtd
let driver: LibvirtDriver
let directory: string
let lastTid = 0

test.before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'disks-'))
  libvirtd = new PrivateLibvirtd()
  await libvirtd.start()
  tgtd = await startTgtd()
  guest = new Guest({libvirtd, name: domain})
  await guest.boot()
  driver = new LibvirtDriver({uri: libvirtd.uri})
  await driver.open()
  await guest.waitReady()
})

test.after.always(async () => {
  await driver?.close()
  await libvirtd?.stop()
  await tgtd?.stop()
  await rm(directory, {recursive: true, force: true})
})

async function fileDisk(sizeBytes = 16 * MiB) {
  const id = newVolumeId()
  const path = join(directory, id)
  const file = await open(path, 'wx')
  await file.truncate(sizeBytes)
  await file.close()
  return {id, path, source: {type: 'file' as const, path, format: 'raw' as const}}
}

async function iscsiDisk(t: ExecutionContext, options: Parameters<typeof makeLun>[2] = {}) {
  const lun = await makeLun(tgtd, ++lastTid, options)
  t.teardown(() => lun.remove())
  return {...lun, source: sourceOf(lun)}
}

function sourceOf({iqn, lun}: HandMadeLun) {
  return {type: 'iscsi' as const, iqn, lun, portal: {address: '127.0.0.1', port: tgtd.port}}
}

async function attach(t: ExecutionContext, spec: Omit<AttachSpec, 'domain'>) {
  t.teardown(() => driver.detach(domain, spec.id))
  return await driver.attach({domain, ...spec})
}

async function bytesAt(path: string, offsetBytes: number, lengthBytes: number) {
  const file = await open(path)
  const {buffer} = await file.read(Buffer.alloc(lengthBytes), 0, lengthBytes, offsetBytes)
  await file.close()
  return buffer
}

function nextEvent(
  name: 'connected' | 'lost' | 'removed' | 'domain',
  matches: (facts: Record<string, unknown>) => boolean,
) {
  return new Promise<Record<string, unknown>>(resolve => {
    driver.on(name, facts => void (matches(facts) && resolve(facts)))
  })
}

for (const bus of ['virtio', 'scsi'] as const) {
  test.serial(`an iSCSI LUN on the ${bus} bus is the guest's disk: its size, its serial, its bytes`, async t => {
    const lun = await iscsiDisk(t)
    const nonce = randomBytes(4096)
    const file = await open(lun.path, 'r+')
    await file.write(nonce, 0, nonce.length, 8 * MiB)
    await file.close()

    const disk = await attach(t, {id: lun.id, source: lun.source, bus})
    t.like(disk, {
      domain,
      bus,
      alias: aliasOf(lun.id),
      serial: lun.id,
      source: lun.source,
      live: true,
      persistent: false,
    })
    t.deepEqual(
      (await driver.disks(domain)).find(it => it.alias === disk.alias),
      disk,
    )

    const seen = await guest.waitForDisk(lun.id)
    t.is(seen.sizeBytes, lun.sizeBytes)
    const digest = await guest.sha256(lun.id, {offsetBytes: 8 * MiB, lengthBytes: nonce.length})
    t.is(digest, createHash('sha256').update(nonce).digest('hex'))
    const answer = randomBytes(5000)
    await guest.write(lun.id, 12_345, answer)

    await driver.detach(domain, lun.id)
    await guest.waitForDiskGone(lun.id)
    t.false((await driver.disks(domain)).some(it => it.alias === disk.alias))
    t.deepEqual(await bytesAt(lun.path, 12_345, answer.length), answer)
  })
}

test.serial('CHAP: the right secret attaches, and libvirt has it for as long as the disk is there', async t => {
  const lun = await iscsiDisk(t, {auth: {incoming: chap}})
  await attach(t, {id: lun.id, source: {...lun.source, auth: chap}, bus: 'virtio'})
  t.is((await guest.waitForDisk(lun.id)).sizeBytes, lun.sizeBytes)
  t.not(await libvirtd.connection.findSecret(secretUsage(lun.iqn)), null)
  await driver.detach(domain, lun.id)
  t.is(await libvirtd.connection.findSecret(secretUsage(lun.iqn)), null)
})

test.serial("CHAP: a wrong secret is AUTH_FAILED, with libvirt's words and without the secret", async t => {
  const auth = {user: `${chap.user}2`, secret: 'wrong-horse-99'}
  const lun = await iscsiDisk(t, {auth: {incoming: {...chap, user: auth.user}}})
  for (const wrong of [{...lun.source, auth}, lun.source]) {
    const error = await t.throwsAsync<StorageError>(attach(t, {id: lun.id, source: wrong, bus: 'virtio'}), {
      code: 'AUTH_FAILED',
    })
    const facts = nativeFacts(error.cause)
    t.like(facts, {code: 'VIR_ERR', errno: 1, domain: 10, syscall: 'virDomainAttachDeviceFlags'})
    t.like(error.info, {domain, id: lun.id})
    t.false(`${error.message}${error.stack}${JSON.stringify(facts)}`.includes(auth.secret))
  }
})

test.serial('an initiator name is the one that the target sees', async t => {
  const initiatorName = 'iqn.2026-01.test.lunpath:guest-1'
  const lun = await iscsiDisk(t, {initiatorName})
  await t.throwsAsync(attach(t, {id: lun.id, source: lun.source, bus: 'virtio'}), {code: 'COMPUTE_FAILED'})
  await attach(t, {id: lun.id, source: {...lun.source, initiatorName}, bus: 'virtio'})
  t.is((await guest.waitForDisk(lun.id)).sizeBytes, lun.sizeBytes)
})

test.serial('a file becomes a disk, and its growth is seen by the guest', async t => {
  const {id, path, source} = await fileDisk()
  await attach(t, {id, source, bus: 'virtio'})
  await guest.waitForDisk(id, {sizeBytes: 16 * MiB})
  const data = randomBytes(1000)
  await guest.write(id, 0, data)
  t.deepEqual(await bytesAt(path, 0, data.length), data)
  const {writtenBytes, errors} = await driver.counters(domain, id)
  t.true(writtenBytes >= data.length)
  t.is(errors, 0)

  await truncate(path, 32 * MiB)
  await driver.resize(domain, id, 32 * MiB)
  await guest.waitForDisk(id, {sizeBytes: 32 * MiB})
  for (const size of [0, -512, 513, 1.5, Number.NaN]) {
    await t.throwsAsync(driver.resize(domain, id, size), {code: 'SIZE_INVALID'})
  }
})

test.serial('a read-only disk cannot be written by the guest', async t => {
  const {id, source} = await fileDisk()
  t.true((await attach(t, {id, source, bus: 'virtio', readOnly: true})).readOnly)
  await guest.waitForDisk(id)
  await t.throwsAsync(guest.write(id, 0, Buffer.from('x')), {code: 'COMPUTE_FAILED'})
})

test.serial('target names: the first free one is chosen, a given one is kept, a taken one is refused', async t => {
  const [first, second, third, scsi] = await Promise.all([fileDisk(), fileDisk(), fileDisk(), fileDisk()])
  t.is((await attach(t, {...first, bus: 'virtio', target: 'vdb'})).target, 'vdb')
  t.is((await attach(t, {...second, bus: 'virtio'})).target, 'vda')
  t.is((await attach(t, {...third, bus: 'virtio'})).target, 'vdc')
  const refused = await fileDisk()
  const error = await t.throwsAsync<StorageError>(attach(t, {...refused, bus: 'virtio', target: 'vdb'}), {
    code: 'DISK_TARGET_IN_USE',
  })
  t.like(error.info, {domain, target: 'vdb'})
  t.is((await attach(t, {...scsi, bus: 'scsi'})).target, 'sda')
  await t.throwsAsync(attach(t, {...refused, bus: 'virtio', target: 'hda'}), {code: 'INVALID_ARGUMENT'})
})

test.serial('attaching twice is attaching once; the same source under another id is refused', async t => {
  const lun = await iscsiDisk(t)
  const spec = {id: lun.id, source: lun.source, bus: 'virtio' as const}
  const disk = await attach(t, spec)
  t.deepEqual(await driver.attach({domain, ...spec}), disk)
  const others = [
    {...spec, id: newVolumeId()},
    {...spec, id: newVolumeId(), bus: 'scsi' as const},
  ]
  for (const other of others) {
    const error = await t.throwsAsync<StorageError>(attach(t, other), {code: 'ATTACHMENT_EXISTS'})
    t.like(error.info, {target: disk.target, alias: disk.alias})
  }
  const file = await fileDisk()
  await t.throwsAsync(attach(t, {...spec, source: file.source}), {code: 'ATTACHMENT_EXISTS'})
  await attach(t, {...file, bus: 'virtio'})
  await t.throwsAsync(attach(t, {id: newVolumeId(), source: file.source, bus: 'virtio'}), {code: 'ATTACHMENT_EXISTS'})
  const block = {type: 'block' as const, path: file.path}
  await t.throwsAsync(attach(t, {id: newVolumeId(), source: block, bus: 'virtio'}), {code: 'ATTACHMENT_EXISTS'})
})

test.serial("what is wrong with a source is told in libvirt's words, and nothing is left attached", async t => {
  const lun = await iscsiDisk(t)
  const {portal} = lun.source
  const wrong = [
    {...lun.source, lun: 7},
    {...lun.source, iqn: `${lun.iqn}.nobody`},
    {...lun.source, portal: {...portal, port: await freePort()}},
    {type: 'file' as const, path: join(directory, 'absent'), format: 'raw' as const},
    {type: 'block' as const, path: '/dev/lunpath-absent'},
  ]
  const before = await driver.disks(domain)
  for (const source of wrong) {
    const error = await t.throwsAsync<StorageError>(driver.attach({domain, id: lun.id, source, bus: 'virtio'}), {
      code: 'COMPUTE_FAILED',
    })
    t.is(nativeFacts(error.cause)?.code, 'VIR_ERR', error.message)
  }
  t.deepEqual(await driver.disks(domain), before)
})

test.serial('domains are listed with their state, found by name and by UUID, and unknown ones are told', async t => {
  const [found, ...others] = await driver.domains()
  t.deepEqual(others, [])
  t.like(found, {name: domain, state: 'running', persistent: true})
  t.deepEqual(await driver.domain(found!.uuid), found!)
  t.deepEqual(await driver.domain(domain), found!)
  const {id, source} = await fileDisk()
  const unknown = 'b2c3d4e5-0000-4000-8000-000000000000'
  for (const name of ['nobody', unknown]) {
    await t.throwsAsync(driver.domain(name), {code: 'DOMAIN_NOT_FOUND'})
    await t.throwsAsync(driver.disks(name), {code: 'DOMAIN_NOT_FOUND'})
    await t.throwsAsync(driver.attach({domain: name, id, source, bus: 'virtio'}), {code: 'DOMAIN_NOT_FOUND'})
    await t.notThrowsAsync(driver.detach(name, id))
  }
  for (const name of ['', 'a\nb', 'a/b', 'x'.repeat(256)]) {
    await t.throwsAsync(driver.domain(name), {code: 'NAME_INVALID'})
  }
  await t.throwsAsync(driver.counters(domain, id), {code: 'ATTACHMENT_NOT_FOUND'})
  await t.throwsAsync(driver.detach(domain, '../../etc'), {code: 'INVALID_ARGUMENT'})
  await t.notThrowsAsync(driver.detach(domain, id), 'a disk that is gone is success')
})

test.serial('a paused guest keeps its virtio disk: detach stays pending until the guest runs again', async t => {
  const {id, source} = await fileDisk()
  const disk = await attach(t, {id, source, bus: 'virtio'})
  await guest.waitForDisk(id)
  await libvirtd.connection.suspend(domain)
  t.is((await driver.domain(domain)).state, 'paused')
  for (const _ of ['first', 'again']) {
    const error = await t.throwsAsync<StorageError>(driver.detach(domain, id, {timeoutMs: 300}), {
      code: 'DETACH_PENDING',
    })
    t.like(error.info, {domain, id})
  }
  t.true((await driver.disks(domain)).some(it => it.alias === disk.alias))
  await t.throwsAsync(driver.attach({domain, id, source, bus: 'virtio'}), {code: 'DETACH_PENDING'})

  const removed = nextEvent('removed', facts => facts.id === id)
  await libvirtd.connection.resume(domain)
  t.like(await removed, {domain, alias: disk.alias})
  t.false((await driver.disks(domain)).some(it => it.alias === disk.alias))
  await driver.detach(domain, id)
  t.is((await driver.attach({domain, id, source, bus: 'virtio'})).target, disk.target)
})

test.serial('a detach that waits ends when the guest releases the disk', async t => {
  const {id, source} = await fileDisk()
  await attach(t, {id, source, bus: 'virtio'})
  await guest.waitForDisk(id)
  await libvirtd.connection.suspend(domain)
  const detached = driver.detach(domain, id)
  // Other disks of the domain come and go meanwhile.
  const other = await fileDisk()
  await attach(t, {...other, bus: 'scsi'})
  await driver.detach(domain, other.id)
  await libvirtd.connection.resume(domain)
  await t.notThrowsAsync(detached)
})

test.serial('a disk that somebody else takes away is reported and then gone', async t => {
  const {id, source} = await fileDisk()
  const disk = await attach(t, {id, source, bus: 'scsi'})
  await guest.waitForDisk(id)
  const removed = nextEvent('removed', facts => facts.id === id)
  await libvirtd.connection.detachAlias(domain, disk.alias, affectLive)
  t.like(await removed, {domain, id})
  await t.notThrowsAsync(driver.detach(domain, id))
})

test.serial('sixteen disks at once, on both buses, each seen by the guest', async t => {
  const disks = await Promise.all(Array.from({length: 16}, () => fileDisk()))
  const specs = disks.map((disk, index) => ({...disk, bus: index % 2 ? ('virtio' as const) : ('scsi' as const)}))
  const attached = await Promise.all(specs.map(spec => attach(t, spec)))
  t.is(new Set(attached.map(({target}) => target)).size, 16)
  for (const {id} of disks) t.is((await guest.waitForDisk(id)).sizeBytes, 16 * MiB)
  await Promise.all(disks.map(({id}) => driver.detach(domain, id)))
  t.deepEqual(await driver.disks(domain), [])
})

test.serial("two drivers at once, of which neither names a target, do not get in each other's way", async t => {
  const other = new LibvirtDriver({uri: libvirtd.uri})
  t.teardown(() => other.close())
  await other.open()
  const lun = await iscsiDisk(t, {auth: {incoming: {...chap, user: 'two'}}})
  const rounds = await Promise.all(Array.from({length: 4}, () => fileDisk()))
  const secret = {...lun.source, auth: {...chap, user: 'two'}}
  const attached = await Promise.all([
    ...rounds.map((disk, index) => {
      t.teardown(() => driver.detach(domain, disk.id))
      return (index % 2 ? driver : other).attach({domain, ...disk, bus: 'virtio'})
    }),
    attach(t, {id: lun.id, source: secret, bus: 'virtio'}),
  ])
  t.is(new Set(attached.map(({target}) => target)).size, 5)
  t.deepEqual(await other.attach({domain, id: lun.id, source: secret, bus: 'virtio'}), attached[4])
  const ids = [...rounds.map(({id}) => id), lun.id]
  // Each disk by one of them first: libvirtd 9.0 may crash where a disk is asked for again while QEMU removes it, and
  // neither driver can know that the other has asked.
  await Promise.all(ids.map((id, index) => (index % 2 ? other : driver).detach(domain, id)))
  await Promise.all(ids.map((id, index) => (index % 2 ? driver : other).detach(domain, id)))
  t.deepEqual(await driver.disks(domain), [])
})

test.serial(
  'libvirtd hangs: calls end by their deadline; it dies in mid-call: they tell, and the driver comes back',
  async t => {
    const lun = await iscsiDisk(t, {auth: {incoming: {...chap, user: 'three'}}})
    const source = {...lun.source, auth: {...chap, user: 'three'}}
    const disk = await attach(t, {id: lun.id, source, bus: 'virtio'})
    await guest.waitForDisk(lun.id)
    // A guest whose disk is taken away while it looks for partitions says so, and tests above do that.
    const before = (await guest.stats()).kernelIoErrors
    const impatient = new LibvirtDriver({uri: libvirtd.uri, queryTimeoutMs: 200})
    t.teardown(() => impatient.close())
    await impatient.open()

    const [pid] = processesOf(libvirtd, 'libvirtd')
    process.kill(pid!, 'SIGSTOP')
    await t.throwsAsync(impatient.domains(), {code: 'TIMEOUT'})
    await t.notThrowsAsync(impatient.close())
    const lost = nextEvent('lost', () => true)
    const connected = nextEvent('connected', () => true)
    const file = await fileDisk()
    const calls = [driver.domains(), driver.attach({domain, ...file, bus: 'virtio'})]
    const outcomes = Promise.allSettled(calls)
    await libvirtd.kill()
    for (const outcome of await outcomes) {
      t.is(outcome.status, 'rejected')
      const {reason} = outcome as PromiseRejectedResult
      t.is(reason.code, 'COMPUTE_UNAVAILABLE', reason.message)
    }
    await lost
    await t.throwsAsync(new LibvirtDriver({uri: libvirtd.uri}).domains(), {code: 'COMPUTE_UNAVAILABLE'})

    await libvirtd.start()
    await connected
    t.not(await libvirtd.connection.findSecret(secretUsage(lun.iqn)), null, 'the secret is back')
    t.deepEqual(await driver.attach({domain, id: lun.id, source, bus: 'virtio'}), disk)
    await attach(t, {...file, bus: 'virtio'})
    await guest.waitForDisk(file.id)
    t.deepEqual((await guest.stats()).kernelIoErrors, before)
  },
)

test.serial('a call that was given up while it waited for a thread never begins', async t => {
  const iqn = 'iqn.2026-01.test.lunpath:given-up'
  const impatient = new LibvirtDriver({uri: libvirtd.uri, queryTimeoutMs: 1_000})
  t.teardown(() => impatient.close())
  await impatient.open()
  const [pid] = processesOf(libvirtd, 'libvirtd')
  process.kill(pid!, 'SIGSTOP')
  const calls = [1, 2, 3, 4].map(() => impatient.domains())
  for (const call of [...calls, impatient.rememberSecret(iqn, chap)]) await t.throwsAsync(call, {code: 'TIMEOUT'})
  process.kill(pid!, 'SIGCONT')
  // By the time that later calls have been answered, the one that was given up would have been made.
  for (let answers = 0; answers < 4; ) {
    await impatient.domains().then(
      () => answers++,
      () => undefined,
    )
  }
  t.is(await libvirtd.connection.findSecret(secretUsage(iqn)), null)
})

test.serial('a detach goes on over a restart of libvirtd', async t => {
  const {id, source} = await fileDisk()
  await attach(t, {id, source, bus: 'virtio'})
  await guest.waitForDisk(id)
  await libvirtd.connection.suspend(domain)
  const detached = driver.detach(domain, id)
  await t.throwsAsync(driver.detach(domain, id, {timeoutMs: 100}), {code: 'DETACH_PENDING'})
  await libvirtd.kill()
  await libvirtd.start()
  await libvirtd.connection.resume(domain)
  await t.notThrowsAsync(detached)
  await guest.waitForDiskGone(id)
})

test.serial(
  'QEMU hangs on a portal that does not answer: the call ends by its deadline, other domains are served',
  async t => {
    const silent = createServer(() => {})
    await once(silent.listen(0, '127.0.0.1'), 'listening')
    const {port} = silent.address() as {port: number}
    // Closed last: by then the hostage is gone, and with it the call that hangs.
    const impatient = new LibvirtDriver({uri: libvirtd.uri, changeTimeoutMs: 500})
    t.teardown(() => impatient.close())
    await impatient.open()
    const hostage = new Guest({libvirtd, name: 'hostage', transient: true})
    t.teardown(async () => {
      for (const pid of processesOf(libvirtd, 'qemu-system-x86_64')) {
        if (pid !== mainQemu) process.kill(pid, 'SIGKILL')
      }
      silent.close()
      await hostage.stop()
    })
    const [mainQemu] = processesOf(libvirtd, 'qemu-system-x86_64')
    await hostage.boot()
    const lun = await iscsiDisk(t)
    const source = {...lun.source, portal: {address: '127.0.0.1', port}}
    await t.throwsAsync(impatient.attach({domain: 'hostage', id: lun.id, source, bus: 'virtio'}), {code: 'TIMEOUT'})
    t.is((await impatient.domain(domain)).state, 'running')
  },
)

test.serial(
  'a persistent disk is in the definition, is there after the next start, and leaves both places',
  async t => {
    const lun = await iscsiDisk(t, {auth: {incoming: {...chap, user: 'four'}}})
    const source = {...lun.source, auth: {...chap, user: 'four'}}
    const live = await fileDisk()
    await attach(t, {...live, bus: 'scsi'})
    t.like(await driver.attach({domain, id: live.id, source: live.source, bus: 'scsi', persistent: true}), {
      target: 'sda',
      live: true,
      persistent: true,
    })
    await driver.detach(domain, live.id, {persistent: false})
    t.like(
      (await driver.disks(domain)).find(it => it.alias === aliasOf(live.id)),
      {live: false, persistent: true},
    )

    t.like(await attach(t, {id: lun.id, source, bus: 'virtio', persistent: true}), {live: true, persistent: true})
    const stopped = nextEvent('domain', facts => facts.event === 'stopped')
    await libvirtd.connection.destroy(domain)
    t.like(await stopped, {domain})
    t.is((await driver.domain(domain)).state, 'shutoff')

    const offline = await fileDisk()
    await t.throwsAsync(attach(t, {...offline, bus: 'virtio'}), {code: 'DOMAIN_INACTIVE'})
    await t.throwsAsync(attach(t, {...offline, bus: 'virtio', persistent: true, live: true}), {code: 'DOMAIN_INACTIVE'})
    t.like(await attach(t, {...offline, bus: 'virtio', persistent: true}), {live: false, persistent: true})

    await guest.start()
    await guest.waitReady()
    for (const {id} of [lun, live, offline]) await guest.waitForDisk(id)
    for (const {id} of [lun, live, offline]) await driver.detach(domain, id)
    t.deepEqual(await driver.disks(domain), [])
  },
)

test.serial('a disk of the definition alone can be taken out while the domain is shut off', async t => {
  await libvirtd.connection.destroy(domain)
  const {id, source} = await fileDisk()
  await attach(t, {id, source, bus: 'virtio', persistent: true})
  await driver.detach(domain, id)
  t.deepEqual(await driver.disks(domain), [])
  await guest.start()
  await guest.waitReady()
})

test.serial(
  'a domain that was defined anew under its old name, or was renamed, is not taken for the old one',
  async t => {
    const {connection} = libvirtd
    const define = (name: string, uuid: string) =>
      connection.defineXml(
        `<domain type='qemu'><name>${name}</name><uuid>${uuid}</uuid><memory unit='MiB'>16</memory><os><type>hvm</type></os></domain>`,
      )
    const uuids = ['b2c3d4e5-0000-4000-8000-00000000000a', 'b2c3d4e5-0000-4000-8000-00000000000b'] as const
    t.teardown(() => connection.undefine(uuids[1]).catch(() => undefined))
    for (const uuid of uuids) {
      await define('twin', uuid)
      const {id, source} = await fileDisk()
      await driver.attach({domain: 'twin', id, source, bus: 'virtio', persistent: true, live: false})
      const [disk, ...others] = await driver.disks(uuid)
      t.deepEqual(others, [])
      t.is(disk?.serial, id)
      if (uuid === uuids[0]) await connection.undefine(uuid)
    }
    await connection.undefine(uuids[1])
    await define('sister', uuids[1])
    const {id, source} = await fileDisk()
    const attached = driver.attach({domain: 'twin', id, source, bus: 'virtio', persistent: true, live: false})
    await t.throwsAsync(attached, {code: 'DOMAIN_NOT_FOUND'})
    t.deepEqual(await driver.disks('sister'), [])
  },
)

test.serial('a transient domain has no definition to attach to', async t => {
  const transient = new Guest({libvirtd, name: 'transient', transient: true})
  t.teardown(() => transient.stop())
  await transient.boot()
  const {id, source} = await fileDisk()
  await t.throwsAsync(driver.attach({domain: 'transient', id, source, bus: 'virtio', persistent: true}), {
    code: 'CONFLICT',
  })
})

test.serial('QEMU dies: a detach that waits is done, an attach tells that the domain is shut off', async t => {
  const {id, source} = await fileDisk()
  await attach(t, {id, source, bus: 'virtio'})
  await guest.waitForDisk(id)
  await libvirtd.connection.suspend(domain)
  const detached = driver.detach(domain, id)
  await t.throwsAsync(driver.detach(domain, id, {timeoutMs: 100}), {code: 'DETACH_PENDING'})
  const stopped = nextEvent('domain', facts => facts.event === 'stopped')
  const [pid] = processesOf(libvirtd, 'qemu-system-x86_64')
  process.kill(pid!, 'SIGKILL')
  await t.notThrowsAsync(detached)
  t.like(await stopped, {domain})
  await t.throwsAsync(driver.attach({domain, id, source, bus: 'virtio'}), {code: 'DOMAIN_INACTIVE'})
})

test.serial('close() comes back, twice too, and before open; later calls tell', async t => {
  const closed = new LibvirtDriver({uri: libvirtd.uri})
  await closed.close()
  await t.throwsAsync(closed.open(), {code: 'COMPUTE_UNAVAILABLE'})
  const opened = new LibvirtDriver({uri: libvirtd.uri})
  await t.throwsAsync(opened.domains(), {code: 'COMPUTE_UNAVAILABLE'})
  await opened.open()
  const pending = opened.domains()
  await Promise.all([opened.close(), opened.close()])
  t.is((await pending).length, 1)
  await t.throwsAsync(opened.domains(), {code: 'COMPUTE_UNAVAILABLE'})
})

test.serial('a libvirtd that comes late is found', async t => {
  const late = new PrivateLibvirtd()
  t.teardown(() => late.stop())
  const waiting = new LibvirtDriver({uri: late.uri})
  t.teardown(() => waiting.close())
  const connected = new Promise(resolve => waiting.on('connected', resolve))
  await t.throwsAsync(waiting.open(), {code: 'COMPUTE_UNAVAILABLE'})
  await late.start()
  await connected
  t.deepEqual(await waiting.domains(), [])
})
