import type {TSchema} from '@sinclair/typebox'
import {Type} from '../packages/daemon.js'

/** Schemas of the API's requests and answers; the OpenAPI document at /v1/openapi.json is made from them. */

const strict = {additionalProperties: false} as const
const Nullable = <T extends TSchema>(schema: T) => Type.Union([schema, Type.Null()])

/** Of a route whose path says all. */
export const noQuery = Type.Object({}, strict)
/** Query values are text. */
export const ForceQuery = Type.Object(
  {force: Type.Optional(Type.Union([Type.Literal('true'), Type.Literal('false')]))},
  strict,
)
const textQuery = <K extends string>(name: K) => Type.Object({[name]: Type.Optional(Type.String())}, strict)
export const PoolQuery = textQuery('name')
export const PortalQuery = textQuery('portal')
export const SidQuery = textQuery('sid')
export const LabelQuery = textQuery('label')

export const Credentials = Type.Object({user: Type.String(), secret: Type.String()}, strict)
export const Auth = Type.Object({incoming: Credentials, outgoing: Type.Optional(Credentials)}, strict)
export const PortalSchema = Type.Object({address: Type.String(), port: Type.Integer({minimum: 1, maximum: 65535})})
export const Access = Type.Object(
  {addresses: Type.Array(Type.String(), {default: []}), names: Type.Array(Type.String(), {default: []})},
  strict,
)

const sizeBytes = Type.Number({description: 'Bytes, a positive multiple of 512.'})
const writeCache = Type.Union([Type.Literal('through'), Type.Literal('back')])
const ioType = Type.Union([Type.Literal('fileio'), Type.Literal('blockio'), Type.Literal('nullio')], {
  description:
    'IET alone. nullio keeps no data: it is for measuring. Default: files fileio, block devices as configured.',
})

const shared = Type.Optional(
  Type.Boolean({description: 'True: others may have the same bytes at the same time. The caller answers for that.'}),
)
const pool = Type.Optional(Type.String({description: 'Default: the default pool; of a clone its source’s.'}))
const preallocate = Type.Optional(
  Type.Boolean({description: 'True: all space is reserved. False: thin. Default: as the pool makes volumes.'}),
)
export const NewVolumeBody = Type.Object({sizeBytes, name: Type.Optional(Type.String()), preallocate, pool}, strict)
export const ImportVolumeBody = Type.Object({path: Type.String(), name: Type.Optional(Type.String())}, strict)
export const CloneVolumeBody = Type.Object(
  {name: Type.Optional(Type.String()), sizeBytes: Type.Optional(sizeBytes), pool},
  strict,
)
export const SnapshotVolumeBody = Type.Object({name: Type.Optional(Type.String())}, strict)
/** `devices` empty: the group exists. */
export const NewPoolBody = Type.Object(
  {
    name: Type.Optional(Type.String()),
    group: Type.String(),
    devices: Type.Array(Type.String()),
    thin: Type.Optional(Type.Boolean()),
    thinBytes: Type.Optional(sizeBytes),
  },
  strict,
)
export const PoolSchema = Type.Object({
  pool: Type.String(),
  driver: Type.String(),
  totalBytes: Type.Number(),
  freeBytes: Type.Number(),
  provisionedBytes: Type.Number(),
  limitBytes: Type.Number(),
  thin: Type.Optional(
    Type.Object({
      name: Type.String(),
      totalBytes: Type.Number(),
      dataPercent: Type.Number(),
      metadataPercent: Type.Number(),
    }),
  ),
  metadataArea: Type.Optional(Type.Object({sizeBytes: Type.Number(), freeBytes: Type.Number()})),
})
export const ExtendVolumeBody = Type.Object({sizeBytes}, strict)

