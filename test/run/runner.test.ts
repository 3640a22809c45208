import {type ChildProcess, spawn} from 'node:child_process'
import {once} from 'node:events'
import {existsSync} from 'node:fs'
import {mkdir, mkdtemp, readFile, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import test, {type ExecutionContext} from 'ava'
import {mark, removeLeftovers, runPrefix, runVariable} from './leftovers.js'
import {quickFiles} from './quick.js'
import {readNotes} from './seconds.js'

async function folder(t: ExecutionContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'lp-run-'))
  t.teardown(() => rm(path, {recursive: true, force: true}))
  return path
}

const isThere = (pid: number) => existsSync(`/proc/${pid}/fd/0`) || existsSync(`/proc/${pid}/exe`)

async function gone(...pids: number[]): Promise<void> {
  for (const pid of pids) while (isThere(pid)) await sleep(50)
}

/** A run of the tests that hangs in its only one. */
async function hangingRun(t: ExecutionContext): Promise<{run: ChildProcess; pids: number[]; directory: string}> {
  const place = await folder(t)
  const run = spawn('scripts/test', ['--config', 'test/run/hanging.config.js'], {
    env: {...process.env, LUNPATH_HANGING: place},
    stdio: 'ignore',
  })
  t.teardown(() => run.kill('SIGKILL'))
  const file = join(place, 'pids')
  while (!existsSync(file) || (await readFile(file, 'utf8')) === '') await sleep(50)
  const [worker, child, directory] = (await readFile(file, 'utf8')).split(' ')
  return {run, pids: [Number(worker), Number(child)], directory: directory!}
}

test.serial('a run that gets SIGTERM ends what its tests started, and leaves nothing', async t => {
  const {run, pids, directory} = await hangingRun(t)
  const ended = once(run, 'exit')
  run.kill('SIGTERM')
  t.deepEqual(await ended, [143, null])
  await gone(...pids)
  t.false(existsSync(directory))
})

test.serial(
  'what a killed run has left is removed by the next, with its processes, and a live one’s stays',
  async t => {
    const killed = await hangingRun(t)
    const live = await hangingRun(t)
    const ended = once(killed.run, 'exit')
    killed.run.kill('SIGKILL')
    await ended
    t.true(existsSync(killed.directory))
    const removed = await removeLeftovers('/tmp')
    t.true(removed.includes(killed.directory))
    t.false(existsSync(killed.directory))
    await gone(...killed.pids)
    t.true(existsSync(live.directory))
    t.true(live.pids.every(isThere))
    const end = once(live.run, 'exit')
    live.run.kill('SIGTERM')
    await end
  },
)

test('a directory is left where its process or its boot is over, and not where nothing says whose it is', async t => {
  const place = await folder(t)
  const make = async (name: string, change: object | undefined) => {
    const directory = join(place, `${runPrefix}${name}`)
    await mkdir(join(directory, 'below'), {recursive: true})
    if (!change) return directory
    await mark(directory)
    const file = join(directory, '.lunpath-test-run')
    await writeFile(file, JSON.stringify({...JSON.parse(await readFile(file, 'utf8')), ...change}))
    return directory
  }
  const left = [await make('boot', {bootId: 'another'}), await make('pid-reused', {startTime: '1'})]
  const others = [await make('live', {}), await make('unknown', undefined)]
  const spoilt = await make('spoilt', {})
  await writeFile(join(spoilt, '.lunpath-test-run'), '{')
  t.deepEqual((await removeLeftovers(place)).sort(), left.sort())
  for (const directory of [...others, spoilt]) t.true(existsSync(join(directory, 'below')), directory)
})

test('quick tests start no machine, and are some', t => {
  const files = quickFiles()
  t.true(files.includes('dist/test/iqn.test.js'))
  for (const heavy of ['lab/kernel', 'e2e/api', 'volumes/lvm', 'compute/libvirt'])
    t.false(files.includes(`dist/test/${heavy}.test.js`), heavy)
})

test('the notes of a run tell what has ended, how long it took, and what runs', async t => {
  const file = join(await folder(t), 'times')
  t.deepEqual(readNotes(file), {ended: [], running: []})
  const note = (event: string, name: string, ms: number) =>
    `${JSON.stringify({event, file: new URL(`../${name}.test.js`, import.meta.url).href, ms})}\n`
  await writeFile(
    file,
    [note('begins', 'iqn', 1000), note('begins', 'lab/vm', 1500), note('ends', 'iqn', 3500), '{"ev'].join(''),
  )
  t.deepEqual(readNotes(file), {ended: [['iqn', 2.5]], running: ['lab/vm']})
})

test('processes of a run are known by its variable', t => {
  t.is(process.env[runVariable], process.env.TMPDIR)
})
