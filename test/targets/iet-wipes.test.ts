import {spawn} from 'node:child_process'
import {once} from 'node:events'
import {readFile, symlink} from 'node:fs/promises'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import test, {type ExecutionContext} from 'ava'
import {examine} from '../../src/doctor.js'
import type {IetDriver} from '../../src/targets/iet.js'
import {IetControl, request} from '../../src/targets/iet-control.js'
import type {ExportSpec} from '../../src/types.js'
import {refusal} from '../contract/initiators.js'
import {temporaryDirectory, until, volumeSpec} from '../contract/targets.js'
import {back, makeForeign, makeTargetNamed, nextOf, openedIet, setUpIet, startDouble} from '../fixtures/iet-driver.js'
import {LogLines, Node} from '../fixtures/node.js'
import {scrape} from '../fixtures/scrape.js'
import {type Iet, ietPrograms} from '../lab/iet.js'
import {insideLab, lab} from '../lab/lab.js'

/** What requests meet when somebody has closed IET's control device: before, while and after the exports are put back. */

const initiator = 'iqn.2026-01.io.lunpath.test:initiator'
const stranger = 'iqn.2026-01.io.lunpath.test:stranger'
const byName = {addresses: [], names: [initiator]}

lab.options({deadlineMs: 480_000})

test.before('the double is compiled', async () => {
  if (!insideLab) await ietPrograms()
})

const statusOf = async (iet: Iet, iqn: string, who = stranger) => (await iet.login(iqn, {initiator: who})).status
const kernelNames = async (iet: Iet) => (await iet.moduleState()).targets.map(({name}) => name).sort()
const namesOf = (specs: ExportSpec[]) => specs.map(({iqn}) => iqn).sort()
const rules = (iet: Iet) => readFile(join(iet.configDir, 'initiators.allow'), 'utf8').catch(() => '')

async function exportAll(driver: IetDriver, directory: string, count: number, change: Partial<ExportSpec> = {}) {
  const specs = await Promise.all(Array.from({length: count}, () => volumeSpec(directory, change)))
  for (const spec of specs) await driver.export(spec)
  return specs
}

/** ietd and the kernel have the same targets under the same numbers, and no session came to another one than it asked for. */
async function agree(t: ExecutionContext, iet: Iet): Promise<void> {
  const [{targets}, daemon] = await Promise.all([iet.moduleState(), iet.daemonState()])
  const known = new Map(daemon.targets.map(({tid, name}) => [name, tid]))
  for (const {tid, name, sessions} of targets) {
    t.is(known.get(name), tid, name)
    t.deepEqual(
      [...new Set(sessions.map(({asked}) => asked))].filter(asked => asked !== name),
      [],
    )
  }
  const numbers = targets.map(({tid}) => tid)
  const stale = daemon.targets.filter(({name}) => !targets.some(target => target.name === name))
  t.deepEqual(
    stale.filter(({tid}) => numbers.includes(tid)),
    [],
    'no target has the number of a stale one',
  )
}

/** A session of each name that ietd lists, as an initiator that recovers would get it. */
async function recoverSessions(iet: Iet): Promise<void> {
  for (const {name} of (await iet.daemonState()).targets) await iet.login(name, {initiator: stranger})
}

for (const [what, end] of [
  ['a wipe', (iet: Iet) => iet.wipe()],
  ['a restart of ietd', (iet: Iet) => iet.restartDaemon()],
] as const) {
  lab(`what is unexported while exports come back after ${what} stays away, and its rule too`, async t => {
    const {driver, iet, directory} = await setUpIet(t)
    await iet.slowModule(10)
    let kept: ExportSpec[] = []
    // From before the first call of the restoration to after its last one.
    for (const afterMs of [0, 30, 100, 250, 500, 900]) {
      const specs = await exportAll(driver, directory, 6)
      kept = [...kept, ...specs.slice(3)]
      const [lost, returned] = [nextOf(driver, 'lost'), back(driver)]
      await end(iet)
      await lost
      await sleep(afterMs)
      await Promise.all(specs.slice(0, 3).map(({iqn}) => driver.unexport(iqn, {force: true})))
      await returned
      t.deepEqual(await kernelNames(iet), namesOf(kept), `${afterMs} ms`)
      for (const {iqn} of specs.slice(0, 3)) {
        t.not(await statusOf(iet, iqn), 'ok')
        t.false((await rules(iet)).includes(iqn), 'its rule')
      }
      for (const {iqn} of kept) t.is(await statusOf(iet, iqn), 'ok')
      await agree(t, iet)
      for (const target of (await iet.moduleState()).targets) {
        for (const {sid} of target.sessions) await iet.endSession(target.tid, BigInt(sid))
      }
    }
  })
}

