import {execFile} from 'node:child_process'
import {randomBytes} from 'node:crypto'
import {mkdtemp, rm, truncate, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {promisify} from 'node:util'
import {TgtDriver} from '../src/targets/tgt.js'
import {lunParameters} from '../src/targets/tgt-spec.js'
import type {ExportSpec} from '../src/types.js'
import {type Comparison, compile, countExecve} from './measure.js'

const run = promisify(execFile)
const iqnPrefix = 'iqn.2026-01.io.lunpath.bench'
// Far above the numbers that the driver gives out in one run.
const othersFirstTid = 1_000_000

export interface ProvisionOptions {
  other: 'bare C' | 'tgtadm'
  /** Exports in a sample. */
  count: number
  /** How many of ours are under way at once. tgtd serves one request after the other, and so do the other sides. */
  concurrency: number
}

/**
 * New target, LUN, identity and access rule in one tgtd (`-t 1`) that both sides share: the same four requests with the
 * same parameters. A sample is microseconds per export over `count` of them; taking them away again is not measured.
 */
export async function provisionComparison(
  {other, count, concurrency}: ProvisionOptions,
  release: (cleanup: () => Promise<void>) => void,
): Promise<Comparison> {
  const program = await compile('bench/c/tgt_bare.c', 'tgt_bare')
  const directory = await mkdtemp(join(tmpdir(), 'lp-bench-'))
  release(() => rm(directory, {recursive: true, force: true}))
  const path = join(directory, 'volume.img')
  await writeFile(path, '')
  await truncate(path, 64 * 2 ** 20)

  const driver = new TgtDriver({managed: true, directory: join(directory, 'tgt'), portals: [], dieWithParent: true})
  release(() => driver.close())
  await driver.open()
  await driver.restore([])

  const specOf = (id: string): ExportSpec => ({
    volume: {id, path, kind: 'file', sizeBytes: 64 * 2 ** 20},
    iqn: `${iqnPrefix}:${id}`,
    access: {addresses: ['ALL'], names: []},
    writeCache: 'through',
    readOnly: false,
  })
  const parameters = Object.entries(lunParameters(specOf(randomBytes(8).toString('hex'))))
    .map(([key, value]) => `${key}=${value}`)
    .join(',')

  const env = {
    PATH: `${process.env.PATH}:/usr/sbin`,
    LC_ALL: 'C',
    TGT_IPC_SOCKET: join(directory, 'tgt', 'control'),
    TGT_CONTROL_PORT: '1',
  }
  const bareC = async (by: 'socket' | 'spawn', times: number) => {
    const first = String(othersFirstTid)
    const make = ['make', String(times), first, `${iqnPrefix}:other`, path, parameters]
    const {stdout} = await run(program, [by, ...make], {env})
    await run(program, ['socket', 'remove', String(times), first], {env})
    return Number(stdout) / 1e3 / times
  }
  const byTgtadm = async (times: number) => {
    const began = process.hrtime.bigint()
    for (let i = 0; i < times; i++) {
      const tid = String(othersFirstTid + i)
      const tgtadm = (...args: string[]) => run('tgtadm', ['-C', '1', '--lld', 'iscsi', '--tid', tid, ...args], {env})
      await tgtadm('--mode', 'target', '--op', 'new', '-T', `${iqnPrefix}:other:${tid}`)
      await tgtadm('--mode', 'logicalunit', '--op', 'new', '--lun', '1', '-b', path, '--bstype', 'rdwr')
      await tgtadm('--mode', 'logicalunit', '--op', 'update', '--lun', '1', '--params', parameters)
      await tgtadm('--mode', 'target', '--op', 'bind', '-I', 'ALL')
    }
    const took = Number(process.hrtime.bigint() - began)
    await run(program, ['socket', 'remove', String(times), String(othersFirstTid)], {env})
    return took / 1e3 / times
  }
  const ourSide = async (times: number) => {
    const specs = Array.from({length: times}, () => specOf(randomBytes(8).toString('hex')))
    const waiting = [...specs]
    const began = process.hrtime.bigint()
    const worker = async () => {
      for (let spec = waiting.pop(); spec; spec = waiting.pop()) await driver.export(spec)
    }
    await Promise.all(Array.from({length: concurrency}, worker))
    const took = Number(process.hrtime.bigint() - began)
    for (const {iqn} of specs) await driver.unexport(iqn)
    return took / 1e3 / times
  }

  const otherSide = other === 'bare C' ? () => bareC('socket', count) : () => byTgtadm(count)
  return {
    ours: () => ourSide(count),
    other: otherSide,
    otherName: other === 'bare C' ? 'bare C client of the control socket' : 'tgtadm, spawned by Node for each request',
    beside: async () => {
      const operations = 10
      const perOperation = async (task: () => Promise<unknown>, ofTheBench: number) => {
        const started = await countExecve(async () => void (await task()))
        return started === null ? null : (started - ofTheBench) / operations
      }
      return {
        exportsPerSample: count,
        concurrency,
        execvePerOperation: await perOperation(() => ourSide(operations), 0),
        // The bench's own programs beside the spawns that are measured: the client and its removal run.
        otherExecvePerOperation:
          other === 'bare C'
            ? await perOperation(() => bareC('socket', operations), 2)
            : await perOperation(() => byTgtadm(operations), 1),
        // The least that a spawn can cost, from a small C program: no bar is set on it.
        ...(other === 'tgtadm' && {posixSpawnFromCUsPerExport: Math.round(await bareC('spawn', count))}),
      }
    },
  }
}
