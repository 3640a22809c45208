// What the two machines of pair.test.ts do, each called there by its name.
import {createHash, randomBytes} from 'node:crypto'
import {constants} from 'node:fs'
import {type FileHandle, open, truncate, writeFile} from 'node:fs/promises'
import {run} from '../../src/exec.js'
import {OpenIscsiInitiator} from '../../src/initiators/open-iscsi.js'
import {LioDriver} from '../../src/targets/lio.js'
import type {Export, Portal} from '../../src/types.js'
import {newVolumeId} from '../../src/volumes/id.js'
import {initiatorName, prepareInitiator} from './initiator.js'

const MiB = 2 ** 20
const unitPath = '/tmp/unit.img'
export const unitBytes = 64 * MiB

/** Exports a file by LIO. */
export async function exportUnit(portal: Portal): Promise<Export> {
  await writeFile(unitPath, '')
  await truncate(unitPath, unitBytes)
  const driver = new LioDriver({portals: [portal]})
  await driver.open()
  await driver.restore([])
  const id = newVolumeId()
  return driver.export({
    iqn: `iqn.2026-01.io.lunpath.test:${id}`,
    volume: {id, path: unitPath, kind: 'file', sizeBytes: unitBytes},
    access: {addresses: [], names: [initiatorName]},
    writeCache: 'through',
    readOnly: false,
  })
}

export const unitHash = () => hashOf(unitPath, 0)

/** Connects it by open-iscsi. @returns the disk's path */
export async function connectUnit({iqn, wwid, serial}: Export, portal: Portal): Promise<string> {
  const iscsid = await prepareInitiator()
  await iscsid.start()
  const initiator = new OpenIscsiInitiator({initiatorName})
  await initiator.open()
  const expected = {wwid, serial, sizeBytes: unitBytes}
  return (await initiator.connect({iqn, lun: 1, portals: [portal], initiatorName, expected})).path
}

let written = 0

/** Writes a disk from its beginning to its end, past the page cache. @returns the sha256 of what was written */
export async function writeAll(path: string): Promise<string> {
  const hash = createHash('sha256')
  await withFile(path, constants.O_WRONLY | constants.O_DIRECT, async file => {
    for (written = 0; written < unitBytes; written += MiB) {
      const data = randomBytes(MiB)
      hash.update(data)
      await file.write(data, 0, MiB, written)
    }
    await file.datasync()
  })
  return hash.digest('hex')
}

/** How far writeAll() is, in bytes. */
export const progress = () => written

export const diskHash = (path: string) => hashOf(path, constants.O_DIRECT)

async function hashOf(path: string, flags: number): Promise<string> {
  const hash = createHash('sha256')
  await withFile(path, constants.O_RDONLY | flags, async file => {
    const buffer = Buffer.alloc(MiB)
    for (let at = 0; at < unitBytes; at += MiB) {
      const {bytesRead} = await file.read(buffer, 0, MiB, at)
      hash.update(buffer.subarray(0, bytesRead))
    }
  })
  return hash.digest('hex')
}

async function withFile(path: string, flags: number, use: (file: FileHandle) => Promise<void>): Promise<void> {
  const file = await open(path, flags)
  try {
    await use(file)
  } finally {
    await file.close()
  }
}

/** What this machine calls itself. */
export async function names(): Promise<{host: string; initiator: string}> {
  const [host, initiator] = await Promise.all([run('hostname', []), run('cat', ['/etc/iscsi/initiatorname.iscsi'])])
  return {host: host.stdout.trim(), initiator: initiator.stdout.trim()}
}
