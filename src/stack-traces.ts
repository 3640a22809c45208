import {readFileSync} from 'node:fs'
import {SourceMap} from 'node:module'
import {dirname, join} from 'node:path'
import {fileURLToPath} from 'node:url'

/** By a compiled file's address; undefined for a file that has no map. */
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
  const [url, line, column] = [site.getFileName(), site.getLineNumber(), site.getColumnNumber()]
  if (!url?.startsWith('file:') || line === null || column === null) return words
  const origin = mapOf(url)?.findOrigin(line, column)
  if (origin === undefined || !('fileName' in origin)) return words
  const source = join(dirname(fileURLToPath(url)), origin.fileName)
  return words.replace(`${url}:${line}:${column}`, () => `${source}:${origin.lineNumber}:${origin.columnNumber}`)
}

function mapOf(url: string): SourceMap | undefined {
  if (maps.has(url)) return maps.get(url)
  let map: SourceMap | undefined
  try {
    map = new SourceMap(JSON.parse(readFileSync(`${fileURLToPath(url)}.map`, 'utf8')))
  } catch {
    // A trace without our lines is better than none.
  }
  maps.set(url, map)
  return map
}
