#!/usr/bin/env node
/**
 * Makes Node load a few files instead of hundreds. It runs after tsc and writes:
 *
 *   dist/src/packages/daemon.js  the packages that src/packages/daemon.ts names, in place of its compiled form
 *   dist/bin/lunpath.js          the command line with its packages; with it come what the daemon adds to it, and the store's thread
 *   dist/bin/LICENSES.txt        the licence texts of all packages that are in a bundle
 *
 * `--check` changes nothing, and exits with 1 where a bundle is missing or tsc alone has run since.
 */
import {existsSync} from 'node:fs'
import {mkdir, readdir, readFile, rename, rm, writeFile} from 'node:fs/promises'
import {basename, join, resolve} from 'node:path'
import {fileURLToPath} from 'node:url'

process.chdir(fileURLToPath(new URL('..', import.meta.url)))
const packagesFile = 'dist/src/packages/daemon.js'
const programs = ['lunpath.js', 'store-worker.js']
const licensesName = 'LICENSES.txt'
const mark = '// Packages of npm in one file, made by scripts/bundle.js.'
/** They load native code from beside their own files. */
const native = ['ffi-rs', 'libsql']

function refuse(message) {
  process.stderr.write(`scripts/bundle.js: ${message}\n`)
  process.exit(1)
}

async function check() {
  for (const name of [...programs, licensesName]) {
    if (!existsSync(`dist/bin/${name}`)) refuse(`dist/bin/${name} is missing. Run: npm run build:ts`)
  }
  const packages = await readFile(packagesFile, 'utf8').catch(() => '')
  if (!packages.startsWith(mark)) refuse(`${packagesFile} is not bundled. Run: npm run build:ts`)
}

async function bundle() {
  const {build} = await import('esbuild').catch(() => refuse('esbuild is missing. Run: npm ci --ignore-scripts'))
  const common = {
    bundle: true,
    write: false,
    metafile: true,
    format: 'esm',
    platform: 'node',
    target: 'node20.19',
    // Maps say where a line came from; what stands there is not in the package.
    sourcemap: 'linked',
    sourcesContent: false,
    legalComments: 'none',
    logLevel: 'warning',
    external: native,
  }
  // What CommonJS modules require of Node's own; an ES module has no such function by itself.
  const requires = `import {createRequire as requireOf} from 'node:module'\nconst require = requireOf(import.meta.url)`
  const own = {...common, outdir: 'dist/bin', banner: {js: requires}, plugins: [packagesOutside]}
  const [packages, commandLine, store] = await Promise.all([
    build({
      ...common,
      entryPoints: ['src/packages/daemon.ts'],
      outdir: 'dist/src/packages',
      banner: {js: `${mark}\n${requires}`},
    }),
    build({...own, entryPoints: {lunpath: 'src/cli/main.ts'}, splitting: true}),
    // A thread has modules of its own in any case.
    build({...own, entryPoints: ['src/state/store-worker.ts']}),
  ]).catch(() => refuse('esbuild failed; what it says stands above'))
  checkImports(packages, [commandLine, store])
  const licenses = await licenseTexts([packages, commandLine, store])
  const files = [packages, commandLine, store].flatMap(({outputFiles}) => outputFiles)
  await mkdir('dist/bin', {recursive: true})
  for (const {path, contents} of files) await put(path, contents)
  await put(resolve('dist/bin', licensesName), licenses)
  const made = new Set([...files.map(({path}) => basename(path)), licensesName])
  for (const name of await readdir('dist/bin')) if (!made.has(name)) await rm(join('dist/bin', name))
}

/** dist/src has the packages' file, and dist/bin loads that one: a program that uses both has each package once. */
const packagesOutside = {
  name: 'packages-outside',
  setup: ({onResolve}) =>
    onResolve({filter: /\/packages\/daemon\.js$/}, () => ({path: '../src/packages/daemon.js', external: true})),
}

/** A program that starts meanwhile finds the former file or this one, never half of one. */
async function put(path, contents) {
  await writeFile(`${path}.new`, contents, {mode: path.endsWith('/lunpath.js') ? 0o755 : 0o644})
  await rename(`${path}.new`, path)
}

/** The package that a file is part of, as its directory; undefined for a file of ours. */
const packageOf = file => /^(?:.*\/)?node_modules\/(?:@[^/]+\/)?[^/]+/.exec(file)?.[0]

const packagesIn = ({metafile}) => new Set(Object.keys(metafile.inputs).map(packageOf).filter(Boolean))

/** A package that our modules do not take from src/packages would be loaded in many files, or twice. */
function checkImports(packages, ours) {
  const inDaemon = packagesIn(packages)
  for (const {metafile} of ours) {
    for (const [file, {imports}] of Object.entries(metafile.inputs)) {
      if (packageOf(file) !== undefined) continue
      for (const {path} of imports) {
        const taken = packageOf(path)
        if (taken === undefined || (file.startsWith('src/cli/') && !inDaemon.has(taken))) continue
        refuse(`${file} imports ${taken}. Export what it needs in src/packages/daemon.ts, and import it from there`)
      }
    }
  }
}

async function licenseTexts(results) {
  const directories = new Set(results.flatMap(result => [...packagesIn(result)]))
  const texts = []
  for (const directory of [...directories].sort()) {
    const {name, version, license} = JSON.parse(await readFile(join(directory, 'package.json'), 'utf8'))
    const own = (await readdir(directory)).filter(file => /^(licen[cs]e|copying|notice)\b/i.test(file)).sort()
    const files = own.map(file => join(directory, file))
    const kept = `scripts/licenses/${name.replace('/', '__')}.txt`
    if (existsSync(kept)) files.push(kept)
    if (!files.some(file => !/^notice/i.test(basename(file)))) {
      refuse(
        `the package ${name} ${version} (${license}) has no file with its licence. Find its text and put it into ${kept}`,
      )
    }
    const contents = await Promise.all(files.map(file => readFile(file, 'utf8')))
    texts.push(`${name} ${version} (${license})\n\n${contents.map(text => text.trim()).join('\n\n')}\n`)
  }
  const rule = `\n${'-'.repeat(100)}\n\n`
  return `The packages in dist/bin and dist/src/packages, and their licences.\n${rule}${texts.join(rule)}`
}

if (process.argv[2] === '--check') await check()
else await bundle()
