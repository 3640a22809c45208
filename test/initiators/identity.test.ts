import test, {type ExecutionContext} from 'ava'
import {LibiscsiInitiator} from '../../src/initiators/libiscsi.js'
import {openScriptedTarget, type ScriptedAnswer} from '../fixtures/portals.js'

const initiator = new LibiscsiInitiator()
const invalidField = {senseKey: 5, asc: 0x24, ascq: 0}

interface Unit {
  inquiry?: Buffer
  serialPage?: ScriptedAnswer
  designatorPage?: ScriptedAnswer
  capacity16?: ScriptedAnswer
  capacity10?: ScriptedAnswer
}

function standardInquiry(qualifier = 0): Buffer {
  const data = Buffer.alloc(36, ' ')
  data.set([qualifier << 5, 0, 5, 2, 31, 0, 0, 2], 0)
  data.write('VENDOR', 8)
  data.write('PRODUCT', 16)
  return data
}

function vpdPage(code: number, body: Buffer): Buffer {
  const header = Buffer.from([0, code, 0, 0])
  header.writeUInt16BE(body.length, 2)
  return Buffer.concat([header, body])
}

/** One designation descriptor (SPC-4, 7.8.6.1). `association` 0 is the logical unit. */
function designator(type: number, content: Buffer | string, association = 0): Buffer {
  const bytes = Buffer.from(content)
  return Buffer.concat([
    Buffer.from([type === 1 || type === 8 ? 2 : 1, (association << 4) | type, 0, bytes.length]),
    bytes,
  ])
}

function capacity(width: 8 | 4, lastBlock: number, blockBytes: number): Buffer {
  const data = Buffer.alloc(width === 8 ? 32 : 8)
  if (width === 8) data.writeBigUInt64BE(BigInt(lastBlock))
  else data.writeUInt32BE(lastBlock)
  data.writeUInt32BE(blockBytes, width)
  return data
}

async function login(t: ExecutionContext, unit: Unit) {
  const target = await openScriptedTarget(cdb => {
    if (cdb[0] === 0x12 && cdb[1] === 0) return unit.inquiry ?? standardInquiry()
    if (cdb[0] === 0x12 && cdb[2] === 0x80) return unit.serialPage ?? vpdPage(0x80, Buffer.from('   serial '))
    if (cdb[0] === 0x12 && cdb[2] === 0x83) return unit.designatorPage ?? vpdPage(0x83, Buffer.alloc(0))
    if (cdb[0] === 0x9e) return unit.capacity16 ?? capacity(8, 2047, 512)
    if (cdb[0] === 0x25) return unit.capacity10 ?? capacity(4, 2047, 512)
    return Buffer.alloc(0)
  })
  t.teardown(() => target.close())
  const session = await initiator.connect({
    portal: target.portal,
    iqn: 'iqn.2025-01.test.lunpath:scripted',
    lun: 0,
    initiatorName: 'iqn.2025-01.test.lunpath:initiator',
    timeoutMs: 2000,
  })
  await session.close()
  return session.identity
}

const hex = (text: string) => Buffer.from(text, 'hex')
const naa6 = designator(3, hex('600140512345678900000000000000ab'))
const naa5 = designator(3, hex('5001405123456789'))
const eui16 = designator(2, hex('00112233445566778899aabbccddeeff'))
const eui8 = designator(2, hex('0011223344556677'))
const t10 = designator(1, 'IET\0\0\0\0\x000123456789abcdef')

const wwids: [string, Buffer[], string][] = [
  ['NAA registered extended before all but a name', [t10, eui16, naa5, naa6], 'naa.600140512345678900000000000000ab'],
  ['a SCSI name string first', [naa6, designator(8, 'naa.6001405ffff\0')], 'naa.6001405ffff'],
  ['EUI-64 of 16 bytes before NAA registered', [naa5, eui16], 'eui.00112233445566778899aabbccddeeff'],
  ['NAA registered before EUI-64 of 8 bytes', [eui8, naa5], 'naa.5001405123456789'],
  ['T10 last, with its NULs as the kernel writes them', [t10], 't10.IET\\0\\0\\0\\0\\00123456789abcdef'],
  [
    'a designator of a port or a target is none',
    [designator(3, hex('600140500000000000000000000000ff'), 1), eui8],
    'eui.0011223344556677',
  ],
  ['none', [], ''],
]

for (const [what, designators, wwid] of wwids) {
  test(`WWID: ${what}`, async t => {
    t.is((await login(t, {designatorPage: vpdPage(0x83, Buffer.concat(designators))})).wwid, wwid)
  })
}

test('a page 0x83 longer than one byte can say is read whole', async t => {
  const filler = Array.from({length: 20}, () => designator(4, Buffer.alloc(16), 1))
  const page = vpdPage(0x83, Buffer.concat([...filler, naa6]))
  t.is((await login(t, {designatorPage: page})).wwid, 'naa.600140512345678900000000000000ab')
})

test('descriptors that claim more than there is are not read', async t => {
  for (const cut of [1, 3, 4, 5, 19]) {
    const page = vpdPage(0x83, Buffer.concat([eui8, naa6.subarray(0, cut)]))
    t.is((await login(t, {designatorPage: page})).wwid, 'eui.0011223344556677', `${cut} bytes`)
  }
})

test('a unit without serial and designators has an empty identity', async t => {
  const {serial, wwid} = await login(t, {serialPage: invalidField, designatorPage: invalidField})
  t.deepEqual({serial, wwid}, {serial: '', wwid: ''})
})

test('the serial is trimmed, and text from the target is printable', async t => {
  t.is((await login(t, {})).serial, 'serial')
  t.is((await login(t, {serialPage: vpdPage(0x80, Buffer.from('a\x1b[2Jb\xff'))})).serial.includes('\x1b'), false)
})

test('READ CAPACITY (10) where (16) is not known', async t => {
  const {sizeBytes, blockSizeBytes} = await login(t, {capacity16: invalidField, capacity10: capacity(4, 999, 4096)})
  t.deepEqual({sizeBytes, blockSizeBytes}, {sizeBytes: 4_096_000, blockSizeBytes: 4096})
})

test('a block size that is none, and short answers, are errors', async t => {
  for (const blockBytes of [0, 1, 500, 2 ** 31]) {
    await t.throwsAsync(login(t, {capacity16: capacity(8, 9, blockBytes)}), {code: 'INITIATOR_FAILED'})
  }
  await t.throwsAsync(login(t, {capacity16: Buffer.alloc(4)}), {code: 'INITIATOR_FAILED'})
  await t.throwsAsync(login(t, {serialPage: Buffer.alloc(2)}), {code: 'INITIATOR_FAILED'})
  await t.throwsAsync(login(t, {inquiry: Buffer.alloc(1)}), {code: 'INITIATOR_FAILED'})
})

test('a peripheral qualifier says that there is no unit', async t => {
  const error = await t.throwsAsync(login(t, {inquiry: standardInquiry(3)}), {code: 'INITIATOR_FAILED'})
  t.like(error?.cause, {code: 'LUN_NOT_FOUND'})
})
