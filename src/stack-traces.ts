import {readFileSync} from 'node:fs'
import {SourceMap} from 'node:module'
import {dirname, join} from 'node:path'
import {fileURLToPath} from 'node:url'

/** By a compiled file's path; undefined for a file that has no map. */
const maps = new Map<string, SourceMap | undefined>()

/**
 * Makes the stack traces of this process name the lines of our sources instead of those of compiled files and bundles. Node's
 * --enable-source-maps does the same, but reads the maps of all files while it loads them; here a map is read when a stack is.
 */
export function nameSources(): void {
  Error.prepareStackTrace = (error, sites) =>
    [headOf(error), ...sites.map(site => `    at ${inWords(site)}`)].join('\n')
}

/** An error's own toString may throw, and then the trace must still be there. */
function headOf(error: Error): string {
  try {
    return Error.prototype.toString.call(error)
  } catch {
    return 'Error'
  }
}

function inWords(site: NodeJS.CallSite): string {
  const words = String(site)
  const [name, line, column] = [site.getFileName(), site.getLineNumber(), site.getColumnNumber()]
  // An ES module goes by its address and a CommonJS module by its path; Node's own and code from a string have neither.
  if (!name || !/^(file:|\/)/.test(name) || line === null || column === null) return words
  const file = name.startsWith('/') ? name : fileURLToPath(name)
  const origin = mapOf(file)?.findOrigin(line, column)
  if (origin === undefined || !('fileName' in origin)) return words
  const source = join(dirname(file), origin.fileName)
  return words.replace(`${name}:${line}:${column}`, () => `${source}:${origin.lineNumber}:${origin.columnNumber}`)
}

function mapOf(file: string): SourceMap | undefined {
  if (maps.has(file)) return maps.get(file)
  let map: SourceMap | undefined
  try {
    map = new SourceMap(JSON.parse(readFileSync(`${file}.map`, 'utf8')))
  } catch {
    // A trace without our lines is better than none.
  }
  maps.set(file, map)
  return map
}
