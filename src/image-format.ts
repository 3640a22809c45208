import {constants} from 'node:fs'
import {open} from 'node:fs/promises'

/** Where each format has its magic number, in bytes from the start: QEMU's block/qcow2.c, qed.c, vmdk.c, vhdx.c, vdi.c. */
const magics: readonly {format: string; offset: number; magic: Buffer}[] = [
  {format: 'qcow2', offset: 0, magic: Buffer.from('QFI\xfb', 'latin1')},
  {format: 'qed', offset: 0, magic: Buffer.from('QED\0', 'latin1')},
  {format: 'vmdk', offset: 0, magic: Buffer.from('KDMV', 'latin1')},
  {format: 'vhdx', offset: 0, magic: Buffer.from('vhdxfile', 'latin1')},
  {format: 'vdi', offset: 64, magic: Buffer.from([0x7f, 0x10, 0xda, 0xbe])},
]

/**
 * The format of a disk image that is not raw; undefined for raw ones. It is a warning and never a choice: a guest can write
 * such a magic number into its own raw disk, and QEMU would then open whatever backing file the guest names there.
 */
export async function imageFormatAt(path: string): Promise<string | undefined> {
  const handle = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  try {
    const head = Buffer.alloc(72)
    const {bytesRead} = await handle.read(head, 0, head.length, 0)
    return magics.find(
      ({offset, magic}) =>
        bytesRead >= offset + magic.length && head.subarray(offset, offset + magic.length).equals(magic),
    )?.format
  } finally {
    await handle.close()
  }
}
