// Errnos that the C library has neither a name nor a text for: a file system in user space answers any below 512, and a few
// drivers give away the kernel's own, such as 524 (ENOTSUPP).
import {type ChildProcess, spawn} from 'node:child_process'
import {once} from 'node:events'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import {run} from '../../src/exec.js'
import {packageRoot} from '../../src/native.js'
import {temporaryDirectory} from '../contract/targets.js'
import {AddonCalls} from '../fixtures/addon-process.js'
import {compiled} from '../fixtures/compiled.js'

function program(name: string): Promise<string> {
  const source = join(packageRoot(), 'test', 'fixtures', `${name}.c`)
  const path = join(packageRoot(), '.cache', 'test', name)
  return compiled(path, {compiler: 'cc', args: ['-O1', '-Werror', source], sources: [source]})
}

/** A file system whose files answer with errnos (errno-fs.c). */
async function mounted(t: ExecutionContext): Promise<string> {
  const file = await program('errno-fs')
  const directory = await temporaryDirectory(t)
  const server: ChildProcess = spawn(file, [directory], {stdio: ['ignore', 'pipe', 'inherit']})
  const exited = once(server, 'exit')
  t.teardown(async () => {
    server.kill('SIGKILL')
    await exited
    await run('umount', ['--lazy', directory])
  })
  await Promise.race([once(server.stdout!, 'data'), exited.then(() => Promise.reject(new Error('no file system')))])
  return directory
}

test.serial('a file system that answers an errno without a name fails the call, and that alone', async t => {
  const directory = await mounted(t)
  const calls = await AddonCalls.start('file, errnos of a file system', directory)
  t.teardown(() => calls.end())
  t.deepEqual(
    await calls.make(3),
    [41, 58, 134].map(number => `open '${directory}/create-${number}': errno ${number}`),
  )
  t.is((await calls.make(1)).length, 1)
})

test.serial('a benchmark of a file whose reads fail with such an errno ends with it', async t => {
  const directory = await mounted(t)
  const calls = await AddonCalls.start('bench, errnos of a file system', directory)
  t.teardown(() => calls.end())
  t.deepEqual(await calls.make(3), Array(3).fill('EUNKNOWN'))
})

for (const number of [512, 516, 524]) {
  test.serial(`errno ${number} of a system call is told by its number`, async t => {
    const forbid = await program('forbid')
    const directory = await temporaryDirectory(t)
    const calls = await AddonCalls.start('file', directory, [forbid, `fsync=${number}`, '--'])
    t.teardown(() => calls.end())
    t.deepEqual(await calls.make(1), [`EUNKNOWN`])
  })
}
