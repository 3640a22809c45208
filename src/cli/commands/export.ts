import {isIP} from 'node:net'
import {type Command, InvalidArgumentError, Option} from 'commander'
import {formatPortal} from '../../iqn.js'
import {parseSize} from '../../size.js'
import type {AccessRules, Export, IoType} from '../../types.js'
import {printJson, printTable} from '../output.js'
import {addChapOption, readChap, requireOne, withDaemon} from '../session.js'

/** `lunpath export …` */
export function exportCommands(program: Command): void {
  const exports = program.command('export').description('offer volumes over iSCSI')

  addChapOption(
    exports
      .command('create')
      .description('offer a volume; without --allow, only this node’s own initiator may log in')
      .option('--volume <volume>', 'a volume that exists, by id or name')
      .option('--size <size>', 'or make a new one of this size', parseSize)
      .option('--name <name>', 'a name for the new volume')
      .option('--pool <pool>', 'the pool for the new volume')
      .option(
        '--allow <rule...>',
        'who may log in: ALL, an address, a prefix as 10.0.0.0/8, or an initiator’s IQN',
        accessRule,
      )
      .option('--read-only', 'refuse writes')
      .option(
        '--shared',
        'allow others on this host to use the volume at the same time; without it one in use is refused',
      )
      .option('--write-back', 'acknowledge writes before they are on stable storage (default: write-through)')
      .addOption(
        new Option(
          '--io-type <type>',
          'IET: through the page cache, around it (block devices), or nullio, which keeps no data: it measures the target and the network without a disk',
        ).choices(['fileio', 'blockio', 'nullio']),
      )
      .addHelpText(
        'after',
        `
--name and --pool go with --size.

Examples:
  lunpath export create --volume db1
  lunpath export create --size 2GiB --name db2 --allow 10.0.0.0/8 iqn.2004-10.com.example:host1
  lunpath export create --volume db3 --allow ALL --chap-file ./chap
  lunpath export create --size 64GiB --name bare --io-type nullio`,
      ),
  ).action((options, command: Command) => {
    requireOne(options, ['volume', 'size'])
    return withDaemon(command, async ({call, json}) => {
      const {volume, size, name, pool, allow, readOnly, shared, writeBack, ioType} = options
      const body = {
        volume,
        sizeBytes: size,
        name,
        pool,
        readOnly,
        shared,
        access: allow ? accessRules(allow) : undefined,
        writeCache: writeBack ? 'back' : undefined,
        ioType,
        auth: await readChap(options),
      }
      const made = await call<{volume: unknown; export: Export}>('POST', '/exports', body)
      if (json) return printJson(made)
      const {iqn, lun, portals, serial, wwid} = made.export
      process.stdout.write(
        `${iqn}  LUN ${lun}  ${portals.map(formatPortal).join(' ')}\nserial ${serial}  WWID ${wwid}\n`,
      )
    })
  })

  exports
    .command('list')
    .description('all exports')
    .action((_options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const listed = await call<
          (Export & {access: AccessRules; ioType?: IoType; taken?: {ioType: IoType}; hasAuth: boolean})[]
        >('GET', '/exports')
        if (json) return printJson(listed)
        printTable(
          listed,
          {
            VOLUME: ({volumeId}) => volumeId,
            IQN: ({iqn}) => iqn,
            LUN: ({lun}) => lun,
            IOTYPE: ({ioType, taken}) => ioType ?? taken?.ioType ?? null,
            PORTALS: ({portals}) => portals.map(formatPortal).join(','),
            // The rules of a target that was taken over are not lunpath's.
            ALLOWED: ({access, taken}) =>
              taken ? 'initiators.allow' : [...access.addresses, ...access.names].join(','),
            CHAP: ({hasAuth}) => (hasAuth ? 'yes' : 'no'),
          },
          'No exports. Make one with: lunpath export create --size 2GiB',
        )
      }),
    )

  exports
    .command('delete <export>')
    .description('take an offer back, by IQN, volume id or name; refused while a session is logged in')
    .option('--force', 'close its sessions first')
    .action((key: string, {force}, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const query = force ? '?force=true' : ''
        const ended = await call<{export: Export | null}>('DELETE', `/exports/${encodeURIComponent(key)}${query}`)
        if (json) printJson(ended)
        else process.stdout.write(`deleted ${ended.export?.iqn ?? key}\n`)
      }),
    )
}

const isName = (rule: string) => /^(iqn|eui|naa)\./i.test(rule)

function accessRule(rule: string, earlier: string[] = []): string[] {
  if (!isName(rule) && rule !== 'ALL' && isIP(rule.split('/')[0]!) === 0)
    throw new InvalidArgumentError('expected ALL, an address, a prefix or an IQN')
  return [...earlier, rule]
}

function accessRules(rules: string[]): AccessRules {
  return {addresses: rules.filter(rule => !isName(rule)), names: rules.filter(isName)}
}
