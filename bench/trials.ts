import type {NativeIscsiEngine} from '../src/bench/native.js'
import type {LabOptions} from '../test/lab/vm.js'
import {cinderRows} from './cinder.js'
import {computeComparison} from './compute.js'
import {endToEndComparison, unexportComparison} from './end-to-end.js'
import {eventLoopComparison} from './event-loop.js'
import {
  ietBareComparison,
  ietExportComparison,
  ietLostComparison,
  ietRestoreComparison,
  ietSpawnComparison,
} from './iet.js'
import {type IoTrial, ioComparison} from './io.js'
import {benchDelayComparison, startComparison} from './io-node.js'
import {type IscsiFigure, iscsiComparison, iscsiWriteComparison} from './iscsi.js'
import {existingComparison, parallelComparison, targetcliComparison} from './lio.js'
import {loginComparison} from './login.js'
import {lvmComparison} from './lvm.js'
import type {Comparison, Paired} from './measure.js'
import {provisionComparison} from './provision.js'

/** Hands over what must be undone when the trial is over, last first. */
export type Release = (cleanup: () => Promise<void>) => void

export type Bar = {atMost: number} | {atLeast: number}

interface TrialFacts {
  bench: string
  name: string
  unit: string
  better: 'lower' | 'higher'
  /** It needs a kernel of its own: the bench runs in the lab, in a VM of this kind. */
  lab?: Pick<LabOptions, 'machine' | 'cpus' | 'memoryMiB' | 'disksBytes' | 'modules'>
}

/** A row of the table: what is compared, in which unit, and the bar that the ratio ours ÷ other must hold, if any. */
export interface Trial extends TrialFacts {
  bar: Bar | null
  prepare: (release: Release) => Promise<Comparison>
}

/** A trial whose samples have several figures: each is a result. */
export interface TableTrial extends TrialFacts {
  /** Where the command line does not say. */
  pairs: number
  measure: (pairs: number, release: Release) => Promise<TableRow[]>
}

export interface TableRow {
  /** Behind the trial's. */
  name: string
  otherName: string
  statistic: string
  paired: Paired
  bar: Bar | null
  beside: Record<string, unknown>
}

/** These bars were measured with spawns that cost what emulation makes of them. */
const emulated = {machine: 'qemu'} as const

