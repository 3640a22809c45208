/** The nouns that travel from room to room. Sibling rooms share this file alone. */

/**
 * A volume's id: 16 lowercase hex digits (64 random bits). It goes all the way: file or LV name, last part of the IQN,
 * SCSI serial, libvirt `<serial>`. Sixteen, because IET's SCSI id holds 16 bytes and virtio-blk's serial 20; hex,
 * because LIO and tgt build the NAA identifier from the serial's hex digits only.
 */
export type VolumeId = string

/** A block volume as it exists on the storage node. */
export interface Volume {
  id: VolumeId
  /** Driver that keeps it: `file`. */
  driver: string
  /** Pool that holds it; for an imported volume, where the path lies. */
  pool: string
  /** Absolute path of the file or block device. */
  path: string
  kind: 'file' | 'block'
  /** Bytes, a multiple of 512. */
  sizeBytes: number
  allocation: 'sparse' | 'preallocated'
  /** True where `volume import` took an existing file or device: never wiped, resized or removed. */
  imported: boolean
}

/** A TCP address on which targets are offered. IPv6 without brackets. */
export interface Portal {
  address: string
  port: number
}

/** CHAP credentials: a user name and a secret. The secret never reaches logs, errors, metrics or a command line. */
export interface ChapCredentials {
  user: string
  secret: string
}

/** CHAP for a target: `incoming` proves the initiator, `outgoing` (mutual) proves the target. */
export interface ChapAuth {
  incoming: ChapCredentials
  outgoing?: ChapCredentials
}

/** Which initiators may log in. An address and a name list are a union; both empty means nobody. */
export interface AccessRules {
  /** `ALL`, an IPv4 or IPv6 address, or a CIDR prefix. */
  addresses: string[]
  /** Initiator IQNs. */
  names: string[]
}

/**
 * What IET does with a command: through the page cache, around it (block devices alone), or nothing at all. `nullio` has the
 * volume's size and identity, and neither reads nor writes it: what is read is no data, what is written is gone.
 */
export type IoType = 'fileio' | 'blockio' | 'nullio'

/** How a volume is offered: what `targets.export` is asked for. One target per volume. */
export interface ExportSpec {
  volume: Pick<Volume, 'id' | 'path' | 'kind' | 'sizeBytes'>
  iqn: string
  access: AccessRules
  auth?: ChapAuth
  /** `through`: a write is on stable storage when it is acknowledged (the default everywhere in lunpath). */
  writeCache: 'through' | 'back'
  readOnly: boolean
  /** IET: how the volume is kept. Absent: files `fileio`, block devices as configured. */
  ioType?: IoType
  /** IET: parameters that were set of it, by their names in RFC 7143, 13, and ietd.conf(5). */
  parameters?: Record<string, boolean | number | string>
  /** IET: ADDRESS:PORT to which its initiators are sent. */
  redirect?: string
  /** IET: the target's number where it had one, which it is to have again. */
  tid?: number
  /** IET: the target was there before lunpath, which puts it back should it go, and else changes nothing of it. */
  taken?: TakenTarget
}

/** What is to be known of a target that lunpath has not made, so that it can be made again as it was. */
export interface TakenTarget {
  lun: number
  /** As initiators read it from VPD page 0x83. */
  wwid: string
  /** Null where IET makes it of the target's name and the LUN. */
  scsiId: string | null
  scsiSn: string
  ioType: 'fileio' | 'blockio'
  blockSizeBytes: number
}

/** A volume that initiators can reach. */
export interface Export {
  volumeId: VolumeId
  driver: string
  iqn: string
  /**
   * 1: tgt keeps LUN 0 for its controller, and one number for all drivers is one less thing to carry. A target that was
   * taken over keeps its own.
   */
  lun: number
  /** The target's number, where it is to have it again after a restart of the target daemon and of lunpath's. */
  tid?: number
  portals: Portal[]
  /** The identifier that an initiator must read from VPD page 0x83, e.g. `naa.6000000000000000<id>`. */
  wwid: string
  /** The unit serial number that an initiator must read from VPD page 0x80, blanks trimmed. */
  serial: string
  sizeBytes: number
}

/** What an initiator saw of a logical unit. */
export interface LunIdentity {
  /** VPD page 0x83, e.g. `naa.6000000000000000<id>`. */
  wwid: string
  /** VPD page 0x80, blanks trimmed. */
  serial: string
  sizeBytes: number
  blockSizeBytes: number
  vendor: string
  product: string
}

