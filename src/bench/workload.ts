import {StorageError} from '../errors.js'
import {sectorBytes} from '../size.js'
import type {Workload} from './job-schema.js'
import type {NativeBlockSize, NativeDistribution, NativeOrder, NativeTarget} from './native.js'
import {defaultPattern, type Pattern, patterns} from './patterns.js'
import {type Grammar, ourGrammar, parsePercent, parseTime} from './quantity.js'

const maxBufferBytes = 2 ** 30
/** How often a target that ends by itself may go through its range. */
const mostPasses = 1_000_000
const maxBlockBytes = 16 * 2 ** 20
const directions = ['read', 'write', 'trim'] as const
const none = {read: 0, write: 0, trim: 0}

/** The part of a target that says what is done to it. */
export type SettledWorkload = Omit<
  NativeTarget,
  'name' | 'device' | 'expectedWwid' | 'expectedSerial' | 'expectedSizeBytes'
>

/**
 * Checks what is to be done and fills in the defaults.
 * @throws StorageError INVALID_ARGUMENT, SIZE_INVALID; UNSUPPORTED for a pattern of fio's that lunpath does not have
 */
export function settleWorkload(given: Workload, grammar: Grammar = ourGrammar): SettledWorkload {
  const rw = checkPattern(given.rw ?? defaultPattern)
  const mix = mixOf(rw, given.rwmixread ?? 50)
  const blockSizes = blockSizesOf(given, mix, grammar)
  const iodepth = checkInteger('iodepth', given.iodepth ?? 1, 1, 1024)
  const numjobs = checkInteger('numjobs', given.numjobs ?? 1, 1, 128)
  const largest = Math.max(...Object.values(blockSizes).flatMap(list => list.map(({bytes}) => bytes)))
  if (largest * iodepth * numjobs > maxBufferBytes)
    throw invalid('bs × iodepth × numjobs is at most 1 GiB', {bs: largest, iodepth, numjobs})
  const verify = given.verify ?? 'none'
  const order = orderOf(given, rw, grammar)
  if (verify === 'crc32c') checkVerifiable(given, mix, {blockSizes, order})
  const offset = extentOf('offset', given.offset ?? 0, {grammar})
  const size = extentOf('size', given.size ?? 0, {grammar})
  return {
    mix,
    distribution: chooseDistribution(given, rw, blockSizes),
    order,
    blockSizes,
    iodepth,
    numjobs,
    offsetBytes: offset.bytes,
    sizeBytes: size.bytes,
    offsetPercent: offset.percent,
    sizePercent: size.percent,
    startDelayMs: startDelayOf(given),
    offsetIncrementBytes: toBytes('offset_increment', given.offset_increment ?? 0, grammar),
    stop: stopOf(given, grammar),
    flushAfter: flushAfterOf(given, mix),
    rate: rateOf(given),
    thinkTime: thinkTimeOf(given),
    verify,
    onError: errorPolicyOf(given),
  }
}

/** True where the job changes what is on the target. */
export function writes({mix}: Pick<NativeTarget, 'mix'>): boolean {
  return mix.write > 0 || mix.trim > 0
}

/** True where flushes follow writes. */
export function flushes({flushAfter}: Pick<NativeTarget, 'flushAfter'>): boolean {
  return flushAfter.fsync > 0 || flushAfter.fdatasync > 0
}

/** True where the target ends after so much, and not with the runtime alone. */
export function isBounded({stop}: Pick<NativeTarget, 'stop'>): boolean {
  return stop.bytes > 0 || stop.percent > 0 || stop.ios > 0
}

/** Bytes, or a percentage of the device or of the range. */
function extentOf(
  name: string,
  value: number | string,
  {grammar, most = 100}: {grammar: Grammar; most?: number},
): {bytes: number; percent: number} {
  if (typeof value !== 'string' || !value.includes('%')) return {bytes: toBytes(name, value, grammar), percent: 0}
  const percent = parsePercent(value, most)
  if (percent === undefined) throw invalid(`${name} is a size, or a percentage from 1% to ${most}%`, {[name]: value})
  return {bytes: 0, percent}
}

