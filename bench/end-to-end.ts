import {type ChildProcess, execFile, spawn} from 'node:child_process'
import {once} from 'node:events'
import {mkdtemp, rm, truncate, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {promisify} from 'node:util'
import {ApiClient} from '../src/api/client.js'
import {freePort} from '../src/sandbox/ports.js'
import {request, TgtControl} from '../src/targets/tgt-control.js'
import {parseTargets} from '../src/targets/tgt-show.js'
import {lunParameters} from '../src/targets/tgt-spec.js'
import {type Comparison, compile, countExecve} from './measure.js'
import type {Release} from './trials.js'

const run = promisify(execFile)
const sizeBytes = 64 * 2 ** 20
const othersFirstTid = 1_000_000
/** A daemon that has just started runs code that V8 has not compiled yet; one in use does not. */
const warmUpExports = 2_000

export interface EndToEndOptions {
  /** Requests under way at once. */
  concurrency: number
  /** Exports in a sample. */
  count: number
  /** Exports, made through the API too, that are there before. */
  existing: number
}

/** What the trials of this file share: a daemon with some exports, and what is done to it. */
interface Load {
  directory: string
  daemon: ChildProcess
  make: (times: number) => Promise<string[]>
  unexport: (ids: string[]) => Promise<void>
  /** Waits until tgtd has forgotten what was unexported: lunpath leaves the last part of that for a quiet time. */
  settle: () => Promise<void>
}

/**
 * Volume and export through the API of a daemon in a process of its own (HTTP request, durable store, file, target, LUN,
 * identity, rule), against a bare C client that makes the tgtd part alone, in the same tgtd (`-t 1`). A sample is
 * exports a second over `count` of them; taking the exports away again is not measured.
 *
 * Their volumes stay until the end: an ext4 without a journal, as test machines have, passes over every inode that was
 * freed in the last minute when it makes a file (Linux fs/ext4/ialloc.c, recently_deleted), so that a thousand removals
 * before a sample would be what it measures.
 */
export async function endToEndComparison(
  {concurrency, count, existing}: EndToEndOptions,
  release: Release,
): Promise<Comparison> {
  const program = await compile('bench/c/tgt_bare.c', 'tgt_bare')
  const directory = await mkdtemp(join(tmpdir(), 'lp-bench-'))
  release(() => rm(directory, {recursive: true, force: true}))
  const path = join(directory, 'other.img')
  await writeFile(path, '')
  await truncate(path, sizeBytes)

  const {daemon, make, unexport, settle} = await startLoad({concurrency, existing, directory}, release)
  const ours = async () => {
    const began = process.hrtime.bigint()
    const made = await make(count)
    const took = Number(process.hrtime.bigint() - began)
    await unexport(made)
    await settle()
    return (count / took) * 1e9
  }
  const parameters = lunParameters({
    volume: {id: '0123456789abcdef', path, kind: 'file', sizeBytes},
    iqn: 'iqn.2026-01.io.lunpath.bench:other',
    access: {addresses: ['ALL'], names: []},
    writeCache: 'through',
    readOnly: false,
  })
  const parameterText = Object.entries(parameters)
    .map(([key, value]) => `${key}=${value}`)
    .join(',')
  const env = {PATH: process.env.PATH, TGT_IPC_SOCKET: join(directory, 'tgtd', 'control'), TGT_CONTROL_PORT: '1'}
  const other = async () => {
    const first = String(othersFirstTid)
    const {stdout} = await run(
      program,
      ['socket', 'make', String(count), first, 'iqn.2026-01.io.lunpath.bench:other', path, parameterText],
      {env},
    )
    await run(program, ['socket', 'remove', String(count), first], {env})
    return (count / Number(stdout)) * 1e9
  }
  return {
    ours,
    other,
    otherName: 'bare C client of the control socket, the tgtd part alone',
    beside: async () => ({
      concurrency,
      existingExports: existing,
      exportsPerSample: count,
      execvePerOperation: await execveOf(daemon, async () => unexport(await make(10)), 10),
    }),
  }
}

async function startLoad(
  {concurrency, existing, directory}: Pick<EndToEndOptions, 'concurrency' | 'existing'> & {directory: string},
  release: Release,
): Promise<Load> {
  const daemon = await serve(directory)
  release(() => stop(daemon))
  const api = new ApiClient(join(directory, 'api.sock'), {maxSockets: concurrency})
  release(async () => api.close())

  const make = async (times: number): Promise<string[]> => {
    const made: string[] = []
    let begun = 0
    const worker = async () => {
      while (begun++ < times) {
        const {volume} = await api.call<{volume: {id: string}}>('POST', '/exports', {
          sizeBytes,
          access: {addresses: ['ALL']},
        })
        made.push(volume.id)
      }
    }
    await Promise.all(Array.from({length: concurrency}, worker))
    return made
  }
  const unexport = async (ids: string[]) => {
    const worker = async () => {
      for (let id = ids.pop(); id; id = ids.pop()) await api.call('DELETE', `/exports/${id}`)
    }
    await Promise.all(Array.from({length: concurrency}, worker))
  }
  const control = new TgtControl(join(directory, 'tgtd', 'control.1'))
  release(() => control.close())
  const settle = async () => {
    for (;;) {
      const {replies} = await control.run([[request.showTargets()]], {timeoutMs: 60_000})
      if (parseTargets(replies[0]?.[0]?.text ?? '').length <= existing) return
      await sleep(500)
    }
  }
  await unexport(await make(warmUpExports))
  await settle()
  await make(existing)
  return {directory, daemon, make, unexport, settle}
}

/**
 * Taking exports away through the API, against making them there: requests of the same daemon, of the same number, with the
 * same targets beside. A sample of either is exports a second; the other half of its round is not measured.
 */
export async function unexportComparison(
  {concurrency, count, existing}: EndToEndOptions,
  release: Release,
): Promise<Comparison> {
  const directory = await mkdtemp(join(tmpdir(), 'lp-bench-'))
  release(() => rm(directory, {recursive: true, force: true}))
  const {make, unexport, settle} = await startLoad({concurrency, existing, directory}, release)
  let settledMs = 0
  const round = async (measured: 'make' | 'unexport') => {
    const times = [performance.now()]
    const made = await make(count)
    times.push(performance.now())
    await unexport(made)
    times.push(performance.now())
    await settle()
    settledMs = performance.now() - times[2]!
    const tookMs = measured === 'make' ? times[1]! - times[0]! : times[2]! - times[1]!
    return (count / tookMs) * 1e3
  }
  return {
    ours: () => round('unexport'),
    other: () => round('make'),
    otherName: 'making them',
    beside: async () => ({
      concurrency,
      existingExports: existing,
      exportsPerSample: count,
      millisecondsUntilTgtdHasForgottenThem: Math.round(settledMs),
    }),
  }
}

async function execveOf(daemon: ChildProcess, task: () => Promise<void>, operations: number): Promise<number | null> {
  const started = await countExecve(task, daemon.pid)
  return started === null ? null : started / operations
}

/** A daemon as `lunpath serve` runs it, with everything in `directory`. */
async function serve(directory: string): Promise<ChildProcess> {
  const config = join(directory, 'lunpath.toml')
  await writeFile(
    config,
    `[daemon]
directory = "${directory}"
socket = "${directory}/api.sock"
logLevel = "warn"
[volumes]
overcommit = 1000
[targets]
portals = ["127.0.0.1:${await freePort()}"]
endWithDaemon = true
[compute]
uri = "test:///default"
[metrics]
listen = ""
`,
  )
  const child = spawn(process.execPath, ['dist/bin/lunpath.cjs', 'serve', '--config', config], {
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  const client = new ApiClient(`${directory}/api.sock`)
  for (let tries = 0; tries < 200; tries++) {
    if (child.exitCode !== null) break
    const serves = await client.call<{state: string}>('GET', '/status').then(
      ({state}) => state === 'serving',
      () => false,
    )
    if (serves) {
      client.close()
      return child
    }
    await sleep(50)
  }
  await stop(child)
  throw new Error('the daemon did not start')
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null) return
  const exited = once(child, 'exit')
  child.kill('SIGTERM')
  await exited
}
