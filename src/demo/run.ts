import {createHash, randomBytes} from 'node:crypto'
import {existsSync} from 'node:fs'
import {mkdtemp, open, rm} from 'node:fs/promises'
import {get} from 'node:http'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {ApiClient} from '../api/client.js'
import {textReport} from '../bench/report.js'
import type {BenchResult} from '../bench/result.js'
import {settleConfig} from '../config.js'
import {Daemon} from '../daemon.js'
import {StorageError} from '../errors.js'
import {LibiscsiInitiator} from '../initiators/libiscsi.js'
import {packageRoot} from '../native.js'
import {destination} from '../packages/daemon.js'
import {Guest} from '../sandbox/guest.js'
import {PrivateLibvirtd} from '../sandbox/libvirtd.js'
import {freePort} from '../sandbox/ports.js'
import {formatSize} from '../size.js'
import type {Disk, Export, Volume} from '../types.js'
import type {Announce, StepReport} from './steps.js'
import {Stepper} from './steps.js'

const volumeBytes = 2 * 2 ** 30
const nonceBytes = 4096
const firstNonceOffset = 1 * 2 ** 20
const secondNonceOffset = 5 * 2 ** 20
const shownMetrics =
  /^(iscsi_target_sessions|iscsi_lun_(read|written)_bytes_total|lunpath_step_duration_seconds_count)\{/

export interface DemoOptions {
  signal: AbortSignal
  announce: Announce
  /** Called when everything runs, with how to look around; the demo goes on when it resolves. */
  lookAround?: (hints: string[]) => Promise<void>
}

/**
 * The main job, for real: a volume is made, exported, attached to a running VM, measured and taken down again. All of it
 * in a directory of its own with servers of its own; at the end, also after a failure or a cancellation, nothing is left.
 * @throws what the failing step threw; CANCELLED
 */
export async function runDemo({signal, announce, lookAround}: DemoOptions): Promise<StepReport[]> {
  const directory = await mkdtemp(join(tmpdir(), 'lunpath-demo-'))
  const steps = new Stepper(signal, announce)
  const cleanUp: (() => Promise<unknown>)[] = [() => rm(directory, {recursive: true, force: true})]
  try {
    await walkThePath(directory, steps, cleanUp, {signal, lookAround})
  } finally {
    for (const task of cleanUp.reverse()) await task()
  }
  if (existsSync(directory)) throw new StorageError('INTERNAL', `The demo has left ${directory} behind`)
  return steps.reports
}

async function walkThePath(
  directory: string,
  steps: Stepper,
  cleanUp: (() => Promise<unknown>)[],
  {signal, lookAround}: Pick<DemoOptions, 'signal' | 'lookAround'>,
): Promise<void> {
  const libvirtd = new PrivateLibvirtd({directory: join(directory, 'v')})
  const guest = new Guest({libvirtd, name: 'demo'})
  const digest = (data: Uint8Array) => createHash('sha256').update(data).digest('hex')

  await steps.run('libvirtd', async () => {
    // A cancellation in the middle of a start finds a server that is not there yet: it is waited for, then stopped.
    const starting = libvirtd.start()
    cleanUp.push(() => starting.catch(() => {}).then(() => libvirtd.stop()))
    await starting
    return {line: `a private libvirtd answers at ${libvirtd.uri}`, facts: {uri: libvirtd.uri}}
  })
  await steps.run('boot', async () => {
    const booting = guest.boot()
    cleanUp.push(() => booting.catch(() => {}))
    await booting
    await guest.waitReady({signal})
    return {line: 'a small guest (Debian kernel, busybox) runs and answers', facts: {domain: guest.name}}
  })

  // Picked right before they are used: while a guest boots, others take ports too.
  const portal = {address: '127.0.0.1', port: await freePort()}
  const metricsPort = await freePort()
  const config = settleConfig({
    daemon: {directory, socket: join(directory, 'api.sock'), logLevel: 'warn'},
    targets: {portals: [`${portal.address}:${portal.port}`], endWithDaemon: true},
    compute: {uri: libvirtd.uri},
    metrics: {listen: `127.0.0.1:${metricsPort}`},
  })
  const api = new ApiClient(config.daemon.socket)

  await steps.run('serve', async () => {
    const starting = Daemon.start(config, {logTo: destination(2)})
    cleanUp.push(() => starting.then(daemon => daemon.close()).catch(() => {}))
    await starting
    return {
      line: `tgtd listens on 127.0.0.1:${portal.port}, the API on ${config.daemon.socket}`,
      facts: {portal, metricsPort},
    }
  })
  cleanUp.push(async () => api.close())

  const made = {} as {volume: Volume; export: Export; disk: Disk}
  await steps.run('volume', async () => {
    Object.assign(made, {
      volume: (await api.call<{volume: Volume}>('POST', '/volumes', {sizeBytes: volumeBytes, name: 'demo'})).volume,
    })
    return {
      line: `${made.volume.id}, ${formatSize(made.volume.sizeBytes)}, ${made.volume.path}`,
      facts: {...made.volume},
    }
  })
  const {id, path} = made.volume
  await steps.run('export', async () => {
    made.export = (await api.call<{export: Export}>('POST', '/exports', {volume: id})).export
    return {line: `${made.export.iqn} LUN ${made.export.lun}`, facts: {...made.export}}
  })

  const firstNonce = randomBytes(nonceBytes)
  await steps.run('verify', async () => {
    const {iqn, lun, serial, wwid} = made.export
    const initiator = new LibiscsiInitiator()
    const session = await initiator.connect({portal, iqn, lun, initiatorName: config.initiator.name})
    try {
      const seen = session.identity
      if (seen.serial !== serial || seen.wwid !== wwid || seen.sizeBytes !== volumeBytes) {
        throw new StorageError('IDENTITY_MISMATCH', `The LUN is not the volume: it says ${JSON.stringify(seen)}`)
      }
      await session.write(firstNonceOffset, firstNonce)
      await session.flush()
      return {
        line: `over iSCSI: serial ${serial}, ${wwid}, ${formatSize(seen.sizeBytes)}; a nonce is written`,
        facts: {...seen},
      }
    } finally {
      await session.close()
    }
  })

  await steps.run('attach', async () => {
    made.disk = (await api.call<{disk: Disk}>('POST', '/attachments', {domain: guest.name, volume: id})).disk
    return {line: `${made.disk.domain} has it as ${made.disk.target}`, facts: {...made.disk}}
  })
  await steps.run('guest sees', async () => {
    const disk = await guest.waitForDisk(id)
    if (disk.sizeBytes !== volumeBytes)
      throw new StorageError('IDENTITY_MISMATCH', `The guest sees ${disk.sizeBytes} bytes`)
    return {line: `/dev/${disk.dev}, serial ${disk.serial}, ${formatSize(disk.sizeBytes)}`, facts: {...disk}}
  })
  await steps.run('guest reads', async () => {
    const sha256 = await guest.sha256(id, {offsetBytes: firstNonceOffset, lengthBytes: nonceBytes})
    if (sha256 !== digest(firstNonce))
      throw new StorageError('IDENTITY_MISMATCH', `The guest read other bytes: sha256 ${sha256}`)
    return {line: `the nonce, sha256 ${sha256.slice(0, 16)}…`, facts: {sha256}}
  })
  const secondNonce = randomBytes(nonceBytes)
  await steps.run('guest writes', async () => {
    await guest.write(id, secondNonceOffset, secondNonce)
    return {line: `a second nonce, sha256 ${digest(secondNonce).slice(0, 16)}…`, facts: {sha256: digest(secondNonce)}}
  })

  await steps.run('bench', async () => {
    const job = {volume: id, rw: 'randread', bs: 4096, iodepth: 32, runtime: 5}
    const report = await api.call<BenchResult>('POST', '/bench', job)
    const {ios, iops, bytesPerSecond, errors, latency} = report.total
    return {
      line: textReport(report)
        .join('\n')
        .replaceAll('\n', `\n${' '.repeat(23)}`),
      facts: {state: report.state, ios, iops, bytesPerSecond, errors, latency, cpu: report.cpu},
    }
  })
  await steps.run('metrics', async () => {
    const lines = (await fetchText(`http://127.0.0.1:${metricsPort}/metrics`))
      .split('\n')
      .filter(line => shownMetrics.test(line))
    return {line: lines.join(`\n${' '.repeat(23)}`), facts: {lines}}
  })

  await lookAround?.([
    `export LUNPATH_SOCKET=${config.daemon.socket}`,
    `alias lunpath='node ${join(packageRoot(), 'dist/bin/lunpath.cjs')}'`,
    'lunpath volume list    (also: export list, session list, attachment list, domain disks demo, bench demo)',
    `virsh -c '${libvirtd.uri}' domblklist demo`,
    `curl http://127.0.0.1:${metricsPort}/metrics`,
  ])

  await steps.run('detach', async () => {
    await api.call('DELETE', `/attachments/${id}`)
    await guest.waitForDiskGone(id)
    const found = await readAt(path, secondNonceOffset)
    if (!found.equals(secondNonce))
      throw new StorageError('IDENTITY_MISMATCH', 'What the guest wrote is not in the volume')
    return {line: 'the guest has released it; what it wrote is in the volume', facts: {sha256: digest(found)}}
  })
  await steps.run('unexport', async () => {
    await api.call('DELETE', `/exports/${id}`)
    return {line: made.export.iqn}
  })
  await steps.run('delete', async () => {
    await api.call('DELETE', `/volumes/${id}`)
    if (existsSync(path)) throw new StorageError('INTERNAL', `${path} is still there`)
    return {line: path}
  })
}

async function readAt(path: string, offsetBytes: number): Promise<Buffer> {
  const file = await open(path)
  try {
    return (await file.read(Buffer.alloc(nonceBytes), 0, nonceBytes, offsetBytes)).buffer
  } finally {
    await file.close()
  }
}

function fetchText(url: string): Promise<string> {
  return new Promise((resolve, reject) => {
    get(url, async response => {
      const chunks: Buffer[] = []
      for await (const chunk of response) chunks.push(chunk as Buffer)
      resolve(Buffer.concat(chunks).toString())
    }).once('error', reject)
  })
}
