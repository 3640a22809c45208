import {type ExecFileException, execFile} from 'node:child_process'
import {cp, mkdtemp, readdir, readFile, rm, stat, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {promisify} from 'node:util'
import test, {type ExecutionContext} from 'ava'

const run = promisify(execFile)

interface Outcome {
  exitCode: number
  stdout: string
  stderr: string
}

async function outcome(file: string, ...args: string[]): Promise<Outcome> {
  try {
    return {exitCode: 0, ...(await run(file, args))}
  } catch (error) {
    const {code, stdout, stderr} = error as ExecFileException & {stdout: string; stderr: string}
    return {exitCode: Number(code), stdout, stderr}
  }
}

/** A copy of what git would clone, so that nothing is installed or built in it. */
async function bareCheckout(t: ExecutionContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'lunpath-setup-'))
  t.teardown(() => rm(directory, {recursive: true, force: true}))
  const derived = ['node_modules', 'build', 'dist', '.cache', '.git']
  for (const entry of await readdir('.')) {
    if (!derived.includes(entry)) await cp(entry, join(directory, entry), {recursive: true})
  }
  return directory
}

async function snapshot(directory: string): Promise<string[]> {
  const names = await readdir(directory, {recursive: true})
  return Promise.all(
    names.sort().map(async name => {
      const {mtimeMs, size, mode, uid} = await stat(join(directory, name))
      return [name, mtimeMs, size, mode, uid].join(' ')
    }),
  )
}

test('1. --check in a bare checkout lists what is missing, exits 1 and changes nothing', async t => {
  const checkout = await bareCheckout(t)
  const before = await snapshot(checkout)
  const {exitCode, stdout} = await outcome(join(checkout, 'scripts/setup'), '--check')
  t.is(exitCode, 1)
  for (const step of [
    'node_modules (absent): npm ci',
    'native addons',
    'compiled TypeScript',
    'guest image',
    'lab image',
  ]) {
    t.true(stdout.includes(`missing: ${step}`), stdout)
  }
  t.deepEqual(await snapshot(checkout), before)
})

test('2. a set-up step that fails shows why, exits 1 and is still missing afterwards', async t => {
  const checkout = await bareCheckout(t)
  await writeFile(join(checkout, 'package-lock.json'), 'not a lock file')
  const {exitCode, stderr} = await outcome(join(checkout, 'scripts/setup'), '--skip-packages')
  t.is(exitCode, 1)
  t.regex(stderr, /node_modules: npm ci \.\.\. failed after .* The end of .*node_modules\.log/)
  t.regex(stderr, /\| npm error/)
  t.regex(
    (await outcome(join(checkout, 'scripts/setup'), '--check', '--skip-packages')).stdout,
    /missing: node_modules/,
  )
})

test('3. an addon build without the headers of this Node says what to install, and downloads nothing', async t => {
  const checkout = await bareCheckout(t)
  const node = join(checkout, 'prefix/bin/node')
  await cp(process.execPath, node, {recursive: true})
  const {exitCode, stderr} = await outcome(
    'unshare',
    '--user',
    '--map-root-user',
    '--mount',
    '--net',
    'bash',
    '-c',
    // No header is beside this node, and /usr/include is empty in this namespace.
    'mount -t tmpfs tmpfs /usr/include && PATH=$1/prefix/bin:$PATH exec "$1/scripts/build-native"',
    'bash',
    checkout,
  )
  t.is(exitCode, 1)
  t.regex(stderr, /Node's headers .* are neither beside .* nor in \/usr/)
  t.regex(stderr, /libnode-dev/)
})

test('4. an unknown group is refused with exit code 2 and the usage', async t => {
  const {exitCode, stderr} = await outcome('scripts/setup', 'no-such-group')
  t.is(exitCode, 2)
  t.regex(stderr, /unknown argument no-such-group/)
  t.regex(stderr, /Usage: scripts\/setup/)
})

test('5. every npm script that needs a set-up machine calls scripts/setup first', async t => {
  const {scripts} = JSON.parse(await readFile('package.json', 'utf8'))
  for (const name of ['test', 'demo', 'bench', 'lab', 'lint']) t.regex(scripts[`pre${name}`], /^scripts\/setup\b/, name)
})
