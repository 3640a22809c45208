import type {Static} from '@sinclair/typebox'
import type {FastifyInstance} from 'fastify'
import {named} from '../../attach/rooms.js'
import {StorageError} from '../../errors.js'
import {nameKey, parseRemotePortal, parseTaggedPortal} from '../../iqn.js'
import {resolvePortal} from '../../resolve.js'
import type {Service} from '../../service.js'
import type {Portal} from '../../types.js'
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
      async ({body: {iqn, portals, lun, auth, expected, force}}, reply) => {
        refuseAttached(iqn)
        const {initiatorName} = rooms
        const asked = await addressesOf(iqn, portals.map(parseTaggedPortal))
        const spec = {iqn, lun: lun ?? 1, portals: asked, initiatorName, auth, expected, force}
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
        rooms.host.deleteNode(iqn, portal === undefined ? undefined : await resolvePortal(parseRemotePortal(portal))),
    )
  }

  /** A name that has several addresses is taken for the one at which this host is logged in to the target already. */
  async function addressesOf<P extends Portal>(iqn: string, portals: P[]): Promise<P[]> {
    const sessions = (await rooms.host.sessions()).filter(session => session.iqn === iqn)
    const preferred = sessions.map(({portal}) => portal)
    return Promise.all(portals.map(portal => resolvePortal(portal, {preferred})))
  }

  /** A session of the attach path is its own: nobody takes a guest's disk away by hand. */
  function refuseAttached(iqn: string): void {
    // In capitals it is the same one.
    const attachment = [...rooms.store.attachments.values()].find(one => nameKey(one.iqn ?? '') === nameKey(iqn))
    const exported = rooms.store.exportOf(iqn)
    const busy = exported !== undefined && !operations.idle(exported.volumeId)
    if (!attachment && !busy) return
    const message = attachment
      ? `${iqn} feeds the disk ${attachment.target} of ${named(rooms, attachment).domain}. First run: lunpath detach ${attachment.id}`
      : `Another operation is at work on ${iqn}: try again when it has ended`
    throw new StorageError(attachment ? 'TARGET_IN_USE' : 'CONFLICT', message, {info: {iqn, id: attachment?.id}})
  }
}
