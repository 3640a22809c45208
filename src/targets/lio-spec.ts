import {StorageError} from '../errors.js'
import {formatPortal, nameKey} from '../iqn.js'
import type {ChapAuth, ExportSpec, Portal} from '../types.js'
import {type Operation, op} from './configfs.js'
import {firstLun} from './driver.js'
import {checkExportSpec, refuseIoType} from './spec.js'

/** How LIO writes the parts of an export: paths below configfs' root, and the order in which they are made. */

/**
 * All backstores of lunpath are in HBAs of this number, one per kind: who finds one there knows whose it is. rtslib
 * (targetcli) takes the lowest free number for each of its own, and removes it with them.
 */
const hbaNumber = 3260
const maxFilePathBytes = 255
const maxDevicePathBytes = 511

export const backstoreKinds = ['fileio', 'iblock'] as const
export type BackstoreKind = (typeof backstoreKinds)[number]

export const fabricPath = 'target/iscsi'

export function hbaPath(kind: BackstoreKind): string {
  return `target/core/${kind}_${hbaNumber}`
}

export function backstorePath(kind: BackstoreKind, id: string): string {
  return `${hbaPath(kind)}/${id}`
}

export function targetPath(iqn: string): string {
  return `${fabricPath}/${iqn}`
}

/** lunpath has one target portal group per target. */
export function groupPath(iqn: string): string {
  return `${targetPath(iqn)}/tpgt_1`
}

export function lunPath(iqn: string): string {
  return `${groupPath(iqn)}/lun/lun_${firstLun}`
}

export function rulePath(iqn: string, name: string): string {
  return `${groupPath(iqn)}/acls/${name}`
}

export function portalPath(iqn: string, portal: Portal): string {
  return `${groupPath(iqn)}/np/${formatPortal(portal)}`
}

export function backstoreKind({kind}: Pick<ExportSpec['volume'], 'kind'>): BackstoreKind {
  return kind === 'block' ? 'iblock' : 'fileio'
}

/**
 * VPD page 0x83 of a LUN with this serial: an NAA type of 6, LIO's company id, the serial's hex digits, zeros up to 32
 * digits (drivers/target/target_core_spc.c, spc_gen_naa_6h_vendor_specific).
 */
export function lioWwid(id: string): string {
  return `naa.6001405${id}${'0'.repeat(9)}`
}

export function isForAll({access}: Pick<ExportSpec, 'access'>): boolean {
  return access.addresses.includes('ALL')
}

/** Initiator names with a rule of their own, as LIO sees them. */
export function ruleNames({access}: Pick<ExportSpec, 'access'>): string[] {
  return [...new Set(access.names.map(nameKey))]
}

/** @throws StorageError NAME_INVALID, INVALID_ARGUMENT, UNSUPPORTED */
export function checkLioSpec(spec: ExportSpec): void {
  checkExportSpec(spec)
  refuseIoType('lio', spec)
  const byAddress = spec.access.addresses.find(address => address !== 'ALL')
  if (byAddress !== undefined) {
    throw new StorageError(
      'UNSUPPORTED',
      `LIO has no rules by address, so ${byAddress} cannot be kept: allow initiators by name, or ALL, or use targets.driver = "tgt"`,
      {op: 'target.export', info: {iqn: spec.iqn, address: byAddress}},
    )
  }
  // The kernel cuts longer paths off (FD_MAX_DEV_NAME in target_core_file.h, SE_UDEV_PATH_LEN in target_core_base.h).
  const longest = backstoreKind(spec.volume) === 'fileio' ? maxFilePathBytes : maxDevicePathBytes
  if (Buffer.byteLength(spec.volume.path) > longest) {
    throw new StorageError('NAME_INVALID', `LIO takes no path of more than ${longest} bytes: ${spec.volume.path}`, {
      op: 'target.export',
    })
  }
  for (const {user, secret} of [spec.auth?.incoming, spec.auth?.outgoing].flatMap(one => one ?? [])) {
    // To LIO such a value means that there is none (iscsi_target_configfs.c, __DEF_NACL_AUTH_STR).
    if (user.startsWith('NULL') || secret.startsWith('NULL')) {
      throw new StorageError('INVALID_ARGUMENT', 'LIO takes no CHAP user or secret that begins with NULL', {
        op: 'target.export',
      })
    }
  }
}

/**
 * Everything of an export but its portals, in the order in which it is made. The backstore comes first and goes last: its
 * name is the volume's id, and that tells a half-made target of ours from somebody else's.
 */