function stopOf({io_size, number_ios}: Workload, grammar: Grammar): NativeTarget['stop'] {
  const extent = extentOf('io_size', io_size ?? 0, {grammar, most: mostPasses * 100})
  const ios = number_ios === undefined ? 0 : checkInteger('number_ios', number_ios, 1, 1e15)
  return {...extent, ios}
}

function flushAfterOf(given: Workload, mix: NativeTarget['mix']): NativeTarget['flushAfter'] {
  const [fsync, fdatasync] = (['fsync', 'fdatasync'] as const).map(name => {
    const writes = checkInteger(name, given[name] ?? 0, 0, 1e9)
    if (writes > 0 && mix.write === 0)
      throw invalid(`${name} is for jobs that write: a flush follows each ${writes} writes`, {[name]: writes})
    return writes
  })
  return {fsync: fsync!, fdatasync: fdatasync!}
}

function checkPattern(rw: string): Pattern {
  if (rw === 'trimwrite' || rw === 'randtrimwrite')
    throw new StorageError('UNSUPPORTED', `rw=${rw} is not supported`, {op: 'bench.start', info: {rw}})
  if (!patterns.includes(rw as Pattern))
    throw invalid(`rw is one of ${patterns.join(', ')}, not ${JSON.stringify(rw)}`, {rw})
  return rw as Pattern
}

function mixOf(rw: Pattern, rwmixread: number): NativeTarget['mix'] {
  if (!(rwmixread >= 0 && rwmixread <= 100)) throw invalid('rwmixread is a percentage', {rwmixread})
  if (rw === 'rw' || rw === 'readwrite' || rw === 'randrw') return {read: rwmixread, write: 100 - rwmixread, trim: 0}
  return {...none, [rw.replace(/^rand/, '')]: 100}
}

function chooseDistribution(
  {random_distribution, norandommap = true}: Workload,
  rw: Pattern,
  blockSizes: NativeTarget['blockSizes'],
): NativeDistribution {
  const distribution = distributionOf(rw, random_distribution)
  if (norandommap) return distribution
  if (distribution.kind !== 'uniform')
    throw invalid('norandommap=false is for random patterns with random_distribution=random', {norandommap})
  if (sizesOf(blockSizes).size > 1) throw invalid('norandommap=false needs one block size', {norandommap})
  return {kind: 'shuffled'}
}

function sizesOf(blockSizes: NativeTarget['blockSizes']): Set<number> {
  return new Set(Object.values(blockSizes).flatMap(list => list.map(({bytes}) => bytes)))
}

function orderOf(given: Workload, rw: Pattern, grammar: Grammar): NativeOrder {
  const {seq_step = 0, seq_ios = 1, rw_sequencer = 'sequential', percentage_random = 100, blockalign} = given
  const ofRandom = ['seq_ios', 'rw_sequencer', 'percentage_random', 'blockalign'] as const
  const isRandom = rw.startsWith('rand')
  const useless = (isRandom ? (['seq_step'] as const) : ofRandom).find(key => given[key] !== undefined)
  if (useless) throw invalid(`${useless} is for ${isRandom ? 'sequential' : 'random'} patterns, not for rw=${rw}`, {rw})
  const alignBytes = toBytes('blockalign', blockalign ?? 0, grammar)
  if (alignBytes > maxBlockBytes) throw invalid('blockalign is at most 16 MiB', {blockalign})
  if (seq_step % sectorBytes !== 0 || Math.abs(seq_step) > 2 ** 50)
    throw invalid(`seq_step is a multiple of ${sectorBytes} bytes`, {seq_step})
  return {
    alignBytes,
    stepBytes: checkInteger('seq_step', seq_step, -(2 ** 50), 2 ** 50),
    runIos: checkInteger('seq_ios', seq_ios, 1, 1e9),
    runStays: rw_sequencer === 'identical',
    randomPercent: checkInteger('percentage_random', percentage_random, 0, 100),
  }
}

