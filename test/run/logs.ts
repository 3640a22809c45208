// Where what a test file starts writes its logs, and what becomes of them: those of a file that fails stay.
import {mkdirSync, readdirSync, rmSync} from 'node:fs'
import {appendFile, readFile} from 'node:fs/promises'
import {join, relative} from 'node:path'
import {packageRoot} from '../../src/native.js'
import {nameOf} from './seconds.js'

/** Below it each run has a directory, and in that each test file. */
export const allLogs = (): string => join(packageRoot(), '.cache', 'test-logs')

/** The run's, for this process and those that it starts. */
export const logsVariable = 'LUNPATH_TEST_LOGS'

/** Of the test file that runs in this process. @param kind what writes it: daemon, tgtd */
export function logFile(kind: string): string {
  const file = process.env.LUNPATH_TEST_FILE
  const directory = file && logsOf(file)
  if (!directory) return '/dev/null'
  mkdirSync(directory, {recursive: true})
  return join(directory, `${kind}.log`)
}

/** Copies a log that goes with its directory, if it is there. */
export async function keepLog(kind: string, path: string): Promise<void> {
  const text = await readFile(path).catch(() => undefined)
  if (text) await appendFile(logFile(kind), text)
}

/** @returns undefined in a run that keeps no logs */
export function logsOf(file: string): string | undefined {
  const run = process.env[logsVariable]
  return run && join(run, nameOf(file).replaceAll('/', '-'))
}

/** For people: the directory of the logs of a test file, if it has written any. */
export function logsToSee(file: string): string | undefined {
  const directory = logsOf(file)
  if (!directory || !hasEntries(directory)) return undefined
  const path = relative(process.cwd(), directory)
  return path.startsWith('..') ? directory : path
}

export function removeLogsOf(file: string): void {
  const directory = logsOf(file)
  if (directory) rmSync(directory, {recursive: true, force: true})
}

/** Removes a run's directory where no log is left in it. */
export function removeIfEmpty(run: string): void {
  if (!hasEntries(run)) rmSync(run, {recursive: true, force: true})
}

/** Makes a run's directory, and removes those of the oldest. */
export function makeLogs(keptRuns = 9): string {
  const all = allLogs()
  mkdirSync(all, {recursive: true})
  // One that was killed left it empty; one that runs makes it again when it has a log.
  for (const name of readdirSync(all)) removeIfEmpty(join(all, name))
  const runs = readdirSync(all).sort()
  for (const name of runs.slice(0, Math.max(0, runs.length - keptRuns))) {
    rmSync(join(all, name), {recursive: true, force: true})
  }
  // Names are in the order of time.
  const run = join(all, `${new Date().toISOString().slice(0, 19).replaceAll(':', '')}-${process.pid}`)
  mkdirSync(run)
  return run
}

function hasEntries(directory: string): boolean {
  try {
    return readdirSync(directory).length > 0
  } catch {
    return false
  }
}
