import {execFile, spawn} from 'node:child_process'
import {once} from 'node:events'
import {access, readFile, stat} from 'node:fs/promises'
import {createServer} from 'node:net'
import {join} from 'node:path'
import {promisify} from 'node:util'
import test, {type ExecutionContext} from 'ava'
import {StorageError} from '../../src/errors.js'
import {freePort} from '../../src/sandbox/ports.js'
import {TgtDriver} from '../../src/targets/tgt.js'
import {request, TgtControl} from '../../src/targets/tgt-control.js'
import {parsePortals, parseTargets} from '../../src/targets/tgt-show.js'
import type {ExportSpec, Portal} from '../../src/types.js'
import {login} from '../contract/libiscsi-tools.js'
import {stayLoggedIn, temporaryDirectory, until, volumeSpec} from '../contract/targets.js'
import {startForeignTgtd} from './foreign-tgtd.js'

const run = promisify(execFile)
const initiator = 'iqn.2026-01.io.lunpath.test:initiator'

async function loopbackPortal(): Promise<Portal> {
  return {address: '127.0.0.1', port: await freePort()}
}

async function managed(t: ExecutionContext, directory: string, portals: Portal[], more: {keepOnClose?: boolean} = {}) {
  const driver = new TgtDriver({managed: true, directory, portals, dieWithParent: true, ...more})
  t.teardown(() => driver.close())
  await driver.open()
  return driver
}

function restarted(driver: TgtDriver): Promise<Record<string, unknown>> {
  return new Promise(resolve => {
    driver.on('restarted', facts => void resolve(facts))
  })
}

async function portalIsOpen(portal: Portal): Promise<boolean> {
  const {stdout} = await run('iscsi-ls', [`iscsi://${portal.address}:${portal.port}`]).catch(() => ({stdout: ''}))
  return stdout !== ''
}

/** Looks at tgtd again and again, the portal before the targets, until `end` and once more. */
async function watchPortalAndTargets(t: ExecutionContext, socketPath: string, portal: Portal, end: Promise<unknown>) {
  const control = new TgtControl(socketPath)
  t.teardown(() => control.close())
  const looks: {pid: number; open: boolean; targets: number}[] = []
  let ended = false
  void end.then(() => {
    ended = true
  })
  for (let last = false; !last; ) {
    last = ended
    const {pid, replies, failure} = await control.run([[request.showPortals()], [request.showTargets()]], {
      timeoutMs: 20_000,
    })
    if (failure) continue
    const open = parsePortals(replies[0]![0]!.text).some(({port}) => port === portal.port)
    looks.push({pid, open, targets: parseTargets(replies[1]![0]!.text).length})
  }
  return looks
}

/** Keeps the process alive: the driver's own timers and children do not. */
function stayAwake(t: ExecutionContext): void {
  const timer = setInterval(() => undefined, 1_000)
  t.teardown(() => clearInterval(timer))
}

test('a tgtd of our own opens no portal before restore, and none but ours after it', async t => {
  const directory = await temporaryDirectory(t)
  const portal = await loopbackPortal()
  const driver = await managed(t, join(directory, 'tgt'), [portal])
  const control = new TgtControl(join(directory, 'tgt', 'control.1'))
  t.teardown(() => control.close())
  const shown = async () => {
    const {replies} = await control.run([[request.showPortals()]], {timeoutMs: 5_000})
    return parsePortals(replies[0]![0]!.text)
  }
  t.deepEqual(await shown(), [])
  await driver.export(await volumeSpec(directory))
  t.deepEqual(await shown(), [])
  await driver.restore([])
  t.deepEqual(await shown(), [portal])
})

test('its directory is ours alone, and close leaves neither process nor socket', async t => {
  const directory = join(await temporaryDirectory(t), 'tgt')
  const driver = await managed(t, directory, [await loopbackPortal()])
  await driver.restore([])
  t.is((await stat(directory)).mode & 0o777, 0o700)
  t.is(Number(await readFile(join(directory, 'tgtd.pid'), 'utf8')), driver.pid)
  const {pid} = driver
  await driver.close()
  t.throws(() => process.kill(pid, 0), {code: 'ESRCH'})
  await t.throwsAsync(access(join(directory, 'control.1')))
})

