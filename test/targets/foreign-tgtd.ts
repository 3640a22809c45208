import {type ChildProcess, execFile, spawn} from 'node:child_process'
import {once} from 'node:events'
import {open} from 'node:fs/promises'
import {join} from 'node:path'
import {promisify} from 'node:util'
import type {ExecutionContext} from 'ava'
import {request, TgtControl} from '../../src/targets/tgt-control.js'
import {until} from '../contract/targets.js'

const run = promisify(execFile)

export interface ForeignTgtd {
  socketPath: string
  /** Runs tgtadm against it. */
  tgtadm: (...args: string[]) => Promise<{stdout: string}>
  child: ChildProcess
  exited: Promise<unknown>
}

/** A tgtd that is not the driver's, on a private control socket; its one portal is a free port of loopback. */
export async function startForeignTgtd(t: ExecutionContext, directory: string): Promise<ForeignTgtd> {
  const prefix = join(directory, 'foreign')
  const env = {PATH: `${process.env.PATH}:/usr/sbin`, LC_ALL: 'C', TGT_IPC_SOCKET: prefix}
  const log = await open(join(directory, 'foreign.log'), 'a')
  const tgtd = ['tgtd', '-f', '-C', '3', '-t', '1', '--iscsi', 'portal=127.0.0.1:0']
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', ...tgtd], {env, stdio: ['ignore', log.fd, log.fd]})
  const exited = once(child, 'exit')
  await log.close()
  t.teardown(async () => {
    child.kill('SIGKILL')
    await exited
  })
  const socketPath = `${prefix}.3`
  const control = new TgtControl(socketPath)
  await until(async () => {
    const {failure, pid} = await control.run([[request.showPortals()]], {timeoutMs: 1_000})
    return failure === undefined && pid === child.pid
  })
  await control.close()
  return {
    socketPath,
    tgtadm: (...args) => run('tgtadm', ['-C', '3', '--lld', 'iscsi', ...args], {env}),
    child,
    exited,
  }
}
