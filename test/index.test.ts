import {execFile} from 'node:child_process'
import {promisify} from 'node:util'
import test from 'ava'

const run = promisify(execFile)

test('the package is found under its own name, and loading it starts nothing that keeps a process alive', async t => {
  const script = `import {Daemon, ApiClient, bench, TgtDriver, StorageError} from 'lunpath'
    console.log([Daemon, ApiClient, bench.start, TgtDriver, StorageError].map(thing => typeof thing).join())`
  const {stdout} = await run(process.execPath, ['--input-type=module', '-e', script], {timeout: 30_000})
  t.is(stdout.trim(), Array(5).fill('function').join())
})
