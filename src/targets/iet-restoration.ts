import {isDeepStrictEqual} from 'node:util'
import {StorageError} from '../errors.js'
import {accountRequests, hasAnswered} from './iet-accounts.js'
import {call, type IetCall, request} from './iet-control.js'
import type {Link} from './iet-link.js'
import type {IetTargetVolumes} from './iet-procfs.js'
import {applySettings} from './iet-settings.js'
import {fit, lunOf} from './iet-spec.js'
import {type Entry, type IetTargets, ruleOf} from './iet-targets.js'
import {refuseUnfitVolume} from './spec.js'

/** So many targets have their turns, and share requests, calls and looks, at once. */
const perBatch = 50

export interface NotBack {
  iqn: string
  code: string
  message: string
}

export interface Restoration {
  /** Exports that are in place now. */
  exports: number
  failed: NotBack[]
}

/**
 * Puts exports back. Whole targets first, behind rules that let nobody in; then all rules at once. Each name is worked on in
 * its turn, and only while the export is wanted as it was when the caller found it missing: what a request has ended or
 * changed since is that request's.
 */
export async function putInPlace(targets: IetTargets, link: Link, wanted: Entry[]): Promise<Restoration> {
  for (const {tid} of wanted) targets.numbers.note(tid)
  const listed = await targets.listings.volumes()
  for (const {tid} of listed) targets.numbers.note(tid)
  // Those that are in the kernel may have sessions, and stay open to them; what is not there must not be open.
  const present = new Set(listed.map(({iqn}) => iqn))
  const isFree = ({spec}: Entry) => !targets.queue.busy(spec.iqn)
  const free = wanted.filter(isFree)
  const absent = free.filter(entry => targets.isWanted(entry) && !present.has(entry.spec.iqn))
  const closing = targets.allow(absent.map(({spec}) => [spec.iqn, 'closed']))
  const failed: NotBack[] = []
  // A request that hangs in one name's turn keeps no other name waiting.
  const late = wanted.filter(entry => !free.includes(entry)).map(entry => putBackLate(targets, link, entry, failed))
  const batches = Array.from({length: Math.ceil(free.length / perBatch)}, (_, index) =>
    free.slice(index * perBatch, (index + 1) * perBatch),
  )
  const made = (async () => {
    await closing
    for (const batch of batches) {
      const names = batch.map(({spec}) => spec.iqn)
      await targets.queue.runAll(names, () => putBack(targets, link, batch, failed))
    }
    await Promise.all(free.map(entry => targets.queue.run(entry.spec.iqn, () => openTo(targets, entry))))
  })()
  const results = await Promise.allSettled([made, ...late])
  const broken = results.find(result => result.status === 'rejected')
  if (broken) throw broken.reason
  return {exports: wanted.filter(({spec}) => targets.entries.has(spec.iqn)).length, failed}
}

async function putBackLate(targets: IetTargets, link: Link, entry: Entry, failed: NotBack[]): Promise<void> {
  await targets.queue.run(entry.spec.iqn, async () => {
    await putBack(targets, link, [entry], failed)
    await openTo(targets, entry)
  })
}

/** In the turn of all these names. */
async function putBack(targets: IetTargets, link: Link, batch: Entry[], failed: NotBack[]): Promise<void> {
  const wanted = batch.filter(entry => targets.isWanted(entry))
  const made = targets.hasRules ? await makeTogether(targets, link, wanted) : new Set<Entry>()
  const rest = wanted.filter(entry => !made.has(entry))
  const results = await Promise.allSettled(rest.map(entry => targets.place(link, entry)))
  for (const [index, result] of results.entries()) {
    if (result.status === 'fulfilled') continue
    const {reason} = result
    if (!(reason instanceof StorageError)) throw reason
    const entry = rest[index]!
    const {iqn} = entry.spec
    failed.push({iqn, code: reason.code, message: reason.message})
    targets.entries.delete(iqn)
    targets.former.set(iqn, entry)
  }
}

/** In the name's turn. Nobody's rule is touched of a target that was taken over, also where it could not be put back. */
async function openTo(targets: IetTargets, entry: Entry): Promise<void> {
  const {iqn} = entry.spec
  const now = targets.entries.get(iqn) ?? (entry.spec.taken && targets.isWanted(entry) ? entry : undefined)
  if (now) await targets.allow([[iqn, ruleOf(now.spec)]])
}

