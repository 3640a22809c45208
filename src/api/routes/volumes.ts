import type {Static} from '@sinclair/typebox'
import type {FastifyInstance} from 'fastify'
import {cloneVolume, createVolume, extendVolume, importVolume, snapshotVolume} from '../../attach/attach.js'
import {checkNewPool} from '../../attach/checks.js'
import {deleteVolume} from '../../attach/detach.js'
import {named} from '../../attach/rooms.js'
import {Type} from '../../packages/daemon.js'
import type {Service} from '../../service.js'
import type {VolumeRecord} from '../../state/store.js'
import {answerInLines, throttled} from '../lines.js'
import {
  AnswerSchema,
  CloneVolumeBody,
  ErrorSchema,
  ExtendVolumeBody,
  ImportVolumeBody,
  NewPoolBody,
  NewVolumeBody,
  PoolQuery,
  PoolSchema,
  SnapshotVolumeBody,
  VolumeSchema,
} from '../schema.js'
import {askedOf, askedOfLongWork} from '../server.js'

const UnusablePool = Type.Object({pool: Type.String(), driver: Type.String(), reason: Type.String()})
const DeletedPool = Type.Object({pool: Type.String(), group: Type.String(), groupRemoved: Type.Boolean()})
const answers = {'2xx': AnswerSchema, default: ErrorSchema}

/** /v1/volumes, /v1/pools and /v1/pool */
export function volumeRoutes({operations, operations: {rooms}, createPool, deletePool}: Service) {
  const {store} = rooms
  const domainOf = (id: string) => {
    const attachment = store.attachments.get(id)
    return attachment ? named(rooms, attachment).domain : null
  }
  const shown = (volume: VolumeRecord) => ({
    ...volume,
    iqn: store.exports.get(volume.id)?.iqn ?? null,
    domain: domainOf(volume.id),
  })
  const ShownVolume = Type.Composite([
    VolumeSchema,
    Type.Object({iqn: Type.Union([Type.String(), Type.Null()]), domain: Type.Union([Type.String(), Type.Null()])}),
  ])

  return async (api: FastifyInstance) => {
    api.get('/volumes', {schema: {response: {200: Type.Array(ShownVolume)}}}, async () =>
      [...store.volumes.values()].map(shown),
    )

    api.get<{Params: {volume: string}}>(
      '/volumes/:volume',
      {schema: {response: {200: ShownVolume, default: ErrorSchema}}},
      async ({params}) => shown(store.volume(params.volume)),
    )

    api.post<{Body: Static<typeof NewVolumeBody>}>(
      '/volumes',
      {schema: {body: NewVolumeBody, response: answers}},
      async (request, reply) =>
        reply.status(201).send(await createVolume(operations, request.body, askedOf(request, reply))),
    )

    api.post<{Body: Static<typeof ImportVolumeBody>}>(
      '/volumes/import',
      {schema: {body: ImportVolumeBody, response: answers}},
      async (request, reply) =>
        reply.status(201).send(await importVolume(operations, request.body, askedOf(request, reply))),
    )

    api.post<{Params: {volume: string}; Body: Static<typeof CloneVolumeBody>}>(
      '/volumes/:volume/clone',
      {schema: {body: CloneVolumeBody}},
      async (request, reply) => {
        // A copy may take minutes, so it answers line by line: progress, then the result or the error.
        const asked = {...request.body, volume: request.params.volume}
        const options = askedOfLongWork(request, reply)
        await answerInLines(reply, 'lines', sendLine => {
          const onProgress = throttled((progress: object) => sendLine({progress}))
          return cloneVolume(operations, asked, {...options, onProgress})
        })
      },
    )

    api.post<{Params: {volume: string}; Body: Static<typeof ExtendVolumeBody>}>(
      '/volumes/:volume/extend',
      {schema: {body: ExtendVolumeBody, response: answers}},
      async (request, reply) =>
        extendVolume(operations, {...request.body, volume: request.params.volume}, askedOf(request, reply)),
    )

    api.delete<{Params: {volume: string}}>('/volumes/:volume', {schema: {response: answers}}, async (request, reply) =>
      deleteVolume(operations, {volume: request.params.volume}, askedOf(request, reply)),
    )

    api.post<{Params: {volume: string}; Body: Static<typeof SnapshotVolumeBody>}>(
      '/volumes/:volume/snapshot',
      {schema: {body: SnapshotVolumeBody, response: answers}},
      async (request, reply) =>
        reply
          .status(201)
          .send(
            await snapshotVolume(operations, {...request.body, volume: request.params.volume}, askedOf(request, reply)),
          ),
    )

    api.get<{Querystring: {name?: string}}>(
      '/pool',
      {schema: {querystring: PoolQuery, response: {200: PoolSchema, default: ErrorSchema}}},
      async ({query}) => rooms.volumes.pool(query.name).capacity(),
    )

    api.get(
      '/pools',
      {schema: {response: {200: Type.Object({pools: Type.Array(PoolSchema), unusable: Type.Array(UnusablePool)})}}},
      async () => ({pools: await rooms.volumes.capacities(), unusable: rooms.volumes.unusable()}),
    )

    // Not journalled: the group's own tag says how far it has come, and the same request goes on from there.
    api.post<{Body: Static<typeof NewPoolBody>}>(
      '/pools',
      {schema: {body: NewPoolBody, response: {201: PoolSchema, default: ErrorSchema}}},
      async ({body}, reply) => {
        checkNewPool(body)
        return reply.status(201).send(await createPool(body))
      },
    )

    api.delete<{Params: {pool: string}}>(
      '/pools/:pool',
      {schema: {response: {200: DeletedPool, default: ErrorSchema}}},
      async ({params}) => deletePool(params.pool),
    )
  }
}
