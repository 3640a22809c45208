import {execFile} from 'node:child_process'
import {mkdir, mkdtemp, rm, symlink, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {fileURLToPath} from 'node:url'
import {promisify} from 'node:util'
import test from 'ava'
import {packageRoot} from '../../src/native.js'
import {asLine, difference, testsOf} from './titles.js'

const awkward = `
import test from 'ava'
if (process.env.LUNPATH_TEST_SEED !== '1') throw new Error('its seed is not fixed')
console.log('noise')
const named = test.macro({exec: t => t.fail(), title: (given, number) => \`\${given ?? 'macro'} \${number}\`})
for (const number of [1, 2]) test(named, number)
test.serial('given', named, 3)
test.before(() => { throw new Error('a hook was run') })
test.skip('skipped', t => t.fail())
test.todo('to do')
test.serial.failing('two\\nlines', t => t.fail())
await new Promise(resolve => setTimeout(resolve, 20))
`

test('titles of loops, macros, skipped and unfinished tests are listed, and nothing is run', async t => {
  const checkout = await mkdtemp(join(tmpdir(), 'lp-titles-'))
  t.teardown(() => rm(checkout, {recursive: true, force: true}))
  await mkdir(join(checkout, 'dist', 'test', 'room'), {recursive: true})
  await symlink(join(packageRoot(), 'node_modules'), join(checkout, 'node_modules'))
  await writeFile(join(checkout, 'package.json'), '{"type": "module"}')
  await writeFile(join(checkout, 'dist', 'test', 'room', 'awkward.test.js'), awkward)
  const titles = ['macro 1', 'macro 2', 'given 3', 'skipped', 'to do', 'two lines']
  t.deepEqual(
    (await testsOf(checkout)).map(asLine),
    titles.map(title => `room/awkward › ${title}`),
  )
})

test('a title that is gone is named once, and one that another file has now is moved', t => {
  const before = ['a › kept', 'a › left', 'b › same name', 'a › same name', 'c › gone']
  const after = ['a › kept', 'b › left', 'b › same name', 'd › new']
  t.deepEqual(difference(before, after), {
    // That b had a test of this name before does not stand for a's.
    gone: [
      {file: 'a', title: 'same name'},
      {file: 'c', title: 'gone'},
    ],
    moved: [{from: {file: 'a', title: 'left'}, to: 'b'}],
  })
})

test('--compare exits with 1 where a title is gone', async t => {
  const directory = await mkdtemp(join(tmpdir(), 'lp-titles-'))
  t.teardown(() => rm(directory, {recursive: true, force: true}))
  const [before, after] = [join(directory, 'before'), join(directory, 'after')]
  await writeFile(before, 'a › kept\na › gone\n')
  await writeFile(after, 'a › kept\nb › new\n')
  const program = fileURLToPath(new URL('titles.js', import.meta.url))
  const compare = (...files: string[]) => promisify(execFile)(process.execPath, [program, '--compare', ...files])
  const error = await t.throwsAsync(compare(before, after), {any: true})
  t.like(error, {code: 1, stdout: 'gone: a › gone\n2 titles before, 2 after; 1 gone, 0 moved\n'})
  t.is((await compare(after, after)).stdout, '2 titles before, 2 after; 0 gone, 0 moved\n')
})
