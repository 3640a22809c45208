import {request as httpRequest} from 'node:http'
import {setTimeout as sleep} from 'node:timers/promises'
import anyTest, {type ExecutionContext, type TestFn} from 'ava'
import type {IscsiSession} from '../../src/initiators/driver.js'
import {LibiscsiInitiator} from '../../src/initiators/libiscsi.js'
import {parsePortal} from '../../src/iqn.js'
import type {TgtDriver} from '../../src/targets/tgt.js'
import {Host, Node} from '../fixtures/node.js'
import {promtoolComplaints, type Sample, sampleOf, scrape} from '../fixtures/scrape.js'

/** /metrics against what really happened: bytes moved over iSCSI, disks in a guest, a tgtd that hangs. */
const test = anyTest.serial as TestFn
const MiB = 2 ** 20
const initiator = new LibiscsiInitiator()
const nameA = 'iqn.2026-01.test.lunpath:a'
const nameB = 'iqn.2026-01.test.lunpath:b'
const auth = {incoming: {user: 'reader', secret: 'not-for-the-metrics'}}

let host: Host
let node: Node
test.before(async () => {
  host = await Host.start()
  node = await Node.make({compute: {uri: host.libvirtd.uri}})
  await node.start()
})
test.after.always(async () => {
  await node?.stop()
  await host?.stop()
})

type Made = {volume: {id: string; path: string}; export: {iqn: string; wwid: string}; disk: {target: string}}
const post = (path: string, body: object) => node.api.call<Made>('POST', path, body)
const remove = (path: string) => node.api.call('DELETE', path)
const read = async () => (await scrape(node.metricsPort)).samples
const tgtdPid = () => (node.daemon.operations.rooms.targets as TgtDriver).pid

function login(iqn: string, initiatorName: string): Promise<IscsiSession> {
  return initiator.connect({portal: parsePortal(node.portal), iqn, lun: 1, initiatorName, auth})
}

async function readBytes(session: IscsiSession, total: number): Promise<void> {
  const size = session.identity.sizeBytes
  for (let done = 0; done < total; done += 256 * 1024) await session.read(done % size, 256 * 1024)
}

async function writeBytes(session: IscsiSession, total: number): Promise<void> {
  for (let done = 0; done < total; done += 256 * 1024) await session.write(done, Buffer.alloc(256 * 1024, 7))
}

/** Within 1 % of what was moved. */
function near(
  t: ExecutionContext,
  samples: Sample[],
  name: string,
  labels: Record<string, string>,
  moved: number,
): void {
  const value = sampleOf(samples, name, labels)
  t.true(value !== undefined && Math.abs(value - moved) <= moved / 100, `${name}: ${value}, moved ${moved}`)
}

function seriesOf(samples: Sample[], iqn: string): string[] {
  return samples.filter(({labels}) => labels.target === iqn).map(({name}) => name)
}

