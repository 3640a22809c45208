import {isAbsolute} from 'node:path'
import {StorageError} from '../errors.js'
import {checkForeignName, checkIscsiName, nameKey} from '../iqn.js'
import type {Disk, DiskSource, Domain, Feed, VolumeId} from '../types.js'
import {attribute, buildXml, childText, elementAt, elementsOf, parseXml, type XmlElement} from '../xml.js'
import type {Devices, PciAddress} from './addresses.js'

const aliasPrefix = 'ua-lunpath-'

/** libvirt leaves an alias to the user where it begins with `ua-` (formatdomain.html, "Devices"). */
export function aliasOf(id: VolumeId): string {
  return `${aliasPrefix}${id}`
}

/** The id behind an alias of ours; undefined for a foreign one. */
export function idOfAlias(alias: string): VolumeId | undefined {
  return alias.startsWith(aliasPrefix) ? alias.slice(aliasPrefix.length) : undefined
}

/** The usage name of the libvirt secret that holds the CHAP secret for a target. Ours alone by its prefix. */
export function secretUsage(iqn: string): string {
  return `lunpath:${iqn}`
}

/** Ephemeral: not on libvirtd's disk. Private: nobody can read the value back. */
export function buildSecretXml(iqn: string): string {
  return buildXml({
    secret: {
      '@ephemeral': 'yes',
      '@private': 'yes',
      description: `CHAP secret for ${iqn}, kept by lunpath`,
      usage: {'@type': 'iscsi', target: secretUsage(iqn)},
    },
  })
}

/** A disk to be attached, with all decisions taken. */
export interface DiskPlan {
  id: VolumeId
  source: DiskSource
  bus: 'virtio' | 'scsi'
  target: string
  /** On the scsi bus: where on which controller. Left out, libvirt decides, and adds a controller after 7 units. */
  address?: {controller: number; unit: number}
  /** On the virtio bus: where the disk is plugged in. Left out, libvirt decides. */
  pciAddress?: PciAddress
  readOnly: boolean
  /** Others may have it open too: QEMU then takes no lock that keeps them out. */
  shared?: boolean
  /** QEMU's cache mode: `none` (O_DIRECT), or `writethrough` for a file system that has no O_DIRECT. */
  cache: 'none' | 'writethrough'
}

/** The `<disk>` element for a plan. @throws INVALID_ARGUMENT, NAME_INVALID */
export function buildDiskXml(plan: DiskPlan): string {
  checkSource(plan.source)
  checkTarget(plan.target, plan.bus)
  const {type} = plan.source
  const disk: XmlElement = {
    '@type': type === 'iscsi' ? 'network' : type,
    '@device': 'disk',
    driver: {
      '@name': 'qemu',
      '@type': type === 'file' ? plan.source.format : 'raw',
      '@cache': plan.cache,
      // Linux' native AIO works on O_DIRECT alone, and blocks on a file whose blocks are yet to be allocated.
      ...(type === 'block' && plan.cache === 'none' ? {'@io': 'native'} : {}),
    },
    source: buildSource(plan.source),
    target: {'@dev': plan.target, '@bus': plan.bus},
    serial: plan.id,
    alias: {'@name': aliasOf(plan.id)},
  }
  if (plan.readOnly) disk.readonly = {}
  if (plan.shared) disk.shareable = {}
  if (plan.bus === 'scsi' && plan.address) {
    disk.address = {
      '@type': 'drive',
      '@controller': String(plan.address.controller),
      '@bus': '0',
      '@target': '0',
      '@unit': String(plan.address.unit),
    }
  }
  if (plan.bus === 'virtio' && plan.pciAddress) {
    const {bus, slot} = plan.pciAddress
    disk.address = {'@type': 'pci', '@domain': '0', '@bus': String(bus), '@slot': String(slot), '@function': '0'}
  }
  return buildXml({disk})
}

function buildSource(source: DiskSource): XmlElement {
  if (source.type === 'file') return {'@file': source.path}
  if (source.type === 'block') return {'@dev': source.path}
  return {
    '@protocol': 'iscsi',
    '@name': `${source.iqn}/${source.lun}`,
    host: {'@name': source.portal.address, '@port': String(source.portal.port)},
    ...(source.initiatorName ? {initiator: {iqn: {'@name': source.initiatorName}}} : {}),
    ...(source.auth
      ? {auth: {'@username': source.auth.user, secret: {'@type': 'iscsi', '@usage': secretUsage(source.iqn)}}}
      : {}),
  }
}

