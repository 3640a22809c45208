import {existsSync} from 'node:fs'
import {pathToFileURL} from 'node:url'
import Database from 'libsql'
import type {Store} from './store.js'

/** What a store says of pools and of what guests have. */
export type Stored = Pick<Store, 'pools' | 'volumes' | 'attachments'>

const peeked = ['pools', 'volumes', 'attachments'] as const

/**
 * Reads a store that a daemon may have open, without its lock and without a change to it. Not for the daemon's own
 * process: closing a second descriptor would drop SQLite's locks there. Empty where there is no store; a store from before
 * a table was added has no such rows. @throws what SQLite says of a damaged file
 */
export function peek(path: string): Stored {
  const stored: Stored = {pools: new Map(), volumes: new Map(), attachments: new Map()}
  if (!existsSync(path)) return stored
  // Without a log nobody writes, and none is made for this look (sqlite.org/uri.html).
  const mode = existsSync(`${path}-wal`) ? 'mode=ro' : 'immutable=1'
  const database = new Database(`${pathToFileURL(path).href}?${mode}`)
  try {
    const there = database.prepare("SELECT name FROM sqlite_master WHERE type = 'table'").all() as {name: string}[]
    for (const table of peeked.filter(one => there.some(({name}) => name === one))) {
      const rows = database.prepare(`SELECT id, body FROM ${table}`).all() as {id: string; body: string}[]
      for (const {id, body} of rows) (stored[table] as Map<string, unknown>).set(id, JSON.parse(body))
    }
    return stored
  } finally {
    database.close()
  }
}

/** Paths of block devices that guests have and that no session of iSCSI tells: imported volumes, and `attach --device`. */
export function guestDevices({volumes, attachments}: Stored): string[] {
  const imported = [...volumes.values()].filter(volume => volume.imported && volume.kind === 'block')
  const handedOn = [...attachments.values()].flatMap(({iqn, source}) =>
    iqn === null && source.type === 'block' ? [source.path] : [],
  )
  return [...imported.map(({path}) => path), ...handedOn]
}
