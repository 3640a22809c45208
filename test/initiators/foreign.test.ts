// What others have named and made: targets with any name, node records and sessions of other tools, portals that are reached by
// one link alone or by a host name.
import {appendFile, readFile, rm} from 'node:fs/promises'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import {run} from '../../src/exec.js'
import {LibiscsiInitiator} from '../../src/initiators/libiscsi.js'
import {OpenIscsiInitiator} from '../../src/initiators/open-iscsi.js'
import type {Device, Portal} from '../../src/types.js'
import {refusal} from '../contract/initiators.js'
import {until} from '../fixtures/cli.js'
import {type HandMadeLun, makeLun} from '../fixtures/lun-by-hand.js'
import {Node} from '../fixtures/node.js'
import {type HandStartedTgtd, startTgtd} from '../fixtures/tgtd-by-hand.js'
import {initiatorName, prepareInitiator, type SystemDaemon, sessionDirectories} from '../lab/initiator.js'
import {insideLab, lab} from '../lab/lab.js'
import {makeStorageNetwork, type StorageNetwork} from '../lab/storage-network.js'

lab.options({deadlineMs: 400_000})

let network: StorageNetwork
let iscsid: SystemDaemon
let tgtd: HandStartedTgtd
let initiator: OpenIscsiInitiator
let lastTid = 0

test.before(async () => {
  if (!insideLab) return
  network = await makeStorageNetwork(1)
  iscsid = await prepareInitiator()
  await iscsid.start()
  tgtd = await startTgtd({...network, port: 3260})
  initiator = new OpenIscsiInitiator({initiatorName})
  await initiator.open()
})

test.after.always(async () => {
  if (!insideLab) return
  await initiator?.close()
  await tgtd?.stop()
  await iscsid?.stop()
  await network?.remove()
})

/** A test that fails must not spoil those after it. */
test.afterEach.always(async () => {
  if (!insideLab) return
  for (const {iqn} of await initiator.sessions()) await initiator.disconnect(iqn, {force: true}).catch(() => undefined)
  for (const {iqn} of await initiator.nodes()) await initiator.deleteNode(iqn).catch(() => undefined)
})

async function lun(t: ExecutionContext, options: Parameters<typeof makeLun>[2] = {}): Promise<HandMadeLun> {
  const made = await makeLun(tgtd, ++lastTid, options)
  t.teardown(() => made.remove())
  return made
}

const portal = (): Portal => ({address: network.addresses[0]!, port: tgtd.port})

function spec({iqn, wwid, serial, sizeBytes}: HandMadeLun, portals = [portal()]) {
  return {iqn, lun: 1, portals, initiatorName, expected: {wwid, serial, sizeBytes}, owner: 'hand' as const}
}

async function records(): Promise<Record<string, string>> {
  const found = await Promise.all((await initiator.nodes()).map(async ({path}) => [path, await readFile(path, 'utf8')]))
  return Object.fromEntries(found)
}

/** As an operator does it by iscsiadm. */
async function adm(mode: 'node' | 'session', ...args: string[]): Promise<void> {
  await run('iscsiadm', ['-m', mode, ...args])
}

lab('1. a target with capitals in its name is discovered, connected and disconnected as it is spelled', async t => {
  const unit = await lun(t, {prefix: 'iqn.2004-04.com.QNAP:TS-453:iscsi.Disk1'})
  const found = await new LibiscsiInitiator().discover(portal(), {initiatorName})
  t.true(found.some(({iqn}) => iqn === unit.iqn))
  const device = await initiator.connect(spec(unit))
  t.like(device, {iqn: unit.iqn, serial: unit.serial})
  t.like(await initiator.sessions(), {length: 1, 0: {iqn: unit.iqn, owner: 'hand'}})
  t.deepEqual(await initiator.connect(spec(unit)), device)
  await initiator.disconnect(unit.iqn)
  t.deepEqual([await sessionDirectories(), await initiator.nodes()], [[], []])
})