lab('what is unexported while restore() runs stays away', async t => {
  const directory = await temporaryDirectory(t)
  const iet = await startDouble(t)
  const specs = await Promise.all(Array.from({length: 8}, () => volumeSpec(directory)))
  await iet.slowModule(10)
  for (const afterMs of [0, 40, 150]) {
    const driver = await openedIet(t, iet)
    const restored = driver.restore(specs)
    await sleep(afterMs)
    await Promise.all(specs.slice(0, 4).map(({iqn}) => driver.unexport(iqn)))
    await restored
    t.deepEqual(await kernelNames(iet), namesOf(specs.slice(4)), `${afterMs} ms`)
    for (const {iqn} of specs.slice(0, 4)) t.false((await rules(iet)).includes(iqn))
    await driver.close()
  }
})

lab('an export that is changed while it comes back is as it was changed', async t => {
  const {driver, iet, directory} = await setUpIet(t)
  await iet.slowModule(10)
  for (const afterMs of [0, 60, 200, 500]) {
    const specs = await exportAll(driver, directory, 4)
    const [lost, returned] = [nextOf(driver, 'lost'), back(driver)]
    await iet.wipe()
    await lost
    await sleep(afterMs)
    await Promise.all(specs.map(spec => driver.export({...spec, access: byName, readOnly: true})))
    await returned
    for (const {iqn} of specs) {
      t.is(await statusOf(iet, iqn), 'denied', `${afterMs} ms`)
      t.true((await driver.get(iqn))!.luns[0]!.readOnly)
    }
    for (const {iqn} of specs) await driver.unexport(iqn)
  }
})

lab('a new export never gets a number that ietd still has under another name', async t => {
  const {driver, iet, directory} = await setUpIet(t)
  const {volume} = await volumeSpec(directory)
  const others = ['one', 'two', 'three'].map(name => `iqn.2001-04.com.example:${name}`)
  for (const iqn of others) await makeForeign({iqn, path: volume.path})
  // Nothing of ours is missed, so nobody notices.
  await iet.wipe()
  const specs = await exportAll(driver, directory, 3)
  await recoverSessions(iet)
  await agree(t, iet)
  for (const iqn of others) t.is(await statusOf(iet, iqn), '0x0201', 'they wait for their target')
  t.deepEqual(await kernelNames(iet), namesOf(specs))
})

lab('nor does one that comes back, or a driver that was not there when it happened', async t => {
  const directory = await temporaryDirectory(t)
  const iet = await startDouble(t)
  const first = await openedIet(t, iet, {keepOnClose: true})
  await first.restore([])
  const spec = await volumeSpec(directory)
  await first.export(spec)
  const [own] = (await iet.moduleState()).targets
  await first.close()
  await iet.restartDaemon()
  // Another tool's target takes the number, and goes by a wipe.
  const foreign = 'iqn.2001-04.com.example:one'
  await makeForeign({iqn: foreign, path: spec.volume.path, tid: own!.tid})
  await iet.wipe()
  const second = await openedIet(t, iet)
  await second.restore([{...spec, tid: own!.tid}])
  const fresh = await volumeSpec(directory)
  await second.export(fresh)
  await recoverSessions(iet)
  await agree(t, iet)
  t.deepEqual(await kernelNames(iet), namesOf([spec, fresh]))
  t.not(await statusOf(iet, foreign), 'ok')
})

lab('numbers that others have keep their redirections, and are passed over', async t => {
  const {driver, iet, directory} = await setUpIet(t)
  const {volume} = await volumeSpec(directory)
  const control = new IetControl()
  t.teardown(async () => control.close())
  for (const [tid, name] of [
    [1, 'one'],
    [2, 'two'],
    [0xffffffff, 'last'],
  ] as const) {
    await makeForeign({iqn: `iqn.2001-04.com.example:${name}`, path: volume.path, tid})
    await control.exchange([[request.redirect(tid, '192.0.2.1:3261')]], {timeoutMs: 10_000})
  }
  await exportAll(driver, directory, 3)
  const {targets} = await iet.daemonState()
  t.deepEqual(
    targets.map(({redirect}) => redirect),
    [...Array(3).fill('192.0.2.1:3261'), '', '', ''],
  )
  await agree(t, iet)
})

