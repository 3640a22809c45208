import type {networkInterfaces} from 'node:os'
import test from 'ava'
import {covers, dialledPortals, isLocalAddress} from '../../src/targets/portals.js'

type Interfaces = ReturnType<typeof networkInterfaces>

function host(addresses: Record<string, string[]>): Interfaces {
  const found = Object.entries(addresses).map(([name, own]) => [
    name,
    own.map(address => ({
      address,
      family: address.includes(':') ? 'IPv6' : 'IPv4',
      internal: name === 'lo',
      netmask: '',
      mac: '',
      cidr: null,
    })),
  ])
  return Object.fromEntries(found) as Interfaces
}

const all = (address: string) => [{address, port: 3260}]

test('a wildcard is dialled at the first address that other hosts can reach, loopback where there is no other', t => {
  const two = host({lo: ['127.0.0.1', '::1'], eth0: ['10.0.0.5', 'fe80::5', '2001:db8::5'], eth1: ['192.0.2.5']})
  t.deepEqual(dialledPortals(all('0.0.0.0'), two), all('10.0.0.5'))
  t.deepEqual(dialledPortals(all('::'), two), all('2001:db8::5'))
  const alone = host({lo: ['127.0.0.1', '::1'], eth0: ['fe80::5']})
  t.deepEqual(dialledPortals(all('0.0.0.0'), alone), all('127.0.0.1'))
  t.deepEqual(dialledPortals(all('::'), alone), all('::1'))
  t.deepEqual(dialledPortals([...all('0.0.0.0'), ...all('10.0.0.5'), ...all('192.0.2.5')], two), [
    ...all('10.0.0.5'),
    ...all('192.0.2.5'),
  ])
  const [own] = dialledPortals(all('0.0.0.0'))
  t.true(isLocalAddress(own!.address))
  t.not(own!.address, '0.0.0.0')
})

test('a portal covers itself however it is spelled, and a wildcard its family at its port', t => {
  t.true(covers({address: 'fd00:0::1', port: 1}, {address: 'fd00::1', port: 1}))
  t.true(covers({address: '0.0.0.0', port: 1}, {address: '10.0.0.5', port: 1}))
  t.false(covers({address: '0.0.0.0', port: 1}, {address: '10.0.0.5', port: 2}))
  t.false(covers({address: '0.0.0.0', port: 1}, {address: '::1', port: 1}))
  t.false(covers({address: '10.0.0.5', port: 1}, {address: '10.0.0.6', port: 1}))
})
