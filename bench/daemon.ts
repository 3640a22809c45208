import {type ChildProcess, spawn} from 'node:child_process'
import {once} from 'node:events'
import {writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {setTimeout as sleep} from 'node:timers/promises'
import {ApiClient} from '../src/api/client.js'

/** A daemon as `lunpath serve` runs it, in a process of its own. */
export interface BenchDaemon {
  pid: number
  socket: string
  stop(): Promise<void>
}

/** @param sections of the configuration, beside `[daemon]`, which has everything in `directory`. */
export async function startDaemon(directory: string, sections: string): Promise<BenchDaemon> {
  const config = join(directory, 'lunpath.toml')
  const socket = join(directory, 'api.sock')
  const daemon = `[daemon]\ndirectory = "${directory}"\nsocket = "${socket}"\nlogLevel = "warn"\n`
  await writeFile(config, daemon + sections)
  const child = spawn(process.execPath, ['dist/bin/lunpath.cjs', 'serve', '--config', config], {
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  if (!(await serves(child, socket))) {
    await end(child)
    throw new Error('the daemon did not start')
  }
  return {pid: child.pid!, socket, stop: () => end(child)}
}

async function serves(child: ChildProcess, socket: string): Promise<boolean> {
  const client = new ApiClient(socket)
  try {
    for (let tries = 0; tries < 1200 && isAlive(child); tries++) {
      const {state} = await client.call<{state: string}>('GET', '/status').catch(() => ({state: 'not there'}))
      if (state === 'serving') return true
      await sleep(50)
    }
    return false
  } finally {
    client.close()
  }
}

async function end(child: ChildProcess): Promise<void> {
  if (!isAlive(child)) return
  const exited = once(child, 'exit')
  child.kill('SIGTERM')
  await exited
}

function isAlive(child: ChildProcess): boolean {
  return child.exitCode === null && child.signalCode === null
}
