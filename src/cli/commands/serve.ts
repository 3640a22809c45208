import {constants} from 'node:os'
import type {Command} from 'commander'
import type {Daemon} from '../../daemon.js'

/** `lunpath serve`: the daemon, in the foreground; a service manager or a shell puts it where it belongs. */
export function serveCommand(program: Command): void {
  program
    .command('serve')
    .description('run the daemon: the API on a unix socket, /metrics on a TCP listener; log lines on standard output')
    .option('--config <file>', 'configuration, TOML (default: /etc/lunpath/lunpath.toml where it exists)')
    .addHelpText(
      'after',
      `
SIGTERM and Ctrl-C end it; the tgtd that it runs stays, since guests do their I/O through it.
Without --config and without that file every setting has its default: docs/operating.md.

Examples:
  lunpath serve
  lunpath serve --config ./lunpath.toml`,
    )
    .action(async ({config: path}) => {
      const {Daemon: Served, readConfig} = await import('../local.js')
      const config = await readConfig(path)
      const ending = new AbortController()
      let daemon: Daemon | undefined
      let exitCode = 0
      const end = () => daemon?.close().then(() => process.exit(exitCode))
      // Before the start, which may last: told to end in its midst, the daemon ends as clean as later.
      for (const signal of ['SIGINT', 'SIGTERM'] as const) {
        process.once(signal, () => {
          exitCode = signal === 'SIGTERM' ? 0 : 128 + constants.signals[signal]
          ending.abort()
          void end()
        })
      }
      daemon = await Served.start(config, {signal: ending.signal}).catch(error => {
        if (ending.signal.aborted) process.exit(exitCode)
        throw error
      })
      if (ending.signal.aborted) await end()
    })
}
