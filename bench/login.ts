import {performance} from 'node:perf_hooks'
import {run} from '../src/exec.js'
import {OpenIscsiInitiator} from '../src/initiators/open-iscsi.js'
import {makeLun} from '../test/fixtures/lun-by-hand.js'
import {startTgtd} from '../test/fixtures/tgtd-by-hand.js'
import {initiatorName, prepareInitiator, scsiDisks, udevd} from '../test/lab/initiator.js'
import {makeStorageNetwork} from '../test/lab/storage-network.js'
import {type Comparison, countExecve} from './measure.js'

/**
 * Login to a disk that can be opened, against `iscsiadm -m node -o new`, `--login` and `udevadm settle`, with
 * systemd-udevd running for both and one tgtd in a network of its own. Ours proves the disk's identity too. A sample is
 * the milliseconds of one login; the logout, and udev's work after it, are not measured.
 */
export async function loginComparison(release: (cleanup: () => Promise<void>) => void): Promise<Comparison> {
  const network = await makeStorageNetwork()
  release(() => network.remove())
  const iscsid = await prepareInitiator()
  await iscsid.start()
  release(() => iscsid.stop())
  const udev = udevd()
  await udev.start()
  release(() => udev.stop())
  const tgtd = await startTgtd({...network, port: 3260})
  release(() => tgtd.stop())
  const unit = await makeLun(tgtd, 1)
  release(() => unit.remove())
  const initiator = new OpenIscsiInitiator()
  await initiator.open()
  release(() => initiator.close())

  const {iqn, wwid, serial, sizeBytes} = unit
  const portal = {address: network.addresses[0]!, port: tgtd.port}
  const settle = () => run('udevadm', ['settle'], {timeoutMs: 120_000})
  const logout = async () => {
    await initiator.disconnect(iqn)
    await settle()
  }
  const timed = async (login: () => Promise<unknown>) => {
    const began = performance.now()
    await login()
    const took = performance.now() - began
    if ((await scsiDisks()).length !== 1) throw new Error('The login has not given one disk')
    await logout()
    return took
  }
  const ours = () =>
    initiator.connect({iqn, lun: 1, portals: [portal], initiatorName, expected: {wwid, serial, sizeBytes}})
  const other = async () => {
    const node = ['-m', 'node', '-T', iqn, '-p', `${portal.address}:${portal.port}`]
    await run('iscsiadm', [...node, '-o', 'new'])
    await run('iscsiadm', [...node, '--login'])
    await settle()
  }
  return {
    ours: () => timed(ours),
    other: () => timed(other),
    otherName: 'iscsiadm -m node -o new, iscsiadm --login, udevadm settle, spawned by Node',
    beside: async () => {
      const execve = async (login: () => Promise<unknown>) => {
        const count = await countExecve(async () => void (await login()))
        await logout()
        return count
      }
      return {execvePerLogin: await execve(ours), otherExecvePerLogin: await execve(other)}
    },
  }
}
