// How long each test file took when it was last recorded: test/seconds.json, by which ava.config.js orders the files.
import {existsSync, readFileSync, writeFileSync} from 'node:fs'
import {join, relative} from 'node:path'
import {packageRoot} from '../../src/native.js'

export type Seconds = Record<string, number>

const table = () => join(packageRoot(), 'test', 'seconds.json')

/** A test file as people call it: e2e/kernel-path. */
export function nameOf(file: string): string {
  const path = file.startsWith('file:') ? new URL(file).pathname : file
  return relative(join(packageRoot(), 'dist', 'test'), path).replace(/\.test\.js$/, '')
}

export function recorded(): Seconds {
  return existsSync(table()) ? (JSON.parse(readFileSync(table(), 'utf8')) as Seconds) : {}
}

/** For ava: those that take longest come first, and before them those of which nothing is known. */
export function slowestFirst(seconds: Seconds): (a: string, b: string) => number {
  const of = (file: string) => seconds[nameOf(file)] ?? Number.POSITIVE_INFINITY
  return (a, b) => (of(a) === of(b) ? a.localeCompare(b) : of(b) - of(a))
}

/** The table with a run's seconds in it, and without files that are no more. */
export function withSeconds(table: Seconds, run: Seconds, isThere: (name: string) => boolean): Seconds {
  const all = {...table}
  for (const [name, seconds] of Object.entries(run)) all[name] = Math.round(seconds * 10) / 10
  const kept = Object.entries(all).filter(([name]) => isThere(name))
  return Object.fromEntries(kept.sort(([a], [b]) => (a < b ? -1 : 1)))
}

/** Puts a run's seconds into the table. @returns how many files it has */
export function record(run: Seconds): number {
  const isThere = (name: string) => existsSync(join(packageRoot(), 'test', `${name}.test.ts`))
  const all = withSeconds(recorded(), run, isThere)
  writeFileSync(table(), `${JSON.stringify(all, null, 2)}\n`)
  return Object.keys(all).length
}
