import type {FastifyReply, FastifyRequest} from 'fastify'
import {describe} from '../attach/run.js'

/**
 * An answer in parts for long work: any number of lines while it goes on, then exactly one `{"result": …}` or
 * `{"error": …}`. JSON lines (application/x-ndjson), or server-sent events (text/event-stream): there a line's key is
 * the event's name and its value the data.
 */
export function lineAnswer(
  reply: FastifyReply,
  form: 'lines' | 'events' = 'lines',
): {
  sendLine(value: object): void
  end(work: Promise<unknown>): Promise<void>
} {
  reply.hijack()
  const {raw} = reply
  const asEvents = form === 'events'
  const sendLine = (value: object) => {
    if (raw.destroyed) return
    if (!raw.headersSent) {
      const type = asEvents ? 'text/event-stream' : 'application/x-ndjson'
      raw.writeHead(200, {'content-type': type, ...(asEvents ? {'cache-control': 'no-store'} : {})})
    }
    raw.write(asEvents ? eventOf(value) : `${JSON.stringify(value)}\n`)
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

/** One event of HTML's server-sent events: JSON has no line break in it. */
function eventOf(value: object): string {
  return Object.entries(value)
    .map(([name, data]) => `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`)
    .join('')
}

/** As what a client wants to have an answer in parts. */
export function formOf({headers}: FastifyRequest): 'lines' | 'events' {
  return headers.accept?.includes('text/event-stream') ? 'events' : 'lines'
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
