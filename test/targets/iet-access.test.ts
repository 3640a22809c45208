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
