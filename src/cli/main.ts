#!/usr/bin/env node
import {Command, CommanderError} from 'commander'
import {defaultSocket} from '../config.js'
import {packageVersion} from '../daemon.js'
import {attachmentCommands} from './commands/attachment.js'
import {benchCommand} from './commands/bench.js'
import {demoCommand} from './commands/demo.js'
import {doctorCommand} from './commands/doctor.js'
import {exportCommands} from './commands/export.js'
import {nodeCommands} from './commands/node.js'
import {serveCommand} from './commands/serve.js'
import {volumeCommands} from './commands/volume.js'
import {exitCodeOf, printError} from './output.js'

const program = new Command('lunpath')
  .description('A volume on a storage node becomes a disk in a virtual machine.')
  .version(packageVersion())
  .option('--socket <path>', 'the daemon’s socket', process.env.LUNPATH_SOCKET ?? defaultSocket)
  .option('--json', 'answer with one JSON document on standard output')
  .showHelpAfterError('(--help shows what there is)')
  .exitOverride()
  .addHelpText(
    'after',
    '\nSizes: 2GiB, 500MB, 4096 (bytes). Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 conflict or in use,\n' +
      '5 a daemon or dependency is missing, 6 not ended yet, 130 cancelled. Commands other than serve, demo and doctor\n' +
      'speak to a running daemon: lunpath serve.',
  )

for (const add of [
  volumeCommands,
  exportCommands,
  attachmentCommands,
  nodeCommands,
  benchCommand,
  serveCommand,
  doctorCommand,
  demoCommand,
]) {
  add(program)
}
for (const command of allCommands(program)) command.exitOverride().showHelpAfterError('(--help shows what there is)')

function allCommands(command: Command): Command[] {
  return command.commands.flatMap(child => [child, ...allCommands(child)])
}

// A reader that closes its end early (head, less) is not an error.
process.stdout.on('error', error => {
  if ((error as NodeJS.ErrnoException).code === 'EPIPE') process.exit(0)
})

try {
  await program.parseAsync()
} catch (error) {
  if (error instanceof CommanderError) {
    process.exitCode = error.exitCode === 0 ? 0 : 2
  } else {
    printError(error, {json: program.opts<{json?: boolean}>().json ?? false})
    process.exitCode = exitCodeOf(error)
  }
}
