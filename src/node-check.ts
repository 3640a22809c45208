import type {Route} from './attach/rooms.js'
import {LibvirtDriver} from './compute/libvirt.js'
import type {Config} from './config.js'
import {type Check, examine} from './doctor.js'
import {parsePortal} from './iqn.js'

/** What `lunpath doctor` finds on this machine for this configuration. `ownPids`: a tgtd that lunpath itself runs. */
export function examineNode(config: Config, ownPids: number[] = []): Promise<Check[]> {
  return examine({
    pools: [{name: 'default', directory: config.volumes.directory, madeBelow: config.daemon.directory}],
    targetDriver: config.targets.driver,
    iqnPrefix: config.targets.iqnPrefix,
    portals: config.targets.portals.map(parsePortal),
    lvmPools: config.volumes.lvm.map(({group, name = group, thinPool}) => ({name, group, thinPool})),
    portalPort: parsePortal(config.targets.portals[0]!).port,
    initiatorName: config.initiator.name,
    route: config.initiator.route as Route,
    libvirtUri: config.compute.uri,
    ownPids,
    connect: () => connectOnce(config.compute.uri),
  })
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
