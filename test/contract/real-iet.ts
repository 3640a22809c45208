import test from 'ava'
import {LibiscsiInitiator} from '../../src/initiators/libiscsi.js'
import {IetDriver} from '../../src/targets/iet.js'
import {call, IetControl, request} from '../../src/targets/iet-control.js'
import {newVolumeId} from '../../src/volumes/id.js'
import {targetContract, temporaryDirectory, until, volumeSpec} from './targets.js'

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

const name = (text: string) => `iqn.2001-04.com.example:${text}`
const initiatorName = 'iqn.2026-01.io.lunpath.test:initiator'

test.serial(
  'targets of ietadm are taken over under a session, and read the same ids when they were made again',
  async t => {
    const directory = await temporaryDirectory(t)
    const portal = {address: '127.0.0.1', port: 3260}
    const driver = new IetDriver({portals: [portal], keepOnClose: true})
    t.teardown(() => driver.close())
    await driver.open()
    await driver.restore([])
    const {volume} = await volumeSpec(directory)
    const initiator = new LibiscsiInitiator()
    for (const [iqn, more] of [
      [name('by-name'), ''],
      [name('by-argument'), ',ScsiId=an-id,ScsiSN=a-serial-number'],
    ] as const) {
      await makeForeign({iqn, path: volume.path, more}, work => t.teardown(work))
      const session = await initiator.connect({portal, iqn, lun: 0, initiatorName, reconnect: true})
      t.teardown(() => session.close())
      const read = async () => ({serial: await session.page(0x80), identification: await session.page(0x83)})
      const pages = await read()
      const target = (await driver.foreign()).find(one => one.iqn === iqn)!
      t.like(target, {sessions: 1, refused: null})
      const {volume: offered, ...unit} = target.unit!
      const ids = driver.identify({iqn, lun: 0}, pages)
      t.is(ids.scsiId, more === '' ? null : 'an-id')
      const {writeCache, readOnly, ...kept} = unit
      await driver.export({
        ...{iqn, writeCache, readOnly, access: {addresses: [], names: []}, tid: target.tid},
        volume: {...offered, id: newVolumeId()},
        taken: {...kept, ...ids, wwid: session.identity.wwid},
      })
      t.is((await driver.get(iqn))?.sessions.length, 1)
      let isBack = false
      driver.on('restarted', () => {
        isBack = true
      })
      const control = new IetControl()
      const [held] = (await driver.sessions()).filter(one => one.iqn === iqn)
      await control.exchange([[request.deleteSession(target.tid, BigInt(held!.sid))]], patient)
      await until(
        async () => (await control.exchange([[request.deleteTarget(target.tid)]], patient)).answers[0]![0]!.error === 0,
      )
      control.close()
      await until(async () => isBack)
      t.deepEqual(await read(), pages)
      t.is((await driver.get(iqn))?.tid, target.tid)
      await driver.unexport(iqn)
    }
  },
)

const patient = {timeoutMs: 10_000}

async function makeForeign(
  {iqn, path, more = ''}: {iqn: string; path: string; more?: string},
  afterwards: (work: () => Promise<void>) => void,
): Promise<void> {
  const control = new IetControl()
  const {answers, failure} = await control.exchange([[request.newTarget(0, iqn)]], patient)
  if (failure) throw failure
  const {tid} = answers[0]![0]!
  afterwards(async () => {
    await control.exchange([[request.deleteTarget(tid)]], patient)
    control.close()
  })
  const volume = call.addVolume(tid, 0, `Type=fileio${more},Path=${path}`).instead!
  await control.exchange([[volume]], patient)
}
