import {constants} from 'node:fs'
import {access, mkdtemp, open, readdir, readFile, rm, stat} from 'node:fs/promises'
import {networkInterfaces, release, tmpdir} from 'node:os'
import {delimiter, dirname, join} from 'node:path'
import {hasCode} from './errors.js'
import {run} from './exec.js'
import {hostInitiatorName, initiatorNameFile, iscsiadmVersion, iscsidListens} from './initiators/iscsiadm.js'
import {checkForeignName, formatPortal} from './iqn.js'
import {type AddonName, loadAddon} from './native.js'
import {type PortHolder, portHolders} from './port-holders.js'
import {formatSize} from './size.js'
import {configfsRoot} from './targets/configfs.js'
import {supportedIet} from './targets/iet-names.js'
import {ietState} from './targets/iet-state.js'
import {lioModules, lioState, modulesRemedy} from './targets/lio-kernel.js'
import type {Portal} from './types.js'
import {examinePool} from './volumes/file.js'
import {readHostScan, writeLvmSystemDirectory} from './volumes/lvm-config.js'
import type {ScannableOptions} from './volumes/lvm-devices.js'
import {type LvmRow, lvmFailure, lvmSuccess, parseLvmDocument} from './volumes/lvm-report.js'

export type CheckArea = 'node' | 'volumes' | 'targets' | 'initiators' | 'compute'

/** One thing that lunpath needs, or that the operator should know, on this machine. */
export interface Check {
  area: CheckArea
  name: string
  /** `warn`: works, but not as well as it could, or not for everything. `missing`: what needs it cannot work. */
  status: 'ok' | 'warn' | 'missing'
  found: string
  needed: string
  /** What to do; null where nothing is to be done. */
  remedy: string | null
}

export interface ExamineOptions {
  /** `madeBelow`: a directory that the daemon makes at its start, with all that leads to it. */
  pools?: {name: string; directory: string; madeBelow?: string}[]
  /** Default `tgt`. */
  targetDriver?: 'tgt' | 'lio' | 'iet'
  /** Where IET is looked for. */
  iet?: {socketName: string; procDirectory: string; accessDirectories: readonly string[]; accessFiles: boolean}
  /** What the names of our targets begin with. */
  iqnPrefix?: string
  /** Where targets are to be offered. */
  portals?: Portal[]
  /** The network namespace that those are of, by its name in `ip netns`. */
  networkNamespace?: string
  /** Pools in volume groups of LVM. */
  lvmPools?: LvmPool[]
  /** Which devices LVM may look at. */
  lvmScan?: ScannableOptions
  /** Program of the target daemon; default `tgtd` of the PATH. */
  tgtd?: string
  /** Port on which targets are to be offered; default 3260. */
  portalPort?: number
  /** Processes that may hold that port: the tgtd that lunpath itself runs. */
  ownPids?: number[]
  initiatorName?: string
  /** `host`: disks come by open-iscsi, so what it lacks is missing. Default `qemu`. */
  route?: 'qemu' | 'host'
  /** Default `qemu:///system`. Of a remote host's hypervisor nothing is looked for here. */
  libvirtUri?: string
  /** Connects to libvirt and says what answered; without it the connection is not tried. */
  connect?: () => Promise<string>
}

interface LvmPool {
  name: string
  group: string
  thinPool?: string
}

const oldestNode = [20, 19] as const
/** The control protocol was read in 1.0.85; 1.0.80 is what the oldest supported Ubuntu has. */
const oldestTgtd = [1, 0, 80] as const
const lowFreeShare = 0.1

/** Looks at everything that this machine's roles need. Changes nothing, and never throws for what it finds. */
export async function examine(options: ExamineOptions = {}): Promise<Check[]> {
  const groups = await Promise.all([
    [checkNode()],
    checkVolumes(options),
    checkTargets(options),
    checkInitiators(options),
    checkCompute(options),
  ])
  return groups.flat()
}

