/** What the store's main side and its thread say to each other. */

export const schemaVersion = 2

export const tables = ['volumes', 'exports', 'attachments', 'operations', 'secrets', 'pools'] as const
export type Table = (typeof tables)[number]

/** One row to write, or to delete where `body` is null. */
export interface Write {
  table: Table
  id: string
  body: string | null
}

export interface StoreBatch {
  writes: Write[]
}

export interface StoreReply {
  error: string | null
}

export interface OpenFailure {
  opened: false
  code: 'STORE_LOCKED' | 'STORE_CORRUPT' | 'STORE_TOO_NEW'
  message: string
}

export interface Opened {
  opened: true
  rows: {table: Table; id: string; body: string}[]
}