export const trials: (Trial | TableTrial)[] = [
  {
    bench: 'provision',
    name: 'tgt: new target + LUN + ids + rule against tgtadm, one at a time',
    unit: 'µs per export',
    better: 'lower',
    bar: {atMost: 1 / 12},
    prepare: release => provisionComparison({other: 'tgtadm', count: 20, concurrency: 1}, release),
  },
  {
    bench: 'provision',
    name: 'tgt: new target + LUN + ids + rule against bare C, 16 under way',
    unit: 'µs per export',
    better: 'lower',
    bar: {atMost: 1.3},
    prepare: release => provisionComparison({other: 'bare C', count: 100, concurrency: 16}, release),
  },
  {
    // The latency of one: two changes of thread are on its way, and a tgtd that went to sleep in between.
    bench: 'provision',
    name: 'tgt: new target + LUN + ids + rule against bare C, one at a time',
    unit: 'µs per export',
    better: 'lower',
    bar: null,
    prepare: release => provisionComparison({other: 'bare C', count: 100, concurrency: 1}, release),
  },
  ...[0, 1000, 2000].flatMap(existing => [endToEnd(16, existing, {atLeast: 0.3}), endToEnd(1, existing, null)]),
  ...[0, 1000, 2000].map(unexport),
  compute('attach', 'virtio', {atMost: 0.4}),
  compute('attach', 'scsi', {atMost: 0.4}),
  compute('detach', 'virtio', null),
  compute('detach', 'scsi', null),
  {
    bench: 'compute',
    name: 'event loop: p99 delay above idle while 16 attaches run, against its limit',
    unit: 'ms',
    better: 'lower',
    bar: {atMost: 1},
    prepare: eventLoopComparison,
  },
  lvm('create', 'thick', 1, {atMost: 0.2}),
  lvm('create', 'thick', 8, {atMost: 0.12}),
  lvm('create', 'thin', 1, null),
  lvm('create', 'thin', 8, null),
  lvm('delete', 'thick', 8, {atMost: 0.3}),
  lvm('delete', 'thin', 8, null),
  lio('one export, with a portal and a rule, against targetcli', 0.02, targetcliComparison),
  lio('8 exports at once against the same one after the other', 0.4, parallelComparison),
  lio('8 exports with 500 targets there before against the first ones', 1.2, release =>
    existingComparison(500, release),
  ),
  iet('16 ADD_VOLUME and 16 DEL_VOLUME, in two batches, against a program for each over the socket', 0.02, release =>
    ietSpawnComparison(16, release),
  ),
  // The same of one: what a batch shares (a no-op to ietd, the duplicate, two changes of thread) weighs on it alone.
  iet('one ADD_VOLUME and one DEL_VOLUME, against a program for each over the socket', null, release =>
    ietSpawnComparison(1, release),
  ),
  iet('16 ADD_VOLUME and 16 DEL_VOLUME, in two batches, against bare C', 1.3, release =>
    ietBareComparison(16, release),
  ),
  iet('one export and its end at a time, with CHAP and a rule, against a program for each step', 0.5, release =>
    ietExportComparison({count: 8, concurrency: 1}, release),
  ),
  iet('8 exports and their ends at once, with CHAP and rules, against a program for each step', 0.25, release =>
    ietExportComparison({count: 32, concurrency: 8}, release),
  ),
  iet('300 exports come back after a wipe: what that takes beyond its calls, against its limit', 1, release =>
    ietRestoreComparison(300, 1_500, release),
  ),
  iet('64 requests at once to an ietd that takes 5 ms for each: lost or mixed up', 0, release =>
    ietLostComparison(64, 5, release),
  ),
  // What a halted processor costs to wake is the machine's, and no engine's: see docs/benchmarking.md.
  io({device: 'loop', iodepth: 32, other: 'bare C', figure: 'CPU', awake: true}, {atMost: 1.1}),
  io({device: 'loop', iodepth: 32, other: 'bare C', figure: 'IOPS', awake: true}, {atLeast: 0.95}),
  io({device: 'loop', iodepth: 32, other: 'fio io_uring', figure: 'CPU', awake: true}, {atMost: 0.7}),
  io({device: 'loop', iodepth: 32, other: 'fio libaio', figure: 'CPU', awake: true}, {atMost: 0.65}),
  io({device: 'loop', iodepth: 32, other: 'fio tuned', figure: 'CPU', awake: true}, {atMost: 1.1}),
  io({device: 'loop', iodepth: 1, other: 'bare C', figure: 'CPU', awake: true}, null),
  io({device: 'loop', iodepth: 1, other: 'fio io_uring', figure: 'CPU', awake: true}, {atMost: 0.75}),
  io({device: 'loop', iodepth: 32, other: 'fio io_uring', figure: 'CPU'}, null),
  io({device: 'loop', iodepth: 1, other: 'fio io_uring', figure: 'CPU'}, null),
  io({device: 'file', iodepth: 32, other: 'fio io_uring', figure: 'CPU'}, null),
  io({device: 'null', iodepth: 32, other: 'fio null', figure: 'CPU'}, {atMost: 0.4}),
  {
    bench: 'io',
    name: 'io: from the call in Node to the first answer, against its limit',
    unit: 'ms',
    better: 'lower',
    bar: {atMost: 1},
    prepare: startComparison,
  },
  {
    bench: 'io',
    name: 'io: event loop, p99 delay above idle while a run goes at full speed, against its limit',
    unit: 'ms',
    better: 'lower',
    bar: {atMost: 1},
    prepare: benchDelayComparison,
  },
  iscsi('iscsi', 'CPU', {atMost: 1.1}),
  iscsi('iscsi', 'IOPS', {atLeast: 0.95}),
  iscsi('libiscsi', 'CPU', null),
  iscsi('libiscsi', 'IOPS', null),
  iscsi('iscsi', 'CPU', null, 64),
  iscsi('libiscsi', 'CPU', null, 64),
  iscsiWrite({figure: 'CPU', sharedProcessor: true}, {atMost: 0.75}),
  iscsiWrite({figure: 'CPU'}, null),
  iscsiWrite({figure: 'IOPS'}, {atLeast: 0.95}),
  iscsiWrite({figure: 'CPU', kibibytes: 64}, null),
  iscsiWrite({figure: 'IOPS', kibibytes: 64}, null),
  {
    bench: 'login',
    name: 'open-iscsi: login to a disk that can be opened, against iscsiadm and udevadm settle',
    unit: 'ms',
    better: 'lower',
    bar: {atMost: 0.6},
    prepare: loginComparison,
    lab: emulated,
  },
  cinder('tgt'),
  cinder('lio'),
]

function cinder(target: 'tgt' | 'lio'): TableTrial {
  return {
    bench: 'cinder',
    name: target === 'tgt' ? 'Cinder, tgt' : 'Cinder, LIO',
    unit: 'ms',
    better: 'lower',
    pairs: 3,
    measure: (pairs, release) => cinderRows(target, pairs, release),
    lab: {memoryMiB: 2048, disksBytes: [12 * 2 ** 30], modules: ['dm-mod']},
  }
}

