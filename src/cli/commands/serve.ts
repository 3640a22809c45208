import {constants} from 'node:os'
import type {Command} from 'commander'
import {readConfig} from '../../config.js'
import {Daemon} from '../../daemon.js'

/** `lunpath serve`: the daemon, in the foreground; a service manager or a shell puts it where it belongs. */
export function serveCommand(program: Command): void {
  program
    .command('serve')
    .description('run the daemon: the API on a unix socket, /metrics on a TCP listener')
    .option('--config <file>', 'configuration, TOML (default: /etc/lunpath/lunpath.toml where it exists)')
    .action(async ({config: path}) => {
      const config = await readConfig(path)
      const daemon = await Daemon.start(config)
      for (const signal of ['SIGINT', 'SIGTERM'] as const) {
        process.once(signal, () => {
          void daemon.close().then(() => process.exit(signal === 'SIGTERM' ? 0 : 128 + constants.signals[signal]))
        })
      }
    })
}