/** The checks as people read them: a line each, and under it what to do. */
export function formatChecks(checks: Check[]): string {
  const marks = {ok: 'ok     ', warn: 'warn   ', missing: 'MISSING'}
  const width = Math.max(0, ...checks.map(({area, name}) => area.length + name.length + 2))
  const lines = checks.flatMap(({area, name, status, found, needed, remedy}) => {
    const line = `${marks[status]}  ${`${area}: ${name}`.padEnd(width)}  ${found}`
    if (status === 'ok') return [line]
    return [line, `         needed: ${needed}`, ...(remedy ? [`         do: ${remedy}`] : [])]
  })
  const count = (status: Check['status']) => checks.filter(check => check.status === status).length
  return `${[...lines, `${count('ok')} ok, ${count('warn')} to look at, ${count('missing')} missing`].join('\n')}\n`
}

function checkNode(): Check {
  const [major, minor] = process.versions.node.split('.').map(Number) as [number, number]
  const enough = major > oldestNode[0] || (major === oldestNode[0] && minor >= oldestNode[1])
  return {
    area: 'node',
    name: 'Node.js',
    status: enough ? 'ok' : 'missing',
    found: process.version,
    needed: `v${oldestNode.join('.')} or newer`,
    remedy: enough ? null : 'Install a newer Node.js (nodejs.org, or your distribution)',
  }
}

async function checkVolumes({pools = [], lvmPools = [], lvmScan, route}: ExamineOptions): Promise<Check[]> {
  const fallocate = await findProgram('fallocate')
  return Promise.all([
    Promise.resolve<Check>({
      area: 'volumes',
      name: 'fallocate',
      status: fallocate ? 'ok' : 'warn',
      found: fallocate ?? 'not in the PATH',
      needed: 'fallocate(1), so that preallocated volumes are not written with zeros',
      remedy: fallocate ? null : 'apt-get install util-linux',
    }),
    checkAddon('volumes', 'file'),
    ...pools.map(checkPool),
    checkLvm(lvmPools.length > 0),
    ...lvmPools.map(pool => checkLvmPool(pool, lvmScan)),
    ...(await checkLvmScan(route === 'host')),
  ])
}

/** Device-mapper is in the kernel or can be loaded, and LVM is there: only what a pool is configured for is missing. */
async function checkLvm(wanted: boolean): Promise<Check> {
  const check = {
    area: 'volumes',
    name: 'LVM',
    needed: wanted ? 'lvm, and a kernel with device-mapper' : 'nothing: no pool is configured in LVM',
  } as const
  const absent = wanted ? ('missing' as const) : ('ok' as const)
  const path = await findProgram('lvm')
  if (!path) {
    const remedy = wanted ? 'apt-get install lvm2' : null
    return {...check, status: absent, found: 'lvm is not in the PATH', remedy}
  }
  const found = await access('/dev/mapper/control', constants.R_OK | constants.W_OK).then(
    () => `${path}; device-mapper answers`,
    ({code}: NodeJS.ErrnoException) => `${path}; /dev/mapper/control: ${code}`,
  )
  const works = found.endsWith('answers') && (await hasMapperDriver())
  if (works) return {...check, status: 'ok', found, remedy: null}
  const remedy = 'Run as root: modprobe -a dm_mod dm_thin_pool (a container needs it from its host)'
  return {
    ...check,
    status: absent,
    found: `${found}; the kernel has no device-mapper loaded`,
    remedy: wanted ? remedy : null,
  }
}

/** /proc/devices names the driver that /dev/mapper/control belongs to. */
async function hasMapperDriver(): Promise<boolean> {
  return /^\s*\d+ device-mapper$/m.test(await readFile('/proc/devices', 'utf8').catch(() => ''))
}

/**
 * The host's own LVM, run by udev or by an operator, reads what guests write on the disks of the kernel's initiator, and
 * waits for one whose target is gone. lunpath's own does not.
 */