lab('16 exports at once succeed while others come back after a wipe, and after it', async t => {
  const {driver, iet, directory} = await setUpIet(t)
  const before = await exportAll(driver, directory, 4)
  const returned = back(driver)
  await iet.wipe()
  const many = async () => {
    const specs = await Promise.all(Array.from({length: 16}, () => volumeSpec(directory)))
    const results = await Promise.allSettled(specs.map(spec => driver.export(spec)))
    t.deepEqual(
      results.flatMap(result => (result.status === 'rejected' ? [String(result.reason)] : [])),
      [],
    )
    return specs
  }
  const first = await many()
  await returned
  const second = await many()
  t.deepEqual(await kernelNames(iet), namesOf([...before, ...first, ...second]))
  t.is(new Set((await driver.list()).map(({tid}) => tid)).size, 36)
  await agree(t, iet)
})

lab('export, wipe, unexport, export: without a restart of ietd, again and again', async t => {
  const {driver, iet, directory} = await setUpIet(t)
  const spec = await volumeSpec(directory)
  for (let round = 0; round < 4; round++) {
    await driver.export(spec)
    await iet.wipe()
    await driver.unexport(spec.iqn)
    t.deepEqual((await iet.daemonState()).targets, [], 'ietd lists it no more')
    t.not(await statusOf(iet, spec.iqn), 'ok')
  }
  await driver.export(spec)
  t.is(await statusOf(iet, spec.iqn), 'ok')
  await agree(t, iet)
})

lab('a wipe in the midst of an export or an unexport leaves nothing that would refuse the name later', async t => {
  const {driver, iet, directory} = await setUpIet(t)
  await iet.slowModule(15)
  for (let afterMs = 0; afterMs < 160; afterMs += 20) {
    const spec = await volumeSpec(directory)
    const making = driver.export(spec).catch(error => error as Error)
    await sleep(afterMs)
    await iet.wipe()
    await making
    await driver.unexport(spec.iqn)
    const removed = driver.export(spec).then(() => driver.unexport(spec.iqn))
    await sleep(afterMs)
    await iet.wipe()
    await removed.catch(() => undefined)
    await driver.unexport(spec.iqn, {force: true})
    await driver.export(spec)
    await driver.unexport(spec.iqn)
    t.false(
      (await iet.daemonState()).targets.some(({name}) => name === spec.iqn),
      `${afterMs} ms`,
    )
  }
})

lab('a stale number that somebody else has now is mended once it is free again', async t => {
  const {driver, iet, directory} = await setUpIet(t)
  const spec = await volumeSpec(directory)
  await driver.export(spec)
  const {tid} = (await driver.get(spec.iqn))!
  const control = new IetControl()
  t.teardown(async () => control.close())
  await iet.wipe()
  // The kernel begins anew, so that another tool's target gets the number at once.
  const foreign = 'iqn.2001-04.com.example:one'
  t.is(await makeForeign({iqn: foreign, path: spec.volume.path}), tid)
  await driver.unexport(spec.iqn)
  const refused = await refusal(driver.export(spec))
  t.is(refused.code, 'TARGET_FAILED', refused.message)
  t.regex(refused.message, new RegExp(`another target has its number ${tid}`))
  t.deepEqual(await kernelNames(iet), [foreign], 'that one is not touched')
  await iet.wipe()
  await driver.export(spec)
  t.is(await statusOf(iet, spec.iqn), 'ok')
})

