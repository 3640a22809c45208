import {existsSync} from 'node:fs'
import {mkdtemp, readdir, realpath, rm, rmdir, writeFile} from 'node:fs/promises'
import {createServer, type Server} from 'node:net'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {fileURLToPath} from 'node:url'
import test, {type ExecutionContext} from 'ava'
import {settleConfig} from '../src/config.js'
import {type Check, examine, formatChecks} from '../src/doctor.js'
import {StorageError} from '../src/errors.js'
import {run} from '../src/exec.js'
import {examineNode} from '../src/node-check.js'
import {portHolders} from '../src/port-holders.js'
import {Store} from '../src/state/store.js'
import {FileVolumeDriver} from '../src/volumes/file.js'
import {tmpfs} from './fixtures/tmpfs.js'

async function temporary(t: ExecutionContext, parent = tmpdir()): Promise<string> {
  const directory = await realpath(await mkdtemp(join(parent, 'lp-doctor-')))
  t.teardown(() => rm(directory, {recursive: true}))
  return directory
}

async function listen(t: ExecutionContext, address: string): Promise<number> {
  const server: Server = createServer()
  await new Promise<void>((resolve, reject) => server.once('error', reject).listen(0, address, resolve))
  t.teardown(() => server.close())
  return (server.address() as {port: number}).port
}

const namespaces = '/run/netns'

/** ip(8) makes the directory and mounts it on itself, and takes neither back. Other namespaces would hold it. */
async function removeNamespaces(): Promise<void> {
  await run('umount', [namespaces])
    .then(() => rmdir(namespaces))
    .catch(() => undefined)
}

function named(checks: Check[], name: string): Check {
  const found = checks.filter(check => check.name === name)
  if (found.length !== 1) throw new Error(`${found.length} checks are named ${name}`)
  return found[0]!
}

test('each check that is not ok says what to do, and those that are ok ask for nothing', async t => {
  const checks = await examine({tgtd: '/nonexistent/tgtd', pools: [{name: 'a', directory: '/proc'}]})
  for (const check of checks) {
    t.is(check.remedy === null, check.status === 'ok', check.name)
    t.true(check.found.length > 0 && check.needed.length > 0, check.name)
  }
  t.deepEqual([...new Set(checks.map(({area}) => area))], ['node', 'volumes', 'targets', 'initiators', 'compute'])
  t.is(named(checks, 'Node.js').status, 'ok')
})

test('pools: one in use, one to be made, one full of others, one that cannot be, and nothing is changed', async t => {
  const parent = await temporary(t)
  const driver = new FileVolumeDriver({pool: 'used', directory: join(parent, 'used')})
  await driver.open()
  await driver.close()
  const checks = await examine({
    pools: [
      {name: 'below', directory: join(parent, 'a', 'b', 'volumes'), madeBelow: join(parent, 'a', 'b')},
      {name: 'used', directory: join(parent, 'used')},
      {name: 'new', directory: join(parent, 'new')},
      {name: 'deep', directory: join(parent, 'no', 'such')},
      {name: 'proc', directory: '/proc'},
      {name: 'comma', directory: `${parent}/a,b/c`},
    ],
  })
  t.like(named(checks, 'pool new'), {status: 'ok', found: `${join(parent, 'new')} is not there yet and will be made`})
  t.not(named(checks, 'pool used').status, 'missing')
  t.regex(named(checks, 'pool used').found, /free$/)
  t.is(named(checks, 'pool deep').status, 'missing')
  t.is(named(checks, 'pool below').status, 'ok', 'the daemon makes its own directory')
  t.regex(named(checks, 'pool proc').found, /interface of the kernel/)
  t.is(named(checks, 'pool comma').status, 'missing')
  t.deepEqual(await readdir(parent), ['used'])
})

test('a pool in memory is a warning', async t => {
  const directory = await temporary(t, tmpfs)
  const pool = named(await examine({pools: [{name: 'memory', directory}]}), 'pool memory')
  t.is(pool.status, 'warn')
  t.regex(pool.found, /tmpfs/)
})

