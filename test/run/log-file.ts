import {join} from 'node:path'
import {nameOf} from './seconds.js'

/** Where the daemons of this process's test file write their log: kept and told of where the run fails. */
export function logFile(): string {
  const directory = process.env.LUNPATH_TEST_LOGS
  const file = process.env.LUNPATH_TEST_FILE
  return directory && file ? join(directory, `${nameOf(file).replaceAll('/', '-')}.log`) : '/dev/null'
}
