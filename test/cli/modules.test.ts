import {spawnSync} from 'node:child_process'
import test from 'ava'
import {cliPath} from '../fixtures/cli.js'

// A hook that writes the address of each module as it is loaded (node:module, customization hooks).
const hook = `import {writeSync} from 'node:fs'
  export const load = (url, context, next) => (writeSync(2, url + '\\n'), next(url, context))`
const toUrl = (source: string) => `data:text/javascript,${encodeURIComponent(source)}`
const registers = toUrl(`import {register} from 'node:module'; register(${JSON.stringify(toUrl(hook))})`)

/** Each package that a command has loaded a module of. */
function packagesOf(args: string[]): string[] {
  const {stderr} = spawnSync(process.execPath, ['--import', registers, cliPath, ...args], {encoding: 'utf8'})
  const names = [...stderr.matchAll(/^file:.*\/node_modules\/((?:@[^/]+\/)?[^/]+)\/.*$/gm)].map(([, name]) => name!)
  return [...new Set(names)]
}

// Scripts run a command per volume: one that loads the daemon's libraries takes twice the time.
for (const args of [['--version'], ['volume', 'list'], ['attach', '--help'], ['bench', 'list']]) {
  test(`lunpath ${args.join(' ')} loads no library but that of its command line`, t => {
    t.deepEqual(packagesOf(['--socket', '/nonexistent/lunpath.sock', ...args]), ['commander'])
  })
}
