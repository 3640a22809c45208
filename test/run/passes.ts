// A test file of runner.test.ts.
import {writeFileSync} from 'node:fs'
import {setTimeout as sleep} from 'node:timers/promises'
import test from 'ava'
import {logFile} from './logs.js'

test('passes', async t => {
  writeFileSync(logFile('daemon'), 'of no interest\n')
  // Long enough that a terminal shows that it runs.
  await sleep(2500)
  t.pass()
})
