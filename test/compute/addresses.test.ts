// Domains without a system, with a monitor of their own beside libvirt's: what libvirt does not know of a QEMU is made there.
import {once} from 'node:events'
import {mkdtemp, open, rm} from 'node:fs/promises'
import {connect} from 'node:net'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {createInterface} from 'node:readline'
import test, {type ExecutionContext} from 'ava'
import {aliasOf, parseDomain} from '../../src/compute/disk-xml.js'
import {LibvirtDriver} from '../../src/compute/libvirt.js'
import type {StorageError} from '../../src/errors.js'
import {PrivateLibvirtd} from '../../src/sandbox/libvirtd.js'
import {newVolumeId} from '../../src/volumes/id.js'
import {attribute, elementAt, elementsOf, type XmlElement} from '../../src/xml.js'

const MiB = 2 ** 20
let libvirtd: PrivateLibvirtd
let driver: LibvirtDriver
let directory: string

test.before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'places-'))
  libvirtd = new PrivateLibvirtd()
  await libvirtd.start()
  driver = new LibvirtDriver({uri: libvirtd.uri})
  await driver.open()
})

test.after.always(async () => {
  await driver?.close()
  await libvirtd?.stop()
  await rm(directory, {recursive: true, force: true})
})

interface Machine {
  name: string
  /** Its devices as they are, and as the next start takes them. */
  devices(): Promise<{live: XmlElement; persistent: XmlElement}>
  /** A command of QEMU's monitor protocol. */
  monitor(execute: string, more?: Record<string, unknown>): Promise<unknown>
}

async function machine(t: ExecutionContext, name: string, devices = '', type = 'pc'): Promise<Machine> {
  const {connection} = libvirtd
  const socket = join(libvirtd.directory, 'run', `${name}.qmp`)
  await connection.defineXml(`<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <name>${name}</name><memory unit='MiB'>16</memory><os><type arch='x86_64' machine='${type}'>hvm</type></os>
    <features><acpi/></features><devices><controller type='usb' model='none'/><memballoon model='none'/>${devices}</devices>
    <qemu:commandline><qemu:arg value='-qmp'/><qemu:arg value='unix:${socket},server=on,wait=off'/></qemu:commandline></domain>`)
  t.teardown(async () => {
    await connection.destroy(name).catch(() => undefined)
    await connection.undefine(name)
  })
  await connection.start(name)
  return {
    name,
    async devices() {
      const texts = [await connection.xml(name), (await connection.inactiveXml(name))!]
      const [live, persistent] = texts.map(text => elementAt(parseDomain(text), 'devices')!)
      return {live: live!, persistent: persistent!}
    },
    async monitor(execute, more) {
      const client = connect(socket)
      await once(client, 'connect')
      const lines = createInterface(client)[Symbol.asyncIterator]()
      const answer = async (): Promise<unknown> => {
        for (;;) {
          const {return: value, error} = JSON.parse((await lines.next()).value as string)
          if (error) throw new Error(error.desc)
          if (value !== undefined) return value
        }
      }
      client.write('{"execute": "qmp_capabilities"}\n')
      await answer()
      client.write(`${JSON.stringify({execute, arguments: more})}\n`)
      const value = await answer()
      client.destroy()
      return value
    },
  }
}

async function disk() {
  const id = newVolumeId()
  const path = join(directory, id)
  const file = await open(path, 'wx')
  await file.truncate(MiB)
  await file.close()
  return {id, source: {type: 'file' as const, path, format: 'raw' as const}}
}

const scsiModels = (devices: XmlElement) =>
  elementsOf(devices, 'controller')
    .filter(it => attribute(it, 'type') === 'scsi')
    .map(it => [attribute(it, 'index'), attribute(it, 'model')])

function addressOf(devices: XmlElement, id: string): XmlElement | undefined {
  const found = elementsOf(devices, 'disk').find(it => attribute(elementAt(it, 'alias'), 'name') === aliasOf(id))
  return elementAt(found, 'address')
}

test('a SCSI disk brings a virtio-scsi controller where the domain has none', async t => {
  const {name, devices} = await machine(t, 'bare')
  const made = await disk()
  t.like(await driver.attach({domain: name, ...made, bus: 'scsi'}), {bus: 'scsi', target: 'sda', live: true})
  t.deepEqual(scsiModels((await devices()).live), [['0', 'virtio-scsi']])
  t.deepEqual(scsiModels((await devices()).persistent), [])
  for (let more = 0; more < 8; more++) await driver.attach({domain: name, ...(await disk()), bus: 'scsi'})
  t.deepEqual(scsiModels((await devices()).live), [['0', 'virtio-scsi']])

  await driver.attach({domain: name, ...made, bus: 'scsi', persistent: true})
  t.deepEqual(scsiModels((await devices()).persistent), [['0', 'virtio-scsi']])
  await driver.detach(name, made.id)
  t.deepEqual(await driver.disks(name).then(disks => disks.filter(({alias}) => alias === aliasOf(made.id))), [])
})