function startDelayOf({startdelay = 0}: Workload): number {
  const us = parseTime(String(startdelay), 's')
  if (us === undefined || us > 86_400e6) throw invalid('startdelay is in seconds, at most a day', {startdelay})
  return Math.round(us / 1000)
}

/** `zoned:50/5:30/15:20/`: percents of the I/Os and of the range; a size that is left out is what is left, as in fio. */
function zonesOf(parts: string[], given: string): NativeDistribution {
  const wrong = () =>
    invalid(
      `random_distribution=zoned is ACCESS/SIZE:ACCESS/SIZE… in whole percents that both sum up to 100 (a SIZE may be left out), not ${given}`,
      {random_distribution: given},
    )
  const read = parts.map(part => {
    const [, access, size] = /^(\d+)\/(\d*)$/.exec(part) ?? []
    if (access === undefined) throw wrong()
    return {access: Number(access), size: size === '' ? undefined : Number(size)}
  })
  const sum = (numbers: number[]) => numbers.reduce((total, number) => total + number, 0)
  const open = read.filter(({size}) => size === undefined).length
  const left = 100 - sum(read.map(({size = 0}) => size))
  if (sum(read.map(({access}) => access)) !== 100 || left < 0 || (open === 0 && left > 0) || left < open) throw wrong()
  const zones: {percent: number; fromPercent: number; toPercent: number}[] = []
  for (const {access, size = Math.floor(left / open)} of read) {
    const fromPercent = zones.at(-1)?.toPercent ?? 0
    zones.push({percent: access, fromPercent, toPercent: fromPercent + size})
  }
  return {kind: 'zoned', zones}
}

function distributionOf(rw: Pattern, given: string | undefined): NativeDistribution {
  const [name = '', parameter, ...rest] = (given ?? 'random').split(':')
  const value = Number(parameter)
  if (!rw.startsWith('rand')) {
    if (given !== undefined)
      throw invalid(`random_distribution is for random patterns, not for rw=${rw}`, {random_distribution: given})
    return {kind: 'sequential'}
  }
  if ((name === 'random' || name === 'uniform') && parameter === undefined) return {kind: 'uniform'}
  if (name === 'zipf' && rest.length === 0 && value > 0 && value <= 10) return {kind: 'zipf', theta: value}
  if (name === 'pareto' && rest.length === 0 && value > 0 && value < 1) return {kind: 'pareto', h: value}
  if (name === 'zoned') return zonesOf([parameter ?? '', ...rest], given!)
  throw invalid(
    `random_distribution is random, zipf:THETA (above 0, at most 10), pareto:H (0 to 1) or zoned:ACCESS/SIZE:…, not ${given}`,
    {random_distribution: given},
  )
}

function blockSizesOf({bs, bssplit}: Workload, mix: NativeTarget['mix'], grammar: Grammar): NativeTarget['blockSizes'] {
  if (bs !== undefined && bssplit !== undefined) throw invalid('Give bs or bssplit, not both', {bs, bssplit})
  const parts = bssplit?.split(',') ?? String(bs ?? 4096).split(',')
  if (parts.length > 3) throw invalid('Sizes are given for reads, writes and trims: three at most', {bs, bssplit})
  const sizes: NativeTarget['blockSizes'] = {read: [], write: [], trim: []}
  for (const [index, direction] of directions.entries()) {
    // As fio: what is left out is as the one before it.
    const part = parts[Math.min(index, parts.length - 1)]!
    const list = bssplit === undefined ? [{bytes: blockBytes(part, grammar), percent: 100}] : splitOf(part, grammar)
    if (mix[direction] > 0) sizes[direction] = list
  }
  return sizes
}

/** `4k/60:64k/40`: an entry without a percentage takes its part of what the others leave, as in fio. */
function splitOf(text: string, grammar: Grammar): NativeBlockSize[] {
  const entries = text.split(':').map(entry => {
    const [size = '', percent = '', ...rest] = entry.split('/')
    if (rest.length > 0 || !/^\d*(\.\d+)?$/.test(percent)) throw badSplit(text)
    return {bytes: blockBytes(size, grammar), percent: percent === '' ? undefined : Number(percent)}
  })
  const given = entries.reduce((sum, {percent = 0}) => sum + percent, 0)
  const open = entries.filter(({percent}) => percent === undefined).length
  const share = open === 0 ? 0 : (100 - given) / open
  if (given > 100 + 1e-9 || (open === 0 && Math.abs(given - 100) > 1e-9)) throw badSplit(text)
  return entries.map(({bytes, percent = share}) => ({bytes, percent})).filter(({percent}) => percent > 0)
}

