import test from 'ava'
import {StorageError} from '../src/errors.js'
import {
  checkAddressRule,
  checkForeignName,
  checkIscsiName,
  foldIscsiName,
  formatPortal,
  parseDestination,
  parseOfferedPortal,
  parsePortal,
  parseRemotePortal,
  parseTaggedPortal,
} from '../src/iqn.js'

const refused = {instanceOf: StorageError, code: 'NAME_INVALID'}

test('the names of RFC 7143, 4.2.7 are iSCSI names', t => {
  const names = [
    'iqn.2001-04.com.example:storage:diskarrays-sn-a8675309',
    'iqn.2001-04.com.example',
    'iqn.2001-04.com.example:storage.tape1.sys1.xyz',
    'iqn.2026-01.io.lunpath:0123456789abcdef',
    'iqn.2026-12.a:b',
    'eui.02004567a425678d',
    'naa.52004567ba64678d',
    'naa.62004567ba64678d0123456789abcdef',
    `iqn.2026-01.io.lunpath:${'x'.repeat(200)}`,
  ]
  for (const name of names) t.is(checkIscsiName(name), name)
})

test('what is outside the grammar is NAME_INVALID', t => {
  const names = [
    '',
    'iqn',
    'iqn.',
    'iqn.2026-01',
    'iqn.2026-01.',
    'iqn.2026-13.com.example',
    'iqn.2026-00.com.example',
    'iqn.26-01.com.example',
    'iqn.2026-01.com.example:',
    'iqn.2026-01.com.example:a,b',
    'iqn.2026-01.com.example:a b',
    'iqn.2026-01.com.example:a\n',
    'iqn.2026-01.com.example:a\0',
    'iqn.2026-01.com.example:\u0007',
    'iqn.2026-01.com.example:a..b',
    'iqn.2026-01.com..example:a',
    'iqn.2026-01.-com.example:a',
    'iqn.2026-01.com-.example:a',
    'iqn.2026-01.com.example:../../etc',
    'iqn.2026-01.com.example:a/b',
    'iqn.2026-01.com.example:a_b',
    'iqn.2026-01.com.example:a=b',
    'iqn.2026-01.com.example:ä',
    'IQN.2026-01.com.example:a',
    'iqn.2026-01.com.Example:a',
    ' iqn.2026-01.com.example:a',
    'iqn.2026-01.com.example:a\niqn.2026-01.com.example:b',
    'eui.02004567A425678D',
    'eui.02004567a425678',
    'naa.52004567ba64678',
    'naa.62004567ba64678d0123456789abcde',
    'ALL',
  ]
  for (const name of names) t.throws(() => checkIscsiName(name), refused, JSON.stringify(name))
})

test('a name has at most 223 bytes', t => {
  const prefix = 'iqn.2026-01.io.lunpath:'
  t.is(checkIscsiName(prefix + 'x'.repeat(223 - prefix.length)).length, 223)
  t.throws(() => checkIscsiName(prefix + 'x'.repeat(224 - prefix.length)), refused)
})

test('a name of any length and shape is judged at once', t => {
  t.throws(() => checkIscsiName(`iqn.2026-01.${'a-'.repeat(100_000)}!`), refused)
  t.throws(() => checkIscsiName(`iqn.2026-01.${'a-'.repeat(100)}!`), refused)
})

test('an error quotes a long name in part', t => {
  const error = t.throws<StorageError>(() => checkIscsiName('x'.repeat(10_000)), refused)
  t.true(error!.message.length < 400)
  t.is(String(error!.info.name).length, 256)
})

test('a name of our own is folded, and the rest of the grammar holds', t => {
  t.is(foldIscsiName('IQN.1998-01.com.VMware:ESX1-4f2A'), 'iqn.1998-01.com.vmware:esx1-4f2a')
  for (const name of ['iqn.2026-01.com.example:A_B', 'ALL', 'iqn.2026-01.com.example:Ä'])
    t.throws(() => foldIscsiName(name), refused, name)
})

test('a name that another has made is taken as it is spelled', t => {
  const names = [
    'iqn.2004-04.com.QNAP:TS-453:iscsi.Disk1.AB12CD',
    'IQN.2000-01.com.Synology:NAS.Target-1.0a1b',
    'iqn.nothing-like-a-date:x',
    `iqn.2026-01.com.example:a_b=c+d@e..f%g"h'i`,
    'iqn.2026-01.jp.example:ディスク',
    'EUI.02004567A425678D',
    `iqn.2026-01.com.example:${'X'.repeat(199)}`,
  ]
  for (const name of names) t.is(checkForeignName(name), name)
})

