import {readFile} from 'node:fs/promises'
import {Value} from '@sinclair/typebox/value'
import {parse} from 'smol-toml'
import {StorageError} from '../errors.js'
import {parseFioFile} from './fio-file.js'
import {JobSchema, type JobSpec} from './job-schema.js'

/** What a job file asks for: jobs to be run one after another, and what of it has no effect here. */
export interface JobFile {
  jobs: JobSpec[]
  notes: string[]
}

/**
 * Reads a job file: TOML with the words of JobSchema, or fio's own (`.fio`, `.ini`, `.job`).
 * @throws INVALID_ARGUMENT that names the file and the key, and of fio's files the line
 */
export async function readJobFile(path: string): Promise<JobFile> {
  const text = await readFile(path, 'utf8').catch(cause => {
    throw wrong(`The job file ${path} cannot be read: ${(cause as Error).message}`, cause)
  })
  return /\.(fio|ini|job)$/.test(path) ? parseFioFile(text, path) : {jobs: [parseToml(text, path)], notes: []}
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
  throw wrong(`${file}: ${key}: ${problem.message}`)
}

function wrong(message: string, cause?: unknown): StorageError {
  return new StorageError('INVALID_ARGUMENT', message, {op: 'bench.job', cause})
}