lab('2. another tool’s node record is left as it is; by force it is replaced', async t => {
  const unit = await lun(t)
  const node = ['-T', unit.iqn, '-p', `${network.addresses[0]}:${tgtd.port}`]
  await adm('node', '-o', 'new', ...node)
  const before = await records()
  for (const owner of ['hand', 'attach'] as const) {
    const refused = await refusal(initiator.connect({...spec(unit), owner}))
    t.is(refused.code, 'NODE_FOREIGN')
    for (const word of [Object.keys(before)[0]!, initiatorName, 'without CHAP', 'lunpath node delete'])
      t.true(refused.message.includes(word), `${word}: ${refused.message}`)
    t.regex(refused.message, owner === 'hand' ? /lunpath connect with --force/ : /lunpath attach with --force/)
    // The session that such a login makes is a stranger's to an attach.
    t.is(refused.message.includes('--login'), owner === 'hand')
  }
  t.deepEqual(await records(), before)
  t.deepEqual(await sessionDirectories(), [])
  await initiator.disconnect(unit.iqn)
  t.deepEqual(await records(), before, 'a target that is not connected is success, and the record stays')

  t.is((await initiator.connect({...spec(unit), force: true})).serial, unit.serial)
  t.like(await initiator.nodes(), {length: 1, 0: {owner: 'hand', initiatorName}})
  await initiator.disconnect(unit.iqn)
  t.deepEqual([await sessionDirectories(), await records()], [[], {}])
})

lab('3. another tool’s session serves, and is ended by force alone', async t => {
  const unit = await lun(t)
  const node = ['-T', unit.iqn, '-p', `${network.addresses[0]}:${tgtd.port}`]
  await adm('node', '-o', 'new', ...node)
  await adm('node', ...node, '--login')
  const before = await records()
  const device: Device = await initiator.connect(spec(unit))
  t.is(device.serial, unit.serial)
  const sessions = await initiator.sessions()
  t.like(sessions, {length: 1, 0: {owner: 'other', sid: device.paths[0]!.sid}})

  const refused = await refusal(initiator.disconnect(unit.iqn))
  t.is(refused.code, 'NODE_FOREIGN')
  t.regex(refused.message, new RegExp(`session ${device.paths[0]!.sid} at .*--force`))
  await initiator.disconnect(unit.iqn, {owner: 'attach'})
  t.deepEqual(await initiator.sessions(), sessions)
  t.deepEqual(await records(), before)

  t.deepEqual(await initiator.disconnect(unit.iqn, {force: true}), {flushed: true})
  t.deepEqual(await sessionDirectories(), [])
  t.deepEqual(await records(), before, 'the record is still that tool’s')
})

lab(
  '3a. a session without a node record is another tool’s, unless it has lunpath’s name: a detach leaves it',
  async t => {
    const unit = await lun(t)
    const node = ['-T', unit.iqn, '-p', `${network.addresses[0]}:${tgtd.port}`]
    await adm('node', '-o', 'new', ...node)
    await adm('node', ...node, '--login')
    // iscsiadm removes none while its session is up; a boot from iSCSI has none.
    const forget = () => rm(join('/etc/iscsi/nodes', unit.iqn), {recursive: true})
    await forget()
    const attached = {...spec(unit), owner: 'attach' as const}
    await initiator.connect(attached)
    const sessions = await initiator.sessions()
    t.like(sessions, {length: 1, 0: {owner: 'unknown'}})
    t.deepEqual(await initiator.disconnect(unit.iqn, {owner: 'attach'}), {flushed: true})
    t.deepEqual(await initiator.sessions(), sessions)
    await initiator.disconnect(unit.iqn, {force: true})

    await initiator.connect(attached)
    await forget()
    await initiator.disconnect(unit.iqn, {owner: 'attach'})
    t.deepEqual(await sessionDirectories(), [], 'lunpath’s own is logged out')
  },
)

