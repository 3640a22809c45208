import type {Static} from '@sinclair/typebox'
import type {FastifyInstance} from 'fastify'
import {parsePortal} from '../../iqn.js'
import type {Service} from '../../service.js'
import {DiscoverBody} from '../schema.js'

/** What concerns the node as a whole: domains, discovery, doctor, status. */
export function nodeRoutes({operations, version, doctor, problems}: Service) {
  const {rooms} = operations
  return async (api: FastifyInstance) => {
    api.get('/status', async () => ({
      version,
      pid: process.pid,
      portals: rooms.targets.portals(),
      initiatorName: rooms.initiatorName,
      unfinished: rooms.journal.unfinished().map(({kind, subject, state, startedAt, waits}) => ({
        ...{kind, subject, state, startedAt},
        waitsFor: waits?.message ?? null,
      })),
      problems: problems(),
    }))
    api.get('/domains', async () => rooms.compute.domains())
    api.get<{Params: {domain: string}}>('/domains/:domain/disks', async ({params}) =>
      rooms.compute.disks(params.domain),
    )
    api.get('/doctor', async () => doctor())

    api.post<{Body: Static<typeof DiscoverBody>}>(
      '/discover',
      {schema: {body: DiscoverBody}},
      async ({body: {portal, auth}}) =>
        rooms.initiator.discover(parsePortal(portal), {initiatorName: rooms.initiatorName, auth}),
    )
  }
}
