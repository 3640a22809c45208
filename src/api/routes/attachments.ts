import {type Static, Type} from '@sinclair/typebox'
import type {FastifyInstance} from 'fastify'
import {type AttachAsked, attach} from '../../attach/attach.js'
import {detach} from '../../attach/detach.js'
import {observeDisks, shownAttachments} from '../../reconcile/observe.js'
import type {Service} from '../../service.js'
import {AnswerSchema, AttachmentSchema, ErrorSchema, NewAttachmentBody} from '../schema.js'
import {askedOf} from '../server.js'
import {chooseOne} from './exports.js'

const answers = {'2xx': AnswerSchema, default: ErrorSchema}
type DetachQuery = {timeoutMs?: number}

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

    const querystring = Type.Object({timeoutMs: Type.Optional(Type.Integer({minimum: 1, maximum: dayMs}))})
    const coerced = {querystring, response: answers}
    api.delete<{Params: {attachment: string}; Querystring: DetachQuery}>(
      '/attachments/:attachment',
      {schema: coerced, validatorCompiler: numericQuery},
      async (request, reply) =>
        detach(
          operations,
          {id: request.params.attachment, timeoutMs: request.query.timeoutMs},
          askedOf(request, reply),
        ),
    )

    api.delete<{Params: {domain: string; target: string}; Querystring: DetachQuery}>(
      '/domains/:domain/disks/:target',
      {schema: coerced, validatorCompiler: numericQuery},
      async (request, reply) => {
        const {domain, target} = request.params
        return detach(operations, {domain, target, timeoutMs: request.query.timeoutMs}, askedOf(request, reply))
      },
    )
  }
}

const dayMs = 24 * 3600 * 1000

/** Query values are text: the one number among them is read here, since the API coerces nothing elsewhere. */
function numericQuery() {
  return (query: Record<string, unknown>) => {
    const unknown = Object.keys(query).find(key => key !== 'timeoutMs')
    if (unknown !== undefined) return {error: new Error(`There is no ${unknown} in the query of a detach`)}
    if (query.timeoutMs === undefined) return {value: query}
    const timeoutMs = typeof query.timeoutMs === 'string' ? Number(query.timeoutMs) : Number.NaN
    if (Number.isInteger(timeoutMs) && timeoutMs > 0 && timeoutMs <= dayMs) return {value: {timeoutMs}}
    return {error: new Error('timeoutMs must be a positive whole number of milliseconds, a day at most')}
  }
}
