import {existsSync, readFileSync} from 'node:fs'
import {availableParallelism, totalmem} from 'node:os'
import {dirname, join} from 'node:path'
import {StorageError} from '../errors.js'

// The ini form of fio's job files: sections, [global], include, comments, environment variables and keywords. What the
// options mean is in fio-options.ts. Sources: fio(1), JOB FILE FORMAT, and __parse_jobs_ini() in fio's init.c.

/** One `key=value` of a job file. A key that stands alone has no value. */
export interface FioOption {
  key: string
  value: string | undefined
  file: string
  line: number
  /** Variables in the value that the environment does not have. */
  unset?: string[]
}

/** A job of the file, with what [global] said before it filled in. A later option replaces an earlier one. */
export interface FioSection {
  name: string
  file: string
  line: number
  options: Map<string, FioOption>
}

export type Place = Pick<FioOption, 'file' | 'line' | 'unset'>

/** fio's second names of options (the `alias` of its option table). */
const aliases: Record<string, string> = {
  readwrite: 'rw',
  blocksize: 'bs',
  blocksize_range: 'bsrange',
  blockalign: 'ba',
  io_limit: 'io_size',
  timeout: 'runtime',
  nr_files: 'nrfiles',
  fill_fs: 'fill_device',
  wait_for_previous: 'stonewall',
  iodepth_batch_submit: 'iodepth_batch',
  iodepth_batch_complete: 'iodepth_batch_complete_min',
  ratemin: 'rate_min',
  ratecycle: 'rate_cycle',
  iomem: 'mem',
  ss: 'steadystate',
  ss_dur: 'steadystate_duration',
  ss_ramp: 'steadystate_ramp_time',
  disable_bw: 'disable_bw_measurement',
  threads: 'thread',
}

export function wrong(place: Place, message: string, cause?: unknown): StorageError {
  const {file, line} = place
  return new StorageError('INVALID_ARGUMENT', `${file}:${line}: ${message}${unsetWords(place)}`, {
    op: 'bench.job',
    info: {file, line},
    cause,
  })
}

/** Why a value is not what its author sees: variables that are not set are empty. */
export function unsetWords({unset = []}: Place): string {
  return unset.map(name => ` (\${${name}} is not set in the environment)`).join('')
}

/**
 * Reads the sections of a job file and of the files that it includes.
 * @throws INVALID_ARGUMENT with file and line
 */
export function readSections(text: string, file: string): FioSection[] {
  const sections: FioSection[] = []
  const global = new Map<string, FioOption>()
  let current: Map<string, FioOption> | undefined
  for (const {content, line} of linesOf(text)) {
    const heading = /^\[(.+)\]$/.exec(content)
    if (heading) {
      const name = heading[1]!
      // As fio: each name that begins with "global" is the global section (init.c compares six letters).
      current = name.startsWith('global') ? global : new Map(global)
      if (current !== global) sections.push({name, file, line, options: current})
      continue
    }
    if (!current) throw wrong({file, line}, `${JSON.stringify(content)} stands before the first section`)
    for (const option of optionsOf(content, {file, line}, [file])) current.set(option.key, option)
  }
  if (sections.length === 0) throw wrong({file, line: 1}, 'there is no section besides [global]')
  return sections
}

/** Lines that say something. As in fio, `;` and `#` begin a comment wherever they stand. */
function linesOf(text: string): {content: string; line: number}[] {
  return text
    .split(/\r?\n/)
    .map((raw, index) => ({content: raw.replace(/[;#].*$/, '').trim(), line: index + 1}))
    .filter(({content}) => content !== '')
}

/** The option of a line, or all those of a file that it includes. */
function optionsOf(content: string, place: Place, including: string[]): FioOption[] {
  const included = /^include\s+(.+)$/.exec(content)
  if (included) return optionsOfFile(included[1]!, place, including)
  const [, key = '', value] = /^([^=\s]+)\s*(?:=\s*(.*))?$/.exec(content) ?? []
  if (key === '') throw wrong(place, `${JSON.stringify(content)} is not understood`)
  const option = {key: aliases[key] ?? key, ...place}
  if (value === undefined) return [{...option, value}]
  const unset = [...value.matchAll(variables)].map(([, name = '']) => name).filter(name => !(name in process.env))
  return [{...option, value: expand(value), ...(unset.length === 0 ? {} : {unset})}]
}

/** As fio: a path from the current directory, else from that of the including file; without sections of its own. */
function optionsOfFile(name: string, place: Place, including: string[]): FioOption[] {
  const path = existsSync(name) ? name : join(dirname(place.file), name)
  if (including.includes(path)) throw wrong(place, `${name} includes itself`)
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (cause) {
    throw wrong(place, `${name} cannot be included: ${(cause as Error).message}`, cause)
  }
  return linesOf(text).flatMap(({content, line}) => {
    if (content.startsWith('[')) throw wrong({file: path, line}, 'an included file must not have sections')
    return optionsOf(content, {file: path, line}, [...including, path])
  })
}

const variables = /\$\{([^}]*)\}/g

/**
 * `${NAME}` of the environment, empty where it is not set, and fio's keywords, on which it does simple arithmetic. As in fio
 * any other `$` stands for itself: that of `$jobnum` has its meaning in filename_format alone.
 */
function expand(value: string): string {
  const named = value.replace(variables, (_, name: string) => process.env[name] ?? '')
  const keywords: Record<string, number> = {
    ncpus: availableParallelism(),
    mb_memory: Math.floor(totalmem() / 2 ** 20),
    pagesize: 4096,
  }
  const told = named.replace(/\$(ncpus|mb_memory|pagesize)/g, (_, word: string) => String(keywords[word]))
  return told === named ? told : calculate(told)
}

function calculate(text: string): string {
  const [, a, operator, b] = /^(\d+)\s*([-+*/])\s*(\d+)$/.exec(text) ?? []
  if (operator === undefined) return text
  const [left, right] = [Number(a), Number(b)]
  const results: Record<string, number> = {
    '+': left + right,
    '-': left - right,
    '*': left * right,
    '/': Math.floor(left / right),
  }
  return String(results[operator])
}
