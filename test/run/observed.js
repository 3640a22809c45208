// What every configuration of ava's has here, so that its run is told of file by file (observe.ts).
import {fileURLToPath} from 'node:url'
import {observeRun} from '../../dist/test/run/observe.js'

export const observed = {
  workerThreads: false,
  require: [fileURLToPath(new URL('name-file.js', import.meta.url))],
  // ava may change this way to its events: it then refuses the configuration, or runner.test.ts fails.
  nonSemVerExperiments: {observeRunsFromConfig: true},
  observeRun,
}
