import {randomBytes} from 'node:crypto'
import {chmodSync, mkdirSync, readdirSync, statfsSync, statSync, writeFileSync} from 'node:fs'
import {join} from 'node:path'
import {StorageError} from '../../src/errors.js'
import {run} from '../../src/exec.js'
import {FileVolumeDriver} from '../../src/volumes/file.js'
import {newVolumeId} from '../../src/volumes/id.js'
import {writeAt} from '../contract/observe.js'

/**
 * Run in a mount namespace of its own: fills small file systems for real and writes what the driver answered as JSON.
 * Arguments: an empty directory to mount on, and one for other files.
 */
const [directory, elsewhere] = process.argv.slice(2) as [string, string]
const MiB = 2 ** 20

async function outcome(promise: Promise<unknown>): Promise<string> {
  try {
    await promise
    return 'ok'
  } catch (error) {
    return error instanceof StorageError ? error.code : String(error)
  }
}

async function mountTmpfs(options: string): Promise<void> {
  await run('mount', ['-t', 'tmpfs', '-o', options, 'lunpath-test', directory])
}

function look() {
  const {bavail, bsize} = statfsSync(directory)
  return {names: readdirSync(directory).sort(), freeBytes: bavail * bsize}
}

const report: Record<string, unknown> = {}

await mountTmpfs('size=8m,mode=700')
{
  const driver = new FileVolumeDriver({pool: 'small', directory, overcommitRatio: 4})
  await driver.open()
  report.fileSystem = driver.fileSystem?.name
  report.preallocateBeyondFree = await outcome(
    driver.create({id: newVolumeId(), sizeBytes: 12 * MiB, preallocate: true}),
  )
  report.afterPreallocateBeyondFree = look()
  report.parallelPreallocations = (
    await Promise.all(
      [1, 2].map(() => outcome(driver.create({id: newVolumeId(), sizeBytes: 6 * MiB, preallocate: true}))),
    )
  ).sort()
  const [first] = await driver.list()
  report.extendBeyondFree = await outcome(driver.extend(first!, 20 * MiB))
  report.afterExtend = {volumes: (await driver.list()).map(volume => volume.sizeBytes), ...look()}
  await writeAt(first!.path, randomBytes(6 * MiB), 0)
  report.cloneBeyondFree = await outcome(driver.clone(first!, {id: newVolumeId()}))
  report.afterClone = {...look(), ...(await driver.capacity())}
  report.deleteWhileFull = await outcome(driver.delete(first!))
  await driver.settled()
  report.afterDelete = look()
  await driver.close()
}
await run('umount', [directory])

await mountTmpfs('size=8m,nr_inodes=4,mode=700')
{
  // The root directory and the marker take two of the four inodes.
  const driver = new FileVolumeDriver({pool: 'small', directory, overcommitRatio: 4})
  await driver.open()
  const outcomes: string[] = []
  for (let count = 0; count < 4; count++)
    outcomes.push(await outcome(driver.create({id: newVolumeId(), sizeBytes: MiB})))
  report.inodes = {outcomes, volumes: (await driver.list()).length, ...(await driver.capacity())}
  await driver.close()
}
await run('umount', [directory])

await mountTmpfs('size=8m,mode=700')
{
  const driver = new FileVolumeDriver({pool: 'small', directory})
  await driver.open()
  await driver.close()
  await run('mount', ['-o', 'remount,ro', directory])
  report.readOnly = await outcome(driver.open())
  await run('mount', ['-o', 'remount,rw', directory])
  await run('dd', ['if=/dev/zero', `of=${join(directory, 'filler')}`, 'bs=64k'], {accept: [1]})
  report.openWhileFull = await outcome(driver.open())
  await driver.close()
}
await run('umount', [directory])

await run('truncate', ['--size', '32M', join(elsewhere, 'image')])
await run('mkfs.ext4', ['-q', '-m', '0', join(elsewhere, 'image')])
await run('mount', ['-o', 'loop', join(elsewhere, 'image'), directory])
{
  const driver = new FileVolumeDriver({pool: 'small', directory, overcommitRatio: 4})
  await driver.open()
  const volume = await driver.create({id: newVolumeId(), sizeBytes: 2 * MiB, preallocate: true})
  // A writer that takes the space between the driver's look at it and the reservation, every time.
  const racing = join(elsewhere, 'bin')
  mkdirSync(racing)
  const filler = join(directory, 'filler')
  const script = `#!/bin/sh\nrm -f ${filler}; /usr/bin/fallocate --length 12M ${filler}\nexec /usr/bin/fallocate "$@"\n`
  writeFileSync(join(racing, 'fallocate'), script)
  chmodSync(join(racing, 'fallocate'), 0o755)
  process.env.PATH = `${racing}:${process.env.PATH}`
  report.raced = {
    extend: await outcome(driver.extend(volume, 18 * MiB)),
    allocatedBytes: statSync(volume.path).blocks * 512,
    create: await outcome(driver.create({id: newVolumeId(), sizeBytes: 16 * MiB, preallocate: true})),
    volumes: await driver.list(),
    expected: [volume],
    fillerBytes: statSync(filler).size,
    names: readdirSync(directory).length,
  }
  await driver.close()
}
await run('umount', [directory])

process.stdout.write(JSON.stringify(report))
