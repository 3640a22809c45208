// The files that take longest begin first: else the last of them runs alone.
import {recorded, slowestFirst} from './dist/test/run/seconds.js'
import {observed} from './test/run/observed.js'

export default {
  ...observed,
  files: ['dist/test/**/*.test.js'],
  concurrency: 2,
  timeout: '10m',
  sortTestFiles: slowestFirst(recorded()),
}
