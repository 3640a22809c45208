import {execFile, spawn} from 'node:child_process'
import {once} from 'node:events'
import {open} from 'node:fs/promises'
import {join} from 'node:path'
import {promisify} from 'node:util'
import test, {type ExecutionContext} from 'ava'
import {freePort} from '../../src/sandbox/ports.js'
import {TgtDriver} from '../../src/targets/tgt.js'
import {TgtControl} from '../../src/targets/tgt-control.js'
import type {Portal} from '../../src/types.js'
import {targetContract, until} from '../contract/targets.js'

const run = promisify(execFile)

const freePortal = async (address: string): Promise<Portal> => ({address, port: await freePort(address)})

/** A tgtd that is not the driver's, on a private control socket and without a public portal. */
async function startForeignTgtd(t: ExecutionContext, directory: string) {
  const prefix = join(directory, 'foreign')
  const env = {PATH: `${process.env.PATH}:/usr/sbin`, LC_ALL: 'C', TGT_IPC_SOCKET: prefix}
  const log = await open(join(directory, 'foreign.log'), 'a')
  const child = spawn(
    'setpriv',
    ['--pdeathsig', 'KILL', '--', 'tgtd', '-f', '-C', '3', '-t', '1', '--iscsi', 'portal=127.0.0.1:0'],
    {env, stdio: ['ignore', log.fd, log.fd]},
  )
  const exited = once(child, 'exit')
  await log.close()
  t.teardown(async () => {
    child.kill('SIGKILL')
    await exited
  })
  const socketPath = `${prefix}.3`
  const control = new TgtControl(socketPath)
  await until(async () => !(await control.run([[]], {timeoutMs: 100})).failure && (await answers(control)))
  await control.close()
  const tgtadm = (...args: string[]) => run('tgtadm', ['-C', '3', '--lld', 'iscsi', ...args], {env})
  return {socketPath, tgtadm, child, exited}
}

async function answers(control: TgtControl): Promise<boolean> {
  const {failure} = await control.run([[{mode: 3, op: 2}]], {timeoutMs: 1_000})
  return failure === undefined
}

targetContract('a tgtd of our own', {
  test,
  freePortal,
  makeDriver: async (t, {directory, portals}) => {
    const driver = new TgtDriver({managed: true, directory: join(directory, 'tgt'), portals, dieWithParent: true})
    t.teardown(() => driver.close())
    await driver.open()
    return {driver}
  },
})

targetContract('a tgtd of others', {
  test,
  freePortal,
  makeDriver: async (t, {directory, portals}) => {
    const {socketPath, tgtadm} = await startForeignTgtd(t, directory)
    const driver = new TgtDriver({managed: false, socketPath, portals})
    t.teardown(() => driver.close())
    await driver.open()
    return {
      driver,
      makeForeign: async ({iqn, path}) => {
        // The very number that the driver would take next.
        await tgtadm('--mode', 'target', '--op', 'new', '--tid', '1', '-T', iqn)
        await tgtadm('--mode', 'logicalunit', '--op', 'new', '--tid', '1', '--lun', '1', '-b', path)
        await tgtadm('--mode', 'target', '--op', 'bind', '--tid', '1', '-I', 'ALL')
      },
    }
  },
})
