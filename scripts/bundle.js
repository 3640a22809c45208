#!/usr/bin/env node
/**
 * Makes Node load a few files instead of hundreds. It runs after tsc and writes:
 *
 *   dist/src/packages/daemon.js  the packages that src/packages/daemon.ts names, in place of its compiled form
 *   dist/bin/lunpath.cjs         the command line with its packages, and all modules that it shares with the daemon
 *   dist/bin/local.js            what src/cli/local.ts adds to that: the daemon
 *   dist/bin/store-worker.js     the store's thread
 *   dist/bin/LICENSES.txt        the licence texts of all packages that are in a bundle
 *
 * `--check` changes nothing, and exits with 1 where a bundle is missing or tsc alone has run since.
 */
import {existsSync} from 'node:fs'
import {mkdir, readdir, readFile, rename, rm, writeFile} from 'node:fs/promises'
import {basename, join, relative, resolve} from 'node:path'
import {fileURLToPath} from 'node:url'

process.chdir(fileURLToPath(new URL('..', import.meta.url)))
const packagesFile = 'dist/src/packages/daemon.js'
const programs = ['lunpath.cjs', 'local.js', 'store-worker.js']
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
    // Without comments Node starts the command line a little sooner. It prints the line of a fault, so lines stay short.
    minifyWhitespace: true,
    lineLimit: 160,
    minifySyntax: true,
    legalComments: 'none',
    logLevel: 'warning',
    external: native,
  }
  // What CommonJS modules require of Node's own; an ES module has no such function by itself.
  const requires = `import {createRequire as requireOf} from 'node:module'\nconst require = requireOf(import.meta.url)`
  const own = {...common, outdir: 'dist/bin', banner: {js: requires}}
  const made = async options =>
    build(options).catch(() => refuse('esbuild failed, and says why above. src/cli/main.ts must not await at its top'))
  const packages = await made({
    ...common,
    entryPoints: ['src/packages/daemon.ts'],
    outdir: 'dist/src/packages',
    banner: {js: `${mark}\n${requires}`},
  })
  const commandLine = await bundleCommandLine(options => made({...common, outdir: 'dist/bin', ...options}))
  const shared = new Set(Object.keys(commandLine.metafile.inputs).filter(file => file.startsWith('src/')))
  const local = await made({
    ...own,
    entryPoints: ['src/cli/local.ts'],
    plugins: [packagesOutside, sharedOutside(shared)],
  })
  // A thread has modules of its own in any case.
  const store = await made({...own, entryPoints: ['src/state/store-worker.ts']})
  const results = [packages, commandLine, local, store]
  checkImports(packages, results.slice(1))
  const licenses = await licenseTexts(results)
  const files = results.flatMap(({outputFiles}) => outputFiles)
  await mkdir('dist/bin', {recursive: true})
  for (const {path, contents} of files) await put(path, contents)
  await put(resolve('dist/bin', licensesName), licenses)
  await keepDeclarations()
  const present = new Set([...files.map(({path}) => basename(path)), licensesName])
  for (const name of await readdir('dist/bin')) if (!present.has(name)) await rm(join('dist/bin', name))
}

/** dist/src has the packages' file, and dist/bin loads that one: a program that uses both has each package once. */
const packagesOutside = {
  name: 'packages-outside',
  setup: ({onResolve}) =>
    onResolve({filter: /\/packages\/daemon\.js$/}, () => ({path: '../src/packages/daemon.js', external: true})),
}

/**
 * CommonJS, since Node starts that in less time than an ES module: a tenth of `lunpath --help`. esbuild shares modules between
 * files of ES modules alone, so this one exports its modules by their paths, and local.js takes them from here.
 */
async function bundleCommandLine(build) {
  const options = {
    format: 'cjs',
    define: {'import.meta.url': 'moduleUrl'},
    banner: {js: `#!/usr/bin/env node\nconst moduleUrl = require('node:url').pathToFileURL(__filename).href`},
    plugins: [localOutside],
  }
  const {metafile} = await build({...options, entryPoints: ['src/cli/main.ts']})
  const modules = Object.keys(metafile.inputs).filter(file => file.startsWith('src/') && file !== 'src/cli/main.ts')
  const imports = Object.values(metafile.inputs).flatMap(input => input.imports)
  const later = new Set(imports.filter(({kind}) => kind === 'dynamic-import').map(({path}) => path))
  const atOnce = modules.filter(file => !later.has(file))
  const contents = [
    ...atOnce.map((file, index) => `import * as module${index} from './${file}'`),
    `import './src/cli/main.ts'`,
    'export const shared = {',
    ...atOnce.map((file, index) => `'${file}': module${index},`),
    ...modules.filter(file => later.has(file)).map(file => `get '${file}'() { return require('./${file}') },`),
    '}',
  ].join('\n')
  const stdin = {contents, resolveDir: '.', sourcefile: 'modules of the command line'}
  return build({...options, stdin, outfile: 'dist/bin/lunpath.cjs', outdir: undefined})
}

/** The command line imports it when a command needs it. */
const localOutside = {
  name: 'local-outside',
  setup: ({onResolve}) => onResolve({filter: /\/local\.js$/}, () => ({path: './local.js', external: true})),
}

/** A module that the command line has loaded must not be there a second time: there is one class of errors, say. */
const sharedOutside = shared => ({
  name: 'shared-outside',
  setup({onResolve, onLoad}) {
    onResolve({filter: /^\.\.?\/.*\.js$/}, ({path, resolveDir}) => {
      const file = relative('.', resolve(resolveDir, path)).replace(/\.js$/, '.ts')
      return shared.has(file) ? {path: file, namespace: 'shared'} : undefined
    })
    onResolve({filter: /^\.\/lunpath\.cjs$/}, ({path}) => ({path, external: true}))
    onLoad({filter: /./, namespace: 'shared'}, ({path}) => ({
      contents: `module.exports = require('./lunpath.cjs').shared['${path}']`,
      resolveDir: '.',
    }))
  },
})

/** A program that starts meanwhile finds the former file or this one, never half of one. */
async function put(path, contents) {
  await writeFile(`${path}.new`, contents, {mode: path.endsWith('/lunpath.cjs') ? 0o755 : 0o644})
  await rename(`${path}.new`, path)
}

/** Who installs lunpath has the types of its dependencies; those of what only the bundles have are no part of its API. */
async function keepDeclarations() {
  const {dependencies} = JSON.parse(await readFile('package.json', 'utf8'))
  const file = packagesFile.replace(/\.js$/, '.d.ts')
  const kept = (await readFile(file, 'utf8'))
    .split('\n')
    .filter(line => /^(@[^/]+\/)?[^/]+/.exec(/from '([^']+)'/.exec(line)?.[1] ?? '')?.[0] in dependencies)
  await put(resolve(file), `${kept.join('\n')}\n`)
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