/** @throws INVALID_ARGUMENT, NAME_INVALID */
export function checkSource(source: DiskSource): void {
  if (source.type !== 'iscsi') {
    if (!isAbsolute(source.path)) throw invalid(`A disk's source must be an absolute path, not ${quote(source.path)}`)
    return
  }
  checkForeignName(source.iqn)
  if (source.initiatorName !== undefined) checkIscsiName(source.initiatorName)
  if (!Number.isInteger(source.lun) || source.lun < 0 || source.lun > 16383) throw invalid(`${source.lun} is no LUN`)
  const {port} = source.portal
  if (!Number.isInteger(port) || port < 1 || port > 65535) throw invalid(`${port} is no TCP port`)
  if (source.auth && (source.auth.user === '' || source.auth.secret === '')) {
    throw invalid('CHAP needs a user and a secret')
  }
}

/** `vda`, `vdab` on virtio, `sda` on scsi. @throws INVALID_ARGUMENT */
export function checkTarget(target: string, bus: 'virtio' | 'scsi'): void {
  const pattern = bus === 'virtio' ? /^vd[a-z]{1,3}$/ : /^sd[a-z]{1,3}$/
  if (!pattern.test(target)) {
    throw invalid(
      `${quote(target)} is no target name for the ${bus} bus: expected ${bus === 'virtio' ? 'vdb' : 'sdb'} or the like`,
    )
  }
}

/** What we need to know of a domain's definitions. */
export interface Definition {
  domain: Pick<Domain, 'name' | 'uuid' | 'id' | 'persistent'>
  disks: Disk[]
  /** All that the domain can read or write, for whoever asks who else has a disk. */
  feeds: Feed[]
  devices: Devices
}

/** A definition as libvirt writes it: its `<domain>`. @throws INVALID_ARGUMENT */
export function parseDomain(xml: string): XmlElement {
  return elementAt(parseXml(xml, ['disk', 'controller', 'hostdev']), 'domain') ?? {}
}

/**
 * What a domain's two definitions say: the one in force, which is the live one where it has an id, and the inactive one,
 * null where the domain is transient.
 */
export function describeDomain(inForce: XmlElement, forNextStart: XmlElement | null): Definition {
  const id = attribute(inForce, 'id')
  const domain = {
    name: childText(inForce, 'name') ?? '',
    uuid: childText(inForce, 'uuid') ?? '',
    id: id === undefined ? null : Number(id),
    persistent: forNextStart !== null,
  }
  const live = id === undefined ? undefined : elementAt(inForce, 'devices')
  const inactive = elementAt(forNextStart ?? undefined, 'devices')
  const byKey = new Map<string, Disk>()
  for (const [devices, place] of [
    [live, 'live'],
    [inactive, 'persistent'],
  ] as const) {
    for (const element of elementsOf(devices, 'disk')) {
      const disk = parseDisk(domain.name, element)
      const key = JSON.stringify([disk.target, idOfAlias(disk.alias) ?? null, disk.source])
      const known = byKey.get(key)
      if (known) known[place] = true
      else byKey.set(key, {...disk, [place]: true})
    }
  }
  const feeds = [live, inactive].flatMap(devices => feedsOf(domain, devices))
  return {domain, disks: [...byKey.values()], feeds, devices: {live, persistent: inactive}}
}

function feedsOf(domain: {name: string; uuid: string}, devices: XmlElement | undefined): Feed[] {
  const common = (element: XmlElement) => ({
    domain: domain.name,
    domainUuid: domain.uuid,
    alias: attribute(elementAt(element, 'alias'), 'name') ?? '',
    shared: element.shareable !== undefined,
  })
  const disks = elementsOf(devices, 'disk').flatMap(element => {
    const device = attribute(elementAt(element, 'target'), 'dev') ?? ''
    return sourcesOf(element).map(source => ({...common(element), device, source}))
  })
  const handedOn = elementsOf(devices, 'hostdev').flatMap(element => {
    const source = hostdevSource(element)
    return source ? [{...common(element), device: 'a hostdev', source}] : []
  })
  return [...disks, ...handedOn]
}

/** A disk's own source, and those of the images that it is a layer above (formatdomain.html, `backingStore`, `mirror`). */
function sourcesOf(disk: XmlElement): Feed['source'][] {
  const sources: Feed['source'][] = []
  let layer: XmlElement | undefined = disk
  while (layer) {
    // Whatever its format is, a file is a file.
    const file = attribute(layer, 'type') === 'file' ? attribute(elementAt(layer, 'source'), 'file') : undefined
    const source = file === undefined ? parseSource(layer) : {type: 'file' as const, path: file, format: 'raw' as const}
    if (source.type !== 'other') sources.push(source)
    const mirror = elementAt(layer, 'mirror')
    if (mirror) sources.push(...sourcesOf(mirror))
    layer = elementAt(layer, 'backingStore')
  }
  return sources
}

