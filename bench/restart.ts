import {once} from 'node:events'
import {mkdtemp, rm, truncate, writeFile} from 'node:fs/promises'
import {connect} from 'node:net'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {fileURLToPath} from 'node:url'
import {freePort} from '../src/sandbox/ports.js'
import {TgtDriver} from '../src/targets/tgt.js'
import {request, TgtControl} from '../src/targets/tgt-control.js'
import {tgtdSocketPath} from '../src/targets/tgtd.js'
import type {ExportSpec, Portal} from '../src/types.js'
import {newVolumeId} from '../src/volumes/id.js'

export interface RestartTimes {
  /** Milliseconds from the end of the old tgtd until the new one answers on its control socket. */
  answeringMs: number
  /** Milliseconds from that answer until the portal takes connections, which is when all exports are back. */
  portalMs: number
}

/**
 * Watches a tgtd from outside while it restarts: call it right before the kill. `pid` is the process that is about to
 * end.
 */
export async function watchRestart(socketPath: string, portal: Portal, pid: number): Promise<RestartTimes> {
  const control = new TgtControl(socketPath)
  try {
    const began = performance.now()
    for (;;) {
      const answer = await control.run([[request.showPortals()]], {timeoutMs: 1_000})
      if (!answer.failure && answer.pid !== pid) break
      await sleep(1)
    }
    const answering = performance.now()
    while (!(await takesConnections(portal))) await sleep(1)
    return {answeringMs: answering - began, portalMs: performance.now() - answering}
  } finally {
    await control.close()
  }
}

async function takesConnections({address, port}: Portal): Promise<boolean> {
  const socket = connect({host: address, port})
  try {
    await once(socket, 'connect')
    return true
  } catch {
    return false
  } finally {
    socket.destroy()
  }
}

/** kill -9 of a managed tgtd with `exports` exports. */
export async function measureRestart({exports}: {exports: number}): Promise<RestartTimes> {
  const directory = await mkdtemp(join(tmpdir(), 'lp-bench-'))
  const portal = {address: '127.0.0.1', port: await freePort()}
  const tgt = join(directory, 'tgt')
  const driver = new TgtDriver({managed: true, directory: tgt, portals: [portal], dieWithParent: true})
  try {
    await driver.open()
    await driver.restore([])
    await Promise.all(Array.from({length: exports}, async () => driver.export(await makeSpec(directory))))
    const {pid} = driver
    const watching = watchRestart(tgtdSocketPath(tgt), portal, pid)
    process.kill(pid, 'SIGKILL')
    const times = await watching
    const back = (await driver.list()).length
    if (back !== exports) throw new Error(`${back} of ${exports} exports are back`)
    return times
  } finally {
    await driver.close()
    await rm(directory, {recursive: true, force: true})
  }
}

async function makeSpec(directory: string): Promise<ExportSpec> {
  const id = newVolumeId()
  const path = join(directory, id)
  const sizeBytes = 2 ** 20
  await writeFile(path, '')
  await truncate(path, sizeBytes)
  return {
    volume: {id, path, kind: 'file', sizeBytes},
    iqn: `iqn.2026-01.io.lunpath.bench:${id}`,
    access: {addresses: ['ALL'], names: []},
    writeCache: 'through',
    readOnly: false,
  }
}

// Alone: node dist/bench/restart.js [EXPORTS]
if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const exports = Number(process.argv[2] ?? 200)
  const {answeringMs, portalMs} = await measureRestart({exports})
  console.log(
    `${exports} exports: tgtd answers ${answeringMs.toFixed(0)} ms after the kill; ${portalMs.toFixed(0)} ms later all are back and the portal is open`,
  )
}
