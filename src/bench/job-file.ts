import {readFile} from 'node:fs/promises'
import {StorageError} from '../errors.js'
import {parseToml as parse, Value} from '../packages/daemon.js'
import {type Fallback, parseFioFile} from './fio-file.js'
import {JobSchema, type JobSpec, type TargetSpec, wordsOf} from './job-schema.js'

/** What a job file asks for: jobs to be run one after another, and what is done otherwise than it says. */
export interface JobFile {
  jobs: JobSpec[]
  notes: string[]
}

/**
 * Reads a job file: TOML with the words of JobSchema, or fio's own (`.fio`, `.ini`, `.job`, `.conf`, `.cfg`). `fallback` is measured by
 * jobs and targets that do not say what they measure.
 * @throws INVALID_ARGUMENT that names the file and the key, and of fio's files the line; also where nothing is left that
 * measures the fallback
 */
export async function readJobFile(path: string, fallback: Fallback = {}): Promise<JobFile> {
  const text = await readFile(path, 'utf8').catch(cause => {
    throw wrong(`The job file ${path} cannot be read: ${(cause as Error).message}`, cause)
  })
  if (/\.(fio|ini|job|conf|cfg)$/.test(path)) return parseFioFile(text, path, fallback)
  return {jobs: [withFallback(parseToml(text, path), fallback, path)], notes: []}
}

/** @throws INVALID_ARGUMENT */
export function parseToml(text: string, file: string): JobSpec {
  let job: unknown
  try {
    job = parse(text)
  } catch (cause) {
    throw wrong(`The job file ${file} is not TOML: ${(cause as Error).message}`, cause)
  }
  const [problem] = Value.Errors(JobSchema, job)
  if (!problem) return job as JobSpec
  const key = problem.path.slice(1).replaceAll('/', '.') || 'the file'
  const words = wordsOf(problem.schema)
  const why = words ? `${JSON.stringify(problem.value)} is not one of ${words.join(', ')}` : problem.message
  throw wrong(`${file}: ${key}: ${why}`)
}

function withFallback(job: JobSpec, fallback: Fallback, file: string): JobSpec {
  const thing = fallback.volume ?? fallback.filename
  if (thing === undefined) return job
  const isOpen = (target: TargetSpec) =>
    target.volume === undefined && target.filename === undefined && target.ioengine !== 'null'
  if (!(job.target ?? [job]).some(isOpen))
    throw wrong(`Each target of ${file} says what it measures, so ${thing} would not be measured: leave it out`)
  if (!job.target) return {...job, ...fallback}
  return {...job, target: job.target.map(target => (isOpen(target) ? {...target, ...fallback} : target))}
}

function wrong(message: string, cause?: unknown): StorageError {
  return new StorageError('INVALID_ARGUMENT', message, {op: 'bench.job', cause})
}
