import test from 'ava'
import {type PartialConfig, settleConfig} from '../src/config.js'

test('names of our own are folded in the configuration', t => {
  const config = settleConfig({
    targets: {iqnPrefix: 'IQN.2026-01.io.Example'},
    initiator: {name: 'iqn.2026-01.io.example:Node-A'},
  })
  t.is(config.targets.iqnPrefix, 'iqn.2026-01.io.example')
  t.is(config.initiator.name, 'iqn.2026-01.io.example:node-a')
  t.is(
    settleConfig({targets: {iqnPrefix: 'iqn.2026-01.io.Example'}}).initiator.name.toLowerCase(),
    settleConfig({targets: {iqnPrefix: 'iqn.2026-01.io.example'}}).initiator.name,
  )
})

test('a SAN’s target may have any name', t => {
  const sanTargets = ['iqn.2004-04.com.QNAP:TS-453:iscsi.Disk1']
  t.deepEqual(settleConfig({volumes: {sanTargets}}).volumes.sanTargets, sanTargets)
  t.throws(() => settleConfig({volumes: {sanTargets: ['iqn.a:x y']}}), {code: 'NAME_INVALID'})
})

test('portals that nobody could be told of are refused before anything starts', t => {
  const refusals: [PartialConfig, string, RegExp][] = [
    [{targets: {portals: ['[fe80::1%eth0]:3260']}}, 'NAME_INVALID', /link-local/],
    [{targets: {portals: ['fe80::1']}}, 'NAME_INVALID', /link-local/],
    [{targets: {portals: ['nas.example:3260']}}, 'NAME_INVALID', /expected ADDRESS/],
    [
      {targets: {driver: 'lio', networkNamespace: 'storage', portals: ['0.0.0.0']}},
      'INVALID_ARGUMENT',
      /all addresses of the network namespace storage/,
    ],
  ]
  for (const [given, code, message] of refusals) t.throws(() => settleConfig(given), {code, message})
  t.notThrows(() => settleConfig({targets: {portals: ['0.0.0.0:3260', '[::]:3260']}}))
  t.notThrows(() => settleConfig({metrics: {listen: '[fe80::1%eth0]:9723'}}))
})
