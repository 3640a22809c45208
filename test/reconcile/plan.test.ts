import test from 'ava'
import type {Observed} from '../../src/reconcile/observe.js'
import {attachmentState, type Desired, plan} from '../../src/reconcile/plan.js'
import type {Operation} from '../../src/state/journal.js'

const id = '0123456789abcdef'
const iqn = `iqn.2026-01.io.lunpath:${id}`
const ours = (name: string) => name.startsWith('iqn.2026-01.io.lunpath:')
const volume = {id, imported: false, path: `/pool/${id}.img`} as never
const target = {iqn, luns: [{lun: 1}], sessions: []} as never
const nothing: Observed = {
  volumes: [],
  unusablePools: [],
  targets: [],
  outOfPlace: new Set(),
  portals: [],
  disks: new Map(),
  sessions: [],
  unseen: [],
}
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
  const asked = desired({volumes: [volume], exports: [{volumeId: id, iqn, lun: 1} as never]})
  t.deepEqual(plan(asked, {...nothing, volumes: [volume], targets: [target]}, ours), [])
})

test('02 an export without target, or whose target has no LUN, is put back', t => {
  const asked = desired({volumes: [volume], exports: [{volumeId: id, iqn, lun: 1} as never]})
  t.deepEqual(plan(asked, {...nothing, volumes: [volume]}, ours), [{do: 'restore', volumeId: id}])
  const halfMade = {iqn, luns: [], sessions: []} as never
  t.deepEqual(plan(asked, {...nothing, volumes: [volume], targets: [halfMade]}, ours), [{do: 'restore', volumeId: id}])
})

test('03 an unfinished operation is resumed, and its subject is left to it alone', t => {
  const operation = {subject: id, kind: 'attach'} as Operation
  const asked = desired({volumes: [volume], exports: [{volumeId: id, iqn, lun: 1} as never], unfinished: [operation]})
  t.deepEqual(plan(asked, nothing, ours), [{do: 'resume', operation}])
})

test('04 exports are restored before operations are resumed', t => {
  const operation = {subject: 'f'.repeat(16)} as Operation
  const asked = desired({volumes: [volume], exports: [{volumeId: id, iqn, lun: 1} as never], unfinished: [operation]})
  t.deepEqual(summary(plan(asked, {...nothing, volumes: [volume]}, ours)), ['restore', 'resume'])
})

test('05 what nobody asked for is reported, never removed; what is foreign is not even reported', t => {
  const foreign = {iqn: 'iqn.2001-04.com.example:disk', luns: [{lun: 1}], sessions: []} as never
  const actions = plan(desired({}), {...nothing, volumes: [volume], targets: [target, foreign]}, ours)
  t.deepEqual(summary(actions), [`volume-unknown ${id}`, `export-unknown ${iqn}`])
})