async function checkLvmScan(hostRoute: boolean): Promise<Check[]> {
  const [lvm, iscsiadm] = await Promise.all([findProgram('lvm'), findProgram('iscsiadm')])
  if (!lvm) return []
  const check = {
    area: 'volumes',
    name: 'LVM and guests’ disks',
    needed: 'a devices file or a filter, so that the host’s own LVM does not look at disks that are exported to guests',
  } as const
  try {
    const {filters, rejects, devicesFile} = await readHostScan(lvm)
    if (devicesFile) return [{...check, status: 'ok', found: 'LVM keeps to its devices file', remedy: null}]
    if (rejects) return [{...check, status: 'ok', found: `lvm.conf has a ${filters.join(' and a ')}`, remedy: null}]
    const found = 'LVM looks at every disk: no devices file, and no filter that rejects any'
    if (!hostRoute && !iscsiadm) return [{...check, status: 'ok', found: `${found}; no open-iscsi here`, remedy: null}]
    const remedy =
      'Write the disks that are the host’s own into lvm.conf: global_filter = [ "a|^/dev/disk/by-id/…$|", "r|.*|" ]; or keep a devices file (lvmdevices --adddev)'
    return [{...check, status: 'warn', found, remedy}]
  } catch (error) {
    return [{...check, status: 'warn', found: (error as Error).message, remedy: 'See lvmconfig as root'}]
  }
}

async function checkLvmPool({name, group, thinPool}: LvmPool, scan: ScannableOptions | undefined): Promise<Check> {
  const check = {
    area: 'volumes',
    name: `pool ${name}`,
    needed: `the volume group ${group}, writable and whole`,
  } as const
  try {
    const row = await volumeGroup(group, scan)
    const thin = thinPool === undefined ? '' : `, thin pool ${thinPool}`
    const found = `${group}: ${formatSize(Number(row!.vg_free))} of ${formatSize(Number(row!.vg_size))} free${thin}`
    if (row!.vg_missing_pv_count !== '0') {
      const remedy = `Bring the missing disks back, or vgreduce --removemissing ${group} where they are lost`
      return {...check, status: 'warn', found: `${found}; ${row!.vg_missing_pv_count} devices are missing`, remedy}
    }
    if (row!.vg_exported === 'exported' || row!.vg_permissions === 'read-only') {
      return {
        ...check,
        status: 'missing',
        found: `${found}; exported or read-only`,
        remedy: 'vgimport, or vgchange --permission rw',
      }
    }
    return {...check, status: 'ok', found, remedy: null}
  } catch (error) {
    const remedy = `See vgs as root; make it with: lunpath pool create --vg ${group} DEVICE…`
    return {...check, status: 'missing', found: (error as Error).message, remedy}
  }
}

/** As lunpath's own LVM sees it, which looks at no guest's disk. */
async function volumeGroup(group: string, scan: ScannableOptions | undefined): Promise<LvmRow | undefined> {
  const directory = await mkdtemp(join(tmpdir(), 'lunpath-doctor-'))
  try {
    await writeLvmSystemDirectory({...scan, directory})
    const fields = 'vg_name,vg_size,vg_free,vg_missing_pv_count,vg_permissions,vg_exported'
    const args = ['vgs', '--units', 'b', '--nosuffix', '-o', fields, group]
    const {stdout, code} = await run('lvm', args, {
      timeoutMs: 20_000,
      accept: [0, 5],
      env: {LVM_SYSTEM_DIR: directory, LVM_SUPPRESS_FD_WARNINGS: '1'},
    })
    const reply = parseLvmDocument(stdout, code)
    if (reply.code !== lvmSuccess) throw lvmFailure(args, reply)
    return reply.rows[0]
  } finally {
    await rm(directory, {recursive: true, force: true})
  }
}

async function checkPool({
  name,
  directory,
  madeBelow,
}: {
  name: string
  directory: string
  madeBelow?: string
}): Promise<Check> {
  const needed = 'a directory of lunpath alone, writable, on a file system with sparse files'
  const check = {area: 'volumes', name: `pool ${name}`, needed} as const
  const exists = await stat(directory).catch(() => undefined)
  if (!exists && (dirname(directory) === madeBelow || (await isDirectory(dirname(directory))))) {
    return {...check, status: 'ok', found: `${directory} is not there yet and will be made`, remedy: null}
  }
  try {
    const {fileSystem, marked} = await examinePool(directory, {make: false})
    const {freeBytes, totalBytes} = fileSystem
    const found = `${directory}: ${fileSystem.name}, ${formatSize(freeBytes)} of ${formatSize(totalBytes)} free${marked ? '' : ', not a pool yet'}`
    if (fileSystem.name === 'tmpfs' || fileSystem.name === 'ramfs') {
      return {...check, status: 'warn', found, remedy: 'Its volumes are lost when the machine stops: use a disk'}
    }
    if (freeBytes < totalBytes * lowFreeShare) {
      return {
        ...check,
        status: 'warn',
        found,
        remedy: 'Less than a tenth is free: delete volumes or grow the file system',
      }
    }
    return {...check, status: 'ok', found, remedy: null}
  } catch (error) {
    const remedy = 'Name another directory in the configuration, or mend this one as the message says'
    return {...check, status: 'missing', found: (error as Error).message, remedy}
  }
}

