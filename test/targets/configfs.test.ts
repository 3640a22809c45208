import {execFile} from 'node:child_process'
import {mkdir, readdir, readFile, readlink, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {promisify} from 'node:util'
import test from 'ava'
import {Configfs, ConfigfsError, type Operation, op, undoing} from '../../src/targets/configfs.js'
import {temporaryDirectory} from '../contract/targets.js'

const run = promisify(execFile)

test('1. operations run in order, below the root', async t => {
  const root = await temporaryDirectory(t)
  await writeFile(join(root, 'attribute'), '')
  const configfs = new Configfs({root})
  t.teardown(() => configfs.close())
  const outcomes = await configfs.run([
    op.mkdir('object'),
    op.write('attribute', 'value\n'),
    op.symlink('object/link', 'attribute'),
    op.read('attribute'),
    op.links('object'),
    op.list('.'),
    op.read('absent'),
    op.ensureDirectory('object'),
  ])
  t.deepEqual(
    outcomes.map(({code}) => code),
    ['', '', '', '', '', '', 'ENOENT', 'EEXIST'],
  )
  t.deepEqual(outcomes[3]?.texts, ['value'])
  t.deepEqual(outcomes[4]?.texts, ['link', join(root, 'attribute')])
  t.deepEqual(outcomes[5]?.texts, ['object'])
  t.is(await readlink(join(root, 'object', 'link')), join(root, 'attribute'))
})

test('2. the first refusal ends the batch and says which path refused what, never the value', async t => {
  const root = await temporaryDirectory(t)
  const configfs = new Configfs({root})
  t.teardown(() => configfs.close())
  const operations = [op.mkdir('object'), op.write('object/password', 'a-good-secret-01'), op.mkdir('later')]
  const error = await t.throwsAsync(configfs.run(operations), {instanceOf: ConfigfsError})
  t.like(error, {code: 'ENOENT', errno: 2, syscall: 'open', path: 'object/password', index: 1})
  t.is(error?.message, 'open object/password: no such file or directory')
  t.false(JSON.stringify(error).includes('secret'))
  t.deepEqual(await readdir(root), ['object'])
})

test('3. what a batch has made is taken back in reverse, and what it found stays', async t => {
  const root = await temporaryDirectory(t)
  await mkdir(join(root, 'found'))
  const configfs = new Configfs({root})
  t.teardown(() => configfs.close())
  const operations: Operation[] = [
    op.ensureDirectory('found'),
    op.mkdir('found/object'),
    op.mkdir('found/object/inner'),
    op.symlink('found/object/inner/link', 'found'),
  ]
  await configfs.run(operations)
  await configfs.run(undoing(operations))
  t.deepEqual(await readdir(join(root, 'found')), [])
})

test('4. a call that does not end is reported with its path, and nothing behind it is begun', async t => {
  const root = await temporaryDirectory(t)
  await run('mkfifo', [join(root, 'attribute')])
  const configfs = new Configfs({root, timeoutMs: 200})
  t.teardown(() => configfs.close())
  const others = Array.from({length: 8}, (_, index) => configfs.run([op.mkdir(`other-${index}`)]))
  const error = await t.throwsAsync(configfs.run([op.write('attribute', '1'), op.mkdir('later')]), {
    instanceOf: ConfigfsError,
  })
  t.like(error, {code: 'ETIMEDOUT', path: 'attribute', index: 0})
  await Promise.all(others)
  // A reader lets the write end.
  t.is(await readFile(join(root, 'attribute'), 'utf8'), '1')
  await configfs.run([op.mkdir('after')])
  t.false((await readdir(root)).includes('later'))
})

test('5. batches run at once', async t => {
  const root = await temporaryDirectory(t)
  await run('mkfifo', [join(root, 'first'), join(root, 'second')])
  const configfs = new Configfs({root})
  t.teardown(() => configfs.close())
  // Each batch waits for the other one.
  await Promise.all([
    configfs.run([op.write('first', 'a'), op.read('second')]),
    configfs.run([op.read('first'), op.write('second', 'b')]),
  ])
  t.pass()
})
