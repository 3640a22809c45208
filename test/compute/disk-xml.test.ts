import test from 'ava'
import {chooseScsiController, freePciAddresses, freeUnit, takenUnits} from '../../src/compute/addresses.js'
import {
  aliasOf,
  buildDiskXml,
  buildSecretXml,
  type DiskPlan,
  describeDomain,
  freeTarget,
  parseDiskXml,
  parseDomain,
  sameSource,
} from '../../src/compute/disk-xml.js'
import type {DiskSource} from '../../src/types.js'
import {elementAt, parseXml} from '../../src/xml.js'

const id = '0123456789abcdef'
const iqn = 'iqn.2026-01.test.lunpath:0123456789abcdef'
const awkwardPaths = [
  '/pool/plain',
  '/pool/with blank',
  '/pool/<disk type="x">',
  '/pool/"quoted\'',
  '/pool/&amp;&lt;',
  '/pool/&#65;&#x42;',
  '/pool/]]>',
  '/pool/<!-- no -->',
  '/pool/ä日本𝄞',
  '/pool/__proto__',
  '/pool/  two  blanks  ',
  '/pool/0x10',
  '/pool/1e3',
]

const plan = (source: DiskSource, more: Partial<DiskPlan> = {}): DiskPlan => ({
  id,
  source,
  bus: 'virtio',
  target: 'vdb',
  readOnly: false,
  cache: 'none',
  ...more,
})

for (const path of awkwardPaths) {
  test(`a path comes back from XML as it went in: ${path}`, t => {
    const sources: DiskSource[] = [
      {type: 'file', path, format: 'raw'},
      {type: 'file', path, format: 'qcow2'},
      {type: 'block', path},
    ]
    for (const source of sources) {
      const disk = parseDiskXml('web', buildDiskXml(plan(source)))
      t.deepEqual(disk, {
        domain: 'web',
        target: 'vdb',
        bus: 'virtio',
        alias: aliasOf(id),
        serial: id,
        source,
        live: false,
        persistent: false,
        readOnly: false,
      })
    }
  })
}

test('an iSCSI source comes back from XML as it went in, but for its secret', t => {
  const portals = [
    {address: '127.0.0.1', port: 3260},
    {address: '2001:db8::1', port: 13260},
  ]
  for (const portal of portals) {
    for (const initiatorName of [undefined, 'iqn.2026-01.test.host:a']) {
      const source = {type: 'iscsi' as const, iqn, lun: 1, portal, ...(initiatorName ? {initiatorName} : {})}
      const auth = {user: 'a<b>"&\'', secret: 'twelve-bytes'}
      const xml = buildDiskXml(plan({...source, auth}, {bus: 'scsi', target: 'sdc', readOnly: true}))
      t.false(xml.includes(auth.secret))
      const disk = parseDiskXml('web', xml)
      t.deepEqual(disk.source, source)
      t.true(disk.readOnly)
      t.is(disk.bus, 'scsi')
    }
  }
})

test('the secret is private, ephemeral and holds no value', t => {
  const {secret} = parseXml(buildSecretXml(iqn)) as {secret: Record<string, unknown>}
  t.is(secret['@ephemeral'], 'yes')
  t.is(secret['@private'], 'yes')
  t.deepEqual(secret.usage, {'@type': 'iscsi', target: `lunpath:${iqn}`})
})