test('a controller of another kind keeps its place, and the new one takes the next', async t => {
  const {name, devices} = await machine(t, 'lsi', "<controller type='scsi' index='0' model='lsilogic'/>")
  const {id, source} = await disk()
  await driver.attach({domain: name, id, source, bus: 'scsi', persistent: true})
  for (const place of Object.values(await devices())) {
    t.deepEqual(scsiModels(place), [
      ['0', 'lsilogic'],
      ['1', 'virtio-scsi'],
    ])
    t.is(attribute(addressOf(place, id), 'controller'), '1')
  }
})

test('two disks at once for a domain without a controller share one', async t => {
  const {name, devices} = await machine(t, 'pair')
  const other = new LibvirtDriver({uri: libvirtd.uri})
  t.teardown(() => other.close())
  await other.open()
  const disks = await Promise.all([1, 2, 3, 4].map(disk))
  await Promise.all(
    disks.map((made, index) => (index % 2 ? driver : other).attach({domain: name, ...made, bus: 'scsi'})),
  )
  t.deepEqual(scsiModels((await devices()).live), [['0', 'virtio-scsi']])
})

test('a machine without a free PCI slot is told of with what helps', async t => {
  const {name} = await machine(t, 'full', '', 'q35')
  const fill = async () => {
    for (;;) await driver.attach({domain: name, ...(await disk()), bus: 'virtio'})
  }
  const virtio = await t.throwsAsync<StorageError>(fill(), {code: 'COMPUTE_FAILED'})
  t.regex(virtio.message, /No more available PCI .*pcie-root-port.*--bus scsi/)
  const scsi = await t.throwsAsync<StorageError>(driver.attach({domain: name, ...(await disk()), bus: 'scsi'}), {
    code: 'COMPUTE_FAILED',
  })
  t.regex(scsi.message, /virtio-scsi controller.*pcie-root-port/)
})

test('a SCSI unit that QEMU has taken and libvirt does not know is passed over', async t => {
  const {name, devices, monitor} = await machine(t, 'unit', "<controller type='scsi' index='0' model='virtio-scsi'/>")
  for (const lun of [0, 1]) {
    const node = `left-${lun}`
    await monitor('blockdev-add', {driver: 'null-co', 'node-name': node, size: MiB})
    const place = {bus: 'scsi0.0', channel: 0, 'scsi-id': 0, lun}
    await monitor('device_add', {driver: 'scsi-hd', id: node, drive: node, ...place})
  }
  const {id, source} = await disk()
  t.like(await driver.attach({domain: name, id, source, bus: 'scsi', persistent: true}), {live: true, persistent: true})
  for (const place of Object.values(await devices())) t.is(attribute(addressOf(place, id), 'unit'), '2')
})

for (const type of ['pc', 'q35']) {
  const ports = ['pcie-root', ...Array(4).fill('pcie-root-port')]
  const buses = ports.map((model, index) => `<controller type='pci' index='${index}' model='${model}'/>`).join('')
  test(`a PCI slot of a ${type} that QEMU has taken and libvirt does not know is passed over`, async t => {
    const {name, devices, monitor} = await machine(t, `slot-${type}`, type === 'q35' ? buses : '', type)
    // Where libvirt would put a disk, it puts this one; then only its successor in QEMU is there.
    const first = await disk()
    await driver.attach({domain: name, ...first, bus: 'virtio'})
    const {live} = await devices()
    const [bus, slot] = ['bus', 'slot'].map(key => Number(attribute(addressOf(live, first.id), key)))
    await libvirtd.connection.destroy(name)
    await libvirtd.connection.start(name)
    await monitor('blockdev-add', {driver: 'null-co', 'node-name': 'left', size: MiB})
    await monitor('device_add', {
      driver: 'virtio-blk-pci',
      id: 'left',
      drive: 'left',
      bus: type === 'pc' ? 'pci.0' : `pci.${bus}`,
      addr: `0x${slot!.toString(16)}`,
    })
    const {id, source} = await disk()
    t.like(await driver.attach({domain: name, id, source, bus: 'virtio'}), {live: true, bus: 'virtio'})
    const taken = addressOf((await devices()).live, id)
    t.notDeepEqual(
      ['bus', 'slot'].map(key => Number(attribute(taken, key))),
      [bus, slot],
    )
  })
}

test('a disk that QEMU has and libvirt does not know is told of as that', async t => {
  const {name, monitor} = await machine(t, 'known', "<controller type='scsi' index='0' model='virtio-scsi'/>")
  const {id, source} = await disk()
  await monitor('blockdev-add', {driver: 'null-co', 'node-name': 'left', size: MiB})
  await monitor('device_add', {driver: 'scsi-hd', id: aliasOf(id), drive: 'left', bus: 'scsi0.0', lun: 5})
  const error = await t.throwsAsync<StorageError>(driver.attach({domain: name, id, source, bus: 'scsi'}), {
    code: 'COMPUTE_FAILED',
  })
  t.regex(error.message, /QEMU has this disk already, and libvirt does not know it/)
})
