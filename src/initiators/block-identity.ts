import {readFile} from 'node:fs/promises'
import {StorageError} from '../errors.js'
import type {LunIdentity} from '../types.js'
import type {IscsiSysfs} from './iscsi-sysfs.js'

/** What a volume is known by: WWID (VPD page 0x83), unit serial number (page 0x80, blanks trimmed) and size. */
export type Identity = Pick<LunIdentity, 'wwid' | 'serial' | 'sizeBytes'>

/**
 * What the kernel has read of a SCSI disk at its last scan or rescan. `wwid` is the kernel's choice among the
 * designators of VPD page 0x83 (drivers/scsi/scsi_lib.c, scsi_vpd_lun_id). Undefined where the disk is gone.
 */
export async function readIdentity(sysfs: IscsiSysfs, device: string): Promise<Identity | undefined> {
  const [wwid, page, sizeBytes] = await Promise.all([
    sysfs.blockAttribute(device, 'device/wwid'),
    readFile(sysfs.blockFile(device, 'device/vpd_pg80')).catch(() => undefined),
    sysfs.blockSizeBytes(device),
  ])
  if (wwid === undefined && page === undefined) return undefined
  return {wwid: wwid ?? '', serial: page ? serialOf(page) : '', sizeBytes}
}

/** The serial number in VPD page 0x80 (SPC-4, 7.8.15): four bytes of header with the length, then ASCII. */
export function serialOf(page: Buffer): string {
  if (page.length < 4) return ''
  return page
    .subarray(4, 4 + page.readUInt16BE(2))
    .toString('latin1')
    .replaceAll('\0', ' ')
    .trim()
}

/** In which of its three parts a disk is not what it should be. */
export function differences(found: Identity, expected: Partial<Identity>): (keyof Identity)[] {
  return (['wwid', 'serial', 'sizeBytes'] as const).filter(
    key => expected[key] !== undefined && expected[key] !== found[key],
  )
}

export function mismatch(
  what: string,
  {found, expected, info}: {found: Identity; expected: Partial<Identity>; info: Record<string, unknown>},
): StorageError {
  const said = differences(found, expected).map(key => `${key} is ${found[key] || 'missing'}, not ${expected[key]}`)
  return new StorageError('IDENTITY_MISMATCH', `${what} is not the volume that was asked for: ${said.join('; ')}`, {
    op: 'initiator.verify',
    info: {...info, expected, found},
  })
}

/**
 * A disk's name in systemd's scsi_id (src/udev/scsi_id/scsi_serial.c), which udev and multipath use: `3` for NAA or `1` for T10,
 * and the designator in hexadecimal. Of T10 designators IET's are known to be binary ones. Undefined for other WWIDs.
 */
export function scsiIdOf(wwid: string): string | undefined {
  const naa = /^naa\.([0-9a-f]{16}|[0-9a-f]{32})$/.exec(wwid)?.[1]
  if (naa !== undefined) return `3${naa}`
  const designator = ietDesignator(wwid)
  return designator && `1${designator.toString('hex')}`
}

/**
 * The name under which udev shows a disk for as long as it has this WWID: 60-persistent-storage.rules of systemd for
 * SCSI disks, 11-dm-mpath.rules of multipath-tools for joined paths.
 * @throws UNSUPPORTED for a WWID of another kind than NAA or IET's
 */
export function stablePathOf(wwid: string, multipath: boolean): string {
  const id = scsiIdOf(wwid)
  if (id === undefined) {
    throw new StorageError('UNSUPPORTED', `udev has no stable name for a disk with the WWID ${JSON.stringify(wwid)}`, {
      op: 'initiator.verify',
      info: {wwid},
    })
  }
  if (multipath) return `/dev/disk/by-id/dm-uuid-mpath-${id}`
  return wwid.startsWith('naa.') ? `/dev/disk/by-id/wwn-0x${id.slice(1)}` : `/dev/disk/by-id/scsi-${id}`
}

/**
 * IET's designator, a binary one of 24 bytes: its vendor with five NULs, and the ScsiId. sysfs shows a NUL as `\0` and other
 * bytes that are not printable with three octal digits, so that a NUL before two such digits looks like another byte: then
 * the id comes out too short, and undefined.
 */
function ietDesignator(wwid: string): Buffer | undefined {
  const [, id] = /^t10\.IET(?:\\0){5}(.+)$/s.exec(wwid) ?? []
  if (id === undefined) return undefined
  const bytes = id.replace(/\\([0-3][0-7]{2}|0)/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
  const designator = Buffer.from(`IET\0\0\0\0\0${bytes}`, 'latin1')
  return designator.length === 24 ? designator : undefined
}
