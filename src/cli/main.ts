#!/usr/bin/env node
import {Command, CommanderError} from 'commander'
import {defaultSocket} from '../defaults.js'
import {StorageError} from '../errors.js'
import {packageVersion} from '../native.js'
import {nameSources} from '../stack-traces.js'
import {attachmentCommands} from './commands/attachment.js'
import {benchCommand} from './commands/bench.js'
import {demoCommand} from './commands/demo.js'
import {doctorCommand} from './commands/doctor.js'
import {exportCommands} from './commands/export.js'
import {importCommands} from './commands/import.js'
import {initiatorCommands} from './commands/initiator.js'
import {nodeCommands} from './commands/node.js'
import {poolCommands} from './commands/pool.js'
import {serveCommand} from './commands/serve.js'
import {targetCommands} from './commands/target.js'
import {volumeCommands} from './commands/volume.js'
import {exitCodeOf, printError} from './output.js'

nameSources()

// What is set here before the commands are added holds for them too.
const program = new Command('lunpath')
  .description('A volume on a storage node becomes a disk in a virtual machine.')
  .version(packageVersion())
  .option(
    '--socket <path>',
    'the daemon’s socket; LUNPATH_SOCKET in the environment does the same',
    process.env.LUNPATH_SOCKET || defaultSocket,
  )
  .option('--json', 'answer with one JSON document on standard output')
  .configureHelp({showGlobalOptions: true, helpWidth: 100})
  .configureOutput({outputError: () => {}})
  .exitOverride()
  .addHelpText(
    'after',
    `
Sizes: 2GiB, 512MB, 4096 (bytes).
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 conflict or in use, 5 a daemon or
dependency is missing, 6 not ended yet, 130 cancelled.
All commands but serve, doctor and demo speak to a running daemon: lunpath serve.

Examples:
  lunpath serve                          run the daemon (another shell has the rest)
  lunpath attach vm1 --size 2GiB         a new volume becomes a disk of the domain vm1
  lunpath attachment list
  lunpath detach vm1 vdb                 the disk goes, the volume stays
  lunpath COMMAND --help                 options and examples of a command`,
  )

for (const add of [
  volumeCommands,
  poolCommands,
  exportCommands,
  targetCommands,
  importCommands,
  attachmentCommands,
  nodeCommands,
  initiatorCommands,
  benchCommand,
  serveCommand,
  doctorCommand,
  demoCommand,
]) {
  add(program)
}

// A reader that closes its end early (head, less) is not an error.
process.stdout.on('error', error => {
  if ((error as NodeJS.ErrnoException).code === 'EPIPE') process.exit(0)
})

program.parseAsync().catch(error => {
  const json = program.opts<{json?: boolean}>().json ?? false
  if (!(error instanceof CommanderError)) {
    printError(error, {json})
    process.exitCode = exitCodeOf(error)
  } else if (error.exitCode !== 0) {
    // Where a command of a group is missing, its help has been printed already.
    const helpShown = error.code === 'commander.help'
    if (json || !helpShown) printError(usageError(error, helpShown), {json})
    process.exitCode = 2
  }
})

function usageError({message}: CommanderError, helpShown: boolean): StorageError {
  const what = helpShown ? 'A command is missing' : message.replace(/^error: /, '')
  return new StorageError('INVALID_ARGUMENT', `${what}. See: ${commandInWords()} --help`)
}

/** As much of the command line as names a command: `lunpath volume create`. */
function commandInWords(): string {
  const words = [program.name()]
  let command = program
  for (const word of process.argv.slice(2)) {
    const child = command.commands.find(one => one.name() === word)
    if (!child) continue
    words.push(word)
    command = child
  }
  return words.join(' ')
}
