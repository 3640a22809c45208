import type {NativeLogin} from '../iscsi-login.js'
import type {LunIdentity} from '../types.js'

// What crosses between JS and the addon. native/bench/job_from_js.cc and report_to_js.cc are the other side of it. All is
// settled here: the addon has no defaults and checks only what the device alone can tell (its size, its identity).

export type NativeDirection = 'read' | 'write' | 'trim'

/** `auto`: io_uring where the kernel lets us, else libaio, else pread; at iodepth 1 whichever of io_uring and pread costs less. */
export type NativePathEngine = 'auto' | 'io_uring' | 'libaio' | 'pread'
/**
 * Both log in through libiscsi. `iscsi` then reads and writes by PDUs of its own; a job that trims gets `libiscsi` in its place, with the
 * reason, and so does a target whose login negotiated what `iscsi` does not do.
 */
export type NativeIscsiEngine = 'iscsi' | 'libiscsi'
export type NativeEngine = NativePathEngine | NativeIscsiEngine | 'null'

/** What is measured, and how it is opened. */
export type NativeDevice =
  | {
      kind: 'path'
      engine: NativePathEngine
      /** A block device or a regular file. Opened once for all threads of the target, for writing only where the job writes. */
      path: string
      /** O_DIRECT. */
      direct: boolean
      /** O_SYNC or O_DSYNC. */
      sync: 'none' | 'sync' | 'dsync'
      /**
       * O_EXCL for a block device, flock(2) for a file: EBUSY where it is in use. Held until the run is over and its last I/O
       * is answered, even if that is later than the report.
       */
      exclusive: boolean
      /** st_rdev of the block device (0 for a file) and st_dev and st_ino of the file that must be what is opened; -1: anything. */
      expectedRdev: number
      expectedDev: number
      expectedIno: number
    }
  | {kind: 'iscsi'; engine: NativeIscsiEngine; login: NativeLogin}
  | {
      kind: 'null'
      engine: 'null'
      /** What it claims to have. */
      sizeBytes: number
    }

/** One size of I/Os and how often it is drawn. The percents of a list sum up to 100. */
export interface NativeBlockSize {
  bytes: number
  percent: number
}

export type NativeDistribution =
  | {kind: 'sequential'}
  | {kind: 'uniform'}
  /** Each block once before any comes again, in an order that looks drawn. One block size for all directions. */
  | {kind: 'shuffled'}
  /** theta > 0, not 1 only by convention: any value above 0 works. Ranks are scattered over the range. */
  | {kind: 'zipf'; theta: number}
  /** 0 < h < 1, as fio's pareto: of the accesses, 1 - h go to the share h of the blocks. */
  | {kind: 'pareto'; h: number}
  /** Uniform within each zone of the range; the percents sum up to 100, and the zones lie one after another. */
  | {kind: 'zoned'; zones: {percent: number; fromPercent: number; toPercent: number}[]}

/** Where I/Os go, beside their distribution. */
export interface NativeOrder {
  /** Random offsets are multiples of it; 0: of the smallest block size of the direction. */
  alignBytes: number
  /** Of sequential I/O: from the end of one to the begin of the next. Negative: backwards. */
  stepBytes: number
  /** Of random I/O: of so many the last one is drawn; the others follow the one before, or repeat it where `runStays`. */
  runIos: number
  runStays: boolean
  /** Of those that are drawn so many percent are; the others follow the one before, too. */
  randomPercent: number
}

export type NativeRate =
  /** `iodepth` I/Os in flight on each thread, always. */
  | {kind: 'closed'}
  /** Arrivals a second on all threads of the target together, whatever the device does; at most `iodepth` in flight a thread. */
  | {kind: 'fixed'; iops: number}
  | {kind: 'poisson'; iops: number}

export type NativeErrorPolicy = {kind: 'stop'} | {kind: 'continue'} | {kind: 'limit'; count: number}