test('05b a target that was taken over has its own name and LUN, and is ours by its export alone', t => {
  const name = 'iqn.2001-04.com.example:disk'
  const taken = (lun: number) => ({iqn: name, luns: [{lun}], sessions: []}) as never
  const exported = {volumeId: id, iqn: name, lun: 0} as never
  const asked = desired({exports: [exported]})
  t.deepEqual(plan(asked, {...nothing, targets: [taken(0)]}, ours), [])
  t.deepEqual(plan(asked, {...nothing, targets: [taken(1)]}, ours), [{do: 'restore', volumeId: id}])
  t.deepEqual(plan(asked, nothing, ours), [{do: 'restore', volumeId: id}])
  const world = {...nothing, targets: [taken(0)], sessions: [session({iqn: name})]}
  t.deepEqual(plan(asked, world, ours), [{do: 'disconnect', iqn: name}])
  const operation = {subject: id, kind: 'attach'} as Operation
  t.deepEqual(summary(plan({...asked, unfinished: [operation]}, world, ours)), ['resume'])
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

const uuid = 'b2c3d4e5-0000-4000-8000-000000000001'
const attachment = {id, iqn, route: 'host', domain: 'vm', domainUuid: uuid, target: 'sdb'} as never
const session = (more: object) =>
  ({iqn, owner: 'attach', state: 'LOGGED_IN', stuck: null, devices: [{device: 'sdc'}], ...more}) as never
const inDomain = (path: string) =>
  new Map([[uuid, [{serial: id, alias: `ua-lunpath-${id}`, live: true, source: {type: 'block', path}} as never]]])

test('09 a session that no attachment needs is logged out, where it is ours and nothing is at work on it', t => {
  const world = (more: object): Observed => ({...nothing, sessions: [session(more)]})
  t.deepEqual(plan(desired({}), world({}), ours), [{do: 'disconnect', iqn}])
  for (const owner of ['hand', 'other', 'unknown']) t.deepEqual(plan(desired({}), world({owner}), ours), [], owner)
  t.deepEqual(plan(desired({}), world({iqn: 'iqn.2001-04.com.example:disk'}), ours), [])
  const operation = {subject: id, kind: 'attach'} as Operation
  t.deepEqual(summary(plan(desired({unfinished: [operation]}), world({}), ours)), ['resume'])
})

test('10 an attachment logs in again where it has no session, or none that iscsid still tries to bring back', t => {
  const asked = desired({attachments: [attachment]})
  const world = (sessions: never[]): Observed => ({...nothing, sessions, disks: inDomain('/dev/sdc')})
  t.deepEqual(plan(asked, world([session({})]), ours), [])
  t.deepEqual(plan(asked, world([session({state: 'FAILED'})]), ours), [])
  t.deepEqual(plan(asked, world([session({state: 'FREE'})]), ours), [{do: 'connect', attachmentId: id}])
  t.deepEqual(summary(plan(asked, world([]), ours)), ['connect', `disk-stale ${id}`])
  const late = {giveUpFailed: true}
  t.deepEqual(plan(asked, world([session({})]), ours, late), [])
  t.deepEqual(plan(asked, world([session({state: 'FAILED'})]), ours, late), [{do: 'connect', attachmentId: id}])
  t.deepEqual(plan(asked, world([session({state: 'FAILED'}), session({})]), ours, late), [])
})

test('11 a domain with the disk of a session that has ended is told of, and so is a session that is stuck', t => {
  const asked = desired({attachments: [attachment]})
  const world = (path: string, stuck: string | null): Observed => ({
    ...nothing,
    sessions: [session({stuck})],
    disks: inDomain(path),
  })
  t.deepEqual(summary(plan(asked, world('/dev/sdb', null), ours)), [`disk-stale ${id}`])
  t.deepEqual(summary(plan(asked, world('/dev/disk/by-id/wwn-0x60', null), ours)), [])
  t.deepEqual(summary(plan(asked, world('/dev/sdc', 'it hangs'), ours)), [`session-stuck ${iqn}`])
})

test('12 what a look has not asked for is neither missing nor unknown; what the driver has lost is put back all the same', t => {
  const asked = desired({volumes: [volume], exports: [{volumeId: id, iqn, lun: 1} as never], attachments: [attachment]})
  const unasked: Observed = {...nothing, volumes: null, targets: null, sessions: null, disks: null}
  t.deepEqual(plan(asked, unasked, ours), [])
  t.deepEqual(plan(asked, {...unasked, outOfPlace: new Set([iqn])}, ours), [{do: 'restore', volumeId: id}])
})

test('13 a portal that is not open is told of, and why', t => {
  const portal = {address: '192.0.2.7', port: 3260}
  const actions = plan(
    desired({}),
    {
      ...nothing,
      portals: [
        {...portal, open: false, reason: 'it is no address of this machine'},
        {...portal, port: 3261, open: true, reason: null},
      ],
    },
    ours,
  )
  t.deepEqual(summary(actions), ['portal-closed 192.0.2.7:3260'])
  t.regex(JSON.stringify(actions), /no address of this machine/)
})

test('14 a disk that logs in to what is no portal any more is told of, with the commands', t => {
  const record = {id, volumeId: id, iqn, route: 'qemu', domain: 'vm', domainUuid: uuid, target: 'vdb', persistent: true}
  const portal = {address: '192.0.2.7', port: 3260}
  const disk = {serial: id, alias: `ua-lunpath-${id}`, live: true, source: {type: 'iscsi', iqn, lun: 1, portal}}
  const world = (address: string): Observed => ({
    ...nothing,
    portals: [{...portal, address, open: true, reason: null}],
    disks: new Map([[uuid, [disk as never]]]),
  })
  const asked = desired({attachments: [record as never]})
  t.deepEqual(plan(asked, world('192.0.2.7'), ours), [])
  const actions = plan(asked, world('192.0.2.8'), ours)
  t.deepEqual(summary(actions), [`disk-portal-changed ${id}`])
  t.true(JSON.stringify(actions).includes(`lunpath detach ${id}, then lunpath attach vm --volume ${id} --persistent`))
  const byDevice = desired({attachments: [{...record, volumeId: null} as never]})
  t.deepEqual(plan(byDevice, world('192.0.2.8'), ours), [], 'what somebody gave as a device has a portal of its own')
})

test('15 every problem names the command or the event that ends it', t => {
  const gone = desired({volumes: [volume], attachments: [{...(attachment as object), route: 'host'} as never]})
  const other = {id: 'f'.repeat(16), path: '/pool/f.img'} as never
  const target = {iqn: `iqn.2026-01.io.lunpath:${'e'.repeat(16)}`, luns: [], sessions: []} as never
  const world: Observed = {
    ...nothing,
    volumes: [other],
    targets: [target],
    unusablePools: [{pool: 'p', driver: 'lvm', reason: 'it is gone'}],
    portals: [{address: '192.0.2.7', port: 3260, open: false, reason: 'so'}],
    sessions: [session({stuck: 'it hangs'})],
    unseen: [{part: 'targets', reason: 'tgtd does not answer'}],
    disks: inDomain('/dev/sdb'),
  }
  const told = [plan(gone, world, ours), plan(gone, {...world, disks: new Map([[uuid, []]])}, ours)]
    .flat()
    .flatMap(action => (action.do === 'report' ? [action.problem] : []))
  const kinds = [
    'pool-unusable',
    'look-failed',
    'portal-closed',
    'volume-unknown',
    'export-unknown',
    'disk-absent',
    'disk-stale',
  ]
  for (const kind of [...kinds, 'session-stuck'])
    t.true(
      told.some(({problem}) => problem === kind),
      kind,
    )
  for (const {problem, message} of told)
    t.regex(message, /[Rr]un: lunpath |[Ii]t ends when|tried again|Remove it|[Mm]ove it/, problem)
})