test('01 bytes that two initiators move show in the counters of session, LUN and target, and stay after logout', async t => {
  const {
    export: {iqn},
    volume,
  } = await post('/exports', {sizeBytes: 32 * MiB, access: {names: [nameA, nameB]}, auth})
  const a = await login(iqn, nameA)
  t.teardown(() => a.close())
  const b = await login(iqn, nameB)
  t.teardown(() => b.close())
  await readBytes(a, 64 * MiB)
  await writeBytes(a, 16 * MiB)
  await readBytes(b, 8 * MiB)

  const during = await read()
  const target = {target: iqn}
  near(t, during, 'iscsi_session_sent_bytes_total', {...target, initiator: nameA}, 64 * MiB)
  near(t, during, 'iscsi_session_received_bytes_total', {...target, initiator: nameA}, 16 * MiB)
  near(t, during, 'iscsi_session_sent_bytes_total', {...target, initiator: nameB}, 8 * MiB)
  near(t, during, 'iscsi_lun_read_bytes_total', {...target, lun: '1'}, 72 * MiB)
  near(t, during, 'iscsi_lun_written_bytes_total', {...target, lun: '1'}, 16 * MiB)
  near(t, during, 'iscsi_target_sent_bytes_total', target, 72 * MiB)
  near(t, during, 'iscsi_target_received_bytes_total', target, 16 * MiB)
  // tgtd counts the inquiries of a login with the reads.
  const reads = sampleOf(during, 'iscsi_lun_reads_completed_total', {...target, lun: '1'})!
  t.true(reads >= 72 * 4 && reads < 72 * 4 + 20, `${reads} reads`)
  near(t, during, 'iscsi_lun_writes_completed_total', {...target, lun: '1'}, 16 * 4)
  // The first command of a session meets a unit attention (SAM-5, 5.14).
  t.true(sampleOf(during, 'iscsi_lun_errors_total', {...target, lun: '1'})! <= 2)
  t.is(sampleOf(during, 'iscsi_target_sessions', target), 2)
  t.is(sampleOf(during, 'iscsi_target_enabled', target), 1)
  t.is(sampleOf(during, 'iscsi_lun_size_bytes', {...target, lun: '1'}), 32 * MiB)
  t.is(sampleOf(during, 'iscsi_target_info', {...target, driver: 'tgt'}), 1)
  const lunInfo = {...target, lun: '1', path: volume.path, backstore: 'file', device: '', mode: 'rw'}
  t.is(sampleOf(during, 'iscsi_lun_info', lunInfo), 1)
  for (const name of [nameA, nameB]) {
    const labels = {...target, initiator: name, state: 'logged-in', address: '127.0.0.1'}
    t.is(sampleOf(during, 'iscsi_session_info', labels), 1)
    t.is(sampleOf(during, 'iscsi_session_connections', {...target, initiator: name}), 1)
    t.is(sampleOf(during, 'iscsi_session_logins_total', {...target, initiator: name}), 1)
  }

  await Promise.all([a.close(), b.close()])
  const after = await read()
  t.is(sampleOf(after, 'iscsi_target_sessions', target), 0)
  t.false(after.some(({name, labels}) => name === 'iscsi_session_info' && labels.target === iqn))
  for (const {name, labels, value} of during.filter(
    ({name}) => name.endsWith('_bytes_total') && name.startsWith('iscsi'),
  ))
    t.true(sampleOf(after, name, labels)! >= value, `${name} fell`)

  const again = await login(iqn, nameA)
  t.teardown(() => again.close())
  await readBytes(again, 8 * MiB)
  const later = await read()
  near(t, later, 'iscsi_session_sent_bytes_total', {...target, initiator: nameA}, 72 * MiB)
  near(t, later, 'iscsi_lun_read_bytes_total', {...target, lun: '1'}, 80 * MiB)
  t.is(sampleOf(later, 'iscsi_session_logins_total', {...target, initiator: nameA}), 2)
  await again.close()
  await remove(`/exports/${volume.id}`)
  await remove(`/volumes/${volume.id}`)
})

test('02 scrapes at the same time are one, and neither double nor reset a counter', async t => {
  const {
    export: {iqn},
    volume,
  } = await post('/exports', {sizeBytes: 8 * MiB, access: {names: [nameA]}, auth})
  const session = await login(iqn, nameA)
  t.teardown(() => session.close())
  await readBytes(session, 8 * MiB)
  const scrapes = await Promise.all(Array.from({length: 16}, () => read()))
  for (const samples of scrapes) {
    near(t, samples, 'iscsi_lun_read_bytes_total', {target: iqn, lun: '1'}, 8 * MiB)
    t.is(sampleOf(samples, 'iscsi_session_connections', {target: iqn, initiator: nameA}), 1)
  }
  const reading = readBytes(session, 32 * MiB)
  let last = 0
  for (let scrapes = 0; scrapes < 20; scrapes++) {
    const value = sampleOf(await read(), 'iscsi_lun_read_bytes_total', {target: iqn, lun: '1'})!
    t.true(value >= last && value <= 40.5 * MiB, `${value} after ${last}`)
    last = value
  }
  await reading
  near(t, await read(), 'iscsi_lun_read_bytes_total', {target: iqn, lun: '1'}, 40 * MiB)
  await session.close()
  await remove(`/exports/${volume.id}`)
  await remove(`/volumes/${volume.id}`)
})

test('03 unexport and detach take the families of the target away; the volume stays', async t => {
  const exported = await post('/exports', {sizeBytes: 8 * MiB, access: {names: [nameA]}, auth})
  const attached = await post('/attachments', {domain: 'vm', sizeBytes: 8 * MiB})
  await host.guest.waitForDisk(attached.volume.id)
  const session = await login(exported.export.iqn, nameA)
  await readBytes(session, MiB)
  const before = await read()
  for (const {iqn} of [exported.export, attached.export]) {
    const names = seriesOf(before, iqn)
    for (const name of ['iscsi_target_info', 'iscsi_lun_info', 'iscsi_session_info', 'iscsi_lun_read_bytes_total'])
      t.true(names.includes(name), `${iqn} has ${name}`)
  }
  await session.close()
  await remove(`/exports/${exported.volume.id}`)
  await remove(`/attachments/${attached.volume.id}`)
  // A sample that was under way meanwhile must not bring them back.
  await node.daemon.operations.rooms.targets.counters()
  const after = await read()
  t.deepEqual(seriesOf(after, exported.export.iqn), [])
  t.deepEqual(seriesOf(after, attached.export.iqn), [])
  t.deepEqual(
    after.filter(({labels}) => labels.id === attached.volume.id),
    [],
  )
  t.true(node.store.volumes.has(attached.volume.id))
  for (const {volume} of [exported, attached]) await remove(`/volumes/${volume.id}`)
})