test('after kill -9 of tgtd every export is back before the portal opens', async t => {
  stayAwake(t)
  const directory = await temporaryDirectory(t)
  const portal = await loopbackPortal()
  const driver = await managed(t, join(directory, 'tgt'), [portal])
  await driver.restore([])
  const auth = {
    incoming: {user: 'guest', secret: 'a-good-secret-01'},
    outgoing: {user: 'target', secret: 'another-secret-2'},
  }
  const plain: ExportSpec[] = []
  for (let i = 0; i < 200; i++) plain.push(await volumeSpec(directory))
  const secured = await volumeSpec(directory, {auth})
  const specs = [...plain, secured]
  await Promise.all(specs.map(spec => driver.export(spec)))
  const back = restarted(driver)
  const before = driver.pid
  const watched = watchPortalAndTargets(t, join(directory, 'tgt', 'control.1'), portal, back)
  process.kill(before, 'SIGKILL')
  const facts = await back
  const looks = (await watched).filter(({open, pid}) => open && pid !== before)
  t.true(looks.length > 0)
  t.deepEqual(
    looks.filter(({targets}) => targets !== 201),
    [],
    'where the portal is open, all targets are there',
  )
  t.like(facts, {exports: 201, failed: [], previousPid: before})
  t.not(driver.pid, before)
  t.log(`restored 201 exports in ${(facts.durationMs as number).toFixed(0)} ms`)
  t.deepEqual(new Set((await driver.list()).map(({iqn}) => iqn)), new Set(specs.map(({iqn}) => iqn)))
  t.is((await login({portal, iqn: plain[137]!.iqn, initiator})).serial, plain[137]!.volume.id)
  t.is((await login({portal, iqn: secured.iqn, initiator, auth})).serial, secured.volume.id)
  await t.throwsAsync(login({portal, iqn: secured.iqn, initiator}))
})

test('calls made while tgtd is dead wait for its successor', async t => {
  stayAwake(t)
  const directory = await temporaryDirectory(t)
  const driver = await managed(t, join(directory, 'tgt'), [await loopbackPortal()])
  await driver.restore([])
  const [kept, dropped, added] = [await volumeSpec(directory), await volumeSpec(directory), await volumeSpec(directory)]
  await driver.export(kept)
  await driver.export(dropped)
  process.kill(driver.pid, 'SIGKILL')
  await Promise.all([driver.export(added), driver.unexport(dropped.iqn), driver.get(kept.iqn), driver.sessions()])
  await until(async () => (await driver.list()).length === 2)
  t.deepEqual(new Set((await driver.list()).map(({iqn}) => iqn)), new Set([kept.iqn, added.iqn]))
})

test('a volume that has vanished does not keep the others from coming back', async t => {
  stayAwake(t)
  const directory = await temporaryDirectory(t)
  const portal = await loopbackPortal()
  const driver = await managed(t, join(directory, 'tgt'), [portal])
  await driver.restore([])
  const [good, bad] = [await volumeSpec(directory), await volumeSpec(directory)]
  await driver.export(good)
  await driver.export(bad)
  await run('rm', [bad.volume.path])
  const back = restarted(driver)
  process.kill(driver.pid, 'SIGKILL')
  const facts = (await back) as {exports: number; failed: {iqn: string; code: string}[]}
  t.is(facts.exports, 1)
  t.like(facts.failed, [{iqn: bad.iqn, code: 'TARGET_FAILED'}])
  t.deepEqual(
    (await driver.list()).map(({iqn}) => iqn),
    [good.iqn],
  )
  t.true(await portalIsOpen(portal))
})

test('a session that was logged in finds its target again', async t => {
  stayAwake(t)
  const directory = await temporaryDirectory(t)
  const portal = await loopbackPortal()
  const driver = await managed(t, join(directory, 'tgt'), [portal])
  await driver.restore([])
  const spec = await volumeSpec(directory)
  await driver.export(spec)
  const {process: reader} = await stayLoggedIn(t, driver, portal, spec.iqn)
  const back = restarted(driver)
  process.kill(driver.pid, 'SIGKILL')
  await back
  const readBytes = async () => (await driver.counters())[0]?.readBytes ?? 0
  await until(async () => (await readBytes()) > 0)
  const then = await readBytes()
  await until(async () => (await readBytes()) > then)
  t.is(reader.exitCode, null)
})

