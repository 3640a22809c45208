import {randomBytes} from 'node:crypto'
import {mkdir, mkdtemp, rm, truncate, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {run} from '../src/exec.js'
import {Configfs, op} from '../src/targets/configfs.js'
import {LioDriver} from '../src/targets/lio.js'
import {readTarget, removal} from '../src/targets/lio-state.js'
import type {ExportSpec} from '../src/types.js'
import type {Comparison} from './measure.js'

const iqnPrefix = 'iqn.2026-01.io.lunpath.bench'
const initiator = `${iqnPrefix}:initiator`
const sizeBytes = 64 * 2 ** 20
/** Exports that are made at once, and one after the other. */
const together = 8

type Release = (cleanup: () => Promise<void>) => void

/** An open driver, and exports of one file by it. A sample is milliseconds. */
async function lioSide(release: Release) {
  const directory = await mkdtemp(join(tmpdir(), 'lp-bench-'))
  release(() => rm(directory, {recursive: true, force: true}))
  const path = join(directory, 'volume.img')
  await writeFile(path, '')
  await truncate(path, sizeBytes)
  const driver = new LioDriver({portals: [{address: '127.0.0.1', port: 3260}]})
  release(() => driver.close())
  await driver.open()
  await driver.restore([])

  const specs = (count: number): ExportSpec[] =>
    Array.from({length: count}, () => {
      const id = randomBytes(8).toString('hex')
      return {
        volume: {id, path, kind: 'file', sizeBytes},
        iqn: `${iqnPrefix}:${id}`,
        access: {addresses: [], names: [initiator]},
        writeCache: 'through',
        readOnly: false,
      }
    })
  const removeAll = async (made: ExportSpec[]) => {
    await Promise.all(made.map(({iqn}) => driver.unexport(iqn)))
  }
  /** Milliseconds for `count` exports, `concurrency` of them under way at once; then they are taken away. */
  const exports = async (count: number, concurrency: number) => {
    const made = specs(count)
    const waiting = [...made]
    const began = performance.now()
    const worker = async () => {
      for (let spec = waiting.pop(); spec; spec = waiting.pop()) await driver.export(spec)
    }
    await Promise.all(Array.from({length: concurrency}, worker))
    const took = performance.now() - began
    await removeAll(made)
    return took
  }
  return {driver, path, specs, exports, removeAll}
}

/**
 * One export: target, LUN, portal and one initiator's rule. targetcli does the same in one process that reads its
 * commands, which is its fastest way: a process for each command takes four times as long.
 */
export async function targetcliComparison(release: Release): Promise<Comparison> {
  const {path, exports} = await lioSide(release)
  // targetcli does not start without a system bus, on which it looks for tcmu-runner. The lab has none, and ends with it.
  await mkdir('/run/dbus', {recursive: true})
  await run('dbus-daemon', ['--system', '--fork', '--nopidfile'])
  const configfs = new Configfs()
  release(async () => configfs.close())
  const byTargetcli = async () => {
    const name = randomBytes(8).toString('hex')
    const iqn = `${iqnPrefix}:${name}`
    const input = [
      'set global auto_save_on_exit=false auto_add_default_portal=false',
      `/backstores/fileio create name=${name} file_or_dev=${path} write_back=false`,
      `/iscsi create ${iqn}`,
      `/iscsi/${iqn}/tpg1/luns create /backstores/fileio/${name} 1`,
      `/iscsi/${iqn}/tpg1/acls create ${initiator}`,
      `/iscsi/${iqn}/tpg1/portals create 127.0.0.1 3261`,
      'exit',
      '',
    ].join('\n')
    const began = performance.now()
    await run('targetcli', [], {input, timeoutMs: 120_000})
    const took = performance.now() - began
    const state = await readTarget(operations => configfs.run(operations), iqn)
    const backstore = state.luns[0]?.backstore
    if (!backstore || state.rules.length !== 1) throw new Error('targetcli has not made what it was told to')
    await configfs.run([...removal(state), op.rmdir(backstore.path)])
    return took
  }
  return {ours: () => exports(1, 1), other: byTargetcli, otherName: 'targetcli, one process for all five commands'}
}

export async function parallelComparison(release: Release): Promise<Comparison> {
  const {exports} = await lioSide(release)
  return {
    ours: () => exports(together, together),
    other: () => exports(together, 1),
    otherName: `the same ${together} exports, one after the other`,
  }
}

/** Which of the two comes first alternates, so the other targets come and go once a pair, outside of the measurement. */
export async function existingComparison(existing: number, release: Release): Promise<Comparison> {
  const {driver, specs, exports, removeAll} = await lioSide(release)
  let others: ExportSpec[] = []
  const have = async (count: number) => {
    if (others.length === count) return
    await removeAll(others)
    others = specs(count)
    await Promise.all(others.map(spec => driver.export(spec)))
  }
  const sample = async (count: number) => {
    await have(count)
    return exports(together, 1)
  }
  return {
    ours: () => sample(existing),
    other: () => sample(0),
    otherName: 'the same exports where there are no others',
    beside: async () => ({existing, exportsPerSample: together}),
  }
}
