import {type Command, InvalidArgumentError} from 'commander'
import {parseDestination} from '../../iqn.js'
import {formatSize} from '../../size.js'
import type {ParameterValue, TargetParameters} from '../../targets/driver.js'
import type {ObservedTarget} from '../../types.js'
import {printFacts, printJson, printTable} from '../output.js'
import {withDaemon} from '../session.js'

/** `lunpath target …`, `lunpath iet …` */
export function targetCommands(program: Command): void {
  const target = program.command('target').description('what the target daemon holds, targets of others included')
  target
    .command('list')
    .description('all targets')
    .action((_options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const targets = await call<ObservedTarget[]>('GET', '/targets')
        if (json) return printJson(targets)
        printTable(
          targets,
          {
            TID: ({tid}) => tid,
            IQN: ({iqn}) => iqn,
            LUNS: ({luns}) => luns.length,
            SESSIONS: ({sessions}) => sessions.length,
            ALLOWED: ({access}) => [...access.addresses, ...access.names].join(','),
            CHAP: ({accounts}) => (accounts.length > 0 ? 'yes' : 'no'),
          },
          'No targets.',
        )
      }),
    )
  target
    .command('show <iqn>')
    .description('one target with its logical units and its sessions')
    .action((iqn: string, _options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const found = await call<ObservedTarget>('GET', `/targets/${encodeURIComponent(iqn)}`)
        if (json) return printJson(found)
        printTarget(found)
      }),
    )

  const iet = program.command('iet').description('what only the iSCSI Enterprise Target has')
  const param = iet.command('param').description('parameters of a target, or of one of its sessions')
  param
    .command('get <iqn>')
    .description('all parameters: what sessions to come are offered, and how the target works')
    .option('--sid <sid>', 'those that this session has agreed on', sessionNumber)
    .action((iqn: string, {sid}: {sid?: string}, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const query = sid === undefined ? '' : `?sid=${sid}`
        const parameters = await call<TargetParameters>('GET', `${pathOf(iqn)}/parameters${query}`)
        if (json) printJson(parameters)
        else printParameters(parameters)
      }),
    )
  param
    .command('set <iqn> <parameter...>')
    .description('set some, as KEY=VALUE; they are set again whenever the target is put back')
    .option('--sid <sid>', 'of this session alone, as long as it lasts', sessionNumber)
    .addHelpText(
      'after',
      `
IET would take a value out of range for another one without a word: lunpath refuses it, and reads back what was set.

Examples:
  lunpath iet param set iqn.2026-01.io.lunpath:0123456789abcdef MaxBurstLength=1048576 InitialR2T=No
  lunpath iet param set iqn.2026-01.io.lunpath:0123456789abcdef Wthreads=16 HeaderDigest=CRC32C,None`,
    )
    .action((iqn: string, words: string[], {sid}: {sid?: string}, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const body = {parameters: Object.fromEntries(words.map(assignment)), sid}
        const parameters = await call<TargetParameters>('POST', `${pathOf(iqn)}/parameters`, body)
        if (json) printJson(parameters)
        else printParameters(parameters)
      }),
    )
  iet
    .command('redirect <iqn> [portal]')
    .description('send initiators that log in to another portal; without one, end that')
    .action((iqn: string, portal: string | undefined, _options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        if (portal !== undefined) parseDestination(portal)
        const body = {portal: portal ?? null}
        const done = await call<{redirect: string | null}>('POST', `${pathOf(iqn)}/redirect`, body)
        if (json) printJson(done)
        else
          process.stdout.write(
            `${iqn} ${done.redirect ? `sends its initiators to ${done.redirect}` : 'is not redirected'}\n`,
          )
      }),
    )
}

const pathOf = (iqn: string) => `/targets/${encodeURIComponent(iqn)}`

/** `KEY=VALUE`. @throws InvalidArgumentError */
function assignment(word: string): [string, ParameterValue] {
  const [, key, value] = /^([A-Za-z0-9]+)=(.+)$/.exec(word) ?? []
  if (key === undefined || value === undefined) throw new InvalidArgumentError(`expected KEY=VALUE, not ${word}`)
  return [key, /^\d+$/.test(value) ? Number(value) : value]
}

/** A JS number cannot hold it. */
export function sessionNumber(text: string): string {
  if (!/^\d{1,20}$/.test(text))
    throw new InvalidArgumentError('expected the number of a session, as session list shows it')
  return text
}

function printParameters({session, target}: TargetParameters): void {
  const shown = (values: Record<string, ParameterValue>) =>
    Object.fromEntries(
      Object.entries(values).map(([key, value]) => [key, typeof value === 'boolean' ? (value ? 'Yes' : 'No') : value]),
    )
  printFacts({...shown(session), ...shown(target)})
}

function printTarget({iqn, tid, luns, access, accounts, sessions}: ObservedTarget): void {
  printFacts({
    target: iqn,
    tid,
    allowed: [...access.addresses, ...access.names].join(', ') || 'nobody',
    'CHAP users': accounts.join(', ') || 'none',
  })
  process.stdout.write('\n')
  printTable(
    luns,
    {
      LUN: ({lun}) => lun,
      SIZE: ({sizeBytes}) => formatSize(sizeBytes),
      BLOCK: ({blockSizeBytes}) => blockSizeBytes ?? null,
      TYPE: ({ioType}) => ioType ?? null,
      MODE: ({ioMode, readOnly}) => ioMode ?? (readOnly ? 'ro' : 'rw'),
      STATE: ({online}) => (online ? 'online' : 'offline'),
      SERIAL: ({serial}) => serial || null,
      PATH: ({path}) => path || null,
    },
    'No logical units.',
  )
  process.stdout.write('\n')
  const digest = (on: boolean | undefined) => (on === undefined ? null : on ? 'crc32c' : 'none')
  printTable(
    sessions.flatMap(({sid, initiator, connections}) =>
      (connections.length > 0 ? connections : [undefined]).map(connection => ({sid, initiator, connection})),
    ),
    {
      SID: ({sid}) => sid,
      INITIATOR: ({initiator}) => initiator,
      CID: ({connection}) => connection?.cid ?? null,
      ADDRESS: ({connection}) => connection?.address ?? null,
      STATE: ({connection}) => connection?.state ?? null,
      HEADERDIGEST: ({connection}) => digest(connection?.headerDigest),
      DATADIGEST: ({connection}) => digest(connection?.dataDigest),
    },
    'No sessions.',
  )
}
