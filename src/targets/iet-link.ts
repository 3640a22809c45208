import {getSystemErrorMap} from 'node:util'
import {StorageError} from '../errors.js'
import type {IetAnswer, IetCall, IetControl, IetOutcome, IetRequest} from './iet-control.js'

/** What IET answers with. */
export const errno = {enoent: 2, eperm: 1, ebusy: 16, eexist: 17, einval: 22, enosys: 38} as const

/** A target of one ietd. */
export interface TargetKey {
  iqn: string
  tid: number
}

/** One ietd, to which a whole operation is bound: tids of the one before mean nothing there. */
export interface Link {
  pid: number
  exchange: (sequences: IetRequest[][]) => Promise<IetAnswer[][]>
  call: (sequences: IetCall[][]) => Promise<IetAnswer[][]>
}

/** The exchange broke off; whether its last request took effect is not known. */
export class ExchangeError extends Error {
  readonly fact: Error & {code: string}

  constructor(fact: Error & {code: string}) {
    super(fact.message, {cause: fact})
    this.fact = fact
  }
}

/** Its calls @throws ExchangeError, also where another ietd answers */
export function linkTo(control: IetControl, {pid, timeoutMs}: {pid: number; timeoutMs: number}): Link {
  const options = {timeoutMs, expectedPid: pid}
  const answersOf = ({answers, failure}: IetOutcome): IetAnswer[][] => {
    if (failure) throw new ExchangeError(failure)
    return answers
  }
  return {
    pid,
    exchange: async sequences => (sequences.length === 0 ? [] : answersOf(await control.exchange(sequences, options))),
    call: async sequences => (sequences.length === 0 ? [] : answersOf(await control.call(sequences, options))),
  }
}

export async function exchangeOne(
  link: Link,
  asked: IetRequest,
  facts: {op: string; what: string; iqn: string},
): Promise<IetAnswer> {
  const [[answer] = []] = await link.exchange([[asked]])
  if (answer!.error !== 0) throw refusal(answer!.error, facts)
  return answer!
}

/** The native fact behind a refusal, for a StorageError's `cause`. */
export function errnoFact(error: number): Error {
  const [code, description] = getSystemErrorMap().get(-error) ?? ['EUNKNOWN', `error ${error}`]
  return Object.assign(new Error(`IET: ${description}`), {code, errno: error})
}

export function refusal(error: number, {op, what, iqn}: {op: string; what: string; iqn: string}): StorageError {
  const cause = errnoFact(error)
  return new StorageError('TARGET_FAILED', `IET refused ${what} of ${iqn}: ${cause.message}`, {
    op,
    info: {iqn, errno: (cause as NodeJS.ErrnoException).code},
    cause,
  })
}

export function unavailable(socketName: string, cause: Error & {code: string}): StorageError {
  const why =
    cause.code === 'ECONNREFUSED'
      ? 'no ietd listens: start it (systemctl start iscsitarget, or ietd), which needs the module iscsi_trgt'
      : cause.message
  return new StorageError('TARGET_UNAVAILABLE', `ietd cannot be used: ${why}`, {
    op: 'target',
    info: {socket: socketName, code: cause.code},
    cause,
  })
}
