import {DataType, isNullPointer, load, open} from 'ffi-rs'
import {StorageError} from './errors.js'

/** What libblkid recognises on a device: a file system, RAID or LVM member, swap, or a table of partitions. */
export interface Signature {
  /** `ext4`, `LVM2_member`, `gpt`; `several` where more than one contradict each other. */
  type: string
  /** `filesystem`, `raid`, `other`, `crypto`, or `partitions`. */
  usage: string
}

const blkid = 'libblkid.so.1'
const libc = 'libc.so.6'
const package_ = 'libblkid1'

// blkid/blkid.h
const superblocksType = 1 << 5
const superblocksUsage = 1 << 7
const superblocksMagic = 1 << 9
const partsMagic = 1 << 3
const found = 0
const nothing = 1
const ambivalent = -2

let opened = false

function openLibraries(): void {
  if (opened) return
  try {
    for (const library of [blkid, libc]) open({library, path: library})
    opened = true
  } catch (cause) {
    throw new StorageError('DEPENDENCY_MISSING', `${blkid} does not load: apt-get install ${package_}`, {
      op: 'signatures',
      info: {library: blkid, package: package_},
      cause,
    })
  }
}

type Value = number | string | Buffer | Pointer
type Pointer = ReturnType<typeof newProbe>

/** One synchronous call. `kinds` are the parameters' types, in order. */
function call(library: string, funcName: string, retType: DataType, kinds: DataType[], values: Value[]): unknown {
  return load({library, funcName, retType: retType as DataType.I32, paramsType: kinds, paramsValue: values})
}

function newProbe() {
  return load({
    library: blkid,
    funcName: 'blkid_new_probe',
    retType: DataType.External,
    paramsType: [],
    paramsValue: [],
  })
}

function set(probe: Pointer, funcName: string, flags: number): void {
  call(blkid, funcName, DataType.I32, [DataType.External, DataType.I32], [probe, flags])
}

/**
 * What is on an open block device or image file, by libblkid's safe probe (wipefs(8) and mkfs go by the same); undefined
 * where nothing is recognised. It reads on a thread of its own. The descriptor stays the caller's.
 * @throws DEPENDENCY_MISSING without libblkid; POOL_UNUSABLE where the device cannot be read
 */
export async function signatureOf(fd: number): Promise<Signature | undefined> {
  openLibraries()
  const probe = newProbe()
  if (isNullPointer(probe)) throw new StorageError('INTERNAL', 'libblkid gave no probe: out of memory')
  try {
    const {External, I32, I64} = DataType
    if (call(blkid, 'blkid_probe_set_device', I32, [External, I32, I64, I64], [probe, fd, 0, 0]) !== 0)
      throw unreadable()
    set(probe, 'blkid_probe_enable_superblocks', 1)
    set(probe, 'blkid_probe_set_superblocks_flags', superblocksType | superblocksUsage | superblocksMagic)
    set(probe, 'blkid_probe_enable_partitions', 1)
    set(probe, 'blkid_probe_set_partitions_flags', partsMagic)
    const outcome = await load({
      library: blkid,
      funcName: 'blkid_do_safeprobe',
      retType: DataType.I32,
      paramsType: [DataType.External],
      paramsValue: [probe],
      runInNewThread: true,
    })
    if (outcome === nothing) return undefined
    if (outcome === ambivalent) return {type: 'several', usage: 'several'}
    if (outcome !== found) throw unreadable()
    const type = lookUp(probe, 'TYPE')
    const table = lookUp(probe, 'PTTYPE')
    if (type !== undefined) return {type, usage: lookUp(probe, 'USAGE') ?? 'other'}
    return {type: table ?? 'unknown', usage: 'partitions'}
  } finally {
    call(blkid, 'blkid_free_probe', DataType.Void, [DataType.External], [probe])
  }
}

/** A value of the last probe. libblkid gives a pointer into memory of the probe, which is copied here. */
function lookUp(probe: Pointer, name: 'TYPE' | 'USAGE' | 'PTTYPE'): string | undefined {
  const {External, I32, I64, String: Text, U8Array, U64, Void} = DataType
  const pointer = Buffer.alloc(8)
  const length = Buffer.alloc(8)
  const kinds = [External, Text, U8Array, U8Array]
  const outcome = call(blkid, 'blkid_probe_lookup_value', I32, kinds, [probe, name, pointer, length])
  // An address of user space has 47 bits: a number holds it exactly.
  const address = Number(pointer.readBigUInt64LE())
  const bytes = Number(length.readBigUInt64LE())
  if (outcome !== 0 || address === 0 || bytes === 0 || bytes > 256) return undefined
  const text = Buffer.alloc(bytes)
  call(libc, 'memcpy', Void, [U8Array, I64, U64], [text, address, bytes])
  // The length counts the closing NUL.
  return text.toString('latin1').split('\0')[0]
}

function unreadable(): StorageError {
  return new StorageError('POOL_UNUSABLE', 'libblkid could not read the device', {op: 'signatures'})
}
