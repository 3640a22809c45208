import type {Command} from 'commander'
import {formatSize, parseSize} from '../../size.js'
import type {Volume} from '../../types.js'
import type {PoolCapacity} from '../../volumes/driver.js'
import {endProgress, printFacts, printJson, printTable, showProgress} from '../output.js'
import {withDaemon} from '../session.js'

type Listed = Volume & {name: string | null; iqn: string | null; domain: string | null; createdAt: string}

/** `lunpath volume …` and `lunpath pool show` */
export function volumeCommands(program: Command): void {
  const volume = program.command('volume').description('make, show and remove volumes')

  volume
    .command('create')
    .description('make a volume in the pool')
    .requiredOption('--size <size>', 'its size, as 2GiB', parseSize)
    .option('--name <name>', 'a name of your own beside its id')
    .option('--preallocate', 'reserve all its space now (default: sparse)')
    .addHelpText(
      'after',
      `
Examples:
  lunpath volume create --size 2GiB
  lunpath volume create --size 512MB --name db1 --preallocate`,
    )
    .action(({size, name, preallocate}, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const made = await call<{volume: Volume}>('POST', '/volumes', {sizeBytes: size, name, preallocate})
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
        const {id, name, sizeBytes, imported, allocation, path, iqn, domain, createdAt} = found
        printFacts({
          id,
          name,
          size: `${formatSize(sizeBytes)} (${sizeBytes} bytes)`,
          kind: imported ? 'imported' : allocation,
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
    .description('a full, independent copy (by reflink where the file system can); Ctrl-C ends it and leaves nothing')
    .option('--name <name>', 'a name for the copy')
    .option('--size <size>', 'a larger size for the copy', parseSize)
    .action((key: string, {name, size}, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const onLine = (line: Record<string, unknown>) => {
          const {copiedBytes, totalBytes} = line.progress as {copiedBytes: number; totalBytes: number}
          showProgress(`copied ${formatSize(copiedBytes)} of ${formatSize(totalBytes)}`)
        }
        const path = `/volumes/${encodeURIComponent(key)}/clone`
        const {volume} = await call<{volume: Volume}>('POST', path, {name, sizeBytes: size}, {onLine}).finally(
          endProgress,
        )
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

  program
    .command('pool')
    .description('the pool that volumes are made in')
    .command('show')
    .description('its capacity')
    .action((_options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const capacity = await call<PoolCapacity>('GET', '/pool')
        if (json) return printJson(capacity)
        printTable(
          [capacity],
          {
            POOL: ({pool}) => pool,
            TOTAL: ({totalBytes}) => formatSize(totalBytes),
            FREE: ({freeBytes}) => formatSize(freeBytes),
            PROVISIONED: ({provisionedBytes}) => formatSize(provisionedBytes),
            LIMIT: ({limitBytes}) => formatSize(limitBytes),
          },
          '',
        )
      }),
    )
}
