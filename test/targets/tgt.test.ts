import {join} from 'node:path'
import test from 'ava'
import {freePort} from '../../src/sandbox/ports.js'
import {TgtDriver} from '../../src/targets/tgt.js'
import type {Portal} from '../../src/types.js'
import {targetContract} from '../contract/targets.js'
import {startForeignTgtd} from './foreign-tgtd.js'

const freePortal = async (address: string): Promise<Portal> => ({address, port: await freePort(address)})

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
