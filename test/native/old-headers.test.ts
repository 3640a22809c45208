// The addons compile with the headers of an older kernel than the one that they run on: Linux 5.10, Debian 11's.
import {readdir, readFile} from 'node:fs/promises'
import {join, relative} from 'node:path'
import test from 'ava'
import {run} from '../../src/exec.js'
import {packageRoot} from '../../src/native.js'

const top = packageRoot()
// In front of the system's own, of which they hide what came later.
const flags = ['-std=c++20', '-I', join(top, 'native'), '-isystem', join(top, 'test', 'fixtures', 'linux-5.10')]

const compile = (args: string[], input = '') => run('g++', [...flags, ...args], {input, timeoutMs: 300_000})

test('what needs the kernel knows all that Linux 5.10 has no name for', async t => {
  t.timeout(300_000)
  const names = await readdir(join(top, 'native'), {recursive: true})
  const sources = names.filter(name => name.endsWith('.cc')).map(name => join(top, 'native', name))
  const compiled: string[] = []
  for (const source of sources) {
    // What knows JS knows no kernel, and libraries may be missing.
    if (/napi\.h|libvirt\.h|iscsi\/iscsi\.h/.test((await compile(['-M', '-MG', source])).stdout)) continue
    await compile(['-fsyntax-only', source])
    compiled.push(relative(top, source))
  }
  for (const expected of ['native/bench/ring.cc', 'native/bench/workers.cc', 'native/iet/control.cc']) {
    t.true(compiled.includes(expected), expected)
  }
  // The names are hidden indeed.
  const later = (await readFile(join(top, 'native/bench/uring_abi.h'), 'utf8')).matchAll(/\bIORING_\w+/g)
  for (const [name] of later) {
    const probe = `#include <linux/io_uring.h>\nint main() { return ${name} != 0; }\n`
    await t.throwsAsync(compile(['-fsyntax-only', '-x', 'c++', '-'], probe), {code: 'COMMAND_FAILED'}, name)
  }
})
