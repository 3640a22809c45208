import {sectorBytes} from '../size.js'
import type {FioOption, FioSection} from './fio-sections.js'
import {wrong} from './fio-sections.js'
import {harmless, idleWithout, neutral, refusals, withoutEffect} from './fio-words.js'
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
  /** Of files that have no name in the job file. */
  filenameFormat: string
  numjobs: number
  direct: boolean
  sync: NonNullable<TargetSpec['sync']>
  invalidate: boolean
  hasRandomMap: boolean
  /** Whether errors of reads, and of writes and trims, let the run go on. */
  goesOnAfter: {read: boolean; write: boolean}
  /** What a `:N` behind the pattern says. */
  rwModifier: string | undefined
  rwSequencer: 'sequential' | 'identical'
  /** Of reads, writes and trims, percents; of those that are random. */
  percentageRandom: number[] | undefined
  /** Seconds. */
  startDelay: number
  isTimeBased: boolean
  /** Seconds. */
  runtime: number | undefined
  rampTime: number
  /** Decimal, since it may have 64 bits. */
  seed: string | undefined
  /** Bytes of which random offsets are multiples, of reads, writes and trims. */
  blockAlign: number[] | undefined
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

// vsync joins I/Os that lie side by side, up to iodepth of them: with one in flight there is nothing to join.
const syncEngines = new Set(['psync', 'sync', 'pvsync', 'pvsync2', 'vsync'])
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
    filenameFormat: '$jobname.$jobnum.$filenum',
    numjobs: 1,
    direct: false,
    sync: 'none',
    invalidate: true,
    hasRandomMap: true,
    goesOnAfter: {read: false, write: false},
    rwModifier: undefined,
    rwSequencer: 'sequential',
    percentageRandom: undefined,
    startDelay: 0,
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
  const {options} = section
  const engine = options.get('ioengine')
  // An engine that lunpath does not have is the first thing to say: other words may belong to it.
  for (const option of engine ? [engine, ...options.values()] : options.values()) {
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
    job.rwModifier = modifier
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
    job.blockAlign = threeOf(textOf(option).split(',')).map(part => bytes(option, part))
  },
  rw_sequencer: (job, option) => {
    job.rwSequencer = oneOf(option, textOf(option), ['sequential', 'identical'])
  },
  size: (job, option) => {
    job.size = amount(option)
  },
  offset: (job, option) => {
    job.spec.offset = extent(option)
  },
  offset_increment: (job, option) => {
    job.spec.offset_increment = bytes(option, textOf(option))
  },
  io_size: (job, option) => {
    job.ioSize = amount(option)
  },
  filesize: (job, option) => {
    const filesize = amount(option)
    if (typeof filesize === 'string') throw wrong(option, `filesize=${filesize}: bytes are expected`)
    job.filesize = filesize
  },
  filename_format: (job, option) => {
    job.filenameFormat = textOf(option)
  },
  startdelay: (job, option) => {
    if (textOf(option).includes('-'))
      throw wrong(option, `startdelay=${option.value} is not supported: lunpath draws no delays, so give one number`)
    job.startDelay = seconds(option)
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
    job.percentageRandom = listOf(option)
    if (job.percentageRandom.some(percent => percent > 100))
      throw wrong(option, `percentage_random=${option.value}: percents are expected`)
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
    job.spec.verify = kind === '0' || kind === 'none' ? 'none' : 'crc32c'
    if (job.spec.verify === 'none' || ['crc32c', 'crc32c-intel'].includes(kind)) return
    if (!checksums.has(kind))
      throw wrong(option, `verify=${kind} is not supported: lunpath writes blocks of its own, with a checksum (crc32c)`)
    job.notes.add(`verify=${kind}: lunpath checks the same blocks by crc32c`)
  },
  continue_on_error: (job, option) => {
    const [read, write] = errorWords[oneOf(option, textOf(option), Object.keys(errorWords))]!
    job.goesOnAfter = {read, write}
  },
  iodepth_low: (job, option) => {
    if (whole(option) !== Number(job.section.options.get('iodepth')?.value ?? 1))
      throw wrong(option, `iodepth_low=${option.value}: lunpath keeps all of iodepth in flight`)
  },
}

