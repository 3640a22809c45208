import {type ChildProcess, spawn} from 'node:child_process'
import {once} from 'node:events'
import {mkdir, mkdtemp, rm, writeFile} from 'node:fs/promises'
import {createConnection} from 'node:net'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {createInterface, type Interface} from 'node:readline'
import {setTimeout as sleep} from 'node:timers/promises'
import {ApiClient} from '../src/api/client.js'
import {run} from '../src/exec.js'
import {packageRoot} from '../src/native.js'
import {diskOfLab} from '../test/lab/disk.js'
import {prepareInitiator, udevd} from '../test/lab/initiator.js'
import {startDaemon} from './daemon.js'
import type {Release} from './trials.js'

/** The way of a volume, there and back. */
export const steps = ['create', 'export', 'connect', 'disconnect', 'unexport', 'delete'] as const
export type Step = (typeof steps)[number]

/** Who takes volumes that way; they are named by UUIDs of the caller's. */
export interface Side {
  /** The process that does the work, or starts those that do. */
  pid: number
  /** Takes all these volumes one step further, all at once. @returns milliseconds until the last one is there */
  take(step: Step, volumes: readonly string[]): Promise<number>
}

export type Target = 'tgt' | 'lio'

export const group = 'bench'
const sizeBytes = 2 ** 30
const address = '127.0.0.1'
const port = 3260

/** What both sides share in the lab: the volume group, iscsid, udevd, and a tgtd or the kernel's target. */
export async function prepareLab(target: Target, release: Release): Promise<void> {
  const disk = diskOfLab(1)
  const udev = udevd()
  await udev.start()
  release(() => udev.stop())
  const iscsid = await prepareInitiator()
  await iscsid.start()
  release(() => iscsid.stop())
  await run('vgcreate', [group, disk])
  release(async () => {
    await run('vgremove', ['--yes', '--force', group])
    await run('pvremove', ['--yes', disk])
  })
  if (target === 'tgt') release(await startTgtd())
}

/** The machine's own tgtd, as tgt-admin expects it: with the default control socket. */
async function startTgtd(): Promise<() => Promise<void>> {
  const child = spawn('tgtd', ['-f', '--iscsi', `portal=${address}:${port}`], {stdio: 'ignore'})
  const listens = async () => {
    const socket = createConnection(port, address)
    return once(socket, 'connect')
      .then(
        () => true,
        () => false,
      )
      .finally(() => socket.destroy())
  }
  while (!(await listens())) {
    if (child.exitCode !== null) throw new Error('tgtd did not start')
    await sleep(50)
  }
  return () => end(child, 'SIGKILL')
}

/** lunpath's daemon, through its socket, as its users reach it. */
export async function lunpathSide(target: Target, release: Release): Promise<Side> {
  const directory = await temporary(release)
  const daemon = await startDaemon(
    directory,
    `[volumes]
defaultPool = "${group}"
[[volumes.lvm]]
group = "${group}"
wipe = "none"
[targets]
driver = "${target}"
managed = false
portals = ["${address}:${port}"]
[compute]
uri = "test:///default"
`,
  )
  release(() => daemon.stop())
  const api = new ApiClient(daemon.socket, {maxSockets: 16})
  release(async () => api.close())

  const auth = {incoming: {user: 'bench', secret: 'a-secret-of-20-bytes'}}
  const portals = [`${address}:${port}`]
  const made = new Map<string, {id: string; iqn?: string}>()
  const works: Record<Step, (name: string) => Promise<unknown>> = {
    async create(name) {
      const {volume} = await api.call<{volume: {id: string}}>('POST', '/volumes', {sizeBytes})
      made.set(name, {id: volume.id})
    },
    async export(name) {
      const volume = made.get(name)!
      const {export: offer} = await api.call<{export: {iqn: string}}>('POST', '/exports', {volume: volume.id, auth})
      volume.iqn = offer.iqn
    },
    connect: name => api.call('POST', '/initiator/connections', {iqn: made.get(name)!.iqn, portals, auth}),
    disconnect: name => api.call('DELETE', `/initiator/connections/${made.get(name)!.iqn}`),
    unexport: name => api.call('DELETE', `/exports/${made.get(name)!.id}`),
    async delete(name) {
      await api.call('DELETE', `/volumes/${made.get(name)!.id}`)
      made.delete(name)
    },
  }
  return {
    pid: daemon.pid,
    async take(step, volumes) {
      const began = performance.now()
      await Promise.all(volumes.map(works[step]))
      return performance.now() - began
    },
  }
}

/** Cinder's LVM driver and os-brick in one Python process: cinder_worker.py. */
export async function cinderSide(target: Target, release: Release): Promise<Side> {
  const directory = await temporary(release)
  const volumesDirectory = join(directory, 'volumes')
  await mkdir(volumesDirectory)
  // What Cinder's handbook has its operators write there, so that tgt-admin finds the targets.
  if (target === 'tgt') await writeFile('/etc/tgt/conf.d/cinder.conf', `include ${volumesDirectory}/*\n`)
  const config = join(directory, 'cinder.conf')
  await writeFile(
    config,
    `[DEFAULT]
state_path = ${directory}
[oslo_concurrency]
lock_path = ${directory}/locks
[lvm]
volume_group = ${group}
lvm_type = default
volume_clear = none
target_helper = ${target}adm
target_ip_address = ${address}
target_port = ${port}
volumes_dir = ${volumesDirectory}
`,
  )
  const worker = new Worker(config)
  release(() => worker.end())
  await worker.ask({})
  return {
    pid: worker.pid,
    take: async (step, volumes) => (await worker.ask({step, volumes})).ms!,
  }
}

interface Answer {
  ms?: number
  error?: string
}

class Worker {
  readonly #child: ChildProcess
  readonly #answers: AsyncIterator<string>
  #said = ''

  constructor(config: string) {
    const program = join(packageRoot(), 'bench', 'cinder_worker.py')
    // Not the first python3 in PATH: Debian's packages are Debian's Python's.
    this.#child = spawn('/usr/bin/python3', [program, config, address], {stdio: 'pipe'})
    const lines: Interface = createInterface(this.#child.stdout!)
    this.#answers = lines[Symbol.asyncIterator]()
    // Cinder's warnings are told where it fails.
    this.#child.stderr!.on('data', chunk => {
      this.#said = `${this.#said}${chunk}`.slice(-4096)
    })
    this.#child.stdin!.on('error', () => undefined)
  }

  get pid(): number {
    return this.#child.pid!
  }

  /** One request at a time; an empty one is answered when the worker is ready. */
  async ask(request: {step?: Step; volumes?: readonly string[]}): Promise<Answer> {
    this.#child.stdin!.write(`${JSON.stringify(request)}\n`)
    const {value, done} = await this.#answers.next()
    const answer: Answer = done ? {error: 'it has ended'} : JSON.parse(value)
    if (answer.error) throw new Error(`Cinder failed at ${request.step ?? 'its start'}: ${answer.error}\n${this.#said}`)
    return answer
  }

  end(): Promise<void> {
    return end(this.#child, 'SIGTERM')
  }
}

async function temporary(release: Release): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'lp-bench-'))
  release(() => rm(directory, {recursive: true, force: true}))
  return directory
}

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const exited = once(child, 'exit')
  child.kill(signal)
  await exited
}
