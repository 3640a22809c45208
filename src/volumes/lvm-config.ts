import {existsSync, renameSync, writeFileSync} from 'node:fs'
import {mkdir, rm, symlink, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {hasCode, StorageError} from '../errors.js'
import {run} from '../exec.js'
import {lvmFilter, type Scannable, ScannableDevices, type ScannableOptions} from './lvm-devices.js'
import {type FilterKey, filterKeys, hostFilters, namesOf} from './lvm-host-filter.js'

/** Where LVM's own configuration lies (lvm.conf(5)). */
const hostDirectory = '/etc/lvm'

export interface LvmSystemOptions extends ScannableOptions {
  /** Where it is to lie. */
  directory: string
  /** Default `lvm` of the PATH. */
  program?: string
}

/** A system directory for LVM: LVM_SYSTEM_DIR, lvm(8). */
export interface LvmSystem {
  directory: string
  /**
   * To be called before each command: brings the list of devices that LVM may look at up to date. LVM reads a
   * configuration that has changed before its next command.
   */
  refresh(): void
  /** False for a device that LVM must not look at: a guest's, or one that lies on a guest's. */
  isScannable(path: string): boolean
  /** Devices that LVM might look at, were it not for the host's own filters. */
  forbidden(): string[]
}

/** Which devices the host's own configuration lets LVM look at. */
export interface HostScan {
  /** The keys of lvm.conf(5) that are set. */
  filters: FilterKey[]
  /** One of them has an entry that rejects. */
  rejects: boolean
  /** LVM keeps a list of its devices (lvmdevices(8)), looks at no other, and ignores all filters. */
  devicesFile: boolean
}

/**
 * Writes a system directory for LVM: the host's configuration as LVM reads it, so that its filters and its devices file
 * hold here too, and over it what our commands need: JSON with a log that ends each answer, no dependence on a udevd or
 * a dmeventd that does not run, and a filter without the disks that are exported to guests (lvm-devices.ts).
 * @throws DEPENDENCY_MISSING where there is no LVM
 */
export async function writeLvmSystemDirectory(options: LvmSystemOptions): Promise<LvmSystem> {
  const {directory, program = 'lvm'} = options
  await mkdir(directory, {recursive: true, mode: 0o700})
  const configuration = await hostConfiguration(program)
  await writeFile(join(directory, 'lvm.conf'), configuration, {mode: 0o600})
  for (const name of ['devices', 'profile']) {
    await rm(join(directory, name), {force: true, recursive: true})
    await symlink(join(hostDirectory, name), join(directory, name))
  }
  const {filters, devicesFile} = await readHostScan(program, configuration)
  const key = filterKey(filters)
  const hosts = devicesFile ? [] : [...hostFilters(configuration).values()]
  const devices = new ScannableDevices(options)
  const own = ownConfiguration()
  const isForbidden = (path: string) => hosts.length > 0 && !hosts.every(passes => passes(namesOf(path)))
  // With a devices file LVM ignores all filters. Where the host has both, ours takes the place of one, and what that one
  // forbids is left out of ours.
  const filter = ({paths}: Scannable) => {
    if (devicesFile) return ''
    const allowed = filters.includes(key) ? paths.filter(path => !isForbidden(path)) : paths
    return `devices { ${key}=${lvmFilter(allowed)} }\n`
  }
  let written: string | undefined
  let changes = 0
  const refresh = () => {
    const scannable = devices.look()
    const text = `${own}${reading(scannable)}${filter(scannable)}`
    if (text === written) return
    const file = join(directory, 'lvmlocal.conf')
    // LVM compares a file's size and the second of its change (lib/config/config.c, config_file_changed): no two changes
    // that are near each other have one size.
    const block = 4096
    const sizeBytes = Math.ceil(text.length / block) * block + (++changes % block)
    writeFileSync(`${file}.new`, `${text.padEnd(sizeBytes, '#')}\n`, {mode: 0o600})
    renameSync(`${file}.new`, file)
    written = text
  }
  refresh()
  return {
    directory,
    refresh,
    isScannable: path => devices.look().paths.includes(path),
    forbidden: () => devices.look().paths.filter(isForbidden),
  }
}

/** lvm.conf and its like as LVM reads them, without defaults. */
async function hostConfiguration(program: string): Promise<string> {
  const {stdout} = await run(program, ['lvmconfig'], {env: quiet}).catch(error => {
    if (!hasCode(error, 'DEPENDENCY_MISSING')) throw error
    throw new StorageError('DEPENDENCY_MISSING', 'The program lvm cannot be run. Install it: apt-get install lvm2', {
      info: {...error.info, package: 'lvm2'},
      cause: error,
    })
  })
  return stdout
}

const quiet = {LVM_SUPPRESS_FD_WARNINGS: '1'}

/** What the host's own configuration says of the devices that LVM looks at. @throws DEPENDENCY_MISSING */
export async function readHostScan(program = 'lvm', configuration?: string): Promise<HostScan> {
  const set = configuration ?? (await hostConfiguration(program))
  // Whether a devices file is the default is this LVM's choice; one from before 2.03.12 knows none, and exits with 5.
  const keys = ['devices/use_devicesfile', 'devices/devicesfile']
  const {stdout} = await run(program, ['lvmconfig', '--typeconfig', 'full', ...keys], {env: quiet, accept: [0, 5]})
  const [, name = 'system.devices'] = /^\s*devicesfile="(.*)"$/m.exec(stdout) ?? []
  const wanted = /^\s*use_devicesfile=1$/m.test(stdout)
  return {
    rejects: /^\s*(global_)?filter=.*"r\W/m.test(set),
    filters: filterKeys.filter(key => new RegExp(`^\\s*${key}=`, 'm').test(set)),
    // Without the file LVM goes on as if there were no such setting.
    devicesFile: wanted && existsSync(join(hostDirectory, 'devices', name)),
  }
}

/** Where our filter goes: beside the host's own, since LVM wants a device to pass both. */
function filterKey(filters: readonly FilterKey[]): FilterKey {
  return filterKeys.find(key => !filters.includes(key)) ?? 'filter'
}

/**
 * LVM reads the labels of all devices before each command: at once, by asynchronous I/O, or one after the other. At the
 * end of asynchronous I/O stands io_destroy(2), which waits for a grace period of RCU (fs/aio.c, kill_ioctx): 20 ms in
 * the lab, of 50 for an lvcreate. To read one after the other is cheaper, unless several disks turn.
 */
export function reading({rotational}: Pick<Scannable, 'rotational'>): string {
  return rotational > maxTurning ? '' : 'global { use_aio=0 }\n'
}

/** A disk that turns takes some 8 ms for a label, any other far less than 1. */
const maxTurning = 2

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
    // A hint that was written while a disk failed would hide its group after the disk is back (lvm.conf(5), hints).
    'devices { hints="none" }',
  ]
  if (!dmeventd) lines.push('activation { monitoring=0 }')
  if (!udevd) {
    // LVM makes the device nodes itself, and what nobody but a user can have open is not waited for.
    lines.push('activation { udev_sync=0 udev_rules=0 retry_deactivation=0 }')
    lines.push('devices { obtain_device_list_from_udev=0 external_device_info_source="none" }')
  }
  return `${lines.join('\n')}\n`
}
