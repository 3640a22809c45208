import {createHash} from 'node:crypto'
import {open, readFile, stat, symlink, truncate, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import type {ImportedTargets} from '../../src/attach/import.js'
import {LibiscsiInitiator} from '../../src/initiators/libiscsi.js'
import {IetDriver} from '../../src/targets/iet.js'
import {type AccountDirection, call, IetControl, request} from '../../src/targets/iet-control.js'
import {identityOf} from '../../src/targets/iet-foreign.js'
import type {ExportSpec} from '../../src/types.js'
import {temporaryDirectory, until} from '../contract/targets.js'
import {lunpath} from '../fixtures/cli.js'
import {startIetNode} from '../fixtures/iet-node.js'
import {openAsIet} from '../fixtures/portals.js'
import {scrape} from '../fixtures/scrape.js'
import {startTgtd} from '../fixtures/tgtd-by-hand.js'
import {Iet, ietPrograms} from '../lab/iet.js'
import {insideLab, lab} from '../lab/lab.js'

/**
 * Targets of others that become lunpath's. The double of IET has no data path: where ids have to be read, a real tgtd, whose
 * page 0x83 is rewritten to IET's on the way, serves at the portal that the double's ietd would have.
 */

const mebibyte = 2 ** 20
const initiator = 'iqn.2026-01.io.lunpath.test:initiator'
const disk = (name: string) => `iqn.2001-04.com.example:${name}`
const nobodysRules = {addresses: [], names: []}
const patient = {timeoutMs: 10_000}

lab.options({deadlineMs: 400_000})

test.before('the double is compiled', async () => {
  if (!insideLab) await ietPrograms()
})

// ---- ids ----

const header = (page: number, data: Buffer) =>
  Buffer.concat([Buffer.from([0, page, data.length >> 8, data.length & 255]), data])
const serialPage = (text: string) => header(0x80, Buffer.from(text, 'latin1'))
const designator = (association: number, type: number, data: Buffer) =>
  Buffer.concat([Buffer.from([1, (association << 4) | type, 0, data.length]), data])
const vendorId = (id: Buffer | string, vendor = 'IET\0\0\0\0\0') =>
  designator(0, 1, Buffer.concat([Buffer.from(vendor), Buffer.concat([Buffer.from(id), Buffer.alloc(16)], 16)]))
const idPage = (...designators: Buffer[]) => header(0x83, Buffer.concat(designators))
const madeOfName = (iqn: string, lun: number) =>
  createHash('md5')
    .update(iqn)
    .update(Buffer.from([lun, 0, 0, 0]))
    .digest()

test('01 ids are read as IET was given them, and those that it makes of the name are told apart', t => {
  const target = {iqn: disk('a'), lun: 3}
  const read = (serial: string, ...designators: Buffer[]) =>
    identityOf(target, {serial: serialPage(serial), identification: idPage(...designators)})
  t.deepEqual(read('0123456789abcdef', vendorId('0123456789abcdef')), {
    scsiId: '0123456789abcdef',
    scsiSn: '0123456789abcdef',
  })
  t.deepEqual(read('sn-1\0\0', vendorId('short')), {scsiId: 'short', scsiSn: 'sn-1'})
  t.deepEqual(read('   padded', vendorId('A=b', 'IET     ')), {scsiId: 'A=b', scsiSn: 'padded'})
  const made = madeOfName(target.iqn, target.lun)
  t.deepEqual(read(made.toString('hex'), vendorId(made)), {scsiId: null, scsiSn: made.toString('hex')})
  const others = [designator(1, 1, Buffer.from('IET\0\0\0\0\0of the port')), designator(0, 3, Buffer.alloc(16, 0x60))]
  t.is(read('x', ...others, vendorId('short')).scsiId, 'short')
})

test('02 ids that no argument of IET’s could give again are refused', t => {
  const target = {iqn: disk('a'), lun: 0}
  const good = idPage(vendorId('0123456789abcdef'))
  for (const [what, serial, identification] of [
    ['of another LUN', serialPage('a'), idPage(vendorId(madeOfName(target.iqn, 1)))],
    ['with a comma', serialPage('a'), idPage(vendorId('a,b'))],
    ['of another vendor', serialPage('a'), idPage(vendorId('abc', 'LIO-ORG\0'))],
    ['of another length', serialPage('a'), idPage(designator(0, 1, Buffer.from('IET\0\0\0\0\0abc')))],
    ['twice', serialPage('a'), idPage(vendorId('a'), vendorId('b'))],
    ['of a port', serialPage('a'), idPage(designator(1, 1, Buffer.alloc(24)))],
    ['none', serialPage('a'), idPage()],
    ['cut off', serialPage('a'), good.subarray(0, 20)],
    ['empty', serialPage('a'), Buffer.alloc(0)],
    ['zeros', serialPage('a'), idPage(vendorId(''))],
    ['no serial', serialPage(''), good],
    ['a serial with a comma', serialPage('a,b'), good],
    ['a serial with a blank', serialPage('a b'), good],
    ['a serial of 33 bytes', serialPage('x'.repeat(33)), good],
    ['a serial with a control character', serialPage('a\nb'), good],
    ['no page of a serial', Buffer.alloc(2), good],
  ] as const) {
    t.throws(() => identityOf(target, {serial, identification}), {code: 'UNSUPPORTED'}, what)
  }
})

test('03 whatever a target answers, the ids are such that IET takes them, or it is an error', t => {
  for (let round = 0; round < 20_000; round++) {
    const bytes = Buffer.from(Array.from({length: round % 64}, () => Math.floor(Math.random() * 256)))
    const identification = round % 2 === 0 ? bytes : Buffer.concat([idPage(vendorId(bytes.subarray(0, 16))), bytes])
    try {
      const {scsiId, scsiSn} = identityOf({iqn: disk('a'), lun: 0}, {serial: serialPage('abc'), identification})
      t.regex(`${scsiId}`, /^[!-+\--~]{1,16}$/)
      t.is(scsiSn, 'abc')
    } catch (error) {
      t.is((error as {code: string}).code, 'UNSUPPORTED')
    }
  }
})

// ---- the double ----

interface Foreign {
  iqn: string
  path?: string
  lun?: number
  more?: string
  type?: string
  auth?: ExportSpec['auth']
  tid?: number
}

/** As ietadm would. */
async function make({iqn, path = '', lun = 0, more = '', type = 'fileio', auth, tid: asked = 0}: Foreign) {
  const control = new IetControl()
  const {answers} = await control.exchange([[request.newTarget(asked, iqn)]], patient)
  const tid = answers[0]![0]!.tid || asked
  const accounts = Object.entries(auth ?? {}).map(([direction, {user, secret}]) => {
    return [request.newAccount(tid, direction as AccountDirection, user, secret)]
  })
  const where = path === '' ? '' : `,Path=${path}`
  await control.exchange([...accounts, [call.addVolume(tid, lun, `Type=${type}${more}${where}`).instead!]], patient)
  control.close()
  return tid
}

async function image(directory: string, name: string, bytes = 4 * mebibyte): Promise<string> {
  const path = join(directory, name)
  const file = await open(path, 'wx')
  await file.truncate(bytes)
  await file.close()
  return path
}

async function setUp(t: ExecutionContext, {configuration}: {configuration?: string} = {}) {
  const directory = await temporaryDirectory(t)
  const iet = await Iet.start({configuration})
  t.teardown(() => iet.stop())
  const begin = async () => {
    const driver = new IetDriver({
      portals: [],
      procDirectory: iet.procDir,
      accessDirectories: [iet.configDir],
      keepOnClose: true,
    })
    t.teardown(() => driver.close())
    await driver.open()
    return driver
  }
  const allowFile = join(iet.configDir, 'initiators.allow')
  return {directory, iet, begin, allowFile}
}

/** What initiators would see, and what they were promised. */
async function worth(iet: Iet) {
  const {targets} = await iet.moduleState()
  return targets
    .map(({tid, name, volumes, sessionParams, targetParams}) => ({tid, name, volumes, sessionParams, targetParams}))
    .sort((a, b) => a.tid - b.tid)
}

/** The spec of a foreign target, as the daemon makes it. The double's own word stands for what an initiator would read. */
async function specOf(driver: IetDriver, iet: Iet, iqn: string, id: string, auth?: ExportSpec['auth']) {
  const target = (await driver.foreign()).find(one => one.iqn === iqn)!
  const {volume, writeCache, readOnly, lun, ioType, blockSizeBytes} = target.unit!
  const {scsiId, scsiSn} = (await iet.moduleState()).targets.find(({name}) => name === iqn)!.volumes[0]!
  const ids = identityOf(
    {iqn, lun},
    {serial: serialPage(scsiSn), identification: idPage(vendorId(Buffer.from(scsiId, 'hex')))},
  )
  const spec: ExportSpec = {
    ...{iqn, writeCache, readOnly, access: nobodysRules, volume: {...volume, id}},
    ...{parameters: target.parameters, tid: target.tid, taken: {lun, ioType, blockSizeBytes, wwid: 't10', ...ids}},
    ...(auth && {auth}),
  }
  return spec
}

function back(driver: IetDriver): Promise<Record<string, unknown>> {
  let tell: (facts: Record<string, unknown>) => void
  const told = new Promise<Record<string, unknown>>(resolve => {
    tell = resolve
  })
  driver.on('restarted', facts => tell(facts))
  return told
}

const auth = {incoming: {user: 'guest', secret: 'a-good-secret-01'}, outgoing: {user: 'us', secret: 'another-secret-2'}}

async function threeTargets(directory: string) {
  const made = [
    {iqn: disk('plain'), path: await image(directory, 'plain'), lun: 0},
    {
      iqn: disk('named'),
      path: await image(directory, 'named'),
      lun: 5,
      more: ',ScsiId=abc,ScsiSN=sn-5,IOMode=wb',
      tid: 9,
    },
    {iqn: disk('ro'), path: await image(directory, 'ro'), lun: 1, more: ',IOMode=ro,BlockSize=4096', auth},
  ]
  for (const one of made) await make(one)
  return made
}

lab('foreign() shows what can be taken over, and why the rest cannot; it changes nothing', async t => {
  const {directory, iet, begin} = await setUp(t)
  await threeTargets(directory)
  const path = await image(directory, 'more')
  await make({iqn: disk('empty'), type: 'none'})
  await make({iqn: disk('null'), type: 'nullio'})
  const tid = await make({iqn: disk('two'), path})
  const control = new IetControl()
  await control.exchange([[call.addVolume(tid, 1, `Type=fileio,Path=${path}`).instead!]], patient)
  control.close()
  const grown = await image(directory, 'grown')
  await make({iqn: disk('grown'), path: grown})
  await truncate(grown, 8 * mebibyte)
  const driver = await begin()
  await driver.restore([])
  const before = await worth(iet)
  const found = new Map((await driver.foreign()).map(target => [target.iqn.replace(/.*:/, ''), target]))
  const why = Object.fromEntries([...found].map(([name, {refused}]) => [name, refused]))
  t.deepEqual([why.plain, why.named, why.ro], [null, null, null])
  t.regex(why.empty!, /no logical unit/)
  t.regex(why.null!, /nullio/)
  t.regex(why.two!, /2 logical units/)
  t.regex(why.grown!, /has 8388608 bytes/)
  t.like(found.get('named'), {
    tid: 9,
    unit: {lun: 5, ioType: 'fileio', blockSizeBytes: 512, writeCache: 'back', readOnly: false},
  })
  t.like(found.get('ro'), {
    accounts: {incoming: ['guest'], outgoing: ['us']},
    unit: {readOnly: true, blockSizeBytes: 4096},
  })
  t.deepEqual(await worth(iet), before)
})

for (const [what, end] of [
  ['a restart of ietd', (iet: Iet) => iet.restartDaemon()],
  ['a wipe', (iet: Iet) => iet.wipe()],
] as const) {
  lab(
    `taken over, targets are untouched, and back after ${what} with the same ids, numbers and parameters`,
    async t => {
      const {directory, iet, begin, allowFile} = await setUp(t)
      const rules = `${disk('plain')} ${initiator.replaceAll('.', '\\.')}\nALL 192.0.2.0/24\n`
      await writeFile(allowFile, rules)
      const made = await threeTargets(directory)
      const driver = await begin()
      const awake = setInterval(() => undefined, 1_000)
      t.teardown(() => clearInterval(awake))
      await driver.restore([])
      const {tid} = (await driver.list()).find(({iqn}) => iqn === disk('plain'))!
      await iet.addSession(tid, {sid: 7n, initiator})
      const control = new IetControl()
      t.teardown(async () => control.close())
      const burst = new Map([['MaxBurstLength', 65_536]])
      await control.call([[call.setParameters(tid, 0n, 'session', burst)]], patient)

      const before = await worth(iet)
      const {calls, requests} = {...(await iet.moduleState()), ...(await iet.daemonState())}
      const ids = made.map((_, index) => `${index}`.repeat(16))
      for (const [index, {iqn}] of made.entries()) {
        const spec = await specOf(driver, iet, iqn, ids[index]!, iqn === disk('ro') ? auth : undefined)
        const exported = await driver.export(spec)
        t.like(exported, {
          iqn,
          lun: made[index]!.lun,
          tid: before.find(({name}) => name === iqn)!.tid,
          volumeId: ids[index],
        })
      }
      t.deepEqual(await worth(iet), before)
      t.is((await driver.sessions()).length, 1)
      const after = {...(await iet.moduleState()), ...(await iet.daemonState())}
      for (const name of ['ADD_VOLUME', 'DEL_VOLUME', 'DEL_SESSION', 'ADD_TARGET', 'DEL_TARGET']) {
        t.is(after.calls[name], calls[name], name)
      }
      for (const command of ['0', '1', '6', '10', '17', '18']) t.is(after.requests[command], requests[command], command)
      t.is(await readFile(allowFile, 'utf8'), rules)
      t.like(await driver.get(disk('plain')), {access: {addresses: [], names: [initiator]}, luns: [{online: true}]})

      const returned = back(driver)
      await end(iet)
      t.like(await returned, {exports: 3, failed: []})
      t.deepEqual(await worth(iet), before)
      t.is(await readFile(allowFile, 'utf8'), rules, 'others’ rules decide again')
      const login = async (iqn: string, who: Parameters<Iet['login']>[1]) => (await iet.login(iqn, who)).status
      t.is(await login(disk('plain'), {initiator}), 'ok')
      t.is(await login(disk('plain'), {initiator: `${initiator}x`}), 'denied')
      t.is(await login(disk('ro'), {initiator, address: '192.0.2.1', ...auth.incoming}), 'ok')
      t.is(await login(disk('ro'), {initiator, address: '192.0.2.1'}), '0x0201')

      const spec = await specOf(driver, iet, disk('plain'), ids[0]!).catch(() => undefined)
      t.is(spec, undefined, 'it is no foreign target any more')
      await driver.unexport(disk('plain'))
      await driver.unexport(disk('named'), {force: true})
      t.deepEqual(await worth(iet), before, 'forgotten, not removed')
      t.deepEqual((await driver.foreign()).map(({iqn}) => iqn).sort(), [disk('named'), disk('plain')])
    },
  )
}

lab('a target of ietd.conf comes back by ietd itself: lunpath lets it be, and knows its number', async t => {
  const directory = await temporaryDirectory(t)
  const path = await image(directory, 'conf')
  const configuration = `Target ${disk('conf')}\n\tLun 0 Path=${path},Type=fileio\n`
  const {iet, begin} = await setUp(t, {configuration})
  await make({iqn: disk('first'), path: await image(directory, 'first')})
  const driver = await begin()
  const awake = setInterval(() => undefined, 1_000)
  t.teardown(() => clearInterval(awake))
  await driver.restore([])
  await driver.export(await specOf(driver, iet, disk('conf'), '1'.repeat(16)))
  await driver.export(await specOf(driver, iet, disk('first'), '2'.repeat(16)))
  const before = await worth(iet)
  const returned = back(driver)
  await iet.restartDaemon()
  t.like(await returned, {exports: 2, failed: []})
  t.deepEqual(await worth(iet), before)
  // Somebody changes ietd.conf: then it is another unit, and nobody here touches it.
  const other = await image(directory, 'other', mebibyte)
  await writeFile(join(iet.configDir, 'ietd.conf'), configuration.replace(path, other))
  const again = back(driver)
  await iet.restartDaemon()
  const facts = (await again) as unknown as {exports: number; failed: {iqn: string; code: string}[]}
  t.is(facts.exports, 1)
  t.like(facts.failed[0], {iqn: disk('conf'), code: 'TARGET_EXISTS'})
  t.is((await worth(iet)).find(({name}) => name === disk('conf'))?.volumes[0]?.path, other)
})

lab('the next driver knows what was taken over, also where ietd and all its targets have gone meanwhile', async t => {
  const {directory, iet, begin} = await setUp(t)
  const made = await threeTargets(directory)
  const first = await begin()
  await first.restore([])
  const specs: ExportSpec[] = []
  for (const [index, {iqn}] of made.entries()) {
    specs.push(await specOf(first, iet, iqn, `${index}`.repeat(16), iqn === disk('ro') ? auth : undefined))
  }
  for (const spec of specs) await first.export(spec)
  const before = await worth(iet)
  await first.close()
  for (const end of [() => iet.restartDaemon(), () => iet.wipe()]) {
    await end()
    t.deepEqual(await worth(iet), [])
    const next = await begin()
    await next.restore(specs)
    t.deepEqual(await worth(iet), before)
    await next.close()
  }
  const last = await begin()
  await t.throwsAsync(last.resize(specs[0]!), {code: 'UNSUPPORTED'})
})

// ---- the daemon, with a tgtd at its portal ----

lab(
  'import iet: the ids come by INQUIRY, the rest from IET; then shown, counted, put back, and never removed',
  async t => {
    const {directory, iet, allowFile} = await setUp(t)
    const {node, cli} = await startIetNode(t, iet)
    // What the double lacks: the same units, by a tgtd that gives IET's ids, at the portal that ietd would have.
    const tgtd = await startTgtd()
    t.teardown(() => tgtd.stop())
    const idsOf = new Map([
      [disk('plain'), Buffer.from('the-id-of-plain\0')],
      [disk('secured'), madeOfName(disk('secured'), 1)],
      [disk('smaller'), Buffer.alloc(16, 'x')],
    ])
    const listen = Number(node.portal.split(':')[1])
    const portal = await openAsIet({port: tgtd.port, listen}, iqn => idsOf.get(iqn))
    t.teardown(() => portal.close())
    const serve = async (tid: number, iqn: string, path: string, serial: string, chap?: ExportSpec['auth']) => {
      await tgtd.adm('--mode', 'target', '--op', 'new', '--tid', `${tid}`, '-T', iqn)
      const unit = ['--mode', 'logicalunit', '--tid', `${tid}`, '--lun', '1']
      await tgtd.adm(...unit, '--op', 'new', '-b', path)
      await tgtd.adm(...unit, '--op', 'update', '--params', `scsi_sn=${serial}`)
      for (const [kind, {user, secret}] of Object.entries(chap ?? {})) {
        const account = ['--mode', 'account', '--user', user]
        await tgtd.adm(...account, '--op', 'new', '--password', secret)
        await tgtd.adm(...account, '--op', 'bind', '--tid', `${tid}`, ...(kind === 'outgoing' ? ['--outgoing'] : []))
      }
      await tgtd.adm('--mode', 'target', '--op', 'bind', '--tid', `${tid}`, '-I', 'ALL')
    }
    const [plain, secured, hidden, smaller] = await Promise.all(
      ['plain', 'secured', 'hidden', 'smaller'].map(name => image(directory, name)),
    )
    const given = ',ScsiId=the-id-of-plain,ScsiSN=sn-plain'
    const tid = await make({iqn: disk('plain'), path: plain, lun: 1, more: given, tid: 4})
    const serial = madeOfName(disk('secured'), 1).toString('hex')
    await make({iqn: disk('secured'), path: secured, lun: 1, auth})
    await make({iqn: disk('hidden'), path: hidden, lun: 1})
    await make({iqn: disk('smaller'), path: smaller, lun: 1})
    await make({iqn: disk('null'), type: 'nullio'})
    const known = await image(directory, 'known')
    t.is((await cli('volume', 'import', known)).exitCode, 0)
    await symlink(known, join(directory, 'alias'))
    await make({iqn: disk('alias'), path: join(directory, 'alias')})
    await serve(1, disk('plain'), plain!, 'sn-plain')
    await serve(2, disk('secured'), secured!, serial, auth)
    await serve(3, disk('smaller'), await image(directory, 'half', 2 * mebibyte), 'sn-smaller')
    await iet.addSession(tid, {sid: 7n, initiator})
    const before = await worth(iet)

    const dry = await cli('import', 'iet', '--dry-run')
    t.is(dry.exitCode, 1)
    const seen = dry.answer as ImportedTargets
    t.deepEqual(
      seen.taken.map(({iqn, lun, serial, volumeId, sessions}) => ({iqn, lun, serial, volumeId, sessions})),
      [{iqn: disk('plain'), lun: 1, serial: 'sn-plain', volumeId: null, sessions: 1}],
    )
    const why = Object.fromEntries(
      seen.refused.map(({iqn, code, message}) => [iqn.replace(/.*:/, ''), `${code} ${message}`]),
    )
    t.deepEqual(Object.keys(why).sort(), ['alias', 'hidden', 'null', 'secured', 'smaller'])
    t.regex(why.alias!, /^VOLUME_EXISTS .* is the volume [0-9a-f]{16} already/)
    t.regex(why.hidden!, /^INITIATOR_FAILED .*not found/)
    t.regex(why.null!, /^UNSUPPORTED .*nullio/)
    t.regex(why.secured!, /^UNSUPPORTED .*CHAP, users guest, us \(outgoing\).*--chap-file/)
    t.regex(why.smaller!, /^UNSUPPORTED .*2097152 bytes/)
    t.deepEqual((await cli('export', 'list')).answer, [])

    const done = await cli('import', 'iet', disk('plain'))
    t.is(done.exitCode, 0, done.stderr)
    const [taken] = (done.answer as ImportedTargets).taken
    t.like(taken, {iqn: disk('plain'), tid: 4, path: plain, wwid: 't10.IET\\0\\0\\0\\0\\0the-id-of-plain\\0'})
    const chapFile = join(directory, 'chap')
    const wrong = {...auth, incoming: {...auth.incoming, secret: 'not-the-secret-1'}}
    const chap = ({incoming, outgoing}: typeof auth) =>
      `user=${incoming.user}\nsecret=${incoming.secret}\ntarget-user=${outgoing.user}\ntarget-secret=${outgoing.secret}\n`
    await writeFile(chapFile, chap(wrong))
    const refused = await cli('import', 'iet', disk('secured'), '--chap-file', chapFile)
    t.is((refused.answer as ImportedTargets).refused[0]?.code, 'AUTH_FAILED')
    await writeFile(chapFile, chap(auth))
    const human = await lunpath(['import', 'iet', disk('secured'), disk('absent'), '--chap-file', chapFile], {
      env: {LUNPATH_SOCKET: node.socket},
    })
    t.is(human.exitCode, 1)
    t.regex(human.stdout, new RegExp(`${disk('secured')} .* ${serial} +${secured}`))
    t.regex(human.stderr, /no target .*absent/)
    t.is((await cli('import', 'iet', disk('plain'))).answer.refused[0].code, 'EXPORT_EXISTS')
    t.deepEqual(await worth(iet), before)
    t.is((await cli('session', 'list')).answer.length, 1)
    await t.throwsAsync(stat(allowFile), {code: 'ENOENT'}, 'there was none')

    t.like((await cli('target', 'show', disk('plain'))).answer, {tid: 4, luns: [{serial: 'sn-plain', path: plain}]})
    const {wwid} = taken!
    t.like((await cli('export', 'list')).answer[0], {iqn: disk('plain'), serial: 'sn-plain', wwid, lun: 1})
    const shown = await lunpath(['export', 'list'], {env: {LUNPATH_SOCKET: node.socket}})
    t.regex(shown.stdout, new RegExp(`${disk('plain')} +1 .* initiators\\.allow +no`))
    t.regex(shown.stdout, new RegExp(`${disk('secured')} +1 .* initiators\\.allow +yes`))
    t.like((await cli('volume', 'list')).answer[1], {
      id: taken!.volumeId,
      imported: true,
      path: plain,
      iqn: disk('plain'),
    })
    const {samples} = await scrape(node.metricsPort)
    t.deepEqual(
      samples
        .filter(({name}) => name === 'iscsi_lun_info')
        .map(({labels}) => [labels.target, labels.path])
        .sort(),
      [
        [disk('plain'), plain],
        [disk('secured'), secured],
      ],
    )
    const initiators = new LibiscsiInitiator()
    const found = await initiators.probe(
      {portal: portal.portal, iqn: disk('plain'), lun: 1, initiatorName: initiator},
      {wwid, serial: 'sn-plain', sizeBytes: 4 * mebibyte},
    )
    t.is(found.serial, 'sn-plain')

    let isBack = false
    node.daemon.operations.rooms.targets.on('restarted', () => {
      isBack = true
    })
    await iet.restartDaemon()
    await until(async () => isBack)
    const own = (name: string) => name === disk('plain') || name === disk('secured')
    const kept = before.filter(({name}) => own(name))
    t.deepEqual(await worth(iet), kept)
    // Both at once; the portal would be ietd's again.
    await portal.close()
    await tgtd.stop()
    await node.stopDaemon()
    await iet.restartDaemon()
    await node.start()
    t.deepEqual(await worth(iet), kept)
    t.is((await iet.login(disk('secured'), {initiator, ...auth.incoming})).status, 'ok')
    t.is((await iet.login(disk('secured'), {initiator})).status, '0x0201')

    t.is((await cli('volume', 'extend', taken!.volumeId!, '--size', '8MiB')).answer.error.code, 'VOLUME_IMPORTED')
    t.is((await cli('volume', 'delete', taken!.volumeId!)).answer.error.code, 'VOLUME_IN_USE')
    t.is((await cli('export', 'delete', disk('plain'))).exitCode, 0)
    t.is((await cli('volume', 'delete', taken!.volumeId!)).exitCode, 0)
    t.deepEqual(await worth(iet), kept, 'it is only forgotten')
    t.is((await stat(plain!)).size, 4 * mebibyte)
  },
)
