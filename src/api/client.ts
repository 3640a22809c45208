import {Agent, request as httpRequest, type IncomingMessage} from 'node:http'
import {createInterface} from 'node:readline'
import {type ErrorCode, errorCodes, StorageError} from '../errors.js'

export interface CallOptions {
  /** Idempotency token: a repeated call with it gives the same answer. */
  token?: string
  signal?: AbortSignal
  /** Called with each line of a JSON-lines answer that is neither result nor error. */
  onLine?: (line: Record<string, unknown>) => void
}

/** Speaks to the daemon over its unix socket. */
export class ApiClient {
  readonly #socket: string
  readonly #agent: Agent

  constructor(socket: string, options: {maxSockets?: number} = {}) {
    this.#socket = socket
    this.#agent = new Agent({keepAlive: true, maxSockets: options.maxSockets ?? 4})
  }

  /**
   * One call; resolves with the answer's JSON.
   * @throws StorageError as the daemon answered it; DAEMON_UNREACHABLE; CANCELLED
   */
  async call<T = unknown>(
    method: 'GET' | 'POST' | 'DELETE',
    path: string,
    body?: unknown,
    options: CallOptions = {},
  ): Promise<T> {
    const response = await this.#send(method, path, body, options)
    let text: string
    try {
      if (response.headers['content-type']?.startsWith('application/x-ndjson'))
        return (await lastLine(response, options)) as T
      text = await textOf(response)
    } catch (cause) {
      if (options.signal?.aborted) throw cancelled(method, path, cause)
      if (cause instanceof StorageError) throw cause
      throw this.#lost(cause as Error)
    }
    const answer = text === '' ? null : (JSON.parse(text) as {error?: AnsweredError})
    if (response.statusCode! >= 400) throw asStorageError(answer?.error, response.statusCode!)
    return answer as T
  }

  #send(method: string, path: string, body: unknown, {token, signal}: CallOptions): Promise<IncomingMessage> {
    const payload = body === undefined ? undefined : JSON.stringify(body)
    const headers: Record<string, string | number> = {}
    if (payload !== undefined)
      Object.assign(headers, {'content-type': 'application/json', 'content-length': Buffer.byteLength(payload)})
    if (token !== undefined) headers['idempotency-key'] = token
    return new Promise((resolve, reject) => {
      const request = httpRequest(
        {socketPath: this.#socket, method, path: `/v1${path}`, headers, agent: this.#agent, signal},
        resolve,
      )
      request.once('error', cause => {
        reject(signal?.aborted ? cancelled(method, path, cause) : this.#lost(cause))
      })
      request.end(payload)
    })
  }

  #lost(cause: NodeJS.ErrnoException): StorageError {
    const remedy =
      cause.code === 'EACCES'
        ? 'Only its owner may use it: run this as root'
        : 'Start it with: lunpath serve (or name another socket with --socket)'
    return new StorageError(
      'DAEMON_UNREACHABLE',
      `No lunpath daemon answers on ${this.#socket}: ${cause.message}. ${remedy}`,
      {
        info: {socket: this.#socket},
        cause,
      },
    )
  }

  close(): void {
    this.#agent.destroy()
  }
}

/**
 * What is made is undone; what is being taken away goes on, since half of it would be of no use to anybody. A benchmark ends,
 * and nothing that it wrote can be undone.
 */
function cancelled(method: string, path: string, cause: unknown): StorageError {
  const then = {
    GET: '',
    POST: path === '/bench' ? ': the daemon ends the benchmark' : ': the daemon undoes what it had begun',
    DELETE: ': the daemon goes on with what it had begun',
  }
  return new StorageError('CANCELLED', `Cancelled${then[method as keyof typeof then]}`, {cause})
}

interface AnsweredError {
  code: string
  message: string
  op?: string
  info?: Record<string, unknown>
  cause?: unknown
}

function asStorageError(error: AnsweredError | undefined, status: number): StorageError {
  if (!error) return new StorageError('INTERNAL', `The daemon answered with status ${status} and no error`)
  const code = (error.code in errorCodes ? error.code : 'INTERNAL') as ErrorCode
  return new StorageError(code, error.message, {op: error.op, info: error.info, cause: error.cause})
}

/** Listens for events: iterating a stream costs a request several times as much. */
function textOf(response: IncomingMessage): Promise<string> {
  response.setEncoding('utf8')
  return new Promise((resolve, reject) => {
    let text = ''
    response.on('data', (chunk: string) => {
      text += chunk
    })
    response.once('end', () => resolve(text))
    response.once('error', reject)
  })
}

async function lastLine(response: IncomingMessage, {onLine}: CallOptions): Promise<unknown> {
  let broken: unknown
  try {
    for await (const text of createInterface({input: response, crlfDelay: Number.POSITIVE_INFINITY})) {
      const line = JSON.parse(text) as {result?: unknown; error?: AnsweredError}
      if ('result' in line) return line.result
      if (line.error) throw asStorageError(line.error, 500)
      onLine?.(line as Record<string, unknown>)
    }
  } catch (error) {
    if (error instanceof StorageError) throw error
    broken = error
  }
  throw new StorageError(
    'DAEMON_UNREACHABLE',
    'The daemon ended in the middle of its answer: see what it did with lunpath volume list',
    {cause: broken},
  )
}