test('pools that pool create has made are looked at too, whether the daemon runs or not', async t => {
  const directory = await temporary(t)
  const config = settleConfig({
    daemon: {directory},
    volumes: {lvm: [{group: 'lp-configured'}]},
    compute: {uri: 'qemu+unix:///session?socket=/nonexistent/libvirt-sock'},
  })
  const pools = async () => {
    const checks = await examineNode(config)
    return checks.flatMap(({name}) => (name.startsWith('pool ') ? [name] : []))
  }
  t.deepEqual(await pools(), ['pool default', 'pool lp-configured'])
  t.deepEqual(await readdir(directory), [])
  const store = await Store.open(join(directory, 'store.db'))
  const value = {id: 'fast', driver: 'lvm', group: 'lp-made', thinPool: null, createdAt: ''} as const
  await store.write([{table: 'pools', id: 'fast', value}])
  const all = ['pool default', 'pool lp-configured', 'pool fast']
  t.deepEqual(await pools(), all)
  await store.close()
  const files = await readdir(directory)
  t.deepEqual(await pools(), all)
  t.deepEqual(await readdir(directory), files)
  await writeFile(join(directory, 'store.db'), 'no store')
  t.is(named(await examineNode(config), 'store').status, 'warn')
})

test('portals are addresses of this machine, or of the network namespace that is configured', async t => {
  const networkNamespace = `lp-doctor-${process.pid}`
  const portals = ['127.0.0.1', '10.98.7.6', '10.98.7.5'].map(address => ({address, port: 3260}))
  const found = async (more: object) => {
    const checks = await examine({targetDriver: 'lio', portals, ...more})
    return portals.map(({address}) => named(checks, `portal ${address}:3260`).status)
  }
  t.deepEqual(await found({}), ['ok', 'warn', 'warn'])
  t.deepEqual(await found({networkNamespace}), ['warn', 'warn', 'warn'])
  const hadNamespaces = existsSync(namespaces)
  await run('ip', ['netns', 'add', networkNamespace])
  t.teardown(async () => {
    await run('ip', ['netns', 'delete', networkNamespace])
    if (!hadNamespaces) await removeNamespaces()
  })
  await run('ip', ['-n', networkNamespace, 'address', 'add', '10.98.7.6/32', 'dev', 'lo'])
  t.deepEqual(await found({networkNamespace}), ['ok', 'ok', 'warn'])
  const checks = await examine({targetDriver: 'lio', portals, networkNamespace})
  t.false(checks.some(({name}) => name === 'port 3260'))
})

test('tgtd: the installed one, none, and a program that is none', async t => {
  const installed = named(await examine(), 'tgtd')
  t.is(installed.status, 'ok')
  t.regex(installed.found, /version 1\.0\.\d+$/)
  t.like(named(await examine({tgtd: '/nonexistent/tgtd'}), 'tgtd'), {status: 'missing', remedy: 'apt-get install tgt'})
  t.is(named(await examine({tgtd: '/bin/true'}), 'tgtd').status, 'warn')
  t.is(named(await examine({tgtd: '/bin/false'}), 'tgtd').status, 'missing')
})

test('the addons are what the build has made of them', async t => {
  const checks = await examine()
  for (const addon of ['file', 'tgt', 'iscsi', 'libvirt']) {
    const check = named(checks, `addon ${addon}`)
    t.is(check.status, existsSync(`build/Release/${addon}.node`) ? 'ok' : 'missing')
    if (check.status === 'missing') t.regex(check.remedy!, /npm run build$/)
  }
})

test('libvirt: what the connection says, or why there is none', async t => {
  t.false((await examine()).some(({name}) => name === 'libvirt'))
  const up = named(await examine({connect: async () => 'QEMU 7.2.0 at qemu:///system'}), 'libvirt')
  t.like(up, {status: 'ok', found: 'QEMU 7.2.0 at qemu:///system'})
  const connect = async () => {
    throw new StorageError('COMPUTE_UNAVAILABLE', 'Failed to connect socket')
  }
  t.like(named(await examine({connect}), 'libvirt'), {status: 'missing', found: 'Failed to connect socket'})
})

test("a remote hypervisor's QEMU and KVM are not looked for here", async t => {
  const names = async (libvirtUri: string) => (await examine({libvirtUri})).map(({name}) => name)
  for (const uri of ['qemu:///system', 'qemu+unix:///session?socket=/tmp/x/libvirt-sock']) {
    t.true((await names(uri)).includes('KVM'), uri)
  }
  for (const uri of ['qemu+ssh://root@host/system', 'qemu+tls://host.example/system']) {
    t.false((await names(uri)).includes('KVM'), uri)
  }
})

test('an initiator name outside the grammar is found', async t => {
  const good = named(await examine({initiatorName: 'iqn.2026-01.org.example:host1'}), 'initiator name')
  t.like(good, {status: 'ok', found: 'iqn.2026-01.org.example:host1, from the configuration'})
  t.is(named(await examine({initiatorName: 'iqn.2026-01.org.example:a,b'}), 'initiator name').status, 'missing')
})

