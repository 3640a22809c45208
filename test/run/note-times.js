// Loaded into the process of each test file (ava.config.js): says which it is, and notes when it begins and when it ends, for
// test/run/main.ts.
import {appendFileSync} from 'node:fs'
import test from 'ava'

// By this what the file starts names its logs (log-file.ts).
process.env.LUNPATH_TEST_FILE = test.meta.file
const notes = process.env.LUNPATH_TEST_TIMES
if (notes) {
  const note = (event, ms) => {
    const line = {event, file: test.meta.file, ms: Math.round(ms)}
    appendFileSync(notes, `${JSON.stringify(line)}\n`)
  }
  note('begins', performance.timeOrigin)
  process.on('exit', () => note('ends', performance.timeOrigin + performance.now()))
}
