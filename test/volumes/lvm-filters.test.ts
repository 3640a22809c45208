// The filters of the host's own lvm.conf beside lunpath's: read as LVM reads them, and what they forbid stays forbidden.
import {mkdtemp, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {run} from '../../src/exec.js'
import {newVolumeId} from '../../src/volumes/id.js'
import {filterKeys, hostFilters} from '../../src/volumes/lvm-host-filter.js'
import {MiB} from '../contract/observe.js'
import {lab, labDisk} from '../lab/lab.js'
import {TestGroup} from './lvm-group.js'

const disks = [labDisk(1), labDisk(2), labDisk(3)]
/** What their names begin with, /dev/vd or /dev/ubd: patterns below leave parts of it out. */
const common = labDisk(1).slice('/dev/'.length, -1)
lab.options({disksBytes: disks.map(() => 256 * MiB), modules: ['dm-mod']})

// The lab has no udevd, and LVM would ask it for its devices.
const withoutUdevd = 'use_devicesfile=0 obtain_device_list_from_udev=0 external_device_info_source="none"'
const hostsFile = '/etc/lvm/lvmlocal.conf'

lab('01. filters are read as LVM reads them', async t => {
  const directory = await mkdtemp(join(tmpdir(), 'lp-filters-'))
  await writeFile(join(directory, 'lvm.conf'), `devices { ${withoutUdevd} }\n`)
  await run('pvcreate', disks, {env: {LVM_SYSTEM_DIR: directory}})
  for (const text of [
    `[ "r|${common}a|" ]`,
    `[ "a|^${labDisk(2)}$|", "r|.*|" ]`,
    `[ "r|.*|", "a|${common}a|" ]`,
    `[ "a(${common}[^a-b])", "r|.|" ]`,
    `[ "a|/dev/(${common}a|${common}c)$|", "r/${common}./" ]`,
    `[ "a|${common}{1}|", "r|${common}[a\\\\-b]$|" ]`,
    `[ "r|/${common}aa*$|" ]`,
    `[ "r|/${common}a+b?$|", "a{.*}" ]`,
    `[ "r|/${common.slice(0, -1)}.a**$|" ]`,
    `"r|${common}c|"`,
  ]) {
    await writeFile(join(directory, 'lvm.conf'), `devices { filter=${text} ${withoutUdevd} }\n`)
    const env = {LVM_SYSTEM_DIR: directory}
    const {stdout: configuration} = await run('lvmconfig', [], {env})
    const passes = hostFilters(configuration).get('filter')!
    const {stdout} = await run('pvs', ['--all', '--noheadings', '-o', 'pv_name'], {env})
    const seen = new Set(stdout.split(/\s+/))
    t.deepEqual(
      disks.filter(disk => passes([disk])),
      disks.filter(disk => seen.has(disk)),
      text,
    )
  }
})

lab(
  '02. with both a filter and a global_filter a pool works, and the disks that either forbids stay unseen',
  async t => {
    const own = await TestGroup.make('vg', labDisk(1))
    t.teardown(() => rm(hostsFile, {force: true}))
    const seen = async () => {
      const {stdout} = await run('pvs', ['--all', '--noheadings', '-o', 'pv_name'], {
        env: {LVM_SYSTEM_DIR: `${own.systemDirectory}/driver`},
      })
      return disks.filter(disk => stdout.includes(disk))
    }
    await writeFile(hostsFile, `devices { filter=["r|${common}b|"] global_filter=["r|${common}c|"] }\n`)
    const driver = await own.open(t)
    await driver.delete(await driver.create({id: newVolumeId(), sizeBytes: 8 * MiB}))
    await driver.settled()
    t.deepEqual(await seen(), [labDisk(1)])
    await driver.close()

    for (const key of filterKeys) {
      const other = key === 'filter' ? 'global_filter' : 'filter'
      await writeFile(hostsFile, `devices { ${key}=["r|${labDisk(1)}|"] ${other}=["r|loop|"] }\n`)
      const forbidden = own.driver()
      const error = await t.throwsAsync(forbidden.open(), {code: 'POOL_UNUSABLE'})
      t.regex(
        error!.message,
        new RegExp(`no such group; the filters of this host's lvm.conf forbid LVM to look at .*${labDisk(1)}`),
        key,
      )
    }
  },
)
