import {once} from 'node:events'
import {mkdtemp, open, readdir, rm, writeFile} from 'node:fs/promises'
import {createServer, type Socket} from 'node:net'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import anyTest, {type ExecutionContext, type TestFn} from 'ava'
import {freePort} from '../../src/sandbox/ports.js'
import {lunpath, start, until} from '../fixtures/cli.js'

/** The daemon listens before it has recovered, can be told to end meanwhile, and what it has resumed can be cancelled. */
const test = anyTest.serial as TestFn

async function configured(t: ExecutionContext, libvirtSocket = '/nonexistent/libvirt-sock') {
  const directory = await mkdtemp(join(tmpdir(), 'lp-recover-'))
  t.teardown(() => rm(directory, {recursive: true, force: true}))
  const config = join(directory, 'lunpath.toml')
  const socket = join(directory, 'api.sock')
  const metricsPort = await freePort()
  await writeFile(
    config,
    `[daemon]
directory = "${directory}/lib"
socket = "${socket}"
[targets]
portals = ["127.0.0.1:${await freePort()}"]
endWithDaemon = true
[compute]
uri = "qemu+unix:///session?socket=${libvirtSocket}"
[metrics]
listen = "127.0.0.1:${metricsPort}"
`,
  )
  const env = {LUNPATH_SOCKET: socket}
  const serve = () => {
    const daemon = start(['serve', '--config', config])
    t.teardown(() => daemon.child.kill('SIGKILL'))
    return daemon
  }
  const says = (daemon: ReturnType<typeof serve>, words: string) =>
    until(`it says ${words}`, () => daemon.output.stdout.includes(`"${words}"`))
  const status = async () => JSON.parse((await lunpath(['status', '--json'], {env})).stdout) as Status
  return {directory, env, serve, says, status, metricsPort}
}

interface Status {
  state: string
  unfinished: {id: string; kind: string; resumed: boolean}[]
}

test('01 a clone that is resumed keeps nobody waiting, ends with the daemon, stays journalled, and can be cancelled', async t => {
  t.timeout(180_000)
  const {directory, env, serve, says, status, metricsPort} = await configured(t)
  const first = serve()
  await says(first, 'serving')
  const made = await lunpath(['volume', 'create', '--size', '4GiB', '--name', 'large', '--json'], {env})
  const {path} = JSON.parse(made.stdout) as {path: string}
  const file = await open(path, 'r+')
  const chunk = Buffer.alloc(4 * 2 ** 20, 0xa5)
  for (let position = 0; position < 1024; position++) await file.write(chunk, 0, chunk.length, position * chunk.length)
  await file.close()
  const images = async () => (await readdir(join(directory, 'lib', 'volumes'))).filter(name => name !== '.lunpath-pool')
  start(['volume', 'clone', 'large', '--name', 'copy'], {env})
  await until('the copy has begun', async () => (await images()).length > 1)
  first.child.kill('SIGKILL')
  await first.ended

  const second = serve()
  await says(second, 'serving')
  const seen = await status()
  t.is(seen.state, 'recovering')
  t.like(seen.unfinished, [{kind: 'volume.clone', resumed: true}])
  t.is((await fetch(`http://127.0.0.1:${metricsPort}/metrics`)).status, 200)
  t.is((await lunpath(['volume', 'create', '--size', '4MiB', '--name', 'meanwhile'], {env})).exitCode, 0)
  second.child.kill('SIGTERM')
  t.is((await second.ended).exitCode, 0)

  const third = serve()
  await says(third, 'serving')
  const [operation] = (await status()).unfinished
  t.is(operation?.id, seen.unfinished[0]!.id, 'it was neither undone nor ended')
  const cancelled = await lunpath(['cancel', 'copy'], {env})
  t.is(cancelled.exitCode, 0, cancelled.stderr)
  t.regex(cancelled.stdout, /^cancelled volume.clone of [0-9a-f]{16}\n$/)
  await until('it has recovered', async () => (await status()).state === 'serving')
  t.deepEqual((await status()).unfinished, [])
  t.is((await images()).length, 2, 'large and meanwhile')
  const again = await lunpath(['cancel', operation!.id], {env})
  t.is(again.exitCode, 3, again.stderr)
  third.child.kill('SIGTERM')
  t.is((await third.ended).exitCode, 0)
})

test('02 a start that waits is listened to: status and metrics answer, the rest is told to come again, SIGTERM ends it', async t => {
  const sockets = new Set<Socket>()
  const silent = createServer(socket => void sockets.add(socket.on('error', () => {})))
  const directory = await mkdtemp(join(tmpdir(), 'lp-silent-'))
  const libvirtSocket = join(directory, 'libvirt-sock')
  await once(silent.listen(libvirtSocket), 'listening')
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy()
    silent.close()
    await rm(directory, {recursive: true, force: true})
  })
  const {env, serve, says, status, metricsPort} = await configured(t, libvirtSocket)
  const daemon = serve()
  await says(daemon, 'listening')
  await until('it asks libvirt', () => sockets.size > 0)
  t.is((await status()).state, 'recovering')
  t.is((await fetch(`http://127.0.0.1:${metricsPort}/metrics`)).status, 200)
  const refused = await lunpath(['volume', 'list', '--json'], {env})
  t.is(refused.exitCode, 5)
  t.like(JSON.parse(refused.stdout), {error: {code: 'DAEMON_STARTING'}})
  daemon.child.kill('SIGTERM')
  t.is((await daemon.ended).exitCode, 0)
  t.false(daemon.output.stdout.includes('"serving"'))
})
