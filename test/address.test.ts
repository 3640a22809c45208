import test from 'ava'
import {canonicalAddress, familyOf, isLinkLocal, samePortal} from '../src/address.js'
import {portalHolders} from '../src/port-holders.js'
import {isLocalAddress} from '../src/targets/portals.js'

const at = (address: string) => ({address, port: 3260})

test('an address with a zone is an address, and has a shortest form', async t => {
  t.is(familyOf('fe80::1%eth0'), 6)
  t.is(familyOf('fe80::1%'), 0)
  t.is(familyOf('10.0.0.1%eth0'), 0)
  t.is(canonicalAddress('FE80:0::1%eth0'), 'fe80::1%eth0')
  t.true(isLinkLocal('FE80::1%eth0'))
  t.true(isLinkLocal('febf::1'))
  t.false(isLinkLocal('fec0::1'))
  t.deepEqual(await portalHolders({address: 'fe80::1%eth0', port: 1}, {dualStack: true}), [])
  t.false(isLocalAddress('fe80::dead%eth0'))
})

test('two links may have one address; who does not name the link says nothing of it', t => {
  t.true(samePortal(at('fe80:0::1%eth0'), at('fe80::1%eth0')))
  t.false(samePortal(at('fe80::1%eth0'), at('fe80::1%eth1')))
  t.true(samePortal(at('fe80::1%eth0'), at('fe80::1')))
  t.false(samePortal(at('fe80::1%eth0'), {address: 'fe80::1%eth0', port: 1}))
})
