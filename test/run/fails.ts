// A test file of runner.test.ts.
import {writeFileSync} from 'node:fs'
import test from 'ava'
import {logFile} from './logs.js'

test('fails', t => {
  writeFileSync(logFile('daemon'), 'why\n')
  t.fail()
})