async function checkTargets(options: ExamineOptions): Promise<Check[]> {
  if (options.targetDriver === 'lio') {
    return [
      checkAddon('targets', 'configfs'),
      await checkLio(),
      await checkSavedTargets(options),
      ...(await checkPortalAddresses(options)),
      // In a namespace of its own no listener of this one is in the way.
      ...(options.networkNamespace === undefined ? [await checkPort(options)] : []),
    ]
  }
  if (options.targetDriver === 'iet') {
    const addon = checkAddon('targets', 'iet')
    return [
      addon,
      ...(addon.status === 'ok' && options.iet ? await checkIet(options.iet) : []),
      ...(await checkPortalAddresses(options)),
      await checkPort(options),
    ]
  }
  return [
    checkAddon('targets', 'tgt'),
    await checkTgtd(options.tgtd ?? 'tgtd'),
    await checkSystemTgtd(),
    await checkPort(options),
  ]
}

/** What is not loaded or mounted yet the daemon loads and mounts at its start, as root. */
async function checkLio(): Promise<Check> {
  const {mounted, ready, missingModules} = await lioState()
  const check = {
    area: 'targets',
    name: "the kernel's target (LIO)",
    needed: `configfs at ${configfsRoot}, and the modules ${lioModules.join(', ')}`,
  } as const
  if (missingModules.length > 0 && !ready) {
    const found = `this kernel (${release()}) has no ${missingModules.join(', ')}`
    return {...check, status: 'missing', found, remedy: modulesRemedy}
  }
  if (process.getuid?.() !== 0) {
    return {...check, status: 'missing', found: 'this is not root', remedy: 'Run the daemon as root'}
  }
  const found = ready
    ? 'in use, or ready to be'
    : `not loaded${mounted ? '' : ', configfs not mounted'}: the daemon will`
  return {...check, status: 'ok', found, remedy: null}
}

/** Debian has had no package of IET since its release 8; docs/operating.md says where it comes from. */
const ietRemedy =
  'Build IET 1.4.20.2 against this kernel (docs/operating.md), or use targets.driver = "lio", which needs no module from elsewhere'

async function checkIet(options: NonNullable<ExamineOptions['iet']>): Promise<Check[]> {
  const {module, version, ietd, reason, denyFile, targetsFile} = await ietState(options)
  const check = (name: string, status: Check['status'], facts: Omit<Check, 'area' | 'name' | 'status'>): Check => ({
    area: 'targets',
    name,
    status,
    ...facts,
    remedy: status === 'ok' ? null : facts.remedy,
  })
  const isKnown = version === null || supportedIet.test(version)
  const listing = join(options.procDirectory, 'volume')
  const checks = [
    check("IET's module", module && isKnown ? 'ok' : 'missing', {
      found: module
        ? `iscsi_trgt, version ${version ?? 'unknown'}`
        : `${listing} is not there: iscsi_trgt is not loaded`,
      needed: 'iscsi_trgt of IET 1.4.20 to 1.4.20.3, in the initial network namespace',
      remedy: module ? ietRemedy : `modprobe iscsi_trgt. Where there is none: ${ietRemedy}`,
    }),
    check('ietd', ietd ? 'ok' : 'missing', {
      found: ietd ? `process ${ietd.pid}` : (reason ?? 'none'),
      needed: 'a running ietd, and root',
      remedy: 'Start it (systemctl start iscsitarget, or ietd), and run the daemon as root',
    }),
    check("IET's control device", ietd?.way.way === 'device' ? 'ok' : 'warn', {
      found:
        ietd?.way.way === 'device'
          ? 'by a duplicate of ietd’s descriptor'
          : `not to be had${ietd?.way.reason ? `: ${ietd.way.reason}` : ''}; all goes over ietd’s socket`,
      needed:
        'Linux 5.6 (pidfd_getfd), root, and yama’s ptrace_scope below 3: without it volumes take some ten times as long',
      remedy: 'See the reason; nothing has to be done where the socket is fast enough',
    }),
  ]
  if (!options.accessFiles) return checks
  const files = [
    ...(denyFile ? [`${denyFile} lets in whoever it does not name`] : []),
    ...(targetsFile ? [`${targetsFile} may hide targets from a portal`] : []),
  ]
  return [
    ...checks,
    check("IET's access files", denyFile ? 'missing' : targetsFile ? 'warn' : 'ok', {
      found: files.join('; ') || 'initiators.allow alone decides',
      needed: 'no initiators.deny, and in targets.allow, if it is there, a line for ALL',
      remedy: 'Move what initiators.deny says into initiators.allow and remove it, or set iet.accessFiles = false',
    }),
  ]
}

