// For runner.test.ts: one file that passes and one that does not.
import {observed} from './observed.js'

export default {
  ...observed,
  files: ['dist/test/run/passes.js', 'dist/test/run/fails.js'],
  concurrency: 1,
}
