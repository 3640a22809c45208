import {StorageError} from '../src/errors.js'
import {run} from '../src/exec.js'

/** Run where the file system below the given path is frozen: writes the error of a child that waits for it as JSON. */
try {
  await run('touch', [process.argv[2]!], {timeoutMs: 500})
} catch (error) {
  if (!(error instanceof StorageError)) throw error
  process.stdout.write(JSON.stringify({code: error.code, message: error.message, info: error.info}))
}
