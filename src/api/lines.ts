import type {FastifyReply, FastifyRequest} from 'fastify'
import {describe} from '../attach/run.js'

/** What may wait for a client that does not read: more than any burst of samples, and nothing to a daemon with many clients. */
const maxUnreadBytes = 256 * 1024

/** Sends one line of an answer. False where it was dropped, since the client does not read what it has got. */
export type SendLine = (value: object) => boolean

/**
 * An answer in parts for long work: any number of lines while it goes on, then exactly one `{"result": …}` or
 * `{"error": …}`. JSON lines (application/x-ndjson), or server-sent events (text/event-stream): there a line's key is
 * the event's name and its value the data. Until the first line nothing has been answered, so that a refusal is an answer like any
 * other, with its status.
 */
export async function answerInLines(
  reply: FastifyReply,
  form: 'lines' | 'events',
  work: (sendLine: SendLine) => Promise<unknown>,
): Promise<void> {
  const {write, sendLine} = lineSender(reply, form)
  try {
    write({result: await work(sendLine)})
  } catch (error) {
    if (!reply.raw.headersSent) throw error
    write({error: describe(error)})
  }
  reply.raw.end()
}

/** Takes the reply over from fastify with the first line. `write` drops nothing: it is for the last line. */
export function lineSender(
  reply: FastifyReply,
  form: 'lines' | 'events',
): {write: (value: object) => void; sendLine: SendLine} {
  const {raw} = reply
  const asEvents = form === 'events'
  const write = (value: object) => {
    if (raw.destroyed) return
    if (!raw.headersSent) {
      reply.hijack()
      const type = asEvents ? 'text/event-stream' : 'application/x-ndjson'
      raw.writeHead(200, {'content-type': type, ...(asEvents ? {'cache-control': 'no-store'} : {})})
    }
    raw.write(asEvents ? eventOf(value) : `${JSON.stringify(value)}\n`)
  }
  const sendLine = (value: object) => {
    if (raw.writableLength > maxUnreadBytes) return false
    write(value)
    return true
  }
  return {write, sendLine}
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
