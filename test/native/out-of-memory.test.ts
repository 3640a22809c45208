// A call for which there is no memory fails alone: on a thread of an addon, and where JS calls it.
import test from 'ava'
import {temporaryDirectory} from '../contract/targets.js'
import {AddonCalls} from '../fixtures/addon-process.js'

// What a process may have in data (setrlimit(2)).
const limit = ['prlimit', `--data=${2 * 2 ** 30}`, '--']

test('on a thread of an addon it is ENOMEM', async t => {
  const calls = await AddonCalls.start('iscsi, more than there is memory for', await temporaryDirectory(t), limit)
  t.teardown(() => calls.end())
  t.deepEqual(await calls.make(2), ['ENOMEM', 'ENOMEM'])
})

test('in a call from JS it is an exception there', async t => {
  const calls = await AddonCalls.start('file, more than there is memory for', await temporaryDirectory(t), limit)
  t.teardown(() => calls.end())
  t.deepEqual(await calls.make(2), Array(2).fill('Error: std::bad_alloc'))
})
