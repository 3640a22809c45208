import {join} from 'node:path'
import test from 'ava'
import {StorageError} from '../../src/errors.js'
import type {TargetDriver} from '../../src/targets/driver.js'
import {IetDriver} from '../../src/targets/iet.js'
import {LioDriver} from '../../src/targets/lio.js'
import {TgtDriver} from '../../src/targets/tgt.js'
import type {ExportSpec} from '../../src/types.js'
import {temporaryDirectory, volumeSpec} from '../contract/targets.js'

// What a driver refuses by itself. None of these is open, so that a refusal for another reason would show.
const drivers: Record<string, (directory: string) => TargetDriver> = {
  'a tgtd of our own': directory => new TgtDriver({managed: true, directory: join(directory, 'tgt'), portals: []}),
  'a tgtd of others': directory => new TgtDriver({managed: false, socketPath: join(directory, 'socket'), portals: []}),
  LIO: () => new LioDriver({portals: []}),
  IET: directory => new IetDriver({portals: [], accessDirectories: [directory], socketName: join(directory, 'socket')}),
}

for (const [name, make] of Object.entries(drivers)) {
  test(`${name}: names that could be misread are refused before anything is made`, async t => {
    const directory = await temporaryDirectory(t)
    const driver = make(directory)
    await driver.close()
    const spec = await volumeSpec(directory)
    const bad: Record<string, Partial<ExportSpec>> = {
      'a comma in the path': {volume: {...spec.volume, path: `${directory}/a,bstype=null`}},
      'a newline in the path': {volume: {...spec.volume, path: `${directory}/a\nb`}},
      'a NUL in the path': {volume: {...spec.volume, path: `${directory}/a\0b`}},
      'a relative path': {volume: {...spec.volume, path: 'v.img'}},
      'an id that is none': {volume: {...spec.volume, id: '0123'}},
      'upper case in the id': {volume: {...spec.volume, id: '0123456789ABCDEF'}},
      'a comma in the IQN': {iqn: 'iqn.2026-01.io.lunpath:a,b'},
      'a control character in the IQN': {iqn: 'iqn.2026-01.io.lunpath:a\u0007'},
      'two dots in the IQN': {iqn: 'iqn.2026-01.io.lunpath:..'},
      'no IQN': {iqn: ''},
      'an address that is none': {access: {addresses: ['everyone'], names: []}},
      'an address and more': {access: {addresses: ['127.0.0.1,x=y'], names: []}},
      'a prefix too long': {access: {addresses: ['127.0.0.1/33'], names: []}},
      'an initiator name that is none': {access: {addresses: [], names: ['ALL']}},
      'a comma in the CHAP user': {auth: {incoming: {user: 'a,password=x', secret: 'a-good-secret-01'}}},
    }
    for (const [what, change] of Object.entries(bad)) {
      t.throws(() => driver.check({...spec, ...change}), {code: 'NAME_INVALID'}, what)
      const error = await t.throwsAsync(driver.export({...spec, ...change}), {instanceOf: StorageError}, what)
      t.is(error?.code, 'NAME_INVALID', what)
    }
    const secrets = ['short', 'with,a comma,in it', 'with\nnewline-0001', 'x'.repeat(500)]
    for (const secret of secrets) {
      const auth = {incoming: {user: 'guest', secret}}
      t.throws(() => driver.check({...spec, auth}), {code: 'INVALID_ARGUMENT'})
      const error = await t.throwsAsync(driver.export({...spec, auth}), {code: 'INVALID_ARGUMENT'})
      t.false(error!.message.includes(secret))
    }
    t.notThrows(() => driver.check(spec))
    await t.throwsAsync(driver.export(spec), {code: 'TARGET_UNAVAILABLE'}, 'what is not refused would reach the target')
  })
}
