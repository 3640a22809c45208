import {spawn} from 'node:child_process'
import {cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {pathToFileURL} from 'node:url'
import test, {type ExecutionContext} from 'ava'
import {run} from '../src/exec.js'
import {freePort} from '../src/sandbox/ports.js'
import {cliPath, until} from './fixtures/cli.js'
import {filesIn, packagesIn, reportsLoads} from './fixtures/loaded.js'

/** What scripts/bundle.js makes: few files, each package once, with its licence. */

interface Map {
  sources: string[]
}

async function sourcesOf(file: string): Promise<string[]> {
  return (JSON.parse(await readFile(`${file}.map`, 'utf8')) as Map).sources
}

const bundles = ['dist/src/packages/daemon.js', 'dist/bin/lunpath.cjs', 'dist/bin/local.js', 'dist/bin/store-worker.js']

/** A directory with all that the bundles are made of, so that a test can change it. */
async function checkout(t: ExecutionContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'lunpath-bundle-'))
  t.teardown(() => rm(directory, {recursive: true, force: true}))
  for (const entry of ['src', 'scripts', 'package.json', 'tsconfig.json'])
    await cp(entry, join(directory, entry), {recursive: true})
  await mkdir(join(directory, 'dist/src/packages'), {recursive: true})
  return directory
}

test('1. the daemon, when it serves, has loaded no package but native ones, and six files of ours at most', async t => {
  const directory = await mkdtemp(join(tmpdir(), 'lunpath-bundle-'))
  t.teardown(() => rm(directory, {recursive: true, force: true}))
  const config = join(directory, 'lunpath.toml')
  await writeFile(
    config,
    `[daemon]
directory = "${directory}"
socket = "${directory}/api.sock"
[targets]
portals = ["127.0.0.1:${await freePort()}"]
endWithDaemon = true
[compute]
uri = "test:///default"
[metrics]
listen = ""
`,
  )
  const daemon = spawn(process.execPath, ['--import', reportsLoads, cliPath, 'serve', '--config', config])
  t.teardown(() => daemon.kill('SIGKILL'))
  const ended = new Promise(resolve => daemon.once('close', resolve))
  let log = ''
  let loads = ''
  daemon.stdout.setEncoding('utf8').on('data', text => {
    log += text
  })
  daemon.stderr.setEncoding('utf8').on('data', text => {
    loads += text
  })
  await until('the daemon serves', () => log.includes('"serving"') || daemon.exitCode !== null)
  daemon.kill('SIGTERM')
  await ended
  t.regex(log, /"serving"/, loads)
  const files = filesIn(loads)
  const native = /\/node_modules\/(ffi-rs|libsql|@libsql\/|@neon-rs\/load|detect-libc|@yuuang\/)/
  t.deepEqual(
    files.filter(file => file.includes('/node_modules/') && !native.test(file)),
    [],
  )
  const ours = files.filter(file => !file.includes('/node_modules/') && !file.endsWith('.node'))
  t.true(ours.length <= 6, ours.join('\n'))
})

