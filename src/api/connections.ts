import type {IncomingMessage, ServerResponse} from 'node:http'
import type {Duplex} from 'node:stream'
import type {FastifyInstance} from 'fastify'
import {notHttp, refuseConnection, refuseResponse} from './answers.js'

/** What a client has to read an answer that was given when the daemon ends. */
const unreadGraceMs = 1_000

/**
 * What Node answers by itself, or not at all: each gets the API's own form. A connection on which an answer is under way cannot
 * carry another one, and is closed.
 */
export function refuseBelowRoutes({server}: FastifyInstance): void {
  server.on('checkExpectation', (_request: IncomingMessage, response: ServerResponse) =>
    refuseResponse(response, notHttp('it expects something else than 100-continue')),
  )
  server.on('connect', (_request: IncomingMessage, socket: Duplex) =>
    refuseConnection(socket, notHttp('there is nothing to connect to')),
  )
}

/** For `clientErrorHandler`: bytes that are no request, or that do not come. */
export function refuseClientError(error: NodeJS.ErrnoException, socket: Duplex): void {
  const answering = (socket as Duplex & {_httpMessage?: ServerResponse})._httpMessage
  if (error.code === 'ECONNRESET' || !socket.writable || answering?.headersSent) {
    socket.destroy()
    return
  }
  refuseConnection(socket, notHttp(error.message))
}

/**
 * Lets the server end. It waits for each open connection, and one client that sends half a request, or does not read its answer,
 * would keep it for ever. So when it is told to end, connections without a request at work are closed, and the others when their
 * answer is out. What is at work goes on: its answer is waited for.
 */
export function endConnections(api: FastifyInstance): void {
  const open = new Set<Duplex>()
  const atWork = new Set<ServerResponse>()
  const {stopping} = api
  let timer: NodeJS.Timeout | undefined
  const isAtWork = (socket: Duplex) => [...atWork].some(response => response.req.socket === socket)
  api.server.on('connection', (socket: Duplex) => {
    open.add(socket)
    socket.once('close', () => open.delete(socket))
    if (stopping.aborted) socket.destroy()
  })
  api.addHook('preHandler', async ({raw: {socket}}, {raw}) => {
    atWork.add(raw)
    raw.once('close', () => {
      atWork.delete(raw)
      if (stopping.aborted && !isAtWork(socket)) socket.destroySoon()
    })
  })
  stopping.addEventListener('abort', () => {
    for (const socket of open) if (!isAtWork(socket)) socket.destroy()
    const unread = new Set<ServerResponse>()
    timer = setInterval(() => {
      for (const response of atWork) {
        if (unread.has(response)) response.destroy()
        else if (response.writableEnded) unread.add(response)
      }
    }, unreadGraceMs)
  })
  api.addHook('onClose', async () => clearInterval(timer))
}
