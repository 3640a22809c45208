// Tests with known outcomes, most of them bad, for the lab's own test.
export default {
  files: ['dist/test/lab/outcomes.js'],
  workerThreads: false,
  timeout: '4m',
}
