import test from 'ava'
import {type BenchJob, settleJob} from '../../src/bench/job.js'
import {hasCode} from '../../src/errors.js'

const target = {
  portal: {address: '127.0.0.1', port: 3260},
  iqn: 'iqn.2025-01.test.lunpath:a',
  lun: 1,
  initiatorName: 'iqn.2025-01.test.lunpath:initiator',
}

test('a job that says only what to read gets defaults', t => {
  const {login, seed, ...settled} = settleJob({target})
  t.deepEqual(settled, {
    rw: 'randread',
    random: true,
    bs: 4096,
    iodepth: 1,
    runtimeMs: 5000,
    offsetBytes: 0,
    sizeBytes: 0,
    stuckMs: 5000,
    sampleMs: 250,
    expectedWwid: '',
    expectedSerial: '',
    expectedSizeBytes: 0,
  })
  t.is(login.portal, '127.0.0.1:3260')
  t.true(seed >= 0n && seed < 2n ** 64n)
  t.not(seed, settleJob({target}).seed)
})

test("sizes are bytes, or text with fio's suffixes", t => {
  const {bs, offsetBytes, sizeBytes} = settleJob({target, bs: '128k', offset: '1m', size: 4096})
  t.deepEqual({bs, offsetBytes, sizeBytes}, {bs: 131072, offsetBytes: 2 ** 20, sizeBytes: 4096})
})

test('a job that writes is UNSUPPORTED', t => {
  for (const rw of ['write', 'randwrite', 'rw', 'randrw', 'readwrite', 'trim']) {
    const error = t.throws(() => settleJob({target, rw} as unknown as BenchJob))
    t.true(hasCode(error, 'UNSUPPORTED'), rw)
    t.regex(error!.message, /only reads/)
  }
})

test('what makes no sense is refused', t => {
  const wrong: Record<string, unknown>[] = [
    {rw: 'randreed'},
    {bs: 0},
    {bs: 100},
    {bs: -4096},
    {bs: '4x'},
    {bs: '32m'},
    {bs: {}},
    {iodepth: 0},
    {iodepth: 1.5},
    {iodepth: 100_000},
    {iodepth: 1024, bs: '16m'},
    {runtime: 0},
    {runtime: -1},
    {runtime: Number.NaN},
    {runtime: 1e9},
    {offset: -512},
    {offset: 100},
    {size: 1},
    {seed: -1},
    {seed: 1.5},
    {seed: 2n ** 64n},
    {stuckMs: 0},
    {sampleMs: 1},
    {target: {...target, iqn: 'nonsense'}},
    {target: {...target, lun: 256}},
  ]
  for (const change of wrong) {
    const error = t.throws(() => settleJob({target, ...change} as BenchJob), undefined, `${Object.entries(change)}`)
    t.true(hasCode(error, 'INVALID_ARGUMENT', 'SIZE_INVALID', 'NAME_INVALID'), `${error}`)
  }
})
