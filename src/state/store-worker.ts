import {parentPort, workerData} from 'node:worker_threads'
import Database from 'libsql'
import {nameSources} from '../stack-traces.js'
import {type OpenFailure, type StoreBatch, type StoreReply, schemaVersion, tables} from './store-protocol.js'

/**
 * The store's own thread: it owns the database and its locks, so that no fsync is waited for on the main thread.
 * One message is one commit (WAL, synchronous=FULL), however many operations it carries.
 */
nameSources()
const {path} = workerData as {path: string}
const port = parentPort!

function openFailure(code: OpenFailure['code'], message: string): never {
  port.postMessage({opened: false, code, message} satisfies OpenFailure)
  process.exit(0)
}

/**
 * One daemon per store: an exclusive SQLite transaction on a file of its own, held for the life of this thread. The
 * kernel drops it with the process, also after kill -9. It is not the database itself, since closing any other
 * descriptor of a database file in the same process drops its POSIX locks.
 */
function lock(): Database.Database {
  const database = new Database(`${path}.lock`, {timeout: 0})
  try {
    database.exec('PRAGMA journal_mode=DELETE; BEGIN EXCLUSIVE')
  } catch (error) {
    openFailure('STORE_LOCKED', `Another daemon uses the store ${path} (${(error as Error).message})`)
  }
  return database
}

function open(): Database.Database {
  try {
    const database = new Database(path)
    database.exec('PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL')
    const check = database.prepare('PRAGMA quick_check').all() as {quick_check?: string}[]
    const verdict = String(Object.values(check[0] ?? {})[0])
    if (verdict !== 'ok') openFailure('STORE_CORRUPT', `The store ${path} is damaged: ${verdict}`)
    const found = Number(Object.values(database.prepare('PRAGMA user_version').get() as object)[0])
    if (found > schemaVersion) {
      openFailure(
        'STORE_TOO_NEW',
        `The store ${path} has version ${found}, and this lunpath knows up to ${schemaVersion}`,
      )
    }
    if (found < schemaVersion) {
      for (const table of tables)
        database.exec(`CREATE TABLE IF NOT EXISTS ${table} (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID`)
      database.exec(`PRAGMA user_version=${schemaVersion}`)
    }
    return database
  } catch (error) {
    openFailure('STORE_CORRUPT', `The store ${path} cannot be opened: ${(error as Error).message}`)
  }
}

const held = lock()
const database = open()
const put = new Map(tables.map(table => [table, database.prepare(`INSERT OR REPLACE INTO ${table} VALUES (?, ?)`)]))
const remove = new Map(tables.map(table => [table, database.prepare(`DELETE FROM ${table} WHERE id = ?`)]))

function commit({writes}: StoreBatch): void {
  database.exec('BEGIN IMMEDIATE')
  try {
    for (const {table, id, body} of writes) {
      if (body === null) remove.get(table)!.run(id)
      else put.get(table)!.run(id, body)
    }
    database.exec('COMMIT')
  } catch (error) {
    if (database.inTransaction) database.exec('ROLLBACK')
    throw error
  }
}

port.on('message', (message: StoreBatch | 'close') => {
  if (message === 'close') {
    try {
      database.exec('PRAGMA wal_checkpoint(TRUNCATE)')
    } catch {
      // The file system is full: the log stays as it is, and the next start reads it.
    }
    database.close()
    held.exec('ROLLBACK')
    held.close()
    port.postMessage({closed: true})
    port.close()
    return
  }
  try {
    commit(message)
    port.postMessage({error: null} satisfies StoreReply)
  } catch (error) {
    port.postMessage({error: (error as Error).message} satisfies StoreReply)
  }
})

const rows = tables.flatMap(table =>
  (database.prepare(`SELECT id, body FROM ${table}`).all() as {id: string; body: string}[]).map(({id, body}) => ({
    table,
    id,
    body,
  })),
)
port.postMessage({opened: true, rows})
