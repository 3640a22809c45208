// For runner.test.ts: a run that does not end by itself.
export default {
  files: ['dist/test/run/hanging.js'],
  workerThreads: false,
  timeout: '10m',
  require: ['./test/run/note-times.js'],
}
