import test from 'ava'
import {StorageError} from '../src/errors.js'
import {checkIscsiName, formatPortal, parsePortal} from '../src/iqn.js'

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
