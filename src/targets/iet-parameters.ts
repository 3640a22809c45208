import {StorageError} from '../errors.js'
import type {ParameterValue} from './driver.js'
import type {ParameterType} from './iet-control.js'

/**
 * The parameters of IET 1.4.20, in the order of its interface. The kernel sets a value out of range to the smallest one
 * and says nothing, so that ranges are checked here.
 */

interface Key {
  /** The name in RFC 7143, 13, or IET's own (ietd.conf(5)). */
  name: string
  default: number
  min: number
  max: number
  kind: 'boolean' | 'number' | 'digests'
}

const bytes24 = 2 ** 24 - 1
/** What the kernel's part of IET takes for one PDU's data. */
const maxSegmentBytes = 2 ** 18

/** RFC 7143, 13: what a session may agree on. */
const sessionTable: readonly Key[] = [
  {name: 'InitialR2T', default: 1, min: 0, max: 1, kind: 'boolean'},
  {name: 'ImmediateData', default: 1, min: 0, max: 1, kind: 'boolean'},
  {name: 'MaxConnections', default: 1, min: 1, max: 65_535, kind: 'number'},
  {name: 'MaxRecvDataSegmentLength', default: 8192, min: 512, max: maxSegmentBytes, kind: 'number'},
  {name: 'MaxXmitDataSegmentLength', default: 8192, min: 512, max: maxSegmentBytes, kind: 'number'},
  {name: 'MaxBurstLength', default: 262_144, min: 512, max: bytes24, kind: 'number'},
  {name: 'FirstBurstLength', default: 65_536, min: 512, max: bytes24, kind: 'number'},
  {name: 'DefaultTime2Wait', default: 2, min: 0, max: 3600, kind: 'number'},
  {name: 'DefaultTime2Retain', default: 20, min: 0, max: 3600, kind: 'number'},
  {name: 'MaxOutstandingR2T', default: 1, min: 1, max: 65_535, kind: 'number'},
  {name: 'DataPDUInOrder', default: 1, min: 1, max: 1, kind: 'boolean'},
  {name: 'DataSequenceInOrder', default: 1, min: 1, max: 1, kind: 'boolean'},
  {name: 'ErrorRecoveryLevel', default: 0, min: 0, max: 0, kind: 'number'},
  {name: 'HeaderDigest', default: 1, min: 1, max: 3, kind: 'digests'},
  {name: 'DataDigest', default: 1, min: 1, max: 3, kind: 'digests'},
  {name: 'OFMarker', default: 0, min: 0, max: 0, kind: 'boolean'},
  {name: 'IFMarker', default: 0, min: 0, max: 0, kind: 'boolean'},
  {name: 'OFMarkInt', default: 2048, min: 1, max: 65_535, kind: 'number'},
  {name: 'IFMarkInt', default: 2048, min: 1, max: 65_535, kind: 'number'},
]

/** How the target itself works: threads, its type, commands at once, and pings of idle sessions in seconds. */
const targetTable: readonly Key[] = [
  {name: 'Wthreads', default: 8, min: 1, max: 128, kind: 'number'},
  {name: 'Type', default: 0, min: 0, max: 0, kind: 'number'},
  {name: 'QueuedCommands', default: 32, min: 1, max: 256, kind: 'number'},
  {name: 'NOPInterval', default: 0, min: 0, max: 90, kind: 'number'},
  {name: 'NOPTimeout', default: 0, min: 0, max: 90, kind: 'number'},
]

export const sessionKeys: readonly string[] = sessionTable.map(({name}) => name)
export const targetKeys: readonly string[] = targetTable.map(({name}) => name)

export const digestBits = {None: 1, CRC32C: 2} as const

function tableOf(type: ParameterType): readonly Key[] {
  return type === 'session' ? sessionTable : targetTable
}

/**
 * Settles parameters that were asked for: `Yes`, `No` or a boolean, a number, or `None`, `CRC32C` or both with a comma for a
 * digest. @throws INVALID_ARGUMENT for an unknown key or a value that IET would silently replace
 */
export function settleParameters(asked: Record<string, ParameterValue>): {
  session: Map<string, number>
  target: Map<string, number>
} {
  const settled = {session: new Map<string, number>(), target: new Map<string, number>()}
  for (const [name, value] of Object.entries(asked)) {
    const type = sessionKeys.includes(name) ? 'session' : 'target'
    const key = tableOf(type).find(one => one.name === name)
    if (!key) {
      throw invalid(
        `IET has no parameter ${JSON.stringify(name.slice(0, 80))}: ${[...sessionKeys, ...targetKeys].join(', ')}`,
      )
    }
    settled[type].set(name, settleValue(key, value))
  }
  return settled
}

function settleValue(key: Key, value: ParameterValue): number {
  const number = toNumber(key, value)
  if (number === undefined || !Number.isInteger(number) || number < key.min || number > key.max) {
    throw invalid(`${key.name} cannot be ${JSON.stringify(value)}: expected ${allowed(key)}`)
  }
  return number
}

function toNumber({kind}: Key, value: ParameterValue): number | undefined {
  if (kind === 'boolean') {
    const words: Record<string, number> = {Yes: 1, No: 0, true: 1, false: 0}
    return words[String(value)]
  }
  if (kind === 'digests') {
    const bits = String(value)
      .split(',')
      .map(name => digestBits[name as keyof typeof digestBits] as number | undefined)
    return bits.reduce((sum, bit) => (sum === undefined || bit === undefined ? undefined : sum | bit), 0)
  }
  return typeof value === 'number' || /^\d{1,10}$/.test(String(value)) ? Number(value) : undefined
}

function allowed({kind, min, max}: Key): string {
  if (kind === 'boolean') return min === max ? (max === 0 ? 'No' : 'Yes') : 'Yes or No'
  if (kind === 'digests') return 'None, CRC32C, or both with a comma'
  return min === max ? `${min}` : `a whole number from ${min} to ${max}`
}

/** What the interface gave, in words. */
export function describeParameters(type: ParameterType, values: readonly number[]): Record<string, ParameterValue> {
  return Object.fromEntries(
    tableOf(type).map(({name, kind}, index) => {
      const value = values[index] ?? 0
      if (kind === 'boolean') return [name, value !== 0]
      if (kind !== 'digests') return [name, value]
      const names = Object.entries(digestBits).flatMap(([digest, bit]) => ((value & bit) === 0 ? [] : [digest]))
      return [name, names.join(',')]
    }),
  )
}

/** Those of `values` that are not what a new target has. */
export function changedParameters(type: ParameterType, values: readonly number[]): Map<string, number> {
  const changed = tableOf(type).flatMap(({name, default: usual}, index) => {
    const value = values[index]
    return value === undefined || value === usual ? [] : [[name, value] as const]
  })
  return new Map(changed)
}

/** Keys whose value is not what was set. */
export function differingKeys(
  type: ParameterType,
  wanted: ReadonlyMap<string, number>,
  found: readonly number[],
): string[] {
  return tableOf(type).flatMap(({name}, index) => (wanted.has(name) && wanted.get(name) !== found[index] ? [name] : []))
}

function invalid(message: string): StorageError {
  return new StorageError('INVALID_ARGUMENT', message, {op: 'target.parameters'})
}
