import {open} from 'node:fs/promises'
import type {Release} from './trials.js'

const device = '/dev/cpu_dma_latency'

/**
 * Asks that idle processors poll for work instead of halting, until the release: the kernel is told that no wake-up may take
 * any time (Documentation/power/pm_qos_interface.rst). It drops the request with its descriptor, however we end. To wake a
 * processor that has halted costs a virtual machine an exit to its hypervisor, more than the I/O itself.
 *
 * @returns what idle processors do now, in words
 */
export async function keepProcessorsAwake(release: Release): Promise<string> {
  const noMicroseconds = new Int32Array([0])
  try {
    const request = await open(device, 'r+')
    release(() => request.close())
    await request.write(noMicroseconds)
    return 'poll'
  } catch (error) {
    return `as the kernel has them (${device}: ${(error as NodeJS.ErrnoException).code})`
  }
}
