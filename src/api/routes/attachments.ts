import type {Static} from '@sinclair/typebox'
import type {FastifyInstance} from 'fastify'
import {type AttachAsked, attach} from '../../attach/attach.js'
import {detach} from '../../attach/detach.js'
import {Type} from '../../packages/daemon.js'
import {observeDisks, shownAttachments} from '../../reconcile/observe.js'
import type {Service} from '../../service.js'
import {AnswerSchema, AttachmentSchema, ErrorSchema, NewAttachmentBody} from '../schema.js'
import {askedOf} from '../server.js'
import {chooseOne} from './exports.js'

const answers = {'2xx': AnswerSchema, default: ErrorSchema}
type DetachQuery = {timeoutMs?: number; force?: boolean}

/** /v1/attachments */
export function attachmentRoutes({operations}: Service) {
  return async (api: FastifyInstance) => {
    api.get('/attachments', {schema: {response: {200: Type.Array(AttachmentSchema)}}}, async () => {
      return shownAttachments(operations.rooms, await observeDisks(operations.rooms))
    })

    api.post<{Body: Static<typeof NewAttachmentBody>}>(
      '/attachments',
      {schema: {body: NewAttachmentBody, response: answers}},
      async (request, reply) => {
        const asked = chooseOne(request.body, ['volume', 'sizeBytes', 'device'])
        return reply.status(201).send(await attach(operations, asked as AttachAsked, askedOf(request, reply)))
      },
    )

    const querystring = Type.Object({
      timeoutMs: Type.Optional(Type.Integer({minimum: 1, maximum: dayMs})),
      force: Type.Optional(Type.Boolean()),
    })
    const coerced = {querystring, response: answers}
    api.delete<{Params: {attachment: string}; Querystring: DetachQuery}>(
      '/attachments/:attachment',
      {schema: coerced, validatorCompiler: detachQuery},
      async (request, reply) =>
        detach(operations, {id: request.params.attachment, ...request.query}, askedOf(request, reply)),
    )

    api.delete<{Params: {domain: string; target: string}; Querystring: DetachQuery}>(
      '/domains/:domain/disks/:target',
      {schema: coerced, validatorCompiler: detachQuery},
      async (request, reply) => {
        const {domain, target} = request.params
        return detach(operations, {domain, target, ...request.query}, askedOf(request, reply))
      },
    )
  }
}

const dayMs = 24 * 3600 * 1000

/** Query values are text: the number and the choice among them are read here, since the API coerces nothing elsewhere. */
function detachQuery() {
  return (query: Record<string, unknown>) => {
    const {timeoutMs, force, ...others} = query
    const [unknown] = Object.keys(others)
    if (unknown !== undefined) return {error: new Error(`There is no ${unknown} in the query of a detach`)}
    const value: DetachQuery = {}
    if (timeoutMs !== undefined) {
      value.timeoutMs = typeof timeoutMs === 'string' ? Number(timeoutMs) : Number.NaN
      if (!Number.isInteger(value.timeoutMs) || value.timeoutMs <= 0 || value.timeoutMs > dayMs)
        return {error: new Error('timeoutMs must be a positive whole number of milliseconds, a day at most')}
    }
    if (force !== undefined) {
      if (force !== 'true' && force !== 'false') return {error: new Error('force must be true or false')}
      value.force = force === 'true'
    }
    return {value}
  }
}
