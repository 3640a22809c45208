import {execFileSync} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {mkdtemp, open, readdir, readFile, rm, stat, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import test from 'ava'
import {LibiscsiInitiator} from '../../src/initiators/libiscsi.js'
import {freePort} from '../../src/sandbox/ports.js'
import {cliPath, everyCommand, lunpath, processesOf, start, until} from '../fixtures/cli.js'

/** `lunpath serve` as a service manager runs it, and the command line where no daemon is. */

/** Options that a command has of its own, as docs and scripts name them. */
const options: Record<string, string[]> = {
  'volume create': ['--size', '--name', '--preallocate'],
  'volume import': ['--name'],
  'volume extend': ['--size'],
  'volume clone': ['--size', '--name'],
  'export create': ['--volume', '--size', '--name', '--allow', '--read-only', '--write-back', '--chap-file'],
  'export delete': ['--force'],
  attach: [
    '--volume',
    '--size',
    '--device',
    '--name',
    '--bus',
    '--read-only',
    '--persistent',
    '--write-back',
    '--chap-file',
  ],
  detach: ['--timeout'],
  discover: ['--chap-file'],
  bench: [
    '--rw',
    '--bs',
    '--iodepth',
    '--runtime',
    '--seed',
    '--filename',
    '--job',
    '--write-to',
    '--size-is',
    '--sweep',
    '--until-steady',
    '--label',
  ],
  'bench show': ['--format'],
  serve: ['--config'],
  doctor: ['--config'],
  demo: ['--keep'],
}

test('01 each command has help that names its options, --json and --socket', async t => {
  for (const words of everyCommand) {
    const {exitCode, stdout, stderr} = await lunpath([...words, '--help'])
    t.is(exitCode, 0, words.join(' '))
    t.is(stderr, '')
    t.regex(stdout, new RegExp(`^Usage: lunpath ${words.join(' ')}`))
    for (const option of [...(options[words.join(' ')] ?? []), '--json', '--socket'])
      t.true(stdout.includes(`  ${option}`), `${words.join(' ')}: ${option}`)
  }
})

test('02 the help of lunpath names every command, and the list above has all of them', async t => {
  const {stdout} = await lunpath(['--help'])
  const named = [
    ...stdout
      .split('Commands:')[1]!
      .split('\n\n')[0]!
      .matchAll(/^ {2}([a-z]+)/gm),
  ].map(match => match[1])
  t.deepEqual(named.filter(name => name !== 'help').sort(), [...new Set(everyCommand.map(([first]) => first))].sort())
  for (const group of ['volume', 'export', 'domain']) {
    const help = (await lunpath([group, '--help'])).stdout
    const inGroup = [...help.split('Commands:')[1]!.matchAll(/^ {2}([a-z]+)/gm)].map(match => match[1])
    const listed = everyCommand.filter(([first]) => first === group).map(([, second]) => second)
    t.deepEqual(inGroup.filter(name => name !== 'help').sort(), listed.sort())
  }
})

test('03 without a command, with an unknown one, and the version', async t => {
  const bare = await lunpath([])
  t.deepEqual([bare.exitCode, bare.stdout], [2, ''])
  t.regex(bare.stderr, /^Usage: lunpath/)
  const unknown = await lunpath(['volumes'])
  t.deepEqual([unknown.exitCode, unknown.stdout], [2, ''])
  t.regex(unknown.stderr, /^lunpath: unknown command 'volumes'.*Did you mean volume\?.*See: lunpath --help\n/s)
  const {version} = JSON.parse(await readFile('package.json', 'utf8')) as {version: string}
  t.deepEqual(await lunpath(['--version']), {exitCode: 0, stdout: `${version}\n`, stderr: ''})
  for (const args of [['--json'], ['--json', 'volumes'], ['volume', '--json']]) {
    const {exitCode, stdout} = await lunpath(args)
    t.is(exitCode, 2)
    t.is((JSON.parse(stdout) as {error: {code: string}}).error.code, 'INVALID_ARGUMENT', args.join(' '))
  }
})

test('04 without a daemon: exit code 5, and how to start one', async t => {
  for (const args of [['volume', 'list'], ['attach', 'vm', '--size', '1GiB'], ['status']]) {
    const {exitCode, stdout, stderr} = await lunpath(['--socket', '/nonexistent/api.sock', ...args])
    t.deepEqual([exitCode, stdout], [5, ''])
    t.regex(stderr, /No lunpath daemon answers on \/nonexistent\/api\.sock.*lunpath serve/)
    const asJson = await lunpath([...args, '--json'], {env: {LUNPATH_SOCKET: '/nonexistent/other.sock'}})
    t.is(asJson.exitCode, 5)
    t.like(JSON.parse(asJson.stdout), {error: {code: 'DAEMON_UNREACHABLE', info: {socket: '/nonexistent/other.sock'}}})
  }
})

async function configured(
  more = '',
  endWithDaemon = true,
): Promise<{directory: string; config: string; socket: string; port: number}> {
  const directory = await mkdtemp(join(tmpdir(), 'lp-serve-'))
  const config = join(directory, 'lunpath.toml')
  const socket = join(directory, 'run', 'api.sock')
  const port = await freePort()
  await writeFile(
    config,
    `[daemon]
directory = "${directory}/lib"
socket = "${socket}"
[targets]
portals = ["127.0.0.1:${port}"]
endWithDaemon = ${endWithDaemon}
[compute]
uri = "qemu+unix:///session?socket=${directory}/no-libvirtd"
[metrics]
listen = "127.0.0.1:${await freePort()}"
${more}`,
  )
  return {directory, config, socket, port}
}

test('05 serve: a socket for its owner alone; SIGTERM ends it clean with exit code 0, Ctrl-C with 130', async t => {
  const {directory, config, socket} = await configured()
  t.teardown(() => rm(directory, {recursive: true, force: true}))
  for (const [signal, code] of [
    ['SIGTERM', 0],
    ['SIGINT', 130],
  ] as const) {
    const daemon = start(['serve', '--config', config])
    t.teardown(() => daemon.child.kill('SIGKILL'))
    await until('it serves', () => daemon.output.stdout.includes('"serving"'))
    t.is((await stat(socket)).mode & 0o777, 0o600)
    t.is((await stat(join(directory, 'lib', 'store.db'))).mode & 0o777, 0o600)
    const env = {LUNPATH_SOCKET: socket}
    const made = await lunpath(['export', 'create', '--size', '4MiB', '--name', `on-${code}`], {env})
    t.is(made.exitCode, 0, made.stderr)
    const listed = JSON.parse((await lunpath(['export', 'list', '--json'], {env})).stdout) as unknown[]
    t.is(listed.length, signal === 'SIGTERM' ? 1 : 2, 'what was made before the restart is there')
    // Nothing answers for libvirt here: what needs it says so, the rest works.
    t.is((await lunpath(['domain', 'list'], {env})).exitCode, 5)

    const second = await lunpath(['serve', '--config', config])
    t.is(second.exitCode, 1)
    t.regex(second.stderr, /Another daemon uses the store/)

    daemon.child.kill(signal)
    const {exitCode, stdout, stderr} = await daemon.ended
    t.deepEqual([exitCode, stderr], [code, ''])
    for (const line of stdout.trim().split('\n')) t.notThrows(() => JSON.parse(line), line)
    await until('its processes are gone', async () => (await processesOf(directory)).length === 0)
    t.is((await lunpath(['status'], {env})).exitCode, 5)
  }
  t.deepEqual((await readdir(join(directory, 'lib', 'volumes'))).filter(name => name.endsWith('.img')).length, 2)
})

test('06 a restart of the daemon leaves its tgtd, with sessions and all, and the next daemon takes it over', async t => {
  const {directory, config, socket, port} = await configured('', false)
  const tgtdPid = async () => Number(await readFile(join(directory, 'lib', 'tgtd', 'tgtd.pid'), 'utf8'))
  t.teardown(async () => {
    process.kill(await tgtdPid(), 'SIGKILL')
    await rm(directory, {recursive: true, force: true})
  })
  const env = {LUNPATH_SOCKET: socket}
  const serve = async () => {
    const daemon = start(['serve', '--config', config])
    t.teardown(() => daemon.child.kill('SIGKILL'))
    await until('it serves', () => daemon.output.stdout.includes('"serving"'))
    return daemon
  }
  const first = await serve()
  const made = await lunpath(['export', 'create', '--size', '4MiB', '--json', '--allow', 'ALL'], {env})
  const {iqn, lun, serial} = (JSON.parse(made.stdout) as {export: {iqn: string; lun: number; serial: string}}).export
  const pid = await tgtdPid()
  const login = {portal: {address: '127.0.0.1', port}, iqn, lun, initiatorName: 'iqn.2026-01.io.lunpath.test:guest'}
  const session = await new LibiscsiInitiator().connect(login)
  t.teardown(() => session.close())
  const data = randomBytes(4096)
  await session.write(0, data)

  first.child.kill('SIGTERM')
  t.is((await first.ended).exitCode, 0)
  t.deepEqual(await session.read(0, data.length), data, 'without a daemon the session goes on')
  const late = await new LibiscsiInitiator().connect(login)
  t.is(late.identity.serial, serial, 'and others can log in')
  await late.close()

  const second = await serve()
  t.is(await tgtdPid(), pid)
  t.deepEqual(await session.read(0, data.length), data)
  const sessions = JSON.parse((await lunpath(['session', 'list', '--json'], {env})).stdout) as {initiator: string}[]
  t.deepEqual(
    sessions.map(({initiator}) => initiator),
    [login.initiatorName],
  )
  second.child.kill('SIGTERM')
  t.is((await second.ended).exitCode, 0)
})

test('07 SIGTERM ends a benchmark and undoes a clone, and does not wait for them', async t => {
  const {directory, config, socket} = await configured()
  t.teardown(() => rm(directory, {recursive: true, force: true}))
  const env = {LUNPATH_SOCKET: socket}
  const daemon = start(['serve', '--config', config])
  t.teardown(() => daemon.child.kill('SIGKILL'))
  await until('it serves', () => daemon.output.stdout.includes('"serving"'))
  const images = async () => (await readdir(join(directory, 'lib', 'volumes'))).filter(name => name !== '.lunpath-pool')
  t.is((await lunpath(['export', 'create', '--size', '4MiB', '--name', 'small'], {env})).exitCode, 0)
  const made = await lunpath(['volume', 'create', '--size', '1GiB', '--name', 'large', '--json'], {env})
  const {path} = JSON.parse(made.stdout) as {path: string}
  const file = await open(path, 'r+')
  const chunk = Buffer.alloc(2 ** 20, 0xa5)
  for (let position = 0; position < 1024; position++) await file.write(chunk, 0, chunk.length, position * 2 ** 20)
  await file.close()

  const bench = start(['bench', 'small', '--runtime', '3600', '--json'], {env})
  const sessions = async () => JSON.parse((await lunpath(['session', 'list', '--json'], {env})).stdout) as unknown[]
  await until('the benchmark is logged in', async () => (await sessions()).length > 0)
  const clone = start(['volume', 'clone', 'large', '--json'], {env})
  await until('the copy has begun', async () => (await images()).length > 2)
  daemon.child.kill('SIGTERM')
  t.is((await daemon.ended).exitCode, 0)
  const cancelled = await bench.ended
  t.is(cancelled.exitCode, 130, cancelled.stdout + cancelled.stderr)
  t.is((JSON.parse(cancelled.stdout) as {state: string}).state, 'cancelled')
  const undone = await clone.ended
  t.is(undone.exitCode, 130, undone.stdout + undone.stderr)
  t.like(JSON.parse(undone.stdout), {error: {code: 'CANCELLED'}})
  t.is((await images()).length, 2)
})

test('08 a configuration that is wrong or not there is named, with exit code 2', async t => {
  const {directory, config} = await configured('[nonsense]\n')
  t.teardown(() => rm(directory, {recursive: true, force: true}))
  const unknown = await lunpath(['serve', '--config', config])
  t.is(unknown.exitCode, 2)
  t.regex(unknown.stderr, /nonsense/)
  const absent = await lunpath(['serve', '--config', join(directory, 'absent.toml')])
  t.is(absent.exitCode, 2)
  t.regex(absent.stderr, /absent\.toml cannot be read/)
})

test('09 a reader that ends early is no error', t => {
  const output = execFileSync('bash', ['-c', '"$0" "$1" --help | head -n 1', process.execPath, cliPath])
  t.regex(String(output), /^Usage: lunpath/)
})
