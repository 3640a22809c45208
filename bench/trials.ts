import type {LabOptions} from '../test/lab/vm.js'
import {computeComparison} from './compute.js'
import {endToEndComparison} from './end-to-end.js'
import {eventLoopComparison} from './event-loop.js'
import {ietBareComparison, ietSpawnComparison} from './iet.js'
import {existingComparison, parallelComparison, targetcliComparison} from './lio.js'
import {loginComparison} from './login.js'
import {lvmComparison} from './lvm.js'
import type {Comparison} from './measure.js'
import {provisionComparison} from './provision.js'

/** Hands over what must be undone when the trial is over, last first. */
export type Release = (cleanup: () => Promise<void>) => void

/** A row of the table: what is compared, in which unit, and the bar that the ratio ours ÷ other must hold, if any. */
export interface Trial {
  bench: string
  name: string
  unit: string
  better: 'lower' | 'higher'
  bar: {atMost: number} | {atLeast: number} | null
  prepare: (release: Release) => Promise<Comparison>
  /** It needs a kernel of its own: the bench runs in the lab, in a VM of this kind. */
  lab?: Pick<LabOptions, 'cpus' | 'memoryMiB' | 'disksBytes' | 'modules'>
}

export const trials: Trial[] = [
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
  lvm('thick', 1, {atMost: 0.2}),
  lvm('thick', 8, null),
  lvm('thin', 1, null),
  lio('one export, with a portal and a rule, against targetcli', 0.02, targetcliComparison),
  lio('8 exports at once against the same one after the other', 0.4, parallelComparison),
  lio('8 exports with 500 targets there before against the first ones', 1.2, release =>
    existingComparison(500, release),
  ),
  {
    bench: 'iet',
    name: 'IET (double): ADD_VOLUME and DEL_VOLUME against a program for each over the socket',
    unit: 'ms',
    better: 'lower',
    bar: {atMost: 0.02},
    prepare: ietSpawnComparison,
    lab: {},
  },
  {
    bench: 'iet',
    name: 'IET (double): 16 ADD_VOLUME and 16 DEL_VOLUME, in two batches, against bare C',
    unit: 'ms',
    better: 'lower',
    bar: {atMost: 1.3},
    prepare: ietBareComparison,
    lab: {},
  },
  {
    bench: 'login',
    name: 'open-iscsi: login to a disk that can be opened, against iscsiadm and udevadm settle',
    unit: 'ms',
    better: 'lower',
    bar: {atMost: 0.6},
    prepare: loginComparison,
    lab: {},
  },
]

function lio(name: string, atMost: number, prepare: Trial['prepare']): Trial {
  const lab = {cpus: 2, memoryMiB: 2048}
  return {bench: 'lio', name: `LIO: ${name}`, unit: 'ms', better: 'lower', bar: {atMost}, prepare, lab}
}

function lvm(kind: 'thick' | 'thin', concurrency: number, bar: Trial['bar']): Trial {
  return {
    bench: 'lvm',
    name: `lvm: a ${kind} volume through the shell, ${concurrency === 1 ? 'one at a time' : `${concurrency} at once`}, against spawning lvcreate (p50)`,
    unit: 'ms per volume',
    better: 'lower',
    bar,
    prepare: release => lvmComparison({kind, count: concurrency === 1 ? 3 : 8, concurrency}, release),
    lab: {disksBytes: [4 * 2 ** 30], modules: ['dm-mod', 'dm-thin-pool']},
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
