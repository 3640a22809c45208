import {Command, CommanderError, InvalidArgumentError, Option} from 'commander'
import {parseSize} from '../../src/size.js'
import {defaultMemoryMiB, type MachineName} from './machine.js'
import {machineNames} from './machines.js'
import {LabError, type LabOptions, runInLab} from './vm.js'

interface Flags {
  machine?: MachineName
  which?: boolean
  memory: number
  disk: number[]
  module: string[]
  env: Record<string, string>
  deadline: number
  console?: boolean
}

const program = new Command('npm run lab --')
  .description('Runs a command, or a shell without one, with a kernel of its own and this machine’s files.')
  .argument('[command...]', 'with its arguments; runs in the checkout')
  .option('--memory <MiB>', 'the machine’s memory', positive, defaultMemoryMiB)
  .option('--disk <size>', 'an empty disk, as 2GiB; can be given more than once', addDisk, [])
  .option('--module <name>', 'a kernel module to load; can be given more than once', collect, [])
  .option('--env <name=value>', 'for the command; can be given more than once', addVariable, {})
  .option('--deadline <seconds>', 'for a command, not for a shell', positive, 600)
  .addOption(
    new Option('--machine <name>', 'User Mode Linux or QEMU; default: uml, and qemu where that cannot run').choices(
      machineNames,
    ),
  )
  .option('--which', 'starts the machine, says which it is and why, and ends')
  .option('--console', 'the kernel’s messages, on standard error')
  .passThroughOptions()
  .helpOption('-h, --help', 'this text')
  .exitOverride()
  .addHelpText(
    'after',
    `
All that is here is there, and what the command writes is gone afterwards. /tmp and /run are its own. Nothing of the
machine stays behind; Ctrl-C ends it. User Mode Linux runs at this machine’s speed with one processor, and calls its disks
/dev/ubda, /dev/ubdb …; QEMU emulates a processor, and calls them /dev/vda, /dev/vdb … . LUNPATH_LAB_MACHINE stands for
--machine, for the tests as well.

Exit codes: the command's own; 2 wrong usage, 124 deadline, 125 the machine failed or crashed, 130 Ctrl-C.

Examples:
  npm run lab -- uname -r
  npm run lab -- --disk 1GiB --module dm-thin-pool sh -c 'pvcreate /dev/ubda && pvs'
  npm run lab -- --disk 1GiB               a shell`,
  )

function positive(text: string): number {
  const value = Number(text)
  if (!Number.isInteger(value) || value <= 0) throw new InvalidArgumentError('A whole number above 0 is needed.')
  return value
}

function addDisk(text: string, all: number[]): number[] {
  try {
    return [...all, parseSize(text)]
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message)
  }
}

function collect(text: string, all: string[]): string[] {
  return [...all, text]
}

function addVariable(text: string, all: Record<string, string>): Record<string, string> {
  const at = text.indexOf('=')
  if (at <= 0) throw new InvalidArgumentError('NAME=VALUE is needed.')
  return {...all, [text.slice(0, at)]: text.slice(at + 1)}
}

async function main(): Promise<number> {
  program.parse()
  const flags = program.opts<Flags>()
  const abort = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => abort.abort())
  const options: LabOptions = {
    machine: flags.machine,
    memoryMiB: flags.memory,
    disksBytes: flags.disk,
    modules: flags.module,
    environment: flags.env,
    signal: abort.signal,
    onStdout: chunk => process.stdout.write(chunk),
    onStderr: chunk => process.stderr.write(chunk),
  }
  if (flags.which) {
    options.onMachine = (title, reason) => process.stdout.write(reason ? `${title}, since:\n${reason}\n` : `${title}\n`)
    return runInLab(['true'], {...options, deadlineMs: flags.deadline * 1000})
  }
  const shellWanted = program.args.length === 0
  options.onMachine = (title, reason) => {
    if (reason) process.stderr.write(`lab: ${title} runs the command, since:\n${reason}\n`)
    else if (shellWanted) process.stderr.write(`lab: a shell in ${title}; exit or Ctrl-D ends it\n`)
  }
  if (flags.console) options.onConsole = chunk => process.stderr.write(chunk)
  if (!shellWanted) {
    return runInLab(program.args, {...options, deadlineMs: flags.deadline * 1000})
  }
  return shell(options)
}

async function shell(options: LabOptions): Promise<number> {
  const {stdin, stdout} = process
  if (!stdin.isTTY || !stdout.isTTY) program.error('a shell needs a terminal; give a COMMAND', {exitCode: 2})
  stdin.setRawMode(true)
  try {
    const terminal = {input: stdin, output: stdout, rows: stdout.rows, columns: stdout.columns}
    return await runInLab(['bash', '-i'], {...options, terminal, deadlineMs: Number.POSITIVE_INFINITY})
  } finally {
    stdin.setRawMode(false)
    stdin.unref()
  }
}

main().then(
  code => {
    process.exitCode = code
  },
  error => {
    if (error instanceof CommanderError) {
      process.exitCode = error.exitCode === 0 ? 0 : 2
      return
    }
    process.stderr.write(`lab: ${error instanceof LabError ? error.message : (error.stack ?? error)}\n`)
    const codes: Record<string, number> = {LAB_DEADLINE: 124, LAB_CANCELLED: 130}
    process.exitCode = codes[error.code as string] ?? 125
  },
)
