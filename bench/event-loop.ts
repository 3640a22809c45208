import {mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {Worker} from 'node:worker_threads'
import {settleConfig} from '../src/config.js'
import {Daemon} from '../src/daemon.js'
import {destination} from '../src/packages/daemon.js'
import {Guest} from '../src/sandbox/guest.js'
import {PrivateLibvirtd} from '../src/sandbox/libvirtd.js'
import {freePort} from '../src/sandbox/ports.js'
import {type Comparison, countExecve, delayP99Ms} from './measure.js'
import type {Release} from './trials.js'

const attaches = 16
const limitMs = 5

/**
 * How long the daemon's event loop is kept from its work while 16 attaches run: the 99th percentile of its delay in
 * milliseconds (perf_hooks.monitorEventLoopDelay, resolution 1 ms), the idle one subtracted, against a limit. The daemon
 * runs in this thread, its client in another.
 */
export async function eventLoopComparison(release: Release): Promise<Comparison> {
  const directory = await mkdtemp(join(tmpdir(), 'lp-bench-'))
  release(() => rm(directory, {recursive: true, force: true}))
  const libvirtd = new PrivateLibvirtd()
  release(() => libvirtd.stop())
  await libvirtd.start()
  const guest = new Guest({libvirtd, name: 'bench'})
  await guest.boot()
  await guest.waitReady()
  const socket = join(directory, 'api.sock')
  const config = settleConfig({
    daemon: {directory, socket, logLevel: 'warn'},
    targets: {portals: [`127.0.0.1:${await freePort()}`], endWithDaemon: true},
    compute: {uri: libvirtd.uri},
    metrics: {listen: ''},
  })
  const daemon = await Daemon.start(config, {logTo: destination(2)})
  release(() => daemon.close())
  const client = new Worker(new URL('./attach-client.js', import.meta.url), {workerData: {socket, domain: 'bench'}})
  release(async () => {
    await client.terminate()
  })
  const tell = (message: {attach: number} | {detach: true}) =>
    new Promise<void>((resolve, reject) => {
      client.once('message', (error: string | null) => (error === null ? resolve() : reject(new Error(error))))
      client.postMessage(message)
    })
  const attach = () => tell({attach: attaches})
  const detach = () => tell({detach: true})
  return {
    ours: async () => {
      const idle = await delayP99Ms(() => sleep(1000))
      const busy = await delayP99Ms(attach)
      await detach()
      return busy - idle
    },
    other: async () => limitMs,
    otherName: `the limit of ${limitMs} ms`,
    beside: async () => {
      const started = await countExecve(attach)
      await detach()
      return {attachesAtOnce: attaches, execvePerAttach: started === null ? null : started / attaches}
    },
  }
}
