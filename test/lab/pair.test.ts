import {setTimeout as sleep} from 'node:timers/promises'
import test from 'ava'
import type {Export} from '../../src/types.js'
import {lab} from './lab.js'
import {LabError} from './vm.js'

const roles = new URL('pair-roles.js', import.meta.url)
const modules = ['iscsi_target_mod', 'target_core_file']

test.serial('1. two machines have names, addresses and disks of their own', async t => {
  const {machines} = await lab.pair(t, [{disksBytes: [2 ** 20]}, {}])
  for (const [i, machine] of machines.entries()) {
    t.like(await machine.call(roles, 'names'), {
      host: `lab-${i + 1}`,
      initiator: `InitiatorName=iqn.2026-01.io.lunpath.lab:lab-${i + 1}`,
    })
    const {stdout} = await machine.run('ip', ['-brief', 'address', 'show', 'dev', 'cable0'])
    t.regex(stdout, new RegExp(`^cable0 .* ${machine.address}/24 `))
    const disks = await machine.run('sh', ['-c', 'cat /sys/block/*/serial | grep -c lab-disk'], {accept: [0, 1]})
    t.is(disks.stdout, i === 0 ? '1\n' : '0\n')
  }
  const [first, second] = machines
  const failure = await t.throwsAsync(second.run('ls', ['/nowhere']), {message: /^lab-2: ls exited with status 2/})
  t.is((failure as NodeJS.ErrnoException).code, 'COMMAND_FAILED')
  await first.close()
  await t.throwsAsync(first.run('true'), {instanceOf: LabError})
})

test.serial('2. frames are delayed and lost as the cable says', async t => {
  const {machines, cable} = await lab.pair(t)
  const [first, second] = machines
  const asked = async () => {
    const args = ['arping', '-c', '4', '-w', '10', '-I', 'cable0', second.address]
    const {stdout} = await first.run('busybox', args, {accept: [0, 1], timeoutMs: 20_000})
    return stdout
  }
  cable.delayMs = 200
  for (const [, ms] of (await asked()).matchAll(/ ([\d.]+)ms/g)) t.true(Number(ms) >= 400, `${ms} ms`)
  cable.delayMs = 0
  cable.loss = 1
  t.regex(await asked(), /Received 0 /)
  cable.loss = 0
  t.regex(await asked(), /Received 4 /)
})

test.serial('3. a disk of LIO over the cable, which is cut for 3 s under I/O, has what was written', async t => {
  const {machines, cable} = await lab.pair(t, [{modules}, {}])
  const [storage, host] = machines
  const portal = {address: storage.address, port: 3260}
  const exported = await storage.call<Export>(roles, 'exportUnit', portal)
  const path = await host.call<string>(roles, 'connectUnit', exported, portal)

  cable.delayMs = 10
  const writing = host.call<string>(roles, 'writeAll', path)
  while ((await host.call<number>(roles, 'progress')) === 0) await sleep(10)
  cable.cut()
  // What was answered before the cut arrives by now.
  await sleep(500)
  const stuck = await host.call<number>(roles, 'progress')
  await sleep(2500)
  t.is(await host.call<number>(roles, 'progress'), stuck)
  cable.mend()
  cable.delayMs = 0
  const hash = await writing
  t.is(await host.call(roles, 'diskHash', path), hash)
  t.is(await storage.call(roles, 'unitHash'), hash)
})
