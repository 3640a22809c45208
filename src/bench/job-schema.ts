import {type Static, type TSchema, Type} from '@sinclair/typebox'
import {patterns} from './patterns.js'

// One vocabulary for the package, the API, TOML job files and the command line. Words that fio has are fio's, as fio writes
// them and in fio's units; what is lunpath's own is written as everywhere in lunpath.

export const strict = {additionalProperties: false} as const

const optional = <T extends TSchema>(schema: T, description: string) => Type.Optional({...schema, description} as T)
const size = Type.Union([Type.Integer({minimum: 0}), Type.String()])
const time = Type.Union([Type.Number({minimum: 0}), Type.String()])
const oneOf = <const W extends string>(...words: W[]) => Type.Union(words.map(word => Type.Literal(word)))

/** What is done to a target. Given for the job it holds for each target that does not say otherwise. */
export const workloadFields = {
  rw: optional(oneOf(...patterns), 'Default randread.'),
  rwmixread: optional(Type.Number({minimum: 0, maximum: 100}), 'Percent of reads of rw and randrw; default 50.'),
  bs: optional(size, 'Bytes of one I/O; READ,WRITE,TRIM where they differ; default 4096.'),
  bssplit: optional(Type.String(), 'SIZE/PERCENT:SIZE/PERCENT…, instead of bs; READ,WRITE,TRIM where they differ.'),
  iodepth: optional(Type.Integer(), 'I/Os in flight on each thread; default 1.'),
  numjobs: optional(Type.Integer(), 'Threads; default 1.'),
  offset: optional(size, 'Bytes from the begin of the device to that of the range; default 0.'),
  size: optional(size, 'Bytes of the range; default 0: to the end.'),
  random_distribution: optional(Type.String(), 'random (uniform), zipf:THETA or pareto:H; default random.'),
  rate_iops: optional(
    Type.Number({exclusiveMinimum: 0}),
    'Open loop: arrivals a second at the target, whatever it does. Default: closed loop.',
  ),
  rate_process: optional(oneOf('linear', 'poisson'), 'How arrivals are spaced; default linear.'),
  thinktime: optional(time, 'Microseconds of pause after thinktime_blocks I/Os of a thread; default 0.'),
  thinktime_blocks: optional(Type.Integer({minimum: 1}), 'Default 1.'),
  verify: optional(oneOf('none', 'crc32c'), 'What was written is read back and compared; default none.'),
  continue_on_error: optional(oneOf('none', 'all'), 'Whether the run goes on when an I/O fails; default all.'),
  max_errors: optional(
    Type.Integer({minimum: 1}),
    'With continue_on_error=all: how many end the run; default any number.',
  ),
}

export const WriteToSchema = Type.Object(
  {
    identity: Type.String({description: 'Serial number, else MAJOR:MINOR; of a file inode:N.'}),
    size: Type.Union([Type.Integer({minimum: 1}), Type.String()]),
  },
  strict,
)

/** What is measured, as a person names it: exactly one of `volume`, `filename` and `ioengine: 'null'`. */
const targetFields = {
  name: optional(Type.String({minLength: 1, maxLength: 100}), 'In samples and in the report.'),
  volume: optional(Type.String(), 'Id or name of an exported volume, over iSCSI.'),
  filename: optional(Type.String(), 'A block device or a regular file of the node.'),
  ioengine: optional(oneOf('auto', 'io_uring', 'libaio', 'pread', 'null'), 'Of a filename; default auto.'),
  direct: optional(Type.Boolean(), 'Of a filename: O_DIRECT, around the page cache; default true.'),
  sizeBytes: optional(Type.Integer({minimum: 512}), 'Of ioengine null: what it claims to have; default 1 GiB.'),
  writeTo: Type.Optional(WriteToSchema),
  ...workloadFields,
}
export const TargetSchema = Type.Object(targetFields, strict)

export const runFields = {
  runtime: optional(time, 'Seconds; default 5.'),
  ramp_time: optional(time, 'Seconds before the runtime that are not in the result; default 0.'),
  seed: optional(Type.Union([Type.Integer({minimum: 0}), Type.String({pattern: '^\\d{1,20}$'})]), 'Default: random.'),
  stuckMs: optional(
    Type.Integer(),
    'Milliseconds without any completion after which a device is stuck; default 5,000.',
  ),
  sampleMs: optional(Type.Integer(), 'Milliseconds between samples, at least 100; default 250.'),
}

/** A job as it is written down: in a TOML file, or in the body of POST /bench. */
export const JobSchema = Type.Object(
  {
    ...targetFields,
    name: optional(Type.String({minLength: 1, maxLength: 100}), 'Of the job; default bench.'),
    target: optional(Type.Array(TargetSchema, {minItems: 1, maxItems: 64}), 'Instead of volume, filename or ioengine.'),
    ...runFields,
    sweep: Type.Optional(
      Type.Object(
        {over: oneOf('iodepth', 'rate_iops'), values: Type.Array(Type.Number({exclusiveMinimum: 0}))},
        strict,
      ),
    ),
    steady: Type.Optional(Type.Object({rounds: optional(Type.Integer(), 'At most; default 25.')}, strict)),
    label: optional(Type.String({pattern: '^[A-Za-z0-9_.-]{1,60}$'}), 'By which results are found and compared.'),
    keep: optional(Type.Boolean(), 'Whether the result is kept in the store; default true.'),
  },
  strict,
)

const workload = Type.Object(workloadFields)
export type Workload = Static<typeof workload>
export type TargetSpec = Static<typeof TargetSchema>
export type JobSpec = Static<typeof JobSchema>
