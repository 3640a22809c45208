import {LibiscsiInitiator} from '../../src/initiators/libiscsi.js'
import {formatPortal} from '../../src/iqn.js'
import {freePort} from '../../src/sandbox/ports.js'
import {LioDriver} from '../../src/targets/lio.js'
import type {Portal} from '../../src/types.js'
import type {Discover, Login} from '../contract/libiscsi-tools.js'
import {targetContract} from '../contract/targets.js'
import {lab} from '../lab/lab.js'
import {makeForeignTarget, wipe} from './lio-by-hand.js'

lab.options({deadlineMs: 540_000})

const freePortal = async (address: string): Promise<Portal> => ({address, port: await freePort(address)})

const libiscsi = new LibiscsiInitiator()

const login: Login = async ({portal, iqn, initiator: initiatorName, auth}) => {
  const session = await libiscsi.connect({portal, iqn, lun: 1, initiatorName, auth, timeoutMs: 20_000})
  await session.close()
  return session.identity
}

const discover: Discover = async (portal, initiatorName) => {
  const targets = await libiscsi.discover(portal, {initiatorName, timeoutMs: 20_000})
  return targets.flatMap(({iqn, portals}) => portals.map(at => ({iqn, portal: formatPortal(at)})))
}

targetContract('LIO', {
  test: lab,
  freePortal,
  login,
  discover,
  makeDriver: async (t, {portals}) => {
    const driver = new LioDriver({portals})
    t.teardown(async () => {
      await driver.close()
      await wipe()
    })
    await driver.open()
    return {driver, makeForeign: makeForeignTarget}
  },
})
