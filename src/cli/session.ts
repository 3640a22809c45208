import {readFile} from 'node:fs/promises'
import {text as textOf} from 'node:stream/consumers'
import {type Command, InvalidArgumentError} from 'commander'
import type {ApiClient, CallOptions} from '../api/client.js'
import {parseChapFile} from '../chap.js'
import {StorageError} from '../errors.js'
import type {ChapAuth} from '../types.js'

/** What a command that speaks to the daemon gets. */
export interface Session {
  json: boolean
  call: ApiClient['call']
}

/**
 * Runs `action` with a connection to the daemon. Ctrl-C cancels the call, and the daemon undoes what it had begun; each
 * change carries a token of its own, so that a repeated call can never do it twice.
 */
export async function withDaemon(command: Command, action: (session: Session) => Promise<void>): Promise<void> {
  const {socket, json} = command.optsWithGlobals<{socket: string; json?: boolean}>()
  // Here, since Node's own HTTP takes a tenth of the time of a command that only prints its help.
  const {ApiClient: Client} = await import('../api/client.js')
  const client = new Client(socket)
  const cancel = new AbortController()
  const onSignal = () => cancel.abort()
  process.once('SIGINT', onSignal)
  process.once('SIGTERM', onSignal)
  const call: ApiClient['call'] = (method, path, body, options: CallOptions = {}) => {
    const token = method === 'GET' ? undefined : crypto.randomUUID()
    return client.call(method, path, body, {token, signal: cancel.signal, ...options})
  }
  try {
    await action({json: json ?? false, call})
  } finally {
    process.off('SIGINT', onSignal)
    process.off('SIGTERM', onSignal)
    client.close()
  }
}

/** Makes sure that exactly one of these options is given. @throws INVALID_ARGUMENT */
export function requireOne(options: Record<string, unknown>, names: string[]): void {
  const given = names.filter(name => options[name] !== undefined)
  if (given.length === 1) return
  const instead = given.length > 1 ? `, not ${given.map(name => `--${name}`).join(' and ')}` : ''
  throw new StorageError(
    'INVALID_ARGUMENT',
    `Give exactly one of ${names.map(name => `--${name}`).join(', ')}${instead}`,
  )
}

/** Reads an option of seconds. */
export function positiveSeconds(text: string): number {
  const seconds = Number(text)
  if (!(seconds > 0 && Number.isFinite(seconds)))
    throw new InvalidArgumentError('expected a positive number of seconds')
  return seconds
}

export interface ChapOptions {
  chapFile?: string
}

/** Adds `--chap-file`: secrets never come on a command line, where every user of the machine could read them. */
export function addChapOption(command: Command): Command {
  return command.option(
    '--chap-file <file>',
    'CHAP credentials: a file (or - for standard input) with lines user=… secret=… and, for mutual CHAP, target-user=… target-secret=…',
  )
}

/** Reads `--chap-file`. @throws INVALID_ARGUMENT, which never quotes the file */
export async function readChap({chapFile}: ChapOptions): Promise<ChapAuth | undefined> {
  if (chapFile === undefined) return undefined
  const text = await (chapFile === '-' ? textOf(process.stdin) : readFile(chapFile, 'utf8')).catch(cause => {
    throw new StorageError('INVALID_ARGUMENT', `The CHAP file cannot be read: ${(cause as Error).message}`, {cause})
  })
  return parseChapFile(text)
}
