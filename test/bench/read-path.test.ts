// The PDUs of the engine `iscsi`: against answers that are made by hand, and its data against libiscsi's and the file's.
import {randomBytes} from 'node:crypto'
import {writeFile} from 'node:fs/promises'
import test, {type ExecutionContext} from 'ava'
import {run} from '../../src/exec.js'
import {lunOnTgtd} from '../fixtures/lun-by-hand.js'
import {bothRead, readEngines, readPath} from '../fixtures/path-programs.js'
import {openPingingPortal} from '../fixtures/portals.js'

test.before(async t => {
  t.timeout(300_000)
  await readPath()
})

const cases = {
  commands: 'a READ is on the wire as RFC 7143 and SBC-4 have it',
  data: 'data lands at its place, in whatever segments and chunks it comes',
  sense: 'what the target says of a failure is the outcome; sense data that is cut is none',
  residual: 'what the target had less is a short read; where its figures do not fit its data, the session ends',
  window: 'commands wait for the window that the target opens, and the numbers go round',
  ping: "the target's pings are answered, and a flood of them ends the session",
  events: 'an event of the unit is nothing; one that gives the session up ends it',
  refused: 'a PDU that fits no command ends the session, and no read is accepted',
  logout: 'a logout is asked for and its answer taken',
}
for (const [name, says] of Object.entries(cases)) {
  test(says, async t => {
    await t.notThrowsAsync(run(await readPath(), [name]))
  })
}

test('hostile streams: nothing is written beyond a buffer, no read accepted with other data than was sent', async t => {
  t.timeout(300_000)
  const {stdout} = await run(await readPath(), ['hostile'], {timeoutMs: 300_000})
  t.regex(stdout, /^100000 rounds, [1-9]\d* honest, [1-9]\d* ended, [1-9]\d* reads accepted$/m)
  t.log(stdout.trim())
})

/** The program that reads by both engines from a new LUN on a new tgtd, and compares. */
async function comparison(t: ExecutionContext) {
  t.timeout(300_000)
  const compare = await readEngines()
  const {tgtd, lun} = await lunOnTgtd(t, 8 * 2 ** 20)
  await writeFile(lun.path, randomBytes(lun.sizeBytes), {flag: 'r+', flush: true})
  return {
    port: tgtd.port,
    through: (port: number) => run(compare, [`127.0.0.1:${port}`, lun.iqn, lun.path], {timeoutMs: 120_000}),
  }
}

test.serial('the data is that of libiscsi and of the file, from 512 bytes to 1 MiB', async t => {
  const {port, through} = await comparison(t)
  const {stdout} = await through(port)
  t.deepEqual(JSON.parse(stdout), bothRead)
})

test.serial('a session is taken over at the first answer of the target that comes without a ping', async t => {
  const {port, through} = await comparison(t)
  const portal = await openPingingPortal(port, {most: 3})
  t.teardown(() => portal.close())
  const {stdout} = await through(portal.portal.port)
  t.deepEqual(JSON.parse(stdout), bothRead)
  t.deepEqual(portal.pings, {sent: 3, answered: 3})
})

test.serial('a ping that comes before the answer is answered, and the session taken over', async t => {
  const {port, through} = await comparison(t)
  const portal = await openPingingPortal(port, {most: 1, apartMs: 20})
  t.teardown(() => portal.close())
  const {stdout} = await through(portal.portal.port)
  t.deepEqual(JSON.parse(stdout), bothRead)
  t.deepEqual(portal.pings, {sent: 1, answered: 1})
})

test.serial('a session whose target pings with each answer is not taken over, and the error says why', async t => {
  const {port, through} = await comparison(t)
  const portal = await openPingingPortal(port, {most: Number.POSITIVE_INFINITY})
  t.teardown(() => portal.close())
  const error = await t.throwsAsync(through(portal.portal.port))
  t.regex(error!.message, /sends other PDUs all the time/)
})
