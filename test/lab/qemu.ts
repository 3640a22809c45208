import {existsSync} from 'node:fs'
import {join} from 'node:path'
import {
  defaultMemoryMiB,
  firstChannel,
  type Layout,
  l2tp,
  l2tpEnds,
  labDirectory,
  type Machine,
  macOf,
  type Start,
} from './machine.js'
import type {LabOptions} from './vm.js'

const program = '/usr/bin/qemu-system-x86_64'

// Without its mitigations and its zeroing of memory the emulated kernel needs half the time for small requests.
// With oops=panic and panic=-1 a crash ends the machine at once, and -no-reboot QEMU with it.
const kernelCommandLine =
  'console=ttyS0 quiet panic=-1 oops=panic mitigations=off init_on_alloc=0 no_timer_check random.trust_cpu=on'

/** Debian's generic kernel under emulation (TCG): it needs no /dev/kvm, and ten times as long as the machine itself. */
export const qemu: Machine = {
  title: 'QEMU',
  mostCpus: 8,
  readyMs: 300_000,
  diskModules: ['virtio_blk'],
  networkModules: ['virtio_net'],
  missing() {
    if (!existsSync(kernel()) || !existsSync(initrd())) {
      return `There is no lab in ${labDirectory()}. Run: scripts/lab-image`
    }
    return existsSync(program) ? undefined : `${program} is missing: apt-get install qemu-system-x86`
  },
  async start(options, layout): Promise<Start> {
    const parts = [machineArguments(options), channelArguments(layout), diskArguments(layout), cableArguments(options)]
    return {file: program, args: parts.flat()}
  },
}

const kernel = () => join(labDirectory(), 'kernel')
const initrd = () => join(labDirectory(), 'initrd.img')

function machineArguments({memoryMiB = defaultMemoryMiB, cpus = 1}: LabOptions): string[] {
  const args = ['-nodefaults', '-nographic', '-no-reboot', '-no-user-config', '-machine', 'q35', '-cpu', 'max']
  args.push('-accel', 'tcg,thread=multi', '-smp', `${cpus}`, '-m', `${memoryMiB}`)
  args.push('-kernel', kernel(), '-initrd', initrd(), '-append', kernelCommandLine)
  for (const [id, path] of [
    ['host', '/'],
    ['lab', labDirectory()],
  ] as const) {
    // Two file systems below one share can have the same inode numbers.
    args.push('-fsdev', `local,id=${id},path=${commasDoubled(path)},security_model=none,readonly=on,multidevs=remap`)
    args.push('-device', `virtio-9p-pci,fsdev=${id},mount_tag=${id}`)
  }
  return args
}

function channelArguments({channels}: Layout): string[] {
  const args = channels.flatMap((name, i) => ['-chardev', `socket,id=${name},fd=${firstChannel + i}`])
  args.push('-serial', 'chardev:console')
  // A serial line is a terminal.
  if (channels.includes('duplex')) args.push('-serial', 'chardev:duplex')
  args.push('-device', 'virtio-serial-pci')
  for (const name of ['control', 'stdout', 'stderr']) {
    args.push('-device', `virtserialport,chardev=${name},name=org.lunpath.lab.${name}`)
  }
  return args
}

function diskArguments({disks}: Layout): string[] {
  return disks.flatMap((fd, i) => [
    '-blockdev',
    `driver=raw,node-name=disk${i},discard=unmap,cache.no-flush=on,file.driver=file,file.filename=/dev/fd/${fd},file.locking=off`,
    '-device',
    `virtio-blk-pci,drive=disk${i},serial=lab-disk-${i + 1}`,
  ])
}

function cableArguments({cable}: LabOptions): string[] {
  if (!cable) return []
  return [
    '-netdev',
    `l2tpv3,id=cable,udp=on,counter=off,${l2tpEnds(cable.port)},rxsession=${l2tp.session},txsession=${l2tp.session}`,
    '-device',
    `virtio-net-pci,netdev=cable,mac=${macOf(cable.address)}`,
  ]
}

/** In an option of QEMU's a comma within a value is written twice. */
function commasDoubled(value: string): string {
  return value.replaceAll(',', ',,')
}
