import type {Static} from '@sinclair/typebox'
import type {FastifyInstance} from 'fastify'
import {parseRemotePortal} from '../../iqn.js'
import {Type} from '../../packages/daemon.js'
import {resolvePortal} from '../../resolve.js'
import type {Service} from '../../service.js'
import {DiscoverBody, ErrorSchema} from '../schema.js'

const CancelledSchema = Type.Object({id: Type.String(), kind: Type.String(), subject: Type.String()})

/** What concerns the node as a whole: domains, discovery, doctor, status. */
export function nodeRoutes({operations, version, doctor, problems, isOpen, resuming}: Service) {
  const {rooms} = operations
  return async (api: FastifyInstance) => {
    api.get('/status', async () => ({
      version,
      pid: process.pid,
      state: isOpen() && resuming().size === 0 ? 'serving' : 'recovering',
      portals: rooms.targets.portalStates(),
      initiatorName: rooms.initiatorName,
      unfinished: rooms.journal.unfinished().map(({id, kind, subject, state, startedAt, waits}) => ({
        ...{id, kind, subject, state, startedAt},
        running: operations.isRunning(id),
        resumed: resuming().has(id),
        waitsFor: waits?.message ?? null,
      })),
      problems: problems(),
    }))
    api.delete<{Params: {operation: string}}>(
      '/operations/:operation',
      {schema: {response: {200: CancelledSchema, default: ErrorSchema}}},
      async ({params}) => operations.cancel(params.operation),
    )
    api.get('/domains', async () => rooms.compute.domains())
    api.get<{Params: {domain: string}}>('/domains/:domain/disks', async ({params}) =>
      rooms.compute.disks(params.domain),
    )
    api.get('/doctor', async () => doctor())

    api.post<{Body: Static<typeof DiscoverBody>}>(
      '/discover',
      {schema: {body: DiscoverBody}},
      async ({body: {portal, auth}}) => {
        const at = await resolvePortal(parseRemotePortal(portal))
        return rooms.initiator.discover(at, {initiatorName: rooms.initiatorName, auth})
      },
    )
  }
}
