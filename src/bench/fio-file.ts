import {existsSync, statSync} from 'node:fs'
import {resolve} from 'node:path'
import {StorageError} from '../errors.js'
import {sectorBytes} from '../size.js'
import {type FioJob, flag, isSyncEngine, readOptions, truth} from './fio-options.js'
import {type FioOption, type FioSection, type Place, readSections, unsetWords, wrong} from './fio-sections.js'
import type {JobFile} from './job-file.js'
import type {JobSpec, TargetSpec} from './job-schema.js'
import {fioNumber} from './quantity.js'
import {settleWorkload, writes} from './workload.js'

// fio's job files (fio(1), JOB FILE FORMAT). What lunpath does otherwise than fio is a note, and what it does not
// understand is an error: a benchmark that leaves a line out measures something else.

/** What jobs measure that name no file: what the command line names. */
export type Fallback = Pick<TargetSpec, 'volume' | 'filename'>

const mostTargets = 64
/** fio's own, of which it makes all others where `randrepeat` is not 0 (FIO_RANDSEED, fio.h). */
const repeatedSeed = String(0xb1899bed)

/**
 * Reads a job file of fio's. Its sections become targets of one job; a section with `stonewall` begins the next job.
 * @throws INVALID_ARGUMENT (UNSUPPORTED for a pattern that lunpath does not have) that names the key, the file and the line
 */
export function parseFioFile(text: string, file: string, fallback: Fallback = {}): JobFile {
  const jobs = phasesOf(readSections(text, file)).map(sections => makeJob(sections, fallback))
  const isUsed = jobs.some(({target = []}) =>
    target.some(({volume, filename}) => volume === fallback.volume && filename === fallback.filename),
  )
  if ((fallback.volume ?? fallback.filename) !== undefined && !isUsed)
    throw wrong(
      {file, line: 1},
      `each job names what it measures, so ${fallback.volume ?? fallback.filename} would not be measured: leave it out`,
    )
  return {jobs, notes: [...new Set(jobs.flatMap(({notes = []}) => notes))]}
}

/** Sections that run beside each other, in the order in which they do. */
function phasesOf(sections: FioSection[]): FioSection[][] {
  const phases: FioSection[][] = []
  for (const section of sections) {
    const last = phases.at(-1)
    const waits = section.options.get('wait_for')
    if (waits && !last?.every(({name}) => name === waits.value))
      throw wrong(waits, `wait_for=${waits.value}: only the job right before, where it runs alone, can be waited for`)
    if (last && !waits && !flag(section.options.get('stonewall'))) last.push(section)
    else phases.push([section])
  }
  checkDelays(phases)
  return phases
}

/** A startdelay of a later job is over when it begins, if it is that of all; else fio mixes the order of the jobs. */
function checkDelays(phases: FioSection[][]): void {
  const said = phases.flat().map(({options}) => options.get('startdelay'))
  const values = new Set(said.map(option => option?.value ?? '0'))
  const one = said.findLast(option => option !== undefined && option.value !== '0')
  if (phases.length > 1 && values.size > 1)
    throw wrong(one!, `startdelay=${one!.value}: with stonewall or wait_for it has to be the same in all sections`)
}

function makeJob(sections: FioSection[], fallback: Fallback): JobSpec {
  const read = sections.map(readOptions)
  const each = read.map(job => targetsOf(job, fallback))
  const target = each.flat()
  const {section} = read[0]!
  if (target.length > mostTargets)
    throw wrong(section, `there are ${target.length} files beside each other, and at most ${mostTargets} can be`)
  delayStarts(read, each)
  nameApart(target)
  checkWriters(read, each)
  checkExits(read)
  const notes = [...new Set(read.flatMap(job => [...job.notes]))]
  return {target, ...sharedOf(read), ...(notes.length === 0 ? {} : {notes})}
}

/** What holds for a whole job of lunpath's. */
function sharedOf(read: FioJob[]): Pick<JobSpec, 'runtime' | 'ramp_time' | 'seed'> {
  const [first, ...others] = read.map(({runtime, rampTime, seed, section}) => ({
    runtime,
    ramp_time: rampTime,
    seed: seed ?? (isSetOff(section, 'randrepeat') ? undefined : repeatedSeed),
  }))
  for (const [index, other] of others.entries())
    for (const key of ['runtime', 'ramp_time', 'seed'] as const)
      if (other[key] !== first![key]) {
        const {section} = read[index + 1]!
        const place = section.options.get(key === 'seed' ? 'randseed' : key) ?? section
        throw wrong(place, `[${section.name}]: ${key} differs from that of the sections that run beside it`)
      }
  return Object.fromEntries(Object.entries(first!).filter(([, value]) => value !== undefined))
}