test('the next driver adopts the running tgtd, its sessions included', async t => {
  const directory = await temporaryDirectory(t)
  const portal = await loopbackPortal()
  const auth = {incoming: {user: 'guest', secret: 'a-good-secret-01'}}
  const first = await managed(t, join(directory, 'tgt'), [portal], {keepOnClose: true})
  await first.restore([])
  const [used, idle, chap, forgotten] = [
    await volumeSpec(directory),
    await volumeSpec(directory),
    await volumeSpec(directory, {auth}),
    await volumeSpec(directory),
  ]
  for (const spec of [used, idle, chap, forgotten]) await first.export(spec)
  const {process: reader} = await stayLoggedIn(t, first, portal, used.iqn)
  const {pid} = first
  await first.close()

  const second = await managed(t, join(directory, 'tgt'), [portal])
  t.is(second.pid, pid)
  await second.restore([used, idle, chap])
  t.is((await second.get(used.iqn))?.sessions.length, 1)
  t.is((await login({portal, iqn: idle.iqn, initiator})).serial, idle.volume.id)
  t.is((await login({portal, iqn: chap.iqn, initiator, auth})).serial, chap.volume.id)
  await t.throwsAsync(login({portal, iqn: chap.iqn, initiator}))
  t.is(reader.exitCode, null)
  const fresh = await volumeSpec(directory, {auth})
  await second.export(fresh)
  t.is((await login({portal, iqn: fresh.iqn, initiator, auth})).serial, fresh.volume.id)
  // What is not among the specs was left by a crash: a tgtd of our own holds nobody else's.
  await second.unexport(forgotten.iqn)
  t.deepEqual(new Set((await second.list()).map(({iqn}) => iqn)), new Set([used.iqn, idle.iqn, chap.iqn, fresh.iqn]))
})

test('a half-made target from before a crash is completed', async t => {
  const directory = await temporaryDirectory(t)
  const portal = await loopbackPortal()
  const driver = await managed(t, join(directory, 'tgt'), [portal])
  const control = new TgtControl(join(directory, 'tgt', 'control.1'))
  t.teardown(() => control.close())
  const auth = {incoming: {user: 'guest', secret: 'a-good-secret-01'}}
  const [bare, unnamed, account] = [
    await volumeSpec(directory),
    await volumeSpec(directory),
    await volumeSpec(directory, {auth}),
  ]
  const {replies} = await control.run(
    [
      [request.newTarget(1, bare.iqn)],
      [request.newTarget(2, unnamed.iqn), request.newLun(2, 1, unnamed.volume.path)],
      [request.newAccount('guest', 'an-older-secret1')],
    ],
    {timeoutMs: 5_000},
  )
  t.true(replies.flat().every(({error}) => error === 0))
  await driver.restore([bare, unnamed])
  await driver.export(account)
  for (const spec of [bare, unnamed, account]) {
    const seen = await login({portal, iqn: spec.iqn, initiator, auth: spec.auth})
    t.is(seen.serial, spec.volume.id)
  }
})

test('a tgtd of others that restarts: ours comes back, with portals of ours alone', async t => {
  stayAwake(t)
  const directory = await temporaryDirectory(t)
  const portal = await loopbackPortal()
  const foreignPortal = await loopbackPortal()
  const first = await startForeignTgtd(t, directory)
  await first.tgtadm('--mode', 'portal', '--op', 'new', '--param', `portal=127.0.0.1:${foreignPortal.port}`)
  const driver = new TgtDriver({managed: false, socketPath: first.socketPath, portals: [portal]})
  t.teardown(() => driver.close())
  await driver.open()
  await driver.restore([])
  const [ours, foreign] = [await volumeSpec(directory), await volumeSpec(directory)]
  await driver.export(ours)
  const back = restarted(driver)
  first.child.kill('SIGKILL')
  await first.exited

  const second = await startForeignTgtd(t, directory)
  // Another's target takes the number that ours had.
  await second.tgtadm('--mode', 'target', '--op', 'new', '--tid', '1', '-T', foreign.iqn)
  await second.tgtadm('--mode', 'portal', '--op', 'new', '--param', `portal=127.0.0.1:${foreignPortal.port}`)
  await back
  await until(async () => (await driver.get(ours.iqn)) !== undefined)
  t.is((await login({portal, iqn: ours.iqn, initiator})).serial, ours.volume.id)
  await driver.unexport(ours.iqn)
  t.deepEqual(
    (await driver.list()).map(({iqn}) => iqn),
    [foreign.iqn],
  )
  const {stdout} = await second.tgtadm('--mode', 'portal', '--op', 'show')
  t.true(stdout.includes(`127.0.0.1:${foreignPortal.port}`))
  await driver.close()
  t.is(second.child.exitCode, null, 'a tgtd of others is left running')
})

