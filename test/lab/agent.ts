// What a machine of a pair runs (pair.ts): it gets requests as lines of JSON on standard input and answers each with a line
// on standard output. What it runs writes to standard error, or into the answer.
import {writeSync} from 'node:fs'
import {type RunOptions, run} from '../../src/exec.js'
import {onLines} from './vm.js'

export type AgentRequest =
  | {id: number; run: {file: string; args: readonly string[]; options: RunOptions}}
  /** Calls what a module exports under that name, with arguments and a result that JSON can carry. */
  | {id: number; call: {module: string; name: string; args: readonly unknown[]}}

export type AgentAnswer =
  | {id: number; value?: unknown}
  | {id: number; error: {message: string; code?: string; stack?: string}}

if (process.env.LUNPATH_LAB_AGENT === '1') listen()

function listen(): void {
  process.stdout.write = process.stderr.write.bind(process.stderr)
  onLines(process.stdin, line => {
    const request = JSON.parse(line) as AgentRequest
    void answer(request).then(reply => writeSync(1, `${JSON.stringify(reply)}\n`))
  })
}

async function answer(request: AgentRequest): Promise<AgentAnswer> {
  const {id} = request
  try {
    if ('run' in request) {
      const {file, args, options} = request.run
      return {id, value: await run(file, args, options)}
    }
    const {module, name, args} = request.call
    const exported = (await import(module)) as Record<string, (...args: unknown[]) => unknown>
    const value = await exported[name]!(...args)
    return {id, value}
  } catch (error) {
    const {message, code, stack} = error as Error & {code?: string}
    return {id, error: {message, code, stack}}
  }
}
