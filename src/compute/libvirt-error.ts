import {type ErrorCode, StorageError} from '../errors.js'

/** libvirt's virErrorNumber and virErrorDomain (libvirt/virterror.h), as far as they lead to a code of ours. */
const vir = {
  internalError: 1,
  noConnect: 5,
  invalidConnection: 6,
  xmlError: 27,
  systemError: 38,
  rpc: 39,
  noDomain: 42,
  authFailed: 45,
  operationInvalid: 55,
  invalidSecret: 65,
  noSecret: 66,
  configUnsupported: 67,
  operationTimeout: 68,
  accessDenied: 88,
  authUnavailable: 94,
  deviceMissing: 99,
} as const
const fromRpc = 7
const fromDomain = 20

/** What the addon rejects with. */
export interface LibvirtError extends Error {
  /** `VIR_ERR`; `ERR_CLOSED` and `ERR_NOT_OPEN` of our own connection; an errno's name where this process lacks a thread. */
  code: string
  /** virErrorNumber */
  errno: number
  /** virErrorDomain */
  domain?: number
  syscall?: string
}

export function isLibvirtError(error: unknown): error is LibvirtError {
  return error instanceof Error && 'code' in error && 'errno' in error
}

/** The connection has ended; another must be opened. */
export function isConnectionLoss({code, errno, domain}: LibvirtError): boolean {
  if (code === 'ERR_CLOSED' || code === 'ERR_NOT_OPEN') return true
  if (code !== 'VIR_ERR') return false
  const lost: number[] = [vir.noConnect, vir.invalidConnection, vir.rpc]
  return domain === fromRpc || lost.includes(errno)
}

/** The domain is gone or shut off: nothing is attached to it. */
export function isDomainGone({code, errno, message}: LibvirtError): boolean {
  if (code !== 'VIR_ERR') return false
  return errno === vir.noDomain || (errno === vir.operationInvalid && /not running|not active/.test(message))
}

/** A detach of what is not there: by alias 1/20, by XML 99/10. */
export function isDeviceMissing({errno, domain, message}: LibvirtError): boolean {
  if (errno === vir.deviceMissing) return true
  return errno === vir.internalError && domain === fromDomain && /no device|not found/i.test(message)
}

/** The guest has been asked before and has not answered yet. */
export function isUnplugPending({message}: LibvirtError): boolean {
  return /in the process of unplug/.test(message)
}

/** A libvirtd that was killed in mid-attach has left its block nodes in QEMU; the next attempt takes other names. */
export function isLeftoverNode({message}: LibvirtError): boolean {
  return /Duplicate nodes? with node-name/i.test(message)
}

/**
 * Another device of QEMU's has the address, by QEMU's words (hw/scsi/scsi-bus.c, hw/pci/pci.c) or by libvirt's. libvirt
 * chooses none that it knows to be taken: the device is one that it does not know, since it was killed in mid-attach.
 */
export function isAddressTaken({message}: LibvirtError): boolean {
  return /lun already used by|slot \d+ function \d+ not available|double use of PCI Address|duplicate drive address/i.test(
    message,
  )
}

/** The file system below has no O_DIRECT, which cache mode `none` wants. */
export function isWithoutDirectIo({message}: LibvirtError): boolean {
  return /does not support O_DIRECT/.test(message)
}

/** What libvirt's words do not say: what to do. */
const hints: [RegExp, string][] = [
  [
    /No more available PCI/i,
    "The machine has no free PCI slot. Shut the domain off and give it another <controller type='pci' model='pcie-root-port'/> (machine q35) or model='pci-bridge' (machine pc) with virsh edit, or attach with --bus scsi: all disks of that bus share one slot",
  ],
  [
    /Duplicate device ID/i,
    'QEMU has this disk already, and libvirt does not know it, since it was killed while it attached the disk. Shut the domain off and start it again: QEMU then has what libvirt has',
  ],
]

function hintFor(message: string): string {
  const hint = hints.find(([pattern]) => pattern.test(message))?.[1]
  return hint === undefined ? '' : `. ${hint}`
}

function codeOf(error: LibvirtError): ErrorCode {
  if (isConnectionLoss(error) || error.code !== 'VIR_ERR') return 'COMPUTE_UNAVAILABLE'
  // QEMU's iSCSI tells its failures in words only; 513 is the login status 0x0201 (RFC 7143, 11.13.5).
  if (/Authentication failure|\(513\)/i.test(error.message)) return 'AUTH_FAILED'
  if (/target '?\w+'? (already exists|duplicated)|^target \w+ already exists/.test(error.message)) {
    return 'DISK_TARGET_IN_USE'
  }
  switch (error.errno) {
    case vir.noDomain:
      return 'DOMAIN_NOT_FOUND'
    case vir.operationInvalid:
      return isDomainGone(error) ? 'DOMAIN_INACTIVE' : 'COMPUTE_FAILED'
    case vir.configUnsupported:
      return /alias/i.test(error.message) ? 'ATTACHMENT_EXISTS' : 'COMPUTE_FAILED'
    case vir.invalidSecret:
    case vir.noSecret:
    case vir.authFailed:
    case vir.authUnavailable:
    case vir.accessDenied:
      return 'AUTH_FAILED'
    case vir.operationTimeout:
      return 'TIMEOUT'
    case vir.systemError:
      return error.syscall === 'virConnectOpen' ? 'COMPUTE_UNAVAILABLE' : 'COMPUTE_FAILED'
    default:
      return 'COMPUTE_FAILED'
  }
}

export interface ErrorContext {
  op: string
  /** What was being done, for the message: `attach disk 0123… to domain web`. */
  action: string
  info: Record<string, unknown>
  /** Values that must not appear in any message. */
  secrets: Iterable<string>
}

/** libvirt's error as one of ours: `cause` keeps its code, domain, function and message. */
export function toStorageError(error: unknown, {op, action, info, secrets}: ErrorContext): unknown {
  if (!isLibvirtError(error)) return error
  const message = scrub(error.message, secrets)
  const cause = Object.assign(new Error(message), {
    code: error.code,
    errno: error.errno,
    domain: error.domain,
    syscall: error.syscall,
  })
  return new StorageError(codeOf(error), `Cannot ${action}: ${message}${hintFor(message)}`, {op, info, cause})
}

function scrub(message: string, secrets: Iterable<string>): string {
  let clean = message
  for (const secret of secrets) clean = clean.replaceAll(secret, '***')
  return clean
}