/** rtslib's service takes all targets away when it stops, and makes those of its file at boot, under names of its own. */
async function checkSavedTargets({iqnPrefix}: ExamineOptions): Promise<Check> {
  const files = ['/etc/rtslib-fb-target/saveconfig.json', '/etc/target/saveconfig.json']
  const texts = await Promise.all(files.map(file => readFile(file, 'utf8').catch(() => '')))
  const file = files[texts.findIndex(text => iqnPrefix !== undefined && text.includes(`"${iqnPrefix}:`))]
  return {
    area: 'targets',
    name: 'targetcli',
    status: file ? 'warn' : 'ok',
    found: file ? `${file} has targets of lunpath's` : 'has saved no target of lunpath’s',
    needed: 'that nobody else makes our targets at boot: lunpath does it itself',
    remedy: file ? `Remove them from ${file}, and do not run saveconfig while lunpath has exports` : null,
  }
}

/** LIO listens also on an address that this machine does not have, without a word (IP_FREEBIND). */
async function checkPortalAddresses({portals = [], networkNamespace}: ExamineOptions): Promise<Check[]> {
  const where = networkNamespace === undefined ? 'this machine' : `the network namespace ${networkNamespace}`
  const addresses = await ownAddresses(networkNamespace).catch((error: Error) => error)
  const wildcards = ['0.0.0.0', '::']
  return portals.map(({address, port}): Check => {
    const check = {
      area: 'targets',
      name: `portal ${formatPortal({address, port})}`,
      needed: 'an address that initiators reach',
    } as const
    if (addresses instanceof Error) {
      const remedy = `See ip netns list; mend targets.networkNamespace`
      return {...check, status: 'warn', found: `${where}: ${addresses.message}`, remedy}
    }
    // All of 127.0.0.0/8 is loopback.
    const isOwn = addresses.includes(address) || wildcards.includes(address) || address.startsWith('127.')
    return {
      ...check,
      status: isOwn ? 'ok' : 'warn',
      found: isOwn ? `an address of ${where}` : `no address of ${where} now`,
      remedy: isOwn ? null : 'Mend targets.portals, unless the address comes later (a failover address)',
    }
  })
}

async function ownAddresses(networkNamespace: string | undefined): Promise<string[]> {
  if (networkNamespace === undefined) {
    return Object.values(networkInterfaces()).flatMap(list => (list ?? []).map(({address}) => address))
  }
  const {stdout} = await run('ip', ['-n', networkNamespace, '-json', 'address', 'show'])
  const links = JSON.parse(stdout) as {addr_info?: {local?: string}[]}[]
  return links.flatMap(({addr_info = []}) => addr_info.flatMap(({local}) => local ?? []))
}

