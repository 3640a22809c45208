// Run by vm.test.ts, which knows how each of these ends.
import {writeFile} from 'node:fs/promises'
import {release, type} from 'node:os'
import {setTimeout as sleep} from 'node:timers/promises'
import test from 'ava'
import {insideLab, lab} from './lab.js'

lab('passes', t => {
  t.log(`${type()} ${release()}`)
  t.true(insideLab)
})

lab('fails by an assertion', t => t.is(2, 3, '2 is not 3'))

lab('throws an error', () => {
  throw new Error('an error of the test')
})

lab('fails in a teardown', t => {
  t.teardown(() => {
    throw new Error('an error of the teardown')
  })
  t.pass()
})

lab.skip('is skipped', t => t.fail())

test('runs here', t => t.false(insideLab))

lab('panics the kernel', async t => {
  // The outcomes of the tests before may still be on their way to the host, and would go with the kernel.
  await sleep(1000)
  await writeFile('/proc/sysrq-trigger', 'c')
  t.fail()
})

lab('comes after the panic', t => t.pass())