test('04 an attached disk: QEMU’s counters are what the guest has moved, and the attachment shows its state', async t => {
  const {
    volume,
    disk,
    export: {iqn},
  } = await post('/attachments', {domain: 'vm', sizeBytes: 32 * MiB})
  await host.guest.waitForDisk(volume.id)
  const labels = {domain: 'vm', disk: disk.target, id: volume.id}
  const before = await read()
  const bytes = (samples: Sample[], what: string) => sampleOf(samples, `lunpath_disk_${what}_bytes_total`, labels)!
  // To its very end, where the guest reads nothing ahead.
  await host.guest.sha256(volume.id, {offsetBytes: 16 * MiB, lengthBytes: 16 * MiB})
  for (let block = 0; block < 8; block++)
    await host.guest.write(volume.id, block * 32 * 1024, Buffer.alloc(32 * 1024, 1))
  const after = await read()
  const moved = bytes(after, 'read') - bytes(before, 'read')
  t.true(moved >= 16 * MiB && moved <= 16.16 * MiB, `${moved} bytes read`)
  t.is(bytes(after, 'written') - bytes(before, 'written'), 256 * 1024)
  t.true(sampleOf(after, 'lunpath_disk_reads_completed_total', labels)! > 0)
  t.true(sampleOf(after, 'lunpath_disk_writes_completed_total', labels)! >= 8)
  t.is(sampleOf(after, 'lunpath_attachment_info', {...labels, bus: 'virtio', target: iqn, state: 'attached'}), 1)
  near(t, after, 'iscsi_lun_read_bytes_total', {target: iqn, lun: '1'}, bytes(after, 'read'))
  near(t, after, 'iscsi_lun_written_bytes_total', {target: iqn, lun: '1'}, bytes(after, 'written'))
  await remove(`/attachments/${volume.id}`)
  await remove(`/volumes/${volume.id}`)
})