test('what is no source or no target name is refused before it reaches libvirt', t => {
  const refused: [DiskPlan, string][] = [
    [plan({type: 'file', path: 'relative', format: 'raw'}), 'INVALID_ARGUMENT'],
    [plan({type: 'block', path: '/dev/a\nb'}), 'INVALID_ARGUMENT'],
    [plan({type: 'block', path: '/dev/\ud800'}), 'INVALID_ARGUMENT'],
    [plan({type: 'block', path: '/dev/\u0000'}), 'INVALID_ARGUMENT'],
    [plan({type: 'iscsi', iqn: 'iqn.bad/1', lun: 1, portal: {address: '::1', port: 1}}), 'NAME_INVALID'],
    [plan({type: 'iscsi', iqn, lun: -1, portal: {address: '::1', port: 1}}), 'INVALID_ARGUMENT'],
    [plan({type: 'iscsi', iqn, lun: 1, portal: {address: '::1', port: 65536}}), 'INVALID_ARGUMENT'],
    [
      plan({type: 'iscsi', iqn, lun: 1, portal: {address: '::1', port: 1}, auth: {user: '', secret: 'x'}}),
      'INVALID_ARGUMENT',
    ],
    [plan({type: 'block', path: '/dev/x'}, {target: 'sda'}), 'INVALID_ARGUMENT'],
    [plan({type: 'block', path: '/dev/x'}, {target: 'vda"/>'}), 'INVALID_ARGUMENT'],
    [plan({type: 'block', path: '/dev/x'}, {target: 'vda', bus: 'scsi'}), 'INVALID_ARGUMENT'],
  ]
  for (const [bad, code] of refused) t.throws(() => buildDiskXml(bad), {code}, JSON.stringify(bad))
})

test('a DOCTYPE is refused', t => {
  const bomb = '<!DOCTYPE a [<!ENTITY x "xxxxxxxx">]><domain><devices><disk>&x;</disk></devices></domain>'
  t.throws(() => parseDomain(bomb), {code: 'INVALID_ARGUMENT'})
})

// As libvirt 9.0 prints it.
const live = `<domain type='qemu' id='3'>
  <name>web</name>
  <uuid>c7a5fdbd-cdaf-9455-926a-d65c16db1809</uuid>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/images/a &amp; b.qcow2' index='2'/>
      <backingStore/>
      <target dev='vda' bus='virtio'/>
      <alias name='virtio-disk0'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x04' function='0x0'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <target dev='sda' bus='sata'/>
      <readonly/>
      <alias name='sata0-0-0'/>
      <address type='drive' controller='0' bus='0' target='0' unit='0'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source protocol='iscsi' name='${iqn}/1' index='5'>
        <host name='::1' port='13260'/>
        <auth username='u'><secret type='iscsi' usage='lunpath:${iqn}'/></auth>
        <initiator><iqn name='iqn.2026-01.test.host:a'/></initiator>
      </source>
      <target dev='sdb' bus='scsi'/>
      <serial>${id}</serial>
      <alias name='ua-lunpath-${id}'/>
      <address type='drive' controller='1' bus='0' target='0' unit='0'/>
    </disk>
    <controller type='scsi' index='0' model='lsilogic'/>
    <controller type='scsi' index='1' model='virtio-scsi'/>
    <controller type='usb' index='0' model='none'/>
  </devices>
</domain>`
const inactive = `<domain type='qemu'>
  <name>web</name>
  <uuid>c7a5fdbd-cdaf-9455-926a-d65c16db1809</uuid>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/images/a &amp; b.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/image'><host name='ceph'/></source>
      <target dev='sdc' bus='scsi'/>
      <address type='drive' controller='1' bus='0' target='0' unit='1'/>
    </disk>
    <controller type='scsi' index='1' model='virtio-scsi'/>
  </devices>
</domain>`

function describe(inForce: string, forNextStart: string | null) {
  return describeDomain(parseDomain(inForce), forNextStart === null ? null : parseDomain(forNextStart))
}

