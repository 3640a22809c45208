import {type ChildProcess, spawn} from 'node:child_process'
import {once} from 'node:events'
import {closeSync, openSync} from 'node:fs'
import {mkdir, readdir, writeFile} from 'node:fs/promises'
import {basename} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {run} from '../../src/exec.js'
import {iscsidListens, multipathdListens} from '../../src/initiators/iscsiadm.js'

/** The lab's own name as an initiator. */
export const initiatorName = 'iqn.2025-01.test.lunpath:initiator'

/** A program of the system that a test starts and ends, without an init. It writes to /tmp/NAME.log. */
export interface SystemDaemon {
  start(): Promise<void>
  kill(signal: 'SIGKILL' | 'SIGSTOP' | 'SIGCONT'): void
  /** SIGKILL, and its end. */
  stop(): Promise<void>
}

function systemDaemon(file: string, args: string[], ready: () => Promise<boolean>): SystemDaemon {
  let child: ChildProcess | undefined
  let ended: Promise<unknown> | undefined
  return {
    async start() {
      const log = openSync(`/tmp/${basename(file)}.log`, 'a')
      child = spawn(file, args, {stdio: ['ignore', log, log]})
      closeSync(log)
      ended = once(child, 'exit')
      for (let waited = 0; !(await ready()); waited++) {
        if (child.exitCode !== null || waited > 600) throw new Error(`${file} did not start: ${child.exitCode}`)
        await sleep(50)
      }
    },
    kill: signal => child?.kill(signal),
    async stop() {
      child?.kill('SIGKILL')
      await ended
      child = undefined
    },
  }
}

/** The kernel's initiator with iscsid, which has to be started. */
export async function prepareInitiator(): Promise<SystemDaemon> {
  await run('modprobe', ['-a', 'iscsi_tcp', 'sd_mod'])
  await mkdir('/run/lock/iscsi', {recursive: true})
  await mkdir('/etc/iscsi', {recursive: true})
  await writeFile('/etc/iscsi/initiatorname.iscsi', 'InitiatorName=iqn.2025-01.test.lunpath:lab\n')
  return systemDaemon('iscsid', ['-f'], iscsidListens)
}

/** systemd-udevd, which makes /dev/disk/by-id. */
export function udevd(): SystemDaemon {
  const answers = () =>
    run('udevadm', ['control', '--ping'], {timeoutMs: 2_000}).then(
      () => true,
      () => false,
    )
  return systemDaemon('/lib/systemd/systemd-udevd', [], answers)
}

/** multipathd, which joins any two paths to one unit. Needs udevd. */
export async function multipathd(): Promise<SystemDaemon> {
  await run('modprobe', ['-a', 'dm-multipath'])
  await writeFile('/etc/multipath.conf', 'defaults {\n  find_multipaths yes\n  polling_interval 1\n}\n')
  return systemDaemon('multipathd', ['-d'], multipathdListens)
}

/** The sessions that the kernel has, by their directories in sysfs. */
export async function sessionDirectories(): Promise<string[]> {
  return readdir('/sys/class/iscsi_session').catch(() => [])
}

/** The names of all disks with a SCSI device below. */
export async function scsiDisks(): Promise<string[]> {
  return (await readdir('/sys/block')).filter(name => name.startsWith('sd')).sort()
}
