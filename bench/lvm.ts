import {execFile} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {mkdtemp, rm} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {promisify} from 'node:util'
import {newVolumeId} from '../src/volumes/id.js'
import {LvmVolumeDriver} from '../src/volumes/lvm.js'
import {createGroup} from '../src/volumes/lvm-create.js'
import {diskOfLab} from '../test/lab/disk.js'
import {type Comparison, countExecve, median} from './measure.js'

const run = promisify(execFile)
const group = 'bench'
const sizeBytes = 16 * 2 ** 20

export interface LvmOptions {
  /** What is measured. */
  step: 'create' | 'delete'
  kind: 'thick' | 'thin'
  /** Volumes in a sample. */
  count: number
  /** How many of ours are under way at once. A spawn each is done one after the other, as LVM's lock has it anyway. */
  concurrency: number
}

/**
 * A new logical volume with its tags, ready for use, or a volume's deletion until the logical volume is gone: through our
 * driver, and by spawning lvcreate or lvremove with the same arguments and the same configuration. In the lab, without
 * udevd; both in one volume group. A sample is the median of milliseconds per volume of `count` volumes, or their time
 * divided by their number where several are under way.
 */
export async function lvmComparison(
  {step, kind, count, concurrency}: LvmOptions,
  release: (cleanup: () => Promise<void>) => void,
): Promise<Comparison> {
  const directory = await mkdtemp(join(tmpdir(), 'lp-bench-'))
  release(() => rm(directory, {recursive: true, force: true}))
  const systemDirectory = join(directory, 'lvm')
  const thinPool = kind === 'thin' ? 'thin' : undefined
  const disk = diskOfLab(1)
  await createGroup({group, devices: [disk], thinPool, thinBytes: 2 ** 30, systemDirectory})
  const env = {PATH: `${process.env.PATH}:/usr/sbin:/sbin`, LC_ALL: 'C', LVM_SYSTEM_DIR: systemDirectory}
  release(async () => {
    await run('vgremove', ['--yes', '--force', group], {env})
    await run('pvremove', ['--yes', disk], {env})
  })
  const driver = new LvmVolumeDriver({
    pool: 'bench',
    group,
    thinPool,
    overcommitRatio: 100,
    systemDirectory,
    // lvremove does not wipe either.
    wipe: 'none',
  })
  release(() => driver.close())
  await driver.open()

  const perVolume = async (work: (() => Promise<void>)[], workers: number) => {
    const times: number[] = []
    const began = performance.now()
    const left = [...work]
    const worker = async () => {
      for (let next = left.shift(); next; next = left.shift()) {
        const from = performance.now()
        await next()
        times.push(performance.now() - from)
      }
    }
    await Promise.all(Array.from({length: workers}, worker))
    if (step === 'delete') await driver.settled()
    return workers === 1 ? median(times) : (performance.now() - began) / count
  }

  const ours = async () => {
    const made: Awaited<ReturnType<typeof driver.create>>[] = []
    const creations = Array.from({length: count}, () => async () => {
      made.push(await driver.create({id: newVolumeId(), sizeBytes}))
    })
    const created = await perVolume(creations, concurrency)
    const deletions = made.map(volume => () => driver.delete(volume))
    const deleted = await perVolume(deletions, concurrency)
    await driver.settled()
    return step === 'create' ? created : deleted
  }
  const other = async () => {
    const made: string[] = []
    const creations = Array.from({length: count}, () => async () => {
      const name = newVolumeId()
      const tags = ['--addtag', `lunpath:id=${name}`, '--addtag', `lunpath:made=${randomBytes(4).toString('hex')}`]
      const size = `${sizeBytes}b`
      const space = thinPool
        ? ['--virtualsize', size, '--thin', `${group}/${thinPool}`]
        : ['--wipesignatures', 'y', '--zero', 'y', '--size', size, group]
      await run('lvcreate', ['--yes', '--name', name, ...tags, ...space], {env})
      made.push(name)
    })
    const created = await perVolume(creations, 1)
    const removals = made.map(name => async () => void (await run('lvremove', ['--yes', `${group}/${name}`], {env})))
    if (step === 'delete') return await perVolume(removals, 1)
    await run('lvremove', ['--yes', ...made.map(name => `${group}/${name}`)], {env})
    return created
  }
  return {
    ours,
    other,
    otherName: `${step === 'create' ? 'lvcreate' : 'lvremove'}, spawned by Node for each volume`,
    beside: async () => ({
      volumesPerSample: count,
      concurrency,
      mode: driver.lvm.mode,
      execvePerSample: await countExecve(async () => void (await ours())),
    }),
  }
}
