import type {Operations} from './attach/operations.js'
import type {Config} from './config.js'
import type {Check} from './doctor.js'
import type {Metrics} from './metrics/registry.js'
import type {Problem} from './reconcile/plan.js'

/** What the API serves: made by daemon.ts, the only place that chooses drivers. */
export interface Service {
  version: string
  config: Config
  operations: Operations
  metrics: Metrics
  /** What the last reconciliation found and could not mend. */
  problems(): Problem[]
  doctor(): Promise<Check[]>
}
