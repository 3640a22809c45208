import {type Command, InvalidArgumentError, Option} from 'commander'
import {type BenchReport, textReport, textSample} from '../../bench/report.js'
import type {BenchSample} from '../../bench/run.js'
import {parseSize} from '../../size.js'
import {endProgress, printJson, showProgress} from '../output.js'
import {positiveSeconds, withDaemon} from '../session.js'

/** `lunpath bench VOLUME`: reads the exported LUN over iSCSI. Ctrl-C ends it. */
export function benchCommand(program: Command): void {
  program
    .command('bench <volume>')
    .description('measure reads of an exported volume over iSCSI; nothing is written')
    .addOption(new Option('--rw <pattern>', 'what to read').choices(['read', 'randread']).default('randread'))
    .option('--bs <size>', 'bytes of one I/O', parseSize, 4096)
    .option('--iodepth <n>', 'I/Os in flight', wholeNumber, 32)
    .option('--runtime <seconds>', 'how long', positiveSeconds, 5)
    .option('--seed <n>', 'of the random offsets: the same seed gives the same offsets', wholeNumber)
    .addHelpText(
      'after',
      `
The words are fio's. The volume must be exported; it may be attached to a guest meanwhile.

Examples:
  lunpath bench db1
  lunpath bench db1 --rw read --bs 1MiB --iodepth 8 --runtime 30 --json`,
    )
    .action((volume: string, options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const onLine = ({sample}: Record<string, unknown>) => showProgress(textSample(sample as BenchSample))
        const result = await call<BenchReport>('POST', '/bench', {volume, ...options}, {onLine}).finally(endProgress)
        if (json) printJson(result)
        else process.stdout.write(`${textReport(result).join('\n')}\n`)
        if (result.state !== 'finished') process.exitCode = result.state === 'cancelled' ? 130 : 1
      }),
    )
}

function wholeNumber(text: string): number {
  if (!/^\d+$/.test(text)) throw new InvalidArgumentError('expected a whole number')
  return Number(text)
}
