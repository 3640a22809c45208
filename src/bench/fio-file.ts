import {resolve} from 'node:path'
import {StorageError} from '../errors.js'
import type {JobFile} from './job-file.js'
import type {JobSpec, TargetSpec} from './job-schema.js'
import {fioGrammar, parseTime} from './quantity.js'

// fio's job files (fio(1), JOB FILE FORMAT). What lunpath does otherwise than fio is a note, and what it does not
// understand is an error: a benchmark that leaves a line out measures something else.

interface Option {
  value: string
  line: number
}
type Section = {name: string; line: number; options: Map<string, Option>}

const longNames: Record<string, string> = {readwrite: 'rw', blocksize: 'bs', stonewall: 'wait_for_previous'}
/** Of no influence on what lunpath measures, or always so here. */
const harmless = new Set(['group_reporting', 'description', 'thread', 'norandommap', 'randrepeat', 'invalidate'])
const withoutEffect = new Set([
  'refill_buffers',
  'registerfiles',
  'fixedbufs',
  'exitall',
  'gtod_reduce',
  'clat_percentiles',
])
const engines: Record<string, TargetSpec['ioengine']> = {
  io_uring: 'io_uring',
  libaio: 'libaio',
  psync: 'pread',
  sync: 'pread',
  pvsync: 'pread',
  null: 'null',
}

/**
 * Reads a job file of fio's. Its sections become targets of one job; a section with `stonewall` begins the next job.
 * @throws INVALID_ARGUMENT that names the key, the file and the line
 */
export function parseFioFile(text: string, file: string): JobFile {
  const notes = new Set<string>()
  const phases: Section[][] = [[]]
  for (const section of readSections(text, file)) {
    if (isSet(section.options.get('wait_for_previous')) && phases.at(-1)!.length > 0) phases.push([])
    phases.at(-1)!.push(section)
  }
  if (phases[0]!.length === 0) throw wrong(file, 1, 'there is no section besides [global]')
  const jobs = phases.map(sections => new FioJob(file, notes).make(sections))
  return {jobs, notes: [...notes]}
}

