import {mkdir, readFile, stat, statfs} from 'node:fs/promises'
import {join} from 'node:path'
import {hasCode, StorageError} from '../errors.js'
import {run} from '../exec.js'
import {configfsRoot} from './configfs.js'
import {fabricPath} from './lio-spec.js'

/** CONFIGFS_MAGIC of the kernel's fs/configfs/mount.c. */
const configfsMagic = 0x62656570

/** What LIO needs, in the order in which it is loaded. */
export const lioModules = ['target_core_mod', 'iscsi_target_mod', 'target_core_file', 'target_core_iblock'] as const

/**
 * Makes sure that configfs is mounted and has the kernel's iSCSI target: mounts and loads what is missing, which takes
 * root. Where all is there already it starts no program. @throws TARGET_UNAVAILABLE, DEPENDENCY_MISSING
 */
export async function prepareKernel(): Promise<void> {
  const fabric = join(configfsRoot, fabricPath)
  if (await isDirectory(fabric)) return
  if (!(await isConfigfsMounted())) {
    // Where it is built in there is no such module.
    await run('modprobe', ['configfs']).catch(() => undefined)
    await run('mount', ['-t', 'configfs', 'configfs', configfsRoot]).catch(cause => {
      throw unavailable(
        `configfs is not mounted, and lunpath cannot: mount -t configfs configfs ${configfsRoot}`,
        cause,
      )
    })
  }
  if (!(await isDirectory(join(configfsRoot, 'target')))) await loadModules()
  try {
    // The kernel registers a fabric when its directory is made, and loads its module for that.
    await mkdir(fabric)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'EEXIST') return
    throw unavailable(`The kernel's iSCSI target cannot be used: ${(cause as Error).message}`, cause)
  }
}

/** What is there of it, without a change: for doctor. */
export async function lioState(): Promise<{mounted: boolean; ready: boolean; missingModules: string[]}> {
  const [mounted, ready, loaded, available] = await Promise.all([
    isConfigfsMounted(),
    isDirectory(join(configfsRoot, fabricPath)),
    readFile('/proc/modules', 'utf8').catch(() => ''),
    availableModules(),
  ])
  const isLoaded = (name: string) => loaded.split('\n').some(line => line.startsWith(`${name} `))
  return {mounted, ready, missingModules: lioModules.filter(name => !isLoaded(name) && !available.has(name))}
}

async function loadModules(): Promise<void> {
  try {
    await run('modprobe', ['-a', ...lioModules])
  } catch (cause) {
    throw new StorageError(
      hasCode(cause, 'DEPENDENCY_MISSING') ? 'DEPENDENCY_MISSING' : 'TARGET_UNAVAILABLE',
      `The kernel's iSCSI target cannot be loaded: modprobe -a ${lioModules.join(' ')}: ${(cause as Error).message}. ${modulesRemedy}`,
      {op: 'target.open', info: {modules: lioModules}, cause},
    )
  }
}

export const modulesRemedy =
  'They are in Debian’s package linux-image-amd64 (its -cloud kernel lacks them) and in Ubuntu’s linux-modules-extra'

async function isConfigfsMounted(): Promise<boolean> {
  return (await statfs(configfsRoot).catch(() => undefined))?.type === configfsMagic
}

/** Modules of this kernel that could be loaded, and those that are built in. */
async function availableModules(): Promise<Set<string>> {
  const release = (await readFile('/proc/sys/kernel/osrelease', 'utf8').catch(() => '')).trim()
  const lists = ['modules.dep', 'modules.builtin'].map(name =>
    readFile(join('/lib/modules', release, name), 'utf8').catch(() => ''),
  )
  const lines = (await Promise.all(lists)).join('\n').split('\n')
  return new Set(lines.flatMap(line => /([^/:]+)\.ko[^/:]*(?::|$)/.exec(line)?.[1]?.replaceAll('-', '_') ?? []))
}

async function isDirectory(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined))?.isDirectory() ?? false
}

function unavailable(message: string, cause: unknown): StorageError {
  return new StorageError('TARGET_UNAVAILABLE', message, {op: 'target.open', cause})
}
