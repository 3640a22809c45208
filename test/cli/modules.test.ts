import {spawnSync} from 'node:child_process'
import test from 'ava'
import {cliPath} from '../fixtures/cli.js'
import {filesLoaded, packagesIn} from '../fixtures/loaded.js'

/** Each package that a command has loaded a module of. */
const packagesOf = (args: string[]) => packagesIn(filesLoaded([cliPath, ...args]))

// Scripts run a command per volume: one that loads the daemon's libraries takes twice the time.
for (const args of [['--version'], ['volume', 'list'], ['attach', '--help'], ['bench', 'list']]) {
  test(`lunpath ${args.join(' ')} loads no library but that of its command line`, t => {
    const files = filesLoaded([cliPath, '--socket', '/nonexistent/lunpath.sock', ...args])
    // The library is a part of it.
    t.deepEqual(files, [cliPath])
  })
}

test('a command that works without a daemon loads no file of node_modules but those of native packages', t => {
  for (const args of [
    ['doctor', '--json'],
    ['serve', '--config', '/dev/null/no-such-file'],
  ]) {
    const packages = packagesOf(args).filter(name => !['ffi-rs', 'libsql'].includes(name))
    // What these two load to find their native code.
    const loaders = ['@neon-rs/load', 'detect-libc', '@libsql/linux-x64-gnu', '@yuuang/ffi-rs-linux-x64-gnu']
    t.deepEqual(
      packages.filter(name => !loaders.includes(name)),
      [],
      args.join(' '),
    )
  }
})

test('a fault in the command line is printed with the line of its source', t => {
  const fault = `data:text/javascript,${encodeURIComponent("Object.defineProperty(process.stdout, 'on', {value() { throw new Error('made by a test') }})")}`
  const {stderr} = spawnSync(process.execPath, ['--import', fault, cliPath, '--version'], {encoding: 'utf8'})
  t.regex(stderr, /Error: made by a test\n[\s\S]*\/src\/cli\/main\.ts:\d+:\d+/)
})
