import {type ServerResponse, STATUS_CODES} from 'node:http'
import type {Duplex} from 'node:stream'
import type {FastifySchemaValidationError} from 'fastify'
import {describe} from '../attach/run.js'
import {type ErrorCode, errorCodes, StorageError} from '../errors.js'

/** An error as the API answers it, whatever has refused the request: `{"error": {"code": …, "message": …}}`. */
export interface ErrorAnswer {
  status: number
  body: string
}

type Refusal = Error & {validation?: unknown; statusCode?: number}

/** What fastify refuses has a status of its own and no code: it is the request that is wrong. */
export function errorAnswer(error: Refusal): ErrorAnswer {
  const refused = error.validation || (error.statusCode !== undefined && error.statusCode < 500)
  const settled =
    refused && !(error instanceof StorageError)
      ? new StorageError('INVALID_ARGUMENT', error.message, {op: 'api'})
      : error
  const body = describe(settled)
  return {status: errorCodes[body.code as ErrorCode] ?? 500, body: JSON.stringify({error: body})}
}

/** What a validator found, as fastify has it, but that a word which is none of a list is told once, with the list. */
export function schemaError(errors: FastifySchemaValidationError[], place: string): Error {
  const allowed = new Map<string, unknown[]>()
  for (const {keyword, instancePath, params} of errors)
    if (keyword === 'const') allowed.set(instancePath, [...(allowed.get(instancePath) ?? []), params.allowedValue])
  const isTold = ({keyword, instancePath}: FastifySchemaValidationError) =>
    (keyword === 'const' || keyword === 'anyOf') && allowed.has(instancePath)
  const words = [...allowed].map(([path, values]) => `${place}${path} must be one of ${values.join(', ')}`)
  const others = errors
    .filter(error => !isTold(error))
    .map(({instancePath, message}) => `${place}${instancePath} ${message}`)
  return new Error([...words, ...others].join(', '))
}

/** The refusal of what Node's own parser takes for no HTTP request. */
export function notHttp(why: string): StorageError {
  return new StorageError('INVALID_ARGUMENT', `That is no request of this API: ${why}`, {op: 'api'})
}

/** Answers on a connection that carries no request, and closes it. */
export function refuseConnection(socket: Duplex, error: StorageError): void {
  const {status, body} = errorAnswer(error)
  const head = [
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}`,
    'content-type: application/json',
    `content-length: ${Buffer.byteLength(body)}`,
    'connection: close',
  ]
  socket.end(`${head.join('\r\n')}\r\n\r\n${body}`)
}

/** Answers a request that does not reach fastify. */
export function refuseResponse(response: ServerResponse, error: StorageError): void {
  const {status, body} = errorAnswer(error)
  response.writeHead(status, {'content-type': 'application/json', connection: 'close'}).end(body)
}
