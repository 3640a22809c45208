import type {FastifyReply} from 'fastify'
import {describe} from '../attach/run.js'

/**
 * An answer of JSON lines (application/x-ndjson) for long work: any number of lines while it goes on, then exactly one
 * `{"result": …}` or `{"error": …}`.
 */
export function lineAnswer(reply: FastifyReply): {
  sendLine(value: object): void
  end(work: Promise<unknown>): Promise<void>
} {
  reply.hijack()
  const {raw} = reply
  const sendLine = (value: object) => {
    if (raw.destroyed) return
    if (!raw.headersSent) raw.writeHead(200, {'content-type': 'application/x-ndjson'})
    raw.write(`${JSON.stringify(value)}\n`)
  }
  return {
    sendLine,
    async end(work) {
      await work.then(
        result => sendLine({result}),
        error => sendLine({error: describe(error)}),
      )
      raw.end()
    },
  }
}

/** Calls `action` at most ten times a second; the calls between are dropped. */
export function throttled<T>(action: (value: T) => void): (value: T) => void {
  let last = 0
  return value => {
    const now = Date.now()
    if (now - last < 100) return
    last = now
    action(value)
  }
}
