import {open, readFile, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import type {ImportedTargets} from '../../src/attach/import.js'
import type {IetDriver} from '../../src/targets/iet.js'
import type {ExportSpec} from '../../src/types.js'
import {refusal} from '../contract/initiators.js'
import {temporaryDirectory, volumeSpec} from '../contract/targets.js'
import {back, makeForeign, setUpIet, startDouble} from '../fixtures/iet-driver.js'
import {startIetNode} from '../fixtures/iet-node.js'
import {openAsIet} from '../fixtures/portals.js'
import {scrape} from '../fixtures/scrape.js'
import {startTgtd} from '../fixtures/tgtd-by-hand.js'
import {type Iet, ietPrograms} from '../lab/iet.js'
import {insideLab, lab} from '../lab/lab.js'

/** Names that others have chosen, of targets and of initiators. To ietd names that differ in their case alone are one. */

const mebibyte = 2 ** 20
const initiator = 'iqn.2026-01.io.lunpath.test:initiator'
const nas = 'iqn.2004-04.com.Example:NAS.Disk_1'

lab.options({deadlineMs: 240_000})

test.before('the double is compiled', async () => {
  if (!insideLab) await ietPrograms()
})

async function image(t: ExecutionContext, name: string): Promise<string> {
  const path = join(await temporaryDirectory(t), name)
  const file = await open(path, 'wx')
  await file.truncate(4 * mebibyte)
  await file.close()
  return path
}

async function takenSpec(driver: IetDriver, iqn: string): Promise<ExportSpec> {
  const target = (await driver.foreign()).find(one => one.iqn === iqn)!
  const {volume, writeCache, readOnly, lun, ioType, blockSizeBytes} = target.unit!
  return {
    ...{iqn, writeCache, readOnly, tid: target.tid, parameters: target.parameters},
    access: {addresses: [], names: []},
    volume: {...volume, id: '1'.repeat(16)},
    taken: {lun, ioType, blockSizeBytes, wwid: 't10', scsiId: null, scsiSn: 'sn-1'},
  }
}

/** Its serial number was not chosen, and is made of the name then. */
async function worth(iet: Iet) {
  const {targets} = await iet.moduleState()
  return targets.map(({tid, name, volumes}) => [tid, name, volumes.map(({lun, path, scsiId}) => [lun, path, scsiId])])
}

lab('a target is taken over under the name that others gave it, unless that cannot be passed on', async t => {
  const {driver, iet} = await setUpIet(t)
  const path = await image(t, 'disk')
  await makeForeign({iqn: nas, path})
  for (const iqn of ['iqn.2001-04.com.example:a/b', 'disk']) await makeForeign({iqn, path: await image(t, 'other')})
  const refused = new Map((await driver.foreign()).map(one => [one.iqn, one.refused]))
  t.is(refused.get(nas), null)
  for (const iqn of ['iqn.2001-04.com.example:a/b', 'disk']) t.regex(refused.get(iqn)!, /is no iSCSI name/)

  // Rules of others count for the target however they spell it.
  await writeFile(
    join(iet.configDir, 'initiators.allow'),
    `${nas.toLowerCase()} ${initiator.replaceAll('.', '\\.')}\nALL 192.0.2.0/24\n`,
  )
  const before = await worth(iet)
  t.is((await driver.export(await takenSpec(driver, nas))).iqn, nas)
  t.deepEqual((await driver.get(nas))?.access, {addresses: [], names: [initiator]})
  const status = async (name: string) => (await iet.login(nas, {initiator: name})).status
  t.is(await status(initiator), 'ok')
  t.is(await status(`${initiator}2`), 'denied')
  const {targets} = await iet.moduleState()
  for (const {tid, sessions} of targets) for (const {sid} of sessions) await iet.endSession(tid, BigInt(sid))

  // All come back under their names; those that nobody has taken over do not.
  const returned = back(driver)
  await iet.wipe()
  t.like(await returned, {exports: 1, failed: []})
  t.deepEqual(
    await worth(iet),
    before.filter(([, name]) => name === nas),
  )
  t.is(await status(initiator), 'ok')
})

lab('a name of ours that somebody has in another case is not made beside it', async t => {
  const {driver, iet, directory} = await setUpIet(t)
  const spec = await volumeSpec(directory)
  const capitals = spec.iqn.toUpperCase().replace('IQN', 'iqn')
  await makeForeign({iqn: capitals, path: await image(t, 'disk')})
  const error = await refusal(driver.export(spec))
  t.is(error.code, 'TARGET_EXISTS', error.message)
  t.true(error.message.includes(capitals), error.message)
  t.deepEqual(
    (await iet.moduleState()).targets.map(({name}) => name),
    [capitals],
  )
})

lab('a rule lets in an initiator by the name that it has chosen, and nobody who resembles it', async t => {
  const {driver, iet, directory} = await setUpIet(t)
  for (const name of ['iqn.2001-04.com.example:host_1', 'iqn.no-date.example:a*[b]$c\\d=e']) {
    const spec = await volumeSpec(directory, {access: {addresses: [], names: [name]}})
    await driver.export(spec)
    const status = async (one: string) => (await iet.login(spec.iqn, {initiator: one})).status
    t.is(await status(name), 'ok')
    for (const other of [name.replace('.', 'x'), name.replace('a*', 'aa'), `${name}2`])
      if (other !== name) t.is(await status(other), 'denied', other)
    t.deepEqual((await driver.get(spec.iqn))?.access.names, [name])
  }
})

lab('import iet takes a name in any case, and shows it as the kernel lists it', async t => {
  const iet = await startDouble(t)
  const {node, cli} = await startIetNode(t, iet)
  // What the double lacks: the same unit, by a tgtd that gives IET's ids, at the portal that ietd would have.
  const name = nas.replace('_', '-')
  const path = await image(t, 'disk')
  const tgtd = await startTgtd()
  t.teardown(() => tgtd.stop())
  const id = Buffer.from('the-id-of-a-disk')
  const portal = await openAsIet({port: tgtd.port, listen: Number(node.portal.split(':')[1])}, () => id)
  t.teardown(() => portal.close())
  await tgtd.adm('--mode', 'target', '--op', 'new', '--tid', '1', '-T', name)
  const unit = ['--mode', 'logicalunit', '--tid', '1', '--lun', '1']
  await tgtd.adm(...unit, '--op', 'new', '-b', path)
  await tgtd.adm(...unit, '--op', 'update', '--params', 'scsi_sn=sn-1')
  await tgtd.adm('--mode', 'target', '--op', 'bind', '--tid', '1', '-I', 'ALL')
  await makeForeign({iqn: name, path, lun: 1})

  const done = await cli('import', 'iet', name.toLowerCase())
  t.is(done.exitCode, 0, JSON.stringify(done))
  t.like((done.answer as ImportedTargets).taken[0], {iqn: name, path})
  t.like((await cli('export', 'list')).answer[0], {iqn: name})
  for (const spelled of [name, name.toLowerCase()]) {
    const again = (await cli('import', 'iet', spelled)).answer as ImportedTargets
    t.is(again.refused[0]?.code, 'EXPORT_EXISTS')
  }
  const {samples} = await scrape(node.metricsPort)
  t.true(samples.some(({name: metric, labels}) => metric === 'iscsi_lun_info' && labels.target === name))
  const set = await cli('iet', 'param', 'set', name.toLowerCase(), 'MaxBurstLength=65536')
  t.is(set.exitCode, 0, JSON.stringify(set))
  t.is((await cli('export', 'delete', name.toLowerCase())).exitCode, 0)
  t.deepEqual((await cli('export', 'list')).answer, [])
  t.is(await readFile(join(iet.configDir, 'initiators.allow'), 'utf8').catch(() => ''), '')
})
