import {existsSync, readFileSync} from 'node:fs'
import {createRequire} from 'node:module'
import {dirname, join} from 'node:path'
import {fileURLToPath} from 'node:url'
import {type ErrorCode, StorageError} from './errors.js'

/** The addons, one per external library, and the Debian package that brings that library. */
const addons = {
  file: {library: null, buildPackage: null, runtimePackage: null},
  tgt: {library: null, buildPackage: null, runtimePackage: null},
  iet: {library: null, buildPackage: null, runtimePackage: null},
  net: {library: null, buildPackage: null, runtimePackage: null},
  configfs: {library: null, buildPackage: null, runtimePackage: null},
  bench: {library: null, buildPackage: null, runtimePackage: null},
  iscsi: {library: 'libiscsi', buildPackage: 'libiscsi-dev', runtimePackage: 'libiscsi7'},
  libvirt: {library: 'libvirt', buildPackage: 'libvirt-dev', runtimePackage: 'libvirt0'},
} as const

export type AddonName = keyof typeof addons

const require = createRequire(import.meta.url)
const loaded = new Map<AddonName, unknown>()

/** The directory of our package.json: the addons lie below it, and .cache where it is a checkout. */
export function packageRoot(): string {
  let directory = dirname(fileURLToPath(import.meta.url))
  while (!existsSync(join(directory, 'package.json'))) directory = dirname(directory)
  return directory
}

export function packageVersion(): string {
  return (JSON.parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8')) as {version: string}).version
}

/** `LUNPATH_ADDON_DIR` names a directory of addons built otherwise, such as those under sanitizers. */
function addonDirectory(): string {
  return process.env.LUNPATH_ADDON_DIR || join(packageRoot(), 'build', 'Release')
}

/**
 * Loads one addon. This is the only place that does.
 * @throws StorageError DEPENDENCY_MISSING: says what was found, what is needed and which package brings it.
 */
export function loadAddon<T>(name: AddonName): T {
  const cached = loaded.get(name)
  if (cached !== undefined) return cached as T
  const {library, buildPackage, runtimePackage} = addons[name]
  const file = join(addonDirectory(), `${name}.node`)
  if (!existsSync(file)) {
    const remedy = buildPackage
      ? `Install ${buildPackage} (apt-get install ${buildPackage}) and run: npm run build`
      : 'Run: npm run build'
    throw new StorageError(
      'DEPENDENCY_MISSING',
      `The native addon ${name} is not built: ${file} is missing. ${remedy}`,
      {
        op: 'native.load',
        info: {addon: name, file, package: buildPackage},
      },
    )
  }
  try {
    const addon = require(file)
    loaded.set(name, addon)
    return addon as T
  } catch (cause) {
    const remedy = library ? `It needs ${library}: apt-get install ${runtimePackage}` : 'Run: npm run build'
    throw new StorageError(
      'DEPENDENCY_MISSING',
      `The native addon ${name} does not load on Node ${process.version}: ${(cause as Error).message}. ${remedy}`,
      {op: 'native.load', info: {addon: name, file, package: runtimePackage}, cause},
    )
  }
}

/**
 * What an addon rejects with where it had no thread (a full cgroup, `ulimit -u`) or no memory for a call, as a failure of this
 * code: the other side was not asked, and the same call may succeed later. Any other error is given back as it is.
 */
export function lackAs(code: ErrorCode, op: string, error: unknown): unknown {
  const {code: errno, syscall, message} = error as {code?: unknown; syscall?: unknown; message: string}
  const isLack = (errno === 'EAGAIN' && syscall === 'pthread_create') || (errno === 'ENOMEM' && syscall === undefined)
  return isLack ? new StorageError(code, message, {op, info: {errno}, cause: error}) : error
}
