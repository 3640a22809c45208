import {StorageError} from '../errors.js'
import {type JobSpec, type TargetSpec, workloadFields} from './job-schema.js'

/** What the command line says beside a job file: all of a job but what is measured. */
export type JobOptions = Omit<JobSpec, 'target' | 'volume' | 'filename' | 'writeTo' | 'sizeBytes' | 'notes'>

const ofWorkload = new Set(Object.keys(workloadFields))
const ofDevice = new Set(['ioengine', 'direct', 'sync'])

/**
 * A job with what the command line says in it, which stands before what the file says, also of its targets.
 * @throws INVALID_ARGUMENT for an option that no target of the job can have
 */
export function withOptions(job: JobSpec, options: JobOptions): JobSpec {
  const said = Object.entries(options).filter(([, value]) => value !== undefined)
  const forTargets = Object.fromEntries(said.filter(([key]) => ofWorkload.has(key)))
  const forDevices = Object.fromEntries(said.filter(([key]) => ofDevice.has(key)))
  const forJob = Object.fromEntries(said.filter(([key]) => !ofWorkload.has(key) && !ofDevice.has(key)))
  const targets: TargetSpec[] = job.target ?? [job]
  if (Object.keys(forDevices).length > 0 && !targets.some(({filename}) => filename !== undefined))
    throw unusable(Object.keys(forDevices), 'no target of the job file is a device or file')
  if (options.ioengine === 'null') throw unusable(['ioengine'], 'null would measure nothing of what the job file names')
  const change = <T extends TargetSpec>(target: T): T => ({
    ...without(target, forTargets),
    ...forTargets,
    ...(target.filename === undefined ? {} : forDevices),
  })
  const replaced = said.filter(([key, value]) => [job, ...targets].some(one => differs(one, key, value)))
  const notes = [...(job.notes ?? []), ...replaced.map(([key]) => `--${key} stands before what the job file says`)]
  return {
    ...(job.target ? {...without(job, forTargets), target: job.target.map(change)} : change(job)),
    ...forJob,
    ...(notes.length === 0 ? {} : {notes}),
  }
}

/** `bs` and `bssplit` are one thing, said in two ways. */
function without<T extends TargetSpec | JobSpec>(from: T, said: Partial<TargetSpec>): T {
  const left = {...from}
  if (said.bs !== undefined) delete left.bssplit
  if (said.bssplit !== undefined) delete left.bs
  // What belongs to the pattern that the other one stands before.
  const {rw = left.rw, random_distribution = left.random_distribution} = said
  const isRandom = rw === undefined || rw.startsWith('rand')
  for (const key of isRandom ? (['seq_step'] as const) : ofRandom) if (said.rw !== undefined) delete left[key]
  const hasSizes = said.bssplit !== undefined || said.bs?.toString().includes(',')
  if (hasSizes || (random_distribution ?? 'random') !== 'random') delete left.norandommap
  return left
}

const ofRandom = [
  'random_distribution',
  'norandommap',
  'percentage_random',
  'blockalign',
  'seq_ios',
  'rw_sequencer',
] as const

function differs(target: TargetSpec | JobSpec, key: string, value: unknown): boolean {
  const own = (target as Record<string, unknown>)[key]
  return own !== undefined && String(own) !== String(value)
}

function unusable(options: string[], why: string): StorageError {
  const words = options.map(option => (option === 'direct' ? '--no-direct' : `--${option}`)).join(' and ')
  return new StorageError('INVALID_ARGUMENT', `${words} cannot be followed: ${why}. Leave it out`, {op: 'bench.job'})
}
