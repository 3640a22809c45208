import test from 'ava'
import {LioCounters, type LioReading} from '../../src/targets/lio-counters.js'

const iqn = 'iqn.2026-01.io.lunpath:0123456789abcdef'
const mebibyte = 2 ** 20

function reading(given: Partial<LioReading>): LioReading {
  const none = {sessionReadBytes: undefined, sessionWrittenBytes: undefined, readMebibytes: 0, writtenMebibytes: 0}
  return {iqn, lun: 1, initiator: 'iqn.2026-01.test:a', sid: '1', ...none, ...given}
}

test('1. bytes are exact while LIO shows the session', t => {
  const counters = new LioCounters()
  t.like(counters.add([reading({sessionReadBytes: 500, sessionWrittenBytes: 0})]), [{sid: '1', readBytes: 500}])
  t.like(counters.add([reading({sessionReadBytes: 1500, sessionWrittenBytes: 0})]), [
    {readBytes: 1500, writtenBytes: 0},
  ])
})

test('2. data that the session figure lacks come with the next whole megabyte', t => {
  const counters = new LioCounters()
  counters.add([reading({sessionWrittenBytes: 0})])
  const [row] = counters.add([reading({sessionWrittenBytes: 1000, writtenMebibytes: 3})])
  t.is(row?.writtenBytes, 3 * mebibyte)
  t.is(counters.add([reading({sessionWrittenBytes: 2000, writtenMebibytes: 3})])[0]?.writtenBytes, 3 * mebibyte)
})

test('3. a second session of the initiator, and its end, count nothing twice', t => {
  const counters = new LioCounters()
  counters.add([reading({sessionReadBytes: 9000})])
  t.like(counters.add([reading({sid: '2', sessionReadBytes: 300})]), [
    {sid: '1', readBytes: 9000},
    {sid: '2', readBytes: 300},
  ])
  t.like(counters.add([reading({sid: '1', sessionReadBytes: 9500})]), [
    {sid: '1', readBytes: 9500},
    {sid: '2', readBytes: 300},
  ])
})

test('4. after the logout what is behind the last whole megabyte is still given, once', t => {
  const counters = new LioCounters()
  counters.add([reading({sessionReadBytes: 1000})])
  t.like(counters.add([reading({sid: undefined, readMebibytes: 2})]), [{sid: '1', readBytes: 2 * mebibyte}])
  t.deepEqual(counters.add([reading({sid: undefined, readMebibytes: 2})]), [])
  t.like(counters.add([reading({sid: '2', sessionReadBytes: 70, readMebibytes: 2})]), [{sid: '2', readBytes: 0}])
  t.like(counters.add([reading({sid: '2', sessionReadBytes: 3 * mebibyte, readMebibytes: 5})]), [
    {sid: '2', readBytes: 3 * mebibyte},
  ])
})

test('5. megabytes from before the first reading are not counted', t => {
  const counters = new LioCounters()
  t.like(counters.add([reading({sessionReadBytes: 5000, readMebibytes: 700})]), [{readBytes: 5000}])
  // The 700th may have been all but full by then.
  t.like(counters.add([reading({sessionReadBytes: 6000, readMebibytes: 701})]), [{readBytes: 6000}])
})

test('6. sessions without a number are one period from the first login to the last logout', t => {
  const counters = new LioCounters()
  const all = (given: Partial<LioReading>) => reading({initiator: 'ALL', sid: '', ...given})
  t.deepEqual(counters.add([all({sid: undefined})]), [])
  t.like(counters.add([all({readMebibytes: 1})]), [{sid: 'period-1', readBytes: mebibyte}])
  t.like(counters.add([all({readMebibytes: 4})]), [{sid: 'period-1', readBytes: 4 * mebibyte}])
  t.like(counters.add([all({sid: undefined, readMebibytes: 5})]), [{sid: 'period-1', readBytes: 5 * mebibyte}])
  t.like(counters.add([all({readMebibytes: 6})]), [{sid: 'period-2', readBytes: mebibyte}])
})

test('7. commands are not counted, and a target that was made anew begins at 0', t => {
  const counters = new LioCounters()
  t.like(counters.add([reading({sessionReadBytes: 9000})]), [{readCommands: null, writeCommands: null, errors: null}])
  counters.forget(iqn)
  t.like(counters.add([reading({sessionReadBytes: 20})]), [{readBytes: 20}])
})
