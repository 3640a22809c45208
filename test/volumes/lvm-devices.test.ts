// Which devices LVM may look at, by a sysfs of the test's own.
import {mkdir, mkdtemp, rm, symlink, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {dirname, join, relative} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import {lvmFilter, ScannableDevices} from '../../src/volumes/lvm-devices.js'

const iscsiDisk = 'platform/host3/session1/target3:0:0/3:0:0:1/block'

/** A sysfs with block devices in it: `place` is below /sys/devices. */
class Sysfs {
  readonly root: string

  private constructor(root: string) {
    this.root = root
  }

  static async make(t: ExecutionContext): Promise<Sysfs> {
    const root = await mkdtemp(join(tmpdir(), 'lp-sysfs-'))
    t.teardown(() => rm(root, {recursive: true}))
    await mkdir(join(root, 'class/block'), {recursive: true})
    return new Sysfs(root)
  }

  async add(name: string, place: string, more: {below?: string[]; attributes?: Record<string, string>} = {}) {
    const directory = join(this.root, 'devices', place, name)
    await mkdir(join(directory, 'slaves'), {recursive: true})
    for (const one of more.below ?? []) await symlink(`../../${one}`, join(directory, 'slaves', one))
    for (const [attribute, text] of Object.entries(more.attributes ?? {})) {
      await mkdir(dirname(join(directory, attribute)), {recursive: true})
      await writeFile(join(directory, attribute), `${text}\n`)
    }
    await symlink(relative(join(this.root, 'class/block'), directory), join(this.root, 'class/block', name))
  }

  async remove(name: string, place: string) {
    await rm(join(this.root, 'class/block', name))
    await rm(join(this.root, 'devices', place, name), {recursive: true})
  }

  async session(name: string, iqn: string) {
    await mkdir(join(this.root, 'class/iscsi_session', name), {recursive: true})
    await writeFile(join(this.root, 'class/iscsi_session', name, 'targetname'), `${iqn}\n`)
  }
}

test('disks of iSCSI sessions, logical volumes and what lies on those are left out, a SAN’s disks are not', async t => {
  const sysfs = await Sysfs.make(t)
  await sysfs.add('sda', 'pci0000:00/ata1/host0/target0:0:0/0:0:0:0/block')
  await sysfs.add('sda1', 'pci0000:00/ata1/host0/target0:0:0/0:0:0:0/block/sda', {attributes: {partition: '1'}})
  await sysfs.add('cciss!c0d0', 'pci0000:00/cciss0/block')
  await sysfs.add('sdb', iscsiDisk)
  await sysfs.add('sdb1', `${iscsiDisk}/sdb`, {attributes: {partition: '1'}})
  await sysfs.add('sdc', 'platform/host4/session2/target4:0:0/4:0:0:1/block')
  await sysfs.session('session1', 'iqn.2026-01.io.lunpath:0123456789abcdef')
  await sysfs.session('session2', 'iqn.2001-05.com.example:san')
  const virtual = 'virtual/block'
  await sysfs.add('dm-0', virtual, {below: ['sda'], attributes: {'dm/uuid': 'CRYPT-LUKS2-x'}})
  await sysfs.add('dm-1', virtual, {below: ['sda1'], attributes: {'dm/uuid': 'LVM-xyz'}})
  await sysfs.add('dm-2', virtual, {below: ['dm-1'], attributes: {'dm/uuid': 'part1-LVM-xyz'}})
  await sysfs.add('dm-3', virtual, {below: ['sdb'], attributes: {'dm/uuid': 'mpath-1'}})
  await sysfs.add('dm-4', virtual, {below: ['sdc'], attributes: {'dm/uuid': 'mpath-2'}})
  await sysfs.add('md0', virtual, {below: ['sda1', 'sdb1']})
  await sysfs.add('md1', virtual, {below: ['sda1', 'cciss!c0d0']})
  await sysfs.add('md1p1', `${virtual}/md1`, {attributes: {partition: '1'}})
  await sysfs.add('loop0', virtual)

  const local = ['/dev/cciss/c0d0', '/dev/dm-0', '/dev/loop0', '/dev/md1', '/dev/md1p1', '/dev/sda', '/dev/sda1']
  t.deepEqual(new ScannableDevices({sysfs: sysfs.root}).look().paths, local)
  const withSan = new ScannableDevices({sysfs: sysfs.root, sanTargets: ['iqn.2001-05.com.example:san']})
  t.deepEqual(withSan.look().paths, [...local, '/dev/dm-4', '/dev/sdc'].sort())
})

test('a name that comes again is looked at again, and a map that lies on nothing yet is waited for', async t => {
  const sysfs = await Sysfs.make(t)
  const devices = new ScannableDevices({sysfs: sysfs.root})
  const local = 'pci0000:00/ata1/host0/target0:0:0/0:0:0:0/block'
  await sysfs.add('sda', local)
  await sysfs.add('dm-0', 'virtual/block', {attributes: {'dm/uuid': 'mpath-1'}})
  t.deepEqual(devices.look().paths, ['/dev/sda'])
  await sysfs.remove('sda', local)
  // So that the file system does not give the inode again, which sysfs never does.
  await sysfs.add('other', 'virtual/block')
  await sysfs.add('sda', iscsiDisk)
  await symlink('../../sda', join(sysfs.root, 'devices/virtual/block/dm-0/slaves/sda'))
  t.deepEqual(devices.look().paths, ['/dev/other'])
  await sysfs.remove('sda', iscsiDisk)
  t.deepEqual(devices.look().paths, ['/dev/other'])
})

test('the answer stands until the kernel has told of an event, or guests have other devices', async t => {
  const sysfs = await Sysfs.make(t)
  await mkdir(join(sysfs.root, 'kernel'))
  const event = (number: number) => writeFile(join(sysfs.root, 'kernel/uevent_seqnum'), `${number}\n`)
  const guestDevices: string[] = []
  const devices = new ScannableDevices({sysfs: sysfs.root, guestDevices: () => guestDevices})
  await event(7)
  await sysfs.add('null', 'virtual/block')
  t.deepEqual(devices.look().paths, ['/dev/null'])
  await sysfs.add('md0', 'virtual/block')
  t.deepEqual(devices.look().paths, ['/dev/null'])
  await event(8)
  t.deepEqual(devices.look().paths, ['/dev/null'], 'an array that lies on nothing yet')
  await symlink('../../null', join(sysfs.root, 'devices/virtual/block/md0/slaves/null'))
  await event(9)
  t.deepEqual(devices.look().paths, ['/dev/md0', '/dev/null'])
  guestDevices.push('/dev/null')
  t.deepEqual(devices.look().paths, [])
})

test('disks that turn are counted, a partition as its disk', async t => {
  const sysfs = await Sysfs.make(t)
  const local = 'pci0000:00/ata1/host0/target0:0:0/0:0:0:0/block'
  await sysfs.add('sda', local, {attributes: {'queue/rotational': '1'}})
  await sysfs.add('sda1', `${local}/sda`, {attributes: {partition: '1'}})
  await sysfs.add('nvme0n1', 'pci0000:00/nvme/nvme0', {attributes: {'queue/rotational': '0'}})
  await sysfs.add('nvme0n1p1', 'pci0000:00/nvme/nvme0/nvme0n1', {attributes: {partition: '1'}})
  await sysfs.add('sdb', iscsiDisk, {attributes: {'queue/rotational': '1'}})
  await sysfs.session('session1', 'iqn.2026-01.io.lunpath:0123456789abcdef')
  const {paths, rotational} = new ScannableDevices({sysfs: sysfs.root}).look()
  t.is(paths.length, 4)
  t.is(rotational, 2)
})

test('the filter takes these devices and no other, whatever letters a name has', t => {
  t.is(lvmFilter([]), '[ "r|.*|" ]')
  t.is(lvmFilter(['/dev/sda', '/dev/a.b']), '[ "a|^/dev/sda$|", "a|^/dev/a[.]b$|", "r|.*|" ]')
})
