import {once, setMaxListeners} from 'node:events'
import {chmod, mkdir, rm} from 'node:fs/promises'
import {connect} from 'node:net'
import {dirname} from 'node:path'
import type {FastifyBaseLogger, FastifyInstance, FastifyReply, FastifyRequest} from 'fastify'
import type {Asked} from '../attach/operations.js'
import {StorageError} from '../errors.js'
import {fastify, LogController, swagger} from '../packages/daemon.js'
import type {Service} from '../service.js'
import {errorAnswer, schemaError} from './answers.js'
import {lazyCompilers} from './compilers.js'
import {endConnections, refuseBelowRoutes, refuseClientError} from './connections.js'
import {attachmentRoutes} from './routes/attachments.js'
import {benchRoutes} from './routes/bench.js'
import {exportRoutes} from './routes/exports.js'
import {initiatorRoutes} from './routes/initiator.js'
import {nodeRoutes} from './routes/node.js'
import {targetRoutes} from './routes/targets.js'
import {volumeRoutes} from './routes/volumes.js'
import {noQuery} from './schema.js'

declare module 'fastify' {
  interface FastifyInstance {
    /** Fires when the daemon is told to end. */
    stopping: AbortSignal
  }
}

const maxTokenLength = 200
/** The longest name in a path is an IQN of 223 bytes, each of which may come as three (%3A). */
const maxParamLength = 1024
/** What is answered while the daemon starts. */
const openBefore = new Set(['/v1/status', '/v1/openapi.json'])

/** Builds the JSON API (all under /v1). It listens nowhere yet. */
export async function createApi(service: Service, log: FastifyBaseLogger): Promise<FastifyInstance> {
  const stop = new AbortController()
  const api = fastify({
    loggerInstance: log,
    logController: new LogController({disableRequestLogging: true}),
    ajv: {customOptions: {removeAdditional: false, coerceTypes: false}},
    schemaErrorFormatter: schemaError,
    schemaController: {compilersFactory: lazyCompilers()},
    bodyLimit: 64 * 1024,
    routerOptions: {maxParamLength},
    // These would be answered in a form of Node's or fastify's own.
    http: {requireHostHeader: false},
    return503OnClosing: false,
    clientErrorHandler: refuseClientError,
    frameworkErrors: (error, _request, reply) => answerError(error, reply as FastifyReply),
  })
  api.decorate('stopping', stop.signal)
  // One listener for each client that looks on and each long request.
  setMaxListeners(0, stop.signal)
  api.addHook('preClose', async () => stop.abort())
  endConnections(api)
  refuseBelowRoutes(api)
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
  api.addHook('onRequest', async ({headers}) => {
    if (stop.signal.aborted) throw new StorageError('DAEMON_UNREACHABLE', 'The daemon is ending', {op: 'api'})
    checkToken(headers['idempotency-key'])
  })
  // A word that no route knows would be ignored without a word.
  api.addHook('onRoute', route => {
    route.schema = {querystring: noQuery, ...route.schema}
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

function answerError(error: Error, reply: FastifyReply): void {
  const {status, body} = errorAnswer(error)
  if (status === 500) reply.log.error({err: error}, 'request failed')
  void reply.status(status).type('application/json').send(body)
}

/** Of every request, before anything else is done with it: no route has begun an answer. @throws INVALID_ARGUMENT */
function checkToken(token: string | string[] | undefined): void {
  if (token === undefined) return
  if (typeof token === 'string' && token.length <= maxTokenLength && /^[\x21-\x7e]+$/.test(token)) return
  throw new StorageError('INVALID_ARGUMENT', `An Idempotency-Key has 1 to ${maxTokenLength} printable characters`, {
    op: 'api',
  })
}

/** The idempotency token of a request, and a signal that fires when the client goes away before the answer. */
export function askedOf(request: FastifyRequest, reply: FastifyReply): Asked {
  const cancel = new AbortController()
  whenGone(reply, () => {
    if (!reply.raw.writableEnded) cancel.abort()
  })
  return {token: (request.headers['idempotency-key'] as string | undefined) ?? null, signal: cancel.signal}
}

/** The same for work that may take minutes: it does not keep the daemon from ending either. */
export function askedOfLongWork(request: FastifyRequest, reply: FastifyReply): Asked {
  const cancel = new AbortController()
  const {token, signal} = askedOf(request, reply)
  const abort = () => cancel.abort()
  signal!.addEventListener('abort', abort)
  whenStopping(request, reply, abort)
  return {token, signal: cancel.signal}
}

/** Calls `action` when the daemon is told to end, where that comes before the end of the answer. */
export function whenStopping(request: FastifyRequest, reply: FastifyReply, action: () => void): void {
  const {stopping} = request.server
  if (stopping.aborted) {
    action()
    return
  }
  stopping.addEventListener('abort', action, {once: true})
  // The signal lives as long as the daemon: what is not taken off again stays.
  whenGone(reply, () => stopping.removeEventListener('abort', action))
}

/** Calls `action` when the answer is out or its client is gone, which it may be already. */
export function whenGone({raw}: FastifyReply, action: () => void): void {
  if (raw.destroyed) action()
  else raw.once('close', action)
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