function iet(name: string, atMost: number | null, prepare: Trial['prepare']): Trial {
  const unit = name.startsWith('64 requests') ? 'requests' : 'ms'
  const bar = atMost === null ? null : {atMost}
  return {bench: 'iet', name: `IET (double): ${name}`, unit, better: 'lower', bar, prepare, lab: emulated}
}

function io(trial: IoTrial, bar: Trial['bar']): Trial {
  const {device, iodepth, other, figure, awake} = trial
  const on = {loop: 'a loop device on tmpfs, O_DIRECT', file: 'a file in the page cache', null: 'the null engine'}[
    device
  ]
  return {
    bench: 'io',
    name: `io: ${figure}, ${on}, iodepth ${iodepth}${awake ? ', idle processors polling' : ''}, against ${other}`,
    unit: figure === 'CPU' ? 'ns per I/O' : 'IOPS',
    better: figure === 'CPU' ? 'lower' : 'higher',
    bar,
    prepare: release => ioComparison(trial, release),
  }
}

function iscsi(engine: NativeIscsiEngine, figure: IscsiFigure, bar: Trial['bar'], kibibytes = 4): Trial {
  const how = engine === 'libiscsi' ? ' through libiscsi' : ''
  return {
    bench: 'iscsi',
    name: `iscsi: ${figure}, random reads of ${kibibytes} KiB from a tgtd${how}, iodepth 32, against iscsi-perf`,
    unit: figure === 'CPU' ? 'ns per I/O' : 'IOPS',
    better: figure === 'CPU' ? 'lower' : 'higher',
    bar,
    prepare: release => iscsiComparison({engine, figure, bs: kibibytes * 1024}, release),
  }
}

function iscsiWrite(
  {
    figure,
    kibibytes = 4,
    sharedProcessor = false,
  }: {figure: IscsiFigure; kibibytes?: number; sharedProcessor?: boolean},
  bar: Trial['bar'],
): Trial {
  const where = sharedProcessor ? 'on the same processor, ' : ''
  return {
    bench: 'iscsi',
    name: `iscsi: ${figure}, random writes of ${kibibytes} KiB to a tgtd, ${where}iodepth 32, against libiscsi in the same engine`,
    unit: figure === 'CPU' ? 'ns per I/O' : 'IOPS',
    better: figure === 'CPU' ? 'lower' : 'higher',
    bar,
    prepare: release => iscsiWriteComparison({figure, bs: kibibytes * 1024, sharedProcessor}, release),
  }
}

function lio(name: string, atMost: number, prepare: Trial['prepare']): Trial {
  const lab = {...emulated, cpus: 2, memoryMiB: 2048}
  return {bench: 'lio', name: `LIO: ${name}`, unit: 'ms', better: 'lower', bar: {atMost}, prepare, lab}
}

function lvm(step: 'create' | 'delete', kind: 'thick' | 'thin', concurrency: number, bar: Trial['bar']): Trial {
  const what = step === 'create' ? `a ${kind} volume through the shell` : `a ${kind} volume gone through the shell`
  const how = concurrency === 1 ? 'one at a time' : `${concurrency} at once`
  return {
    bench: 'lvm',
    name: `lvm: ${what}, ${how}, against spawning ${step === 'create' ? 'lvcreate' : 'lvremove'} (p50)`,
    unit: 'ms per volume',
    better: 'lower',
    bar,
    prepare: release => lvmComparison({step, kind, count: concurrency === 1 ? 3 : 8, concurrency}, release),
    lab: {...emulated, disksBytes: [4 * 2 ** 30], modules: ['dm-mod', 'dm-thin-pool']},
  }
}

function endToEnd(concurrency: number, existing: number, bar: Trial['bar']): Trial {
  return {
    bench: 'provision',
    name: `end to end: volume + export through the API, ${concurrency} at once, ${existing} there before, against bare C`,
    unit: 'exports/s',
    better: 'higher',
    bar,
    prepare: release => endToEndComparison({concurrency, existing, count: concurrency === 1 ? 100 : 640}, release),
  }
}

function unexport(existing: number): Trial {
  return {
    bench: 'provision',
    name: `end to end: export delete through the API, 16 at once, ${existing} there before, against making them`,
    unit: 'exports/s',
    better: 'higher',
    bar: {atLeast: 0.7},
    prepare: release => unexportComparison({concurrency: 16, existing, count: 640}, release),
  }
}

function compute(step: 'attach' | 'detach', bus: 'virtio' | 'scsi', bar: Trial['bar']): Trial {
  return {
    bench: 'compute',
    name: `libvirt: ${step} on the ${bus} bus against spawning virsh (p50)`,
    unit: 'ms',
    better: 'lower',
    bar,
    prepare: release => computeComparison({step, bus, count: 5}, release),
  }
}