lab('a stale name whose number nobody knows is mended where one number alone is left for it', async t => {
  const {driver, iet, directory} = await setUpIet(t)
  const control = new IetControl()
  t.teardown(async () => control.close())
  const [own] = await exportAll(driver, directory, 1)
  const spec = await volumeSpec(directory)
  // Another tool has made it, or a daemon of which nothing is left.
  await makeForeign({iqn: spec.iqn.replace('iqn', 'IQN'), path: spec.volume.path, tid: 40})
  const returned = back(driver)
  await iet.wipe()
  await returned
  const foreign = 'iqn.2001-04.com.example:one'
  await makeForeign({iqn: foreign, path: spec.volume.path, tid: 7})
  await control.exchange([[request.redirect(7, '192.0.2.1:3261')]], {timeoutMs: 10_000})

  await driver.export(spec)
  t.is(await statusOf(iet, spec.iqn), 'ok')
  await agree(t, iet)
  t.deepEqual(await kernelNames(iet), [foreign, ...namesOf([own!, spec])].sort())
  const {targets} = await iet.daemonState()
  t.deepEqual(targets.map(({tid}) => tid).filter(tid => tid === 40).length, 0, 'it was given up')
  t.is(targets.find(({name}) => name === foreign)?.redirect, '192.0.2.1:3261')
})

lab('where several numbers could be its, none is touched, and the error names them', async t => {
  const {driver, iet, directory} = await setUpIet(t)
  const spec = await volumeSpec(directory)
  const foreign = 'iqn.2001-04.com.example:one'
  await makeForeign({iqn: spec.iqn, path: spec.volume.path, tid: 12})
  await makeForeign({iqn: foreign, path: spec.volume.path, tid: 5})
  await iet.wipe()
  const refused = await refusal(driver.export(spec))
  t.is(refused.code, 'TARGET_FAILED', refused.message)
  t.regex(refused.message, /one of the numbers 5, 12, .*Restart ietd/)
  t.deepEqual((await iet.daemonState()).targets.map(({name}) => name).sort(), [foreign, spec.iqn].sort())
  t.is(await statusOf(iet, foreign), '0x0201', 'it waits for its target')
  await iet.restartDaemon()
  await until(async () =>
    driver.export(spec).then(
      () => true,
      () => false,
    ),
  )
  t.is(await statusOf(iet, spec.iqn), 'ok')
})

const portOfIet = 3260

lab('the log says what came back, and a listing that cannot be true is in the log and in the status', async t => {
  const iet = await startDouble(t)
  const log = new LogLines()
  const node = await Node.make({
    targets: {driver: 'iet', endWithDaemon: false},
    iet: {procDir: iet.procDir, accessDirs: [iet.configDir]},
  })
  t.teardown(() => node.stop())
  await node.start({logTo: log})
  const said = (text: string) => log.lines.some(line => line.includes(text))

  await iet.restartDaemon()
  await until(async () => said('no export had to be put back'))
  t.false(said('they are back'))
  const made = await node.api.call<{volume: {id: string}}>('POST', '/exports', {sizeBytes: 16 * 2 ** 20})
  await iet.wipe()
  await until(async () => said('they are back'))

  await makeTargetNamed('iqn.2001-04.com.example:a\n\tlun:0 forged')
  const {samples} = await scrape(node.metricsPort)
  const success = samples.find(
    ({name, labels}) => name === 'iscsi_exporter_collector_success' && labels.collector === 'iet',
  )
  t.is(success?.value, 0)
  t.true(said('the figures of iet cannot be read'))
  await until(async () => {
    const {problems} = await node.api.call<{problems: {problem: string; message: string}[]}>('GET', '/status')
    return problems.some(({problem, message}) => problem === 'look-failed' && message.includes('cannot be true'))
  })
  await iet.restartDaemon()
  await until(async () => {
    await scrape(node.metricsPort)
    return said('the figures of iet can be read again')
  })
  await node.api.call('DELETE', `/exports/${made.volume.id}`)
})

lab('doctor leaves ietd its port', async t => {
  // Its name is all that is seen of it.
  const directory = await temporaryDirectory(t)
  await symlink(process.execPath, join(directory, 'ietd'))
  const source = `require('net').createServer().listen(${portOfIet}, '127.0.0.1', () => console.log('listening'))`
  const ietd = spawn(join(directory, 'ietd'), ['-e', source], {stdio: ['ignore', 'pipe', 'inherit']})
  t.teardown(() => ietd.kill('SIGKILL'))
  await once(ietd.stdout, 'data')
  const portCheck = async (targetDriver: 'iet' | 'tgt') => {
    const checks = await examine({targetDriver, portalPort: portOfIet})
    return checks.find(({name}) => name === `port ${portOfIet}`)
  }
  t.like(await portCheck('iet'), {status: 'ok', remedy: null})
  t.is((await portCheck('tgt'))?.status, 'warn', 'another driver is in its way')
})
