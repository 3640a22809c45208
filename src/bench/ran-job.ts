import type {NativeBlockSize, NativeDirection, NativeTarget, NativeTargetReport} from './native.js'
import type {Pattern} from './patterns.js'

/** A size in bytes, or `SIZE/PERCENT:SIZE/PERCENT` where several are drawn. */
type Sizes = number | string

/** What was done to a target, with every default in place; sizes are in bytes, times in microseconds. */
export interface RanJob {
  rw: Pattern
  /** Percent of reads, where there are reads and writes. */
  rwmixread?: number
  /** Of each direction, where they differ. */
  bs: Sizes | Partial<Record<NativeDirection, Sizes>>
  iodepth: number
  numjobs: number
  /** What really ran. */
  ioengine: NativeTargetReport['engine']
  /** O_DIRECT. Of a path alone. */
  direct?: boolean
  offset: number
  size: number
  /** Of random patterns. */
  random_distribution?: string
  norandommap?: boolean
  percentage_random?: number
  blockalign?: number
  seq_ios?: number
  rw_sequencer?: 'sequential' | 'identical'
  /** Of sequential patterns. */
  seq_step?: number
  startdelay?: number
  rate_iops?: number
  rate_process?: 'linear' | 'poisson'
  thinktime?: number
  thinktime_blocks?: number
  fsync?: number
  fdatasync?: number
  verify: NativeTarget['verify']
  continue_on_error: 'all' | 'none'
  max_errors?: number
}

export function ranJob(rw: Pattern, settled: NativeTarget, report: NativeTargetReport): RanJob {
  const {mix, device, rate, thinkTime, flushAfter, onError, iodepth, numjobs, verify} = settled
  return {
    rw,
    ...(mix.read > 0 && mix.read < 100 ? {rwmixread: mix.read} : {}),
    bs: sizesOf(settled),
    iodepth,
    numjobs,
    ioengine: report.engine,
    ...(device.kind === 'path' ? {direct: device.direct} : {}),
    offset: report.offsetBytes,
    size: report.sizeBytes,
    ...distributionOf(settled),
    ...orderOf(settled),
    ...(rate.kind === 'closed'
      ? {}
      : {rate_iops: rate.iops, rate_process: rate.kind === 'fixed' ? ('linear' as const) : rate.kind}),
    ...(thinkTime.us > 0 ? {thinktime: thinkTime.us, thinktime_blocks: thinkTime.blocks} : {}),
    ...(flushAfter.fsync > 0 ? {fsync: flushAfter.fsync} : {}),
    ...(flushAfter.fdatasync > 0 ? {fdatasync: flushAfter.fdatasync} : {}),
    verify,
    continue_on_error: onError.kind === 'stop' ? 'none' : 'all',
    ...(onError.kind === 'limit' ? {max_errors: onError.count} : {}),
  }
}

function sizesOf({blockSizes}: NativeTarget): RanJob['bs'] {
  const used = Object.entries(blockSizes).filter(([, sizes]) => sizes.length > 0)
  const words = used.map(([direction, sizes]) => [direction, wordsOf(sizes)] as const)
  const distinct = new Set(words.map(([, sizes]) => sizes))
  return distinct.size === 1 ? words[0]![1] : Object.fromEntries(words)
}

function wordsOf(sizes: NativeBlockSize[]): Sizes {
  return sizes.length === 1 ? sizes[0]!.bytes : sizes.map(({bytes, percent}) => `${bytes}/${percent}`).join(':')
}

/** Where it is not the usual one. */
function orderOf({order, startDelayMs}: NativeTarget): Partial<RanJob> {
  const {alignBytes, stepBytes, runIos, runStays, randomPercent} = order
  return {
    ...(randomPercent < 100 ? {percentage_random: randomPercent} : {}),
    ...(alignBytes > 0 ? {blockalign: alignBytes} : {}),
    ...(runIos > 1 ? {seq_ios: runIos, rw_sequencer: runStays ? ('identical' as const) : ('sequential' as const)} : {}),
    ...(stepBytes !== 0 ? {seq_step: stepBytes} : {}),
    ...(startDelayMs > 0 ? {startdelay: startDelayMs / 1000} : {}),
  }
}

function distributionOf({distribution}: NativeTarget): Pick<RanJob, 'random_distribution' | 'norandommap'> {
  switch (distribution.kind) {
    case 'sequential':
      return {}
    case 'uniform':
      return {random_distribution: 'random'}
    case 'shuffled':
      return {random_distribution: 'random', norandommap: false}
    case 'zoned':
      return {
        random_distribution: `zoned:${distribution.zones.map(({percent, fromPercent, toPercent}) => `${percent}/${toPercent - fromPercent}`).join(':')}`,
      }
    case 'zipf':
      return {random_distribution: `zipf:${distribution.theta}`}
    case 'pareto':
      return {random_distribution: `pareto:${distribution.h}`}
  }
}