function isSetOff({options}: FioSection, key: string): boolean {
  const option = options.get(key)
  return option !== undefined && !truth(option)
}

/** What a job does I/O to. */
interface Things {
  /** Each with the fields of a target that name it. */
  things: TargetSpec[]
  /** How many of them each of the job's threads goes round, in fio. */
  eachHas: number
  /** Threads on each of them. */
  numjobs: number
}

function targetsOf(job: FioJob, fallback: Fallback): TargetSpec[] {
  const {name, notes} = job
  const spec: TargetSpec = {...job.spec}
  if (job.engine === undefined) notes.add('without ioengine fio takes psync, so lunpath takes pread')
  if (isSyncEngine(job.engine)) oneAtATime(job, spec)
  choosePattern(job, spec)
  chooseOrder(job, spec)
  const {things, eachHas, numjobs} = thingsOf(job, fallback)
  spec.numjobs = numjobs
  chooseEnd(job, spec)
  chooseRate(job, spec)
  chooseFlushes(job, spec)
  if (eachHas > 1) divide(job, spec, eachHas)
  checkWorkload(job, spec)
  if (!job.direct && job.invalidate && things.some(({filename}) => filename !== undefined))
    notes.add('fio drops what the page cache has of a file before the first I/O; lunpath does not')
  return things.map((thing, index) => ({...spec, ...thing, name: things.length === 1 ? name : `${name}.${index}`}))
}

/** The engines that wait for each I/O have one in flight for each of `numjobs`, whatever iodepth says. */
function oneAtATime({engine = 'psync', notes, section}: FioJob, spec: TargetSpec): void {
  const isDeep = (spec.iodepth ?? 1) > 1
  if (isDeep && engine === 'vsync' && !spec.rw!.startsWith('rand'))
    throw wrong(
      section.options.get('iodepth')!,
      `iodepth=${spec.iodepth}: vsync makes one of so many I/Os that lie side by side, and lunpath joins none: give a larger bs`,
    )
  if (isDeep) notes.add(`iodepth=${spec.iodepth} has no effect: ioengine=${engine} has one I/O in flight, as in fio`)
  delete spec.iodepth
}

function choosePattern({goesOnAfter, section}: FioJob, spec: TargetSpec): void {
  // As fio: where it is split, what bs says does not count.
  if (spec.bssplit !== undefined) delete spec.bs
  if (!spec.rw!.startsWith('rand')) delete spec.random_distribution
  const answers = new Set(directionsOf(spec).map(direction => goesOnAfter[direction === 'read' ? 'read' : 'write']))
  if (answers.size > 1) {
    const option = section.options.get('continue_on_error')!
    throw wrong(
      option,
      `continue_on_error=${option.value}: errors of reads and writes both let the run go on, or neither`,
    )
  }
  spec.continue_on_error = answers.has(true) ? 'all' : 'none'
}

const directions = ['read', 'write', 'trim'] as const

function directionsOf({rw}: TargetSpec): (typeof directions)[number][] {
  const pattern = rw!.replace(/^rand/, '')
  return pattern === 'rw' || pattern === 'readwrite' ? ['read', 'write'] : directions.filter(one => one === pattern)
}

/** Where I/Os go: steps between them, how many of them are random, which offsets those have. */
function chooseOrder(job: FioJob, spec: TargetSpec): void {
  const {rwModifier, rwSequencer, section, notes} = job
  const place = section.options.get('rw') ?? section
  if (!spec.rw!.startsWith('rand')) {
    if (rwModifier !== undefined) spec.seq_step = stepOf(spec, rwModifier, place)
    return
  }
  const every = rwModifier === undefined ? 1 : Number.parseInt(rwModifier, 10)
  if (!(every >= 1))
    throw wrong(place, `rw=${spec.rw}:${rwModifier}: the number of I/Os for each random offset is expected`)
  if (every > 1) Object.assign(spec, {seq_ios: every, rw_sequencer: rwSequencer})
  const percent = sameFor(spec, job.percentageRandom, section.options.get('percentage_random'))
  if (percent !== undefined && percent < 100) spec.percentage_random = percent
  const align = sameFor(spec, job.blockAlign, section.options.get('ba'))
  const only = onlyBlock(spec)
  if (align !== undefined && align !== only) spec.blockalign = align
  // As fio: with a distribution or an alignment of its own there is no map.
  const {random_distribution = 'random', blockalign} = spec
  if (!job.hasRandomMap || random_distribution !== 'random' || blockalign !== undefined) return
  if (every === 1 && spec.percentage_random === undefined && only !== undefined) spec.norandommap = false
  else
    notes.add(
      `[${section.name}]: without norandommap fio does I/O to each block once before any again; lunpath draws blocks freely where they have several sizes, or others between them`,
    )
}