lab('4. another tool’s session that is lost is left to that tool; by force a new one takes its place', async t => {
  const unit = await lun(t)
  const node = ['-T', unit.iqn, '-p', `${network.addresses[0]}:${tgtd.port}`]
  await adm('node', '-o', 'new', ...node)
  await adm('node', ...node, '--login')
  await tgtd.restart()
  await until('the session is lost', async () => (await initiator.sessions())[0]?.state !== 'LOGGED_IN')
  const [lost] = await initiator.sessions()
  t.is((await refusal(initiator.connect(spec(unit)))).code, 'NODE_FOREIGN')
  t.is((await initiator.sessions())[0]?.sid, lost!.sid)
  await unit.restore()
  t.is((await initiator.connect({...spec(unit), force: true})).serial, unit.serial)
  await initiator.disconnect(unit.iqn, {force: true})
  t.deepEqual(await sessionDirectories(), [])
})

lab('5. a portal on one link alone is dialled with its interface', async t => {
  const unit = await lun(t)
  const {stdout} = await run('ip', ['-n', network.name, '-o', 'address', 'show', 'dev', 'node0', 'scope', 'link'])
  const address = `${/inet6 (fe80::[0-9a-f:]+)/.exec(stdout)![1]!}%storage0`
  const port = tgtd.port + 1
  await until('the address is usable', async () => {
    const shown = await run('ip', ['-o', '-6', 'address', 'show', 'tentative'])
    return !shown.stdout.includes('fe80')
  })
  await tgtd.adm('--mode', 'portal', '--op', 'new', '--param', `portal=[::]:${port}`)
  const onLink = {address, port}
  t.true((await new LibiscsiInitiator().discover(onLink, {initiatorName})).some(({iqn}) => iqn === unit.iqn))
  const device = await initiator.connect(spec(unit, [onLink]))
  t.is(device.serial, unit.serial)
  t.deepEqual(device.missingPortals, [])
  t.like(await initiator.sessions(), {length: 1, 0: {owner: 'hand'}})
  t.deepEqual(await initiator.connect(spec(unit, [onLink])), device, 'connecting twice is connecting once')
  await initiator.disconnect(unit.iqn)
  t.deepEqual([await sessionDirectories(), await records()], [[], {}])
})

lab('6. a portal may have a host name, over the API too', async t => {
  const unit = await lun(t)
  await appendFile('/etc/hosts', `10.99.0.77 nas.example\n${network.addresses[0]} nas.example\n`)
  const node = await Node.make()
  t.teardown(() => node.stop())
  await node.start()
  const connection = {iqn: unit.iqn, portals: [`nas.example:${tgtd.port}`], expected: {serial: unit.serial}}
  const connect = () => node.api.call<Device>('POST', '/initiator/connections', connection)
  const device = await connect()
  t.is(device.paths[0]?.portal.address, network.addresses[0])
  t.deepEqual(await connect(), device)
  const found = await node.api.call<{iqn: string}[]>('POST', '/discover', {portal: `nas.example:${tgtd.port}`})
  t.true(found.some(({iqn}) => iqn === unit.iqn))
  await node.api.call('DELETE', `/initiator/connections/${unit.iqn}`)
  t.deepEqual([await sessionDirectories(), await records()], [[], {}])

  await adm('node', '-o', 'new', '-T', unit.iqn, '-p', `${network.addresses[0]}:${tgtd.port}`)
  await t.throwsAsync(connect(), {code: 'NODE_FOREIGN'})
  await node.api.call('DELETE', `/initiator/nodes/${unit.iqn}?portal=nas.example:${tgtd.port}`)
  t.deepEqual(await records(), {})
  await adm('node', '-o', 'new', '-T', unit.iqn, '-p', `${network.addresses[0]}:${tgtd.port}`)
  t.is(
    (await node.api.call<Device>('POST', '/initiator/connections', {...connection, force: true})).serial,
    unit.serial,
  )
  await node.api.call('DELETE', `/initiator/connections/${unit.iqn}`)
  t.deepEqual(await records(), {})
})