test('a target of ours that somebody deleted is exported anew, and its number is not trusted', async t => {
  const directory = await temporaryDirectory(t)
  const {socketPath, tgtadm} = await startForeignTgtd(t, directory)
  const driver = new TgtDriver({managed: false, socketPath, portals: [await loopbackPortal()]})
  t.teardown(() => driver.close())
  await driver.open()
  await driver.restore([])
  const [ours, foreign] = [await volumeSpec(directory), await volumeSpec(directory)]
  await driver.export(ours)
  const tid = String((await driver.get(ours.iqn))!.tid)
  await tgtadm('--mode', 'target', '--op', 'delete', '--tid', tid)
  await driver.export(ours)
  t.truthy(await driver.get(ours.iqn))
  const now = String((await driver.get(ours.iqn))!.tid)
  await tgtadm('--mode', 'target', '--op', 'delete', '--tid', now)
  await tgtadm('--mode', 'target', '--op', 'new', '--tid', now, '-T', foreign.iqn)
  await driver.unexport(ours.iqn)
  t.deepEqual(
    (await driver.list()).map(({iqn}) => iqn),
    [foreign.iqn],
  )
})

test('a tgtd of others that is gone gives TARGET_UNAVAILABLE, and `lost` once', async t => {
  stayAwake(t)
  const directory = await temporaryDirectory(t)
  const {socketPath, child, exited} = await startForeignTgtd(t, directory)
  const driver = new TgtDriver({managed: false, socketPath, portals: [await loopbackPortal()]})
  t.teardown(() => driver.close())
  await driver.open()
  await driver.restore([])
  let lost = 0
  driver.on('lost', () => lost++)
  child.kill('SIGKILL')
  await exited
  const error = await t.throwsAsync(driver.export(await volumeSpec(directory)), {instanceOf: StorageError})
  t.is(error?.code, 'TARGET_UNAVAILABLE')
  t.is((error?.cause as {code: string}).code, 'ECONNREFUSED')
  await until(async () => lost > 0)
  await t.throwsAsync(driver.list(), {code: 'TARGET_UNAVAILABLE'})
  t.is(lost, 1)
})

test('a tgtd that hangs gives TARGET_UNAVAILABLE in time; nothing of the export is left when it goes on', async t => {
  stayAwake(t)
  const directory = await temporaryDirectory(t)
  const {socketPath, child} = await startForeignTgtd(t, directory)
  const driver = new TgtDriver({managed: false, socketPath, portals: [await loopbackPortal()], timeoutMs: 500})
  t.teardown(() => driver.close())
  await driver.open()
  await driver.restore([])
  const spec = await volumeSpec(directory)
  child.kill('SIGSTOP')
  const error = await t.throwsAsync(driver.export(spec), {instanceOf: StorageError})
  child.kill('SIGCONT')
  t.is(error?.code, 'TARGET_UNAVAILABLE')
  t.is((error?.cause as {code: string}).code, 'ETIMEDOUT')
  await until(async () => (await driver.list().catch(() => [{}])).length === 0)
  await driver.export(spec)
  t.is((await driver.list()).length, 1)
})

test('a portal that another process holds is PORTAL_IN_USE and names it', async t => {
  const directory = await temporaryDirectory(t)
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const {port} = server.address() as {port: number}
  const driver = new TgtDriver({
    managed: true,
    directory: join(directory, 'tgt'),
    portals: [{address: '127.0.0.1', port}],
    dieWithParent: true,
  })
  t.teardown(() => driver.close())
  const error = await t.throwsAsync(driver.open(), {instanceOf: StorageError})
  t.is(error?.code, 'PORTAL_IN_USE')
  t.is(error?.info.pid, process.pid)
  await t.throwsAsync(access(join(directory, 'tgt', 'control.1')), undefined, 'its tgtd is gone again')
})

test('a tgtd that is not installed is DEPENDENCY_MISSING and names the package', async t => {
  const directory = await temporaryDirectory(t)
  const driver = new TgtDriver({managed: true, directory, binary: 'no-such-tgtd', portals: []})
  t.teardown(() => driver.close())
  const error = await t.throwsAsync(driver.open(), {instanceOf: StorageError})
  t.is(error?.code, 'DEPENDENCY_MISSING')
  t.is(error?.info.package, 'tgt')
})