function stepOf({rw}: TargetSpec, text: string, place: Place): number {
  const [, sign, digits = ''] = /^([-+]?)(.*)$/.exec(text)!
  const bytes = fioNumber(digits)
  if (bytes === undefined || bytes % sectorBytes !== 0)
    throw wrong(place, `rw=${rw}:${text}: the bytes between two I/Os are expected, a multiple of ${sectorBytes}`)
  return sign === '-' ? -bytes : bytes
}

/** What is said for reads, writes and trims, where it is the same for all that the job does. */
function sameFor(spec: TargetSpec, said: number[] | undefined, option: FioOption | undefined): number | undefined {
  if (said === undefined || option === undefined) return undefined
  const values = new Set(directionsOf(spec).map(direction => said[directions.indexOf(direction)]!))
  if (values.size > 1) throw wrong(option, `${option.key}=${option.value}: lunpath has one for all directions`)
  return [...values][0]
}

/** The size of all blocks, where they have one. */
function onlyBlock(spec: TargetSpec): number | undefined {
  const said = spec.bssplit ?? String(spec.bs ?? 4096)
  const parts = said.split(',')
  const sizes = directionsOf(spec).map(direction => parts[Math.min(directions.indexOf(direction), parts.length - 1)]!)
  const [only, ...others] = new Set(sizes.flatMap(part => part.split(':')).map(entry => entry.split('/')[0]))
  return others.length === 0 ? Number(only) : undefined
}

/**
 * fio counts a startdelay from the begin of the whole run. What all wait for together is left out, since nothing is measured
 * meanwhile.
 */
function delayStarts(read: FioJob[], each: TargetSpec[][]): void {
  const least = Math.min(...read.map(({startDelay}) => startDelay))
  for (const [index, job] of read.entries())
    for (const target of each[index]!) if (job.startDelay > least) target.startdelay = job.startDelay - least
  if (least > 0) read[0]!.notes.add(`startdelay: fio would begin ${least} s later, and lunpath begins at once`)
}

function thingsOf(job: FioJob, fallback: Fallback): Things {
  const {engine, filenames, numjobs, nrfiles, directory, section} = job
  const shared = {eachHas: 1, numjobs}
  if (engine === 'null') return {...shared, things: [nullOf(job)]}
  if (engine === 'libiscsi' && filenames.length > 0)
    return {...shared, things: filenames.map(url => volumeOf(job, url)), eachHas: filenames.length}
  const ioengine = engine === 'libaio' || engine === 'io_uring' ? engine : 'pread'
  const opened = {ioengine, direct: job.direct, ...(job.sync === 'none' ? {} : {sync: job.sync})} as const
  const path = (filename: string): TargetSpec => ({filename: resolve(directory, filename), ...opened})
  if (filenames.length > 0) return {...shared, things: filenames.map(path), eachHas: filenames.length}
  // As fio: a section may have the name of a device.
  if (isDevice(section.name)) return {...shared, things: [path(section.name)]}
  if (fallback.filename !== undefined) return {...shared, things: [path(fallback.filename)]}
  if (fallback.volume !== undefined || engine === 'libiscsi')
    return {...shared, things: [volumeOf(job, fallback.volume)]}
  // As fio, each thread has files of its own then.
  const made = Array.from({length: numjobs * nrfiles}, (_, index) => {
    const [clone, file] = [Math.floor(index / nrfiles), index % nrfiles]
    return path(madeName(job, clone, file))
  })
  const missing = made.find(({filename}) => !existsSync(filename!))
  if (missing)
    throw wrong(
      section,
      `[${section.name}] has no filename, and lunpath makes no files: give it one, name a volume (lunpath bench VOLUME --job …), or make ${missing.filename}`,
    )
  return {things: made, eachHas: nrfiles, numjobs: 1}
}

/** The name that fio gives to a file without one. */
function madeName({filenameFormat, name}: FioJob, clone: number, file: number): string {
  return filenameFormat
    .replace(/\$jobname/gi, () => name)
    .replace(/\$jobnum/gi, String(clone))
    .replace(/\$filenum/gi, String(file))
}

function isDevice(name: string): boolean {
  return existsSync(name) && statSync(name).isBlockDevice()
}

