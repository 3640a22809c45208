import type {FioOption, FioSection} from './fio-sections.js'
import {wrong} from './fio-sections.js'
import {harmless, known, neutral, refusals, withoutEffect} from './fio-words.js'
import type {TargetSpec} from './job-schema.js'
import {patterns} from './patterns.js'
import {fioGrammar, fioNumber, parsePercent, parseTime} from './quantity.js'

/** What a section says, in fio's sense; fio-file.ts makes targets of it. */
export interface FioJob {
  section: FioSection
  /** Of the section, or what `name=` says. */
  name: string
  engine: string | undefined
  filenames: string[]
  directory: string
  nrfiles: number
  numjobs: number
  direct: boolean
  sync: NonNullable<TargetSpec['sync']>
  invalidate: boolean
  hasRandomMap: boolean
  isTimeBased: boolean
  /** Seconds. */
  runtime: number | undefined
  rampTime: number
  /** Decimal, since it may have 64 bits. */
  seed: string | undefined
  /** Bytes of which random offsets are multiples. */
  blockAlign: number | undefined
  size: number | string | undefined
  filesize: number | undefined
  ioSize: number | string | undefined
  loops: number
  /** For reads, writes and trims: I/Os and bytes a second of one of its `numjobs`. */
  rateIops: number[] | undefined
  rateBytes: number[] | undefined
  spec: TargetSpec
  notes: Set<string>
}

type Read = (job: FioJob, option: FioOption) => void

const syncEngines = new Set(['psync', 'sync', 'pvsync', 'pvsync2'])
const otherEngines = new Set(['io_uring', 'libaio', 'null', 'libiscsi'])

/** fio's engines that do one I/O at a time, whatever iodepth says. */
export function isSyncEngine(engine: string | undefined): boolean {
  return engine === undefined || syncEngines.has(engine)
}

/** @throws INVALID_ARGUMENT that names the key, the file and the line */
export function readOptions(section: FioSection): FioJob {
  const job: FioJob = {
    section,
    name: section.name,
    engine: undefined,
    filenames: [],
    directory: '.',
    nrfiles: 1,
    numjobs: 1,
    direct: false,
    sync: 'none',
    invalidate: true,
    hasRandomMap: true,
    isTimeBased: false,
    runtime: undefined,
    rampTime: 0,
    seed: undefined,
    blockAlign: undefined,
    size: undefined,
    filesize: undefined,
    ioSize: undefined,
    loops: 1,
    rateIops: undefined,
    rateBytes: undefined,
    spec: {rw: 'read', continue_on_error: 'none'},
    notes: new Set(),
  }
  for (const option of section.options.values()) {
    const read = readers[option.key]
    if (read) read(job, option)
    else readOther(job, option)
  }
  return job
}

