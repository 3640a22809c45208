import {setTimeout as sleep} from 'node:timers/promises'
import {isDeepStrictEqual} from 'node:util'
import {StorageError} from '../errors.js'
import type {ExportSpec} from '../types.js'
import {call} from './iet-control.js'
import {errno, type Link, refusal, type TargetKey} from './iet-link.js'
import type {IetListings} from './iet-listings.js'
import type {IetTargetVolumes, IetVolume} from './iet-procfs.js'
import {expectedVolume, fit, type IetVolumeOptions, lunOf, volumeArguments} from './iet-spec.js'
import {refuseUnfitVolume} from './spec.js'

const waitMs = 20

/** Logical units of targets, by the control device. */
export class IetUnits {
  readonly #listings: IetListings
  readonly #options: IetVolumeOptions
  readonly #timeoutMs: number

  constructor(listings: IetListings, options: IetVolumeOptions & {timeoutMs: number}) {
    this.#listings = listings
    this.#options = options
    this.#timeoutMs = options.timeoutMs
  }

  argumentsOf(spec: ExportSpec): string {
    return volumeArguments(spec, this.#options)
  }

  /** The unit as IET must list it. */
  expected(spec: ExportSpec): IetVolume {
    return expectedVolume(spec, this.#options)
  }

  async add(link: Link, {iqn, tid}: TargetKey, spec: ExportSpec): Promise<void> {
    const args = this.argumentsOf(spec)
    const lun = lunOf(spec)
    const [[answer] = []] = await link.call([[call.addVolume(tid, lun, args)]])
    if (answer!.error !== 0) {
      throw refusal(answer!.error, {op: 'target.export', what: `the volume ${spec.volume.path}`, iqn})
    }
    // IET may have forgotten an error on the way and made something else.
    const expected = this.expected(spec)
    const found = (await this.#listings.find({iqn, tid}))?.volumes.find(one => one.lun === lun)
    if (isDeepStrictEqual(found, expected)) return
    const differing = (Object.keys(expected) as (keyof IetVolume)[]).filter(key => expected[key] !== found?.[key])
    throw new StorageError(
      'TARGET_FAILED',
      found
        ? `IET has made another volume than it was asked for: ${differing.map(key => `${key} is ${found[key]}, not ${expected[key]}`).join('; ')}`
        : `IET said that it made the volume of ${iqn}, and does not list it`,
      {op: 'target.export', info: {iqn, expected, found}},
    )
  }

  /** Without sessions. */
  async replace(link: Link, target: TargetKey, spec: ExportSpec): Promise<void> {
    await refuseUnfitVolume(spec, fit)
    const found = await this.untilNoneIsDeleted(target)
    if (found?.volumes.some(({lun}) => lun === lunOf(spec))) {
      const [[answer] = []] = await link.call([[call.deleteVolume(target.tid, lunOf(spec))]])
      if (answer!.error !== 0 && answer!.error !== errno.enoent) {
        throw refusal(answer!.error, {op: 'target.export', what: 'the removal of the volume', iqn: target.iqn})
      }
      await this.untilNoneIsDeleted(target)
    }
    await this.add(link, target, spec)
  }

  /**
   * A LUN that is deleted and has commands in flight is never deleted again: IET would count its LUNs wrong, and hide
   * others. @throws TIMEOUT
   */
  async untilNoneIsDeleted(target: TargetKey): Promise<IetTargetVolumes | undefined> {
    const deadline = performance.now() + this.#timeoutMs
    for (;;) {
      const found = await this.#listings.find(target)
      if (!found?.volumes.some(({deleted}) => deleted)) return found
      if (performance.now() > deadline) {
        throw new StorageError('TIMEOUT', `A deleted LUN of ${target.iqn} still has commands in flight`, {
          op: 'target',
          info: {...target, state: 'stuck'},
        })
      }
      await sleep(waitMs)
    }
  }
}