/**
 * Makes those that the kernel has not, all with a few requests, one look and one batch of calls: a target on its own waits for
 * a dozen answers. Whatever is not as it should be is left to place(), which takes a closer look and knows how to end it.
 */
async function makeTogether(targets: IetTargets, link: Link, wanted: Entry[]): Promise<Set<Entry>> {
  const listed = await targets.listings.volumes()
  const names = new Set(listed.map(({iqn}) => iqn))
  const numbers = new Set(listed.map(({tid}) => tid))
  const isFit = await Promise.allSettled(wanted.map(({spec}) => refuseUnfitVolume(spec, fit)))
  const candidates = wanted.filter(({spec, tid}, index) => {
    return isFit[index]!.status === 'fulfilled' && tid !== 0 && !names.has(spec.iqn) && !numbers.has(tid)
  })
  await targets.allow(candidates.map(({spec}) => [spec.iqn, 'closed']))
  const {made, secured} = await makeTargets(targets, link, candidates)
  const whole = await addUnits(targets, link, secured)
  for (const entry of whole) targets.keep(entry)
  // What is half made would be taken for whole, or for somebody else's.
  for (const {spec, tid} of made.filter(entry => !whole.has(entry))) {
    const {iqn} = spec
    await targets.remove(link, {iqn, tid}, {force: true, doing: 'export', remedy: ''}).catch(refuseUnlessStorage)
  }
  return whole
}

/**
 * Targets under the numbers that they had; what ietd still listed under them it gives up before. `secured` have their accounts and no
 * other.
 */
async function makeTargets(
  {numbers}: IetTargets,
  link: Link,
  wanted: Entry[],
): Promise<{made: Entry[]; secured: Entry[]}> {
  const tids = wanted.map(({tid}) => tid)
  const known = await numbers.known(link, tids)
  const stale = wanted.filter(({tid}) => known.has(tid))
  const added = await link.call(stale.map(({tid, spec}): IetCall[] => [call.addTarget(tid, spec.iqn)]))
  const mended = stale.filter(({tid, spec}, index) => !numbers.mended({iqn: spec.iqn, tid}, added[index]![0]!.error))
  const deleted = await link.exchange(mended.map(({tid}) => [request.deleteTarget(tid)]))
  const givenUp = new Set<Entry>()
  for (const [index, entry] of mended.entries()) {
    const {tid, spec} = entry
    // By another name somebody may have logged in meanwhile.
    const isDeleted =
      deleted[index]![0]!.error === 0 ||
      (await numbers.deleteEmpty(link, {iqn: spec.iqn, tid}).catch(refuseUnlessStorage))
    if (isDeleted) givenUp.add(entry)
  }
  const ready = wanted.filter(entry => !known.has(entry.tid) || givenUp.has(entry))
  const answers = await link.exchange(
    ready.map(({tid, spec}) => [request.newTarget(tid, spec.iqn), ...accountRequests(tid, spec.auth)]),
  )
  const made = ready.filter((_, index) => answers[index]![0]!.error === 0)
  return {made, secured: made.filter(entry => hasAnswered(answers[ready.indexOf(entry)]!.slice(1), entry.spec.auth))}
}

/** Those whose unit is listed as it was asked for, and whose parameters are set. */
async function addUnits(targets: IetTargets, link: Link, secured: Entry[]): Promise<Set<Entry>> {
  const answers = await link.call(
    secured.map(({tid, spec}): IetCall[] => [call.addVolume(tid, lunOf(spec), targets.units.argumentsOf(spec))]),
  )
  const added = secured.filter((_, index) => answers[index]![0]!.error === 0)
  const listed = new Map((await targets.listings.volumes()).map(target => [target.tid, target]))
  const isListed = ({spec, tid}: Entry) => {
    const found: IetTargetVolumes | undefined = listed.get(tid)
    return found?.iqn === spec.iqn && isDeepStrictEqual(found.volumes, [targets.units.expected(spec)])
  }
  const whole = added.filter(isListed)
  const results = await Promise.allSettled(
    whole.map(({tid, spec, settings}) => applySettings(link, {iqn: spec.iqn, tid}, settings)),
  )
  for (const result of results) if (result.status === 'rejected') refuseUnlessStorage(result.reason)
  return new Set(whole.filter((_, index) => results[index]!.status === 'fulfilled'))
}

/** What IET refuses ends the attempt for one target; a broken exchange ends it for all. */
function refuseUnlessStorage(error: unknown): false {
  if (!(error instanceof StorageError)) throw error
  return false
}
