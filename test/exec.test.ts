import {existsSync, mkdtempSync, readFileSync, rmSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {fileURLToPath} from 'node:url'
import test from 'ava'
import {StorageError} from '../src/errors.js'
import {run} from '../src/exec.js'

const node = process.execPath

async function failure(promise: Promise<unknown>): Promise<StorageError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof StorageError) return error
    throw error
  }
  throw new Error('it did not fail')
}

async function gone(pid: number): Promise<boolean> {
  for (let attempt = 0; attempt < 200; attempt++) {
    if (!existsSync(`/proc/${pid}`) || /\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))) return true
    await sleep(25)
  }
  return false
}

test('an answer has both outputs and the exit code', async t => {
  const result = await run(node, ['-e', 'console.log("out"); console.error("err")'])
  t.deepEqual(result, {stdout: 'out\n', stderr: 'err\n', code: 0})
})

test('arguments reach the program as they are, without a shell', async t => {
  const args = ['$HOME', '`id`', 'a b', '; false', '*', '"', "'", '']
  const {stdout} = await run(node, ['-e', 'console.log(JSON.stringify(process.argv.slice(1)))', '--', ...args])
  t.deepEqual(JSON.parse(stdout), args)
})

test('a NUL in an argument is a TypeError', async t => {
  await t.throwsAsync(run('true', ['a\0b']), {instanceOf: TypeError})
})

test('the environment is small and speaks C, whatever the caller says', async t => {
  process.env.LUNPATH_TEST_SECRET = 'not for children'
  const {stdout} = await run(node, ['-e', 'console.log(JSON.stringify(process.env))'], {
    env: {EXTRA: '1', LC_ALL: 'de_DE.UTF-8'},
  })
  delete process.env.LUNPATH_TEST_SECRET
  const environment = JSON.parse(stdout)
  t.is(environment.LC_ALL, 'C')
  t.is(environment.EXTRA, '1')
  t.false('LUNPATH_TEST_SECRET' in environment)
  t.true(environment.PATH.split(':').includes('/usr/sbin'))
})

test('input is written to standard input, and a program that does not read it is no failure', async t => {
  t.is((await run('cat', [], {input: 'hello'})).stdout, 'hello')
  t.is((await run('true', [], {input: Buffer.alloc(4 * 2 ** 20)})).code, 0)
})

test('another exit status is COMMAND_FAILED with the status and what the program said', async t => {
  const error = await failure(run(node, ['-e', 'console.error("no such thing"); process.exit(5)']))
  t.is(error.code, 'COMMAND_FAILED')
  t.is(error.info.exitCode, 5)
  t.is(error.info.stderr, 'no such thing')
  t.true(error.message.includes('status 5: no such thing'))
})

test('an accepted exit status is an answer', async t => {
  t.is((await run(node, ['-e', 'process.exit(5)'], {accept: [0, 5]})).code, 5)
})

test('a program that a signal ended is COMMAND_FAILED with the signal', async t => {
  const error = await failure(run(node, ['-e', 'process.kill(process.pid, "SIGSEGV"); setTimeout(() => {}, 1e6)']))
  t.is(error.code, 'COMMAND_FAILED')
  t.is(error.info.exitSignal, 'SIGSEGV')
})

test('a program that is not there is DEPENDENCY_MISSING', async t => {
  const error = await failure(run('/nonexistent/program', []))
  t.is(error.code, 'DEPENDENCY_MISSING')
  t.is((error.cause as NodeJS.ErrnoException).code, 'ENOENT')
})

test('the deadline ends the whole group, also one that ignores SIGTERM', async t => {
  const directory = mkdtempSync(join(tmpdir(), 'lp-exec-'))
  t.teardown(() => rmSync(directory, {recursive: true}))
  const pids = join(directory, 'pids')
  const grandchild = 'process.on("SIGTERM", () => {}); setInterval(() => {}, 1e6)'
  const script = `
    process.on('SIGTERM', () => {})
    const child = require('child_process').spawn(process.execPath, ['-e', ${JSON.stringify(grandchild)}], {stdio: 'inherit'})
    require('fs').writeFileSync(${JSON.stringify(pids)}, process.pid + ' ' + child.pid)
    setInterval(() => {}, 1e6)`
  const error = await failure(run(node, ['-e', script], {timeoutMs: 1500}))
  t.is(error.code, 'TIMEOUT')
  t.is(error.info.leftPid, undefined)
  const [leader, child] = readFileSync(pids, 'utf8').split(' ').map(Number)
  t.true(await gone(leader!))
  t.true(await gone(child!))
})

test('a descendant that escapes the group and holds the pipes cannot hold the caller', async t => {
  const directory = mkdtempSync(join(tmpdir(), 'lp-exec-'))
  t.teardown(() => rmSync(directory, {recursive: true}))
  const pidFile = join(directory, 'pid')
  const script = `
    const child = require('child_process').spawn('sleep', ['300'], {detached: true, stdio: 'inherit'})
    require('fs').writeFileSync(${JSON.stringify(pidFile)}, String(child.pid))
    child.unref()`
  const error = await failure(run(node, ['-e', script], {timeoutMs: 1000}))
  process.kill(Number(readFileSync(pidFile, 'utf8')), 'SIGKILL')
  t.is(error.code, 'TIMEOUT')
  t.true(error.info.outputHeld)
  t.is(error.info.leftPid, undefined)
})

test('an abort is CANCELLED, before the start and during the run', async t => {
  t.is((await failure(run('true', [], {signal: AbortSignal.abort()}))).code, 'CANCELLED')
  const controller = new AbortController()
  const running = failure(run('sleep', ['300'], {signal: controller.signal}))
  setTimeout(() => controller.abort(), 50)
  t.is((await running).code, 'CANCELLED')
})

test('more output than allowed ends the program', async t => {
  const error = await failure(run('yes', [], {maxOutputBytes: 10_000}))
  t.is(error.code, 'COMMAND_FAILED')
  t.true(error.message.includes('more than 10000 bytes'))
})

test('a child in state D is reported and left behind, and holds neither the caller nor its process', async t => {
  const directory = mkdtempSync(join(tmpdir(), 'lp-exec-'))
  t.teardown(() => rmSync(directory, {recursive: true}))
  // A write to a frozen file system waits in the kernel, where SIGKILL does not reach it. The trap thaws it at any end.
  const script = `
    cd "$1" && truncate -s 16M image && mkfs.ext4 -q image && mkdir frozen && mount -o loop image frozen || exit 9
    trap 'fsfreeze --unfreeze frozen; while ! umount frozen; do sleep 0.1; done' EXIT
    fsfreeze --freeze frozen || exit 9
    "$2" "$3" "$1/frozen/file"`
  const onFrozen = fileURLToPath(new URL('./run-on-frozen.js', import.meta.url))
  const namespace = ['--mount', '--propagation', 'private', 'sh', '-c', script, 'sh']
  const {stdout} = await run('unshare', [...namespace, directory, node, onFrozen])
  const {code, message, info} = JSON.parse(stdout)
  t.is(code, 'TIMEOUT')
  t.is(info.leftState, 'D')
  t.true(message.includes(`process ${info.leftPid} is left in state D`))
  // A kernel without CONFIG_STACKTRACE does not say.
  if (info.leftIn) t.regex(message, /left in state D \(.*\w+ < \w+/)
  t.true(await gone(info.leftPid))
})
