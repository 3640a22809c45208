import type {Registry} from 'prom-client'
import {Gauge} from '../packages/daemon.js'
import type {Operation} from '../state/journal.js'
import type {PoolCapacity} from '../volumes/driver.js'
import type {Collector} from './registry.js'

export interface NodeFacts {
  volumes: {capacities(): Promise<PoolCapacity[]>}
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
  const thinSize = gauge('lunpath_pool_thin_size_bytes', 'Size of its thin pool.', 'pool', 'driver')
  const thinData = gauge('lunpath_pool_thin_data_used_ratio', 'Share of its thin pool in use.', 'pool', 'driver')
  const thinMetadata = gauge(
    'lunpath_pool_thin_metadata_used_ratio',
    'Share of the metadata space of its thin pool in use.',
    'pool',
    'driver',
  )
  const area = gauge(
    'lunpath_pool_metadata_area_bytes',
    "Size of its group's metadata area, which holds two copies.",
    'pool',
    'driver',
  )
  const areaFree = gauge(
    'lunpath_pool_metadata_area_free_bytes',
    'Bytes by which the metadata of its group may still grow.',
    'pool',
    'driver',
  )
  const standing = gauge('lunpath_operations_unfinished', 'Operations that run, or that wait to go on.', 'kind')
  const left = gauge('lunpath_problems', 'What the last look found and lunpath does not mend by itself.', 'problem')
  const pool = [size, free, provisioned, limit, thinSize, thinData, thinMetadata, area, areaFree]

  return {
    name: 'pools',
    async collect() {
      for (const family of [standing, left]) family.reset()
      for (const {kind} of unfinished()) standing.inc({kind})
      for (const {problem} of problems()) left.inc({problem})
      // A pool that has gone, or that tells nothing now, has no old figures.
      const capacities = await volumes.capacities()
      for (const family of pool) family.reset()
      for (const {pool: name, driver, thin, metadataArea, ...bytes} of capacities) {
        const labels = {pool: name, driver}
        size.set(labels, bytes.totalBytes)
        free.set(labels, bytes.freeBytes)
        provisioned.set(labels, bytes.provisionedBytes)
        limit.set(labels, bytes.limitBytes)
        if (metadataArea) {
          area.set(labels, metadataArea.sizeBytes)
          areaFree.set(labels, metadataArea.freeBytes)
        }
        if (!thin) continue
        thinSize.set(labels, thin.totalBytes)
        thinData.set(labels, thin.dataPercent / 100)
        thinMetadata.set(labels, thin.metadataPercent / 100)
      }
    },
    clear() {
      for (const family of pool) family.reset()
    },
  }
}
