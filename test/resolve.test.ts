// Host names of portals: by this system's own means, with a deadline, and to an address that answers.
import {createSocket} from 'node:dgram'
import {once} from 'node:events'
import {appendFile, writeFile} from 'node:fs/promises'
import test from 'ava'
import {samePortal} from '../src/address.js'
import {resolvePortal} from '../src/resolve.js'
import {openPortal} from './fixtures/portals.js'
import {lab} from './lab/lab.js'

test('an address is left as it is, and localhost is this host at the address that answers', async t => {
  const {portal, close} = await openPortal(() => {})
  t.teardown(close)
  t.deepEqual(await resolvePortal({...portal, tpgt: 3}), {...portal, tpgt: 3})
  // Where localhost is ::1 first, nobody listens there.
  t.deepEqual(await resolvePortal({address: 'localhost', port: portal.port}), portal)
})

test('a name that nobody knows is an error that says so', async t => {
  const error = await t.throwsAsync(resolvePortal({address: 'nosuch.invalid', port: 3260}), {code: 'INITIATOR_FAILED'})
  t.regex(error!.message, /no address of nosuch\.invalid/)
})

lab('of several addresses the preferred one is taken, else the first that answers', async t => {
  const {portal, close} = await openPortal(() => {})
  t.teardown(close)
  await appendFile('/etc/hosts', '127.0.0.9 several.example\n127.0.0.1 several.example\n127.0.0.8 several.example\n')
  const named = {address: 'several.example', port: portal.port}
  t.deepEqual(await resolvePortal(named), portal)
  const preferred = {address: '127.0.0.8', port: portal.port}
  t.true(samePortal(await resolvePortal(named, {preferred: [preferred]}), preferred))
})

lab('a name server that keeps silent is a TIMEOUT', async t => {
  const silent = createSocket('udp4')
  silent.bind(53, '127.0.0.1')
  await once(silent, 'listening')
  t.teardown(() => silent.close())
  await writeFile('/etc/resolv.conf', 'nameserver 127.0.0.1\noptions timeout:30 attempts:5\n')
  const asked = once(silent, 'message')
  const error = await t.throwsAsync(resolvePortal({address: 'nas.example', port: 3260}, {timeoutMs: 2_000}), {
    code: 'TIMEOUT',
  })
  t.regex(error!.message, /nas\.example/)
  await asked
})
