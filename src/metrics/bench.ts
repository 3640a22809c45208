import type {Registry} from 'prom-client'
import type {RunningBenches} from '../bench/running.js'
import {Counter, Gauge} from '../packages/daemon.js'
import type {Collector} from './registry.js'

/** Registers the benchmarks that are on, by their last sample, and how many have ended. */
export function registerBenchMetrics(registry: Registry, benches: Pick<RunningBenches, 'list' | 'ended'>): Collector {
  const gauge = (name: string, help: string, ...labelNames: string[]) =>
    new Gauge({name, help, labelNames, registers: [registry]})
  const running = gauge('lunpath_bench_running', 'Benchmarks that are on.')
  const iops = gauge(
    'lunpath_bench_iops',
    'I/Os a second of a running benchmark, at its last sample.',
    'bench',
    'target',
  )
  const bytes = gauge(
    'lunpath_bench_bytes_per_second',
    'Bytes a second of a running benchmark, at its last sample.',
    'bench',
    'target',
  )
  const latency = gauge(
    'lunpath_bench_latency_p99_seconds',
    '99th percentile of the latency of a running benchmark, in its last sample.',
    'bench',
    'target',
  )
  const runs = new Counter({
    name: 'lunpath_bench_runs_total',
    help: 'Benchmarks that have ended; refused are those that measured nothing.',
    labelNames: ['state'],
    registers: [registry],
  })

  return {
    name: 'bench',
    async collect() {
      for (const family of [running, iops, bytes, latency]) family.reset()
      runs.reset()
      for (const [state, count] of benches.ended) runs.inc({state}, count)
      const all = benches.list()
      running.set(all.length)
      for (const {name, number, sample} of all) {
        for (const target of sample?.targets ?? []) {
          const labels = {bench: `${name}-${number}`, target: target.name}
          iops.set(labels, target.iops)
          bytes.set(labels, target.bytesPerSecond)
          latency.set(labels, target.p99Ns / 1e9)
        }
      }
    },
    clear() {
      for (const family of [running, iops, bytes, latency]) family.reset()
    },
  }
}
