import {once} from 'node:events'
import {chmod, mkdir, rm} from 'node:fs/promises'
import {connect} from 'node:net'
import {dirname} from 'node:path'
import swagger from '@fastify/swagger'
import {
  type FastifyBaseLogger,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  fastify,
  LogController,
} from 'fastify'
import type {Asked} from '../attach/operations.js'
import {describe} from '../attach/run.js'
import {errorCodes, StorageError} from '../errors.js'
import type {Service} from '../service.js'
import {lazyCompilers} from './compilers.js'
import {attachmentRoutes} from './routes/attachments.js'
import {benchRoutes} from './routes/bench.js'
import {exportRoutes} from './routes/exports.js'
import {initiatorRoutes} from './routes/initiator.js'
import {nodeRoutes} from './routes/node.js'
import {targetRoutes} from './routes/targets.js'
import {volumeRoutes} from './routes/volumes.js'

declare module 'fastify' {
  interface FastifyInstance {
    /** Fires when the daemon is told to end. */
    stopping: AbortSignal
  }
}

const maxTokenLength = 200
/** What is answered while the daemon starts. */
const openBefore = new Set(['/v1/status', '/v1/openapi.json'])

/** Builds the JSON API (all under /v1). It listens nowhere yet. */
export async function createApi(service: Service, log: FastifyBaseLogger): Promise<FastifyInstance> {
  const api = fastify({
    loggerInstance: log,
    logController: new LogController({disableRequestLogging: true}),
    ajv: {customOptions: {removeAdditional: false, coerceTypes: false}},
    schemaController: {compilersFactory: lazyCompilers()},
    bodyLimit: 64 * 1024,
  })
  const stop = new AbortController()
  api.decorate('stopping', stop.signal)
  api.addHook('preClose', async () => stop.abort())
  api.addHook('onRequest', async ({routeOptions}) => {
    if (service.isOpen() || openBefore.has(routeOptions.url ?? '')) return
    throw new StorageError(
      'DAEMON_STARTING',
      'The daemon is putting pools and exports in place: try again in a moment, and see lunpath status',
      {op: 'api'},
    )
  })
  await api.register(swagger, {openapi: {info: {title: 'lunpath', version: service.version}}})
  api.setErrorHandler((error, _request, reply) => answerError(error as Error, reply))
  api.setNotFoundHandler((request, reply) => {
    answerError(
      new StorageError('NOT_FOUND', `There is no ${request.method} ${request.url}: see /v1/openapi.json`),
      reply,
    )
  })
  for (const routes of [
    volumeRoutes,
    exportRoutes,
    targetRoutes,
    attachmentRoutes,
    nodeRoutes,
    initiatorRoutes,
    benchRoutes,
  ])
    await api.register(routes(service), {prefix: '/v1'})
  api.get('/v1/openapi.json', {schema: {hide: true}}, () => api.swagger())
  await api.ready()
  return api
}

function answerError(error: Error & {validation?: unknown; statusCode?: number}, reply: FastifyReply): void {
  const refused = error.validation || (error.statusCode !== undefined && error.statusCode < 500)
  const settled =
    refused && !(error instanceof StorageError)
      ? new StorageError('INVALID_ARGUMENT', error.message, {op: 'api'})
      : error
  const body = describe(settled)
  const status = errorCodes[body.code as keyof typeof errorCodes] ?? 500
  if (status === 500) reply.log.error({err: error}, 'request failed')
  void reply
    .status(status)
    .type('application/json')
    .send(JSON.stringify({error: body}))
}

/** The idempotency token of a request, and a signal that fires when the client goes away before the answer. */
export function askedOf(request: FastifyRequest, reply: FastifyReply): Asked {
  const token = request.headers['idempotency-key']
  if (
    token !== undefined &&
    (typeof token !== 'string' || token.length > maxTokenLength || !/^[\x21-\x7e]+$/.test(token))
  ) {
    throw new StorageError('INVALID_ARGUMENT', `An Idempotency-Key has 1 to ${maxTokenLength} printable characters`, {
      op: 'api',
    })
  }
  const cancel = new AbortController()
  reply.raw.once('close', () => {
    if (!reply.raw.writableEnded) cancel.abort()
  })
  return {token: token ?? null, signal: cancel.signal}
}

/** The same for work that may take minutes: it does not keep the daemon from ending either. */
export function askedOfLongWork(request: FastifyRequest, reply: FastifyReply): Asked {
  const asked = askedOf(request, reply)
  return {...asked, signal: AbortSignal.any([asked.signal!, request.server.stopping])}
}

/**
 * Listens on a unix socket that only its owner may use. A socket file that a dead daemon left is replaced; one that
 * answers is not. @throws STORE_LOCKED where another daemon answers there
 */
export async function listenOnSocket(api: FastifyInstance, path: string): Promise<void> {
  await mkdir(dirname(path), {recursive: true, mode: 0o755})
  if (await answers(path)) {
    throw new StorageError('STORE_LOCKED', `Another lunpath daemon answers on ${path}`, {
      op: 'api.listen',
      info: {socket: path},
    })
  }
  await rm(path, {force: true})
  const mask = process.umask(0o177)
  try {
    await api.listen({path})
  } finally {
    process.umask(mask)
  }
  await chmod(path, 0o600)
}

async function answers(path: string): Promise<boolean> {
  const probe = connect(path)
  try {
    await once(probe, 'connect')
    return true
  } catch {
    return false
  } finally {
    probe.destroy()
  }
}
