import {randomInt} from 'node:crypto'
import {createServer} from 'node:net'

// The kernel takes ports for outgoing connections from 32768 on (ip(7), ip_local_port_range). One from there could be
// gone again before a server that is told to use it listens.
const firstPort = 10_000
const slices = 64
const portsPerSlice = Math.floor((32_768 - firstPort) / slices)
// Two processes with the same range begin at different places in it.
let given = randomInt(portsPerSlice)

/**
 * A TCP port on loopback that was free a moment ago. Each is given out once in a process, and processes that start one
 * after the other take theirs from different ranges, so that nobody else picks it before it is listened on.
 */
export async function freePort(address = '127.0.0.1'): Promise<number> {
  for (let tries = 0; tries < portsPerSlice; tries++) {
    const port = firstPort + (process.pid % slices) * portsPerSlice + (given++ % portsPerSlice)
    if (await isFree(address, port)) return port
  }
  throw new Error(`No port is free on ${address}`)
}

function isFree(address: string, port: number): Promise<boolean> {
  const server = createServer()
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE') resolve(false)
      else reject(error)
    })
    server.listen(port, address, () => server.close(() => resolve(true)))
  })
}
