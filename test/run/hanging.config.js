// For runner.test.ts: a run that does not end by itself.
import {observed} from './observed.js'

export default {
  ...observed,
  files: ['dist/test/run/hanging.js'],
  timeout: '10m',
}