export function bodyOperations(spec: ExportSpec): Operation[] {
  const {volume, iqn, readOnly, auth} = spec
  const kind = backstoreKind(volume)
  const backstore = backstorePath(kind, volume.id)
  const group = groupPath(iqn)
  const attribute = (name: string, value: boolean) => op.write(`${group}/attrib/${name}`, value ? '1' : '0')
  // Kernels before 5.1 cannot change these; they say nothing about who the volume is.
  const ifPossible = ['ENOENT']
  return [
    op.ensureDirectory(hbaPath(kind)),
    op.mkdir(backstore),
    op.write(`${backstore}/control`, backstoreParameters(spec)),
    op.write(`${backstore}/udev_path`, volume.path),
    op.write(`${backstore}/wwn/vendor_id`, 'LUNPATH', ifPossible),
    op.write(`${backstore}/wwn/product_id`, 'VOLUME', ifPossible),
    op.write(`${backstore}/wwn/vpd_unit_serial`, volume.id),
    // EXTENDED COPY looks its devices up among all of this machine in kernels without the mend of CVE-2020-28374.
    op.write(`${backstore}/attrib/emulate_3pc`, '0', ifPossible),
    op.write(`${backstore}/enable`, '1'),
    op.mkdir(targetPath(iqn)),
    op.mkdir(group),
    attribute('authentication', auth !== undefined),
    attribute('generate_node_acls', isForAll(spec)),
    // After the line above, which sets it: an initiator without a rule of its own is forgotten when it logs out.
    attribute('cache_dynamic_acls', false),
    attribute('demo_mode_discovery', false),
    attribute('demo_mode_write_protect', readOnly),
    ...(isForAll(spec) ? authOperations(`${group}/auth`, auth) : []),
    op.mkdir(lunPath(iqn)),
    op.symlink(`${lunPath(iqn)}/volume`, backstore),
    ...ruleNames(spec).flatMap(name => ruleOperations(spec, name)),
  ]
}

/** The portals, and last of all the switch: nobody can log in before all else is right. */
export function openingOperations(iqn: string, portals: Portal[]): Operation[] {
  return [...portals.map(portal => op.mkdir(portalPath(iqn, portal))), op.write(`${groupPath(iqn)}/enable`, '1')]
}

/** The rule of one initiator: its name, its CHAP credentials, and the LUN that it sees. */
export function ruleOperations({iqn, auth, readOnly}: ExportSpec, name: string): Operation[] {
  const rule = rulePath(iqn, name)
  const mapped = `${rule}/lun_${firstLun}`
  return [
    op.mkdir(rule),
    ...authOperations(`${rule}/auth`, auth),
    op.mkdir(mapped),
    op.symlink(`${mapped}/volume`, lunPath(iqn)),
    op.write(`${mapped}/write_protect`, readOnly ? '1' : '0'),
  ]
}

/** Attributes that hold CHAP credentials, by the part of the credentials that they hold. */
export const authAttributes = ['userid', 'password', 'userid_mutual', 'password_mutual'] as const

/** Values of authAttributes for these credentials; empty where there are none. */
export function authValues(auth: ChapAuth | undefined): string[] {
  const {incoming, outgoing} = auth ?? {}
  return [incoming?.user ?? '', incoming?.secret ?? '', outgoing?.user ?? '', outgoing?.secret ?? '']
}

function authOperations(directory: string, auth: ChapAuth | undefined): Operation[] {
  const values = authValues(auth)
  return authAttributes.flatMap((attribute, index) =>
    values[index] === '' ? [] : [op.write(`${directory}/${attribute}`, values[index]!)],
  )
}

/**
 * A file is opened with O_DSYNC, so that a write is acknowledged when it is stable; `fd_buffered_io` gives that up and
 * tells initiators that there is a volatile cache. A block device has the cache that it has: LIO tells initiators of it
 * and passes flushes and FUA on (drivers/target/target_core_file.c, target_core_iblock.c).
 */
function backstoreParameters({volume, readOnly, writeCache}: ExportSpec): string {
  if (backstoreKind(volume) === 'iblock') return `udev_path=${volume.path}${readOnly ? ',readonly=1' : ''}`
  const buffered = writeCache === 'back' ? ',fd_buffered_io=1' : ''
  return `fd_dev_name=${volume.path},${sizeParameter(volume.sizeBytes)}${buffered}`
}

/** Also valid for a backstore in use: initiators read the new size with their next READ CAPACITY. */
export function sizeParameter(sizeBytes: number): string {
  return `fd_dev_size=${sizeBytes}`
}
