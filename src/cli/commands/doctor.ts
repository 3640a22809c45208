import type {Command} from 'commander'
import {printJson} from '../output.js'

/** `lunpath doctor`: works without a daemon. Exit code 5 where a driver cannot work. */
export function doctorCommand(program: Command): void {
  program
    .command('doctor')
    .description('what each driver needs on this machine, what is missing and how to get it, and who holds port 3260')
    .option('--config <file>', 'configuration, TOML (default: /etc/lunpath/lunpath.toml where it exists)')
    .addHelpText('after', '\nIt needs no daemon and changes nothing. Exit code 5 where something is missing.')
    .action(async ({config: path}, command: Command) => {
      const {examineNode, formatChecks, readConfig} = await import('../local.js')
      const checks = await examineNode(await readConfig(path))
      if (command.optsWithGlobals<{json?: boolean}>().json) printJson(checks)
      else process.stdout.write(formatChecks(checks))
      if (checks.some(({status}) => status === 'missing')) process.exitCode = 5
    })
}
