import type {Registry} from 'prom-client'
import type {ComputeDriver} from '../compute/driver.js'
import {hasCode} from '../errors.js'
import {Counter, Gauge} from '../packages/daemon.js'
import type {VolumeId} from '../types.js'
import type {Collector} from './registry.js'

/** An attachment and what is seen of it. */
export interface ShownAttachment {
  id: VolumeId
  iqn: string | null
  domain: string
  domainUuid: string
  /** libvirt's target name, `vdb`. */
  target: string
  bus: string
  state: 'attached' | 'detaching' | 'absent' | 'unknown'
}

export interface AttachmentSource {
  /** All attachments after a look at the domains; `unknown` where libvirt does not answer. */
  observed(): Promise<ShownAttachment[]>
  /** Without a look. */
  unobserved(): ShownAttachment[]
}

/**
 * Registers the families of disks in domains. The counters are QEMU's own: they begin at an attach and, with the domain,
 * anew.
 */
export function registerDiskMetrics(
  registry: Registry,
  compute: Pick<ComputeDriver, 'name' | 'counters'>,
  attachments: AttachmentSource,
): Collector {
  const registers = [registry]
  const labelNames = ['domain', 'disk', 'id']
  const counter = (name: string, help: string) => new Counter({name, help, labelNames, registers})
  const info = new Gauge({
    name: 'lunpath_attachment_info',
    help: 'A disk that was asked for, with what is seen of it: attached, detaching, absent or unknown; always 1.',
    labelNames: [...labelNames, 'bus', 'target', 'state'],
    registers,
  })
  const families = {
    readBytes: counter('lunpath_disk_read_bytes_total', 'Bytes that the domain has read from the disk.'),
    writtenBytes: counter('lunpath_disk_written_bytes_total', 'Bytes that the domain has written to the disk.'),
    readRequests: counter('lunpath_disk_reads_completed_total', 'Reads of the domain that QEMU has completed.'),
    writeRequests: counter('lunpath_disk_writes_completed_total', 'Writes of the domain that QEMU has completed.'),
  }

  const describe = (shown: ShownAttachment[]) => {
    info.reset()
    for (const {id, iqn, domain, target: disk, bus, state} of shown)
      info.set({domain, disk, id, bus, target: iqn ?? '', state}, 1)
  }
  const countersOf = async ({domainUuid, id}: ShownAttachment) => {
    try {
      return await compute.counters(domainUuid, id)
    } catch (error) {
      // It has left in between, or the domain is shut off.
      if (hasCode(error, 'ATTACHMENT_NOT_FOUND', 'DOMAIN_NOT_FOUND')) return undefined
      throw error
    }
  }

  return {
    name: compute.name,
    async collect() {
      const shown = await attachments.observed()
      describe(shown)
      if (shown.some(({state}) => state === 'unknown')) throw new Error('libvirt does not answer')
      const present = shown.filter(({state}) => state === 'attached' || state === 'detaching')
      const readings = await Promise.all(present.map(countersOf))
      for (const family of Object.values(families)) family.reset()
      for (const [index, reading] of readings.entries()) {
        if (!reading) continue
        const {domain, target: disk, id} = present[index]!
        for (const [key, family] of Object.entries(families))
          family.inc({domain, disk, id}, reading[key as keyof typeof families])
      }
    },
    // What was asked for is known all the same.
    clear: () => describe(attachments.unobserved()),
  }
}