/** fio's checksums (fio(1), verify=), besides crc32c. */
const checksums = new Set([
  'md5',
  'crc7',
  'crc16',
  'crc32',
  'crc64',
  'xxhash',
  'sha1',
  'sha256',
  'sha512',
  'sha3-224',
  'sha3-256',
  'sha3-384',
  'sha3-512',
])

/** Which errors of I/Os let fio go on: those of reads, and those of writes and trims. */
const errorWords: Record<string, [read: boolean, write: boolean]> = {
  none: [false, false],
  '0': [false, false],
  verify: [false, false],
  read: [true, false],
  write: [false, true],
  io: [true, true],
  all: [true, true],
  '1': [true, true],
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
  const isSaid = (other: string) => !['0', 'none'].includes(job.section.options.get(other)?.value ?? '0')
  const needed = Object.entries(idleWithout).find(([, keys]) => keys.includes(key))?.[0]
  if (needed !== undefined && !needed.split('|').some(isSaid)) return
  const said = option.value === undefined ? key : `${key}=${value}`
  if (refusals[key]) throw wrong(option, `${said} is not supported: ${refusals[key]}`)
  throw wrong(option, `${said} is not understood: fio 3.33 has no such option for the engines that lunpath has`)
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

/** As extent, but of any number: as fio does, no part of a block is read or written behind it. */
function amount(option: FioOption): number | string {
  const text = textOf(option)
  const number = fioNumber(text)
  return number === undefined || number < sectorBytes ? extent(option) : number - (number % sectorBytes)
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
  if (us !== undefined && textOf(option).includes('.'))
    throw wrong(option, `${option.key}=${option.value}: fio takes whole numbers here, with a smaller unit (ms, us)`)
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

/** As fio: for reads, writes and trims; what is left out at the end is as the one before it. */
function threeOf<T>(said: T[]): T[] {
  return [0, 1, 2].map(index => said[Math.min(index, said.length - 1)]!)
}

/** For reads, writes and trims. As fio: an empty one (`,500`) is 0. */
function listOf(option: FioOption): number[] {
  const parts = textOf(option).split(',')
  const numbers = parts.map(part => (part === '' && parts.length > 1 ? 0 : fioNumber(part)))
  if (parts.length > 3 || numbers.some(number => number === undefined))
    throw wrong(option, `${option.key}=${option.value}: up to three numbers are expected, for reads, writes and trims`)
  return threeOf(numbers as number[])
}

const mostSizes = 2048

/**
 * As fio (get_next_buflen() in io_u.c): any number of bytes from the smaller size on is drawn, for as many bytes as the larger
 * size has, and rounded down to a multiple of the smaller one; where that is above the larger one, it is the larger one.
 */
function splitOfRange(option: FioOption): string {
  return textOf(option)
    .split(',')
    .map(range => {
      const [from = '', to = '', ...rest] = range.split(/[-:]/)
      const [least = 0, most = 0] = [bytes(option, from), bytes(option, to)].sort((a, b) => a - b)
      const count = Math.floor(most / least)
      if (rest.length > 0 || !(count >= 1) || count > mostSizes)
        throw wrong(
          option,
          `bsrange=${option.value}: SMALLEST-LARGEST is expected, the larger one at most ${mostSizes} times the smaller one`,
        )
      const multiples = Array.from({length: count}, (_, index) => least * (index + 1))
      if (most % least === 0) return multiples.join(':')
      const percent = ((100 * least) / most).toFixed(9)
      return [...multiples.map(multiple => `${multiple}/${percent}`), most].join(':')
    })
    .join(',')
}

/** Several files are separated by colons; `\:` is a colon in a name, as in by-path names. */
function splitFilenames(value: string): string[] {
  return value.split(/(?<!\\):/).map(name => name.replaceAll('\\:', ':'))
}
