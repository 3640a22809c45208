import {once} from 'node:events'
import {existsSync} from 'node:fs'
import {readFile, statfs} from 'node:fs/promises'
import {createServer} from 'node:net'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {packageRoot} from '../../src/native.js'
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

const program = '/usr/bin/linux.uml'
const preload = () => join(labDirectory(), 'uml-ptrace.so')

/**
 * User Mode Linux: the kernel as a program, whose processes run the machine's own instructions
 * (https://docs.kernel.org/virt/uml/user_mode_linux_howto_v2.html). It has one processor, and needs ptrace(2) of its own
 * children, which some containers forbid.
 */
export const uml: Machine = {
  title: 'User Mode Linux',
  mostCpus: 1,
  readyMs: 60_000,
  diskModules: [],
  networkModules: [],
  missing() {
    if (process.arch !== 'x64') return `Debian has no User Mode Linux for ${process.arch}`
    if (!existsSync(program)) return `${program} is missing: apt-get install user-mode-linux`
    return existsSync(preload()) ? undefined : `There is no lab in ${labDirectory()}. Run: scripts/lab-image`
  },
  async start(options, layout): Promise<Start> {
    // What the kernel's processes run in are processes here, which must not outlive it: they end with their namespace's first.
    const args = ['--pid', '--fork', '--kill-child=KILL']
    if (process.getuid!() !== 0) args.unshift('--user', '--map-current-user')
    args.push('--', '/bin/sh', '-c', begin, preload(), program, ...(await kernelArguments(options, layout)))
    const environment = {PATH: process.env.PATH, TMPDIR: await memoryDirectory(options)}
    const taken = await takeProcessor()
    if (!taken) return {file: 'unshare', args, environment}
    const {number, release} = taken
    return {file: 'taskset', args: ['--cpu-list', `${number}`, 'unshare', ...args], environment, release}
  },
}

// Not as the namespace's first process itself: that one cannot be ended by a signal of its own, as its kernel's panic does.
const begin = 'ulimit -c 0; LD_PRELOAD=$0 "$@"; exit'

async function kernelArguments({memoryMiB = defaultMemoryMiB, cable}: LabOptions, layout: Layout): Promise<string[]> {
  const {channels, disks} = layout
  const args = ['root=/dev/root', 'rootfstype=hostfs', 'rootflags=/', 'ro', `mem=${memoryMiB}M`, 'quiet']
  // Where its pid and management socket would lie, which nobody needs and a killed one would leave: nothing can be made there.
  args.push('panic=-1', 'oops=panic', 'uml_dir=/dev/null/')
  args.push(`init=${quoted(join(packageRoot(), 'scripts', 'lab-init'))}`, 'con=null', 'ssl=null')
  for (const [i, name] of channels.entries()) {
    const line = name === 'console' ? 'con0=null,' : `ssl${serialLines.indexOf(name)}=`
    args.push(`${line}fd:${firstChannel + i}`)
  }
  // No copy-on-write file below it, then its serial number (arch/um/drivers/ubd_kern.c).
  for (const [i, fd] of disks.entries()) args.push(`ubd${i}=/proc/self/fd/${fd},,lab-disk-${i + 1}`)
  if (cable) {
    const sessions = `rx_session=${l2tp.session},tx_session=${l2tp.session}`
    args.push(`vec0:transport=l2tpv3,udp=1,v6=0,${l2tpEnds(cable.port)},${sessions},mac=${macOf(cable.address)}`)
  }
  return args
}

/** What scripts/lab-init finds as /dev/ttyS0 and so on. */
const serialLines = ['control', 'stdout', 'stderr', 'duplex']

/** An argument of the kernel's with blanks in it. */
function quoted(value: string): string {
  return /\s/.test(value) ? `"${value}"` : value
}

/** The guest's memory is a file that has no name, on a tmpfs if that has room: UML runs its processes out of it. */
async function memoryDirectory({memoryMiB = defaultMemoryMiB}: LabOptions): Promise<string> {
  const facts = await statfs('/dev/shm').catch(() => undefined)
  return facts && facts.bavail * facts.bsize > memoryMiB * 2 ** 20 ? '/dev/shm' : tmpdir()
}

/**
 * The processor that fewest other machines of the lab have taken; undefined where all have many. The kernel and its processes
 * take turns, and those cost twice as much where they go from one processor to the other. Each is taken by an abstract
 * socket (unix(7)), so that it is free again when its owner is gone, in whatever way.
 */
async function takeProcessor(): Promise<{number: number; release: () => void} | undefined> {
  const numbers = await processors()
  for (let others = 0; others < mostOthers; others++) {
    for (const number of numbers) {
      const server = createServer()
      server.listen(`\0org.lunpath.lab.processor-${number}.${others}`)
      try {
        await once(server, 'listening')
      } catch {
        continue
      }
      server.unref()
      return {number, release: () => server.close()}
    }
  }
  return undefined
}

const mostOthers = 4

/** Those that this process may run on: proc(5) tells them as 0-3,8. */
async function processors(): Promise<number[]> {
  const [, list] = /^Cpus_allowed_list:\s*(\S+)/m.exec(await readFile('/proc/self/status', 'utf8'))!
  return list!.split(',').flatMap(range => {
    const [first, last = first] = range.split('-').map(Number)
    return Array.from({length: last! - first! + 1}, (_, i) => first! + i)
  })
}
