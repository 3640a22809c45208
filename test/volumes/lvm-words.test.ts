// What the LVM driver reads and writes, without LVM: words, reports, tags, device-mapper's names, sums.
import {mkdtemp, open, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import test from 'ava'
import {settleConfig} from '../../src/config.js'
import {StorageError} from '../../src/errors.js'
import {signatureOf} from '../../src/signatures.js'
import {type MappedDevice, mappedName, orphanedDevices, suspendedVolumes} from '../../src/volumes/device-mapper.js'
import {Ledger} from '../../src/volumes/ledger.js'
import {ownConfiguration, reading} from '../../src/volumes/lvm-config.js'
import {isOurName, readGroup, readVolume} from '../../src/volumes/lvm-facts.js'
import {checkLvmName, shellLine} from '../../src/volumes/lvm-grammar.js'
import {hostFilters} from '../../src/volumes/lvm-host-filter.js'
import {LvmDocuments, lvmFailure, parseLvmDocument} from '../../src/volumes/lvm-report.js'

test('a line for the shell holds plain words alone, and answers questions by itself', t => {
  t.is(shellLine(['lvcreate', '--size', '4b', 'vg/0123']), 'lvcreate --yes --size 4b vg/0123')
  for (const word of ['', 'a b', "a'b", 'a"b', 'a\nvgremove', 'a\\b', '#', 'a;b', 'ä', 'a$b']) {
    t.throws(() => shellLine(['lvs', word]), {instanceOf: TypeError}, JSON.stringify(word))
  }
  t.throws(() => shellLine(['!sh']), {instanceOf: TypeError})
  t.throws(() => shellLine([]), {instanceOf: TypeError})
  t.throws(() => shellLine(['lvs', ...Array<string>(63).fill('x')]), {instanceOf: TypeError})
})

test('names of groups and thin pools follow lvm(8)', t => {
  for (const name of ['vg0', 'ubuntu-vg', 'a.b+c_d', '0']) t.is(checkLvmName(name, 'volume group'), name)
  for (const name of ['', '-a', '.', '..', 'a/b', 'a b', 'a\n', 'x'.repeat(64), 'vg@']) {
    t.throws(() => checkLvmName(name, 'volume group'), {instanceOf: StorageError}, JSON.stringify(name))
  }
})

const status = (code: number) =>
  `{"log_seq_num":"1", "log_type":"status", "log_context":"shell", "log_object_type":"cmd", "log_object_name":"lvs", "log_message":"x", "log_errno":"0", "log_ret_code":"${code}"}`
const document = (log: string, report = '') => `  {\n${report}      "log": [\n          ${log}\n      ]\n  }\n`

test('documents are cut at their own closing brace, however the pieces fall', t => {
  const report =
    '      "report": [\n          {\n              "lv": [\n                  {"lv_name":"a"}\n              ]\n          }\n      ]\n      ,\n'
  const first = document(status(1), report)
  const second = document(status(5))
  for (const size of [1, 7, 64, 10_000]) {
    const documents = new LvmDocuments()
    const found: string[] = []
    const all = first + second
    for (let start = 0; start < all.length; start += size) found.push(...documents.add(all.slice(start, start + size)))
    t.deepEqual(found, [first, second], String(size))
  }
  t.like(parseLvmDocument(first), {code: 1, rows: [{lv_name: 'a'}]})
})

test('an answer says what failed; a report without an end is no success', t => {
  const error = '{"log_type":"error", "log_object_type":"vg", "log_message":"no\troom"},\n'
  const reply = parseLvmDocument(document(error + status(5)))
  t.deepEqual(reply, {code: 5, rows: [], errors: ['no room'], warnings: []})
  t.like(lvmFailure(['lvcreate', 'x'], reply), {code: 'COMMAND_FAILED', message: 'lvcreate: no room'})
  t.is(parseLvmDocument('  {\n      "log": [\n      ]\n  }\n').code, -1)
  t.is(parseLvmDocument('{"report":[{"vg":[]}],"log":[]}', 0).code, 1)
  t.is(parseLvmDocument('{"log":[]}', 5).code, 5)
  t.throws(() => parseLvmDocument('WARNING: no JSON'), {code: 'COMMAND_FAILED'})
})

test('tags alone say what a volume is to us', t => {
  const read = (lv_tags: string, rest = {}) =>
    readVolume({
      lv_name: 'x',
      lv_uuid: 'u',
      lv_size: '4194304',
      lv_tags,
      lv_layout: 'linear',
      lv_role: 'public',
      ...rest,
    })
  const id = '0123456789abcdef'
  t.like(read(`lunpath:id=${id},lunpath:made=01234567`), {role: 'id', id, made: '01234567', thin: false})
  t.like(read(`backup,lunpath:deleted=${id}`), {role: 'deleted', id})
  for (const tags of [
    '',
    'lunpath:id=short',
    `lunpath:id=${id},lunpath:deleted=${id}`,
    `lunpath:ID=${id}`,
    `xlunpath:id=${id}`,
  ]) {
    t.is(read(tags).role, undefined, tags)
  }
  t.true(read('', {lv_layout: 'thin,sparse', lv_role: 'public,origin,thinorigin'}).thin)
  t.false(read('', {lv_role: 'public,origin,thinorigin'}).hasSnapshots)
  t.true(read('', {lv_role: 'public,origin'}).hasSnapshots)
  for (const name of [id, `lunpath-deleted-${id}-01234567`, `lunpath-making-${id}-01234567`]) t.true(isOurName(name))
  for (const name of ['root', `${id}0`, `lunpath-id-${id}-01234567`, `a-lunpath-making-${id}-01234567`])
    t.false(isOurName(name))
})

test('a group that others write to, or nobody may, is not fit', t => {
  const row = {
    vg_name: 'vg',
    vg_size: '8',
    vg_free: '4',
    vg_extent_size: '4',
    vg_missing_pv_count: '0',
    vg_permissions: 'writeable',
  }
  t.is(readGroup(row).unfit, undefined)
  t.regex(readGroup({...row, vg_exported: 'exported'}).unfit!, /vgimport/)
  t.regex(readGroup({...row, vg_permissions: 'read-only'}).unfit!, /read-only/)
  t.regex(readGroup({...row, vg_shared: 'shared'}).unfit!, /several hosts/)
})

test('a tag alone says whether a group is ours, and a half-made or half-removed one is not fit', t => {
  const read = (vg_tags: string) => readGroup({vg_name: 'vg', vg_tags})
  t.like(read('backup,lunpath:group=made'), {role: 'made', unfit: undefined})
  t.is(read('lunpath:group=making').role, 'making')
  t.regex(read('lunpath:group=making').unfit!, /run the same command again/)
  t.is(read('lunpath:group=deleted').role, 'deleted')
  t.regex(read('lunpath:group=deleted').unfit!, /run it again/)
  for (const tags of ['', 'lunpath:group=mine', 'xlunpath:group=made', 'lunpath:group=made,lunpath:group=deleted']) {
    t.is(read(tags).role, undefined, tags)
  }
})

const groupUuid = '4y527f-YJsZ-Tn8C-IDrP-Bceq-r2H3-lTEqMc'
const uuidOf = (letter: string) => `LVM-${groupUuid.replaceAll('-', '')}${letter.repeat(32)}`
const device = (name: string, uuid: string, suspended = false): MappedDevice => ({
  name,
  uuid,
  suspended,
  number: '253:0',
})
const id = '0123456789abcdef'
const known = [{name: id, uuid: 'aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa'}]

test('orphans are devices of our group and our names that no metadata knows, layers last', t => {
  const of = (...devices: MappedDevice[]) =>
    orphanedDevices(devices, {group: 'my-vg', groupUuid, known, isOurs: isOurName}).map(({name}) => name)
  t.is(mappedName('my-vg', 'a-b'), 'my--vg-a--b')
  const name = mappedName('my-vg', id)
  t.deepEqual(of(device(name, uuidOf('a'))), [], 'known')
  t.deepEqual(of(device(`${name}-real`, `${uuidOf('b')}-real`), device(name, uuidOf('b'))), [name, `${name}-real`])
  t.deepEqual(of(device(mappedName('my-vg', `lunpath-making-${id}-01234567`), uuidOf('b'))).length, 1)
  t.deepEqual(of(device('my--vg-database', uuidOf('b'))), [], 'a name of others')
  t.deepEqual(of(device(`my-vg-${id}`, uuidOf('b'))), [], 'another group by name')
  t.deepEqual(of(device(name, `LVM-${'z'.repeat(32)}${'b'.repeat(32)}`)), [], 'another group by UUID')
  t.deepEqual(of(device(name, 'mpath-3600'), device(name, '')), [], 'not of LVM')
})

test('suspended volumes are told by UUID, their layers included', t => {
  const of = (...devices: MappedDevice[]) => suspendedVolumes(devices, {groupUuid, known})
  t.deepEqual(of(device('any', `${uuidOf('a')}-real`, true), device('any', uuidOf('a'), true)), [id])
  t.deepEqual(of(device('any', uuidOf('a')), device('any', uuidOf('b'), true)), [])
})

test('sums count what is there and what is to come, each volume once', async t => {
  const ledger = new Ledger()
  ledger.entries.set('a', {sizeBytes: 10, thin: true})
  ledger.entries.set('b', {sizeBytes: 5, thin: false})
  t.is(ledger.sum(), 15)
  t.is(ledger.sum({thin: true}), 10)
  t.is(ledger.sum({with: ['c', {sizeBytes: 7, thin: true}], thin: true}), 17)
  t.is(ledger.sum({with: ['a', {sizeBytes: 12, thin: true}]}), 17, 'a growth counts by what it adds')
  await ledger.reserve('a', {sizeBytes: 30, thin: true}, async () => {
    t.is(ledger.sum(), 35)
    t.is(ledger.sum({settled: true}), 15)
    ledger.entries.set('a', {sizeBytes: 30, thin: true})
    t.is(ledger.sum(), 35)
  })
  await t.throwsAsync(ledger.reserve('c', {sizeBytes: 1, thin: false}, () => Promise.reject(new Error('no'))))
  t.is(ledger.sum(), 35)
})

test('our configuration follows the daemons that run', t => {
  t.regex(ownConfiguration({udevd: false, dmeventd: false}), /monitoring=0[\s\S]*udev_sync=0/)
  t.notRegex(ownConfiguration({udevd: true, dmeventd: true}), /monitoring|udev_sync/)
  t.regex(reading({rotational: 2}), /use_aio=0/)
  t.notRegex(reading({rotational: 3}), /use_aio/, 'as the host has it')
})

test('the host’s filters are read as LVM reads them: the first pattern decides for a name, any accepted name for a device', t => {
  const passes = (filter: string, ...names: string[]) =>
    hostFilters(`devices {\n\tfilter=${filter}\n}\n`).get('filter')!(names)
  t.deepEqual(
    [...hostFilters('devices {\n\tfilter="r|x|"\n\tglobal_filter=["a|.*|"]\n}\n').keys()],
    ['filter', 'global_filter'],
  )
  t.deepEqual([...hostFilters('devices {\n}\n').keys()], [])
  const cases: [filter: string, names: string[], passes: boolean][] = [
    ['["r|loop|"]', ['/dev/loop0'], false],
    ['["r|loop|"]', ['/dev/sda'], true],
    ['"r|.*|"', ['/dev/sda'], false],
    ['["a|^/dev/sda$|","r|.*|"]', ['/dev/sda'], true],
    ['["a|^/dev/sda$|","r|.*|"]', ['/dev/sdab'], false],
    ['["r|.*|","a|^/dev/sda$|"]', ['/dev/sda'], false],
    ['["a|^/dev/disk/by-id/wwn-1$|","r|.*|"]', ['/dev/sda', '/dev/disk/by-id/wwn-1'], true],
    ['["a|^/dev/disk/by-id/wwn-1$|","r|.*|"]', ['/dev/sdb', '/dev/disk/by-id/wwn-11'], false],
    ['["r/disk/","a{.*}"]', ['/dev/sda', '/dev/disk/by-id/x'], true],
    ['["a(sd[a-c])","r[.]"]', ['/dev/sdb'], true],
    ['["a(sd[^a-c]+)","r|.|"]', ['/dev/sdb'], false],
    ['["a|/dev/(sd|vd)a?$|","r|.*|"]', ['/dev/vd'], true],
    ['["a|^/dev/a\\\\.b$|","r|.*|"]', ['/dev/aXb'], false],
    ['["a|^/dev/a\\\\.b$|","r|.*|"]', ['/dev/a.b'], true],
    ['["a|x{2}|","r|.*|"]', ['/dev/xx'], false],
    ['["a|/dev/x**$|","r|.*|"]', ['/dev/xxx'], true],
  ]
  for (const [filter, names, expected] of cases) t.is(passes(filter, ...names), expected, `${filter} ${names}`)
})

test('the configuration names pools in LVM, each once', t => {
  const pools = (lvm: object[]) => settleConfig({volumes: {lvm: lvm as never}}).volumes
  t.deepEqual(settleConfig().volumes.lvm, [])
  t.deepEqual(pools([{group: 'vg0', thinPool: 'thin', wipe: 'discard'}]).lvm, [
    {group: 'vg0', thinPool: 'thin', wipe: 'discard'},
  ])
  const wrong: [object[], RegExp][] = [
    [[{group: 'vg0'}, {group: 'vg1', name: 'vg0'}], /two pools are named vg0/],
    [[{group: 'vg0', name: 'default'}], /two pools are named default/],
    [[{group: 'a/b'}], /no name for a volume group/],
    [[{group: 'vg0', thinPool: '-x'}], /no name for a thin pool/],
    [[{group: 'vg0', wipe: 'shred'}], /volumes\.lvm\.0\.wipe/],
    [[{}], /volumes\.lvm\.0/],
  ]
  for (const [lvm, why] of wrong) t.throws(() => pools(lvm), {message: why})
})

test('libblkid tells what is on a file or device', async t => {
  const directory = await mkdtemp(join(tmpdir(), 'lp-blkid-'))
  t.teardown(() => rm(directory, {recursive: true}))
  const probe = async (content: Buffer) => {
    const path = join(directory, 'image')
    await writeFile(path, content)
    const handle = await open(path, 'r')
    try {
      return await signatureOf(handle.fd)
    } finally {
      await handle.close()
    }
  }
  const empty = () => Buffer.alloc(2 ** 20)
  t.is(await probe(empty()), undefined)
  const swap = empty()
  swap.write('SWAPSPACE2', 4096 - 10)
  swap.writeUInt32LE(1, 1024)
  swap.writeUInt32LE(255, 1028)
  t.deepEqual(await probe(swap), {type: 'swap', usage: 'other'})
  const table = empty()
  table.writeUInt8(0x83, 446 + 4)
  table.writeUInt32LE(64, 446 + 8)
  table.writeUInt32LE(128, 446 + 12)
  table.writeUInt16LE(0xaa55, 510)
  t.deepEqual(await probe(table), {type: 'dos', usage: 'partitions'})
  await t.throwsAsync(signatureOf(-1), {code: 'POOL_UNUSABLE'})
})
