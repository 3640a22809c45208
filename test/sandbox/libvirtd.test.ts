import {spawn} from 'node:child_process'
import {once} from 'node:events'
import {existsSync} from 'node:fs'
import {mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {fileURLToPath} from 'node:url'
import test from 'ava'
import {Guest} from '../../src/sandbox/guest.js'
import {PrivateLibvirtd} from '../../src/sandbox/libvirtd.js'
import {processesOf} from '../fixtures/libvirt-processes.js'

const programs = ['libvirtd', 'qemu-system-x86_64']
const running = (libvirtd: PrivateLibvirtd) => programs.map(program => processesOf(libvirtd, program).length)

for (const isolation of ['namespace', 'plain'] as const) {
  test.serial(`${isolation}: a guest boots, outlives its libvirtd, and nothing outlives stop()`, async t => {
    const libvirtd = new PrivateLibvirtd({isolation})
    t.teardown(() => libvirtd.stop())
    await libvirtd.start()
    await libvirtd.start()
    const guest = new Guest({libvirtd, name: 'g1'})
    await guest.boot()
    await guest.waitReady()
    t.deepEqual(guest.disks(), [])
    t.deepEqual(await guest.stats(), {holds: [], kernelIoErrors: []})
    t.deepEqual(running(libvirtd), [1, 1])

    await libvirtd.kill()
    t.deepEqual(running(libvirtd), [0, 1])
    t.throws(() => libvirtd.connection, {code: 'COMPUTE_UNAVAILABLE'})
    await libvirtd.start()
    t.like((await libvirtd.connection.domains())[0], {name: 'g1'})

    await libvirtd.stop()
    await libvirtd.stop()
    t.deepEqual(running(libvirtd), [0, 0])
    t.false(existsSync(libvirtd.directory))
  })

  test.serial(`${isolation}: SIGKILL of the process that started it ends all of it`, async t => {
    const directory = await mkdtemp(join(tmpdir(), 'lp-test-'))
    t.teardown(() => rm(directory, {recursive: true, force: true}))
    const script = fileURLToPath(new URL('../fixtures/guest-process.js', import.meta.url))
    const child = spawn(process.execPath, [script, directory, isolation], {stdio: ['ignore', 'pipe', 'inherit']})
    t.teardown(() => child.kill('SIGKILL'))
    await once(child.stdout, 'data')
    const found = new PrivateLibvirtd({directory})
    t.deepEqual(running(found), [1, 1])
    child.kill('SIGKILL')
    await once(child, 'exit')
    for (let i = 0; i < 500 && running(found).some(count => count > 0); i++) await sleep(20)
    t.deepEqual(running(found), [0, 0])
  })
}

test('a directory that would make sockets too long, or that is no plain path, is refused', t => {
  for (const directory of ['/tmp/a b', `/tmp/${'x'.repeat(50)}`]) {
    t.throws(() => new PrivateLibvirtd({directory}), {code: 'INVALID_ARGUMENT'})
  }
})

test('an image that is not there is told with the command that makes it', async t => {
  const libvirtd = new PrivateLibvirtd()
  t.teardown(() => libvirtd.stop())
  await libvirtd.start()
  const guest = new Guest({libvirtd, name: 'g1', imageDirectory: '/nonexistent'})
  await t.throwsAsync(guest.boot(), {code: 'DEPENDENCY_MISSING', message: /scripts\/guest-image/})
  t.throws(() => new Guest({libvirtd, name: '../g1'}), {code: 'NAME_INVALID'})
})
