import {Gauge, type Registry} from 'prom-client'
import type {Operation} from '../state/journal.js'
import type {VolumeDriver} from '../volumes/driver.js'
import type {Collector} from './registry.js'

export interface NodeFacts {
  volumes: Pick<VolumeDriver, 'name' | 'capacity'>
  unfinished(): Pick<Operation, 'kind'>[]
  problems(): {problem: string}[]
}

/** Registers the pool's figures and what waits for somebody: unfinished operations, and problems left to people. */
export function registerNodeMetrics(registry: Registry, {volumes, unfinished, problems}: NodeFacts): Collector {
  const gauge = (name: string, help: string, ...labelNames: string[]) =>
    new Gauge({name, help, labelNames, registers: [registry]})
  const size = gauge('lunpath_pool_size_bytes', 'Size of what the pool lies on.', 'pool', 'driver')
  const free = gauge('lunpath_pool_free_bytes', 'Bytes that can still be written to the pool.', 'pool', 'driver')
  const provisioned = gauge('lunpath_pool_provisioned_bytes', 'Sum of the sizes of its volumes.', 'pool', 'driver')
  const limit = gauge('lunpath_pool_provision_limit_bytes', 'Most that may be provisioned.', 'pool', 'driver')
  const standing = gauge('lunpath_operations_unfinished', 'Operations that run, or that wait to go on.', 'kind')
  const left = gauge('lunpath_problems', 'What the last look found and lunpath does not mend by itself.', 'problem')
  const pool = [size, free, provisioned, limit]

  return {
    name: volumes.name,
    async collect() {
      for (const family of [standing, left]) family.reset()
      for (const {kind} of unfinished()) standing.inc({kind})
      for (const {problem} of problems()) left.inc({problem})
      const {pool: name, driver, ...bytes} = await volumes.capacity()
      size.set({pool: name, driver}, bytes.totalBytes)
      free.set({pool: name, driver}, bytes.freeBytes)
      provisioned.set({pool: name, driver}, bytes.provisionedBytes)
      limit.set({pool: name, driver}, bytes.limitBytes)
    },
    clear() {
      for (const family of pool) family.reset()
    },
  }
}
