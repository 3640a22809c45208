import test from 'ava'
import {StorageError} from '../src/errors.js'
import {checkSize, formatSize, parseSize} from '../src/size.js'

const refused = {instanceOf: StorageError, code: 'SIZE_INVALID'}

test('parseSize reads units of 1024 with and without "iB", and units of 1000', t => {
  const expected: Record<string, number> = {
    '4096': 4096,
    '512b': 512,
    '1k': 1024,
    '1KiB': 1024,
    '2G': 2 * 2 ** 30,
    '2GiB': 2 * 2 ** 30,
    '2gib': 2 * 2 ** 30,
    ' 2 GiB ': 2 * 2 ** 30,
    '1.5GiB': 1.5 * 2 ** 30,
    '0.5k': 512,
    '64MB': 64e6,
    '512kb': 512e3,
    '1TiB': 2 ** 40,
    '8191TiB': 8191 * 2 ** 40,
  }
  for (const [text, bytes] of Object.entries(expected)) t.is(parseSize(text), bytes, text)
})

test('parseSize refuses what is no size', t => {
  const texts = ['', ' ', 'GiB', '2 Gigs', '2GiBx', '1e9', '0x200', '1,5GiB', '..5G', '2G 2G', 'NaN', 'Infinity', '5.k']
  for (const text of texts) t.throws(() => parseSize(text), refused, text)
})

test('what is nearly a size is told of by its right spelling', t => {
  const expected: Record<string, RegExp> = {
    '5Gi': /Did you mean 5GiB\?$/,
    '10 gigabytes': /Did you mean 10GiB\?$/,
    '1,5G': /Did you mean 1\.5GiB\?$/,
    '512Ki': /Did you mean 512KiB\?$/,
    '2P': /Did you mean 2048TiB\?$/,
    '100MB': /100000000 is not: give 100MiB or 100000256$/,
    '1kB': /1000 is not: give 1KiB or 1024$/,
    '1000': /1000 is not: give 1024$/,
    GiB: /as 2GiB or 512MB$/,
    '9Pi': /as 2GiB or 512MB$/,
  }
  for (const [text, message] of Object.entries(expected)) t.throws(() => parseSize(text), {...refused, message}, text)
})

test('parseSize refuses zero, negative sizes, and parts of a sector or a byte', t => {
  for (const text of ['0', '0GiB', '-1GiB', '-512', '513', '100', '1.7k', '0.3', '1kB']) {
    t.throws(() => parseSize(text), refused, text)
  }
})

test('parseSize refuses what a number cannot hold exactly', t => {
  for (const text of ['8192TiB', '9007199254740993', '99999999999999999999G']) {
    t.throws(() => parseSize(text), refused, text)
  }
})

test('checkSize returns the size, and says what it got', t => {
  t.is(checkSize(512), 512)
  const largest = Number.MAX_SAFE_INTEGER - (Number.MAX_SAFE_INTEGER % 512)
  t.is(checkSize(largest), largest)
  for (const bytes of [0, -512, 1, 513, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53]) {
    const error = t.throws<StorageError>(() => checkSize(bytes), refused)
    t.is(error?.info.sizeBytes, bytes)
  }
})

test('formatSize writes what people read', t => {
  const expected: [number, string][] = [
    [0, '0 B'],
    [512, '512 B'],
    [1024, '1 KiB'],
    [2 * 2 ** 30, '2 GiB'],
    [1.5 * 2 ** 30, '1.5 GiB'],
    [2 ** 40, '1 TiB'],
    [2 ** 60, '1024 PiB'],
  ]
  for (const [bytes, text] of expected) t.is(formatSize(bytes), text)
})

test('formatSize and parseSize agree on whole units', t => {
  for (const bytes of [512, 4096, 2 ** 20, 3 * 2 ** 30, 5 * 2 ** 40]) t.is(parseSize(formatSize(bytes)), bytes)
})
