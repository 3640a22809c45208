// The files that take longest begin first: else the last of them runs alone. How long each took when they were last recorded
// (`npm test -- --record`) is in test/seconds.json; one that is not there may take long.
import {readFileSync} from 'node:fs'

const top = new URL('./dist/test/', import.meta.url).pathname
const seconds = JSON.parse(readFileSync(new URL('./test/seconds.json', import.meta.url), 'utf8'))
const rank = file => seconds[file.slice(top.length, -'.test.js'.length)] ?? Number.POSITIVE_INFINITY

export default {
  files: ['dist/test/**/*.test.js'],
  workerThreads: false,
  concurrency: 2,
  timeout: '10m',
  require: ['./test/run/note-times.js'],
  sortTestFiles: (a, b) => (rank(a) === rank(b) ? a.localeCompare(b) : rank(b) - rank(a)),
}