/** One LUN, device or file, and what is done to it. */
export interface NativeTarget {
  /** Names it in samples and in the report. */
  name: string
  device: NativeDevice
  /** Percent of I/Os of each direction; they sum up to 100. */
  mix: Record<NativeDirection, number>
  distribution: NativeDistribution
  order: NativeOrder
  /** Of each direction that the mix has; empty for the others. */
  blockSizes: Record<NativeDirection, NativeBlockSize[]>
  /** In flight on each thread. */
  iodepth: number
  /** Threads, each with `iodepth` I/Os. */
  numjobs: number
  offsetBytes: number
  /** 0: to the device's end. */
  sizeBytes: number
  /** Percents of the device, in place of the bytes where they are not 0. */
  offsetPercent: number
  sizePercent: number
  /** Its ramp and its runtime begin so much after those of the job. */
  startDelayMs: number
  /** By so much the range of each thread begins after that of the one before it. */
  offsetIncrementBytes: number
  /**
   * After so many bytes, percents of its range or I/Os a thread ends, whichever comes first, the ramp not counted. 0: none.
   */
  stop: {bytes: number; percent: number; ios: number}
  /**
   * After so many writes of a thread a flush follows, before its next I/O and beside those that are in flight; 0: none.
   * `fdatasync` leaves out the metadata of a file; over iSCSI both are SYNCHRONIZE CACHE (10). Where both are due, fsync is done.
   */
  flushAfter: {fsync: number; fdatasync: number}
  rate: NativeRate
  /** A pause of `us` microseconds after each `blocks` I/Os of a thread, in closed loop; us 0: none. */
  thinkTime: {us: number; blocks: number}
  /**
   * `crc32c`: every write carries its offset, generation and seed under a checksum; reads of what the run has written are
   * checked, and what it has written is read back after the runtime. One block size for all directions, no trim;
   * the range is divided among the threads.
   */
  verify: 'none' | 'crc32c'
  onError: NativeErrorPolicy
  /** What the device must be; '' or 0: anything. WWID and serial are checked over iSCSI only. */
  expectedWwid: string
  expectedSerial: string
  expectedSizeBytes: number
}

/** A run: all targets begin and end together. */
export interface NativeJob {
  targets: NativeTarget[]
  runtimeMs: number
  /** Before the runtime, not in the report. */
  rampMs: number
  /** Without any completion on a thread that has I/Os in flight for so long, the device counts as stuck. */
  stuckMs: number
  /** At least 100. */
  sampleMs: number
  /** Each thread derives its own from it. */
  seed: bigint
  /** What the table of blocks may take on each thread that verifies; a run that fills it fails with ENOMEM. 0: no limit. */
  verifyTableBytes: number
}

/**
 * Latencies in nanoseconds, kept in buckets: what is reported is within 0.39 % of the true value. Merging is exact, so
 * that several runs can be reported as one. What took longer than 100 s is counted in `overflow`, and in the maximum.
 */
export interface Histogram {
  record(ns: number): void
  merge(other: Histogram): void
  /** Nearest rank; 0 < percent <= 100. 0 where nothing was recorded. */
  percentile(percent: number): number
  /** All that it holds, as plain JSON; `new Histogram(saved)` gives an equal one. */
  save(): HistogramData
  readonly count: number
  readonly overflow: number
  readonly minNs: number
  readonly maxNs: number
  readonly meanNs: number
}

export interface HistogramData {
  overflow: number
  sumNs: number
  minNs: number
  maxNs: number
  /** Pairs of a bucket's middle in nanoseconds (what percentile() gives) and its count, ascending, empty ones left out. */
  buckets: number[]
}

/** I/Os of one direction that were answered without an error. */
export interface NativeDirectionFigures {
  ios: number
  bytes: number
  /** Answered in part, and the rest asked for again. */
  shortIos: number
  /** Submitted to completed. */
  service: Histogram
  /** Intended start to completed: the headline. The same as `service` in closed loop. */
  response: Histogram
}

/** Flushes that were answered without an error. They are no I/Os of a direction. */
export interface NativeFlushFigures {
  count: number
  /** Submitted to completed. */
  service: Histogram
  /** From the moment at which it was due. The same as `service` in closed loop. */
  response: Histogram
}

export interface NativeErrorCount {
  direction: NativeDirection | 'flush'
  /** An errno's name, or SCSI_SENSE, SCSI_STATUS. */
  code: string
  /** The errno; for SCSI_SENSE sense key << 16 | ASC << 8 | ASCQ. */
  number: number
  count: number
  /** Offsets in bytes of the first 16; none of flushes, which are of all. */
  firstOffsets: number[]
}

export interface NativeFigures {
  /** Those that the mix has. */
  directions: Partial<Record<NativeDirection, NativeDirectionFigures>>
  /** Where the job flushes. */
  flush?: NativeFlushFigures
  /** I/Os and flushes answered with an error; they are in no direction's figures. */
  errors: number
}

export interface NativeSample {
  /** Since the run's first I/O, the ramp included. */
  fromNs: number
  toNs: number
  /** `verify`: reading back after the runtime. */
  phase: 'ramp' | 'run' | 'verify'
  /** In the job's order. */
  targets: NativeFigures[]
  total: NativeFigures
}

