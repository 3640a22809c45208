import {execFile} from 'node:child_process'
import {join} from 'node:path'
import {promisify} from 'node:util'
import test from 'ava'
import {freePort} from '../../src/sandbox/ports.js'
import {TgtDriver} from '../../src/targets/tgt.js'
import type {Portal} from '../../src/types.js'
import {iscsiUrl} from '../contract/libiscsi-tools.js'
import {temporaryDirectory, volumeSpec} from '../contract/targets.js'
import {startForeignTgtd} from './foreign-tgtd.js'

/**
 * libiscsi's conformance suite against a volume of ours and against a target made by hand in a bare tgtd: what fails on
 * ours alone was broken by us.
 */
const run = promisify(execFile)
const families = ['Inquiry', 'Read10', 'ReadCapacity10', 'TestUnitReady', 'Write10']

/** Verdict by test of one family. */
async function conformance(family: string, url: string): Promise<Map<string, 'passed' | 'failed'>> {
  const args = ['--dataloss', '--verbose', '--test', `SCSI.${family}`, url]
  const options = {timeout: 120_000, maxBuffer: 16 * 2 ** 20, env: {PATH: process.env.PATH, LC_ALL: 'C'}}
  // It exits with 1 where a test fails, and says which in its output all the same.
  const {stdout} = await run('iscsi-test-cu', args, options).catch(error => {
    if (error.code !== 1) throw error
    return error as {stdout: string}
  })
  // `Test: NAME ...` and then, perhaps after other output, `passed` or `FAILED`.
  const verdicts = [...stdout.matchAll(/Test: (\S+) \.\.\.([\s\S]*?)(passed|FAILED)/g)]
  return new Map(verdicts.map(match => [match[1]!, match[3] === 'passed' ? 'passed' : 'failed']))
}

for (const family of families) {
  test(`iscsi-test-cu ${family}: an exported volume does as well as a target made by hand`, async t => {
    const directory = await temporaryDirectory(t)
    const portal: Portal = {address: '127.0.0.1', port: await freePort()}
    const driver = new TgtDriver({
      managed: true,
      directory: join(directory, 'tgt'),
      portals: [portal],
      dieWithParent: true,
    })
    t.teardown(() => driver.close())
    await driver.open()
    await driver.restore([])
    const spec = await volumeSpec(directory)
    await driver.export(spec)

    const byHand = await volumeSpec(directory)
    const {tgtadm} = await startForeignTgtd(t, directory)
    const handPortal: Portal = {address: '127.0.0.1', port: await freePort()}
    await tgtadm('--mode', 'portal', '--op', 'new', '--param', `portal=127.0.0.1:${handPortal.port}`)
    await tgtadm('--mode', 'target', '--op', 'new', '--tid', '1', '-T', byHand.iqn)
    await tgtadm('--mode', 'logicalunit', '--op', 'new', '--tid', '1', '--lun', '1', '-b', byHand.volume.path)
    await tgtadm('--mode', 'target', '--op', 'bind', '--tid', '1', '-I', 'ALL')

    const expected = await conformance(family, iscsiUrl(handPortal, byHand.iqn, 1))
    const ours = await conformance(family, iscsiUrl(portal, spec.iqn, 1))
    t.true(ours.size > 0)
    t.deepEqual([...ours.keys()], [...expected.keys()])
    const worse = [...ours].filter(([name, verdict]) => verdict === 'failed' && expected.get(name) === 'passed')
    t.deepEqual(worse, [])
    const bare = [...expected].filter(([, verdict]) => verdict === 'failed').map(([name]) => name)
    t.log(bare.length > 0 ? `tgtd itself fails: ${bare.join(', ')}` : `all ${ours.size} pass`)
  })
}
