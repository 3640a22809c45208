import type {Static} from '@sinclair/typebox'
import type {FastifyInstance} from 'fastify'
import {jsonReport} from '../../bench/report.js'
import {start as startBench} from '../../bench/run.js'
import {StorageError} from '../../errors.js'
import {parsePortal} from '../../iqn.js'
import type {Service} from '../../service.js'
import {lineAnswer} from '../lines.js'
import {BenchBody, DiscoverBody} from '../schema.js'
import {askedOfLongWork} from '../server.js'

/** What concerns the node as a whole: domains, discovery, benchmark, doctor, status. */
export function nodeRoutes({operations, version, doctor, problems}: Service) {
  const {rooms} = operations
  return async (api: FastifyInstance) => {
    api.get('/status', async () => ({
      version,
      pid: process.pid,
      portals: rooms.targets.portals(),
      initiatorName: rooms.initiatorName,
      unfinished: rooms.journal
        .unfinished()
        .map(({kind, subject, state, startedAt}) => ({kind, subject, state, startedAt})),
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

    api.post<{Body: Static<typeof BenchBody>}>('/bench', {schema: {body: BenchBody}}, async (request, reply) => {
      const {volume, ...job} = request.body
      const {id} = rooms.store.volume(volume)
      const exported = rooms.store.exports.get(id)
      if (!exported) {
        throw new StorageError(
          'EXPORT_NOT_FOUND',
          `${id} is not exported: run lunpath export create --volume ${id} first`,
          {info: {id}},
        )
      }
      const {signal} = askedOfLongWork(request, reply)
      const {iqn, lun, wwid, serial, sizeBytes, portals} = exported
      const {initiatorName} = rooms
      const target = {portal: portals[0]!, iqn, lun, initiatorName, auth: rooms.store.secrets.get(id)}
      const run = startBench({target, expect: {wwid, serial, sizeBytes}, ...job}, {signal})
      const {sendLine, end} = lineAnswer(reply)
      const samples = (async () => {
        for await (const sample of run.samples) sendLine({sample})
      })()
      await end(samples.then(async () => jsonReport(await run.result)))
    })
  }
}
