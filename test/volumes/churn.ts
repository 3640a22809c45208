import {writeSync} from 'node:fs'
import type {Volume} from '../../src/types.js'
import {FileVolumeDriver} from '../../src/volumes/file.js'
import {newVolumeId} from '../../src/volumes/id.js'

/**
 * Run as a process that is killed in the middle: makes, copies, extends and deletes volumes without end, and writes what
 * it begins and what it was promised as a line each. Arguments: the pool's directory, the id of the volume to copy.
 */
const [directory, sourceId] = process.argv.slice(2) as [string, string]
const MiB = 2 ** 20
const driver = new FileVolumeDriver({pool: 'churn', directory})
await driver.open()
const source = (await driver.get(sourceId))!

function say(event: Record<string, unknown>): void {
  writeSync(1, `${JSON.stringify(event)}\n`)
}

async function step<T>(event: Record<string, unknown>, task: () => Promise<T>): Promise<T> {
  say({...event, phase: 'begun'})
  const result = await task()
  say({...event, phase: 'done'})
  return result
}

async function worker(number: number): Promise<never> {
  const kept: Volume[] = []
  for (let round = number; ; round++) {
    const id = newVolumeId()
    const kind = ['sparse', 'preallocated', 'clone'][round % 3]!
    const sizeBytes = kind === 'clone' ? source.sizeBytes : 4 * MiB
    kept.push(
      await step({op: 'create', kind, id, sizeBytes}, () =>
        kind === 'clone'
          ? driver.clone(source, {id})
          : driver.create({id, sizeBytes, preallocate: kind === 'preallocated'}),
      ),
    )
    if (round % 5 === 0 && kind !== 'clone') {
      const volume = kept.pop()!
      const larger = 6 * MiB
      kept.push(await step({op: 'extend', id, sizeBytes: larger}, () => driver.extend(volume, larger)))
    }
    if (kept.length > 4) {
      const [volume] = kept.splice(Math.floor(Math.random() * kept.length), 1)
      await step({op: 'delete', id: volume!.id}, () => driver.delete(volume!))
    }
  }
}

await Promise.all([0, 1, 2, 3].map(worker))
