import type {Static, TSchema} from '@sinclair/typebox'
import {Type} from '../packages/daemon.js'
import {patterns} from './patterns.js'

// One vocabulary for the package, the API, TOML job files and the command line. Words that fio has are fio's, as fio writes
// them and in fio's units; what is lunpath's own is written as everywhere in lunpath.

export const strict = {additionalProperties: false} as const

const optional = <T extends TSchema>(schema: T, description: string) => Type.Optional({...schema, description} as T)
const size = Type.Union([Type.Integer({minimum: 0}), Type.String()])
const time = Type.Union([Type.Number({minimum: 0}), Type.String()])
const oneOf = <const W extends string>(...words: W[]) => Type.Union(words.map(word => Type.Literal(word)))

/** The words that a schema of words allows; undefined where it is none. */
export function wordsOf(schema: TSchema): string[] | undefined {
  const {anyOf} = schema as {anyOf?: {const?: unknown}[]}
  const words = anyOf?.map(one => one.const)
  return words?.every(word => typeof word === 'string') ? (words as string[]) : undefined
}

/** What is done to a target. Given for the job it holds for each target that does not say otherwise. */
export const workloadFields = {
  rw: optional(oneOf(...patterns), 'Default randread.'),
  rwmixread: optional(Type.Number({minimum: 0, maximum: 100}), 'Percent of reads of rw and randrw; default 50.'),
  bs: optional(size, 'Bytes of one I/O; READ,WRITE,TRIM where they differ; default 4096.'),
  bssplit: optional(Type.String(), 'SIZE/PERCENT:SIZE/PERCENT…, instead of bs; READ,WRITE,TRIM where they differ.'),
  iodepth: optional(Type.Integer(), 'I/Os in flight on each thread; default 1.'),
  numjobs: optional(Type.Integer(), 'Threads; default 1.'),
  offset: optional(size, 'Bytes from the begin of the device to that of the range, or percent of it (40%); default 0.'),
  size: optional(size, 'Bytes of the range, or percent of the device; default 0: to the end.'),
  offset_increment: optional(
    size,
    'Bytes by which the range of each thread begins after that of the one before it; default 0: all at the same offset.',
  ),
  io_size: optional(
    size,
    'Bytes, or percent of its range, after which a thread ends; default: it goes on to the end of the runtime.',
  ),
  number_ios: optional(Type.Integer({minimum: 1}), 'I/Os after which a thread ends; default: none.'),
  fsync: optional(
    Type.Integer({minimum: 0}),
    'Writes of a thread after each of which a flush follows (of a volume SYNCHRONIZE CACHE); default 0: none.',
  ),
  fdatasync: optional(Type.Integer({minimum: 0}), 'The same, without the metadata of a file; default 0: none.'),
  random_distribution: optional(
    Type.String(),
    'random (uniform), zipf:THETA, pareto:H or zoned:ACCESS/SIZE:… in percent; default random.',
  ),
  norandommap: optional(
    Type.Boolean(),
    'false: random I/O goes to each block once before it goes to any again; default true: blocks are drawn freely.',
  ),
  percentage_random: optional(
    Type.Integer({minimum: 0, maximum: 100}),
    'Of random patterns: so many are random, the others follow the one before; default 100.',
  ),
  blockalign: optional(
    size,
    'Random offsets are multiples of it; default: of the smallest block size of each direction.',
  ),
  seq_step: optional(
    Type.Integer(),
    'Of sequential patterns: bytes from the end of one I/O to the begin of the next; negative: backwards. Default 0.',
  ),
  seq_ios: optional(
    Type.Integer({minimum: 1}),
    'Of random patterns: of so many I/Os one is at a random offset, the others follow the one before. Default 1.',
  ),
  rw_sequencer: optional(
    oneOf('sequential', 'identical'),
    'Whether those that seq_ios makes follow the one before or repeat it; default sequential.',
  ),
  startdelay: optional(time, 'Seconds by which the target begins, and ends, later than the job; default 0.'),
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
  volume: optional(Type.String(), 'Id, name or IQN of an exported volume, over iSCSI.'),
  filename: optional(Type.String(), 'A block device or a regular file of the node.'),
  ioengine: optional(oneOf('auto', 'io_uring', 'libaio', 'pread', 'null'), 'Of a filename; default auto.'),
  direct: optional(Type.Boolean(), 'Of a filename: O_DIRECT, around the page cache; default true.'),
  sync: optional(
    oneOf('none', 'sync', 'dsync'),
    'Of a filename: O_SYNC or O_DSYNC, so that writes are on the disk when they are answered; default none.',
  ),
  sizeBytes: optional(Type.Integer({minimum: 512}), 'Of ioengine null: what it claims to have; default 1 GiB.'),
  writeTo: Type.Optional(WriteToSchema),
  ...workloadFields,
}
export const TargetSchema = Type.Object(targetFields, strict)

export const runFields = {
  runtime: optional(time, 'Seconds; default 5, or a day where each target ends by itself (io_size, number_ios).'),
  ramp_time: optional(time, 'Seconds before the runtime that are not in the result; default 0.'),
  seed: optional(
    Type.Union([Type.Integer({minimum: 0, maximum: Number.MAX_SAFE_INTEGER}), Type.String({pattern: '^\\d{1,20}$'})]),
    'Text for numbers beyond 2^53 - 1, which JSON would round. Default: random.',
  ),
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
    notes: optional(
      Type.Array(Type.String({maxLength: 1000}), {maxItems: 100}),
      'What is done otherwise than the job file says; it is in the result.',
    ),
  },
  strict,
)

const workload = Type.Object(workloadFields)
export type Workload = Static<typeof workload>
export type TargetSpec = Static<typeof TargetSchema>
export type JobSpec = Static<typeof JobSchema>