function nullOf({size, filesize, section}: FioJob): TargetSpec {
  const bytes = filesize ?? size
  if (typeof bytes === 'string')
    throw wrong(section.options.get('size')!, `size=${bytes}: the null engine has no size of its own, so give bytes`)
  return {ioengine: 'null', ...(bytes === undefined ? {} : {sizeBytes: bytes})}
}

/** A volume by its name, or by a URL of fio's engine libiscsi: lunpath knows its own targets by IQN. */
function volumeOf({section, notes, engine, sync}: FioJob, named: string | undefined): TargetSpec {
  const place = section.options.get('filename') ?? section
  const [, iqn] = /^iscsi:\/\/[^/]+\/([^/]+)\/\d+$/.exec(named ?? '') ?? []
  if (named === undefined)
    throw wrong(section, `[${section.name}] has no filename: name the volume, lunpath bench VOLUME --job …`)
  if (section.options.has('filename') && iqn === undefined)
    throw wrong(place, `filename=${named}: iscsi://PORTAL/IQN/LUN is expected`)
  if (section.options.has('sync') && sync !== 'none')
    throw wrong(section.options.get('sync')!, `sync=${sync}: a volume is not opened, but measured over iSCSI`)
  if (engine !== undefined && engine !== 'libiscsi')
    notes.add(`a volume is measured over iSCSI: ioengine=${engine} says only how many I/Os are in flight`)
  return {volume: iqn ?? named}
}

/** How long it goes on: fio ends where it has done I/O of the size, if it is not time_based. */
function chooseEnd(job: FioJob, spec: TargetSpec): void {
  const {isTimeBased, runtime, size, filesize, ioSize, loops, notes} = job
  const range = filesize ?? size
  if (range !== undefined && job.engine !== 'null') spec.size = range
  if (isTimeBased && runtime !== undefined) {
    delete spec.number_ios
    return
  }
  if (isTimeBased) notes.add('time_based has no effect without a runtime, as in fio')
  const once = ioSize ?? (filesize === undefined ? undefined : size) ?? '100%'
  spec.io_size = typeof once === 'number' ? once * loops : `${Number.parseInt(once, 10) * loops}%`
}

/** A rate is that of each of fio's threads and of each direction; lunpath has one for a target, and shares of it. */
function chooseRate({rateIops, rateBytes, section, notes}: FioJob, spec: TargetSpec): void {
  const option = section.options.get('rate_iops') ?? section.options.get('rate')
  if (!option) return
  if (rateIops && rateBytes) throw wrong(option, 'rate and rate_iops exclude each other, as in fio')
  if (rateBytes && spec.bssplit !== undefined)
    throw wrong(section.options.get('rate')!, 'rate with several block sizes is not supported: use rate_iops')
  const blocks = String(spec.bs ?? 4096).split(',')
  const rates = rateIops ?? rateBytes!.map((rate, index) => rate / Number(blocks[Math.min(index, blocks.length - 1)]))
  const [reads, writes, trims] = rates as [number, number, number]
  const isMixed = /^(rand)?rw$|^readwrite$/.test(spec.rw!)
  if (isMixed && reads > 0 !== writes > 0)
    throw wrong(option, `${option.key}=${option.value}: reads and writes both have a rate, or neither`)
  const rate = isMixed ? reads + writes : spec.rw!.endsWith('read') ? reads : spec.rw!.endsWith('trim') ? trims : writes
  if (rate === 0) return
  spec.rate_iops = rate * (spec.numjobs ?? 1)
  if (isMixed) spec.rwmixread = (100 * reads) / rate
  notes.add(`${option.key} is open loop in lunpath: I/Os are due at their time, also where the device is late`)
}

/**
 * fio 3.33 flushes before an I/O where the number of writes is a multiple and the I/O that ended last is no flush. So it
 * flushes again after a read, and as long as a flush is in flight.
 */
function chooseFlushes({engine, notes}: FioJob, spec: TargetSpec): void {
  const words = (['fsync', 'fdatasync'] as const).filter(word => spec[word] !== undefined)
  if (words.length === 0) return
  const [said, rw] = [words.map(word => `${word}=${spec[word]}`).join(' and '), spec.rw!]
  if (!/write|rw/.test(rw)) {
    for (const word of words) delete spec[word]
    notes.add(`${said} ${words.length > 1 ? 'have' : 'has'} no effect: rw=${rw} does not write, as in fio`)
    return
  }
  const isQueued = engine === 'io_uring' || engine === 'libiscsi'
  if (/rw$|readwrite/.test(rw) || (isQueued && (spec.iodepth ?? 1) > 1))
    notes.add(
      `${said}: lunpath flushes once each time; fio 3.33 repeats a flush after a read that follows it, and while it is in flight`,
    )
}

