import {randomInt} from 'node:crypto'
import {createServer} from 'node:net'

// The kernel takes ports for outgoing connections from 32768 on (ip(7), ip_local_port_range). One from there could be
// gone again before a server that is told to use it listens.
const firstPort = 10_000
const lastPort = 32_767

/** A TCP port on loopback that was free a moment ago, outside the range of outgoing connections. */
export async function freePort(address = '127.0.0.1'): Promise<number> {
  for (;;) {
    const port = randomInt(firstPort, lastPort + 1)
    if (await isFree(address, port)) return port
  }
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
