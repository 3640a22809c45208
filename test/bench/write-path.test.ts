// The writes of the engine `iscsi`: their PDUs against targets that are made by hand, and what they leave in the file
// against what libiscsi leaves.
import {randomBytes} from 'node:crypto'
import {writeFile} from 'node:fs/promises'
import test from 'ava'
import {run} from '../../src/exec.js'
import {lunOnTgtd} from '../fixtures/lun-by-hand.js'
import {type BothWrote, writeEngines, writePath} from '../fixtures/path-programs.js'

test.before(async t => {
  t.timeout(300_000)
  await writePath()
})

const cases = {
  commands: 'a WRITE is on the wire as RFC 7143 and SBC-4 have it',
  flushes: 'a flush is a command without data, and has the outcome of its status',
  unsolicited: 'data goes with the command, behind it or not at all, as was negotiated',
  solicited: 'what an R2T asks for is sent, in segments as the target takes them',
  partial: 'a socket that takes any part of it gets the same stream',
  status: 'what the target says of a failure is the outcome, a busy one as well',
  early: 'an answer that comes before the data has gone out ends the command when it has',
  residual: 'what the target took less is a short write; a success of what it has not got ends the session',
  window: 'a WRITE waits for the window, and its data with it',
  mixed: 'READs and WRITEs of one session do not mix up',
  refused: 'an R2T that fits no WRITE ends the session, and nothing is sent for it',
  login: 'what the target answers in the login is taken, and what cannot be worked with is named',
}
for (const [name, says] of Object.entries(cases)) {
  test(says, async t => {
    await t.notThrowsAsync(run(await writePath(), [name]))
  })
}

test("hostile targets: no byte but a command's own is sent, and no write accepted that the target has not got", async t => {
  t.timeout(300_000)
  const {stdout} = await run(await writePath(), ['hostile'], {timeoutMs: 300_000})
  t.regex(stdout, /^50000 rounds, [1-9]\d* honest, [1-9]\d* ended, [1-9]\d* writes accepted$/m)
  t.log(stdout.trim())
})

const lengths = {FirstBurstLength: 65_536, MaxBurstLength: 262_144, MaxRecvDataSegmentLength: 8_192}
const shortLengths = {FirstBurstLength: 3_072, MaxBurstLength: 16_384, MaxRecvDataSegmentLength: 2_048}
const longLengths = {FirstBurstLength: 262_144, MaxBurstLength: 262_144, MaxRecvDataSegmentLength: 262_144}
for (const ImmediateData of ['Yes', 'No']) {
  for (const InitialR2T of ['Yes', 'No']) {
    for (const of of [lengths, shortLengths, longLengths]) {
      const title = `ImmediateData=${ImmediateData}, InitialR2T=${InitialR2T}, segments of ${of.MaxRecvDataSegmentLength}`
      test.serial(`what is written is what libiscsi writes: ${title}`, async t => {
        t.timeout(300_000)
        const {tgtd, lun} = await lunOnTgtd(t, 64 * 2 ** 20)
        const update = ['--mode', 'target', '--op', 'update', '--tid', '1']
        for (const [key, value] of Object.entries({ImmediateData, InitialR2T, ...of}))
          await tgtd.adm(...update, '--name', key, '--value', `${value}`)
        await writeFile(lun.path, randomBytes(lun.sizeBytes), {flag: 'r+', flush: true})
        const {stdout} = await run(await writeEngines(), [`127.0.0.1:${tgtd.port}`, lun.iqn, lun.path], {
          timeoutMs: 120_000,
        })
        const {writes, reads, ...agreed} = JSON.parse(stdout) as BothWrote
        t.deepEqual(agreed, {
          immediateData: ImmediateData === 'Yes',
          initialR2t: InitialR2T === 'Yes',
          firstBurst: of.FirstBurstLength,
          maxBurst: of.MaxBurstLength,
          segment: of.MaxRecvDataSegmentLength,
        })
        t.true(writes > 0 && reads > 0)
      })
    }
  }
}
