import type {Static} from '@sinclair/typebox'
import type {FastifyInstance} from 'fastify'
import {createExport, type VolumeChoice} from '../../attach/attach.js'
import {deleteExport} from '../../attach/detach.js'
import {StorageError} from '../../errors.js'
import {Type} from '../../packages/daemon.js'
import type {Service} from '../../service.js'
import {AnswerSchema, ErrorSchema, ExportSchema, ForceQuery, NewExportBody} from '../schema.js'
import {askedOf} from '../server.js'

const answers = {'2xx': AnswerSchema, default: ErrorSchema}

/** /v1/exports */
export function exportRoutes({operations}: Service) {
  const {store, targets} = operations.rooms
  return async (api: FastifyInstance) => {
    api.get('/exports', {schema: {response: {200: Type.Array(ExportSchema)}}}, async () => {
      const portals = targets.portals()
      return [...store.exports.values()].map(record => ({...record, portals}))
    })

    api.post<{Body: Static<typeof NewExportBody>}>(
      '/exports',
      {schema: {body: NewExportBody, response: answers}},
      async (request, reply) => {
        const asked = chooseOne(request.body, ['volume', 'sizeBytes'])
        return reply.status(201).send(await createExport(operations, asked as VolumeChoice, askedOf(request, reply)))
      },
    )

    api.delete<{Params: {export: string}; Querystring: Static<typeof ForceQuery>}>(
      '/exports/:export',
      {schema: {querystring: ForceQuery, response: answers}},
      async (request, reply) => {
        const force = request.query.force === 'true'
        return deleteExport(operations, {export: request.params.export, force}, askedOf(request, reply))
      },
    )
  }
}

/** Makes sure that exactly one of `keys` is given. @throws INVALID_ARGUMENT */
export function chooseOne<B extends object>(body: B, keys: readonly string[]): B {
  const given = keys.filter(key => key in body)
  if (given.length === 1) return body
  throw new StorageError(
    'INVALID_ARGUMENT',
    `Give exactly one of ${keys.join(', ')}${given.length > 1 ? `, not ${given.join(' and ')}` : ''}`,
    {
      op: 'api',
    },
  )
}
