import type {Command} from 'commander'
import {StorageError} from '../../errors.js'
import {printJson} from '../output.js'

/** `lunpath demo`: the main job, for real, on servers of its own. */
export function demoCommand(program: Command): void {
  program
    .command('demo')
    .description(
      'a volume becomes a disk in a running VM and is taken down again, on servers of its own; leaves nothing',
    )
    .option('--keep', 'before the take-down, wait for Ctrl-C and say how to look around')
    .addHelpText(
      'after',
      `
It needs root and no daemon: it works in a directory of its own below the system's temporary one, with
a libvirtd, a tgtd and a guest of its own. Ctrl-C at any point removes all of it.`,
    )
    .action(async ({keep}, command: Command) => {
      const {formatStep, runDemo} = await import('../local.js')
      const json = command.optsWithGlobals<{json?: boolean}>().json ?? false
      const started = Date.now()
      const cancel = new AbortController()
      let release: (() => void) | undefined
      const onSignal = () => {
        if (release) return release()
        cancel.abort(new StorageError('CANCELLED', 'Cancelled; everything that ran is stopped and removed'))
      }
      for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, onSignal)
      const lookAround = async (hints: string[]) => {
        process.stderr.write(
          `\nAll of it runs. Look around from another shell:\n${hints.map(hint => `  ${hint}\n`).join('')}Ctrl-C ends it.\n\n`,
        )
        const idle = setInterval(() => {}, 60_000)
        await new Promise<void>(resolve => {
          release = resolve
        })
        release = undefined
        clearInterval(idle)
      }
      const steps = await runDemo({
        signal: cancel.signal,
        announce: (report, line) => {
          if (!json) process.stdout.write(`${formatStep(report, line)}\n`)
        },
        lookAround: keep ? lookAround : undefined,
      })
      const seconds = ((Date.now() - started) / 1000).toFixed(1)
      if (json) printJson({ok: true, steps})
      else process.stdout.write(`\nDone in ${seconds} s: a volume became a disk in a VM, and nothing of it is left.\n`)
    })
}
