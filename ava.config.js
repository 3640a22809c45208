// The files that take longest begin first: else the last of them runs alone. What a file does is waiting for a part of the
// time, so that more of them run than the two processors that they are made for.
import {recorded, slowestFirst} from './dist/test/run/seconds.js'
import {observed} from './test/run/observed.js'

export default {
  ...observed,
  files: ['dist/test/**/*.test.js'],
  concurrency: 3,
  timeout: '10m',
  sortTestFiles: slowestFirst(recorded()),
}
