import {setTimeout as sleep} from 'node:timers/promises'
import {nativeTarget, nullDevice, pathDevice, startNative} from '../test/fixtures/native-bench.js'
import {prepareDevice} from './io.js'
import {type Comparison, delayP99Ms} from './measure.js'
import type {Release} from './trials.js'

const startLimitMs = 10
const delayLimitMs = 2

/** From the call in JS to the first answer of a device, in milliseconds, against a limit. */
export async function startComparison(release: Release): Promise<Comparison> {
  const path = await prepareDevice('loop', release)
  return {
    ours: async () => {
      const target = nativeTarget(pathDevice(path, {engine: 'io_uring', direct: true}), {iodepth: 32})
      const {startToFirstCompletionNs} = await startNative([target], {runtimeMs: 20}).report
      return startToFirstCompletionNs / 1e6
    },
    other: async () => startLimitMs,
    otherName: `the limit of ${startLimitMs} ms`,
  }
}

/**
 * How long the event loop is kept from its work while a run goes at full speed in the same process: the 99th percentile of
 * its delay in milliseconds (perf_hooks.monitorEventLoopDelay, resolution 1 ms), the idle one subtracted, against a limit.
 */
export async function benchDelayComparison(): Promise<Comparison> {
  return {
    ours: async () => {
      const idle = await delayP99Ms(() => sleep(500))
      const target = nativeTarget(nullDevice, {iodepth: 32})
      const busy = await delayP99Ms(() => startNative([target], {runtimeMs: 500}).report)
      return busy - idle
    },
    other: async () => delayLimitMs,
    otherName: `the limit of ${delayLimitMs} ms`,
  }
}
