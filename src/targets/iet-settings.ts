import {StorageError} from '../errors.js'
import type {ExportSpec} from '../types.js'
import type {ParameterValue} from './driver.js'
import {call, type ParameterType, request} from './iet-control.js'
import {exchangeOne, type Link, refusal, type TargetKey} from './iet-link.js'
import {changedParameters, describeParameters, differingKeys, settleParameters} from './iet-parameters.js'

/** What is set of a target beside its export, and is set again with it. */
export interface Settings {
  session: Map<string, number>
  target: Map<string, number>
  redirect: string
}

/** @throws INVALID_ARGUMENT */
export function settingsOf({parameters = {}, redirect = ''}: ExportSpec): Settings {
  return {...settleParameters(parameters), redirect}
}

export async function readParameters(link: Link, tid: number, sid: bigint, iqn: string): Promise<number[][]> {
  const types = ['session', 'target'] as const
  const answers = await link.call(types.map(type => [call.getParameters(tid, type === 'session' ? sid : 0n, type)]))
  return answers.map(([answer]) => {
    if (answer!.error !== 0) throw refusal(answer!.error, {op: 'target.parameters', what: 'its parameters', iqn})
    return answer!.numbers
  })
}

/** The kernel takes values out of range without a word, as other ones: so they are read back. */
export async function writeParameters(
  link: Link,
  {iqn, tid}: TargetKey,
  sid: bigint,
  wanted: Record<ParameterType, Map<string, number>>,
): Promise<void> {
  const types = (['session', 'target'] as const).filter(type => wanted[type].size > 0)
  if (types.length === 0) return
  const answers = await link.call(types.map(type => [call.setParameters(tid, sid, type, wanted[type])]))
  const error = answers.map(([answer]) => answer!.error).find(one => one !== 0)
  if (error !== undefined) throw refusal(error, {op: 'target.parameters', what: 'the parameters', iqn})
  const [session, target] = await readParameters(link, tid, sid, iqn)
  const found = {session: session!, target: target!}
  const differing = types.flatMap(type => differingKeys(type, wanted[type], found[type]))
  if (differing.length === 0) return
  throw new StorageError('TARGET_FAILED', `IET did not keep the values of ${differing.join(', ')} for ${iqn}`, {
    op: 'target.parameters',
    info: {iqn, keys: differing},
  })
}

export async function applySettings(link: Link, target: TargetKey, settings: Settings): Promise<void> {
  await writeParameters(link, target, 0n, settings)
  const {redirect} = settings
  if (redirect === '') return
  const facts = {op: 'target.redirect', what: 'the redirection', iqn: target.iqn}
  await exchangeOne(link, request.redirect(target.tid, redirect), facts)
}

/** Those of `values` that were set, in words. */
export function describeChanged(type: ParameterType, values: number[]): Record<string, ParameterValue> {
  const changed = changedParameters(type, values)
  return Object.fromEntries(Object.entries(describeParameters(type, values)).filter(([name]) => changed.has(name)))
}