const readers: Record<string, Read> = {
  name: (job, option) => {
    job.name = textOf(option)
  },
  filename: (job, option) => {
    job.filenames = splitFilenames(textOf(option))
  },
  directory: (job, option) => {
    const directories = splitFilenames(textOf(option))
    if (directories.length > 1) throw wrong(option, 'directory names several: give one')
    job.directory = directories[0]!
  },
  nrfiles: (job, option) => {
    job.nrfiles = whole(option)
  },
  ioengine: (job, option) => {
    const engine = textOf(option)
    if (!syncEngines.has(engine) && !otherEngines.has(engine))
      throw wrong(option, `ioengine=${engine} is not supported: ${[...syncEngines, ...otherEngines].join(', ')} are`)
    job.engine = engine
  },
  rw: (job, option) => {
    const [pattern = '', modifier] = textOf(option).split(':')
    if (modifier !== undefined) throw wrong(option, `rw=${option.value}: steps and repeats are not supported`)
    job.spec.rw = oneOf(option, pattern, [...patterns, 'trimwrite', 'randtrimwrite']) as TargetSpec['rw']
  },
  rwmixread: (job, option) => {
    job.spec.rwmixread = whole(option)
  },
  rwmixwrite: (job, option) => {
    // Where both are given they have to agree, and rwmixread is what fio then takes.
    if (!job.section.options.has('rwmixread')) job.spec.rwmixread = 100 - whole(option)
  },
  bs: (job, option) => {
    job.spec.bs = textOf(option)
      .split(',')
      .map(part => bytes(option, part))
      .join(',')
  },
  bsrange: (job, option) => {
    job.spec.bssplit = splitOfRange(option)
  },
  bssplit: (job, option) => {
    job.spec.bssplit = textOf(option).replace(/[^/:,]+(?=[/:,]|$)/g, (word, at: number) =>
      option.value![at - 1] === '/' ? word : String(bytes(option, word)),
    )
  },
  ba: (job, option) => {
    job.blockAlign = bytes(option, textOf(option))
  },
  size: (job, option) => {
    job.size = extent(option)
  },
  offset: (job, option) => {
    job.spec.offset = extent(option)
  },
  offset_increment: (job, option) => {
    job.spec.offset_increment = bytes(option, textOf(option))
  },
  io_size: (job, option) => {
    job.ioSize = extent(option)
  },
  filesize: (job, option) => {
    job.filesize = bytes(option, textOf(option))
  },
  number_ios: (job, option) => {
    if (whole(option) > 0) job.spec.number_ios = whole(option)
  },
  loops: (job, option) => {
    job.loops = Math.max(1, whole(option))
  },
  iodepth: (job, option) => {
    job.spec.iodepth = whole(option)
  },
  numjobs: (job, option) => {
    job.numjobs = whole(option)
  },
  runtime: (job, option) => {
    // 0 is fio's word for no limit.
    job.runtime = seconds(option) || undefined
  },
  ramp_time: (job, option) => {
    job.rampTime = seconds(option)
  },
  time_based: (job, option) => {
    job.isTimeBased = flag(option)
  },
  randseed: (job, option) => {
    job.seed = seedOf(option)
  },
  norandommap: (job, option) => {
    job.hasRandomMap = !flag(option)
  },
  direct: (job, option) => {
    job.direct = truth(option)
  },
  buffered: (job, option) => {
    job.direct = !truth(option)
  },
  sync: (job, option) => {
    const words = {'0': 'none', none: 'none', '1': 'sync', sync: 'sync', dsync: 'dsync'} as const
    job.sync = words[oneOf(option, option.value ?? '1', Object.keys(words) as (keyof typeof words)[])]
  },
  invalidate: (job, option) => {
    job.invalidate = truth(option)
  },
  random_distribution: (job, option) => {
    job.spec.random_distribution = textOf(option)
  },
  percentage_random: (job, option) => {
    if (whole(option) !== (job.section.options.get('rw')?.value?.startsWith('rand') ? 100 : 0))
      throw wrong(option, `percentage_random=${option.value}: I/Os are all in order or all at random, as rw says`)
  },
  rate_iops: (job, option) => {
    job.rateIops = listOf(option)
  },
  rate: (job, option) => {
    job.rateBytes = listOf(option)
  },
  rate_process: (job, option) => {
    job.spec.rate_process = oneOf(option, textOf(option), ['linear', 'poisson'])
  },
  thinktime: (job, option) => {
    job.spec.thinktime = microseconds(option, 'us')
  },
  thinktime_blocks: (job, option) => {
    job.spec.thinktime_blocks = whole(option)
  },
  fsync: (job, option) => {
    if (whole(option) > 0) job.spec.fsync = whole(option)
  },
  fdatasync: (job, option) => {
    if (whole(option) > 0) job.spec.fdatasync = whole(option)
  },
  verify: (job, option) => {
    const kind = textOf(option)
    if (!['0', 'none', 'crc32c', 'crc32c-intel'].includes(kind))
      throw wrong(option, `verify=${kind} is not supported: crc32c is`)
    job.spec.verify = kind.startsWith('crc32c') ? 'crc32c' : 'none'
  },
  continue_on_error: (job, option) => {
    job.spec.continue_on_error = oneOf(option, textOf(option), ['none', 'all'])
  },
  iodepth_low: (job, option) => {
    if (whole(option) !== Number(job.section.options.get('iodepth')?.value ?? 1))
      throw wrong(option, `iodepth_low=${option.value}: lunpath keeps all of iodepth in flight`)
  },
}

/** Read where the phases of a file are made. */
const ofPhases = new Set(['stonewall', 'wait_for', 'exitall'])