test('2. no module and no package is in two bundles of one process', async t => {
  const inOneThread = await Promise.all(bundles.slice(0, 3).map(sourcesOf))
  const all = inOneThread.flatMap((sources, index) =>
    sources.map(source => join(bundles[index]!, '..', source)).filter(source => /^(src|node_modules)\//.test(source)),
  )
  t.true(all.some(source => source === 'src/errors.ts') && all.some(source => source.includes('/fastify/')))
  t.deepEqual(
    all.filter((source, index) => all.indexOf(source) !== index),
    [],
  )
  // Of one package, files may not be in two bundles either.
  const packages = inOneThread.flatMap(sources => packagesIn(sources.map(source => `/${source}`)))
  t.deepEqual(
    packages.filter((name, index) => packages.indexOf(name) !== index),
    [],
  )
})

test('3. what the daemon throws is of the class that the command line knows', async t => {
  const script = `import {createRequire} from 'node:module'
    process.argv = [process.argv[0], 'lunpath', '--version']
    const {shared} = createRequire(${JSON.stringify(pathToFileURL(cliPath).href)})(${JSON.stringify(cliPath)})
    const {readConfig} = await import(${JSON.stringify(pathToFileURL(join(cliPath, '../local.js')).href)})
    await readConfig('/nonexistent').catch(error => console.log(error instanceof shared['src/errors.ts'].StorageError, error.stack))`
  const {stdout} = await run(process.execPath, ['--input-type=module', '-e', script])
  t.regex(stdout, /^true /m)
  t.regex(stdout, /\/src\/config\.ts:\d+:\d+/)
})

test('4. each package in a bundle has its licence text in dist/bin/LICENSES.txt', async t => {
  const text = await readFile('dist/bin/LICENSES.txt', 'utf8')
  const packages = (await Promise.all(bundles.map(sourcesOf))).flatMap(sources => packagesIn(sources))
  t.true(packages.length > 30)
  const sections = text.split(/\n-{100}\n/)
  for (const name of new Set(packages)) {
    const section = sections.find(one => one.trim().startsWith(`${name} `))
    t.regex(section ?? '', /copyright/i, name)
  }
})

test('5. a bundled package without a licence text fails the build, which says where to put the text', async t => {
  const directory = await checkout(t)
  await symlink(join(process.cwd(), 'node_modules'), join(directory, 'node_modules'))
  await rm(join(directory, 'scripts/licenses/abstract-logging.txt'))
  const error = await t.throwsAsync(run(process.execPath, [join(directory, 'scripts/bundle.js')]))
  t.regex(String(error), /abstract-logging .* has no file with its licence.*scripts\/licenses\/abstract-logging\.txt/s)
})

test('6. a module that takes a package past src/packages fails the build, which names both', async t => {
  const directory = await checkout(t)
  await symlink(join(process.cwd(), 'node_modules'), join(directory, 'node_modules'))
  const file = join(directory, 'src/size.ts')
  await writeFile(file, `import {pino} from 'pino'\nexport const log = pino()\n${await readFile(file, 'utf8')}`)
  const error = await t.throwsAsync(run(process.execPath, [join(directory, 'scripts/bundle.js')]))
  t.regex(String(error), /src\/size\.ts imports .*pino.*src\/packages\/daemon\.ts/s)
})

test('7. --check fails where tsc has run without the bundles, or a bundle is missing', async t => {
  const directory = await checkout(t)
  const check = () => run(process.execPath, [join(directory, 'scripts/bundle.js'), '--check'])
  t.regex(String(await t.throwsAsync(check())), /dist\/bin\/lunpath\.cjs is missing\. Run: npm run build:ts/)
  await cp('dist/bin', join(directory, 'dist/bin'), {recursive: true})
  await writeFile(join(directory, 'dist/src/packages/daemon.js'), `export {fastify} from 'fastify'\n`)
  t.regex(String(await t.throwsAsync(check())), /daemon\.js is not bundled\. Run: npm run build:ts/)
  await cp('dist/src/packages/daemon.js', join(directory, 'dist/src/packages/daemon.js'))
  await t.notThrowsAsync(check())
})

test('8. what the declarations of the package import is in its dependencies', async t => {
  const {dependencies} = JSON.parse(await readFile('package.json', 'utf8')) as {dependencies: Record<string, string>}
  const names = new Set<string>()
  const seen = new Set<string>()
  const visit = async (file: string) => {
    if (seen.has(file)) return
    seen.add(file)
    for (const [, from] of (await readFile(file, 'utf8')).matchAll(/(?:from|import\()\s*["']([^"']+)["']/g)) {
      if (from!.startsWith('.')) await visit(join(file, '..', from!.replace(/\.js$/, '.d.ts')))
      else if (!from!.startsWith('node:')) names.add(/^(@[^/]+\/)?[^/]+/.exec(from!)![0])
    }
  }
  await visit('dist/src/index.d.ts')
  t.true(names.has('@sinclair/typebox'))
  t.deepEqual(
    [...names].filter(name => dependencies[name] === undefined),
    [],
  )
})

test('9. dist/bin holds nothing of an earlier build', async t => {
  const made = bundles.slice(1).map(file => file.replace('dist/bin/', ''))
  t.deepEqual((await readdir('dist/bin')).sort(), [...made, ...made.map(file => `${file}.map`), 'LICENSES.txt'].sort())
})
