import test from 'ava'
import {PrivateLibvirtd} from '../../src/sandbox/libvirtd.js'
import {until} from '../fixtures/cli.js'
import {Node} from '../fixtures/node.js'
import {sampleOf, scrape} from '../fixtures/scrape.js'

const definition = (name: string) => `<domain type='qemu'><name>${name}</name><memory unit='MiB'>16</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os><devices><controller type='usb' model='none'/></devices></domain>`

test('a domain that was renamed has its new name in lists, errors, metrics and at a detach', async t => {
  const libvirtd = new PrivateLibvirtd()
  t.teardown(() => libvirtd.stop())
  await libvirtd.start()
  const {connection} = libvirtd
  const node = await Node.make({compute: {uri: libvirtd.uri}})
  t.teardown(() => node.stop())
  await node.start()
  const listed = async () =>
    (await node.api.call<{domain: string; state: string}[]>('GET', '/attachments')).map(one => [one.domain, one.state])
  const volumes = async () => (await node.api.call<{domain: string | null}[]>('GET', '/volumes')).map(one => one.domain)

  await connection.defineXml(definition('old'))
  const body = {domain: 'old', sizeBytes: 2 ** 20, persistent: true, live: false}
  const {volume} = await node.api.call<{volume: {id: string}}>('POST', '/attachments', body)
  t.deepEqual(await listed(), [['old', 'attached']])

  // virsh domrename: the same definition, its UUID included, under another name. Another domain takes the old one.
  const xml = (await connection.inactiveXml('old'))!
  await connection.undefine('old')
  await connection.defineXml(xml.replace('<name>old</name>', '<name>new</name>'))
  await connection.defineXml(definition('old'))
  await until('the name is known', async () => (await volumes())[0] === 'new')
  t.deepEqual(await listed(), [['new', 'attached']])
  const {samples} = await scrape(node.metricsPort)
  t.is(sampleOf(samples, 'lunpath_attachment_info', {id: volume.id, domain: 'new', state: 'attached'}), 1)
  const inUse = await t.throwsAsync(node.api.call('DELETE', `/volumes/${volume.id}`), {code: 'VOLUME_IN_USE'})
  t.regex(inUse!.message, /attached to new\b/)
  const again = node.api.call('POST', '/attachments', {domain: 'old', volume: volume.id, persistent: true, live: false})
  t.regex((await t.throwsAsync(again, {code: 'ATTACHMENT_EXISTS'}))!.message, /to new as vda/)

  // Without libvirt the name in the record serves, since nobody can tell another.
  await node.stopDaemon()
  await libvirtd.kill()
  await node.start()
  t.deepEqual(await listed(), [['old', 'unknown']])
  await libvirtd.start()
  await until('libvirt is back', async () => (await listed())[0]?.join() === 'new,attached')

  await t.throwsAsync(node.api.call('DELETE', '/domains/old/disks/vda'), {code: 'ATTACHMENT_NOT_FOUND'})
  await node.api.call('DELETE', '/domains/new/disks/vda')
  t.deepEqual(await listed(), [])
  t.false((await libvirtd.connection.inactiveXml('new'))!.includes(volume.id))
})