/** Several files for a thread of fio's: it goes round them, with iodepth I/Os in flight in all. */
function divide({section, notes}: FioJob, spec: TargetSpec, files: number): void {
  const {iodepth = 1, numjobs = 1} = spec
  const place = section.options.get('iodepth') ?? section.options.get('filename') ?? section
  if (iodepth % files !== 0)
    throw wrong(
      place,
      `[${section.name}] has ${files} files and ${iodepth} I/Os in flight on all of them: lunpath needs as many for each, so give each file a section of its own`,
    )
  spec.iodepth = iodepth / files
  if (typeof spec.size === 'number') spec.size = blocksOf(spec.size / files)
  if (typeof spec.io_size === 'number') spec.io_size = blocksOf(spec.io_size / files)
  if (spec.number_ios !== undefined) spec.number_ios = Math.ceil(spec.number_ios / files)
  if (spec.rate_iops !== undefined) spec.rate_iops /= files
  if (spec.fsync !== undefined || spec.fdatasync !== undefined)
    notes.add(`[${section.name}] has ${files} files: lunpath counts the writes that a flush follows for each by itself`)
  notes.add(
    `[${section.name}] has ${files} files: fio goes round them with ${iodepth} I/Os in flight; lunpath has ${iodepth / files} on each, and ${files * numjobs} threads`,
  )
}

function blocksOf(bytes: number): number {
  return Math.floor(bytes / 512) * 512
}

/** Keys of a workload that come from another option of fio's. */
const saidBy: Record<string, string[]> = {
  bssplit: ['bssplit', 'bsrange'],
  rate_iops: ['rate_iops', 'rate'],
  rwmixread: ['rwmixread', 'rwmixwrite'],
  seq_step: ['rw'],
  seq_ios: ['rw'],
  blockalign: ['ba'],
  io_size: ['io_size', 'size'],
}

/** What lunpath refuses of the whole workload is told with the line of the option that it is about. */
function checkWorkload({section, engine}: FioJob, spec: TargetSpec): void {
  const {options} = section
  try {
    const {mix} = settleWorkload(spec)
    if (engine === 'libaio' && mix.trim > 0)
      throw wrong(options.get('ioengine')!, 'ioengine=libaio has no discard: use io_uring')
  } catch (error) {
    if (!(error instanceof StorageError) || error.op === 'bench.job') throw error
    const keys = Object.keys(error.info ?? {}).flatMap(key => saidBy[key] ?? [key])
    const place = keys.map(key => options.get(key)).find(option => option !== undefined) ?? section
    const {file, line} = place
    throw new StorageError(error.code, `${file}:${line}: ${error.message}${unsetWords(place)}`, {
      op: 'bench.job',
      info: {...error.info, file, line},
      cause: error,
    })
  }
}

/** Sections may have one name, in fio too: the second `a` is `a#2`. */
function nameApart(targets: TargetSpec[]): void {
  const taken = new Set<string>()
  for (const target of targets) {
    const {name = ''} = target
    for (let number = 2; taken.has(target.name!); number++) target.name = `${name}#${number}`
    taken.add(target.name!)
  }
}

/** A device has one writer at a time, and nothing else happens to a volume that is written to. */
function checkWriters(read: FioJob[], each: TargetSpec[][]): void {
  const writtenBefore = new Map<string, boolean>()
  for (const [index, targets] of each.entries()) {
    for (const target of targets) {
      const key = target.volume ?? target.filename
      if (key === undefined) continue
      const changes = writes(settleWorkload(target))
      const before = writtenBefore.get(key)
      const clash = target.volume === undefined ? before && changes : before !== undefined && (before || changes)
      const {section} = read[index]!
      if (clash)
        throw wrong(
          section.options.get('rw') ?? section,
          `[${section.name}]: two jobs beside each other write to ${key}, which has one writer at a time: put stonewall between them, or give each a filename of its own`,
        )
      writtenBefore.set(key, changes || before === true)
    }
  }
}

/** Where jobs end at their size, exitall would end the others with the first of them. */
function checkExits(read: FioJob[]): void {
  const option = read.map(({section}) => section.options.get('exitall')).find(flag)
  const threads = read.reduce((sum, {numjobs}) => sum + numjobs, 0)
  if (option && threads > 1 && read.some(({isTimeBased, runtime}) => !isTimeBased || runtime === undefined))
    throw wrong(option, 'exitall is supported where all jobs are time_based, and so end together')
}
