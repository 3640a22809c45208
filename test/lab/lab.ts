import {appendFileSync} from 'node:fs'
import {Readable} from 'node:stream'
import {fileURLToPath} from 'node:url'
import test, {type ExecutionContext} from 'ava'
import {packageRoot} from '../../src/native.js'
import {logFile} from '../run/logs.js'
import {diskOfLab} from './disk.js'
import type {Outcome} from './inside.js'
import {makePair, type Pair, type PairedOptions} from './pair.js'
import {type LabOptions, onLines, runInLab} from './vm.js'

/** True in the VM. A test file is loaded there too, so what it does beside declaring tests happens on both sides. */
export const insideLab = process.env.LUNPATH_INSIDE_LAB === '1'

/** Of the file's one VM. The deadline, by default 4 minutes, is for boot and tests together. */
export type FileLabOptions = Pick<
  LabOptions,
  'machine' | 'memoryMiB' | 'cpus' | 'disksBytes' | 'modules' | 'deadlineMs'
>

/** The path of the file's disk of that number. On the host, where the file is loaded too, a name that no device has. */
export function labDisk(number: number): string {
  return insideLab ? diskOfLab(number) : `/dev/lab-disk-${number}`
}

type Implementation = (t: ExecutionContext) => unknown

const given: FileLabOptions = {deadlineMs: 240_000}
const marginMs = 30_000
const stderrTailBytes = 4096

/**
 * Declares a test that runs in the lab: a VM with Debian's kernel and this machine's files, one for the whole file (vm.ts
 * says what it has and lacks). The same file is loaded in the VM, where the lab's tests run one after another, as root,
 * and ordinary tests do not; each test's result, error and log become those of the test of that title here. Hooks of the
 * file run on both sides: `insideLab` tells them where they are.
 *
 * A test whose result does not arrive fails, with the console's end where the VM crashed or met its deadline.
 */
export function lab(title: string, implementation: Implementation): void {
  if (insideLab) {
    // Exclusive, so that the file's ordinary tests stay out.
    test.serial.only(title, implementation)
    return
  }
  if (declared.size === 0) test.after.always('the lab ends well', endsWell)
  const arrival = new Arrival()
  declared.set(title, arrival)
  test(title, async t => {
    t.timeout(given.deadlineMs! + marginMs)
    ended ??= runFile()
    void ended.catch(() => undefined)
    adopt(t, await Promise.race([arrival.outcome, ended.then(() => arrival.outcome)]))
  })
}

/** How the VM of this file is made; to be called before its tests run. */
lab.options = (options: FileLabOptions): void => {
  Object.assign(given, options)
}

/**
 * Two machines with a cable between them, for a test on the host (pair.ts); they end with the test.
 * @param options of each; the deadline, from here to the test's end, is that of lab.options()
 */
lab.pair = async (t: ExecutionContext, options: readonly [PairedOptions, PairedOptions] = [{}, {}]): Promise<Pair> => {
  t.timeout(given.deadlineMs! + marginMs)
  const pair = await makePair(options, given.deadlineMs!)
  t.teardown(() => pair.close())
  return pair
}

lab.skip = (title: string, implementation: Implementation): void => {
  test.skip(title, implementation)
}

class Arrival {
  arrive!: (outcome: Outcome) => void
  readonly outcome = new Promise<Outcome>(resolve => {
    this.arrive = resolve
  })
}

const declared = new Map<string, Arrival>()
/** What failed in the VM and is no test of ours: a hook, a rejection that nobody handled. */
const strays: Outcome[] = []
let ended: Promise<void> | undefined

/** Runs this file in the VM; settles when the VM has ended and every test has its outcome. */
async function runFile(): Promise<void> {
  const results = new Readable({read() {}})
  let stderr = Buffer.alloc(0)
  onLines(results, line => {
    const outcome = parseOutcome(line)
    if (!outcome) return
    const arrival = declared.get(outcome.title)
    if (arrival) arrival.arrive(outcome)
    else if (!outcome.passed) strays.push(outcome)
  })
  const inside = fileURLToPath(new URL('inside.js', import.meta.url))
  const code = await runInLab([process.execPath, inside, fileURLToPath(test.meta.file)], {
    ...given,
    environment: {LUNPATH_INSIDE_LAB: '1', LUNPATH_TEST_LOGS: '/tmp'},
    directory: packageRoot(),
    onMachine: (title, reason) => {
      if (reason) process.stderr.write(`lab: ${title} runs ${test.meta.file}, since:\n${reason}\n`)
    },
    onStdout: chunk => results.push(chunk),
    onConsole: chunk => appendFileSync(logFile('console'), chunk),
    onStderr: chunk => {
      appendFileSync(logFile('stderr'), chunk)
      stderr = Buffer.concat([stderr, chunk]).subarray(-stderrTailBytes)
    },
  })
  results.push(null)
  await new Promise(resolve => results.once('end', resolve))
  const said = stderr.toString('utf8').trim()
  if (code !== 0) strays.push({title: `the test file ended with exit code ${code}`, passed: false, logs: [said]})
  for (const [title, arrival] of declared) {
    arrival.arrive({
      title,
      passed: false,
      message: `The lab ended with exit code ${code} and no result of this test`,
      logs: [said],
    })
  }
}

function parseOutcome(line: string): Outcome | undefined {
  try {
    return JSON.parse(line) as Outcome
  } catch {
    // A program that a test started with our standard output.
    return undefined
  }
}

/** Takes over what the test did in the VM. */
function adopt(t: ExecutionContext, {passed, message, details = [], logs = []}: Outcome): void {
  for (const log of logs.filter(Boolean)) t.log(log)
  if (passed) {
    t.pass()
    return
  }
  for (const detail of details) t.log(detail)
  t.fail(message)
}

async function endsWell(t: ExecutionContext): Promise<void> {
  await ended
  for (const {title, message, details = [], logs = []} of strays)
    t.log([title, message, ...details, ...logs].join('\n'))
  if (strays.length > 0) t.fail(`In the lab failed: ${strays.map(({title}) => title).join(', ')}`)
}
