// How the addons were built, as the built files show it: an overflow that is found ends the process at once, and the tables
// through which calls go cannot be written to.
import {join} from 'node:path'
import test from 'ava'
import {run} from '../../src/exec.js'
import {packageRoot} from '../../src/native.js'

const names = ['bench', 'configfs', 'file', 'iet', 'iscsi', 'libvirt', 'net', 'tgt']
// The plain build, also where other tests run on one with sanitizers.
const fileOf = (name: string) => join(packageRoot(), 'build', 'Release', `${name}.node`)
const readelf = async (what: string, name: string) => (await run('readelf', ['--wide', what, fileOf(name)])).stdout

for (const name of names) {
  test(`${name}.node: all symbols are bound at its start, and their table is read-only from there on`, async t => {
    t.regex(await readelf('--dynamic', name), /\(FLAGS\)\s+BIND_NOW/)
    t.regex(await readelf('--program-headers', name), /GNU_RELRO/)
  })

  test(`${name}.node: stacks are guarded, and what containers are asked for is checked`, async t => {
    const symbols = await readelf('--dyn-syms', name)
    t.regex(symbols, /UND __stack_chk_fail\b/)
    t.regex(symbols, /UND _ZSt21__glibcxx_assert_fail/)
  })
}

test('calls of the C library know how long their buffers are', async t => {
  // The others make no call with a buffer whose length the compiler could not see to be enough.
  const fortified = await Promise.all(names.map(name => readelf('--dyn-syms', name)))
  const checked = names.filter((_, index) =>
    /UND __\w+_chk\b/.test(fortified[index]!.replace(/UND __stack_chk\w+/g, '')),
  )
  t.deepEqual(checked, ['bench', 'configfs', 'iet', 'iscsi', 'libvirt', 'tgt'])
})
