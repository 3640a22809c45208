import type {Static} from '@sinclair/typebox'
import type {FastifyInstance} from 'fastify'
import {named} from '../../attach/rooms.js'
import {StorageError} from '../../errors.js'
import {parsePortal, parseTaggedPortal} from '../../iqn.js'
import type {Service} from '../../service.js'
import {ConnectionBody, ForceQuery, PortalQuery} from '../schema.js'

/** /v1/initiator: the kernel's own sessions and node records, for people who use two machines by hand. */
export function initiatorRoutes({operations}: Service) {
  const {rooms} = operations
  return async (api: FastifyInstance) => {
    api.get('/initiator/sessions', async () => rooms.host.sessions())
    api.get('/initiator/nodes', async () => rooms.host.nodes())

    api.post<{Body: Static<typeof ConnectionBody>}>(
      '/initiator/connections',
      {schema: {body: ConnectionBody}},
      async ({body: {iqn, portals, lun, auth, expected}}, reply) => {
        refuseAttached(iqn)
        const {initiatorName} = rooms
        const spec = {iqn, lun: lun ?? 1, portals: portals.map(parseTaggedPortal), initiatorName, auth, expected}
        const device = await rooms.host.connect({...spec, owner: 'hand', timeoutMs: rooms.probeTimeoutMs})
        return reply.status(201).send(device)
      },
    )

    api.delete<{Params: {iqn: string}; Querystring: Static<typeof ForceQuery>}>(
      '/initiator/connections/:iqn',
      {schema: {querystring: ForceQuery}},
      async ({params: {iqn}, query}) => {
        refuseAttached(iqn)
        return rooms.host.disconnect(iqn, {force: query.force === 'true'})
      },
    )

    api.delete<{Params: {iqn: string}; Querystring: {portal?: string}}>(
      '/initiator/nodes/:iqn',
      {schema: {querystring: PortalQuery}},
      async ({params: {iqn}, query: {portal}}) =>
        rooms.host.deleteNode(iqn, portal === undefined ? undefined : parsePortal(portal)),
    )
  }

  /** A session of the attach path is its own: nobody takes a guest's disk away by hand. */
  function refuseAttached(iqn: string): void {
    const attachment = [...rooms.store.attachments.values()].find(one => one.iqn === iqn)
    const exported = rooms.store.exportOf(iqn)
    const busy = exported !== undefined && !operations.idle(exported.volumeId)
    if (!attachment && !busy) return
    const message = attachment
      ? `${iqn} feeds the disk ${attachment.target} of ${named(rooms, attachment).domain}. First run: lunpath detach ${attachment.id}`
      : `Another operation is at work on ${iqn}: try again when it has ended`
    throw new StorageError(attachment ? 'TARGET_IN_USE' : 'CONFLICT', message, {info: {iqn, id: attachment?.id}})
  }
}
