import type {Operations} from './attach/operations.js'
import type {RunningBenches} from './bench/running.js'
import type {Config} from './config.js'
import type {Check} from './doctor.js'
import type {Metrics} from './metrics/registry.js'
import type {Problem} from './reconcile/plan.js'
import type {BenchResults} from './state/bench-results.js'
import type {PoolCapacity} from './volumes/driver.js'

/** A pool to be made in LVM. */
export interface NewPool {
  /** Default: the group's name. */
  name?: string
  group: string
  /** Empty: the group exists and is taken as it is. */
  devices: string[]
  thin?: boolean
  thinBytes?: number
}

/** What has become of a pool in LVM. */
export interface DeletedPool {
  pool: string
  group: string
  /** False: the group was there before lunpath, and stays as it is. */
  groupRemoved: boolean
}

/** What the API serves: made by daemon.ts, the only place that chooses drivers. */
export interface Service {
  version: string
  config: Config
  operations: Operations
  metrics: Metrics
  /** Benchmarks that are on. */
  benches: RunningBenches
  /** What is kept of those that are over. */
  benchResults: BenchResults
  /** What the last look found and could not mend. */
  problems(): Problem[]
  /**
   * False until pools, targets and exports are in place: till then only the status is answered. From then on what is new can be
   * asked for, while operations of before the start may still go on.
   */
  isOpen(): boolean
  /** Operations of before the start, and others that stood, that are being resumed now. */
  resuming(): ReadonlySet<string>
  createPool(asked: NewPool): Promise<PoolCapacity>
  deletePool(pool: string): Promise<DeletedPool>
  doctor(): Promise<Check[]>
}
