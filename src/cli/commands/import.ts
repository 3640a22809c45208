import type {Command} from 'commander'
import type {ImportedTargets} from '../../attach/import.js'
import {formatSize} from '../../size.js'
import {printJson, printTable} from '../output.js'
import {addChapOption, readChap, withDaemon} from '../session.js'

/** `lunpath import …` */
export function importCommands(program: Command): void {
  const group = program.command('import').description('take over targets that are there already')
  addChapOption(
    group
      .command('iet [iqn...]')
      .description('targets that ietadm or ietd.conf has made; without names all that are not lunpath’s')
      .option('--dry-run', 'look, log in and read their ids, and change nothing')
      .addHelpText(
        'after',
        `
Nothing of the targets is changed, and their sessions go on: lunpath shows them from then on, attaches their volumes, and puts
them back, with the same ids, when they have gone. It never resizes, wipes or removes them: export delete forgets one.
Their ids are read by a login of this node’s own, which their access rules must let in. A target that cannot be read, or not be
made again as it is, is refused; others are taken over nevertheless, and the exit code is 1.

Examples:
  lunpath import iet --dry-run
  lunpath import iet iqn.2001-04.com.example:disk1
  lunpath import iet iqn.2001-04.com.example:disk2 --chap-file ./chap`,
      ),
  ).action((iqns: string[], {dryRun, ...options}: {dryRun?: boolean; chapFile?: string}, command: Command) =>
    withDaemon(command, async ({call, json}) => {
      const auth = await readChap(options)
      const body = {iqns: iqns.length > 0 ? iqns : undefined, dryRun, auth}
      const answer = await call<ImportedTargets>('POST', '/targets/import', body)
      if (json) printJson(answer)
      else print(answer)
      if (answer.refused.length > 0) process.exitCode = 1
    }),
  )
}

function print({taken, refused}: ImportedTargets): void {
  printTable(
    taken,
    {
      VOLUME: ({volumeId}) => volumeId,
      IQN: ({iqn}) => iqn,
      TID: ({tid}) => tid,
      LUN: ({lun}) => lun,
      SIZE: ({sizeBytes}) => formatSize(sizeBytes),
      SESSIONS: ({sessions}) => sessions,
      SERIAL: ({serial}) => serial,
      PATH: ({path}) => path,
    },
    'No targets were taken over.',
  )
  for (const {message} of refused) process.stderr.write(`lunpath: ${message}\n`)
}
