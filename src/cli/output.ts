import {type ErrorCode, errorCodes, StorageError} from '../errors.js'

/** How a command speaks: tables for people, or one JSON document on standard output. */
export interface Output {
  json: boolean
}

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, null, 2)}\n`)
}

/** Names come from other hosts, and a terminal obeys control characters: they are shown as `\u001b`. */
function shown(cell: string | number | null): string {
  const text = String(cell ?? '-')
  return text.replaceAll(/\p{C}/gu, one => `\\u${one.codePointAt(0)!.toString(16).padStart(4, '0')}`)
}

/** Rows as aligned columns under a heading; a sentence where there are none. */
export function printTable<Row>(
  rows: Row[],
  columns: Record<string, (row: Row) => string | number | null>,
  whenEmpty: string,
): void {
  if (rows.length === 0) {
    process.stdout.write(`${whenEmpty}\n`)
    return
  }
  const headings = Object.keys(columns)
  const cells = rows.map(row => Object.values(columns).map(cell => shown(cell(row))))
  const widths = headings.map((heading, column) => Math.max(heading.length, ...cells.map(row => row[column]!.length)))
  for (const row of [headings, ...cells]) {
    process.stdout.write(
      `${row
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join('  ')
        .trimEnd()}\n`,
    )
  }
}

/** One thing's facts, a line each; `-` where there is none. */
export function printFacts(facts: Record<string, string | number | null>): void {
  const width = Math.max(...Object.keys(facts).map(key => key.length))
  for (const [key, value] of Object.entries(facts)) process.stdout.write(`${key.padEnd(width)}  ${shown(value)}\n`)
}

/** A line that replaces itself, on a terminal alone: progress is for people. */
export function showProgress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`)
}

export function endProgress(): void {
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')
}

/** Of a disk that took no flush before it went. */
export const unflushed = 'Its disk could not be flushed: what this host had not written to it yet may be lost\n'

/**
 * Exit codes: 0 done, 1 failed, 2 wrong usage or argument, 3 not found, 4 conflict or in use, 5 a daemon or dependency
 * does not answer or is missing, 6 not ended yet (deadline, or a guest keeps its disk), 130 cancelled.
 */
export function exitCodeOf(error: unknown): number {
  if (!(error instanceof StorageError)) return 1
  if (error.code === 'CANCELLED') return 130
  if (error.code === 'TIMEOUT' || error.code === 'DETACH_PENDING') return 6
  const byStatus: Record<number, number> = {400: 2, 404: 3, 409: 4, 501: 5, 503: 5}
  return byStatus[errorCodes[error.code as ErrorCode]] ?? 1
}

/** Says what went wrong: for people on standard error, for programs as `{"error": …}` on standard output. */
export function printError(error: unknown, {json}: Output): void {
  const {code, message, op, info, cause} = error as StorageError
  if (json) {
    printJson({
      error: {code: code ?? 'INTERNAL', message, op, info, cause: cause instanceof Error ? cause.message : cause},
    })
    return
  }
  process.stderr.write(`lunpath: ${message}\n`)
  const undone = info?.undone as string[] | undefined
  if (undone?.length) process.stderr.write(`Undone: ${undone.join(', ')}\n`)
  if (info?.notUndone) process.stderr.write(`Not undone yet: ${info.notUndone}. The daemon goes on with it.\n`)
  if (code && code !== 'INTERNAL') process.stderr.write(`(${code}; docs/errors.md says more)\n`)
}