/** Either `volume` (id or name of one that exists) or `sizeBytes` for a new one. */
const volumeChoice = {
  volume: Type.Optional(Type.String()),
  sizeBytes: Type.Optional(sizeBytes),
  name: Type.Optional(Type.String()),
  preallocate,
  pool,
}
export const NewExportBody = Type.Object(
  {
    ...volumeChoice,
    access: Type.Optional(Access),
    auth: Type.Optional(Auth),
    writeCache: Type.Optional(writeCache),
    readOnly: Type.Optional(Type.Boolean()),
    ioType: Type.Optional(ioType),
    shared,
  },
  strict,
)
/** Of a login by this host's kernel. */
const force = Type.Optional(
  Type.Boolean({description: 'True: a node record or a lost session of another tool makes room. Default: false.'}),
)
export const NewAttachmentBody = Type.Object(
  {
    ...volumeChoice,
    device: Type.Optional(Type.String()),
    format: Type.Optional(
      Type.Union([Type.Literal('raw'), Type.Literal('qcow2')], {description: 'Of a device: what the image is.'}),
    ),
    shared,
    domain: Type.String(),
    bus: Type.Optional(Type.Union([Type.Literal('virtio'), Type.Literal('scsi')])),
    target: Type.Optional(Type.String({pattern: '^(vd|sd)[a-z]{1,3}$'})),
    readOnly: Type.Optional(Type.Boolean()),
    persistent: Type.Optional(Type.Boolean()),
    live: Type.Optional(Type.Boolean()),
    auth: Type.Optional(Auth),
    writeCache: Type.Optional(writeCache),
    route: Type.Optional(Type.Union([Type.Literal('qemu'), Type.Literal('host')])),
    force,
  },
  strict,
)
export const DiscoverBody = Type.Object({portal: Type.String(), auth: Type.Optional(Auth)}, strict)
export const ConnectionBody = Type.Object(
  {
    iqn: Type.String(),
    portals: Type.Array(Type.String({description: 'HOST[:PORT][,TPGT]; the host is an address or a name.'}), {
      minItems: 1,
    }),
    lun: Type.Optional(Type.Integer({minimum: 0, maximum: 255})),
    auth: Type.Optional(Auth),
    expected: Type.Optional(
      Type.Object(
        {
          wwid: Type.Optional(Type.String()),
          serial: Type.Optional(Type.String()),
          sizeBytes: Type.Optional(Type.Number()),
        },
        strict,
      ),
    ),
    force,
  },
  strict,
)
export const VolumeSchema = Type.Object({
  id: Type.String(),
  name: Type.Optional(Nullable(Type.String())),
  driver: Type.String(),
  pool: Type.String(),
  path: Type.String(),
  kind: Type.String(),
  sizeBytes,
  allocation: Type.String(),
  imported: Type.Boolean(),
  createdAt: Type.Optional(Type.String()),
})
const parameterValue = Type.Union([Type.Boolean(), Type.Number(), Type.String()])
/** Of IET: parameters by their names; a `sid` names one session. */
export const ParametersBody = Type.Object(
  {parameters: Type.Record(Type.String(), parameterValue), sid: Type.Optional(Type.String({pattern: '^[0-9]{1,20}$'}))},
  strict,
)
/** ADDRESS:PORT; null ends the redirection. */
export const RedirectBody = Type.Object({portal: Nullable(Type.String())}, strict)
/** Without names: all targets that are not lunpath's. */
export const ImportTargetsBody = Type.Object(
  {
    iqns: Type.Optional(Type.Array(Type.String(), {minItems: 1})),
    dryRun: Type.Optional(Type.Boolean()),
    auth: Type.Optional(Auth),
  },
  strict,
)
export const ImportedTargetsSchema = Type.Object({
  taken: Type.Array(
    Type.Object({
      iqn: Type.String(),
      tid: Type.Integer(),
      lun: Type.Integer(),
      path: Type.String(),
      sizeBytes,
      serial: Type.String(),
      wwid: Type.String(),
      sessions: Type.Integer(),
      volumeId: Nullable(Type.String({description: 'Null where it was only looked at.'})),
    }),
  ),
  refused: Type.Array(Type.Object({iqn: Type.String(), code: Type.String(), message: Type.String()})),
})
export const ExportSchema = Type.Object({
  volumeId: Type.String(),
  driver: Type.String(),
  iqn: Type.String(),
  lun: Type.Integer(),
  tid: Type.Optional(Type.Integer()),
  portals: Type.Array(PortalSchema),
  wwid: Type.String(),
  serial: Type.String(),
  sizeBytes,
  access: Type.Optional(Access),
  writeCache: Type.Optional(Type.String()),
  readOnly: Type.Optional(Type.Boolean()),
  ioType: Type.Optional(Type.String()),
  hasAuth: Type.Optional(Type.Boolean()),
  parameters: Type.Optional(Type.Record(Type.String(), parameterValue)),
  redirect: Type.Optional(Type.String()),
  taken: Type.Optional(
    Type.Object({
      lun: Type.Integer(),
      wwid: Type.String(),
      scsiId: Nullable(Type.String()),
      scsiSn: Type.String(),
      ioType: Type.String(),
      blockSizeBytes: Type.Integer(),
    }),
  ),
  createdAt: Type.Optional(Type.String()),
})
const DiskSourceSchema = Type.Object({
  type: Type.String(),
  iqn: Type.Optional(Type.String()),
  lun: Type.Optional(Type.Integer()),
  portal: Type.Optional(PortalSchema),
  path: Type.Optional(Type.String()),
  format: Type.Optional(Type.String()),
  initiatorName: Type.Optional(Type.String()),
  description: Type.Optional(Type.String()),
})
export const DiskSchema = Type.Object({
  domain: Type.String(),
  target: Type.String(),
  bus: Type.String(),
  alias: Type.String(),
  serial: Nullable(Type.String()),
  source: DiskSourceSchema,
  live: Type.Boolean(),
  persistent: Type.Boolean(),
  readOnly: Type.Boolean(),
})
/** The answer of every operation: the nouns that it reached, null where it did not. */
export const AnswerSchema = Type.Object({
  volume: Nullable(VolumeSchema),
  export: Nullable(ExportSchema),
  disk: Nullable(DiskSchema),
  flushed: Type.Optional(
    Type.Boolean({
      description:
        'Where a disk of this host’s was taken away. False: it took no flush, and what the host had not written to it yet may be lost.',
    }),
  ),
})
export const AttachmentSchema = Type.Object({
  id: Type.String(),
  volumeId: Nullable(Type.String()),
  iqn: Nullable(Type.String()),
  domain: Type.String(),
  domainUuid: Type.String(),
  target: Type.String(),
  bus: Type.String(),
  source: DiskSourceSchema,
  route: Type.Optional(Type.String()),
  persistent: Type.Boolean(),
  readOnly: Type.Boolean(),
  state: Type.String(),
  createdAt: Type.String(),
})
export const ErrorSchema = Type.Object({
  error: Type.Object({
    code: Type.String(),
    message: Type.String(),
    op: Type.Optional(Type.String()),
    info: Type.Optional(Type.Record(Type.String(), Type.Unknown())),
    cause: Type.Optional(Type.Unknown()),
  }),
})
