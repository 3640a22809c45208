// The contract suites against what this machine itself has: `npm run contract -- iet`.
export default {
  files: ['dist/test/contract/real-*.js'],
  workerThreads: false,
  concurrency: 1,
  timeout: '10m',
}
