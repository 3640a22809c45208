// A test file of runner.test.ts: it starts a program, and hangs.
import {spawn} from 'node:child_process'
import {writeFileSync} from 'node:fs'
import {join} from 'node:path'
import test from 'ava'

test('hangs', async t => {
  const child = spawn('sleep', ['1000'], {stdio: 'ignore', detached: true})
  const {LUNPATH_HANGING, TMPDIR, LUNPATH_TEST_TMPFS} = process.env
  writeFileSync(join(LUNPATH_HANGING!, 'pids'), `${process.pid} ${child.pid} ${TMPDIR} ${LUNPATH_TEST_TMPFS}`)
  await new Promise(resolve => setTimeout(resolve, 600_000))
  t.pass()
})
