import {mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import {samePortal} from '../../src/address.js'
import {differences, serialOf, stablePathOf} from '../../src/initiators/block-identity.js'
import {type NewNodeRecord, NodeRecords} from '../../src/initiators/node-record.js'

const iqn = 'iqn.2025-01.test.lunpath:0123456789abcdef'
const portal = {address: '10.0.0.5', port: 3260}
const record: NewNodeRecord = {
  iqn,
  portal,
  tpgt: 1,
  login: {tries: 3, trySeconds: 5},
  manualScan: true,
  owner: 'attach',
}

async function dataBase(t: ExecutionContext) {
  const root = await mkdtemp(join(tmpdir(), 'nodes-'))
  t.teardown(() => rm(root, {recursive: true}))
  const directory = join(root, 'nodes')
  return {root, directory, records: new NodeRecords({directory, user: '/var/lib/a'})}
}

test('a record is a file of its own, closed to others, and goes with its directories', async t => {
  const {root, directory, records} = await dataBase(t)
  const auth = {incoming: {user: 'u', secret: 'the-secret-itself'}}
  await records.write({...record, auth})
  const path = join(directory, iqn, '10.0.0.5,3260,1', 'default')
  t.is((await stat(path)).mode & 0o777, 0o600)
  t.true((await readFile(path, 'utf8')).includes('node.session.auth.password = the-secret-itself\n'))
  const [found, ...others] = await records.list()
  t.deepEqual(others, [])
  const initiatorName = null
  t.deepEqual(found, {iqn, portal, tpgt: 1, startup: 'manual', hasAuth: true, initiatorName, owner: 'attach', path})
  await records.remove(iqn, portal)
  t.deepEqual(await readdir(directory), [])
  t.deepEqual(await readdir(root), ['nodes'], 'no temporary file')
})

test('a second record of a portal takes the place of the first, whatever its layout', async t => {
  const {directory, records} = await dataBase(t)
  await mkdir(join(directory, iqn), {recursive: true})
  await writeFile(join(directory, iqn, '10.0.0.5,3260'), 'node.startup = automatic\n')
  t.like(await records.of(iqn), {0: {tpgt: -1, startup: 'automatic', owner: null, hasAuth: false}})
  await records.write({...record, owner: 'hand'})
  t.deepEqual(await readdir(join(directory, iqn)), ['10.0.0.5,3260,1'])
  t.like(await records.of(iqn), {length: 1, 0: {owner: 'hand', startup: 'manual'}})
})

test('removing one portal leaves the others, and removing what is not there is success', async t => {
  const {records} = await dataBase(t)
  const other = {address: 'fd00::1', port: 3261}
  await records.write(record)
  await records.write({...record, portal: other})
  await records.remove(iqn, {address: 'fd00:0::1', port: 3261})
  t.deepEqual(
    (await records.list()).map(one => one.portal),
    [portal],
  )
  await records.remove(iqn, other)
  await records.remove(iqn, portal)
  await records.remove(iqn, portal)
  t.deepEqual(await records.list(), [])
})

test('one record is removed alone: what another tool has for the same portal stays', async t => {
  const {directory, records} = await dataBase(t)
  await records.write(record)
  const node = join(directory, iqn, '10.0.0.5,3260,1')
  await writeFile(join(node, 'eth1'), 'node.startup = onboot\n')
  const [ours] = (await records.of(iqn)).filter(({owner}) => owner === 'attach')
  await records.removeFile(ours!)
  t.deepEqual(await readdir(node), ['eth1'])
  const [theirs] = await records.of(iqn)
  await records.removeFile(theirs!)
  t.deepEqual(await readdir(directory), [])
})

test('a NAS’s name with capitals is a record’s too', async t => {
  const {directory, records} = await dataBase(t)
  const named = {...record, iqn: 'iqn.2004-04.com.QNAP:TS-453_A:iscsi.Disk1'}
  await records.write(named)
  t.deepEqual(await readdir(directory), [named.iqn])
  t.like(await records.of(named.iqn), {length: 1, 0: {owner: 'attach'}})
})

test('what another daemon has made to attach is another’s; what a person asked for is a person’s everywhere', async t => {
  const {directory, records} = await dataBase(t)
  const others = new NodeRecords({directory, user: '/var/lib/b'})
  await others.write(record)
  t.like(await records.of(iqn), {0: {owner: null}})
  await others.write({...record, owner: 'hand'})
  t.like(await records.of(iqn), {0: {owner: 'hand'}})
})

test('a name that would lead elsewhere is refused', async t => {
  const {records} = await dataBase(t)
  for (const name of ['../x', '..', 'iqn.2025-01.test:../../etc', 'iqn.2025-01.test:a/b', 'iqn.2025-01.test:a\nb', ''])
    await t.throwsAsync(records.write({...record, iqn: name}), {code: 'NAME_INVALID'}, name)
})

test('portals are the same however their address is written', t => {
  t.true(samePortal({address: 'fd99::2', port: 1}, {address: 'fd99:0:0:0::2', port: 1}))
  t.false(samePortal({address: 'fd99::2', port: 1}, {address: 'fd99::2', port: 2}))
  t.false(samePortal({address: '10.0.0.1', port: 1}, {address: '10.0.0.2', port: 1}))
})

test('a serial is what page 0x80 holds, without the blanks that tgt pads it with', t => {
  const page = (text: string, length = text.length) =>
    Buffer.concat([Buffer.from([0, 0x80, 0, length]), Buffer.from(text)])
  t.is(serialOf(page('                    0123456789abcdef')), '0123456789abcdef')
  t.is(serialOf(page('abc\0\0')), 'abc')
  t.is(serialOf(page('abcdef', 3)), 'abc')
  t.is(serialOf(Buffer.alloc(2)), '')
})

test('stable paths are udev’s and multipath’s names of the WWID', t => {
  const hex = '60000000000000000123456789abcdef'
  t.is(stablePathOf(`naa.${hex}`, false), `/dev/disk/by-id/wwn-0x${hex}`)
  t.is(stablePathOf(`naa.${hex}`, true), `/dev/disk/by-id/dm-uuid-mpath-3${hex}`)
  const iet = String.raw`t10.IET\0\0\0\0\0`
  const vendor = '4945540000000000'
  const idHex = Buffer.from('0123456789abcdef').toString('hex')
  t.is(stablePathOf(`${iet}0123456789abcdef`, false), `/dev/disk/by-id/scsi-1${vendor}${idHex}`)
  t.is(stablePathOf(`${iet}0123456789abcdef`, true), `/dev/disk/by-id/dm-uuid-mpath-1${vendor}${idHex}`)
  // A name that a user of IET has written down.
  const short = String.raw`${iet}hosta_iscsi\0\0\0\0\0`
  t.is(stablePathOf(short, false), '/dev/disk/by-id/scsi-14945540000000000686f7374615f69736373690000000000')
  const bytes = Buffer.from('ccb70d0ceeee4280f8450284d6298b59', 'hex')
  const shown = [...bytes].map(byte =>
    byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : `\\${byte.toString(8).padStart(3, '0')}`,
  )
  t.is(stablePathOf(`${iet}${shown.join('')}`, false), `/dev/disk/by-id/scsi-1${vendor}${bytes.toString('hex')}`)
  for (const wwid of ['t10.IET 0123', `${iet}0123`, String.raw`${iet}a\012345678901234`, `${iet}0123456789abcdef0`]) {
    t.throws(() => stablePathOf(wwid, false), {code: 'UNSUPPORTED'}, wwid)
  }
})

test('every part of an identity that is expected must agree', t => {
  const found = {wwid: 'naa.6', serial: 'a', sizeBytes: 512}
  t.deepEqual(differences(found, found), [])
  t.deepEqual(differences(found, {}), [])
  t.deepEqual(differences(found, {wwid: 'naa.5', serial: 'b', sizeBytes: 1024}), ['wwid', 'serial', 'sizeBytes'])
})
