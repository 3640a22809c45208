import {isIPv4} from 'node:net'
import {StorageError} from '../errors.js'
import type {ExportSpec} from '../types.js'
import {firstLun} from './driver.js'
import type {IetVolume} from './iet-procfs.js'
import {checkExportSpec, ruleAddress} from './spec.js'

/** How IET writes the parts of an export. */

/** Bytes of a volume's arguments, their NUL left out. */
const maxArgumentBytes = 2047

export const blockSizes = [512, 1024, 2048, 4096] as const

/** IET takes a file's size for the unit's. */
export const fit = {target: 'IET', isToldSize: false}

/** How the volumes of an export are offered, beside what the export itself says. */
export interface IetVolumeOptions {
  /** Bytes of a logical block. */
  blockSizeBytes: number
  /** `fileio` gives block devices the page cache; `blockio` goes around it. */
  blockDevices: 'blockio' | 'fileio'
}

/**
 * VPD page 0x83 of a LUN with this ScsiId: a T10 designator of the vendor `IET`, filled up to its eight bytes with NULs, and
 * the id. The NULs are written as the kernel writes them in sysfs (drivers/scsi/scsi_lib.c, scsi_vpd_lun_id).
 */
export function ietWwid(id: string): string {
  return `t10.IET${'\\0'.repeat(5)}${id}`
}

/** The path of an export's logical unit as IET lists it: nullio has none. */
export function pathOf({volume, ioType}: Pick<ExportSpec, 'volume' | 'ioType'>): string {
  return ioType === 'nullio' ? '' : volume.path
}

/** The number of an export's logical unit. */
export function lunOf({taken}: Pick<ExportSpec, 'taken'>): number {
  return taken?.lun ?? firstLun
}

/** As the listings of lunpath show them. */
export function idsOf({volume, taken}: ExportSpec): {serial: string; scsiId: string} {
  return taken ? {serial: taken.scsiSn, scsiId: taken.scsiId ?? ''} : {serial: volume.id, scsiId: volume.id}
}

function ioTypeOf(
  {volume, ioType, taken}: Pick<ExportSpec, 'volume' | 'ioType' | 'taken'>,
  {blockDevices}: Pick<IetVolumeOptions, 'blockDevices'>,
): IetVolume['ioType'] {
  if (taken) return taken.ioType
  if (ioType) return ioType
  return volume.kind === 'block' ? blockDevices : 'fileio'
}

function ioModeOf({readOnly, writeCache}: Pick<ExportSpec, 'readOnly' | 'writeCache'>): IetVolume['ioMode'] {
  if (readOnly) return 'ro'
  return writeCache === 'back' ? 'wb' : 'wt'
}

/**
 * The arguments of ADD_VOLUME. A valid key makes IET forget the error of one before it, so those that can fail in the kernel
 * (Type, Path, Sectors) come last. Without ScsiId and ScsiSN the identity hangs on the target's name, which is as it shall be
 * for one that was made so.
 */
export function volumeArguments(
  spec: Pick<ExportSpec, 'volume' | 'readOnly' | 'writeCache' | 'ioType' | 'taken'>,
  options: IetVolumeOptions,
): string {
  const ioType = ioTypeOf(spec, options)
  const blockSizeBytes = blockSizeOf(spec, options)
  const {scsiId, scsiSn} = spec.taken ?? {scsiId: spec.volume.id, scsiSn: spec.volume.id}
  return [
    ...(scsiId === null ? [] : [`ScsiId=${scsiId}`]),
    `ScsiSN=${scsiSn}`,
    ...(ioType === 'nullio' ? [] : [`IOMode=${ioModeOf(spec)}`]),
    `BlockSize=${blockSizeBytes}`,
    `Type=${ioType}`,
    // Counted in blocks of BlockSize bytes, whatever its name says (IET's kernel/null-io.c, parse_nullio_params).
    ioType === 'nullio' ? `Sectors=${spec.volume.sizeBytes / blockSizeBytes}` : `Path=${spec.volume.path}`,
  ].join(',')
}

/** The line of the listing that a LUN with those arguments must have. */
export function expectedVolume(
  spec: Pick<ExportSpec, 'volume' | 'readOnly' | 'writeCache' | 'ioType' | 'taken'>,
  options: IetVolumeOptions,
): IetVolume {
  const blockSizeBytes = blockSizeOf(spec, options)
  return {
    lun: lunOf(spec),
    deleted: false,
    ioType: ioTypeOf(spec, options),
    ioMode: ioModeOf(spec),
    blocks: spec.volume.sizeBytes / blockSizeBytes,
    blockSizeBytes,
    path: pathOf(spec),
  }
}

function blockSizeOf({taken}: Pick<ExportSpec, 'taken'>, options: Pick<IetVolumeOptions, 'blockSizeBytes'>): number {
  return taken?.blockSizeBytes ?? options.blockSizeBytes
}

/** @throws StorageError NAME_INVALID, INVALID_ARGUMENT, UNSUPPORTED, SIZE_INVALID */
export function checkIetSpec(
  spec: ExportSpec,
  {accessFiles, ...options}: IetVolumeOptions & {accessFiles: boolean},
): void {
  checkExportSpec(spec)
  const {iqn, volume, access} = spec
  if (Buffer.byteLength(volumeArguments(spec, options)) > maxArgumentBytes) {
    throw refuse('NAME_INVALID', `IET takes no path as long as ${volume.path}`, iqn)
  }
  const blockSizeBytes = blockSizeOf(spec, options)
  if (volume.sizeBytes % blockSizeBytes !== 0) {
    throw refuse(
      'SIZE_INVALID',
      `A volume of ${volume.sizeBytes} bytes has no whole number of blocks of ${blockSizeBytes} bytes`,
      iqn,
    )
  }
  if (spec.taken) return
  checkKept(spec)
  for (const address of access.addresses) {
    // ietd compares the addresses of the two families without a look at which is which, and the other's bytes are zeros.
    if (address !== 'ALL' && isNull(ruleAddress(address))) {
      throw refuse('UNSUPPORTED', `A rule for ${address} would let everybody of the other family in`, iqn)
    }
  }
  if (!accessFiles && !(access.addresses.length === 1 && access.addresses[0] === 'ALL' && access.names.length === 0)) {
    throw refuse(
      'UNSUPPORTED',
      'IET keeps access rules only in initiators.allow, which lunpath may not write (iet.accessFiles = false): allow ALL, and use CHAP',
      iqn,
    )
  }
}

/** How the volume is kept, where the export says that. @throws StorageError UNSUPPORTED */
function checkKept({iqn, volume, ioType, readOnly, writeCache}: ExportSpec): void {
  if (ioType === 'blockio' && volume.kind !== 'block') {
    throw refuse(
      'UNSUPPORTED',
      `${volume.path} is a file, and IET's blockio takes block devices alone: use fileio`,
      iqn,
    )
  }
  if (ioType === 'nullio' && (readOnly || writeCache === 'back')) {
    throw refuse('UNSUPPORTED', 'nullio keeps nothing, and IET takes neither read-only nor write-back for it', iqn)
  }
}

/** True where the address, or what is before its prefix, has no bit. */
function isNull(address: string): boolean {
  const [host = ''] = address.split('/')
  return isIPv4(host) ? host === '0.0.0.0' : new URL(`http://[${host}]`).hostname === '[::]'
}

function refuse(code: 'NAME_INVALID' | 'UNSUPPORTED' | 'SIZE_INVALID', message: string, iqn: string): StorageError {
  return new StorageError(code, message, {op: 'target.export', info: {iqn}})
}
