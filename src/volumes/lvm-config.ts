import {existsSync} from 'node:fs'
import {mkdir, rm, symlink, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {hasCode, StorageError} from '../errors.js'
import {run} from '../exec.js'

/** Where LVM's own configuration lies (lvm.conf(5)). */
const hostDirectory = '/etc/lvm'

/**
 * Writes a system directory for LVM (LVM_SYSTEM_DIR, lvm(8)): the host's configuration as LVM reads it, so that its
 * filters and its devices file hold here too, and over it what our commands need: JSON with a log that ends each answer,
 * and no dependence on a udevd or a dmeventd that does not run. @throws DEPENDENCY_MISSING where there is no LVM
 */
export async function writeLvmSystemDirectory(directory: string, program = 'lvm'): Promise<void> {
  await mkdir(directory, {recursive: true, mode: 0o700})
  const {stdout} = await run(program, ['lvmconfig'], {env: {LVM_SUPPRESS_FD_WARNINGS: '1'}}).catch(error => {
    if (!hasCode(error, 'DEPENDENCY_MISSING')) throw error
    throw new StorageError('DEPENDENCY_MISSING', 'The program lvm cannot be run. Install it: apt-get install lvm2', {
      info: {...error.info, package: 'lvm2'},
      cause: error,
    })
  })
  await writeFile(join(directory, 'lvm.conf'), stdout, {mode: 0o600})
  await writeFile(join(directory, 'lvmlocal.conf'), ownConfiguration(), {mode: 0o600})
  for (const name of ['devices', 'profile']) {
    await rm(join(directory, name), {force: true, recursive: true})
    await symlink(join(hostDirectory, name), join(directory, name))
  }
}

const udevSocket = '/run/udev/control'

/** For libdevmapper, which otherwise leaves device nodes to a udevd that does not run. */
export function withoutUdevd(): Record<string, string> {
  return existsSync(udevSocket) ? {} : {DM_DISABLE_UDEV: '1'}
}

/** lvmlocal.conf is read after lvm.conf and has the last word (lvm.conf(5)). */
export function ownConfiguration({
  udevd = existsSync(udevSocket),
  dmeventd = existsSync('/run/dmeventd-server'),
}: {
  udevd?: boolean
  dmeventd?: boolean
} = {}): string {
  const lines = [
    'report { output_format="json" }',
    // With LVM's own selection the list of log entries ends in a comma and is no JSON.
    'log { report_command_log=1 command_log_selection="all" verbose=0 }',
    // The driver has the copy for vgcfgrestore written after a while of changes, not after each; it is where the host's is.
    `backup { backup=0 backup_dir="${hostDirectory}/backup" archive=0 }`,
    'global { use_lvmpolld=0 }',
  ]
  if (!dmeventd) lines.push('activation { monitoring=0 }')
  if (!udevd) {
    // LVM makes the device nodes itself, and what nobody but a user can have open is not waited for.
    lines.push('activation { udev_sync=0 udev_rules=0 retry_deactivation=0 }')
    lines.push('devices { obtain_device_list_from_udev=0 external_device_info_source="none" }')
  }
  return `${lines.join('\n')}\n`
}
