import {randomBytes} from 'node:crypto'
import {mkdir, open, readdir, readFile, rename, rm} from 'node:fs/promises'
import {join} from 'node:path'
import type {BenchResult} from '../bench/result.js'
import type {SteadyReport} from '../bench/steady-run.js'
import type {SweepReport} from '../bench/sweep.js'
import {StorageError} from '../errors.js'

export type KeptReport = BenchResult | SweepReport | SteadyReport

/** A kept result in short: the first line of its file. */
export interface KeptEntry {
  id: string
  label: string | null
  kind: KeptReport['kind']
  name: string
  startedAt: string
  /** Of a sweep or of rounds, how they ended. */
  state: string
  /** Names of volumes, else of paths. */
  targets: string[]
  /** The driver that exported the volumes: `tgt`, `lio`, `iet`; null for none. */
  driver: string | null
  engine: string
  kernel: string
  rw: string
  iodepth: number
  /** Of the last run. */
  iops: number
  bytesPerSecond: number
  p99Ns: number
}

// The time of the start, to the millisecond, so that the names are in the order of time. Older names end at the second.
const idPattern = /^\d{8}T\d{6}(\d{3})?-[0-9a-f]{6}$/
const entryBytes = 64 * 1024

/** How many are kept: the oldest go first. */
export const mostKept = 1000

/**
 * Results of benchmarks, a file each, apart from the store: they are large, and no operation waits for one. The first line
 * of a file is its entry, so that a list reads no more.
 */
export class BenchResults {
  readonly #directory: string

  constructor(directory: string) {
    this.#directory = directory
  }

  /** Returns the id. @throws STORE_FAILED: the result was not kept */
  async keep(report: KeptReport, label: string | null): Promise<string> {
    const stamp = report.startedAt.replace(/[-:.Z]/g, '')
    const id = `${stamp}-${randomBytes(3).toString('hex')}`
    const file = join(this.#directory, id)
    try {
      await mkdir(this.#directory, {recursive: true, mode: 0o700})
      const handle = await open(`${file}.new`, 'wx', 0o600)
      try {
        await handle.writeFile(`${JSON.stringify(entryOf(report, id, label))}\n${JSON.stringify(report)}\n`)
        await handle.sync()
      } finally {
        await handle.close()
      }
      await rename(`${file}.new`, `${file}.jsonl`)
      const ids = await this.#ids()
      for (const old of ids.slice(0, Math.max(0, ids.length - mostKept))) await rm(this.#file(old), {force: true})
      return id
    } catch (cause) {
      await rm(`${file}.new`, {force: true}).catch(() => undefined)
      throw new StorageError('STORE_FAILED', `The result was not kept: ${(cause as Error).message}`, {
        op: 'bench.keep',
        cause,
      })
    }
  }

  /** All, or those with a label; the newest last. */
  async list(label?: string): Promise<KeptEntry[]> {
    const entries: KeptEntry[] = []
    for (const id of await this.#ids()) {
      const entry = await this.#entry(id)
      if (entry && (label === undefined || entry.label === label)) entries.push(entry)
    }
    return entries
  }

  /** @throws NOT_FOUND, STORE_CORRUPT */
  async read(id: string): Promise<KeptReport> {
    const text = await readFile(this.#file(id), 'utf8').catch(cause => {
      throw notFound(id, cause)
    })
    try {
      return JSON.parse(text.slice(text.indexOf('\n') + 1)) as KeptReport
    } catch (cause) {
      throw new StorageError('STORE_CORRUPT', `The kept result ${id} is damaged: ${(cause as Error).message}`, {
        op: 'bench.read',
        info: {id},
        cause,
      })
    }
  }

  /** @throws NOT_FOUND */
  async delete(id: string): Promise<void> {
    await rm(this.#file(id)).catch(cause => {
      throw notFound(id, cause)
    })
  }

  #file(id: string): string {
    if (!idPattern.test(id)) throw notFound(id)
    return join(this.#directory, `${id}.jsonl`)
  }

  async #ids(): Promise<string[]> {
    const names = await readdir(this.#directory).catch(() => [])
    return names
      .filter(name => name.endsWith('.jsonl') && idPattern.test(name.slice(0, -6)))
      .map(name => name.slice(0, -6))
      .sort()
  }

  /** Undefined for one that went meanwhile, or that is damaged: the others are still listed. */
  async #entry(id: string): Promise<KeptEntry | undefined> {
    const handle = await open(this.#file(id), 'r').catch(() => undefined)
    if (!handle) return undefined
    try {
      const buffer = Buffer.alloc(entryBytes)
      const {bytesRead} = await handle.read(buffer, 0, entryBytes, 0)
      const end = buffer.indexOf('\n')
      return JSON.parse(buffer.toString('utf8', 0, end === -1 ? bytesRead : end)) as KeptEntry
    } catch {
      return undefined
    } finally {
      await handle.close()
    }
  }
}

function entryOf(report: KeptReport, id: string, label: string | null): KeptEntry {
  const last = report.kind === 'run' ? report : report.results.at(-1)!
  const [first] = last.targets
  return {
    id,
    label,
    kind: report.kind,
    name: report.name,
    startedAt: report.startedAt,
    state: report.state,
    targets: last.targets.map(({name, target}) => target.volume ?? target.path ?? name),
    driver: first?.target.driver ?? null,
    engine: first?.engine ?? '',
    kernel: last.kernel,
    rw: first?.workload.rw ?? '',
    iodepth: first?.iodepth ?? 0,
    iops: last.total.iops,
    bytesPerSecond: last.total.bytesPerSecond,
    p99Ns: last.total.latency.p99Ns,
  }
}

function notFound(id: string, cause?: unknown): StorageError {
  return new StorageError('NOT_FOUND', `There is no kept result ${JSON.stringify(id)}: see lunpath bench list`, {
    op: 'bench.read',
    info: {id},
    cause,
  })
}
