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

function distributionOf({distribution}: NativeTarget): Pick<RanJob, 'random_distribution'> {
  switch (distribution.kind) {
    case 'sequential':
      return {}
    case 'uniform':
      return {random_distribution: 'random'}
    case 'zipf':
      return {random_distribution: `zipf:${distribution.theta}`}
    case 'pareto':
      return {random_distribution: `pareto:${distribution.h}`}
  }
}
