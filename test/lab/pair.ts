import {appendFileSync} from 'node:fs'
import {PassThrough} from 'node:stream'
import {fileURLToPath} from 'node:url'
import type {RunOptions, RunResult} from '../../src/exec.js'
import {logFile} from '../run/logs.js'
import type {AgentAnswer, AgentRequest} from './agent.js'
import {Cable} from './cable.js'
import {type LabOptions, onLines, runInLab} from './vm.js'

/** Of one machine of a pair. */
export type PairedOptions = Pick<LabOptions, 'machine' | 'memoryMiB' | 'disksBytes' | 'modules'>

export interface Pair {
  machines: readonly [PairedMachine, PairedMachine]
  cable: Cable
  close(): Promise<void>
}

type Body = AgentRequest extends infer Request ? (Request extends unknown ? Omit<Request, 'id'> : never) : never
interface Waiting {
  resolve(value: unknown): void
  reject(error: Error): void
}

/**
 * Two machines of the lab with a cable between them, which a test can cut, mend, delay and make lossy. The first has the
 * address 10.0.0.1, the second 10.0.0.2, on the interface cable0; host names are lab-1 and lab-2, and the names of their
 * iSCSI initiators end so. Each ends with close(), with this process, and at the deadline.
 * @throws LabError
 */
export async function makePair(options: readonly [PairedOptions, PairedOptions], deadlineMs: number): Promise<Pair> {
  const cable = await Cable.make()
  const machines = options.map((one, i) => new PairedMachine(i + 1, one, {port: cable.ports[i]!, deadlineMs}))
  const [first, second] = machines as [PairedMachine, PairedMachine]
  const close = async () => {
    await Promise.all(machines.map(machine => machine.close()))
    cable.close()
  }
  try {
    await Promise.all(machines.map(machine => machine.nameItself()))
    // The cable learns from a machine's first frame where it is, and each asks for the other's address by one.
    await Promise.all([first.reaches(second), second.reaches(first)])
  } catch (error) {
    await close()
    throw error
  }
  return {machines: [first, second], cable, close}
}

export class PairedMachine {
  readonly address: string
  readonly #input = new PassThrough()
  readonly #abort = new AbortController()
  readonly #ended: Promise<number>
  readonly #waiting = new Map<number, Waiting>()
  readonly #number: number
  #lastId = 0
  #stderr = ''

  constructor(number: number, options: PairedOptions, {port, deadlineMs}: {port: number; deadlineMs: number}) {
    this.#number = number
    this.address = `10.0.0.${number}`
    const output = new PassThrough()
    onLines(output, line => this.#settle(JSON.parse(line) as AgentAnswer))
    const agent = fileURLToPath(new URL('agent.js', import.meta.url))
    this.#ended = runInLab([process.execPath, agent], {
      ...options,
      conversation: {input: this.#input, output},
      cable: {port, address: `${this.address}/24`},
      environment: {LUNPATH_LAB_AGENT: '1', LUNPATH_INSIDE_LAB: '1'},
      signal: this.#abort.signal,
      deadlineMs,
      onConsole: chunk => appendFileSync(logFile(`${this.name}-console`), chunk),
      onStderr: chunk => {
        appendFileSync(logFile(`${this.name}-stderr`), chunk)
        this.#stderr = `${this.#stderr}${chunk}`.slice(-4096)
      },
    })
    this.#ended.catch(() => undefined)
  }

  get name(): string {
    return `lab-${this.#number}`
  }

  /** As src/exec.ts runs a program, there. @throws Error with the `code` that it had there, LabError */
  async run(
    file: string,
    args: readonly string[] = [],
    options: Pick<RunOptions, 'timeoutMs' | 'env' | 'accept'> & {input?: string} = {},
  ): Promise<RunResult> {
    return (await this.#ask({run: {file, args, options}})) as RunResult
  }

  /**
   * Calls what a compiled module exports, there. What it keeps in the module's variables is there at the next call.
   * @param args and the result, as JSON carries them
   */
  async call<Result>(module: URL, name: string, ...args: readonly unknown[]): Promise<Result> {
    return (await this.#ask({call: {module: module.href, name, args}})) as Result
  }

  async close(): Promise<void> {
    this.#abort.abort()
    await this.#ended.catch(() => undefined)
  }

  async nameItself(): Promise<void> {
    await this.run('hostname', [this.name])
    const initiator = `InitiatorName=iqn.2026-01.io.lunpath.lab:${this.name}\n`
    await this.run('tee', ['/etc/iscsi/initiatorname.iscsi'], {input: initiator})
  }

  async reaches(other: PairedMachine): Promise<void> {
    await this.run('busybox', ['arping', '-c', '1', '-w', '30', '-I', 'cable0', other.address], {timeoutMs: 40_000})
  }

  #ask(body: Body): Promise<unknown> {
    const id = ++this.#lastId
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, {resolve, reject})
      this.#input.write(`${JSON.stringify({id, ...body})}\n`)
      // After its end nobody answers.
      void this.#ended.then(
        code => reject(new Error(`${this.name} ended with exit code ${code}\n${this.#stderr}`)),
        reject,
      )
    })
  }

  #settle(answer: AgentAnswer): void {
    const waiting = this.#waiting.get(answer.id)
    this.#waiting.delete(answer.id)
    if ('error' in answer) {
      const {message, code, stack} = answer.error
      waiting?.reject(Object.assign(new Error(`${this.name}: ${message}`), {code, stack}))
    } else waiting?.resolve(answer.value)
  }
}
