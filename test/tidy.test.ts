import {spawnSync} from 'node:child_process'
import {chmod, mkdir, mkdtemp, readFile, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join, resolve} from 'node:path'
import test, {type ExecutionContext} from 'ava'

const script = resolve('scripts/tidy')

// clang-tidy's part is played: it notes which unit it was given, and finds what is marked in that unit or a header.
const linter = `#!/bin/bash
if [[ $1 == --version ]]; then cat version; exit; fi
unit=$2
echo "$unit" >>ran
for file in $(g++ -MM -MT x -Inative "$unit" | tr -d '\\\\' | sed 's/^x://'); do
  if grep -n FINDING "$file" /dev/null; then status=1; fi
done
if grep -q NOTE "$unit"; then echo "a note"; fi
echo '3 warnings generated.'
exit "\${status:-0}"
`

async function checkout(t: ExecutionContext) {
  const directory = await mkdtemp(join(tmpdir(), 'lp-tidy-'))
  t.teardown(() => rm(directory, {recursive: true}))
  const write = (name: string, text: string) => writeFile(join(directory, name), text)
  await mkdir(join(directory, 'native'))
  await mkdir(join(directory, 'bin'))
  await write('bin/clang-tidy', linter)
  await chmod(join(directory, 'bin/clang-tidy'), 0o755)
  await write('version', '14\n')
  await write('.clang-tidy', 'Checks: x\n')
  await write('native/inner.h', '// Empty.\n')
  await write('native/outer.h', '#include "inner.h"\n')
  await write('native/a.cc', '#include "outer.h"\n')
  await write('native/b.cc', '#include <cstddef>\n')
  await write('native/c.cc', 'int c;\n')
  /** Which units were run, what was printed and how it ended. */
  const tidy = async (...flags: string[]) => {
    await write('ran', '')
    const env = {PATH: `${join(directory, 'bin')}:${process.env.PATH}`, TMPDIR: directory}
    const units = ['native/a.cc', 'native/b.cc', 'native/c.cc']
    const done = spawnSync(script, [...units, '--', '-Inative', ...flags], {env, cwd: directory, encoding: 'utf8'})
    const ran = (await readFile(join(directory, 'ran'), 'utf8')).split('\n').filter(Boolean).sort()
    return {
      stdout: done.stdout,
      status: done.status,
      ran: ran.map(unit => unit.replace(/^native\/(.)\.cc$/, '$1')).join(''),
    }
  }
  return {tidy, write}
}

test('scripts/tidy runs a unit again when it, a header, a flag, the settings or clang-tidy changed', async t => {
  const {tidy, write} = await checkout(t)
  t.deepEqual(await tidy(), {stdout: '', status: 0, ran: 'abc'})
  t.is((await tidy()).ran, '')
  await write('native/inner.h', '// Changed.\n')
  t.is((await tidy()).ran, 'a')
  await write('native/c.cc', 'int d;\n')
  t.is((await tidy()).ran, 'c')
  t.is((await tidy('-DX')).ran, 'abc')
  await write('.clang-tidy', 'Checks: y\n')
  t.is((await tidy('-DX')).ran, 'abc')
  await write('version', '15\n')
  t.is((await tidy('-DX')).ran, 'abc')
  t.is((await tidy('-DX')).ran, '')
})

test('scripts/tidy prints findings in the order of the units, and finds them again until they are mended', async t => {
  const {tidy, write} = await checkout(t)
  await tidy()
  await write('native/inner.h', '// FINDING in a\n')
  await write('native/c.cc', '// FINDING in c\n')
  const expected = {
    stdout: 'native/inner.h:1:// FINDING in a\nnative/c.cc:1:// FINDING in c\n',
    status: 1,
    ran: 'ac',
  }
  t.deepEqual(await tidy(), expected)
  t.deepEqual(await tidy(), expected)
  await write('native/inner.h', '// Empty.\n')
  await write('native/c.cc', '// NOTE\n')
  t.deepEqual(await tidy(), {stdout: 'a note\n', status: 0, ran: 'ac'}, 'the state before the finding is checked too')
  t.is((await tidy()).ran, 'c', 'what says anything is not clean')
})

test('scripts/tidy gives clang-tidy what the compiler cannot read, every time', async t => {
  const {tidy, write} = await checkout(t)
  await write('native/b.cc', '#include "absent.h"\n')
  t.is((await tidy()).ran, 'abc')
  t.is((await tidy()).ran, 'b')
})
