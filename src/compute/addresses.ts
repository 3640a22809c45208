import {attribute, buildXml, elementAt, elementsOf, type XmlElement} from '../xml.js'

/** Where a disk can be: in the running domain, and in the definition that the next start takes. */
export type Place = 'live' | 'persistent'

/** A domain's `<devices>` in both places; undefined where the domain is shut off or transient. */
export type Devices = Record<Place, XmlElement | undefined>

export interface PciAddress {
  bus: number
  slot: number
}

/** The models whose units are LUNs, any number of them (formatdomain.html, "Controllers"). */
const virtioScsi = /^virtio-(scsi|transitional|non-transitional)$/

/**
 * The SCSI controller for a disk: the first virtio-scsi controller that all of `places` have, else the one that the fewest
 * lack. `missing` says which places must be given it first. Left to itself, libvirt would add an lsilogic controller, which
 * stays, takes seven disks, and for which many guests have no driver.
 */
export function chooseScsiController(devices: Devices, places: readonly Place[]): {index: number; missing: Place[]} {
  const models = places.map(place => [place, scsiModels(devices[place])] as const)
  const highest = Math.max(-1, ...models.flatMap(([, byIndex]) => [...byIndex.keys()]))
  const choices = Array.from({length: highest + 2}, (_, index) => index)
    .filter(index => models.every(([, byIndex]) => virtioScsi.test(byIndex.get(index) ?? 'virtio-scsi')))
    .map(index => ({index, missing: models.flatMap(([place, byIndex]) => (byIndex.has(index) ? [] : [place]))}))
  return choices.reduce((best, choice) => (choice.missing.length < best.missing.length ? choice : best))
}

function scsiModels(devices: XmlElement | undefined): Map<number, string> {
  const controllers = elementsOf(devices, 'controller').filter(it => attribute(it, 'type') === 'scsi')
  return new Map(controllers.map(it => [Number(attribute(it, 'index')), attribute(it, 'model') ?? '']))
}

export function buildScsiController(index: number): string {
  return buildXml({controller: {'@type': 'scsi', '@model': 'virtio-scsi', '@index': String(index)}})
}

/** Units in use on a SCSI controller, in either place. */
export function takenUnits({live, persistent}: Devices, controller: number): Set<number> {
  const addresses = [live, persistent]
    .flatMap(devices => [...elementsOf(devices, 'disk'), ...elementsOf(devices, 'hostdev')])
    .map(device => elementAt(device, 'address'))
    .filter(it => attribute(it, 'type') === 'drive' && Number(attribute(it, 'controller')) === controller)
  return new Set(addresses.map(it => Number(attribute(it, 'unit'))))
}

/** The first unit that no device has. */
export function freeUnit(taken: ReadonlySet<number>): number {
  let unit = 0
  while (taken.has(unit)) unit++
  return unit
}

/**
 * PCI addresses for a disk that neither definition uses. On a conventional bus slot 1 is the chipset's; a PCI Express port
 * has one slot.
 */
export function freePciAddresses({live, persistent}: Devices): PciAddress[] {
  const taken = new Set([live, persistent].flatMap(devices => pciAddressesOf(devices)))
  const buses = elementsOf(live, 'controller').filter(it => attribute(it, 'type') === 'pci')
  return buses
    .flatMap(it => {
      const bus = Number(attribute(it, 'index'))
      const model = attribute(it, 'model') ?? ''
      if (/^pcie-(root-port|switch-downstream-port)$/.test(model)) return [{bus, slot: 0}]
      if (!/^(pci-root|pci-bridge|pcie-to-pci-bridge)$/.test(model)) return []
      return Array.from({length: 30}, (_, index) => ({bus, slot: index + 2}))
    })
    .filter(({bus, slot}) => !taken.has(`${bus} ${slot}`))
}

function pciAddressesOf(devices: XmlElement | undefined): string[] {
  return Object.keys(devices ?? {})
    .filter(name => !name.startsWith('@') && name !== '#text')
    .flatMap(name => elementsOf(devices, name))
    .map(device => elementAt(device, 'address'))
    .filter(address => attribute(address, 'type') === 'pci')
    .map(address => `${Number(attribute(address, 'bus'))} ${Number(attribute(address, 'slot'))}`)
}
