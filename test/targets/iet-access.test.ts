import {execFileSync} from 'node:child_process'
import {mkdtemp, readFile, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import test from 'ava'
import {IetAccess} from '../../src/targets/iet-access.js'

test('rules that somebody has taken out of initiators.allow are written again, and what is others’ stays', async t => {
  const directory = await mkdtemp(join(tmpdir(), 'lp-allow-'))
  t.teardown(() => rm(directory, {recursive: true, force: true}))
  const file = join(directory, 'initiators.allow')
  const [one, two] = ['iqn.2026-01.io.lunpath.test:one', 'iqn.2026-01.io.lunpath.test:two']
  const access = new IetAccess([directory])
  await access.load()
  t.deepEqual(await access.mend(), [], 'without rules nothing is written')
  await access.set([
    [one, {addresses: ['192.0.2.1'], names: []}],
    [two, {addresses: ['192.0.2.2'], names: []}],
  ])
  t.deepEqual(await access.mend(), [])
  const written = await readFile(file, 'utf8')

  await writeFile(file, written.replace('192.0.2.2', 'ALL'))
  t.deepEqual(await access.mend(), [two])
  t.is(await readFile(file, 'utf8'), written)

  await writeFile(file, 'iqn.2001-04.com.example:disk ALL\n')
  t.deepEqual(await access.mend(), [one, two])
  const mended = await readFile(file, 'utf8')
  for (const part of ['192.0.2.1', '192.0.2.2', 'iqn.2001-04.com.example:disk ALL']) t.true(mended.includes(part), part)

  await rm(file)
  t.deepEqual(await access.mend(), [one, two])
  t.true((await readFile(file, 'utf8')).includes(two))
  t.deepEqual(await access.mend(), [])
})

test('a rule for a name in capitals has it folded too: ietd compares what the initiator sends', async t => {
  const directory = await mkdtemp(join(tmpdir(), 'lp-allow-'))
  t.teardown(() => rm(directory, {recursive: true, force: true}))
  const access = new IetAccess([directory])
  await access.load()
  const iqn = 'iqn.2026-01.io.lunpath.test:one'
  await access.set([[iqn, {addresses: [], names: ['iqn.1998-01.com.vmware:ESX1', 'iqn.2026-01.a:b']}]])
  const text = await readFile(join(directory, 'initiators.allow'), 'utf8')
  const line = text.split('\n').find(one => one.startsWith(`${iqn} `))
  const entries = ['iqn.1998-01.com.vmware:esx1', 'iqn.1998-01.com.vmware:ESX1', 'iqn.2026-01.a:b']
  t.is(line, `${iqn} ${entries.map(name => name.replaceAll('.', '\\.')).join(', ')}`)
  t.deepEqual((await access.look())(iqn).access, {addresses: [], names: entries})
})

test('a rule for a name with characters of regular expressions matches that name alone', async t => {
  const directory = await mkdtemp(join(tmpdir(), 'lp-allow-'))
  t.teardown(() => rm(directory, {recursive: true, force: true}))
  const access = new IetAccess([directory])
  await access.load()
  const iqn = 'iqn.2026-01.io.lunpath.test:one'
  const name = 'iqn.2001-04.com.example:a*b[c]$^d\\e_f{1}+(g|h)?'
  await access.set([[iqn, {addresses: [], names: [name]}]])
  t.deepEqual((await access.look())(iqn).access.names, [name])
  const line = (await readFile(join(directory, 'initiators.allow'), 'utf8')).split('\n')[1]!
  const [, entry = ''] = line.split(' ')
  // As ietd matches: a basic regular expression, anchored at both ends.
  const matches = (candidate: string) =>
    execFileSync('sed', ['-n', `\\%^${entry}$%p`], {input: `${candidate}\n`}).length > 0
  t.true(matches(name))
  for (const other of ['aab[c]$^d\\e_f{1}+(g|h)?', 'a*bc$^d\\e_f{1}+(g|h)?', 'a*b[c]$^de_f{1}+(g|h)?'])
    t.false(matches(`iqn.2001-04.com.example:${other}`), other)
  t.false(matches(name.replace('.', 'x')))
})

test('a line counts for its target however either is spelled, as it does for ietd', async t => {
  const directory = await mkdtemp(join(tmpdir(), 'lp-allow-'))
  t.teardown(() => rm(directory, {recursive: true, force: true}))
  await writeFile(join(directory, 'initiators.allow'), 'iqn.2001-04.com.example:Disk 192.0.2.1\nALL 198.51.100.0/24\n')
  const access = new IetAccess([directory])
  const look = await access.look()
  t.deepEqual(look('IQN.2001-04.com.example:disk').access.addresses, ['192.0.2.1'])
  t.deepEqual(look('iqn.2001-04.com.example:disk2').access.addresses, ['198.51.100.0/24'])
})
