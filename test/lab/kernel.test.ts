// What later tests rely on in the lab: each kernel driver that they use can be loaded and does its work there, with this
// machine's node, addons and LVM.
import {randomBytes} from 'node:crypto'
import {existsSync} from 'node:fs'
import {open, readdir, readFile, writeFile} from 'node:fs/promises'
import type {ExecutionContext} from 'ava'
import {run} from '../../src/exec.js'
import {loadAddon} from '../../src/native.js'
import {traceExecve} from '../fixtures/trace.js'
import {lab, labDisk} from './lab.js'

const MiB = 2 ** 20

lab.options({disksBytes: [256 * MiB]})

/** LVM without udevd makes its device nodes itself. */
const withoutUdev = ['--config', 'activation{udev_sync=0 udev_rules=0}']

async function modprobe(...args: string[]): Promise<void> {
  await run('modprobe', args)
}

async function loaded(): Promise<Set<string>> {
  const lines = (await readFile('/proc/modules', 'utf8')).split('\n')
  return new Set(lines.map(line => line.split(' ')[0]!))
}

async function includes(t: ExecutionContext, directory: string, name: string): Promise<void> {
  const names = await readdir(directory)
  t.true(names.includes(name), `${name} is not in ${directory}: ${names.join(' ')}`)
}

lab('1. device-mapper has its thin, snapshot and fault targets', async t => {
  const modules = ['dm-mod', 'dm-thin-pool', 'dm-snapshot', 'dm-flakey', 'dm-delay', 'dm-log-writes', 'dm-multipath']
  for (const module of modules) await modprobe(module)
  const {stdout} = await run('dmsetup', ['targets'])
  for (const target of ['linear', 'thin', 'thin-pool', 'snapshot', 'flakey', 'delay', 'log-writes', 'multipath']) {
    t.regex(stdout, new RegExp(`^${target}\\s+v`, 'm'))
  }
})

lab('2. the iSCSI target is there, in configfs', async t => {
  for (const module of ['configfs', 'target_core_mod', 'iscsi_target_mod', 'target_core_iblock', 'target_core_file']) {
    await modprobe(module)
  }
  await run('mount', ['-t', 'configfs', 'configfs', '/sys/kernel/config'])
  await includes(t, '/sys/kernel/config/target', 'core')
  // The first mkdir of a fabric registers it.
  await run('mkdir', ['/sys/kernel/config/target/iscsi'])
  await includes(t, '/sys/kernel/config/target/iscsi', 'discovery_auth')
})

lab('3. the iSCSI initiator is there', async t => {
  await modprobe('iscsi_tcp')
  await includes(t, '/sys/class/iscsi_transport', 'tcp')
  for (const module of ['scsi_transport_iscsi', 'sd_mod', 'tcp_diag']) await modprobe(module)
  t.true((await loaded()).has('iscsi_tcp'))
})

lab('4. CUSE, loop and the disks made of nothing are there', async t => {
  await modprobe('cuse')
  t.true(existsSync('/dev/cuse'))
  await modprobe('loop')
  t.true(existsSync('/dev/loop-control'))
  await modprobe('scsi_debug', 'dev_size_mb=8')
  const [host] = await readdir('/sys/bus/pseudo/drivers/scsi_debug/adapter0').then(names =>
    names.filter(name => /^host\d+$/.test(name)),
  )
  t.truthy(host)
  await readdir(`/sys/class/scsi_host/${host}`)
})

lab('5. our addons load', t => {
  for (const name of ['tgt', 'iscsi', 'libvirt', 'net'] as const) t.notThrows(() => loadAddon(name), name)
})

lab('6. a logical volume holds what is written, and its snapshot what was there before', async t => {
  await modprobe('dm-snapshot')
  await run('vgcreate', [...withoutUdev, '--yes', 'lab', labDisk(1)])
  t.teardown(() => run('vgremove', [...withoutUdev, '--force', 'lab']))
  await run('lvcreate', [...withoutUdev, '--yes', '--name', 'volume', '--size', '64m', 'lab'])
  const before = randomBytes(4096)
  await writeAtStart('/dev/lab/volume', before)
  await run('lvcreate', [...withoutUdev, '--yes', '--snapshot', '--name', 'then', '--size', '16m', 'lab/volume'])
  const after = randomBytes(4096)
  await writeAtStart('/dev/lab/volume', after)
  t.deepEqual(await readAtStart('/dev/lab/volume', after.length), after)
  t.deepEqual(await readAtStart('/dev/lab/then', before.length), before)
  const {stdout} = await run('lvs', ['--noheadings', '--units', 'b', '--nosuffix', '-o', 'lv_size', 'lab/volume'])
  t.is(Number(stdout), 64 * MiB)
})

lab('7. the checkout can be written to, and loopback speaks IPv4 and IPv6', async t => {
  await writeFile('package.json', 'overwritten in the lab')
  t.is(await readFile('package.json', 'utf8'), 'overwritten in the lab')
  const {stdout} = await run('ip', ['-brief', 'address', 'show', 'dev', 'lo'])
  t.regex(stdout, /127\.0\.0\.1\/8/)
  t.regex(stdout, /::1\/128/)
})

lab('8. a trace names each program, also those that start while others end', async t => {
  const arguments_ = Array.from({length: 40}, (_, i) => `number-${i}`)
  const programs = await traceExecve(() => Promise.all(arguments_.map(name => run('/bin/true', [name]))))
  const named = arguments_.filter(name => programs.some(program => program.includes(`"${name}"`)))
  t.deepEqual(named, arguments_)
})

async function writeAtStart(device: string, data: Buffer): Promise<void> {
  const file = await open(device, 'r+')
  try {
    await file.write(data, 0, data.length, 0)
    await file.datasync()
  } finally {
    await file.close()
  }
}

async function readAtStart(device: string, lengthBytes: number): Promise<Buffer> {
  const file = await open(device, 'r')
  try {
    const data = Buffer.alloc(lengthBytes)
    await file.read(data, 0, lengthBytes, 0)
    return data
  } finally {
    await file.close()
  }
}