test('the live and the inactive definition of a domain become one list of disks', t => {
  const {domain, disks, devices} = describe(live, inactive)
  t.deepEqual(domain, {name: 'web', uuid: 'c7a5fdbd-cdaf-9455-926a-d65c16db1809', id: 3, persistent: true})
  t.true(disks.every(disk => disk.domain === 'web'))
  const rows = disks.map(({target, alias, live, persistent}) => [target, alias, live, persistent])
  t.deepEqual(rows, [
    ['vda', 'virtio-disk0', true, true],
    ['sda', 'sata0-0-0', true, false],
    ['sdb', `ua-lunpath-${id}`, true, false],
    ['sdc', '', false, true],
  ])
  t.deepEqual(disks[0]!.source, {type: 'file', path: '/images/a & b.qcow2', format: 'qcow2'})
  t.deepEqual(disks[2]!.source, {
    type: 'iscsi',
    iqn,
    lun: 1,
    portal: {address: '::1', port: 13260},
    initiatorName: 'iqn.2026-01.test.host:a',
  })
  t.deepEqual(disks[3]!.source, {type: 'other', description: 'network pool/image'})
  t.deepEqual(chooseScsiController(devices, ['live', 'persistent']), {index: 1, missing: []})
  t.deepEqual(takenUnits(devices, 1), new Set([0, 1]))
})

test('a domain that is shut off has its persistent disks alone, a transient one its live ones', t => {
  const off = describe(inactive, inactive)
  t.like(off.domain, {id: null, persistent: true})
  t.deepEqual(
    off.disks.map(({target, live, persistent}) => [target, live, persistent]),
    [
      ['vda', false, true],
      ['sdc', false, true],
    ],
  )
  const transient = describe(live, null)
  t.like(transient.domain, {id: 3, persistent: false})
  t.true(transient.disks.length === 3 && transient.disks.every(disk => disk.live && !disk.persistent))
})

test('a domain with no devices or no disks has no disks', t => {
  for (const content of ['', '<devices/>', '<name>x</name>']) {
    for (const id of ['', " id='1'"]) {
      const xml = `<domain${id}>${content}</domain>`
      t.deepEqual(describe(xml, null).disks, [])
      t.deepEqual(describe(xml, xml).disks, [])
    }
  }
})

test('all that feeds a domain is found: each image of a chain, a copy under way, and SCSI devices handed on', t => {
  const xml = `<domain id='1'><name>vm</name><uuid>u</uuid><devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/top'/><target dev='vda' bus='virtio'/>
      <backingStore type='file'><format type='qcow2'/><source file='/middle'/>
        <backingStore type='block'><format type='raw'/><source dev='/dev/base'/><backingStore/></backingStore></backingStore>
      <mirror type='file' job='copy'><format type='raw'/><source file='/copy'/></mirror></disk>
    <disk type='file' device='disk'><driver name='qemu' type='vmdk'/><source file='/odd'/><target dev='vdb' bus='virtio'/><shareable/></disk>
    <disk type='file' device='cdrom'><source file='/iso'/><target dev='sda' bus='sata'/></disk>
    <hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host4'/><address bus='0' target='2' unit='1'/></source></hostdev>
    <hostdev mode='subsystem' type='scsi'><source protocol='iscsi' name='${iqn}/3'><host name='h' port='3260'/></source></hostdev>
    <hostdev mode='subsystem' type='pci'><source><address domain='0' bus='1' slot='0' function='0'/></source></hostdev>
  </devices></domain>`
  const {feeds} = describe(xml, null)
  const named = feeds.map(({source, device, shared}) => {
    const what =
      source.type === 'iscsi' ? `${source.iqn}/${source.lun}` : source.type === 'scsi' ? source.address : source.path
    return `${device} ${what}${shared ? ' shared' : ''}`
  })
  t.deepEqual(named.sort(), [
    'a hostdev 4:0:2:1',
    `a hostdev ${iqn}/3`,
    'sda /iso',
    'vda /copy',
    'vda /dev/base',
    'vda /middle',
    'vda /top',
    'vdb /odd shared',
  ])
})

test('a LUN is one LUN, whatever its portal is called', t => {
  const lun = (address: string) => ({type: 'iscsi' as const, iqn, lun: 1, portal: {address, port: 3260}})
  t.true(sameSource(lun('localhost'), lun('127.0.0.1')))
})

