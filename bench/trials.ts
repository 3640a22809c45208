import type {Comparison} from './measure.js'
import {provisionComparison} from './provision.js'

/** Hands over what must be undone when the trial is over, last first. */
export type Release = (cleanup: () => Promise<void>) => void

/** A row of the table: what is compared, in which unit, and the bar that the ratio ours ÷ other must hold. */
export interface Trial {
  bench: string
  name: string
  unit: string
  better: 'lower' | 'higher'
  bar: {atMost: number} | {atLeast: number}
  prepare: (release: Release) => Promise<Comparison>
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
    bar: {atMost: 2},
    prepare: release => provisionComparison({other: 'bare C', count: 100, concurrency: 1}, release),
  },
]
