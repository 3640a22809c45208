import {type ChildProcess, spawn, spawnSync} from 'node:child_process'
import {once} from 'node:events'
import {existsSync} from 'node:fs'
import {copyFile, mkdir, mkdtemp, readdir, readFile, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {basename, dirname, join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {fileURLToPath} from 'node:url'
import test, {type ExecutionContext, type TestFn} from 'ava'
import {mark, removeLeftovers, runPrefix, runVariable} from './leftovers.js'
import {allLogs, logsVariable} from './logs.js'
import {Progress} from './progress.js'
import {heavy, quickFiles} from './quick.js'
import {slowestFirst, withSeconds} from './seconds.js'

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
async function hangingRun(t: ExecutionContext): Promise<{run: ChildProcess; pids: number[]; directories: string[]}> {
  const place = await folder(t)
  const run = spawn('scripts/test', ['--config', 'test/run/hanging.config.js'], {
    env: {...process.env, LUNPATH_HANGING: place},
    stdio: 'ignore',
  })
  t.teardown(() => run.kill('SIGKILL'))
  const file = join(place, 'pids')
  while (!existsSync(file) || (await readFile(file, 'utf8')) === '') await sleep(50)
  const [worker, child, ...directories] = (await readFile(file, 'utf8')).split(' ')
  return {run, pids: [Number(worker), Number(child)], directories}
}

test.serial('a run that gets SIGTERM ends what its tests started, and leaves nothing', async t => {
  const {run, pids, directories} = await hangingRun(t)
  const ended = once(run, 'exit')
  run.kill('SIGTERM')
  t.deepEqual(await ended, [143, null])
  await gone(...pids)
  t.deepEqual(directories.filter(existsSync), [])
})

test.serial(
  'what a killed run has left is removed by the next, with its processes, and a live one’s stays',
  async t => {
    const killed = await hangingRun(t)
    const live = await hangingRun(t)
    const ended = once(killed.run, 'exit')
    killed.run.kill('SIGKILL')
    await ended
    t.true(killed.directories.every(existsSync))
    const removed = [...(await removeLeftovers('/tmp')), ...(await removeLeftovers('/dev/shm'))]
    for (const directory of killed.directories) {
      t.true(removed.includes(directory), directory)
      t.false(existsSync(directory))
    }
    await gone(...killed.pids)
    t.true(live.directories.every(existsSync))
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

const asRoot = process.getuid?.() === 0 ? test : (test.skip as unknown as TestFn)
const leftoversModule = new URL('leftovers.js', import.meta.url).href

/** A directory in `place` that an ended run has left. */
async function leftDirectory(place: string, name: string): Promise<string> {
  const directory = join(place, `${runPrefix}${name}`)
  await mkdir(directory)
  await mark(directory)
  const file = join(directory, '.lunpath-test-run')
  await writeFile(file, (await readFile(file, 'utf8')).replace(/"startTime":"\d+"/, '"startTime":"1"'))
  return directory
}

asRoot('what cannot be removed is told and stays whole, and neither stops the others nor the run', async t => {
  const place = await folder(t)
  const stuck = await leftDirectory(place, 'a-stuck')
  const other = await leftDirectory(place, 'b-other')
  const mounted = join(stuck, 'mounted')
  await mkdir(mounted)
  t.is(spawnSync('mount', ['-t', 'tmpfs', 'none', mounted]).status, 0)
  t.teardown(() => spawnSync('umount', ['--lazy', mounted]))
  await writeFile(join(mounted, 'of another file system'), '')
  // In a user namespace of its own root has no right to unmount it.
  const program = `const {removeLeftovers} = await import('${leftoversModule}')
    console.log(JSON.stringify(await removeLeftovers(process.argv[1])))`
  const command = ['--user', '--map-root-user', process.execPath, '--input-type=module', '-e', program, place]
  for (const expected of [[other], []]) {
    const {status, stdout, stderr} = spawnSync('unshare', command, {encoding: 'utf8'})
    t.is(status, 0, stderr)
    t.deepEqual(JSON.parse(stdout), expected)
    t.regex(stderr, new RegExp(`${stuck}.* stays: .*${mounted}`))
    t.deepEqual(await readdir(mounted), ['of another file system'])
  }
  t.is(spawnSync('umount', [mounted]).status, 0)
  t.deepEqual(await removeLeftovers(place), [stuck])
})

test('the directory of a run that lives in another process namespace stays', async t => {
  const place = await folder(t)
  const directory = join(place, `${runPrefix}container`)
  await mkdir(directory)
  const program = `const {mark} = await import('${leftoversModule}')
    await mark(process.argv[1])
    setInterval(() => {}, 1000)`
  const namespaces = ['--user', '--map-root-user', '--pid', '--fork', '--mount-proc', '--kill-child=KILL']
  const command = [...namespaces, process.execPath, '--input-type=module', '-e', program, directory]
  const run = spawn('unshare', command, {stdio: 'ignore'})
  t.teardown(() => run.kill('SIGKILL'))
  while (!existsSync(join(directory, '.lunpath-test-run'))) await sleep(50)
  t.deepEqual(await removeLeftovers(place), [])
  t.true(existsSync(directory))
})

test('processes of a left directory whose environment tells nothing are ended, and those that look into it are not', async t => {
  const directory = await leftDirectory(await folder(t), 'processes')
  const program = join(directory, 'program')
  await copyFile('/bin/sleep', program)
  await writeFile(join(directory, 'file'), '')
  // Each is let go by the shell that started it, but for the last, which is somebody's who looks.
  const pidOf = (command: string) =>
    Number(spawnSync('sh', ['-c', `env -i ${command} >/dev/null 2>&1 & echo $!`], {encoding: 'utf8'}).stdout)
  const own = [pidOf(`$(chmod +x ${program})${program} 600`), pidOf(`tail -f ${directory}/file`)]
  const looking = spawn('tail', ['-f', join(directory, 'file')], {env: {}, stdio: 'ignore'})
  t.teardown(() => {
    looking.kill('SIGKILL')
    for (const pid of own.filter(isThere)) process.kill(pid, 'SIGKILL')
  })
  while (!own.every(isThere)) await sleep(20)
  t.deepEqual(await removeLeftovers(join(directory, '..')), [directory])
  t.deepEqual(own.filter(isThere), [])
  t.true(isThere(looking.pid!))
})

test('quick tests start no machine, and are some', t => {
  const files = quickFiles()
  t.true(files.includes('dist/test/iqn.test.js'))
  for (const name of ['lab/kernel', 'e2e/api', 'volumes/lvm', 'compute/libvirt'])
    t.false(files.includes(`dist/test/${name}.test.js`), name)
  // A module that has another name now would no longer be known for what it is.
  for (const module of heavy) t.true(existsSync(`dist/${module}.js`), module)
})

/** What a run of passes.ts and fails.ts writes, and its exit code. */
async function outcomes(file: string, args: string[]): Promise<{code: number; output: string}> {
  const child = spawn(file, args, {stdio: ['ignore', 'pipe', 'inherit']})
  child.stdout.setEncoding('utf8')
  let output = ''
  child.stdout.on('data', chunk => {
    output += chunk
  })
  const [code] = await once(child, 'close')
  return {code, output}
}

const ofOutcomes = ['scripts/test', '--config', 'test/run/outcomes.config.js'] as const

/** Of the run's directory, which goes with the test. */
async function keptLogs(t: ExecutionContext, output: string): Promise<string> {
  const [, path] = /; its logs are in (\S+)$/m.exec(output)!
  t.teardown(() => rm(dirname(path!), {recursive: true, force: true}))
  return path!
}

test.serial('each file that ends has its seconds in a comment of TAP, and one that failed its logs', async t => {
  const [file, ...args] = ofOutcomes
  const {code, output} = await outcomes(file, [...args, '--tap'])
  t.is(code, 1)
  const logs = await keptLogs(t, output)
  const lines = output.split('\n').map(line => line.replace(/ +\d+\.\d s /, ' N s '))
  t.true(lines.includes('# N s  run/passes.js (2 of 2)') || lines.includes('# N s  run/passes.js (1 of 2)'), output)
  for (const start of ['# failed: run/fails.js; its logs are in ', '# the slowest of 2 files:', '1..2']) {
    t.true(
      lines.some(line => line.startsWith(start)),
      output,
    )
  }
  t.is(await readFile(join(logs, 'daemon.log'), 'utf8'), 'why\n')
  // Those of the file that passed are gone.
  t.deepEqual(await readdir(dirname(logs)), [basename(logs)])
})

test.serial('a terminal shows the file that runs', async t => {
  const {code, output} = await outcomes('script', [
    '--quiet',
    '--return',
    '--command',
    ofOutcomes.join(' '),
    '/dev/null',
  ])
  t.is(code, 1)
  await keptLogs(t, output.replaceAll('\r', ''))
  t.regex(output, /\d of 2 files; running: run\/passes\.js \d+ s/)
  // And the line goes before anything else is written.
  t.true(output.includes(' s\r\u001b[2K'))
})

test.serial('a run in which nothing fails keeps no log', async t => {
  const [file, ...args] = ofOutcomes
  // That of the run that this test belongs to comes and goes with its first log.
  const known = [...(await readdir(allLogs())), basename(process.env[logsVariable] ?? '')]
  const {code, output} = await outcomes(file, [...args, '--match=passes', 'dist/test/run/passes.js'])
  t.is(code, 0, output)
  const after = await readdir(allLogs())
  t.deepEqual(
    after.filter(name => !known.includes(name)),
    [],
  )
})

test('seconds count from when a file got its place, and one whose worker was killed has failed', t => {
  const progress = new Progress(1000)
  progress.take({type: 'stats', stats: {files: 4}}, 1100)
  progress.take({type: 'declared-test', testFile: 'a'}, 1500)
  progress.take({type: 'declared-test', testFile: 'b'}, 1600)
  t.like(progress.take({type: 'worker-finished', testFile: 'a'}, 3000), {file: 'a', seconds: 2, failed: false})
  // Heard of long after a's end.
  progress.take({type: 'declared-test', testFile: 'c'}, 4000)
  t.deepEqual(progress.running(5000), [
    {file: 'b', seconds: 4},
    {file: 'c', seconds: 2},
  ])
  progress.take({type: 'test-failed', testFile: 'b'}, 5000)
  t.true(progress.take({type: 'worker-finished', testFile: 'b'}, 6000)!.failed)
  t.true(progress.take({type: 'worker-finished', testFile: 'c', forcedExit: true}, 7000)!.failed)
  // One that dies before it has declared anything.
  t.like(progress.take({type: 'worker-failed', testFile: 'd'}, 9000), {seconds: 3, failed: true})
  t.deepEqual(progress.running(9000), [])
  t.deepEqual(
    progress.slowest(2).map(({file}) => file),
    ['b', 'c'],
  )
})

test('files begin by their recorded seconds, unknown ones first', t => {
  const file = (name: string) => fileURLToPath(new URL(`../${name}.test.js`, import.meta.url))
  const names = ['iqn', 'e2e/grow', 'new/b', 'new/a', 'lab/iet']
  const order = names.map(file).sort(slowestFirst({iqn: 0.4, 'e2e/grow': 26, 'lab/iet': 17}))
  t.deepEqual(order, ['new/a', 'new/b', 'e2e/grow', 'lab/iet', 'iqn'].map(file))
})

test('a run renews the seconds of its files alone, and files that are gone leave the table', t => {
  const table = withSeconds({gone: 1, kept: 2.5, measured: 3}, {measured: 4.04, added: 0.26}, name => name !== 'gone')
  t.deepEqual(Object.entries(table), [
    ['added', 0.3],
    ['kept', 2.5],
    ['measured', 4],
  ])
})

test('--record with --match is refused: a file of which a part has run has other seconds', async t => {
  const {code} = await outcomes('scripts/test', ['--record', '--match=passes'])
  t.is(code, 2)
})

test('processes of a run are known by its variable', t => {
  t.is(process.env[runVariable], process.env.TMPDIR)
})