test('05 promtool has nothing to say, no secret is shown, and no counter has a label that changes by itself', async t => {
  const {
    volume,
    export: {iqn},
  } = await post('/exports', {sizeBytes: 8 * MiB, access: {names: [nameA]}, auth})
  const attached = await post('/attachments', {
    domain: 'vm',
    sizeBytes: 8 * MiB,
    auth: {incoming: {user: 'u', secret: 'also-not-for-them'}},
  })
  const session = await login(iqn, nameA)
  t.teardown(() => session.close())
  const {text, samples} = await scrape(node.metricsPort)
  t.is(await promtoolComplaints(text), '')
  t.notRegex(text, /not-for-the/)
  t.notRegex(text, /reader/)
  const counters = [...text.matchAll(/^# TYPE (\S+) counter$/gm)].map(([, name]) => name!)
  t.true(counters.filter(name => name.startsWith('iscsi_')).length >= 10)
  for (const {name, labels} of samples.filter(({name}) => counters.includes(name)))
    t.false(
      ['sid', 'tid', 'port', 'address', 'time', 'path'].some(label => label in labels),
      name,
    )
  for (const {name} of samples.filter(({name}) => name.startsWith('iscsi_')))
    t.is(counters.includes(name), name.endsWith('_total'), name)
  const step = sampleOf(samples, 'lunpath_step_duration_seconds_count', {step: 'target.export', driver: 'tgt'})
  t.true(step! > 0)
  t.true(sampleOf(samples, 'lunpath_step_duration_seconds_count', {step: 'compute.attach', driver: 'libvirt'})! > 0)
  for (const collector of ['tgt', 'libvirt', 'pools'])
    t.is(sampleOf(samples, 'iscsi_exporter_collector_success', {collector}), 1, collector)
  const pool = sampleOf(samples, 'lunpath_pool_provisioned_bytes', {pool: 'default'})
  t.is(
    pool,
    [...node.store.volumes.values()].reduce((sum, {sizeBytes}) => sum + sizeBytes, 0),
  )
  await session.close()
  await remove(`/attachments/${attached.volume.id}`)
  await remove(`/exports/${volume.id}`)
  for (const {id} of [volume, attached.volume]) await remove(`/volumes/${id}`)
})

test('06 /metrics is on its listener alone: other paths and methods are 404, and the API has none', async t => {
  const base = `http://127.0.0.1:${node.metricsPort}`
  for (const path of ['/', '/v1/volumes', '/metrics/x', '/v1/metrics'])
    t.is((await fetch(base + path)).status, 404, path)
  t.is((await fetch(`${base}/metrics`, {method: 'POST'})).status, 404)
  const answer = await fetch(`${base}/metrics`)
  t.is(answer.headers.get('content-type'), 'text/plain; version=0.0.4; charset=utf-8')
  for (const path of ['/metrics', '/v1/metrics']) {
    const status = await new Promise(resolve => {
      httpRequest({socketPath: node.socket, path}, response => {
        response.resume()
        resolve(response.statusCode)
      }).end()
    })
    t.is(status, 404, path)
  }
})

test('07 a tgtd that hangs: the scrape answers, says so and claims nothing; then all is back', async t => {
  const {
    volume,
    export: {iqn},
  } = await post('/exports', {sizeBytes: 8 * MiB, access: {names: [nameA]}, auth})
  const session = await login(iqn, nameA)
  t.teardown(() => session.close())
  await readBytes(session, 4 * MiB)
  near(t, await read(), 'iscsi_lun_read_bytes_total', {target: iqn, lun: '1'}, 4 * MiB)
  const pid = tgtdPid()
  process.kill(pid, 'SIGSTOP')
  t.teardown(() => {
    try {
      process.kill(pid, 'SIGCONT')
    } catch {}
  })
  const hanging = await Promise.all([read(), read()])
  for (const samples of hanging) {
    t.is(sampleOf(samples, 'iscsi_exporter_collector_success', {collector: 'tgt'}), 0)
    t.is(sampleOf(samples, 'iscsi_exporter_collector_success', {collector: 'pools'}), 1)
    t.is(sampleOf(samples, 'iscsi_target_sessions', {target: iqn}), undefined)
    near(t, samples, 'iscsi_lun_read_bytes_total', {target: iqn, lun: '1'}, 4 * MiB)
  }
  process.kill(pid, 'SIGCONT')
  let samples = await read()
  for (
    let tries = 0;
    tries < 30 && sampleOf(samples, 'iscsi_exporter_collector_success', {collector: 'tgt'}) === 0;
    tries++
  ) {
    await sleep(200)
    samples = await read()
  }
  t.is(sampleOf(samples, 'iscsi_exporter_collector_success', {collector: 'tgt'}), 1)
  t.is(sampleOf(samples, 'iscsi_target_sessions', {target: iqn}), 1)
  await readBytes(session, 4 * MiB)
  near(t, await read(), 'iscsi_lun_read_bytes_total', {target: iqn, lun: '1'}, 8 * MiB)
  await session.close()
  await remove(`/exports/${volume.id}`)
  await remove(`/volumes/${volume.id}`)
})

test('08 a tgtd that was killed counts from zero, and the counters go on', async t => {
  const {
    volume,
    export: {iqn},
  } = await post('/exports', {sizeBytes: 8 * MiB, access: {names: [nameA]}, auth})
  const session = await login(iqn, nameA)
  await readBytes(session, 4 * MiB)
  near(t, await read(), 'iscsi_lun_read_bytes_total', {target: iqn, lun: '1'}, 4 * MiB)
  const back = new Promise(resolve => node.daemon.operations.rooms.targets.on('restarted', resolve))
  process.kill(tgtdPid(), 'SIGKILL')
  await back
  await session.close()
  const next = await login(iqn, nameA)
  t.teardown(() => next.close())
  // More than the session before had, under the same number.
  await readBytes(next, 6 * MiB)
  near(t, await read(), 'iscsi_lun_read_bytes_total', {target: iqn, lun: '1'}, 10 * MiB)
  await next.close()
  await remove(`/exports/${volume.id}`)
  await remove(`/volumes/${volume.id}`)
})

test('09 libvirt gone: its collector fails, the attachment is shown as unknown, and both recover', async t => {
  const {volume} = await post('/attachments', {domain: 'vm', sizeBytes: 8 * MiB})
  await host.guest.waitForDisk(volume.id)
  await host.libvirtd.kill()
  const without = await read()
  t.is(sampleOf(without, 'iscsi_exporter_collector_success', {collector: 'libvirt'}), 0)
  t.is(sampleOf(without, 'lunpath_attachment_info', {id: volume.id, state: 'unknown'}), 1)
  t.is(sampleOf(without, 'iscsi_exporter_collector_success', {collector: 'tgt'}), 1)
  await host.libvirtd.start()
  let samples = await read()
  for (
    let tries = 0;
    tries < 30 && sampleOf(samples, 'iscsi_exporter_collector_success', {collector: 'libvirt'}) === 0;
    tries++
  ) {
    await sleep(200)
    samples = await read()
  }
  t.is(sampleOf(samples, 'lunpath_attachment_info', {id: volume.id, state: 'attached'}), 1)
  t.true(sampleOf(samples, 'lunpath_disk_read_bytes_total', {id: volume.id})! > 0)
  await remove(`/attachments/${volume.id}`)
  await remove(`/volumes/${volume.id}`)
})
