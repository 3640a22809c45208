import {open, stat, truncate, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import anyTest, {type ExecutionContext, type TestFn} from 'ava'
import type {BenchResult} from '../../src/bench/result.js'
import {lunpath, start, until} from '../fixtures/cli.js'
import {Host, LogLines, Node} from '../fixtures/node.js'

/** Every command as a user types it, against a real daemon, tgtd, libvirtd and guest. */
const test = anyTest.serial as TestFn

let host: Host
let node: Node
const log = new LogLines()
test.before(async () => {
  host = await Host.start()
  node = await Node.make({compute: {uri: host.libvirtd.uri}})
  await node.start({logTo: log})
})
test.after.always(async () => {
  await node?.stop()
  await host?.stop()
})

const run = (args: string[], input?: string) => lunpath(['--socket', node.socket, ...args], {input})

/** The answer of a command that works, for people. */
async function says(t: ExecutionContext, args: string[]): Promise<string> {
  const {exitCode, stdout, stderr} = await run(args)
  t.is(exitCode, 0, `${args.join(' ')}: ${stderr}`)
  t.is(stderr, '', args.join(' '))
  return stdout
}

/** The one JSON document that a command with --json prints, and nothing beside it. */
async function json<T>(t: ExecutionContext, args: string[], input?: string): Promise<T> {
  const {exitCode, stdout, stderr} = await run([...args, '--json'], input)
  t.is(exitCode, 0, `${args.join(' ')}: ${stdout}${stderr}`)
  t.is(stderr, '', args.join(' '))
  return JSON.parse(stdout) as T
}

/** A command that is refused: its exit code, its words on standard error, and the same as JSON with the code. */
async function refused(
  t: ExecutionContext,
  args: string[],
  exitCode: number,
  code: string,
  message: RegExp,
): Promise<void> {
  const plain = await run(args)
  t.is(plain.exitCode, exitCode, `${args.join(' ')}: ${plain.stderr}`)
  t.is(plain.stdout, '', args.join(' '))
  t.regex(plain.stderr, message, args.join(' '))
  t.true(plain.stderr.includes(code))
  const asJson = await run([...args, '--json'])
  t.is(asJson.exitCode, exitCode)
  t.is(asJson.stderr, '')
  const {error} = JSON.parse(asJson.stdout) as {error: {code: string; message: string}}
  t.is(error.code, code)
  t.regex(error.message, message)
}

interface Volume {
  id: string
  name: string | null
  sizeBytes: number
  path: string
  domain: string | null
  iqn: string | null
}
interface Attached {
  volume: Volume | null
  export: {iqn: string} | null
  disk: {target: string; serial: string; alias: string}
}

test('01 volume create, list, show: sizes as people write them, ids and names', async t => {
  t.is(await says(t, ['volume', 'list']), 'No volumes. Make one with: lunpath volume create --size 2GiB\n')
  t.regex(
    await says(t, ['volume', 'create', '--size', '2GiB', '--name', 'db1']),
    /^[0-9a-f]{16} {2}2 GiB {2}\/.*\.img\n$/,
  )
  const made = await json<Volume>(t, ['volume', 'create', '--size', '512MB', '--preallocate'])
  t.is(made.sizeBytes, 512_000_000)
  t.true((await stat(made.path)).blocks * 512 >= made.sizeBytes)
  const table = await says(t, ['volume', 'list'])
  t.regex(table, /^ID +NAME +SIZE +POOL +DRIVER +KIND +DOMAIN +EXPORT\n/)
  t.regex(table, /db1 +2 GiB +default +file +sparse +- +-\n/)
  t.regex(table, /- +488\.3 MiB +default +file +preallocated +- +-\n/)
  t.is((await json<Volume[]>(t, ['volume', 'list'])).length, 2)
  t.regex(await says(t, ['volume', 'show', 'db1']), /^size +2 GiB \(2147483648 bytes\)$/m)
  t.is((await json<Volume>(t, ['volume', 'show', made.id])).sizeBytes, made.sizeBytes)
  t.is(await says(t, ['volume', 'delete', made.id]), `deleted ${made.id}\n`)
})

test('02 volume extend, clone, delete, and pool show', async t => {
  t.regex(await says(t, ['volume', 'extend', 'db1', '--size', '3GiB']), /3 GiB/)
  await refused(t, ['volume', 'extend', 'db1', '--size', '1GiB'], 2, 'SIZE_INVALID', /never shrinks/)
  await says(t, ['volume', 'create', '--size', '64MiB', '--name', 'small'])
  const copy = await json<Volume>(t, ['volume', 'clone', 'small', '--name', 'copy', '--size', '1GiB'])
  t.like(await json<Volume>(t, ['volume', 'show', 'copy']), {id: copy.id, sizeBytes: 2 ** 30})
  t.regex(
    await says(t, ['pool', 'show']),
    /^POOL +DRIVER +TOTAL +FREE +PROVISIONED +LIMIT +THIN DATA +THIN METADATA\ndefault +file .* 4\.1 GiB /,
  )
  t.is((await json<{provisionedBytes: number}>(t, ['pool', 'show'])).provisionedBytes, 4160 * 2 ** 20)
  t.regex(await says(t, ['pool', 'list']), /^POOL .*\ndefault +file .*\n$/)
  await refused(t, ['pool', 'show', 'nosuch'], 3, 'NOT_FOUND', /there are default/)
  await refused(t, ['volume', 'create', '--size', '1MiB', '--pool', 'nosuch'], 3, 'NOT_FOUND', /there are default/)
  t.is((await json<Volume>(t, ['volume', 'delete', 'copy'])).id, copy.id)
  await says(t, ['volume', 'delete', 'small'])
})

test('03 volume import takes a file that stays when the volume is deleted', async t => {
  const file = join(node.directory, 'mine.img')
  await writeFile(file, '')
  await truncate(file, 2 ** 20)
  const imported = await json<Volume>(t, ['volume', 'import', file, '--name', 'mine'])
  t.regex(await says(t, ['volume', 'list']), /mine +1 MiB +- +imported +imported/)
  await refused(t, ['volume', 'extend', 'mine', '--size', '2MiB'], 4, 'VOLUME_IMPORTED', /never resizes/)
  await says(t, ['volume', 'delete', imported.id])
  t.is((await stat(file)).size, 2 ** 20)
})

test('04 export create, list, delete, discover and session list', async t => {
  t.is(await says(t, ['export', 'list']), 'No exports. Make one with: lunpath export create --size 2GiB\n')
  const [first] = (await says(t, ['export', 'create', '--volume', 'db1'])).split('\n')
  const iqn = first!.split(' ')[0]!
  t.is(first, `${iqn}  LUN 1  ${node.portal}`)
  const other = await json<Attached>(t, [
    'export',
    'create',
    '--size',
    '1MiB',
    '--name',
    'other',
    '--allow',
    '10.0.0.0/8',
    'iqn.2004-10.com.example:host',
    '--read-only',
  ])
  const table = await says(t, ['export', 'list'])
  t.regex(table, /^VOLUME +IQN +LUN +IOTYPE +PORTALS +ALLOWED +CHAP\n/)
  t.regex(table, /10\.0\.0\.0\/8,iqn\.2004-10\.com\.example:host +no\n/)
  t.regex(await says(t, ['discover', node.portal]), new RegExp(`${node.portal},1 +${iqn}`))
  t.true((await json<{iqn: string}[]>(t, ['discover', node.portal])).some(found => found.iqn === iqn))
  t.is(await says(t, ['session', 'list']), 'No sessions.\n')
  t.deepEqual(await json(t, ['session', 'list']), [])
  await refused(t, ['export', 'create', '--volume', 'db1'], 4, 'EXPORT_EXISTS', /exported already/)
  await refused(t, ['volume', 'delete', 'db1'], 4, 'VOLUME_IN_USE', /First run: lunpath export delete/)
  t.is(await says(t, ['export', 'delete', iqn]), `deleted ${iqn}\n`)
  await json(t, ['export', 'delete', 'other'])
  await says(t, ['volume', 'delete', other.volume!.id])
})

test('05 domain list and disks, attach and detach by volume, size and device', async t => {
  t.regex(await says(t, ['domain', 'list']), /^ID +NAME +STATE +UUID\n1 +vm +running +\S+\n$/)
  t.is(await says(t, ['domain', 'disks', 'vm']), 'vm has no disks.\n')
  t.is(await says(t, ['attachment', 'list']), 'No attachments. Make one with: lunpath attach DOMAIN --size 2GiB\n')

  const db1 = await json<Volume>(t, ['volume', 'show', 'db1'])
  const [first, second] = (await says(t, ['attach', 'vm', 'vdc', '--volume', 'db1'])).split('\n')
  t.is(first, `vm: vdc  serial ${db1.id}  (ua-lunpath-${db1.id})`)
  t.is(second, `Take it back with: lunpath detach ${db1.id}`)
  t.is((await host.guest.waitForDisk(db1.id)).sizeBytes, 3 * 2 ** 30)
  t.regex(await says(t, ['session', 'list']), /^TARGET +INITIATOR +SID +ADDRESS +STATE\n.* +127\.0\.0\.1 +logged-in\n$/)
  t.regex(
    await says(t, ['domain', 'disks', 'vm']),
    new RegExp(`vdc +virtio +${db1.id} +yes +no +iscsi://${node.portal}/`),
  )

  const sized = await json<Attached>(t, ['attach', 'vm', '--size', '8MiB', '--name', 'sized', '--bus', 'scsi'])
  t.is(sized.disk.target, 'sda')
  await host.guest.waitForDisk(sized.volume!.id)

  const image = join(node.directory, 'plain.img')
  await writeFile(image, '')
  await truncate(image, 2 * 2 ** 20)
  const device = await json<Attached>(t, ['attach', 'vm', '--device', image])
  t.deepEqual([device.volume, device.export, device.disk.target], [null, null, 'vda'])
  t.is((await host.guest.waitForDisk(device.disk.serial)).sizeBytes, 2 * 2 ** 20)

  const table = await says(t, ['attachment', 'list'])
  t.regex(table, /^ID +DOMAIN +TARGET +BUS +STATE +PERSISTENT +SOURCE\n/)
  t.is(table.match(/ attached /g)!.length, 3)
  await refused(t, ['attach', 'vm', '--volume', 'db1'], 4, 'ATTACHMENT_EXISTS', /attached already/)
  await refused(t, ['attach', 'vm', 'vdc', '--size', '1MiB'], 4, 'DISK_TARGET_IN_USE', /vdc/)
  await refused(t, ['export', 'delete', 'db1'], 4, 'TARGET_IN_USE', /First run: lunpath detach/)

  t.is(await says(t, ['detach', 'vm', 'vdc']), 'detached vm vdc\n')
  t.is(await says(t, ['detach', device.disk.serial]), `detached ${device.disk.serial}\n`)
  await json(t, ['detach', 'sized', '--timeout', '30'])
  t.deepEqual(await json(t, ['attachment', 'list']), [])
  t.deepEqual((await json<Volume[]>(t, ['volume', 'list'])).map(({name}) => name).sort(), ['db1', 'sized'])
  t.deepEqual(await json(t, ['export', 'list']), [])
  t.is((await stat(image)).size, 2 * 2 ** 20)
  await says(t, ['volume', 'delete', 'sized'])
})

test('06 a persistent disk is in the definition too, and leaves both', async t => {
  const {disk} = await json<Attached>(t, ['attach', 'vm', '--volume', 'db1', '--persistent'])
  t.regex(await says(t, ['domain', 'disks', 'vm']), new RegExp(`${disk.target} +virtio +${disk.serial} +yes +yes`))
  t.regex(await says(t, ['attachment', 'list']), / attached +yes /)
  await says(t, ['detach', 'db1'])
  t.is(await says(t, ['domain', 'disks', 'vm']), 'vm has no disks.\n')
})

test('07 CHAP from a file and from standard input; the secret is seen nowhere', async t => {
  const secrets = ['aVerySecretSecret1', 'anotherSecretWord2', 'aThirdSecretWord33']
  const file = join(node.directory, 'chap')
  await writeFile(file, `user=guest\nsecret=${secrets[0]}\ntarget-user=storage\ntarget-secret=${secrets[1]}\n`, {
    mode: 0o600,
  })
  const before = JSON.stringify(await run(['attachment', 'list']))
  t.false(secrets.some(secret => before.includes(secret)))

  // Read while the command runs, so that its own argument list counts as well.
  const attaching = start([
    '--socket',
    node.socket,
    '--json',
    'attach',
    'vm',
    '--size',
    '4MiB',
    '--name',
    'chap1',
    '--chap-file',
    file,
  ])
  const commandLines: string[] = []
  const watch = setInterval(() => void commandLinesOfAll().then(found => commandLines.push(...found)), 20)
  const {exitCode, stdout, stderr} = await attaching.ended
  t.is(exitCode, 0, stdout + stderr)
  const first = JSON.parse(stdout) as Attached
  await host.guest.waitForDisk(first.disk.serial)
  const second = await json<Attached>(
    t,
    ['attach', 'vm', '--size', '4MiB', '--name', 'chap2', '--chap-file', '-'],
    `user=guest2\nsecret=${secrets[2]}\n`,
  )
  await host.guest.waitForDisk(second.disk.serial)
  await host.guest.write(second.disk.serial, 0, Buffer.from('written through CHAP'.padEnd(512, '.')))
  t.regex(await says(t, ['export', 'list']), / yes\n/)
  await json(t, ['bench', 'chap1', '--runtime', '0.2'])
  clearInterval(watch)
  commandLines.push(...(await commandLinesOfAll()))

  const answers: unknown[] = [stdout, stderr, second]
  for (const path of [
    '/volumes',
    '/exports',
    '/attachments',
    '/sessions',
    '/targets',
    '/domains',
    '/domains/vm/disks',
    '/status',
    '/doctor',
  ])
    answers.push(await node.api.call('GET', path))
  const metrics = await fetch(`http://127.0.0.1:${node.metricsPort}/metrics`)
  answers.push(await metrics.text())

  const wrong = await run(
    ['attach', 'vm', '--size', '4MiB', '--chap-file', '-', '--json'],
    `user=guest\nsecret=${secrets[0]} with blanks\n`,
  )
  t.is(wrong.exitCode, 2)
  t.regex(wrong.stdout, /secret must be 12 to 128 printable characters/)
  const strange = await run(['attach', 'vm', '--size', '4MiB', '--chap-file', '-'], `password: ${secrets[0]}\n`)
  t.is(strange.exitCode, 2)
  t.regex(strange.stderr, /has a line that is none of user=/)
  answers.push(wrong, strange)

  for (const name of ['chap1', 'chap2']) {
    answers.push(await json(t, ['detach', name]), await json(t, ['volume', 'delete', name]))
  }
  t.is(node.store.secrets.size, 0)
  const everything = {
    'the answers': JSON.stringify(answers),
    'the log': log.lines.join(''),
    'a command line': commandLines.join('\n'),
  }
  t.true(everything['the log'].includes('compute.attach'))
  t.true(everything['a command line'].includes('--chap-file'))
  for (const [where, text] of Object.entries(everything))
    t.deepEqual(
      secrets.filter(secret => text.includes(secret)),
      [],
      `a secret is in ${where}`,
    )
})

async function commandLinesOfAll(): Promise<string[]> {
  const {readdir, readFile} = await import('node:fs/promises')
  const pids = (await readdir('/proc')).filter(name => /^\d+$/.test(name))
  const lines = await Promise.all(pids.map(pid => readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')))
  return lines.map(line => line.replaceAll('\0', ' '))
}

test('08 bench reads the exported volume; Ctrl-C ends it and logs out', async t => {
  await says(t, ['export', 'create', '--volume', 'db1'])
  t.regex(
    await says(t, ['bench', 'db1', '--bs', '4KiB', '--iodepth', '4', '--runtime', '0.3', '--seed', '7']),
    /IOPS \d+ .*\n.*latency p50 /,
  )
  const report = await json<BenchResult>(t, ['bench', 'db1', '--rw', 'read', '--bs', '64KiB', '--runtime', '0.3'])
  t.like(report, {schema: 2, kind: 'run', state: 'finished'})
  t.like(report.targets[0], {workload: {rw: 'read', bs: '64KiB'}, errors: 0, target: {volume: 'db1', driver: 'tgt'}})
  const {sizeBytes} = report.targets[0]!.device
  t.deepEqual(report.targets[0]!.job, {
    ...{rw: 'read', bs: 65_536, iodepth: 32, numjobs: 1, ioengine: 'iscsi', offset: 0, size: sizeBytes},
    ...{verify: 'none', continue_on_error: 'all'},
  })
  await refused(t, ['bench', 'nothing'], 3, 'VOLUME_NOT_FOUND', /There is no volume/)

  const running = start(['--socket', node.socket, 'bench', 'db1', '--runtime', '60'])
  await until('the benchmark is logged in', async () => (await node.api.call<unknown[]>('GET', '/sessions')).length > 0)
  running.child.kill('SIGINT')
  const {exitCode, stdout, stderr} = await running.ended
  t.deepEqual([exitCode, stdout], [130, ''], stderr)
  t.regex(stderr, /Cancelled: the daemon ends the benchmark/)
  t.notRegex(stderr, /undoes/)
  await until('its session is gone', async () => (await node.api.call<unknown[]>('GET', '/sessions')).length === 0)
  await says(t, ['export', 'delete', 'db1'])
})

test('09 Ctrl-C in the middle of a clone leaves nothing, and the source can be used at once', async t => {
  const {path} = await json<Volume>(t, ['volume', 'create', '--size', '768MiB', '--name', 'large'])
  const file = await open(path, 'r+')
  const chunk = Buffer.alloc(2 ** 20, 0xa5)
  for (let position = 0; position < 768; position++) await file.write(chunk, 0, chunk.length, position * 2 ** 20)
  await file.close()
  const before = await node.poolFiles()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    const cloning = start([
      '--socket',
      node.socket,
      'volume',
      'clone',
      'large',
      '--name',
      'copy',
      ...(signal === 'SIGTERM' ? ['--json'] : []),
    ])
    await until('the copy has begun', async () => (await node.poolFiles()).length > before.length)
    cloning.child.kill(signal)
    const {exitCode, stdout, stderr} = await cloning.ended
    t.is(exitCode, 130, `${stdout}${stderr}`)
    t.regex(stdout + stderr, /Cancelled: the daemon undoes what it had begun/)
    await until('the copy is gone', async () => {
      const {unfinished} = await node.api.call<{unfinished: unknown[]}>('GET', '/status')
      return unfinished.length === 0 && (await node.poolFiles()).length === before.length
    })
    t.deepEqual(await node.poolFiles(), before)
    t.deepEqual((await json<Volume[]>(t, ['volume', 'list'])).map(({name}) => name).sort(), ['db1', 'large'])
  }
  await says(t, ['volume', 'delete', 'large'])
})

test('10 status and doctor', async t => {
  t.regex(await says(t, ['status']), new RegExp(`^portals +${node.portal}$`, 'm'))
  t.like(await json(t, ['status']), {pid: process.pid, unfinished: [], problems: []})
  const config = join(node.directory, 'doctor.toml')
  await writeFile(config, `daemon.directory = "${node.directory}"\ncompute.uri = "${host.libvirtd.uri}"\n`)
  const examined = await lunpath(['doctor', '--config', config])
  t.is(examined.exitCode, 0, examined.stdout + examined.stderr)
  t.regex(examined.stdout, /ok +compute: libvirt .* answers, 1 domains/)
  const asJson = await lunpath(['--json', 'doctor', '--config', config])
  t.true((JSON.parse(asJson.stdout) as {name: string}[]).some(({name}) => name === 'tgtd'))
  await writeFile(
    config,
    `daemon.directory = "/proc/nothing/here"\ncompute.uri = "qemu+unix:///session?socket=/nonexistent"\n`,
  )
  const missing = await lunpath(['doctor', '--config', config])
  t.is(missing.exitCode, 5)
  t.regex(missing.stdout, /MISSING {2}compute: libvirt/)
})

test('11 each exit code, and words that say what to do', async t => {
  await refused(t, ['volume', 'create', '--size', '2XB'], 2, 'SIZE_INVALID', /as 2GiB or 512MB/)
  await refused(t, ['volume', 'create', '--size', '0'], 2, 'SIZE_INVALID', /positive/)
  await refused(t, ['volume', 'create'], 2, 'INVALID_ARGUMENT', /--size.* See: lunpath volume create --help/)
  await refused(
    t,
    ['volume', 'nonsense'],
    2,
    'INVALID_ARGUMENT',
    /unknown command 'nonsense'\. See: lunpath volume --help/,
  )
  await refused(
    t,
    ['volume', 'list', '--nonsense'],
    2,
    'INVALID_ARGUMENT',
    /unknown option '--nonsense'\. See: lunpath volume list --help/,
  )
  await refused(
    t,
    ['export', 'create', '--volume', 'db1', '--allow', 'everybody'],
    2,
    'INVALID_ARGUMENT',
    /--allow.*expected ALL/,
  )
  await refused(t, ['attach', 'vm'], 2, 'INVALID_ARGUMENT', /Give exactly one of --volume, --size, --device$/m)
  await refused(
    t,
    ['attach', 'vm', '--size', '1MiB', '--volume', 'db1'],
    2,
    'INVALID_ARGUMENT',
    /not --volume and --size/,
  )
  await refused(t, ['attach', 'vm', '--size', '1MiB', '--bus', 'ide'], 2, 'INVALID_ARGUMENT', /virtio, scsi/)
  await refused(
    t,
    ['attach', 'vm', '--size', '1MiB', '--chap-file', '/nonexistent'],
    2,
    'INVALID_ARGUMENT',
    /cannot be read/,
  )
  await refused(t, ['bench', 'db1', '--runtime', 'soon'], 2, 'INVALID_ARGUMENT', /positive number of seconds/)
  await refused(t, ['volume', 'show', 'nothing'], 3, 'VOLUME_NOT_FOUND', /There is no volume "nothing"/)
  await refused(t, ['export', 'delete', 'nothing'], 3, 'EXPORT_NOT_FOUND', /There is no export/)
  await refused(t, ['detach', 'vm', 'vdz'], 3, 'ATTACHMENT_NOT_FOUND', /see lunpath attachment list/)
  await refused(t, ['domain', 'disks', 'nothing'], 3, 'DOMAIN_NOT_FOUND', /nothing/)
  await refused(t, ['attach', 'nothing', '--size', '1MiB'], 3, 'DOMAIN_NOT_FOUND', /nothing/)
  await refused(t, ['bench', 'db1'], 3, 'EXPORT_NOT_FOUND', /run lunpath export create --volume/)
  await refused(t, ['discover', '127.0.0.1:1'], 1, 'INITIATOR_FAILED', /Connection refused/)
  t.deepEqual(await json(t, ['attachment', 'list']), [])
})

test('12 a guest that keeps its disk: exit code 6, the attachment shows as detaching, and the same command ends it', async t => {
  await json(t, ['attach', 'vm', '--volume', 'db1'])
  await host.guest.waitForDisk((await json<Volume>(t, ['volume', 'show', 'db1'])).id)
  await host.libvirtd.connection.suspend('vm')
  try {
    const {exitCode, stderr} = await run(['detach', 'db1', '--timeout', '0.5'])
    t.is(exitCode, 6, stderr)
    t.regex(stderr, /DETACH_PENDING/)
    t.regex(await says(t, ['attachment', 'list']), / detaching /)
    t.regex(await says(t, ['status']), /^unfinished: detach of /m)
  } finally {
    await host.libvirtd.connection.resume('vm')
  }
  await until('the detach has ended, by itself or by being asked again', async () => {
    const {exitCode} = await run(['detach', 'db1', '--timeout', '20'])
    return exitCode === 0 || exitCode === 3
  })
  t.deepEqual(await json(t, ['attachment', 'list']), [])
})
