import {execFile} from 'node:child_process'
import {readFile, rm, stat, truncate, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {promisify} from 'node:util'
import test, {type ExecutionContext} from 'ava'
import {examine} from '../../src/doctor.js'
import type {StorageError} from '../../src/errors.js'
import {freePort} from '../../src/sandbox/ports.js'
import {IetDriver} from '../../src/targets/iet.js'
import {call, IetControl, request} from '../../src/targets/iet-control.js'
import type {ExportSpec, Portal} from '../../src/types.js'
import {refusal} from '../contract/initiators.js'
import {targetContract, temporaryDirectory, until, volumeSpec} from '../contract/targets.js'
import {lunpath} from '../fixtures/cli.js'
import {back, makeForeign, openedIet, setUpIet, startDouble} from '../fixtures/iet-driver.js'
import {startIetNode} from '../fixtures/iet-node.js'
import {Node} from '../fixtures/node.js'
import {scrape} from '../fixtures/scrape.js'
import {type Iet, ietPrograms} from '../lab/iet.js'
import {insideLab, lab, labDisk} from '../lab/lab.js'

const mebibyte = 2 ** 20
const initiator = 'iqn.2026-01.io.lunpath.test:initiator'
const stranger = 'iqn.2026-01.io.lunpath.test:stranger'
const auth = {
  incoming: {user: 'guest', secret: 'a-good-secret-01'},
  outgoing: {user: 'target', secret: 'another-secret-2'},
}

lab.options({deadlineMs: 570_000, disksBytes: [16 * mebibyte]})

test.before('the double is compiled', async () => {
  if (!insideLab) await ietPrograms()
})

const freePortal = async (address: string): Promise<Portal> => ({address, port: await freePort(address)})

targetContract('IET', {
  test: lab,
  dataPath: false,
  freePortal,
  makeDriver: async (t, {portals}) => {
    const iet = await startDouble(t)
    return {
      driver: await openedIet(t, iet, {portals}),
      makeForeign: async target => {
        await makeForeign(target)
      },
    }
  },
})

const byName = {addresses: [], names: [initiator]}
const allowFile = (iet: Iet) => join(iet.configDir, 'initiators.allow')
const statusOf = async (iet: Iet, iqn: string, who: Parameters<Iet['login']>[1]) => (await iet.login(iqn, who)).status

lab(
  'calls go over ietd’s descriptor; nobody but ietd ever opens the device, and no copy outlives its calls',
  async t => {
    const {driver, directory, iet} = await setUpIet(t)
    t.deepEqual(driver.way, {way: 'device', reason: null})
    t.is(driver.pid, await iet.pid())
    const spec = await volumeSpec(directory, {access: byName, auth})
    await driver.export(spec)
    await driver.setParameters(spec.iqn, {MaxBurstLength: 65_536})
    await driver.list()
    await driver.unexport(spec.iqn)
    const {opens, releases, calls, oopses} = await iet.moduleState()
    t.deepEqual({opens, releases, oopses}, {opens: 1, releases: 0, oopses: 0})
    t.true(calls.ADD_VOLUME! > 0, JSON.stringify(calls))
    const fds = await Promise.all(
      (await promisify(execFile)('ls', ['-l', `/proc/${process.pid}/fd`])).stdout.split('\n').map(line => line),
    )
    t.deepEqual(
      fds.filter(line => line.includes('ietctl')),
      [],
    )
  },
)

lab('traced: no open of the device, not by its descriptor in /proc either', async t => {
  const directory = await temporaryDirectory(t)
  const iet = await startDouble(t)
  const trace = join(directory, 'trace')
  const source = `
    const {IetDriver} = await import(${JSON.stringify(new URL('../../src/targets/iet.js', import.meta.url).href)})
    const [procDirectory, configDirectory, path, gone] = process.argv.slice(1)
    const driver = new IetDriver({portals: [], procDirectory, accessDirectories: [configDirectory]})
    await driver.open()
    const id = '0123456789abcdef'
    const spec = {
      volume: {id, path, kind: 'file', sizeBytes: 16 * 2 ** 20},
      iqn: 'iqn.2026-01.io.lunpath.test:' + id,
      access: {addresses: ['ALL'], names: []},
      auth: {incoming: {user: 'guest', secret: 'a-good-secret-01'}},
      writeCache: 'through',
      readOnly: false,
    }
    await driver.restore([spec])
    await driver.setParameters(spec.iqn, {MaxBurstLength: 65536, Wthreads: 4})
    await driver.export({...spec, readOnly: true})
    await driver.resize({...spec, readOnly: true})
    await driver.export({...spec, volume: {...spec.volume, path: gone}}).catch(() => undefined)
    await driver.list()
    await driver.unexport(spec.iqn, {force: true})
    await driver.close()
  `
  const spec = await volumeSpec(directory)
  const node = [process.execPath, '--input-type=module', '-e', source, '--', iet.procDir, iet.configDir]
  const args = [
    '-f',
    '-s',
    '4096',
    '-e',
    'trace=%file,pidfd_getfd',
    '-o',
    trace,
    ...node,
    spec.volume.path,
    `${directory}/x`,
  ]
  await promisify(execFile)('strace', args)
  const calls = (await readFile(trace, 'utf8')).split('\n')
  const opens = calls.filter(line => /\b(open|openat|openat2|creat|open_by_handle_at)\(/.test(line))
  t.true(
    opens.some(line => line.includes(`${iet.procDir}/volume`)),
    'the trace has what it should',
  )
  t.deepEqual(
    opens.filter(line => /ietctl|\/proc\/\d+\/fd\/|\/proc\/self\/fd\//.test(line)),
    [],
  )
  t.true(calls.some(line => /pidfd_getfd\(.*= \d+/.test(line)))
  const {opens: opened, releases, wipes} = await iet.moduleState()
  t.deepEqual({opened, releases, wipes}, {opened: 1, releases: 0, wipes: 0})
})

lab('a volume has its id as ScsiId and serial, and the mode that was asked for', async t => {
  const {driver, directory, iet} = await setUpIet(t, {blockSizeBytes: 4096})
  const disk = {id: 'fedcba9876543210', path: labDisk(1), kind: 'block', sizeBytes: 16 * mebibyte} as const
  const specs = [
    await volumeSpec(directory),
    await volumeSpec(directory, {writeCache: 'back'}),
    await volumeSpec(directory, {readOnly: true}),
    await volumeSpec(directory, {volume: disk}),
  ]
  for (const spec of specs) {
    const made = await driver.export(spec)
    t.is(made.wwid, `t10.IET\\0\\0\\0\\0\\0${spec.volume.id}`)
  }
  const {targets} = await iet.moduleState()
  const found = specs.map(({iqn}) => targets.find(({name}) => name === iqn)!.volumes)
  t.deepEqual(
    found.map(volumes => volumes.map(({lun, type, mode, blockSize, blocks}) => [lun, type, mode, blockSize, blocks])),
    [
      [[1, 'fileio', 'wt', 4096, 4096]],
      [[1, 'fileio', 'wb', 4096, 4096]],
      [[1, 'fileio', 'ro', 4096, 4096]],
      [[1, 'blockio', 'wt', 4096, 4096]],
    ],
  )
  for (const [index, {volume}] of specs.entries()) {
    t.is(Buffer.from(found[index]![0]!.scsiId, 'hex').toString('latin1'), volume.id)
    t.is(found[index]![0]!.scsiSn, volume.id)
  }
  const uneven = await volumeSpec(directory)
  uneven.volume.sizeBytes = 512
  t.is((await refusal(driver.export(uneven))).code, 'SIZE_INVALID')
})

lab(
  'nullio: the volume’s size and ids without the volume; it is put back, adopted, and changed to another type',
  async t => {
    const {driver, directory, iet} = await setUpIet(t, {blockSizeBytes: 4096, keepOnClose: true})
    const disk = {id: 'fedcba9876543210', path: labDisk(1), kind: 'block', sizeBytes: 16 * mebibyte} as const
    const spec = await volumeSpec(directory, {ioType: 'nullio'})
    const cached = await volumeSpec(directory, {volume: disk, ioType: 'fileio'})
    // Nothing of the volume is looked at, not even whether it is there.
    await rm(spec.volume.path)
    const made = await driver.export(spec)
    t.like(made, {lun: 1, sizeBytes: 16 * mebibyte, serial: spec.volume.id})
    await driver.export(cached)
    const unit = {lun: 1, ioType: 'nullio', ioMode: 'wt', path: '', serial: spec.volume.id, sizeBytes: 16 * mebibyte}
    t.like((await driver.get(spec.iqn))!.luns[0], {...unit, blockSizeBytes: 4096})
    t.is((await driver.get(cached.iqn))!.luns[0]!.ioType, 'fileio')
    t.true(
      (await readFile(join(iet.procDir, 'volume'), 'utf8')).includes(
        'iotype:nullio iomode:wt blocks:4096 blocksize:4096\n',
      ),
    )
    const before = await worth(iet)
    t.is(Buffer.from(before[0]!.volumes[0]!.scsiId, 'hex').toString('latin1'), spec.volume.id)

    const returned = back(driver)
    await iet.restartDaemon()
    t.like(await returned, {exports: 2, failed: []})
    t.deepEqual(await worth(iet), before)
    await driver.close()
    const next = await openedIet(t, iet, {blockSizeBytes: 4096})
    await next.restore([spec, cached])
    t.deepEqual(await worth(iet), before)
    const grown = await next.resize({...spec, volume: {...spec.volume, sizeBytes: 32 * mebibyte}})
    t.is(grown.sizeBytes, 32 * mebibyte)
    t.is((await next.get(spec.iqn))!.luns[0]!.sizeBytes, 32 * mebibyte)
    await next.export({...cached, ioType: 'nullio'})
    t.like((await next.get(cached.iqn))!.luns[0], {...unit, serial: disk.id})
    await next.export(cached)
    t.like((await next.get(cached.iqn))!.luns[0], {ioType: 'fileio', path: labDisk(1)})

    const refused: Partial<ExportSpec>[] = [
      {ioType: 'blockio'},
      {ioType: 'nullio', readOnly: true},
      {ioType: 'nullio', writeCache: 'back'},
    ]
    for (const change of refused) {
      const other = await volumeSpec(directory, change)
      t.is((await refusal(next.export(other))).code, 'UNSUPPORTED', JSON.stringify(change))
    }
    t.is((await worth(iet)).length, 2)
  },
)

lab('an export with nullio is recorded, listed, put back by the next daemon, and not attached', async t => {
  const iet = await startDouble(t)
  const node = await Node.make({
    targets: {driver: 'iet', endWithDaemon: false},
    iet: {procDir: iet.procDir, accessDirs: [iet.configDir]},
    compute: {uri: 'test:///default'},
  })
  t.teardown(() => node.stop())
  await node.start()
  const cli = (...args: string[]) => lunpath(args, {env: {LUNPATH_SOCKET: node.socket}})
  const {exitCode, stderr} = await cli('export', 'create', '--size', '16MiB', '--name', 'bare', '--io-type', 'nullio')
  t.is(exitCode, 0, stderr)
  const [record] = await node.api.call<{volumeId: string; iqn: string; ioType: string}[]>('GET', '/exports')
  t.is(record!.ioType, 'nullio')
  t.regex((await cli('export', 'list')).stdout, /IOTYPE[\s\S]* nullio /)
  t.regex((await cli('target', 'show', record!.iqn)).stdout, new RegExp(`nullio +wt +online +${record!.volumeId}`))
  const before = await worth(iet)
  t.is(before[0]!.volumes[0]!.type, 'nullio')
  const {samples} = await scrape(node.metricsPort)
  t.is(samples.find(({name}) => name === 'iscsi_lun_info')?.labels.backstore, 'none')

  const attached = await refusal(node.api.call('POST', '/attachments', {volume: 'bare', domain: 'test'}))
  t.is(attached.code, 'UNSUPPORTED', attached.message)
  t.regex(attached.message, /nullio/)
  t.deepEqual(await node.api.call('GET', '/attachments'), [])
  const onFile = await refusal(node.api.call('POST', '/exports', {sizeBytes: 16 * mebibyte, ioType: 'blockio'}))
  t.is(onFile.code, 'UNSUPPORTED', onFile.message)
  t.is((await node.api.call<unknown[]>('GET', '/volumes')).length, 1, 'what was made for it is gone')

  await node.stopDaemon()
  await iet.restartDaemon()
  t.deepEqual(await worth(iet), [])
  await node.start()
  t.deepEqual(await worth(iet), before)
  await node.api.call('DELETE', `/exports/${record!.volumeId}`)
})

lab('rules let in whom they name; CHAP and its secrets are asked for; nobody else gets in', async t => {
  const {driver, directory, iet} = await setUpIet(t)
  const name = {initiator}
  const cases: [ExportSpec['access'], Parameters<Iet['login']>[1], boolean][] = [
    [{addresses: ['ALL'], names: []}, {initiator: stranger, address: '192.0.2.9'}, true],
    [{addresses: [], names: []}, name, false],
    [byName, name, true],
    [byName, {initiator: stranger}, false],
    [byName, {initiator: initiator.replaceAll('.', 'x')}, false],
    [{addresses: ['192.0.2.1'], names: []}, {...name, address: '192.0.2.1'}, true],
    [{addresses: ['192.0.2.1'], names: []}, {...name, address: '192.0.2.2'}, false],
    [{addresses: ['192.0.2.77/24'], names: []}, {...name, address: '192.0.2.2'}, true],
    [{addresses: ['192.0.2.77/24'], names: []}, {...name, address: '192.0.3.2'}, false],
    [{addresses: ['192.0.2.1'], names: [initiator]}, {...name, address: '192.0.2.2'}, true],
    [{addresses: ['2001:db8::/32'], names: []}, {...name, address: '2001:db8::7'}, true],
    [{addresses: ['2001:db8::/32'], names: []}, {...name, address: '2001:db9::7'}, false],
    [{addresses: ['2001:db8::1'], names: []}, {...name, address: '2001:db8::1'}, true],
  ]
  for (const [access, who, isLetIn] of cases) {
    const spec = await volumeSpec(directory, {access})
    await driver.export(spec)
    t.is((await statusOf(iet, spec.iqn, who)) === 'ok', isLetIn, JSON.stringify([access, who]))
    t.is((await iet.discover(who)).includes(spec.iqn), isLetIn)
    await driver.unexport(spec.iqn, {force: true})
  }
  for (const address of ['0.0.0.0', '0.0.0.0/4', '::', '::/96']) {
    const spec = await volumeSpec(directory, {access: {addresses: [address], names: []}})
    t.is((await refusal(driver.export(spec))).code, 'UNSUPPORTED', address)
  }
  const secured = await volumeSpec(directory, {auth})
  await driver.export(secured)
  const guest = {initiator, ...auth.incoming}
  t.is(await statusOf(iet, secured.iqn, {...guest, secret: 'not-the-secret-1'}), '0x0201')
  t.is(await statusOf(iet, secured.iqn, name), '0x0201')
  const fresh = {incoming: {user: 'guest', secret: 'a-good-secret-02'}}
  await driver.export({...secured, auth: fresh})
  t.is(await statusOf(iet, secured.iqn, guest), '0x0201')
  t.is(await statusOf(iet, secured.iqn, {...guest, secret: fresh.incoming.secret}), 'ok')
  const {accounts} = await iet.daemonState()
  t.deepEqual(
    accounts.map(({direction, name: user}) => [direction, user]),
    [[0, 'guest']],
  )
})

lab('there is no moment at which a target that is being made lets anybody in', async t => {
  const {driver, directory, iet} = await setUpIet(t)
  await writeFile(allowFile(iet), '# of the administrator\nALL ALL\n')
  await iet.slowModule(30)
  const seen = new Map<string, number>()
  for (let i = 0; i < 4; i++) {
    const spec = await volumeSpec(directory, {access: byName, auth})
    let isMade = false
    const making = driver.export(spec).finally(() => {
      isMade = true
    })
    while (!isMade) {
      for (const who of [{initiator: stranger}, {initiator}]) {
        const {status} = await iet.login(spec.iqn, who)
        seen.set(status, (seen.get(status) ?? 0) + 1)
        t.not(status, 'ok')
      }
    }
    await making
    t.is(await statusOf(iet, spec.iqn, {initiator, ...auth.incoming}), 'ok')
    t.is(await statusOf(iet, spec.iqn, {initiator: stranger, ...auth.incoming}), 'denied')
    await driver.unexport(spec.iqn, {force: true})
  }
  t.log(JSON.stringify([...seen]))
  t.true((seen.get('denied') ?? 0) > 0, 'it was tried while the target was there')
})

lab('initiators.allow: others’ lines, mode and owner stay; without a file others’ targets stay open', async t => {
  const {driver, directory, iet} = await setUpIet(t)
  const [one, two] = [await volumeSpec(directory, {access: byName}), await volumeSpec(directory, {access: byName})]
  const foreign = 'iqn.2001-04.com.example:foreign'
  await makeForeign({iqn: foreign, path: one.volume.path})
  t.is(await statusOf(iet, foreign, {initiator: stranger}), 'ok')
  await driver.export(one)
  t.is(await statusOf(iet, foreign, {initiator: stranger}), 'ok', 'where there was no file')
  t.is(await statusOf(iet, one.iqn, {initiator: stranger}), 'denied')
  await driver.unexport(one.iqn)
  await t.throwsAsync(stat(allowFile(iet)), {code: 'ENOENT'}, 'the file goes with the last export')

  const theirs = '# kept: \t blanks and all  \n\niqn.2001-04.com.example:x 10.0.0.1\nALL 192.0.2.0/24'
  await writeFile(allowFile(iet), theirs, {mode: 0o640})
  await Promise.all([driver.export(one), driver.export(two)])
  const text = await readFile(allowFile(iet), 'utf8')
  t.true(text.startsWith('# lunpath begin') && text.endsWith(`# lunpath end\n${theirs}`), text)
  const {mode} = await stat(allowFile(iet))
  t.is(mode & 0o777, 0o640)
  t.is(await statusOf(iet, two.iqn, {initiator}), 'ok', 'above the line for ALL')
  // Somebody moves our block down and adds lines meanwhile.
  const block = text.slice(0, -theirs.length)
  await writeFile(allowFile(iet), `${theirs}\n${block}`)
  await driver.export({...one, access: {addresses: [], names: [stranger]}})
  t.is(await statusOf(iet, one.iqn, {initiator: stranger}), 'ok')
  await driver.unexport(one.iqn, {force: true})
  await driver.unexport(two.iqn, {force: true})
  t.is(await readFile(allowFile(iet), 'utf8'), `${theirs}\n`)

  const names = Array.from({length: 200}, (_, i) => `iqn.2026-01.io.lunpath.test:${'x'.repeat(40)}${i}`)
  const error = await refusal(driver.export({...one, access: {addresses: [], names}}))
  t.is(error.code, 'UNSUPPORTED')
  t.regex(error.message, /8191 bytes/)
  await writeFile(join(iet.configDir, 'initiators.deny'), '')
  t.regex((await refusal(driver.export(one))).message, /initiators\.deny is there/)
})

lab('without the access files rules are refused, and nothing is written', async t => {
  const {driver, directory, iet} = await setUpIet(t, {accessFiles: false})
  t.like(new IetDriver({portals: [], accessFiles: false}).supports, {accessRules: false, addressRules: false})
  for (const access of [byName, {addresses: ['192.0.2.1'], names: []}, {addresses: [], names: []}]) {
    t.is((await refusal(driver.export(await volumeSpec(directory, {access})))).code, 'UNSUPPORTED')
  }
  const spec = await volumeSpec(directory, {auth})
  await driver.export(spec)
  t.is(await statusOf(iet, spec.iqn, {initiator: stranger, ...auth.incoming}), 'ok')
  await driver.unexport(spec.iqn, {force: true})
  await t.throwsAsync(stat(allowFile(iet)), {code: 'ENOENT'})
})

lab(
  'all 19 session parameters and 5 target parameters are set and read back; what IET would clamp is refused',
  async t => {
    const {driver, directory, iet} = await setUpIet(t)
    const spec = await volumeSpec(directory)
    await driver.export(spec)
    const usual = await driver.parameters(spec.iqn)
    t.is(Object.keys(usual.session).length, 19)
    t.is(Object.keys(usual.target).length, 5)
    t.like(usual.session, {InitialR2T: true, MaxBurstLength: 262_144, HeaderDigest: 'None'})
    const wanted = {
      ...{InitialR2T: false, ImmediateData: false, MaxRecvDataSegmentLength: 65_536, MaxXmitDataSegmentLength: 32_768},
      ...{MaxBurstLength: 131_072, FirstBurstLength: 32_768, DefaultTime2Wait: 5, DefaultTime2Retain: 30},
      ...{MaxOutstandingR2T: 4, HeaderDigest: 'None,CRC32C', DataDigest: 'CRC32C'},
    }
    const threads = {Wthreads: 16, QueuedCommands: 64, NOPInterval: 10, NOPTimeout: 10}
    const set = await driver.setParameters(spec.iqn, {...wanted, ...threads})
    t.like(set, {session: wanted, target: threads})
    const [target] = (await iet.moduleState()).targets
    t.deepEqual(
      target!.sessionParams,
      [0, 0, 1, 65_536, 32_768, 131_072, 32_768, 5, 30, 4, 1, 1, 0, 3, 2, 0, 0, 2048, 2048],
    )
    t.deepEqual(target!.targetParams, [16, 0, 64, 10, 10])
    for (const [key, value] of Object.entries({
      Wthreads: 999,
      QueuedCommands: 0,
      NOPInterval: 91,
      MaxBurstLength: 511,
      OFMarker: true,
      Nonsense: 1,
      HeaderDigest: 'MD5',
    })) {
      t.is((await refusal(driver.setParameters(spec.iqn, {[key]: value}))).code, 'INVALID_ARGUMENT', key)
    }
    const sid = 0xfedc_ba98_7654_3210n
    await iet.addSession(target!.tid, {sid, initiator})
    const own = await driver.setParameters(spec.iqn, {MaxBurstLength: 65_536}, {sid: String(sid)})
    t.is(own.session.MaxBurstLength, 65_536)
    t.is((await driver.parameters(spec.iqn)).session.MaxBurstLength, 131_072, 'the target’s own stay')
  },
)

lab('sessions: 64-bit numbers, IPv6, an end over the socket, TARGET_IN_USE with all as before', async t => {
  const {driver, directory, iet} = await setUpIet(t)
  const spec = await volumeSpec(directory, {access: byName})
  await driver.export(spec)
  const {tid} = (await driver.get(spec.iqn))!
  const sid = 0xfedc_ba98_7654_3210n
  await iet.addSession(tid, {sid, initiator})
  await iet.addConnection(tid, sid, {address: '2001:db8::7', headerDigest: 'crc32c'})
  t.deepEqual(await driver.sessions(), [
    {
      iqn: spec.iqn,
      initiator,
      sid: String(sid),
      connections: [{cid: 0, address: '2001:db8::7', state: 'active', headerDigest: true, dataDigest: false}],
    },
  ])
  const before = await readFile(allowFile(iet), 'utf8')
  for (const action of [
    () => driver.unexport(spec.iqn),
    () => driver.resize(spec),
    () => driver.export({...spec, readOnly: true}),
    () => driver.export({...spec, auth}),
  ]) {
    const error = await refusal(action())
    t.is(error.code, 'TARGET_IN_USE')
    t.deepEqual(error.info.initiators, [initiator])
  }
  t.is(await readFile(allowFile(iet), 'utf8'), before)
  t.is((await refusal(driver.deleteSession(spec.iqn, '5'))).code, 'NOT_FOUND')
  await driver.deleteSession(spec.iqn, String(sid))
  t.deepEqual(await driver.sessions(), [])
  await iet.addSession(tid, {sid: 7n, initiator})
  await driver.unexport(spec.iqn, {force: true})
  const {calls, targets} = await iet.moduleState()
  t.deepEqual(targets, [])
  t.is(calls.DEL_SESSION, 2, 'by ietd')
})

lab('a deleted LUN with commands in flight is left alone until it is gone', async t => {
  const {driver, directory, iet} = await setUpIet(t)
  const spec = await volumeSpec(directory)
  await driver.export(spec)
  const {tid} = (await driver.get(spec.iqn))!
  await iet.setBusy(tid, 1, true)
  await truncate(spec.volume.path, 32 * mebibyte)
  const resizing = driver.resize({...spec, volume: {...spec.volume, sizeBytes: 32 * mebibyte}})
  await until(async () => (await iet.moduleState()).targets[0]!.volumes[0]?.state === 1)
  await sleep(300)
  t.false((await driver.get(spec.iqn))!.luns[0]!.online)
  t.is((await iet.moduleState()).calls.DEL_VOLUME, 1, 'it is not deleted again')
  await iet.setBusy(tid, 1, false)
  t.is((await resizing).sizeBytes, 32 * mebibyte)
  const [target] = (await iet.moduleState()).targets
  t.is(target!.lunCount, 1)
})

async function worth(iet: Iet) {
  const {targets} = await iet.moduleState()
  return targets
    .map(({tid, name, volumes, sessionParams, targetParams}) => ({tid, name, volumes, sessionParams, targetParams}))
    .sort((a, b) => a.tid - b.tid)
}

async function withExports(t: ExecutionContext) {
  const made = await setUpIet(t)
  const {driver, directory} = made
  const awake = setInterval(() => undefined, 1_000)
  t.teardown(() => clearInterval(awake))
  // A gap in the numbers.
  const gap = await volumeSpec(directory)
  await driver.export(gap)
  const specs = [
    await volumeSpec(directory, {access: byName, auth}),
    await volumeSpec(directory, {readOnly: true}),
    await volumeSpec(directory, {access: byName}),
  ]
  for (const spec of specs) await driver.export(spec)
  await driver.unexport(gap.iqn)
  await driver.setParameters(specs[0]!.iqn, {MaxBurstLength: 65_536, Wthreads: 4})
  await driver.redirect(specs[1]!.iqn, {address: '192.0.2.1', port: 3261})
  const told: {lost: number; facts: Record<string, unknown>}[] = []
  driver.on('lost', facts => told.push({lost: performance.now(), facts}))
  return {...made, specs, told}
}

for (const [what, end] of [
  ['ietd dies and comes back', (iet: Iet) => iet.restartDaemon()],
  ['somebody closes the control device', (iet: Iet) => iet.wipe()],
] as const) {
  lab(
    `${what}: noticed within a second, and all is back with its numbers, serials, accounts and parameters`,
    async t => {
      const {driver, iet, specs, told} = await withExports(t)
      const before = await worth(iet)
      t.is(before.length, 3)
      const returned = back(driver)
      const began = performance.now()
      await end(iet)
      t.like(await returned, {exports: 3, failed: []})
      const noticedMs = Math.round(told[0]!.lost - began)
      t.log(`${noticedMs} ms until it was noticed`)
      t.true(noticedMs < 1_000)
      t.deepEqual(await worth(iet), before)
      t.is(await statusOf(iet, specs[0]!.iqn, {initiator, ...auth.incoming}), 'ok')
      t.is(await statusOf(iet, specs[0]!.iqn, {initiator}), '0x0201')
      t.is(await statusOf(iet, specs[2]!.iqn, {initiator: stranger}), 'denied')
      t.is(await statusOf(iet, specs[1]!.iqn, {initiator}), 'redirect 192.0.2.1:3261')
      const {targets} = await iet.daemonState()
      t.deepEqual(
        targets.map(({tid, name}) => ({tid, name})).sort((a, b) => a.tid - b.tid),
        before.map(({tid, name}) => ({tid, name})),
        'ietd lists what the kernel has',
      )
      // A new one does not get a number that ietd may still answer for.
      const fresh = await volumeSpec(specs[0]!.volume.path.replace(/\/[^/]*$/, ''))
      await driver.export(fresh)
      await driver.unexport(specs[0]!.iqn, {force: true})
      t.is((await driver.list()).length, 3)
    },
  )
}

lab('initiators that retry meet whole targets alone: no rule opens one before all are back', async t => {
  const {driver, iet, specs} = await withExports(t)
  const returned = back(driver)
  await iet.slowModule(40)
  await iet.killDaemon()
  await iet.startDaemon()
  let isBack = false
  const done = returned.then(() => {
    isBack = true
  })
  const seen: string[] = []
  while (!isBack) {
    const {status} = await iet.login(specs[2]!.iqn, {initiator})
    if (status === 'ok') {
      const {targets} = await iet.moduleState()
      t.deepEqual(
        specs.map(({iqn}) => targets.find(({name}) => name === iqn)?.volumes.length),
        [1, 1, 1],
      )
    }
    seen.push(status)
    await sleep(10)
  }
  await done
  t.log(JSON.stringify([...new Set(seen)]))
  t.true(seen.includes('denied'), 'it was tried while the target was there')
})

lab('one target that ietadm deletes is put back, others are not touched', async t => {
  const {driver, iet, specs} = await withExports(t)
  const before = await worth(iet)
  const sid = 11n
  await iet.addSession(before[1]!.tid, {sid, initiator})
  const returned = back(driver)
  const control = new IetControl()
  const {tid} = before.find(({name}) => name === specs[0]!.iqn)!
  await control.exchange([[request.deleteTarget(tid)]], {timeoutMs: 10_000})
  t.like(await returned, {exports: 1, failed: []})
  t.deepEqual(await worth(iet), before)
  t.is((await driver.sessions()).length, 1)
  const again = back(driver)
  const {answers} = await control.exchange([[call.deleteVolume(before[2]!.tid, 1).instead!]], {timeoutMs: 10_000})
  t.is(answers[0]![0]!.error, 0)
  t.like(await again, {exports: 1, failed: []})
  t.deepEqual(await worth(iet), before)
  control.close()
})

lab('a next driver adopts what is there, sessions and settings included; half-made targets it makes whole', async t => {
  const directory = await temporaryDirectory(t)
  const iet = await startDouble(t)
  const first = await openedIet(t, iet, {keepOnClose: true})
  await first.restore([])
  const [used, half] = [await volumeSpec(directory, {access: byName, auth}), await volumeSpec(directory)]
  await first.export(used)
  await first.setParameters(used.iqn, {MaxBurstLength: 65_536})
  const {tid} = (await first.get(used.iqn))!
  await iet.addSession(tid, {sid: 5n, initiator})
  await first.close()
  const control = new IetControl()
  await control.exchange([[request.newTarget(0, half.iqn)]], {timeoutMs: 10_000})
  control.close()
  const text = await readFile(allowFile(iet), 'utf8')
  await writeFile(allowFile(iet), text.replace('# lunpath end', `${half.iqn} nobody\n# lunpath end`))
  const second = await openedIet(t, iet)
  const {requests: before} = await iet.daemonState()
  await second.restore([used, half])
  t.is((await second.get(used.iqn))!.tid, tid)
  t.is((await second.sessions()).length, 1)
  const {requests} = await iet.daemonState()
  t.is(requests['18'] ?? 0, before['18'] ?? 0, 'no account was taken away')
  t.is(await statusOf(iet, half.iqn, {initiator: stranger}), 'ok')
  const returned = back(second)
  await iet.restartDaemon()
  await returned
  t.is((await second.parameters(used.iqn)).session.MaxBurstLength, 65_536, 'what the first one had set')
})

lab('a call that hangs is told as such at its deadline, and the rest goes on', async t => {
  const {driver, directory, iet} = await setUpIet(t, {timeoutMs: 2_000})
  const [stuck, later] = [await volumeSpec(directory), await volumeSpec(directory)]
  await iet.hangNext('ADD_VOLUME')
  const began = performance.now()
  const error = await refusal(driver.export(stuck))
  t.is(error.code, 'TIMEOUT', error.message)
  t.true(performance.now() - began < 20_000)
  await iet.resume()
  await driver.export(later)
  t.is((await driver.get(later.iqn))?.luns.length, 1)
})

lab('answers that are none end an export with an error, and nothing of it stays open', async t => {
  const {driver, directory, iet} = await setUpIet(t, {timeoutMs: 2_000})
  for (const manner of ['short', 'long', 'echo', 'huge', 'close', 'never'] as const) {
    const spec = await volumeSpec(directory, {access: byName})
    await iet.answer(manner)
    const result = await driver.export(spec).then(
      () => 'made',
      (error: StorageError) => error.code,
    )
    t.true(
      ['made', 'TARGET_UNAVAILABLE', 'TIMEOUT', 'TARGET_FAILED', 'TARGET_EXISTS'].includes(result),
      `${manner}: ${result}`,
    )
    await iet.answer('normal', {count: 0}).catch(() => undefined)
    await until(
      async () => (await driver.export(spec).catch(error => t.log(manner, result, String(error)))) !== undefined,
    )
    t.is(await statusOf(iet, spec.iqn, {initiator: stranger}), 'denied')
    await driver.unexport(spec.iqn)
  }
})

lab('discovery has its own accounts where they are configured', async t => {
  const {driver, directory, iet} = await setUpIet(t, {discoveryAuth: auth})
  const spec = await volumeSpec(directory)
  await driver.export(spec)
  t.deepEqual(await iet.discover({initiator, ...auth.incoming}), [spec.iqn])
  await t.throwsAsync(iet.discover({initiator}).then(names => names.length > 0 || Promise.reject(new Error('none'))))
  const {accounts} = await iet.daemonState()
  t.deepEqual(
    accounts
      .filter(({tid}) => tid === 0)
      .map(({direction, name}) => [direction, name])
      .sort(),
    [
      [0, 'guest'],
      [1, 'target'],
    ],
  )
})

for (const version of ['1.4.20', '1.4.20.1', 'trunk'] as const) {
  lab(`${version} works, by the device`, async t => {
    const directory = await temporaryDirectory(t)
    const iet = await startDouble(t, {version})
    const driver = await openedIet(t, iet)
    await driver.restore([])
    const spec = await volumeSpec(directory)
    await driver.export(spec)
    t.is(driver.way?.way, 'device')
    await driver.unexport(spec.iqn)
    t.is((await iet.moduleState()).releases, 0)
  })
}

for (const version of ['1.4.18', '1.4.19'] as const) {
  lab(`${version} is refused by name, with or without targets`, async t => {
    const directory = await temporaryDirectory(t)
    const iet = await startDouble(t, {version})
    const refused = async () => {
      const driver = new IetDriver({portals: [], procDirectory: iet.procDir, accessDirectories: [iet.configDir]})
      t.teardown(() => driver.close())
      const error = await refusal(driver.open())
      t.is(error.code, 'UNSUPPORTED', error.message)
      t.regex(error.message, /1\.4\.20/)
    }
    await refused()
    const {volume} = await volumeSpec(directory)
    await makeForeign({iqn: 'iqn.2001-04.com.example:a', path: volume.path})
    await refused()
  })
}

lab('no ietd and no module are told apart, with what to do', async t => {
  const iet = await startDouble(t, {daemon: false})
  const options = {portals: [], procDirectory: iet.procDir, accessDirectories: [iet.configDir]}
  const alone = new IetDriver(options)
  t.teardown(() => alone.close())
  const error = await refusal(alone.open())
  t.is(error.code, 'TARGET_UNAVAILABLE')
  t.regex(error.message, /no ietd listens: start it/)
  await iet.startDaemon()
  const blind = new IetDriver({...options, procDirectory: '/proc/net/iet'})
  t.teardown(() => blind.close())
  t.regex((await refusal(blind.open())).message, /modprobe iscsi_trgt/)
})

lab('without the right to ptrace all goes over the socket; an ordinary user is told', async t => {
  const directory = await temporaryDirectory(t)
  const iet = await startDouble(t)
  const source = `
    const {IetDriver} = await import(${JSON.stringify(new URL('../../src/targets/iet.js', import.meta.url).href)})
    const [procDirectory, configDirectory, path] = process.argv.slice(1)
    const driver = new IetDriver({portals: [], procDirectory, accessDirectories: [configDirectory], keepOnClose: true})
    try {
      await driver.open()
      await driver.restore([])
      const id = '0123456789abcdef'
      const iqn = 'iqn.2026-01.io.lunpath.test:' + id
      const volume = {id, path, kind: 'file', sizeBytes: 16 * 2 ** 20}
      await driver.export({volume, iqn, access: {addresses: ['ALL'], names: []}, writeCache: 'through', readOnly: false})
      const set = await driver.setParameters(iqn, {MaxBurstLength: 65536, Wthreads: 4})
      console.log(JSON.stringify({way: driver.way, burst: set.session.MaxBurstLength, threads: set.target.Wthreads}))
    } catch (error) {
      console.log(JSON.stringify({code: error.code, message: error.message}))
    }
    await driver.close()
  `
  const spec = await volumeSpec(directory)
  const node = [
    process.execPath,
    '--input-type=module',
    '-e',
    source,
    '--',
    iet.procDir,
    iet.configDir,
    spec.volume.path,
  ]
  const said = async (...before: string[]) => {
    const [file, ...args] = [...before, ...node]
    return JSON.parse((await promisify(execFile)(file!, args)).stdout) as Record<string, unknown>
  }
  const {calls: asked} = await iet.moduleState()
  const limited = await said('setpriv', '--bounding-set=-sys_ptrace', '--inh-caps=-sys_ptrace')
  t.like(limited, {way: {way: 'socket'}, burst: 65_536, threads: 4}, JSON.stringify(limited))
  t.regex((limited.way as {reason: string}).reason, /descriptors of ietd: Permission denied/)
  const {targets, calls} = await iet.moduleState()
  t.deepEqual([targets[0]!.sessionParams[5], targets[0]!.targetParams[0]], [65_536, 4])
  t.is(calls.GET_MODULE_INFO, asked.GET_MODULE_INFO, 'the device was not used')
  await rm(allowFile(iet), {force: true})
  const ordinary = await said('setpriv', '--reuid=65534', '--regid=65534', '--clear-groups')
  t.is(ordinary.code, 'TARGET_UNAVAILABLE')
  t.regex(String(ordinary.message), /run the daemon as root/)
})

lab(
  'the daemon and its commands: target, iet param, iet redirect, session delete; all is back after a restart of both',
  async t => {
    const iet = await startDouble(t)
    const {node, cli} = await startIetNode(t, iet)
    type Made = {volume: {id: string}; export: {iqn: string}}
    const post = (body: unknown) => node.api.call<Made>('POST', '/exports', body)
    const gap = await post({sizeBytes: 16 * mebibyte})
    const made = await post({sizeBytes: 16 * mebibyte, access: {names: [initiator]}, auth})
    const other = await post({sizeBytes: 16 * mebibyte, access: {addresses: ['ALL']}})
    await node.api.call('DELETE', `/exports/${gap.volume.id}`)
    const {iqn} = made.export
    t.like((await cli('target', 'show', iqn)).answer, {iqn, accounts: ['guest', 'target'], access: byName})
    t.is((await cli('target', 'list')).answer.length, 2)
    t.is((await cli('target', 'show', 'iqn.2026-01.io.lunpath:absent')).exitCode, 3)
    const set = await cli('iet', 'param', 'set', iqn, 'MaxBurstLength=65536', 'Wthreads=4', 'InitialR2T=No')
    t.like(set.answer, {session: {MaxBurstLength: 65_536, InitialR2T: false}, target: {Wthreads: 4}}, set.stderr)
    t.is((await cli('iet', 'param', 'set', iqn, 'Wthreads=999')).exitCode, 2)
    t.like((await cli('iet', 'redirect', other.export.iqn, '192.0.2.1:3261')).answer, {redirect: '192.0.2.1:3261'})
    const before = await worth(iet)
    const sid = 0xfedc_ba98_7654_3210n
    const {tid} = before.find(({name}) => name === iqn)!
    await iet.addSession(tid, {sid, initiator})
    await iet.addConnection(tid, sid)
    t.is((await cli('export', 'delete', iqn)).exitCode, 4)
    t.is((await cli('iet', 'param', 'get', iqn, '--sid', String(sid))).answer.session.MaxBurstLength, 65_536)
    const human = await lunpath(['target', 'show', iqn], {env: {LUNPATH_SOCKET: node.socket}})
    t.regex(human.stdout, /fileio +wt +online/)
    t.regex(human.stdout, new RegExp(`${sid} +${initiator} +0 +127\\.0\\.0\\.1 +active +none +none`))
    t.is((await cli('session', 'delete', iqn, String(sid))).exitCode, 0)
    t.is((await cli('session', 'delete', iqn, String(sid))).exitCode, 3)

    const cleared = await node.daemon
    let isBack = false
    cleared.operations.rooms.targets.on('restarted', () => {
      isBack = true
    })
    await iet.restartDaemon()
    await until(async () => isBack)
    t.deepEqual(await worth(iet), before)
    const {samples} = await scrape(node.metricsPort)
    t.is(samples.find(({name}) => name === 'lunpath_target_restorations_total')?.value, 1)
    t.is(samples.filter(({name, labels}) => name === 'iscsi_target_info' && labels.driver === 'iet').length, 2)

    await node.stopDaemon()
    await iet.restartDaemon()
    t.is((await worth(iet)).length, 0)
    await node.start()
    t.deepEqual(await worth(iet), before, 'numbers included, and the gap between them')
    t.is(await statusOf(iet, other.export.iqn, {initiator}), 'redirect 192.0.2.1:3261')
    // Somebody takes a number while both are away: the target gets another one, and has that from then on.
    await node.stopDaemon()
    await iet.restartDaemon()
    const {tid: taken} = before[0]!
    const foreign = await makeForeign({iqn: 'iqn.2001-04.com.example:a', path: join(node.directory, 'x'), tid: taken})
    t.is(foreign, taken)
    await node.start()
    const moved = (await worth(iet)).filter(({name}) => name !== 'iqn.2001-04.com.example:a')
    t.not(moved.find(({name}) => name === before[0]!.name)!.tid, taken)
    await node.stopDaemon()
    await iet.restartDaemon()
    await node.start()
    t.deepEqual(await worth(iet), moved)
    // ietd lists what the kernel has lost, and lunpath was not there to see it.
    await node.stopDaemon()
    await iet.wipe()
    await node.start()
    t.deepEqual(await worth(iet), moved)
    t.is(await statusOf(iet, iqn, {initiator, ...auth.incoming}), 'ok')
    for (const {volume} of [made, other]) await node.api.call('DELETE', `/exports/${volume.id}?force=true`)
    t.deepEqual(await worth(iet), [])
  },
)

lab('doctor says what IET lacks, and by which way it is driven', async t => {
  const iet = await startDouble(t)
  const place = {socketName: 'IET_ABSTRACT_NAMESPACE', accessDirectories: [iet.configDir], accessFiles: true}
  const look = async (procDirectory: string) => {
    const checks = await examine({targetDriver: 'iet', iet: {...place, procDirectory}})
    return (part: string) => checks.find(({name}) => name.includes(part))
  }
  const well = await look(iet.procDir)
  t.is(well('addon iet')?.status, 'ok')
  t.like(well('module'), {status: 'ok', found: 'iscsi_trgt, version 1.4.20.2'})
  t.is(well('ietd')?.status, 'ok')
  t.like(well('control device'), {status: 'ok', found: 'by a duplicate of ietd’s descriptor'})
  t.is(well('access files')?.status, 'ok')
  await writeFile(join(iet.configDir, 'initiators.deny'), '')
  await iet.killDaemon()
  const ill = await look('/proc/net/iet')
  t.like(ill('module'), {status: 'missing'})
  t.regex(ill('module')?.remedy ?? '', /modprobe iscsi_trgt/)
  t.is(ill('ietd')?.status, 'missing')
  t.is(ill('access files')?.status, 'missing')
  const {releases} = await iet.moduleState()
  t.is(releases, 1, 'ietd’s own')
})