test('a name that breaks what it goes through is refused, whoever has made it', t => {
  const names = [
    '',
    '.',
    '..',
    '-T',
    '--login',
    'disk',
    'iqn.2026-01.a:x/y',
    '../iqn.2026-01.a:x',
    'iqn.2026-01.a:x y',
    'iqn.2026-01.a:x\u00a0y',
    'iqn.2026-01.a:x,y',
    'iqn.2026-01.a:x\n',
    'iqn.2026-01.a:x\0',
    'iqn.2026-01.a:x\u001b[2J',
    'iqn.2026-01.a:x\u2028',
    'iqn.2026-01.a:x\u202e',
    'iqn.2026-01.a:\ud800',
    'iqn.2026-01.a:\uffff',
    `iqn.2026-01.a:${'ä'.repeat(105)}`,
    `iqn.2026-01.a:${'X'.repeat(210)}`,
  ]
  for (const name of names) t.throws(() => checkForeignName(name), refused, JSON.stringify(name))
})

test('a scoped IPv6 address is a portal, to listen and to dial, and is not offered to others', t => {
  for (const [text, address, port] of [
    ['fe80::1%eth0', 'fe80::1%eth0', 3260],
    ['[fe80::1%eth0]:3261', 'fe80::1%eth0', 3261],
    ['[fe80::1%br_lan.100]', 'fe80::1%br_lan.100', 3260],
  ] as const) {
    t.deepEqual(parsePortal(text), {address, port})
    t.deepEqual(parseRemotePortal(text), {address, port})
    t.is(formatPortal({address, port}), `[${address}]:${port}`)
    t.throws(() => parseOfferedPortal(text), {...refused, message: /link-local/})
  }
  t.deepEqual(parseTaggedPortal('[fe80::1%eth0]:3261,2'), {address: 'fe80::1%eth0', port: 3261, tpgt: 2})
  t.throws(() => parseOfferedPortal('fe80::1'), {...refused, message: /link-local/})
  t.throws(() => parseRemotePortal('fe80::1'), {...refused, message: /name the interface/})
  t.throws(() => parsePortal('2001:db8::1%eth0'), {...refused, message: /only a link-local address/})
  for (const text of ['fe80::1%', 'fe80::1%a/b', '[fe80::1%a b]:1', '127.0.0.1%lo', 'fe80::1%eth0:3260'])
    t.throws(() => parsePortal(text), refused, text)
  for (const rule of ['fe80::1%eth0', 'fe80::1%eth0/64']) t.throws(() => checkAddressRule(rule), refused, rule)
})

test('a portal to log in to may have a host name, and is one address', t => {
  t.deepEqual(parseRemotePortal('nas.example'), {address: 'nas.example', port: 3260})
  t.deepEqual(parseRemotePortal('localhost:3261'), {address: 'localhost', port: 3261})
  t.deepEqual(parseTaggedPortal('nas-1.example.:3261,7'), {address: 'nas-1.example.', port: 3261, tpgt: 7})
  for (const text of ['0.0.0.0', '0.0.0.0:3260', '::', '[::]:3260', '[0:0::0]'])
    t.throws(() => parseRemotePortal(text), {...refused, message: /all addresses/}, text)
  for (const text of [
    '127.0.0',
    '1.2.3.4.5',
    '-x.example',
    'a..b',
    'a b',
    'nas,1',
    '[nas]:3260',
    'nas:0',
    '--help',
    'x'.repeat(254),
  ])
    t.throws(() => parseRemotePortal(text), refused, text)
  t.throws(() => parseDestination('0.0.0.0'), {...refused, message: /all addresses/})
  t.deepEqual(parseOfferedPortal('0.0.0.0'), {address: '0.0.0.0', port: 3260})
})

test('portals are read and written, IPv6 in brackets', t => {
  t.deepEqual(parsePortal('127.0.0.1'), {address: '127.0.0.1', port: 3260})
  t.deepEqual(parsePortal('127.0.0.1:13260'), {address: '127.0.0.1', port: 13260})
  t.deepEqual(parsePortal('::1'), {address: '::1', port: 3260})
  t.deepEqual(parsePortal('[::1]'), {address: '::1', port: 3260})
  t.deepEqual(parsePortal('[2001:db8::1]:3261'), {address: '2001:db8::1', port: 3261})
  for (const text of ['127.0.0.1:3260', '[::1]:3260', '[2001:db8::1]:1']) t.is(formatPortal(parsePortal(text)), text)
})

test('what is no portal is NAME_INVALID', t => {
  const texts = [
    '',
    ':',
    ':3260',
    'localhost',
    'localhost:3260',
    '127.0.0.1:',
    '127.0.0.1:0',
    '127.0.0.1:65536',
    '127.0.0.1:99999',
    '127.0.0.1:3260x',
    '127.0.0.1:-1',
    '127.0.0.1 ',
    '127.0.0.1,3260',
    '127.0.0',
    '256.0.0.1',
    '[127.0.0.1',
    '[::1]:0',
    '[::1]3260',
    '[::1',
    '::1]:3260',
    '[::g]:3260',
    '127.0.0.1\n',
  ]
  for (const text of texts) t.throws(() => parsePortal(text), refused, JSON.stringify(text))
})
