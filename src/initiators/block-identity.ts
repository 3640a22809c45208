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
 * The name under which udev shows a disk for as long as it has this WWID: 60-persistent-storage.rules of systemd for
 * SCSI disks, 11-dm-mpath.rules of multipath-tools for joined paths.
 * @throws UNSUPPORTED for a WWID of another kind than NAA
 */
export function stablePathOf(wwid: string, multipath: boolean): string {
  const hex = /^naa\.([0-9a-f]{16}|[0-9a-f]{32})$/.exec(wwid)?.[1]
  if (hex === undefined) {
    throw new StorageError('UNSUPPORTED', `udev has no stable name for a disk with the WWID ${JSON.stringify(wwid)}`, {
      op: 'initiator.verify',
      info: {wwid},
    })
  }
  return multipath ? `/dev/disk/by-id/dm-uuid-mpath-3${hex}` : `/dev/disk/by-id/wwn-0x${hex}`
}
