// A CHAP secret that an addon was given is nowhere in its memory when the call has ended: not in what was sent, not in the
// arguments, not in libiscsi's context. Whoever reads a core file or the swap later does not find it.
import {fork} from 'node:child_process'
import {once} from 'node:events'
import {open, readFile, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {fileURLToPath} from 'node:url'
import test from 'ava'
import {temporaryDirectory} from '../contract/targets.js'
import {makeLun} from '../fixtures/lun-by-hand.js'
import {nodeEnvironment} from '../fixtures/node-environment.js'
import {secretCodes} from '../fixtures/secret-codes.js'
import {startTgtd} from '../fixtures/tgtd-by-hand.js'

const program = fileURLToPath(new URL('../fixtures/secret-holder.js', import.meta.url))
const chunkBytes = 16 * 2 ** 20
// The sanitizers' shadow is terabytes of pages that nobody has touched.
const longestBytes = 2 ** 30

interface Region {
  from: number
  to: number
  name: string
}

async function writableRegions(pid: number): Promise<Region[]> {
  const maps = await readFile(`/proc/${pid}/maps`, 'utf8')
  return maps
    .split('\n')
    .filter(line => /^\S+ rw/.test(line))
    .map(line => {
      const [range, , , , , name = ''] = line.split(/\s+/)
      const [from, to] = range!.split('-').map(text => Number.parseInt(text, 16))
      return {from: from!, to: to!, name}
    })
    .filter(({from, to}) => to - from <= longestBytes)
}

/** Where in a process's memory the bytes are. */
async function findIn(pid: number, needles: Map<number, Buffer>): Promise<{seed: number; name: string}[]> {
  const memory = await open(`/proc/${pid}/mem`, 'r')
  const buffer = Buffer.alloc(chunkBytes)
  const found: {seed: number; name: string}[] = []
  try {
    for (const {from, to, name} of await writableRegions(pid)) {
      // Chunks overlap, for what lies across two.
      for (let at = from; at < to; at += chunkBytes - 64) {
        const length = Math.min(chunkBytes, to - at)
        const {bytesRead} = await memory.read(buffer, 0, length, at).catch(() => ({bytesRead: 0}))
        for (const [seed, needle] of needles) {
          if (buffer.subarray(0, bytesRead).includes(needle)) found.push({seed, name})
        }
      }
    }
  } finally {
    await memory.close()
  }
  return found
}

test('no addon leaves a secret behind', async t => {
  const tgtd = await startTgtd()
  t.teardown(() => tgtd.stop())
  const lun = await makeLun(tgtd, 1)
  t.teardown(() => lun.remove())
  const child = fork(program, [], {env: nodeEnvironment()})
  t.teardown(() => child.kill('SIGKILL'))
  const ended = once(child, 'exit').then(([code, signal]) => {
    throw new Error(`the process has ended: ${signal ?? code}`)
  })
  await Promise.race([once(child, 'message'), ended])
  const directory = await temporaryDirectory(t)
  await writeFile(join(directory, 'password'), '')
  const portal = {address: '127.0.0.1', port: tgtd.port}
  child.send({socketPath: tgtd.socketPath, portal, iqn: lun.iqn, tid: 1, directory})
  const [{wiped, kept}] = (await Promise.race([once(child, 'message'), ended])) as [{wiped: number[]; kept: number[]}]
  ended.catch(() => undefined)
  // Shorter than the secret, since the allocator writes into the beginning of what is free.
  const needles = new Map([...wiped, ...kept].map(seed => [seed, Buffer.from(secretCodes(seed).slice(-12))]))
  const found = await findIn(child.pid!, needles)
  t.deepEqual(
    found.filter(({seed}) => wiped.includes(seed)),
    [],
  )
  t.true(
    found.some(({seed}) => kept.includes(seed)),
    'the secret that is kept is found',
  )
})