/** What open loop has to say about itself; zeros in closed loop. */
export interface NativeOpenLoop {
  /** Arrivals that were due within the runtime. */
  arrivals: number
  /** Most arrivals of one thread that were due and not submitted, since all of its `iodepth` were in flight. */
  maxBacklog: number
  /**
   * Arrivals that were due when the runtime was over and never submitted. Beyond some 260,000 of a Poisson process on a
   * thread, the expected number.
   */
  unsubmitted: number
  /** Longest delay between an intended start and its submission while an I/O could have been submitted. */
  maxGeneratorLagNs: number
  /** Arrivals submitted more than 1 ms late although an I/O could have been submitted. */
  lateArrivals: number
  /** More than 1 % of arrivals were such: the figures are of the generator, not of the device. */
  generatorBehind: boolean
}

export interface NativeVerify {
  /** Blocks that were read and compared. */
  verified: number
  failures: number
  /** The first 16. */
  firstFailures: {
    offset: number
    expectedGeneration: number
    /** Which field was wrong: magic, checksum, offset, generation or seed. */
    reason: 'magic' | 'checksum' | 'offset' | 'generation' | 'seed'
  }[]
}

/** CPU time in nanoseconds between first submission and end of the runtime (the ramp left out). */
export interface NativeCpu {
  /** The run's own threads. */
  threadsNs: number
  /** io-wq threads (iou-wrk-*) that the kernel ran for them. */
  ioWorkersNs: number
  /** The whole process. */
  processNs: number
  /** The whole machine: kernel threads, and everything else that ran; 10 ms steps. */
  machineNs: number
}

export interface NativeTargetReport extends NativeFigures {
  name: string
  state: NativeState
  /** What really ran. */
  engine: Exclude<NativeEngine, 'auto'>
  /**
   * io_uring's that were accepted: single_issuer, defer_taskrun, coop_taskrun, registered_ring, registered_file,
   * registered_buffers; `direct` with O_DIRECT; `probed` where a probe chose the engine, `unprobed` where its reads failed
   * or were not answered in a second.
   */
  engineFlags: string[]
  /** Where the engine is not the first choice: why (`io_uring_setup: EPERM`, `discards go through libiscsi`). */
  fallbackReason: string
  /** Empty strings for a path or null; sizeBytes and blockSizeBytes always. */
  device: LunIdentity
  /** Of the run; of a target with a `stop` that was reached: to its own last completion. */
  elapsedNs: number
  /** The range that was used, by all threads together. */
  offsetBytes: number
  sizeBytes: number
  errorCounts: NativeErrorCount[]
  /** I/Os in flight when the run ended. */
  unanswered: number
  openLoop: NativeOpenLoop
  verify: NativeVerify
  /** Closed loop: mean number of I/Os in flight as Little's law has it (throughput × mean latency); 0 in open loop. */
  littleInFlight: number
  /** The last failure of an I/O or of the device. */
  lastError: (Error & {code: string; errno: number}) | null
}

/**
 * `finished`: the runtime is over and every I/O was answered. `cancelled`. `device-lost`: the session ended or the device
 * is gone. `stuck`: I/Os stayed without an answer for `stuckMs`. `failed`: `onError` ended it. Of a run: the worst of its
 * targets, in the order finished, cancelled, failed, stuck, device-lost; one that is not finished ends all.
 */
export type NativeState = 'finished' | 'cancelled' | 'device-lost' | 'stuck' | 'failed'

export interface NativeReport {
  state: NativeState
  clock: 'tsc' | 'monotonic'
  /** The ramp left out: begin of the runtime to the last completion within it. */
  elapsedNs: number
  /** Call of the constructor to the first completion; 0 where there was none. */
  startToFirstCompletionNs: number
  targets: NativeTargetReport[]
  total: NativeFigures
  cpu: NativeCpu
}

/**
 * Both addons have it: `bench` without the engines over iSCSI, `iscsi` with all. Histograms of both can be merged.
 */
export interface BenchAddon {
  Histogram: new (saved?: HistogramData) => Histogram
  /** Starts at once. onEnd is called once, last: with an error where nothing was measured, else with the report. */
  BenchRun: new (
    job: NativeJob,
    onSample: (sample: NativeSample) => void,
    onEnd: (error: (Error & {code: string; errno?: number}) | null, report: NativeReport | null) => void,
  ) => {cancel(): void}
  /** When the first `count` I/Os of an open loop on one thread are due, in nanoseconds since the begin. */
  arrivals(rate: Exclude<NativeRate, {kind: 'closed'}>, seed: bigint, count: number): Float64Array
  /** How many I/Os an open loop of `ns` nanoseconds reports as `unsubmitted` where it could submit none. */
  unsubmitted(rate: Exclude<NativeRate, {kind: 'closed'}>, seed: bigint, ns: number): number
}
