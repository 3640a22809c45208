import test from 'ava'
import type {Observed} from '../../src/reconcile/observe.js'
import {attachmentState, type Desired, plan} from '../../src/reconcile/plan.js'
import type {Operation} from '../../src/state/journal.js'

const id = '0123456789abcdef'
const iqn = `iqn.2026-01.io.lunpath:${id}`
const ours = (name: string) => name.startsWith('iqn.2026-01.io.lunpath:')
const volume = {id, imported: false, path: `/pool/${id}.img`} as never
const target = {iqn, luns: [{lun: 1}], sessions: []} as never
const nothing: Observed = {volumes: [], targets: [], disks: new Map(), sessions: []}
const desired = (given: Partial<Desired>): Desired => ({
  volumes: [],
  exports: [],
  attachments: [],
  unfinished: [],
  ...given,
})
const summary = (actions: ReturnType<typeof plan>) =>
  actions.map(action => (action.do === 'report' ? `${action.problem.problem} ${action.problem.subject}` : action.do))

test('01 a world that is as asked for needs nothing', t => {
  const asked = desired({volumes: [volume], exports: [{volumeId: id, iqn} as never]})
  t.deepEqual(plan(asked, {...nothing, volumes: [volume], targets: [target]}, ours), [])
})

test('02 an export without target, or whose target has no LUN, is put back', t => {
  const asked = desired({volumes: [volume], exports: [{volumeId: id, iqn} as never]})
  t.deepEqual(plan(asked, {...nothing, volumes: [volume]}, ours), [{do: 'restore', volumeId: id}])
  const halfMade = {iqn, luns: [], sessions: []} as never
  t.deepEqual(plan(asked, {...nothing, volumes: [volume], targets: [halfMade]}, ours), [{do: 'restore', volumeId: id}])
})

test('03 an unfinished operation is resumed, and its subject is left to it alone', t => {
  const operation = {subject: id, kind: 'attach'} as Operation
  const asked = desired({volumes: [volume], exports: [{volumeId: id, iqn} as never], unfinished: [operation]})
  t.deepEqual(plan(asked, nothing, ours), [{do: 'resume', operation}])
})

test('04 exports are restored before operations are resumed', t => {
  const operation = {subject: 'f'.repeat(16)} as Operation
  const asked = desired({volumes: [volume], exports: [{volumeId: id, iqn} as never], unfinished: [operation]})
  t.deepEqual(summary(plan(asked, {...nothing, volumes: [volume]}, ours)), ['restore', 'resume'])
})

test('05 what nobody asked for is reported, never removed; what is foreign is not even reported', t => {
  const foreign = {iqn: 'iqn.2001-04.com.example:disk', luns: [{lun: 1}], sessions: []} as never
  const actions = plan(desired({}), {...nothing, volumes: [volume], targets: [target, foreign]}, ours)
  t.deepEqual(summary(actions), [`volume-unknown ${id}`, `export-unknown ${iqn}`])
})

test('06 a missing volume is reported; an imported one is not looked for in the pool', t => {
  t.deepEqual(summary(plan(desired({volumes: [volume]}), nothing, ours)), [`volume-missing ${id}`])
  t.deepEqual(plan(desired({volumes: [{id, imported: true} as never]}), nothing, ours), [])
})

test('07 an attachment is what is seen of it', t => {
  const record = {id, domainUuid: 'u'}
  const disk = {serial: id, alias: `ua-lunpath-${id}`} as never
  t.is(attachmentState(record, new Map([['u', [disk]]]), false), 'attached')
  t.is(attachmentState(record, new Map([['u', []]]), false), 'absent')
  t.is(attachmentState(record, new Map([['u', null]]), false), 'absent')
  t.is(attachmentState(record, null, false), 'unknown')
  t.is(attachmentState(record, null, true), 'detaching')
})

test('08 libvirt that does not answer makes no disk absent', t => {
  const asked = desired({attachments: [{id, domainUuid: 'u', domain: 'vm', target: 'vdb'} as never]})
  t.deepEqual(plan(asked, {...nothing, disks: null}, ours), [])
  t.deepEqual(summary(plan(asked, {...nothing, disks: new Map([['u', []]])}, ours)), [`disk-absent ${id}`])
})