/** Sections with the options of [global] filled in: what it said before them. */
function readSections(text: string, file: string): Section[] {
  const sections: Section[] = []
  const global = new Map<string, Option>()
  let current: Map<string, Option> | undefined
  for (const [index, raw] of text.split(/\r?\n/).entries()) {
    const line = index + 1
    // As fio: both begin a comment wherever they stand.
    const content = raw.replace(/[;#].*$/, '').trim()
    if (content === '') continue
    const heading = /^\[(.+)\]$/.exec(content)
    if (heading) {
      current = heading[1] === 'global' ? global : new Map(global)
      if (current !== global) sections.push({name: heading[1]!, line, options: current})
      continue
    }
    if (!current) throw wrong(file, line, `${JSON.stringify(content)} stands before the first section`)
    const [, key = '', value = '1'] = /^([^=\s]+)\s*(?:=\s*(.*))?$/.exec(content) ?? []
    if (key === '') throw wrong(file, line, `${JSON.stringify(content)} is not understood`)
    if (value.includes('$')) throw wrong(file, line, `${key}=${value}: variables are not supported`)
    current.set(longNames[key] ?? key, {value, line})
  }
  return sections
}

class FioJob {
  readonly #file: string
  readonly #notes: Set<string>

  constructor(file: string, notes: Set<string>) {
    this.#file = file
    this.#notes = notes
  }

  make(sections: Section[]): JobSpec {
    const target = sections.flatMap(section => this.#targets(section))
    const shared = ['runtime', 'ramp_time', 'seed'] as const
    const run: Pick<JobSpec, (typeof shared)[number]> = {}
    for (const {options, line, name} of sections) {
      if (!options.has('runtime')) throw wrong(this.#file, line, `[${name}] has no runtime: lunpath runs by time`)
      if (!isSet(options.get('time_based')))
        this.#notes.add(
          'without time_based fio may end before the runtime, when size has been transferred once; lunpath goes on',
        )
      const own = {
        runtime: this.#seconds(options.get('runtime')!, 'runtime'),
        ramp_time: options.has('ramp_time') ? this.#seconds(options.get('ramp_time')!, 'ramp_time') : 0,
        seed: options.has('randseed') ? this.#integer(options.get('randseed')!, 'randseed') : undefined,
      }
      for (const key of shared) {
        if (run[key] !== undefined && run[key] !== own[key])
          throw wrong(this.#file, line, `[${name}]: ${key} differs from that of the sections that run beside it`)
        if (own[key] !== undefined) run[key] = own[key]
      }
    }
    return {target, ...run}
  }

  #targets({name, line, options}: Section): TargetSpec[] {
    const spec: TargetSpec = {rw: 'read', direct: false}
    let files: string[] = []
    for (const [key, option] of options) {
      if (key === 'filename') files = splitFilenames(option.value)
      else this.#read(spec, key, option)
    }
    this.#finish(spec, options)
    if (spec.ioengine === 'null') {
      const {direct: _, size, ...rest} = spec
      return [{...rest, name, ...(size === undefined ? {} : {sizeBytes: Number(size)})}]
    }
    if (files.length === 0) throw wrong(this.#file, line, `[${name}] has no filename: lunpath makes no files`)
    return files.map((path, index) => ({
      ...spec,
      name: files.length === 1 ? name : `${name}.${index}`,
      filename: resolve(path),
    }))
  }

  /** One option, in fio's words and units. */
  #read(spec: TargetSpec, key: string, option: Option): void {
    const {value, line} = option
    switch (key) {
      case 'rw':
        spec.rw = value as TargetSpec['rw']
        return
      case 'bs':
        spec.bs = value
          .split(',')
          .map(part => this.#bytes({value: part, line}, key))
          .join(',')
        return
      case 'bssplit':
        spec.bssplit = value.replace(/[^/:,]+(?=[/:,]|$)/g, (word, at: number) =>
          value[at - 1] === '/' ? word : String(this.#bytes({value: word, line}, key)),
        )
        return
      case 'size':
      case 'offset':
        spec[key] = this.#bytes(option, key)
        return
      case 'iodepth':
      case 'numjobs':
      case 'thinktime_blocks':
      case 'rwmixread':
        spec[key] = this.#integer(option, key)
        return
      case 'rwmixwrite':
        spec.rwmixread = 100 - this.#integer(option, key)
        return
      case 'rate_iops':
        spec.rate_iops = this.#integer(option, key)
        return
      case 'rate_process':
      case 'random_distribution':
        ;(spec as Record<string, string>)[key] = value
        return
      case 'thinktime':
        spec.thinktime = this.#microseconds(option, key)
        return
      case 'direct':
      case 'buffered':
        spec.direct = isSet(option) === (key === 'direct')
        return
      case 'verify':
        if (value !== 'crc32c' && value !== '0' && value !== 'none')
          throw wrong(this.#file, line, `verify=${value} is not supported: crc32c is`)
        spec.verify = value === 'crc32c' ? 'crc32c' : 'none'
        return
      case 'continue_on_error':
        if (value !== 'none' && value !== 'all')
          throw wrong(this.#file, line, `continue_on_error=${value} is not supported: none and all are`)
        spec.continue_on_error = value
        return
      case 'ioengine':
        if (!(value in engines)) throw wrong(this.#file, line, `ioengine=${value} is not supported`)
        spec.ioengine = engines[value]
        return
      default:
        this.#other(key, option)
    }
  }

  #other(key: string, {value, line}: Option): void {
    if (['runtime', 'ramp_time', 'time_based', 'randseed', 'wait_for_previous'].includes(key) || harmless.has(key))
      return
    if (!withoutEffect.has(key)) throw wrong(this.#file, line, `${key}=${value} is not understood`)
    this.#notes.add(`${key} has no effect in lunpath`)
  }

  /** What fio has otherwise: errors end a job there, and a rate is that of each of its processes. */
  #finish(spec: TargetSpec, options: Map<string, Option>): void {
    spec.continue_on_error ??= 'none'
    if (spec.rate_iops !== undefined) {
      spec.rate_iops *= spec.numjobs ?? 1
      this.#notes.add('rate_iops is open loop in lunpath: I/Os are due at their time, also where the device is late')
    }
    if (spec.ioengine === undefined) {
      spec.ioengine = 'pread'
      this.#notes.add('without ioengine fio takes psync, so lunpath takes pread')
    }
    if (spec.rw?.startsWith('rand') && !isSet(options.get('norandommap')))
      this.#notes.add('without norandommap fio reads each block once before any again; lunpath draws blocks freely')
  }

  #bytes({value, line}: Option, key: string): number {
    try {
      return fioGrammar.size(value)
    } catch (cause) {
      throw wrong(this.#file, line, `${key}: ${(cause as Error).message}`)
    }
  }

  #integer({value, line}: Option, key: string): number {
    if (!/^\d+$/.test(value)) throw wrong(this.#file, line, `${key}=${value}: a whole number is expected`)
    return Number(value)
  }

  #microseconds({value, line}: Option, key: string, unit: 's' | 'us' = 'us'): number {
    const us = parseTime(value, unit)
    if (us === undefined) throw wrong(this.#file, line, `${key}=${value}: a time is expected`)
    return us
  }

  #seconds(option: Option, key: string): number {
    return this.#microseconds(option, key, 's') / 1e6
  }
}

/** A bare word, as `time_based`, is 1. */
function isSet(option: Option | undefined): boolean {
  return option !== undefined && option.value !== '0'
}

/** Several files are separated by colons; `\:` is a colon in a name, as in by-path names. */
function splitFilenames(value: string): string[] {
  return value.split(/(?<!\\):/).map(name => name.replaceAll('\\:', ':'))
}

function wrong(file: string, line: number, message: string): StorageError {
  return new StorageError('INVALID_ARGUMENT', `${file}:${line}: ${message}`, {op: 'bench.job', info: {file, line}})
}