test('who holds a port, on IPv4 and on IPv6', async t => {
  const port = await listen(t, '127.0.0.1')
  const self = {pid: process.pid, command: 'node'}
  const [holder, ...others] = await portHolders(port)
  t.is(others.length, 0)
  t.like(holder, {address: '127.0.0.1', port})
  t.is(holder?.processes.length, 1)
  t.is(holder?.processes[0]?.pid, self.pid)
  const checks = await examine({portalPort: port})
  t.is(named(checks, `port ${port}`).status, 'warn')
  t.regex(
    named(checks, `port ${port}`).found,
    new RegExp(`^127\\.0\\.0\\.1:${port} is held by .* \\(process ${process.pid}\\)$`),
  )
  t.is(named(await examine({portalPort: port, ownPids: [process.pid]}), `port ${port}`).status, 'ok')

  const port6 = await listen(t, '::1')
  t.is((await portHolders(port6))[0]?.address, '::1')
  t.regex(named(await examine({portalPort: port6}), `port ${port6}`).found, /^\[::1\]:/)
})

test('a port that nobody holds is free', async t => {
  const server = createServer()
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const {port} = server.address() as {port: number}
  await new Promise(resolve => server.close(resolve))
  t.like(named(await examine({portalPort: port}), `port ${port}`), {status: 'ok', found: 'free'})
})

test('what the kernel’s initiator lacks is missing where the host route is the default, else worth a word', async t => {
  const facts = async (route?: 'qemu' | 'host') => {
    const checks = await examine({route})
    return checks.filter(({name}) => ['open-iscsi', 'module iscsi_tcp', 'iscsid'].includes(name))
  }
  const [asUsual, asDefault] = [await facts(), await facts('host')]
  t.true(asUsual.length >= 2)
  for (const [index, {status, name, remedy}] of asDefault.entries()) {
    t.is(asUsual[index]!.status, status === 'missing' ? 'warn' : 'ok', name)
    if (status === 'missing') t.truthy(remedy, name)
  }
})

test('where things are hidden they are missing, and a listener without a process is taken for the kernel', async t => {
  const port = await listen(t, '127.0.0.1')
  const library = (await readdir('/usr/lib')).find(name => existsSync(`/usr/lib/${name}/qemu/block-iscsi.so`))
  const hidden = [
    '/usr/sbin/tgtd',
    `/usr/bin/${qemuName()}`,
    '/usr/bin/fallocate',
    `/usr/lib/${library}/qemu/block-iscsi.so`,
  ]
  for (const path of hidden) t.true(existsSync(path), path)
  const script = `
    for path in "$@"; do mount --bind /dev/null "$path" || exit 9; done
    mount -t tmpfs lunpath-test /usr/lib/${library}/qemu || exit 9
    mount -t tmpfs lunpath-test /dev || exit 9
    exec "$NODE" "$SCRIPT" "$PORT"`
  const {stdout} = await run(
    'unshare',
    ['--mount', '--propagation', 'private', '--pid', '--fork', '--mount-proc', 'sh', '-c', script, 'sh', ...hidden],
    {
      env: {
        NODE: process.execPath,
        SCRIPT: fileURLToPath(new URL('./examine-in-namespace.js', import.meta.url)),
        PORT: String(port),
      },
    },
  )
  const checks = JSON.parse(stdout) as Check[]
  const status = (name: string) => named(checks, name).status
  t.is(status('tgtd'), 'missing')
  t.is(status('QEMU'), 'missing')
  t.is(status('fallocate'), 'warn')
  t.is(status("QEMU's iSCSI driver"), 'warn')
  t.like(named(checks, 'KVM'), {status: 'warn', found: '/dev/kvm does not open: ENOENT'})
  t.regex(named(checks, `port ${port}`).found, /held by no process that shows here: by the kernel's own target/)
  t.regex(named(checks, "the system's tgtd").found, /^no tgtd runs/)
})

function qemuName(): string {
  return `qemu-system-${{x64: 'x86_64', arm64: 'aarch64'}[process.arch as string] ?? process.arch}`
}

test('formatChecks shows what is needed and what to do under each that is not ok', t => {
  const checks: Check[] = [
    {area: 'node', name: 'Node.js', status: 'ok', found: 'v20.20.2', needed: 'v20.19', remedy: null},
    {
      area: 'targets',
      name: 'tgtd',
      status: 'missing',
      found: 'not there',
      needed: 'tgtd',
      remedy: 'apt-get install tgt',
    },
  ]
  t.is(
    formatChecks(checks),
    [
      'ok       node: Node.js  v20.20.2',
      'MISSING  targets: tgtd  not there',
      '         needed: tgtd',
      '         do: apt-get install tgt',
      '1 ok, 0 to look at, 1 missing',
      '',
    ].join('\n'),
  )
  t.is(formatChecks([]), '0 ok, 0 to look at, 0 missing\n')
})