/** A SCSI device that is handed on as it is (formatdomain.html, "SCSI host devices"). */
function hostdevSource(hostdev: XmlElement): Feed['source'] | undefined {
  if (attribute(hostdev, 'type') !== 'scsi') return undefined
  const source = elementAt(hostdev, 'source')
  if (attribute(source, 'protocol') === 'iscsi') {
    const lun = parseSource({'@type': 'network', source: source!})
    return lun.type === 'iscsi' ? lun : undefined
  }
  const host = /^scsi_host(\d+)$/.exec(attribute(elementAt(source, 'adapter'), 'name') ?? '')?.[1]
  const address = elementAt(source, 'address')
  if (host === undefined || !address) return undefined
  const [bus, target, unit] = ['bus', 'target', 'unit'].map(name => Number(attribute(address, name)))
  return {type: 'scsi', address: [host, bus, target, unit].join(':')}
}

/** One `<disk>` element as text. */
export function parseDiskXml(domain: string, xml: string): Disk {
  return parseDisk(domain, elementAt(parseXml(xml), 'disk') ?? {})
}

function parseDisk(domain: string, disk: XmlElement): Disk {
  const target = elementAt(disk, 'target')
  return {
    domain,
    target: attribute(target, 'dev') ?? '',
    bus: attribute(target, 'bus') ?? '',
    alias: attribute(elementAt(disk, 'alias'), 'name') ?? '',
    serial: childText(disk, 'serial') ?? null,
    source: parseSource(disk),
    live: false,
    persistent: false,
    readOnly: disk.readonly !== undefined,
  }
}

function parseSource(disk: XmlElement): Disk['source'] {
  const type = attribute(disk, 'type') ?? ''
  const source = elementAt(disk, 'source')
  if (type === 'file' && attribute(disk, 'device') !== 'cdrom') {
    const format = attribute(elementAt(disk, 'driver'), 'type')
    if (format === 'raw' || format === 'qcow2') return {type, path: attribute(source, 'file') ?? '', format}
  }
  if (type === 'block') return {type, path: attribute(source, 'dev') ?? ''}
  if (type === 'network' && attribute(source, 'protocol') === 'iscsi') {
    // `IQN/LUN`; without a LUN it is 0 (formatdomain.html, "Hard drives, floppy disks, CDROMs").
    const [, iqn = '', lun = '0'] = /^(.*?)(?:\/(\d+))?$/.exec(attribute(source, 'name') ?? '') ?? []
    const host = elementAt(source, 'host')
    const initiatorName = attribute(elementAt(source, 'initiator', 'iqn'), 'name')
    return {
      type: 'iscsi',
      iqn,
      lun: Number(lun),
      portal: {address: attribute(host, 'name') ?? '', port: Number(attribute(host, 'port') ?? 3260)},
      ...(initiatorName === undefined ? {} : {initiatorName}),
    }
  }
  const names = ['file', 'dev', 'name', 'volume', 'dir'].map(name => attribute(source, name))
  return {type: 'other', description: [type, names.find(name => name !== undefined) ?? '-'].join(' ')}
}

/**
 * True where both say the same: one LUN, at whichever portal, or one path. Two paths may still lead to one device: whoever
 * has to know asks the host (src/backing.ts).
 */
export function sameSource(a: Disk['source'], b: Disk['source']): boolean {
  if (a.type === 'iscsi' && b.type === 'iscsi') return nameKey(a.iqn) === nameKey(b.iqn) && a.lun === b.lun
  const isPath = (source: Disk['source']) => source.type === 'file' || source.type === 'block'
  return isPath(a) && isPath(b) && (a as {path: string}).path === (b as {path: string}).path
}

/** The first target name of the bus that no disk has: vda … vdz, vdaa … */
export function freeTarget(bus: 'virtio' | 'scsi', taken: ReadonlySet<string>): string {
  const prefix = bus === 'virtio' ? 'vd' : 'sd'
  for (let index = 0; ; index++) {
    const name = prefix + letters(index)
    if (!taken.has(name)) return name
  }
}

/** 0 → a, 25 → z, 26 → aa: the kernel's way of counting disks (sd_format_disk_name in drivers/scsi/sd.c). */
function letters(index: number): string {
  const last = String.fromCharCode(97 + (index % 26))
  return index < 26 ? last : letters(Math.floor(index / 26) - 1) + last
}

function invalid(message: string): StorageError {
  return new StorageError('INVALID_ARGUMENT', message, {op: 'compute.attach'})
}

function quote(text: string): string {
  return JSON.stringify(text.slice(0, 80))
}