test('sources are the same where they lead to the same blocks', t => {
  const lun = (more: object) => ({type: 'iscsi' as const, iqn, lun: 1, portal: {address: '::1', port: 3260}, ...more})
  t.true(sameSource(lun({}), lun({initiatorName: 'iqn.2026-01.test:x'})))
  t.false(sameSource(lun({}), lun({lun: 2})))
  t.false(sameSource(lun({}), lun({iqn: `${iqn}0`})))
  t.true(sameSource({type: 'block', path: '/dev/x'}, {type: 'file', path: '/dev/x', format: 'raw'}))
  t.false(sameSource({type: 'block', path: '/dev/x'}, {type: 'block', path: '/dev/xy'}))
  t.false(sameSource(lun({}), {type: 'other', description: 'network'}))
})

test('free names and units are the first that nobody has', t => {
  t.is(freeTarget('virtio', new Set()), 'vda')
  t.is(freeTarget('virtio', new Set(['vda', 'vdc', 'sdb'])), 'vdb')
  const alphabet = [...'abcdefghijklmnopqrstuvwxyz']
  t.is(freeTarget('scsi', new Set(alphabet.map(letter => `sd${letter}`))), 'sdaa')
  const two = alphabet.flatMap(first => [`sd${first}`, ...alphabet.map(second => `sd${first}${second}`)])
  t.is(freeTarget('scsi', new Set(two)), 'sdaaa')
  t.is(freeUnit(new Set([0, 1, 3])), 2)
})

test('a SCSI disk goes to a virtio-scsi controller that every place has, or that the fewest lack', t => {
  const devices = (...models: (string | undefined)[]) => {
    const controllers = models.map((model, index) =>
      model ? `<controller type='scsi' index='${index}' model='${model}'/>` : '',
    )
    return elementAt(parseDomain(`<domain><devices><x/>${controllers.join('')}</devices></domain>`), 'devices')
  }
  const both = ['live', 'persistent'] as const
  const choice = (live: ReturnType<typeof devices>, persistent = live) => chooseScsiController({live, persistent}, both)
  t.deepEqual(choice(devices()), {index: 0, missing: ['live', 'persistent']})
  t.deepEqual(choice(devices('lsilogic')), {index: 1, missing: ['live', 'persistent']})
  t.deepEqual(choice(devices('lsilogic', 'lsilogic', 'virtio-scsi')), {index: 2, missing: []})
  t.deepEqual(choice(devices(), devices('virtio-scsi')), {index: 0, missing: ['live']})
  t.deepEqual(choice(devices('lsilogic'), devices('virtio-scsi')), {index: 1, missing: ['live', 'persistent']})
  t.deepEqual(choice(devices('virtio-scsi', 'virtio-scsi'), devices(undefined, 'virtio-scsi')), {index: 1, missing: []})
  t.deepEqual(chooseScsiController({live: devices('lsilogic'), persistent: devices()}, ['persistent']), {
    index: 0,
    missing: ['persistent'],
  })
})

test('free PCI addresses are those that neither definition uses, on buses that take a disk', t => {
  const parse = (...inside: string[]) =>
    elementAt(parseDomain(`<domain><devices><x/>${inside.join('')}</devices></domain>`), 'devices')
  const pci = (index: number, model: string) => `<controller type='pci' index='${index}' model='${model}'/>`
  const disk = (bus: string, slot: string) =>
    `<disk><address type='pci' domain='0x0000' bus='${bus}' slot='${slot}' function='0x0'/></disk>`
  const q35 = [pci(0, 'pcie-root'), pci(1, 'pcie-root-port'), pci(2, 'pcie-root-port'), pci(3, 'pcie-root-port')]
  const ports = freePciAddresses({
    live: parse(...q35, disk('0x01', '0x00')),
    persistent: parse(...q35, disk('0x03', '0x00')),
  })
  t.deepEqual(ports, [{bus: 2, slot: 0}])
  const pc = freePciAddresses({
    live: parse(pci(0, 'pci-root'), disk('0x00', '0x03'), disk('0x00', '0x1f')),
    persistent: undefined,
  })
  t.deepEqual([pc[0], pc.at(-1), pc.length], [{bus: 0, slot: 2}, {bus: 0, slot: 30}, 28])
})
