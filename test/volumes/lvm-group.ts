import {mkdtemp} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import type {ExecutionContext} from 'ava'
import {type LvmPoolOptions, LvmVolumeDriver} from '../../src/volumes/lvm.js'
import {type LvmSystem, writeLvmSystemDirectory} from '../../src/volumes/lvm-config.js'
import type {LvmRow} from '../../src/volumes/lvm-report.js'
import {LvmShell} from '../../src/volumes/lvm-shell.js'

/** A volume group in the lab, and a shell beside the driver's own to look at it. */
export class TestGroup {
  readonly name: string
  readonly systemDirectory: string
  readonly shell: LvmShell

  private constructor(name: string, system: LvmSystem) {
    this.name = name
    this.systemDirectory = system.directory
    this.shell = new LvmShell({system})
  }

  static async make(name: string, device: string, thin?: {name: string; size: string}): Promise<TestGroup> {
    const system = await writeLvmSystemDirectory({directory: await mkdtemp(join(tmpdir(), 'lp-lvm-'))})
    const group = new TestGroup(name, system)
    await group.run('vgcreate', name, device)
    if (thin) await group.run('lvcreate', '--type', 'thin-pool', '--size', thin.size, '--name', thin.name, name)
    return group
  }

  async run(...args: string[]): Promise<LvmRow[]> {
    return (await this.shell.run(args)).rows
  }

  driver(options: Partial<LvmPoolOptions> = {}): LvmVolumeDriver {
    return new LvmVolumeDriver({
      pool: 'test',
      group: this.name,
      systemDirectory: `${this.systemDirectory}/driver`,
      ...options,
    })
  }

  /** An open driver that the test closes. */
  async open(t: ExecutionContext, options: Partial<LvmPoolOptions> = {}): Promise<LvmVolumeDriver> {
    const driver = this.driver(options)
    driver.on('warning', message => t.log(message))
    t.teardown(() => driver.close())
    await driver.open()
    return driver
  }

  /**
   * Names of all logical volumes but thin pools, with their tags. A shell that has changed a thin pool shows its parts
   * also where hidden volumes are not asked for; LVM writes such names in brackets.
   */
  async volumes(): Promise<Map<string, string>> {
    const rows = await this.run('lvs', '-o', 'lv_name,lv_tags,lv_layout', this.name)
    return new Map(
      rows
        .filter(row => row.lv_layout !== 'thin,pool' && !row.lv_name!.startsWith('['))
        .map(row => [row.lv_name!, row.lv_tags!]),
    )
  }

  /** Removes all but thin pools. */
  async empty(): Promise<void> {
    for (const name of (await this.volumes()).keys()) await this.run('lvremove', `${this.name}/${name}`)
  }
}
