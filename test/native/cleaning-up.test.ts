// What is left of a call that could not be begun, or that did a part of what it was asked for.
import {readFile, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import test from 'ava'
import {loadAddon} from '../../src/native.js'
import {Configfs, op} from '../../src/targets/configfs.js'
import {temporaryDirectory} from '../contract/targets.js'
import {AddonCalls} from '../fixtures/addon-process.js'

interface Stoppable {
  stop(id: number): number
  close(): void
}
interface Runner extends Stoppable {
  run(id: number, operations: object[]): Promise<unknown>
}
interface Control extends Stoppable {
  call(id: number, sequences: unknown[][], timeoutMs: number, expectedPid: number): Promise<unknown>
  read(id: number, path: string, until: string): Promise<unknown>
}

const newRunner = (network: string) =>
  new (loadAddon<{Runner: new (network: string) => Runner}>('configfs').Runner)(network)
const newControl = () => new (loadAddon<{Control: new (name: string) => Control}>('iet').Control)('nobody-listens')

for (const [what, network, code] of [
  ['is not there', '/nonexistent/network', 'ENOENT'],
  ['is none', '/dev/null', 'EINVAL'],
] as const) {
  test(`a batch whose network namespace ${what} is not running any more`, async t => {
    const runner = newRunner(network)
    await t.throwsAsync(runner.run(7, []), {code})
    t.is(runner.stop(7), -1)
    await t.throwsAsync(new Configfs({networkNamespace: network}).run([op.list('.')]), {code: 'TARGET_UNAVAILABLE'})
  })
}

test('what is refused after close() is not running', async t => {
  const runner = newRunner('')
  runner.close()
  await t.throwsAsync(runner.run(1, []), {code: 'ERR_CLOSED'})
  t.is(runner.stop(1), -1)
  const control = newControl()
  control.close()
  await t.throwsAsync(control.call(1, [], 1_000, 0), {code: 'ERR_CLOSED'})
  await t.throwsAsync(control.read(2, '/dev/null', ''), {code: 'ERR_CLOSED'})
  t.deepEqual([control.stop(1), control.stop(2)], [-1, -1])
})

// The kernel writes as much as the limit of a file's size leaves room for (setrlimit(2)).
for (const name of ['a value that is written in part', 'an attribute that is written in part']) {
  test(`${name} is an error`, async t => {
    const directory = await temporaryDirectory(t)
    await writeFile(join(directory, 'attribute'), '')
    const calls = await AddonCalls.start(name, directory, ['prlimit', '--fsize=4096', '--'])
    t.teardown(() => calls.end())
    t.deepEqual(await calls.make(1), ['EIO'])
    t.is((await readFile(join(directory, 'attribute'))).length, 4096)
  })
}
