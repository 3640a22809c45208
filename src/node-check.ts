import {join} from 'node:path'
import type {Route} from './attach/rooms.js'
import {LibvirtDriver} from './compute/libvirt.js'
import type {Config} from './config.js'
import {type Check, examine} from './doctor.js'
import {parsePortal} from './iqn.js'
import {guestDevices, peek, type Stored} from './state/peek.js'
import {madePools} from './state/store.js'

/**
 * What `lunpath doctor` finds on this machine for this configuration. `stored`: what the daemon's store says, which is
 * read where it is not given. `ownPids`: a tgtd that lunpath itself runs.
 */
export async function examineNode(config: Config, stored?: Stored, ownPids: number[] = []): Promise<Check[]> {
  const {store, checks} = stored ? {store: stored, checks: []} : readStore(join(config.daemon.directory, 'store.db'))
  const configured = config.volumes.lvm.map(({group, name = group, thinPool}) => ({name, group, thinPool}))
  const made = madePools(store)
    .filter(({id}) => !configured.some(({name}) => name === id))
    .map(({id, group, thinPool}) => ({name: id, group, thinPool: thinPool ?? undefined}))
  const found = await examine({
    pools: [{name: 'default', directory: config.volumes.directory, madeBelow: config.daemon.directory}],
    targetDriver: config.targets.driver,
    iet: {
      socketName: config.iet.socket,
      procDirectory: config.iet.procDir,
      accessDirectories: config.iet.accessDirs,
      accessFiles: config.iet.accessFiles,
    },
    iqnPrefix: config.targets.iqnPrefix,
    portals: config.targets.portals.map(parsePortal),
    networkNamespace: config.targets.networkNamespace,
    lvmPools: [...configured, ...made],
    lvmScan: {sanTargets: config.volumes.sanTargets, guestDevices: () => guestDevices(store)},
    portalPort: parsePortal(config.targets.portals[0]!).port,
    initiatorName: config.initiator.name,
    route: config.initiator.route as Route,
    libvirtUri: config.compute.uri,
    ownPids,
    connect: () => connectOnce(config.compute.uri),
  })
  return [...checks, ...found]
}

function readStore(path: string): {store: Stored; checks: Check[]} {
  try {
    return {store: peek(path), checks: []}
  } catch (error) {
    const check: Check = {
      area: 'node',
      name: 'store',
      status: 'warn',
      found: `${path} cannot be read: ${(error as Error).message}`,
      needed: 'the daemon’s store, for the pools that pool create has made',
      remedy: 'Run as root; see the daemon’s log, and STORE_CORRUPT in docs/errors.md',
    }
    return {store: {pools: new Map(), volumes: new Map(), attachments: new Map()}, checks: [check]}
  }
}

/** Connects as the daemon would, and says how many domains answered. */
async function connectOnce(uri: string): Promise<string> {
  const libvirt = new LibvirtDriver({uri})
  try {
    await libvirt.open()
    const domains = await libvirt.domains()
    return `${uri} answers, ${domains.length} domains`
  } finally {
    await libvirt.close()
  }
}
