// Errnos that the C library has neither a name nor a text for: a file system in user space answers any below 512, and a few
// drivers give away the kernel's own, such as 524 (ENOTSUPP).
import test from 'ava'
import {temporaryDirectory} from '../contract/targets.js'
import {AddonCalls} from '../fixtures/addon-process.js'
import {mountErrnos, testProgram} from '../fixtures/errno-fs.js'

test.serial('a file system that answers an errno without a name fails the call, and that alone', async t => {
  const {directory} = await mountErrnos(t)
  const calls = await AddonCalls.start('file, errnos of a file system', directory)
  t.teardown(() => calls.end())
  t.deepEqual(
    await calls.make(3),
    [41, 58, 134].map(number => `open '${directory}/create-${number}': errno ${number}`),
  )
  t.is((await calls.make(1)).length, 1)
})

test.serial('a benchmark of a file whose reads fail with such an errno ends with it', async t => {
  const {directory} = await mountErrnos(t)
  const calls = await AddonCalls.start('bench, errnos of a file system', directory)
  t.teardown(() => calls.end())
  t.deepEqual(await calls.make(3), Array(3).fill('EUNKNOWN'))
})

for (const number of [512, 516, 524]) {
  test.serial(`errno ${number} of a system call is told by its number`, async t => {
    const forbid = await testProgram('forbid')
    const directory = await temporaryDirectory(t)
    const calls = await AddonCalls.start('file', directory, [forbid, `fsync=${number}`, '--'])
    t.teardown(() => calls.end())
    t.deepEqual(await calls.make(1), [`EUNKNOWN`])
  })
}
