// The contract suites against what this machine itself has: `npm run contract -- iet`.
import {observed} from '../run/observed.js'

export default {
  ...observed,
  files: ['dist/test/contract/real-*.js'],
  concurrency: 1,
  timeout: '10m',
}