async function checkTgtd(program: string): Promise<Check> {
  const needed = `tgtd ${oldestTgtd.join('.')} or newer (it was read and measured with 1.0.85)`
  const check = {area: 'targets', name: 'tgtd', needed} as const
  const path = await findProgram(program)
  if (!path) return {...check, status: 'missing', found: 'not in the PATH', remedy: 'apt-get install tgt'}
  try {
    const {stdout} = await run(path, ['-V'], {timeoutMs: 5000})
    const version = /^(\d+)\.(\d+)\.(\d+)/.exec(stdout.trim())
    const found = `${path}, version ${stdout.trim() || 'unknown'}`
    if (version && !isOlder(version.slice(1).map(Number), oldestTgtd)) {
      return {...check, status: 'ok', found, remedy: null}
    }
    return {...check, status: 'warn', found, remedy: 'Install a newer tgt, and try this one before you rely on it'}
  } catch (error) {
    return {...check, status: 'missing', found: `${path}: ${(error as Error).message}`, remedy: 'apt-get install tgt'}
  }
}

async function checkSystemTgtd(): Promise<Check> {
  const pids = await processesNamed('tgtd')
  const system = await stat('/var/run/tgtd/socket.0').catch(() => undefined)
  const running = pids.length === 0 ? 'no tgtd runs' : `tgtd runs as process ${pids.join(', ')}`
  return {
    area: 'targets',
    name: "the system's tgtd",
    status: 'ok',
    found: `${running}; ${system ? '/var/run/tgtd/socket.0 is there' : 'no control socket at /var/run/tgtd/socket.0'}`,
    needed: 'nothing: lunpath runs a tgtd of its own, and leaves foreign targets of any other alone',
    remedy: null,
  }
}

async function checkPort({portalPort = 3260, ownPids = [], targetDriver}: ExamineOptions): Promise<Check> {
  const holders = await portHolders(portalPort)
  // The kernel's sockets have no process; and with IET the portal is ietd's.
  const isOurs = ({processes}: PortHolder) =>
    processes.some(({pid, command}) => ownPids.includes(pid) || (targetDriver === 'iet' && command === 'ietd')) ||
    (targetDriver === 'lio' && processes.length === 0)
  const strangers = holders.filter(holder => !isOurs(holder))
  const check = {
    area: 'targets',
    name: `port ${portalPort}`,
    needed: `a port that nobody holds, or that ${targetDriver === 'iet' ? 'ietd' : 'lunpath'} holds`,
  } as const
  if (holders.length === 0) return {...check, status: 'ok', found: 'free', remedy: null}
  const found = holders.map(describeHolder).join('; ')
  if (strangers.length === 0) return {...check, status: 'ok', found, remedy: null}
  return {
    ...check,
    status: 'warn',
    found,
    remedy:
      'Give lunpath another portal, or stop the other service (systemctl disable --now tgt, or rtslib-fb-targetctl for LIO) if nobody needs it',
  }
}

function describeHolder({address, port, processes}: Awaited<ReturnType<typeof portHolders>>[number]): string {
  const portal = formatPortal({address, port})
  if (processes.length > 0) {
    return `${portal} is held by ${processes.map(({pid, command}) => `${command} (process ${pid})`).join(', ')}`
  }
  if (process.getuid?.() !== 0)
    return `${portal} is held by a process of another user, or by the kernel: run as root to see`
  return `${portal} is held by no process that shows here: by the kernel's own target (LIO), or in another PID namespace`
}

async function checkInitiators({initiatorName, route}: ExamineOptions): Promise<Check[]> {
  return [
    checkAddon('initiators', 'iscsi'),
    await checkInitiatorName(initiatorName),
    ...(await checkOpenIscsi(route === 'host')),
  ]
}

