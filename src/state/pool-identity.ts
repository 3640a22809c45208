import type {PoolIdentity} from '../volumes/file.js'
import type {Store} from './store.js'

/**
 * What the store knows of a configured pool of files. Without volumes, a pool that the configuration has moved to another
 * directory begins anew there.
 */
export function filePoolIdentity(
  store: Pick<Store, 'pools' | 'volumes' | 'write'>,
  {pool, directory}: {pool: string; directory: string},
): PoolIdentity {
  const volumeIds = () =>
    [...store.volumes.values()]
      .filter(volume => volume.driver === 'file' && volume.pool === pool && !volume.imported)
      .map(({id}) => id)
  return {
    volumeIds,
    markerId() {
      const record = store.pools.get(pool)
      if (record?.driver !== 'file') return undefined
      return record.directory === directory || volumeIds().length > 0 ? record.marker : undefined
    },
    async keep(marker) {
      const value = {id: pool, driver: 'file' as const, directory, marker, createdAt: new Date().toISOString()}
      await store.write([{table: 'pools', id: pool, value}])
    },
  }
}