function badSplit(text: string): StorageError {
  return invalid(`bssplit is SIZE/PERCENT:SIZE/PERCENT… with percents that sum up to 100, not ${text}`, {bssplit: text})
}

function blockBytes(text: string, grammar: Grammar): number {
  const bytes = toBytes('bs', text, grammar)
  if (bytes < 512 || bytes > maxBlockBytes) throw invalid('bs is from 512 bytes to 16 MiB', {bs: bytes})
  return bytes
}

function rateOf({rate_iops, rate_process = 'linear', thinktime}: Workload): NativeTarget['rate'] {
  if (rate_iops === undefined) return {kind: 'closed'}
  if (!(rate_iops > 0 && rate_iops <= 1e8)) throw invalid('rate_iops is above 0 and at most 100,000,000', {rate_iops})
  if (thinktime !== undefined) throw invalid('thinktime is for closed loop: give it or rate_iops', {thinktime})
  return {kind: rate_process === 'poisson' ? 'poisson' : 'fixed', iops: rate_iops}
}

function thinkTimeOf({thinktime = 0, thinktime_blocks = 1}: Workload): NativeTarget['thinkTime'] {
  const us = parseTime(String(thinktime), 'us')
  if (us === undefined || us > 3600e6) throw invalid('thinktime is in microseconds, at most an hour', {thinktime})
  return {us: Math.round(us), blocks: checkInteger('thinktime_blocks', thinktime_blocks, 1, 1e9)}
}

function errorPolicyOf({continue_on_error = 'all', max_errors}: Workload): NativeTarget['onError'] {
  if (max_errors === undefined) return {kind: continue_on_error === 'all' ? 'continue' : 'stop'}
  if (continue_on_error === 'none') throw invalid('max_errors is for continue_on_error=all', {max_errors})
  return {kind: 'limit', count: checkInteger('max_errors', max_errors, 1, 1e9)}
}

function checkVerifiable(
  {verify, offset_increment}: Workload,
  mix: NativeTarget['mix'],
  {blockSizes, order}: Pick<NativeTarget, 'blockSizes' | 'order'>,
): void {
  if (mix.trim > 0 || mix.write === 0) throw invalid('verify is for jobs that write and do not trim', {verify})
  if (offset_increment !== undefined)
    throw invalid('verify divides the range among the threads: leave offset_increment out', {offset_increment})
  const sizes = sizesOf(blockSizes)
  if (sizes.size > 1) throw invalid('verify needs one block size for reads and writes', {verify, sizes: [...sizes]})
  const [bytes = 0] = sizes
  const {stepBytes: seq_step, alignBytes: blockalign} = order
  if (seq_step % bytes !== 0) throw invalid('verify needs a seq_step that is a multiple of bs', {seq_step})
  if (blockalign % bytes !== 0) throw invalid('verify needs a blockalign that is a multiple of bs', {blockalign})
}

/** @throws SIZE_INVALID; INVALID_ARGUMENT for anything but a number or text */
function toBytes(name: string, value: number | string, grammar: Grammar): number {
  if (typeof value !== 'number' && typeof value !== 'string') throw invalid(`${name} is a size`, {[name]: value})
  return grammar.size(String(value))
}

export function checkInteger(name: string, value: number, least: number, most: number): number {
  if (!Number.isInteger(value) || value < least || value > most) {
    throw invalid(`${name} is a whole number from ${least} to ${most}`, {[name]: value})
  }
  return value
}

export function invalid(message: string, info: Record<string, unknown>): StorageError {
  return new StorageError('INVALID_ARGUMENT', message, {op: 'bench.start', info})
}
