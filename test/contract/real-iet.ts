import test from 'ava'
import {IetDriver} from '../../src/targets/iet.js'
import {call, IetControl, request} from '../../src/targets/iet-control.js'
import {targetContract} from './targets.js'

/**
 * The contract suite of target drivers against the IET of this machine (`npm run contract -- iet`): as root, with ietd
 * at port 3260 and no targets. Each test leaves none behind.
 */
targetContract('IET', {
  test: test.serial,
  freePortal: async address => ({address, port: 3260}),
  makeDriver: async (t, {portals}) => {
    const driver = new IetDriver({portals})
    t.teardown(() => driver.close())
    await driver.open()
    return {driver, makeForeign: target => makeForeign(target, work => t.teardown(work))}
  },
})

async function makeForeign(
  {iqn, path}: {iqn: string; path: string},
  afterwards: (work: () => Promise<void>) => void,
): Promise<void> {
  const control = new IetControl()
  const patient = {timeoutMs: 10_000}
  const {answers, failure} = await control.exchange([[request.newTarget(0, iqn)]], patient)
  if (failure) throw failure
  const {tid} = answers[0]![0]!
  afterwards(async () => {
    await control.exchange([[request.deleteTarget(tid)]], patient)
    control.close()
  })
  const volume = call.addVolume(tid, 0, `Type=fileio,Path=${path}`).instead!
  await control.exchange([[volume]], patient)
}
