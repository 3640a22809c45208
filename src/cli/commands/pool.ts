import type {Command} from 'commander'
import type {DeletedPool} from '../../service.js'
import {formatSize, parseSize} from '../../size.js'
import type {PoolCapacity} from '../../volumes/driver.js'
import type {UnusablePool} from '../../volumes/pools.js'
import {printJson, printTable} from '../output.js'
import {withDaemon} from '../session.js'

const columns: Record<string, (pool: PoolCapacity) => string | number | null> = {
  POOL: ({pool}) => pool,
  DRIVER: ({driver}) => driver,
  TOTAL: ({totalBytes}) => formatSize(totalBytes),
  FREE: ({freeBytes}) => formatSize(freeBytes),
  PROVISIONED: ({provisionedBytes}) => formatSize(provisionedBytes),
  LIMIT: ({limitBytes}) => formatSize(limitBytes),
  'THIN DATA': ({thin}) => (thin ? `${thin.dataPercent} % of ${formatSize(thin.totalBytes)}` : null),
  'THIN METADATA': ({thin}) => (thin ? `${thin.metadataPercent} %` : null),
}

/** `lunpath pool …` */
export function poolCommands(program: Command): void {
  const pool = program.command('pool').description('where volumes are made: a directory, or volume groups of LVM')

  pool
    .command('list')
    .description('all pools with their capacity')
    .action((_options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const answer = await call<{pools: PoolCapacity[]; unusable: UnusablePool[]}>('GET', '/pools')
        if (json) return printJson(answer)
        printTable(answer.pools, columns, 'No pool is usable.')
        for (const {pool: name, reason} of answer.unusable) process.stdout.write(`not usable: ${name}: ${reason}\n`)
      }),
    )

  pool
    .command('show [pool]')
    .description('the capacity of one pool (default: the default pool)')
    .action((name: string | undefined, _options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const query = name === undefined ? '' : `?name=${encodeURIComponent(name)}`
        const capacity = await call<PoolCapacity>('GET', `/pool${query}`)
        if (json) return printJson(capacity)
        printTable([capacity], columns, '')
      }),
    )

  pool
    .command('create [device...]')
    .description('make a pool in LVM: a volume group of empty devices, or one that exists where none is named')
    .requiredOption('--vg <group>', 'the volume group')
    .option('--name <name>', 'the pool’s name (default: the group’s)')
    .option('--thin', 'with a thin pool, named thin: its volumes are thin unless they are preallocated')
    .option('--thin-size <size>', 'the thin pool’s size (default: nine tenths of what is free)', parseSize)
    .addHelpText(
      'after',
      `
Devices are taken only where nothing is on them and nobody has them: no signature, partition, mount or holder.
A pool that is made here is there again after a restart of the daemon. Where the daemon was killed in between,
the same command goes on.

Examples:
  lunpath pool create --vg vg0 /dev/sdb /dev/sdc
  lunpath pool create --vg vg1 --thin /dev/disk/by-id/...
  lunpath pool create --vg existing --thin --thin-size 100GiB`,
    )
    .action((devices: string[], {vg, name, thin, thinSize}, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const made = await call<PoolCapacity>('POST', '/pools', {name, group: vg, devices, thin, thinBytes: thinSize})
        if (json) printJson(made)
        else printTable([made], columns, '')
      }),
    )

  pool
    .command('delete <pool>')
    .description('undo pool create: the pool must have no volumes, and a group that it made goes with it')
    .addHelpText(
      'after',
      `
A group that pool create has made of devices is removed, and LVM's labels from the devices. One that was there
before stays as it is, and so do all its volumes: the pool is only forgotten. A pool that the configuration names is
taken out there.

Examples:
  lunpath pool delete vg0`,
    )
    .action((name: string, _options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const deleted = await call<DeletedPool>('DELETE', `/pools/${encodeURIComponent(name)}`)
        if (json) return printJson(deleted)
        const group = deleted.groupRemoved ? 'removed with it' : 'left as it is'
        process.stdout.write(`deleted ${deleted.pool}; the volume group ${deleted.group} is ${group}\n`)
      }),
    )
}
