// The writes of the engine `iscsi` by the addon, against targets that are made by hand.
import test from 'ava'
import {start} from '../../src/bench/run.js'
import {lunOnTgtd} from '../fixtures/lun-by-hand.js'
import {openOtherLogin, openStubbornPortal} from '../fixtures/portals.js'

const sizeBytes = 64 * 2 ** 20

/** `lun`, at `port`, to be written to. */
const writing = (port: number, {iqn, serial, sizeBytes}: {iqn: string; serial: string; sizeBytes: number}) => ({
  portal: {address: '127.0.0.1', port},
  iqn,
  lun: 1,
  initiatorName: 'iqn.2025-01.test.lunpath:bench',
  writeTo: {identity: serial, sizeBytes},
})

test.serial('a target that answers what the data path cannot work with is written to through libiscsi', async t => {
  const {tgtd, lun} = await lunOnTgtd(t, sizeBytes)
  const portal = await openOtherLogin(tgtd.port, text => text.replace('MaxOutstandingR2T=1\0', 'MaxOutstandingR2T=2\0'))
  t.teardown(() => portal.close())
  const target = writing(portal.portal.port, lun)
  const {state, targets} = await start({target, rw: 'randrw', verify: 'crc32c', iodepth: 4, runtime: 0.3}).result
  t.is(state, 'finished', JSON.stringify(targets[0]!.error))
  t.like(targets[0], {engine: 'libiscsi', fallbackReason: 'the target answered MaxOutstandingR2T=2', errors: 0})
  t.true(targets[0]!.directions.write!.ios > 0)
  t.like(targets[0]!.verify, {failures: 0})
})

test.serial('a target that takes nothing while its answers are not taken is not waited for in vain', async t => {
  const {tgtd, lun} = await lunOnTgtd(t, sizeBytes)
  const portal = await openStubbornPortal(tgtd.port)
  t.teardown(() => portal.close())
  const target = writing(portal.portal.port, lun)
  // More in flight, both ways, than the sockets hold.
  const {state, targets} = await start({target, rw: 'randrw', bs: '4m', iodepth: 16, runtime: 1, stuckMs: 10_000})
    .result
  t.is(state, 'finished', JSON.stringify(targets[0]!.error))
  t.like(targets[0], {engine: 'iscsi', errors: 0, unanswered: 0})
  t.true(targets[0]!.directions.write!.ios > 0 && targets[0]!.directions.read!.ios > 0)
})