/** What the host route needs; where it is not the default, its lack is worth a word and no failure. */
async function checkOpenIscsi(needed: boolean): Promise<Check[]> {
  const lacking = needed ? 'missing' : 'warn'
  const forWhat = needed ? '' : ' (only for attach --route host and lunpath connect)'
  const check = (name: string, ok: boolean, facts: {found: string; needed: string; remedy: string}): Check => ({
    area: 'initiators',
    name,
    status: ok ? 'ok' : lacking,
    found: facts.found,
    needed: `${facts.needed}${forWhat}`,
    remedy: ok ? null : facts.remedy,
  })
  const iscsiadm = await findProgram('iscsiadm')
  const version = iscsiadm ? await iscsiadmVersion() : undefined
  const [listening, name, module] = await Promise.all([
    iscsidListens(),
    readFile(initiatorNameFile, 'utf8').catch(() => ''),
    iscsiTcpModule(),
  ])
  const checks = [
    checkAddon('initiators', 'net'),
    check('open-iscsi', version !== undefined, {
      found: iscsiadm ? `${iscsiadm}, version ${version ?? 'unknown'}` : 'iscsiadm is not in the PATH',
      needed: 'open-iscsi, so that this host’s kernel can be the initiator',
      remedy: 'apt-get install open-iscsi',
    }),
    check('module iscsi_tcp', module !== undefined, {
      found: module ?? `neither loaded nor in /lib/modules/${release()}`,
      needed: 'the kernel module iscsi_tcp',
      remedy: 'modprobe iscsi_tcp; where there is none, run a kernel that has it',
    }),
  ]
  if (version === undefined) return checks
  return [
    ...checks,
    check('iscsid', listening, {
      found: listening ? 'somebody listens on its socket' : 'nobody listens on its socket',
      needed: 'a running iscsid, or systemd’s socket for it',
      remedy: 'systemctl enable --now iscsid.socket (without systemd: iscsid)',
    }),
    check('iscsid’s own name', /^\s*InitiatorName\s*=\s*\S/m.test(name), {
      found: name === '' ? `${initiatorNameFile} is not there` : initiatorNameFile,
      needed: `a name in ${initiatorNameFile}: iscsid does not log in without`,
      remedy: `iscsi-iname -p InitiatorName=iqn.2004-10.com.example > ${initiatorNameFile}, mode 0600`,
    }),
  ]
}

/** Where iscsi_tcp is: loaded, built in, or to be loaded by whoever needs it. */
async function iscsiTcpModule(): Promise<string | undefined> {
  if (await isDirectory('/sys/class/iscsi_transport/tcp')) return 'loaded'
  const files = ['modules.dep', 'modules.builtin'].map(name => join('/lib/modules', release(), name))
  const listed = await Promise.all(files.map(file => readFile(file, 'utf8').catch(() => '')))
  return listed.some(text => /\/iscsi_tcp\.ko/.test(text)) ? 'not loaded, and there to be loaded' : undefined
}

async function checkInitiatorName(configured: string | undefined): Promise<Check> {
  const file = initiatorNameFile
  const name = configured ?? (await hostInitiatorName())
  const check = {
    area: 'initiators',
    name: 'initiator name',
    needed: 'an iSCSI name that no other host has: hosts that share one end the sessions of each other',
  } as const
  if (name === undefined) {
    const found = `none configured, and none in ${file}: lunpath makes one of its own`
    return {...check, status: 'ok', found, remedy: null}
  }
  const origin = configured === undefined ? file : 'the configuration'
  try {
    return {...check, status: 'ok', found: `${checkForeignName(name)}, from ${origin}`, remedy: null}
  } catch (error) {
    const remedy = `Write a name as iqn.2026-01.org.example:host into ${origin}`
    return {...check, status: 'missing', found: (error as Error).message, remedy}
  }
}

async function checkCompute({libvirtUri = 'qemu:///system', connect}: ExamineOptions): Promise<Check[]> {
  const checks = [checkAddon('compute', 'libvirt')]
  if (connect) checks.push(await checkLibvirt(libvirtUri, connect))
  if (!isRemote(libvirtUri)) checks.push(await checkQemu(), await checkIscsiBlockDriver(), await checkKvm())
  return checks
}

async function checkLibvirt(uri: string, connect: () => Promise<string>): Promise<Check> {
  const check = {area: 'compute', name: 'libvirt', needed: `a libvirt that answers at ${uri}`} as const
  try {
    return {...check, status: 'ok', found: await connect(), remedy: null}
  } catch (error) {
    const remedy = isRemote(uri)
      ? 'See that the host is up and that its libvirt listens'
      : 'apt-get install libvirt-daemon-system (or start libvirtd), or name another URI in the configuration'
    return {...check, status: 'missing', found: (error as Error).message, remedy}
  }
}

