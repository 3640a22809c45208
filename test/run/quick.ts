// Which test files need no machine, no virtual machine and no service of their own: told by what they import, directly or
// through other modules of the tests.
import {existsSync, readdirSync, readFileSync} from 'node:fs'
import {dirname, join, resolve} from 'node:path'
import {packageRoot} from '../../src/native.js'
import {recorded} from './seconds.js'

/** Modules with which a test starts one of those. */
export const heavy = ['test/lab/lab', 'test/lab/vm', 'src/sandbox/libvirtd', 'src/sandbox/guest', 'test/fixtures/node']
/** Rooms whose tests go through the whole path. */
const heavyRooms = ['e2e/', 'setup']

/**
 * Of what is left, files that took longer than this when they were last recorded are no quick ones: they compile, wait, or
 * measure, or they start the demo by the command line, which no import shows.
 */
const longestSeconds = 6

/** The compiled files of the quick tests. */
export function quickFiles(): string[] {
  const top = join(packageRoot(), 'dist', 'test')
  const files = readdirSync(top, {recursive: true, encoding: 'utf8'}).filter(name => name.endsWith('.test.js'))
  const isHeavy = new HeavyModules()
  const seconds = recorded()
  return files
    .filter(name => !heavyRooms.some(room => name.startsWith(room)) && !isHeavy.needs(join(top, name)))
    .filter(name => (seconds[name.slice(0, -'.test.js'.length)] ?? 0) <= longestSeconds)
    .sort()
    .map(name => join('dist', 'test', name))
}

class HeavyModules {
  readonly #known = new Map<string, boolean>()
  readonly #heavy = new Set(heavy.map(name => join(packageRoot(), 'dist', `${name}.js`)))

  needs(file: string): boolean {
    if (this.#heavy.has(file)) return true
    const known = this.#known.get(file)
    if (known !== undefined) return known
    // Modules that import each other end here.
    this.#known.set(file, false)
    const needs = importsOf(file).some(imported => this.needs(imported))
    this.#known.set(file, needs)
    return needs
  }
}

function importsOf(file: string): string[] {
  // What src imports of itself says nothing of what a test starts.
  if (!existsSync(file) || !file.includes('/dist/test/')) return []
  const names = readFileSync(file, 'utf8').matchAll(/(?:from|import\(?)\s*['"](\.[^'"]+)['"]/g)
  return [...names].map(([, name]) => resolve(dirname(file), name!))
}