test('a tgtd that cannot start is TARGET_UNAVAILABLE', async t => {
  const directory = await temporaryDirectory(t)
  const driver = new TgtDriver({managed: true, directory, binary: '/bin/false', portals: []})
  t.teardown(() => driver.close())
  await t.throwsAsync(driver.open(), {code: 'TARGET_UNAVAILABLE'})
})

test('write-through: tgtd syncs the file before it acknowledges a write; write-back does not', async t => {
  const strace = await run('strace', ['-V']).catch(() => undefined)
  if (!strace) {
    t.log('skipped: strace is not installed (apt-get install strace)')
    t.pass()
    return
  }
  const directory = await temporaryDirectory(t)
  const portal = await loopbackPortal()
  const driver = await managed(t, join(directory, 'tgt'), [portal])
  await driver.restore([])
  const syncs: Record<string, number> = {}
  for (const writeCache of ['through', 'back'] as const) {
    const spec = await volumeSpec(directory, {writeCache})
    await driver.export(spec)
    const trace = join(directory, writeCache)
    const args = ['-f', '-p', String(driver.pid), '-e', 'trace=pwrite64,fdatasync', '-o', trace]
    const tracer = spawn('strace', args, {stdio: ['ignore', 'ignore', 'pipe']})
    const ended = once(tracer, 'exit')
    t.teardown(() => tracer.kill('SIGKILL'))
    await once(tracer.stderr, 'data')
    const url = `iscsi://127.0.0.1:${portal.port}/${spec.iqn}/1`
    await run('iscsi-test-cu', ['-d', '-n', '-t', 'SCSI.Write10.Simple', url])
    tracer.kill('SIGINT')
    await ended
    const calls = (await readFile(trace, 'utf8')).split('\n')
    const writes = calls.filter(call => call.includes('pwrite64(')).length
    t.true(writes > 100)
    syncs[writeCache] = calls.filter(call => call.includes('fdatasync(')).length / writes
  }
  t.deepEqual(syncs, {through: 1, back: 0})
})

test('of many targets an unexport leaves an empty one for a quiet time: nobody sees it, and then it is gone', async t => {
  const directory = await temporaryDirectory(t)
  const portal = await loopbackPortal()
  const place = join(directory, 'tgt')
  const first = await managed(t, place, [portal], {keepOnClose: true})
  await first.restore([])
  const specs = await Promise.all(Array.from({length: 520}, () => volumeSpec(directory)))
  for (const spec of specs) await first.export(spec)
  const control = new TgtControl(join(place, 'control.1'))
  t.teardown(() => control.close())
  const shown = async () => {
    const {replies} = await control.run([[request.showTargets()]], {timeoutMs: 20_000})
    return new Map(parseTargets(replies[0]![0]!.text).map(target => [target.iqn, target]))
  }
  const [gone, again, used, restarted] = specs as [ExportSpec, ExportSpec, ExportSpec, ExportSpec]

  const session = await stayLoggedIn(t, first, portal, used.iqn)
  await t.throwsAsync(first.unexport(used.iqn), {code: 'TARGET_IN_USE'})
  await session.leave()
  await until(async () => (await first.sessions()).length === 0)

  for (const {iqn} of [gone, again, used]) await first.unexport(iqn)
  await first.unexport(gone.iqn)
  const listed = (await first.list()).map(({iqn}) => iqn)
  t.false([gone, again, used].some(({iqn}) => listed.includes(iqn)))
  t.is(await first.get(gone.iqn), undefined)
  const left = (await shown()).get(gone.iqn)
  // It may be gone already on a slow machine; what is there leads nowhere.
  if (left) t.like(left, {luns: [], access: {addresses: [], names: []}, sessions: []})
  await first.export(again)
  t.like(await first.get(again.iqn), {luns: [{serial: again.volume.id}]})
  await until(async () => {
    const now = await shown()
    return !now.has(gone.iqn) && !now.has(used.iqn) && now.has(again.iqn)
  })

  await first.unexport(restarted.iqn)
  await first.close()
  const next = await managed(t, place, [portal])
  await next.restore(specs.filter(spec => ![gone, used, restarted].includes(spec)))
  t.false((await next.list()).some(({iqn}) => iqn === restarted.iqn))
  await until(async () => !(await shown()).has(restarted.iqn))
  t.is((await shown()).size, 517)
})
