import {existsSync} from 'node:fs'
import {mkdtemp, readdir, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import anyTest, {type ExecutionContext, type TestFn} from 'ava'
import {lunpath, processesOf, type Running, start, until} from '../fixtures/cli.js'

/** `lunpath demo`: all of it works, and whenever and however it ends, nothing of it is left. */
const test = anyTest.serial as TestFn

/** A temporary directory of the test's own, so that what a demo leaves there can be told from anybody else's. */
async function ownTmp(t: ExecutionContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'lp-'))
  t.teardown(() => rm(directory, {recursive: true, force: true}))
  return directory
}

/** No process, file or socket of the demo is there any more. */
async function nothingIsLeft(t: ExecutionContext, directory: string, when: string): Promise<void> {
  t.deepEqual(await processesOf(directory), [], when)
  t.deepEqual(await readdir(directory), [], when)
}

test('01 the demo runs through, says each step with its duration as JSON, and leaves nothing', async t => {
  const directory = await ownTmp(t)
  const {exitCode, stdout, stderr} = await lunpath(['demo', '--json'], {env: {TMPDIR: directory}})
  t.is(exitCode, 0, stdout + stderr)
  t.is(stderr, '')
  const {ok, steps} = JSON.parse(stdout) as {
    ok: boolean
    steps: {step: string; durationMs: number; facts: Record<string, never>}[]
  }
  t.true(ok)
  t.deepEqual(
    steps.map(({step}) => step),
    [
      'libvirtd',
      'boot',
      'serve',
      'volume',
      'export',
      'verify',
      'attach',
      'guest sees',
      'guest reads',
      'guest writes',
      'bench',
      'metrics',
      'detach',
      'unexport',
      'delete',
    ],
  )
  const facts = Object.fromEntries(steps.map(step => [step.step, step.facts])) as Record<
    string,
    Record<string, unknown>
  >
  t.true(steps.every(({durationMs}) => durationMs > 0))
  t.is(facts['guest sees']!.serial, facts.volume!.id)
  t.is(facts['guest sees']!.sizeBytes, 2 * 2 ** 30)
  t.is(facts['guest writes']!.sha256, facts.detach!.sha256)
  t.like(facts.bench, {state: 'finished', errors: 0})
  t.true((facts.metrics!.lines as string[]).some(line => line.startsWith('iscsi_lun_read_bytes_total{')))
  await nothingIsLeft(t, directory, 'after the run')
})

/** Starts a demo whose lines are read, and sends a signal once `when` holds. */
async function interrupted(
  t: ExecutionContext,
  point: string,
  when: (demo: Running, directory: string) => Promise<unknown> | unknown,
  signal: NodeJS.Signals,
): Promise<void> {
  const directory = await ownTmp(t)
  const demo = start(['demo'], {env: {TMPDIR: directory}})
  t.teardown(() => demo.child.kill('SIGKILL'))
  await until(point, () => demo.child.exitCode !== null || when(demo, directory))
  demo.child.kill(signal)
  const {exitCode, stdout, stderr} = await demo.ended
  t.is(exitCode, 130, `${point}: ${stdout}${stderr}`)
  t.regex(stderr, /Cancelled; everything that ran is stopped and removed/, point)
  t.false(stdout.includes('Done in'), point)
  await nothingIsLeft(t, directory, point)
}

/** The step after this line is at work. */
const after = (step: string) => (demo: Running) => new RegExp(`^${step} `, 'm').test(demo.output.stdout)

test('02 Ctrl-C while libvirtd starts and while the guest boots', async t => {
  await interrupted(t, 'libvirtd starts', async (_, directory) => (await readdir(directory)).length > 0, 'SIGINT')
  await interrupted(t, 'boot', after('libvirtd'), 'SIGINT')
})

test('03 Ctrl-C while the daemon starts', t => interrupted(t, 'serve', after('boot'), 'SIGINT'))

test('04 Ctrl-C right after the export, before the attach', t => interrupted(t, 'attach', after('verify'), 'SIGINT'))

test('05 SIGTERM in the benchmark ends it as Ctrl-C does', t =>
  interrupted(t, 'bench', after('guest writes'), 'SIGTERM'))

test('06 --keep waits, its hints work as they are printed, and Ctrl-C takes all of it down', async t => {
  const directory = await ownTmp(t)
  const demo = start(['demo', '--keep'], {env: {TMPDIR: directory}})
  t.teardown(() => demo.child.kill('SIGKILL'))
  await until('it waits', () => demo.child.exitCode !== null || demo.output.stderr.includes('Ctrl-C ends it.'))
  const socket = /LUNPATH_SOCKET=(\S+)/.exec(demo.output.stderr)?.[1]
  t.truthy(socket, demo.output.stderr)
  t.true(existsSync(socket!))
  const listed = await lunpath(['attachment', 'list', '--json'], {env: {LUNPATH_SOCKET: socket!}})
  t.like((JSON.parse(listed.stdout) as object[])[0], {domain: 'demo', state: 'attached'})
  demo.child.kill('SIGINT')
  const {exitCode, stdout, stderr} = await demo.ended
  t.is(exitCode, 0, stderr)
  t.regex(stdout, /^delete /m)
  t.regex(stdout, /Done in/)
  await nothingIsLeft(t, directory, 'after --keep')
})