function readOther(job: FioJob, option: FioOption): void {
  const {key, value = '1'} = option
  if (ofPhases.has(key) || harmless.has(key) || neutral[key]?.includes(value)) return
  const [note] = Object.entries(withoutEffect).find(([, keys]) => keys.includes(key)) ?? []
  if (note !== undefined) {
    job.notes.add(`${key} has no effect: ${note}`)
    return
  }
  const said = option.value === undefined ? key : `${key}=${value}`
  if (refusals[key]) throw wrong(option, `${said} is not supported: ${refusals[key]}`)
  if (key in neutral || known.has(key)) throw wrong(option, `${said} is not supported`)
  throw wrong(option, `${said} is not understood`)
}

export function textOf(option: FioOption): string {
  if (option.value === undefined || option.value === '') throw wrong(option, `${option.key} has no value`)
  return option.value
}

/** A flag of fio's, which may stand alone: any number but 0 sets it. */
export function flag(option: FioOption | undefined): boolean {
  return option !== undefined && (option.value === undefined || whole(option) !== 0)
}

/** As fio: 0 or 1, and nothing else. */
export function truth(option: FioOption): boolean {
  const {key, value} = option
  if (value !== '0' && value !== '1')
    throw wrong(option, `${value === undefined ? key : `${key}=${value}`}: 0 or 1 is expected, as in fio`)
  return value === '1'
}

function oneOf<const W extends string>(option: FioOption, said: string, words: W[]): W {
  const found = words.find(word => word === said)
  if (found === undefined) throw wrong(option, `${option.key}=${option.value} is not one of ${words.join(', ')}`)
  return found
}

function bytes(option: FioOption, text: string): number {
  try {
    return fioGrammar.size(text)
  } catch (cause) {
    throw wrong(option, `${option.key}: ${(cause as Error).message}`, cause)
  }
}

/** Bytes, or `40%`. */
function extent(option: FioOption): number | string {
  const text = textOf(option)
  const percent = parsePercent(text)
  return percent === undefined ? bytes(option, text) : `${percent}%`
}

function whole(option: FioOption): number {
  const number = fioNumber(textOf(option))
  if (number === undefined) throw wrong(option, `${option.key}=${option.value}: a whole number is expected`)
  return number
}

function microseconds(option: FioOption, unit: 's' | 'us'): number {
  const us = parseTime(textOf(option), unit)
  if (us === undefined) throw wrong(option, `${option.key}=${option.value}: a time is expected`)
  return us
}

function seconds(option: FioOption): number {
  return microseconds(option, 's') / 1e6
}

function seedOf(option: FioOption): string {
  const text = textOf(option)
  const seed = /^(0x[0-9a-f]+|\d+)$/i.test(text) ? BigInt(text) : -1n
  if (seed < 0n || seed >= 2n ** 64n)
    throw wrong(option, `randseed=${text}: a whole number from 0 to 2^64 - 1 is expected`)
  return seed.toString()
}

/** For reads, writes and trims. As fio: what is left out is as the one before it. */
function listOf(option: FioOption): number[] {
  const parts = textOf(option).split(',')
  const numbers = parts.map(part => fioNumber(part))
  if (parts.length > 3 || numbers.some(number => number === undefined))
    throw wrong(option, `${option.key}=${option.value}: up to three numbers are expected, for reads, writes and trims`)
  return [0, 1, 2].map(index => numbers[Math.min(index, numbers.length - 1)]!)
}

const mostSizes = 64

/** As fio: each multiple of the smaller size up to the larger is drawn as often as any other. */
function splitOfRange(option: FioOption): string {
  return textOf(option)
    .split(',')
    .map(range => {
      const [from = '', to = '', ...rest] = range.split(/[-:]/)
      const [least, most] = [bytes(option, from), bytes(option, to)]
      const count = Math.floor(most / least)
      if (rest.length > 0 || !(count >= 1) || count > mostSizes || most % least !== 0)
        throw wrong(
          option,
          `bsrange=${option.value}: SMALLEST-LARGEST is expected, the larger one a multiple, at most ${mostSizes} times`,
        )
      return Array.from({length: count}, (_, index) => String(least * (index + 1))).join(':')
    })
    .join(',')
}

/** Several files are separated by colons; `\:` is a colon in a name, as in by-path names. */
function splitFilenames(value: string): string[] {
  return value.split(/(?<!\\):/).map(name => name.replaceAll('\\:', ':'))
}
