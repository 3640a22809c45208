import {access, readdir, readFile} from 'node:fs/promises'
import {dirname, join} from 'node:path'
import test from 'ava'
import {LibvirtDriver} from '../src/compute/libvirt.js'
import {configSchema} from '../src/config.js'
import {run} from '../src/exec.js'
import {OpenIscsiInitiator} from '../src/initiators/open-iscsi.js'
import {registerBenchMetrics} from '../src/metrics/bench.js'
import {registerDiskMetrics} from '../src/metrics/disks.js'
import {registerInitiatorMetrics} from '../src/metrics/initiator.js'
import {registerNodeMetrics} from '../src/metrics/node.js'
import {Metrics} from '../src/metrics/registry.js'
import {registerTargetMetrics} from '../src/metrics/targets.js'
import {TgtDriver} from '../src/targets/tgt.js'
import {targetContract, titlesWithLogin} from './contract/targets.js'
import {everyCommand} from './fixtures/cli.js'

/** What the documents name is there, and what is there they name. */

async function documents(): Promise<string[]> {
  const inDocs = (await readdir('docs')).filter(name => name.endsWith('.md')).map(name => join('docs', name))
  return ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', ...inDocs]
}

/** GitHub's anchor of a heading. */
function anchor(heading: string): string {
  return heading
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N} _-]/gu, '')
    .replaceAll(' ', '-')
}

test('relative links lead to files that exist, and to headings that they have', async t => {
  let links = 0
  for (const document of await documents()) {
    const text = await readFile(document, 'utf8')
    for (const [, target] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target!)) continue
      links++
      const [path, heading] = target!.split('#')
      const file = path === '' ? document : join(dirname(document), path!)
      await t.notThrowsAsync(access(file), `${document}: ${target}`)
      if (heading === undefined) continue
      const headings = [...(await readFile(file, 'utf8')).matchAll(/^#+ (.*)$/gm)].map(match => anchor(match[1]!))
      t.true(headings.includes(heading), `${document}: ${target}`)
    }
  }
  t.true(links > 10)
})

test('paths of this repository that the documents name exist', async t => {
  for (const document of await documents()) {
    const text = await readFile(document, 'utf8')
    for (const [path] of text.matchAll(/(?<![\w/.])(?:src|test|bench|native|scripts)\/[\w./-]*\w/g)) {
      await t.notThrowsAsync(access(path), `${document}: ${path}`)
    }
  }
})

test('docs/benchmarking.md has every bench, and the program that runs them starts', async t => {
  const {stdout} = await run(process.execPath, ['dist/bench/run.js', '--help'])
  const names = /^ {2}NAME +(.*)$/m.exec(stdout)![1]!.split(', ').sort()
  const text = await readFile('docs/benchmarking.md', 'utf8')
  const [, table] = text.split('against others: `npm run bench`\n')
  t.deepEqual([...table!.matchAll(/^\| `(\w+)` \|/gm)].map(([, name]) => name!).sort(), names)
})

interface Schema {
  properties?: Record<string, Schema>
  default?: unknown
}

test('docs/operating.md has every key of the configuration with its default', async t => {
  const text = await readFile('docs/operating.md', 'utf8')
  const keys: string[] = []
  for (const [section, {properties}] of Object.entries((configSchema as Schema).properties!)) {
    for (const [name, {default: value}] of Object.entries(properties!)) {
      const key = `${section}.${name}`
      keys.push(key)
      const row = text.split('\n').find(line => line.startsWith(`| \`${key}\` |`))
      t.truthy(row, key)
      if (value === undefined) continue
      const shown = row!.split('|')[2]!.trim()
      t.is(shown, `\`${typeof value === 'string' ? value : JSON.stringify(value)}\``, key)
    }
  }
  const named = [...text.matchAll(/^\| `((?:daemon|volumes|targets|iet|initiator|compute|metrics)\.\w+)` \|/gm)]
  t.deepEqual(named.map(match => match[1]).sort(), keys.sort())
})

test('docs/metrics.md has every family of /metrics with its type and labels', async t => {
  const text = await readFile('docs/metrics.md', 'utf8')
  const {registry} = new Metrics()
  registerTargetMetrics(registry, new TgtDriver({managed: false, socketPath: '/nonexistent', portals: []}), () => true)
  const attachments = {observed: async () => [], unobserved: () => []}
  registerDiskMetrics(registry, new LibvirtDriver({uri: 'qemu:///system'}), attachments)
  registerInitiatorMetrics(registry, new OpenIscsiInitiator())
  registerBenchMetrics(registry, {list: () => [], ended: new Map()})
  registerNodeMetrics(registry, {volumes: {capacities: async () => []}, unfinished: () => [], problems: () => []})
  const families = registry.getMetricsAsArray() as unknown as {name: string; type: string; labelNames: string[]}[]
  for (const {name, type, labelNames} of families) {
    t.true(text.includes(`\`${name}\``), name)
    if (/^(process|nodejs)_/.test(name)) continue
    const [, , shownType, shownLabels] =
      text
        .split('\n')
        .find(line => line.startsWith(`| \`${name}\` |`))
        ?.split('|') ?? []
    t.is(shownType?.trim(), type, name)
    const labels = labelNames.filter(label => label !== 'target' || !name.startsWith('iscsi_'))
    t.is(shownLabels?.trim(), labels.join(', '), name)
  }
  const exported = new Set(families.map(({name}) => name))
  for (const [, name] of text.matchAll(/^\| `(\w+)` \| (?:gauge|counter|histogram)/gm))
    t.true(exported.has(name!), `${name} is documented and not there`)
})

test('docs/adding-a-driver.md has the tests that need a data path', async t => {
  targetContract('any', {
    test: () => undefined,
    makeDriver: () => Promise.reject(new Error('it runs nothing')),
    freePortal: () => Promise.reject(new Error('it runs nothing')),
  })
  const text = await readFile('docs/adding-a-driver.md', 'utf8')
  const section = text.slice(text.indexOf('## IET without IET'), text.indexOf('## The steps'))
  const listed = [...section.matchAll(/^- (.*)$/gm)].map(match => match[1])
  t.deepEqual(listed, [...titlesWithLogin])
})

test('the README has every command, and no other', async t => {
  const table = [...(await readFile('README.md', 'utf8')).matchAll(/^\| (`lunpath .*?) \|/gm)].map(match => match[1]!)
  const named = table.flatMap(cell =>
    [...cell.matchAll(/`(?:lunpath )?([a-z ]+?)(?: [A-Z[].*?)?`/g)].map(match => match[1]!),
  )
  t.deepEqual([...new Set(named)].sort(), everyCommand.map(words => words.join(' ')).sort())
})
