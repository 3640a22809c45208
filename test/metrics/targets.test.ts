import test from 'ava'
import {TargetTotals} from '../../src/metrics/totals.js'
import type {LunCounters} from '../../src/targets/driver.js'

const iqn = 'iqn.2026-01.io.lunpath:0123456789abcdef'

function reading(given: Partial<LunCounters>): LunCounters {
  const counts = {readBytes: 0, writtenBytes: 0, readCommands: 0, writeCommands: 0, errors: 0}
  return {iqn, lun: 1, sid: '1', initiator: 'iqn.2026-01.test:a', ...counts, ...given}
}

function lun(totals: TargetTotals) {
  const [first] = totals.luns()
  return first!
}

function session(totals: TargetTotals, initiator: string) {
  return [...totals.sessions()].find(found => found.initiator === initiator)!
}

test('a reading adds what has come since the one before', t => {
  const totals = new TargetTotals()
  totals.add([reading({readBytes: 1000, readCommands: 2, writtenBytes: 512, writeCommands: 1})])
  totals.add([reading({readBytes: 1500, readCommands: 3, writtenBytes: 512, writeCommands: 1, errors: 4})])
  t.like(lun(totals), {readBytes: 1500, readCommands: 3, writtenBytes: 512, writeCommands: 1, errors: 4})
  t.like(session(totals, 'iqn.2026-01.test:a'), {sentBytes: 1500, receivedBytes: 512, logins: 1})
})

test('a logout loses nothing, and the next session of the initiator adds to the same counters', t => {
  const totals = new TargetTotals()
  totals.add([reading({readBytes: 1000, readCommands: 2})])
  totals.add([])
  t.is(lun(totals).readBytes, 1000)
  totals.add([reading({sid: '2', readBytes: 300, readCommands: 1})])
  t.like(lun(totals), {readBytes: 1300, readCommands: 3})
  t.like(session(totals, 'iqn.2026-01.test:a'), {sentBytes: 1300, logins: 2})
})

test('two initiators on one target are told apart, and the disk has the sum', t => {
  const totals = new TargetTotals()
  const both = (a: number, b: number) => [
    reading({readBytes: a, readCommands: 1}),
    reading({sid: '2', initiator: 'iqn.2026-01.test:b', writtenBytes: b, writeCommands: 1, readBytes: 1}),
  ]
  totals.add(both(100, 10))
  totals.add(both(200, 30))
  t.like(session(totals, 'iqn.2026-01.test:a'), {sentBytes: 200, receivedBytes: 0})
  t.like(session(totals, 'iqn.2026-01.test:b'), {sentBytes: 1, receivedBytes: 30})
  t.like(lun(totals), {readBytes: 201, writtenBytes: 30})
})

test('command counters of 32 bits wrap around', t => {
  const totals = new TargetTotals()
  const most = 2 ** 32 - 3
  totals.add([reading({readBytes: 1e12, readCommands: most, writtenBytes: 5, writeCommands: most, errors: most})])
  totals.add([reading({readBytes: 1e12 + 512, readCommands: 4, writtenBytes: 6, writeCommands: 1, errors: 0})])
  t.like(lun(totals), {readBytes: 1e12 + 512, readCommands: 2 ** 32 + 4, writeCommands: 2 ** 32 + 1, errors: 2 ** 32})
  t.is(session(totals, 'iqn.2026-01.test:a').logins, 1)
})

test('a session number that comes again belongs to a new session', t => {
  for (const [what, second] of [
    ['fewer bytes read', {readBytes: 300, readCommands: 9, writtenBytes: 900}],
    ['fewer bytes written', {readBytes: 1000, readCommands: 9, writtenBytes: 100}],
    ['another initiator', {readBytes: 5000, readCommands: 90, writtenBytes: 900, initiator: 'iqn.2026-01.test:b'}],
    ['fewer commands for the same bytes', {readBytes: 1000, readCommands: 1, writtenBytes: 800}],
  ] as const) {
    const totals = new TargetTotals()
    totals.add([reading({readBytes: 1000, readCommands: 8, writtenBytes: 800, writeCommands: 2})])
    totals.add([reading({writeCommands: 2, ...second})])
    t.like(
      lun(totals),
      {
        readBytes: 1000 + second.readBytes,
        readCommands: 8 + second.readCommands,
        writtenBytes: 800 + second.writtenBytes,
      },
      what,
    )
    t.is(
      [...totals.sessions()].reduce((sum, {logins}) => sum + logins, 0),
      2,
      what,
    )
  }
})

test('after a restart of the target daemon the same number with more bytes is a new session too', t => {
  const totals = new TargetTotals()
  totals.add([reading({readBytes: 1000, readCommands: 2})])
  totals.restarted()
  totals.add([reading({readBytes: 4000, readCommands: 3})])
  t.like(lun(totals), {readBytes: 5000, readCommands: 5})
  t.is(session(totals, 'iqn.2026-01.test:a').logins, 2)
})

test('a session whose initiator is not known yet is counted once, when it is', t => {
  const totals = new TargetTotals()
  totals.add([reading({readBytes: 100, readCommands: 1, initiator: ''})])
  t.deepEqual([...totals.luns()], [])
  totals.add([reading({readBytes: 200, readCommands: 2})])
  t.like(lun(totals), {readBytes: 200, readCommands: 2})
})

test('a target that is not wanted any more is forgotten, and one of that name begins at zero', t => {
  const totals = new TargetTotals()
  const other = `${iqn.slice(0, -1)}0`
  totals.add([reading({readBytes: 100}), reading({iqn: other, readBytes: 7})])
  totals.keep(name => name === other)
  t.deepEqual(
    [...totals.luns()].map(({iqn: name, readBytes}) => [name, readBytes]),
    [[other, 7]],
  )
  t.deepEqual(
    [...totals.sessions()].map(({iqn: name}) => name),
    [other],
  )
  totals.add([reading({readBytes: 50}), reading({iqn: other, readBytes: 8})])
  t.deepEqual(
    [...totals.luns()].map(({readBytes}) => readBytes),
    [8, 50],
  )
})