async function checkQemu(): Promise<Check> {
  const architecture = {x64: 'x86_64', arm64: 'aarch64'}[process.arch as string] ?? process.arch
  const name = `qemu-system-${architecture}`
  const path = await findProgram(name)
  return {
    area: 'compute',
    name: 'QEMU',
    status: path ? 'ok' : 'missing',
    found: path ?? `${name} is not in the PATH`,
    needed: name,
    remedy: path ? null : `apt-get install qemu-system-${architecture === 'aarch64' ? 'arm' : 'x86'}`,
  }
}

/** Debian and Ubuntu ship QEMU's iSCSI driver as a module of its own; other builds have it inside. */
async function checkIscsiBlockDriver(): Promise<Check> {
  const libraries = [
    '/usr/lib64',
    '/usr/lib',
    ...(await readdir('/usr/lib').catch(() => [])).map(name => join('/usr/lib', name)),
  ]
  const candidates = libraries.map(library => join(library, 'qemu', 'block-iscsi.so'))
  const present = await Promise.all(candidates.map(candidate => isReadable(candidate)))
  const found = candidates[present.indexOf(true)]
  return {
    area: 'compute',
    name: "QEMU's iSCSI driver",
    status: found ? 'ok' : 'warn',
    found: found ?? 'block-iscsi.so is in no library directory of QEMU',
    needed: 'block-iscsi.so, so that QEMU itself can be the initiator (unless this QEMU has it built in)',
    remedy: found ? null : 'apt-get install qemu-block-extra',
  }
}

async function checkKvm(): Promise<Check> {
  const check = {area: 'compute', name: 'KVM', needed: '/dev/kvm, or guests run under TCG, many times slower'} as const
  try {
    await (await open('/dev/kvm', 'r+')).close()
    return {...check, status: 'ok', found: '/dev/kvm opens', remedy: null}
  } catch (error) {
    const {code} = error as NodeJS.ErrnoException
    const remedy =
      code === 'EACCES'
        ? 'Add the user to the group kvm'
        : 'Switch virtualisation on in the firmware, or nested virtualisation in the host; lunpath works without'
    return {...check, status: 'warn', found: `/dev/kvm does not open: ${code}`, remedy}
  }
}

function checkAddon(area: CheckArea, name: AddonName): Check {
  const check = {area, name: `addon ${name}`, needed: `${name}.node, built for this machine`} as const
  try {
    loadAddon(name)
    return {...check, status: 'ok', found: 'loads', remedy: null}
  } catch (error) {
    const packageName = hasCode(error, 'DEPENDENCY_MISSING') ? error.info.package : undefined
    const install = packageName ? `apt-get install ${packageName}, then ` : ''
    return {...check, status: 'missing', found: (error as Error).message, remedy: `${install}npm run build`}
  }
}

/** A URI with a host part, as qemu+ssh://host/system (libvirt.org/uri.html). */
function isRemote(uri: string): boolean {
  return /^[a-z0-9+]+:\/\/[^/?]+/i.test(uri)
}

function isOlder(version: readonly number[], than: readonly number[]): boolean {
  const index = than.findIndex((part, position) => version[position] !== part)
  return index !== -1 && (version[index] ?? 0) < than[index]!
}

/** The first executable of that name; also in the sbin directories, which an ordinary user's PATH lacks. */
async function findProgram(name: string): Promise<string | undefined> {
  if (name.includes('/')) return (await isExecutable(name)) ? name : undefined
  const directories = [...(process.env.PATH ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/sbin']
  for (const directory of directories.filter(entry => entry !== '')) {
    const path = join(directory, name)
    if (await isExecutable(path)) return path
  }
  return undefined
}

async function processesNamed(name: string): Promise<number[]> {
  const pids = (await readdir('/proc')).filter(entry => /^\d+$/.test(entry))
  const commands = await Promise.all(pids.map(pid => readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '')))
  return pids.filter((_, index) => commands[index]!.trim() === name).map(Number)
}

async function isDirectory(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined))?.isDirectory() ?? false
}

function isExecutable(path: string): Promise<boolean> {
  return canAccess(path, constants.X_OK)
}

function isReadable(path: string): Promise<boolean> {
  return canAccess(path, constants.R_OK)
}

function canAccess(path: string, mode: number): Promise<boolean> {
  return access(path, mode).then(
    () => true,
    () => false,
  )
}
