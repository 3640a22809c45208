// How long each test file takes: noted while it runs (note-times.js), kept in test/seconds.json, by which ava.config.js
// orders the files.
import {existsSync, readFileSync, writeFileSync} from 'node:fs'
import {join, relative} from 'node:path'
import {packageRoot} from '../../src/native.js'

export type Seconds = Record<string, number>

interface Note {
  event: 'begins' | 'ends'
  file: string
  ms: number
}

const table = () => join(packageRoot(), 'test', 'seconds.json')

/** What the notes say: the files that have ended, in that order, and those that run. */
export function readNotes(path: string): {ended: [string, number][]; running: string[]} {
  const text = existsSync(path) ? readFileSync(path, 'utf8') : ''
  const began = new Map<string, number>()
  const ended: [string, number][] = []
  for (const line of text.split('\n').slice(0, -1)) {
    const {event, file, ms} = JSON.parse(line) as Note
    const name = nameOf(file)
    if (event === 'begins') began.set(name, ms)
    else {
      ended.push([name, (ms - began.get(name)!) / 1000])
      began.delete(name)
    }
  }
  return {ended, running: [...began.keys()]}
}

/** A test file as people call it: e2e/kernel-path. */
export function nameOf(file: string): string {
  const path = file.startsWith('file:') ? new URL(file).pathname : file
  return relative(join(packageRoot(), 'dist', 'test'), path).replace(/\.test\.js$/, '')
}

export function recorded(): Seconds {
  return existsSync(table()) ? (JSON.parse(readFileSync(table(), 'utf8')) as Seconds) : {}
}

/** Puts a run's seconds into the table; files that are no more leave it. @returns how many it has */
export function record(ended: readonly [string, number][]): number {
  const all = {
    ...recorded(),
    ...Object.fromEntries(ended.map(([name, seconds]) => [name, Math.round(seconds * 10) / 10])),
  }
  const there = Object.entries(all).filter(([name]) => existsSync(join(packageRoot(), 'test', `${name}.test.ts`)))
  const sorted = Object.fromEntries(there.sort(([a], [b]) => (a < b ? -1 : 1)))
  writeFileSync(table(), `${JSON.stringify(sorted, null, 2)}\n`)
  return there.length
}
