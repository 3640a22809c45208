import {existsSync} from 'node:fs'
import {createConnection} from 'node:net'
import {setTimeout as sleep} from 'node:timers/promises'
import {run} from '../../src/exec.js'

export interface StorageNetwork {
  /** Of its namespace, as `ip netns` has it. */
  name: string
  /** To run a program in it: `spawn(enter[0], [...enter.slice(1), PROGRAM])`. */
  enter: readonly string[]
  /** Its addresses, one for each cable; this side's have .1 in place of .2. */
  addresses: readonly string[]
  /** Pulls a cable, so that packets get lost without a word, and plugs it in again. */
  setCable(index: number, plugged: boolean): Promise<void>
  remove(): Promise<void>
}

/**
 * A network of its own for a target, as on another machine: a namespace, joined to the initial one by a cable (veth pair)
 * for each path. The initiator stays in the initial namespace, since the kernel's netlink socket for iscsid is there.
 * configfs is to be reached through `enter` too: `ip netns exec` would mount another sysfs over it.
 */
export async function makeStorageNetwork(cables = 1, name = 'storage'): Promise<StorageNetwork> {
  const ip = (...args: string[]) => run('ip', args)
  await run('modprobe', ['veth'])
  await ip('netns', 'add', name)
  await ip('-n', name, 'link', 'set', 'lo', 'up')
  const addresses: string[] = []
  for (let cable = 0; cable < cables; cable++) {
    const [here, there] = [`${name}${cable}`, `node${cable}`]
    await ip('link', 'add', here, 'type', 'veth', 'peer', 'name', there, 'netns', name)
    await ip('address', 'add', `10.99.${cable}.1/24`, 'dev', here)
    await ip('address', 'add', `fd99:0:0:${cable}::1/64`, 'dev', here, 'nodad')
    await ip('-n', name, 'address', 'add', `10.99.${cable}.2/24`, 'dev', there)
    await ip('-n', name, 'address', 'add', `fd99:0:0:${cable}::2/64`, 'dev', there, 'nodad')
    await ip('link', 'set', here, 'up')
    await ip('-n', name, 'link', 'set', there, 'up')
    addresses.push(`10.99.${cable}.2`)
  }
  return {
    name,
    enter: ['nsenter', `--net=/run/netns/${name}`],
    addresses,
    setCable: async (index, plugged) => {
      // Its far end: the near one would lose its route, and a program would hear of that at once.
      await ip('-n', name, 'link', 'set', `node${index}`, plugged ? 'up' : 'down')
      if (!plugged) return
      await ip('-n', name, 'address', 'add', `fd99:0:0:${index}::2/64`, 'dev', `node${index}`, 'nodad')
      while (!(await isReachable(addresses[index]!))) await sleep(100)
    },
    remove: async () => {
      if (existsSync(`/run/netns/${name}`)) await ip('netns', 'delete', name)
    },
  }
}

/** Nobody listens on this port, which is an answer. */
async function isReachable(address: string): Promise<boolean> {
  const socket = createConnection({host: address, port: 9, timeout: 1_000})
  try {
    return await new Promise(resolve => {
      socket.once('timeout', () => resolve(false))
      socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code === 'ECONNREFUSED'))
    })
  } finally {
    socket.destroy()
  }
}
