import type {Static} from '@sinclair/typebox'
import type {FastifyInstance} from 'fastify'
import {importTargets} from '../../attach/import.js'
import {StorageError} from '../../errors.js'
import {formatPortal, parseDestination} from '../../iqn.js'
import type {Service} from '../../service.js'
import type {ExportRecord} from '../../state/store.js'
import {offered} from '../../targets/driver.js'
import {
  ErrorSchema,
  ImportedTargetsSchema,
  ImportTargetsBody,
  ParametersBody,
  RedirectBody,
  SidQuery,
} from '../schema.js'
import {askedOfLongWork} from '../server.js'

interface Named {
  Params: {iqn: string}
}

/** /v1/targets and /v1/sessions: what the target daemon holds, and what only some drivers can. */
export function targetRoutes({operations}: Service) {
  const {store, targets} = operations.rooms
  const recordOf = (iqn: string) => {
    const record = store.exportOf(iqn)
    if (!record) throw new StorageError('EXPORT_NOT_FOUND', `${iqn} is not exported`, {info: {iqn}})
    return record
  }
  /** Changes an export and its record, so that it is put back as it is now. */
  const amend = async <T>(
    asked: string,
    change: (iqn: string) => Promise<T>,
    made: (record: ExportRecord) => ExportRecord,
  ) => {
    const {volumeId, iqn} = recordOf(asked)
    const unlock = operations.claim(volumeId)
    try {
      const result = await change(iqn)
      await store.write([{table: 'exports', id: volumeId, value: made(recordOf(iqn))}])
      return result
    } finally {
      unlock()
    }
  }

  return async (api: FastifyInstance) => {
    api.get('/sessions', async () => targets.sessions())
    api.delete<{Params: {iqn: string; sid: string}}>('/sessions/:iqn/:sid', async ({params: {iqn, sid}}) => {
      await offered(targets, 'deleteSession').deleteSession(iqn, sid)
      return {iqn, sid}
    })

    api.get('/targets', async () => targets.list())
    api.get<Named>('/targets/:iqn', async ({params: {iqn}}) => {
      const found = await targets.get(iqn)
      if (!found) throw new StorageError('NOT_FOUND', `There is no target ${iqn}`, {info: {iqn}})
      return found
    })
    // Each target is an operation of its own; one that is lunpath's already is refused, so that a repetition does no harm.
    api.post<{Body: Static<typeof ImportTargetsBody>}>(
      '/targets/import',
      {schema: {body: ImportTargetsBody, response: {200: ImportedTargetsSchema, default: ErrorSchema}}},
      async (request, reply) => importTargets(operations, request.body, askedOfLongWork(request, reply)),
    )
    api.get<Named & {Querystring: {sid?: string}}>(
      '/targets/:iqn/parameters',
      {schema: {querystring: SidQuery}},
      async ({params, query: {sid}}) => offered(targets, 'parameters').parameters(params.iqn, {sid}),
    )
    api.post<Named & {Body: Static<typeof ParametersBody>}>(
      '/targets/:iqn/parameters',
      {schema: {body: ParametersBody}},
      async ({params: {iqn}, body: {parameters, sid}}) => {
        const able = offered(targets, 'setParameters')
        if (sid !== undefined) return able.setParameters(iqn, parameters, {sid})
        return amend(
          iqn,
          named => able.setParameters(named, parameters),
          record => ({...record, parameters: {...record.parameters, ...parameters}}),
        )
      },
    )
    api.post<Named & {Body: Static<typeof RedirectBody>}>(
      '/targets/:iqn/redirect',
      {schema: {body: RedirectBody}},
      async ({params: {iqn}, body}) => {
        const able = offered(targets, 'redirect')
        const portal = body.portal === null ? null : parseDestination(body.portal)
        await amend(
          iqn,
          named => able.redirect(named, portal),
          record => ({...record, redirect: portal ? formatPortal(portal) : undefined}),
        )
        return {iqn, redirect: portal ? formatPortal(portal) : null}
      },
    )
  }
}
