import {StorageError} from '../errors.js'

/** A row of a report: LVM writes every value as a string. */
export type LvmRow = Record<string, string>

/** What one command of LVM has answered. */
export interface LvmReply {
  /** 1 is success, anything else failure (ECMD_PROCESSED and its like in lvm2's lib/commands/errors.h). */
  code: number
  /** All rows of its report; which columns they have is the command's choice. */
  rows: LvmRow[]
  /** What it said, without LVM's own prefix. */
  errors: string[]
  warnings: string[]
}

interface LogEntry {
  log_type?: string
  log_context?: string
  log_object_type?: string
  log_message?: string
  log_ret_code?: string
}

interface Document {
  report?: Record<string, LvmRow[]>[]
  log?: LogEntry[]
}

export const lvmSuccess = 1

/**
 * Cuts what LVM writes into JSON documents, one a command. LVM indents: only a document's own closing brace stands in a
 * line of its own at the depth of two blanks.
 */
export class LvmDocuments {
  #text = ''

  /** Takes the next piece and returns the documents that are whole with it. */
  add(piece: string): string[] {
    this.#text += piece
    const documents: string[] = []
    for (;;) {
      const end = /^ {2}\}\n/m.exec(this.#text)
      if (!end) return documents
      const length = end.index + end[0].length
      documents.push(this.#text.slice(0, length))
      this.#text = this.#text.slice(length)
    }
  }
}

/**
 * Reads one document. `exitCode` is that of a program of its own; in a shell the last entry of the log says it.
 * @throws COMMAND_FAILED where it is no answer
 */
export function parseLvmDocument(text: string, exitCode?: number): LvmReply {
  let document: Document
  try {
    // LVM passes control characters of a message on as they are.
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is replaced
    document = JSON.parse(text.replaceAll(/[\u0000-\u0009\u000b-\u001f]/g, ' ')) as Document
  } catch (cause) {
    throw new StorageError('COMMAND_FAILED', `LVM answered with what is no JSON: ${(cause as Error).message}`, {
      info: {answer: text.slice(0, 1000)},
      cause,
    })
  }
  const log = document.log ?? []
  const said = (type: string) => log.filter(({log_type}) => log_type === type).map(({log_message}) => log_message ?? '')
  const status = log.findLast(entry => entry.log_type === 'status' && entry.log_object_type === 'cmd')
  const code =
    exitCode === undefined ? Number(status?.log_ret_code ?? Number.NaN) : exitCode === 0 ? lvmSuccess : exitCode
  return {
    code: Number.isNaN(code) ? -1 : code,
    rows: (document.report ?? []).flatMap(part => Object.values(part).flat()),
    errors: said('error'),
    warnings: said('warn'),
  }
}

/** A command that was answered, and failed. */
export function lvmFailure(args: readonly string[], {code, errors}: LvmReply): StorageError {
  const said = errors.join('; ') || `it answered ${code} and said nothing`
  return new StorageError('COMMAND_FAILED', `${args[0]}: ${said}`, {info: {args: [...args], exitCode: code, errors}})
}