/** A volume's LUN as a block device of this node. */
export interface Device {
  iqn: string
  lun: number
  /** The node that was looked at: `/dev/sdb`, or `/dev/dm-3` where multipathd has joined its paths. */
  path: string
  /** The name that is the same after another login: what may be stored. udev makes it some time after a login. */
  stablePath: string
  wwid: string
  /** VPD page 0x80, blanks trimmed. */
  serial: string
  sizeBytes: number
  /** What carries it: one SCSI disk for each session. */
  paths: {device: string; sid: number; portal: Portal}[]
  /** Portals that were asked for and have no session: I/O does not survive the loss of the others. */
  missingPortals: Portal[]
  /** `dm`: multipathd has joined the paths. `first-path`: there are several, and only the first is used. */
  multipath: 'dm' | 'first-path' | 'single'
}

/** A session of this node's kernel initiator, as sysfs shows it. */
export interface KernelSession {
  /** The kernel's number of it. */
  sid: number
  iqn: string
  initiator: string
  /** Where it was logged in to; a target may have sent it elsewhere since. */
  portal: Portal
  tpgt: number
  /** `LOGGED_IN`; `FAILED` while the connection is lost and iscsid tries again; `FREE` when that took too long. */
  state: string
  connectionState: string
  headerDigest: boolean
  dataDigest: boolean
  /** Seconds without a connection after which I/O fails. */
  recoveryTimeoutSeconds: number
  devices: {device: string; lun: number; state: string; sizeBytes: number}[]
}

/** A session as the target sees it. */
export interface TargetSession {
  iqn: string
  initiator: string
  /** The target's number of the session (u64), as a decimal string: a JS number cannot hold it. */
  sid: string
  connections: {cid: number; address: string; state: string; headerDigest?: boolean; dataDigest?: boolean}[]
}

/** A target that the driver found in the running target daemon, ours or somebody else's. */
export interface ObservedTarget {
  iqn: string
  tid: number
  luns: {
    lun: number
    path: string
    sizeBytes: number
    serial: string
    scsiId: string
    readOnly: boolean
    online: boolean
    /** IET: how the volume is kept, `fileio`, `blockio` or `nullio`. */
    ioType?: string
    /** IET: `wt`, `wb` or `ro`. */
    ioMode?: string
    blockSizeBytes?: number
  }[]
  access: AccessRules
  /** Names of CHAP accounts bound to the target; never their secrets. */
  accounts: string[]
  sessions: TargetSession[]
}

/** What a disk is fed from. */
export type DiskSource =
  | {type: 'iscsi'; iqn: string; lun: number; portal: Portal; initiatorName?: string; auth?: ChapCredentials}
  | {type: 'block'; path: string}
  | {type: 'file'; path: string; format: 'raw' | 'qcow2'}

/** A disk of a domain as libvirt lists it. */
export interface Disk {
  domain: string
  /** libvirt's target name: `vdb`, `sda`. The guest's own name may differ: match by serial. */
  target: string
  bus: 'virtio' | 'scsi' | string
  /** libvirt's alias, `ua-lunpath-<id>` for disks that lunpath attached. */
  alias: string
  serial: string | null
  source: DiskSource | {type: 'other'; description: string}
  /** Present in the running domain, in the persistent definition, or both. */
  live: boolean
  persistent: boolean
  readOnly: boolean
}

/** Something that a domain reads or writes: of a disk each image of its chain, or a SCSI device that is handed on. */
export interface Feed {
  domain: string
  domainUuid: string
  /** libvirt's name of the disk, `vdb`, or what else it is. */
  device: string
  alias: string
  /** `scsi`: a device of this host, `host:channel:target:lun`. */
  source: DiskSource | {type: 'scsi'; address: string}
  /** The domain's owner has said that others have it too (`<shareable/>`). */
  shared: boolean
}

export type DomainState =
  | 'nostate'
  | 'running'
  | 'blocked'
  | 'paused'
  | 'shutdown'
  | 'shutoff'
  | 'crashed'
  | 'pmsuspended'

export interface Domain {
  name: string
  uuid: string
  /** libvirt's id while active, else null. */
  id: number | null
  state: DomainState
  persistent: boolean
}
