import {type Command, Option} from 'commander'
import {formatSize, parseSize} from '../../size.js'
import type {Volume} from '../../types.js'
import {endProgress, printFacts, printJson, printTable, showProgress} from '../output.js'
import {withDaemon} from '../session.js'

type Listed = Volume & {name: string | null; iqn: string | null; domain: string | null; createdAt: string}

/** `lunpath volume …` */
export function volumeCommands(program: Command): void {
  const volume = program.command('volume').description('make, show and remove volumes')

  volume
    .command('create')
    .description('make a volume')
    .requiredOption('--size <size>', 'its size, as 2GiB; a pool in LVM rounds up to whole extents', parseSize)
    .option('--name <name>', 'a name of your own beside its id')
    .option('--pool <pool>', 'the pool to make it in (default: the default pool)')
    .addOption(new Option('--preallocate', 'reserve all its space now').conflicts('thin'))
    .option('--thin', 'make it thin, or not at all where the pool cannot (default: as the pool makes volumes)')
    .addHelpText(
      'after',
      `
Examples:
  lunpath volume create --size 2GiB
  lunpath volume create --size 512MB --name db1 --preallocate
  lunpath volume create --size 2GiB --pool vg0 --thin`,
    )
    .action(({size, name, pool, thin, preallocate}, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const body = {sizeBytes: size, name, pool, preallocate: thin ? false : preallocate}
        const made = await call<{volume: Volume}>('POST', '/volumes', body)
        if (json) printJson(made.volume)
        else process.stdout.write(`${made.volume.id}  ${formatSize(made.volume.sizeBytes)}  ${made.volume.path}\n`)
      }),
    )

  volume
    .command('import <path>')
    .description(
      'take an existing file or block device as a volume that lunpath exports, and never wipes, resizes or removes',
    )
    .option('--name <name>', 'a name of your own beside its id')
    .action((path: string, {name}, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const {volume} = await call<{volume: Volume}>('POST', '/volumes/import', {path, name})
        if (json) printJson(volume)
        else process.stdout.write(`${volume.id}  ${formatSize(volume.sizeBytes)}  ${volume.path}\n`)
      }),
    )

  volume
    .command('list')
    .description('all volumes')
    .action((_options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const volumes = await call<Listed[]>('GET', '/volumes')
        if (json) return printJson(volumes)
        printTable(
          volumes,
          {
            ID: ({id}) => id,
            NAME: ({name}) => name,
            SIZE: ({sizeBytes}) => formatSize(sizeBytes),
            POOL: ({pool, imported}) => (imported ? null : pool),
            DRIVER: ({driver}) => driver,
            KIND: ({imported, allocation}) => (imported ? 'imported' : allocation),
            DOMAIN: ({domain}) => domain,
            EXPORT: ({iqn}) => iqn,
          },
          'No volumes. Make one with: lunpath volume create --size 2GiB',
        )
      }),
    )

  volume
    .command('show <volume>')
    .description('one volume, by id or name')
    .action((key: string, _options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const found = await call<Listed>('GET', `/volumes/${encodeURIComponent(key)}`)
        if (json) return printJson(found)
        const {id, name, sizeBytes, imported, allocation, pool, driver, path, iqn, domain, createdAt} = found
        printFacts({
          id,
          name,
          size: `${formatSize(sizeBytes)} (${sizeBytes} bytes)`,
          kind: imported ? 'imported' : allocation,
          pool: imported ? null : pool,
          driver,
          path,
          export: iqn,
          domain,
          created: createdAt,
        })
      }),
    )

  volume
    .command('extend <volume>')
    .description('grow a volume; one that is exported must have no session logged in')
    .requiredOption('--size <size>', 'its new size', parseSize)
    .action((key: string, {size}, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const {volume} = await call<{volume: Volume}>('POST', `/volumes/${encodeURIComponent(key)}/extend`, {
          sizeBytes: size,
        })
        if (json) printJson(volume)
        else process.stdout.write(`${volume.id}  ${formatSize(volume.sizeBytes)}\n`)
      }),
    )

  volume
    .command('clone <volume>')
    .description(
      'a full, independent copy (at once by reflink or thin snapshot where its pool can); Ctrl-C ends it and leaves nothing',
    )
    .option('--name <name>', 'a name for the copy')
    .option('--size <size>', 'a larger size for the copy', parseSize)
    .option('--pool <pool>', 'the pool for the copy (default: the volume’s own)')
    .action((key: string, {name, size, pool}, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const onLine = (line: Record<string, unknown>) => {
          const {copiedBytes, totalBytes} = line.progress as {copiedBytes: number; totalBytes: number}
          showProgress(`copied ${formatSize(copiedBytes)} of ${formatSize(totalBytes)}`)
        }
        const path = `/volumes/${encodeURIComponent(key)}/clone`
        const {volume} = await call<{volume: Volume}>('POST', path, {name, sizeBytes: size, pool}, {onLine}).finally(
          endProgress,
        )
        if (json) printJson(volume)
        else process.stdout.write(`${volume.id}  ${formatSize(volume.sizeBytes)}  ${volume.path}\n`)
      }),
    )

  volume
    .command('snapshot <volume>')
    .description('what a volume holds now, at once, as a volume of its own; also while it is in use')
    .option('--name <name>', 'a name for the snapshot')
    .addHelpText(
      'after',
      `
Thin volumes of LVM have snapshots, and files where the file system has reflinks; of others there are clones.
What the user of the volume has not written out yet is not in it.

Examples:
  lunpath volume snapshot db1 --name db1-monday`,
    )
    .action((key: string, {name}, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const path = `/volumes/${encodeURIComponent(key)}/snapshot`
        const {volume} = await call<{volume: Volume}>('POST', path, {name})
        if (json) printJson(volume)
        else process.stdout.write(`${volume.id}  ${formatSize(volume.sizeBytes)}  ${volume.path}\n`)
      }),
    )

  volume
    .command('delete <volume>')
    .description('remove a volume and its data; an imported one is only forgotten')
    .action((key: string, _options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const {volume} = await call<{volume: Volume}>('DELETE', `/volumes/${encodeURIComponent(key)}`)
        if (json) printJson(volume)
        else process.stdout.write(`deleted ${volume.id}\n`)
      }),
    )
}
