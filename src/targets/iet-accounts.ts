import {isDeepStrictEqual} from 'node:util'
import {StorageError} from '../errors.js'
import type {ChapAuth} from '../types.js'
import {type AccountDirection, type IetAnswer, type IetRequest, request} from './iet-control.js'
import {errno, type Link, refusal, type TargetKey} from './iet-link.js'

/** CHAP accounts of targets, over ietd's socket. `tid` 0 is discovery. */

/** Only under a rule that lets nobody in, or where it does not matter: for a moment there are none. */
export async function setAccounts(link: Link, {iqn, tid}: TargetKey, auth: ChapAuth | undefined): Promise<void> {
  await dropAccounts(link, tid)
  const [answers = []] = auth ? await link.exchange([addAccounts(tid, auth)]) : []
  const error = answers.at(-1)?.error ?? 0
  if (error !== 0) throw refusal(error, {op: 'target.export', what: 'the CHAP account', iqn})
  const [incoming, outgoing] = await listAccounts(link, tid)
  const present = [incoming, outgoing].map(names => names!.join())
  if (!isDeepStrictEqual(present, [auth?.incoming.user ?? '', auth?.outgoing?.user ?? ''])) {
    throw new StorageError('TARGET_FAILED', `ietd has other CHAP accounts for ${iqn} than it was given`, {
      op: 'target.export',
      info: {iqn, tid},
    })
  }
}

/**
 * The requests that give a new target its accounts and ask what it has then: the end of a sequence, of which hasAnswered() takes
 * the answers. Only under a rule that lets nobody in.
 */
export function accountRequests(tid: number, auth: ChapAuth | undefined): IetRequest[] {
  return [...addAccounts(tid, auth), request.listAccounts(tid, 'incoming'), request.listAccounts(tid, 'outgoing')]
}

/** True where those answers show these accounts and no other. */
export function hasAnswered(answers: IetAnswer[], auth: ChapAuth | undefined): boolean {
  const expected = [auth?.incoming, auth?.outgoing].map(one => (one ? [one.user] : []))
  const lists = answers.slice(-2)
  return (
    lists.every(({error, numbers}) => error === 0 && numbers[0] === 0) &&
    isDeepStrictEqual(
      lists.map(({names}) => names),
      expected,
    )
  )
}

function addAccounts(tid: number, auth: ChapAuth | undefined): IetRequest[] {
  return (['incoming', 'outgoing'] as const).flatMap(direction => {
    const account = auth?.[direction]
    return account ? [request.newAccount(tid, direction, account.user, account.secret)] : []
  })
}

/** True where ietd has these accounts and no other, with these secrets. */
export async function hasAccounts(link: Link, tid: number, auth: ChapAuth | undefined): Promise<boolean> {
  const present = await listAccounts(link, tid)
  const wanted = [auth?.incoming, auth?.outgoing]
  if (
    !isDeepStrictEqual(
      present,
      wanted.map(one => (one ? [one.user] : [])),
    )
  )
    return false
  const checks = (['incoming', 'outgoing'] as const).flatMap(direction => {
    const account = auth?.[direction]
    return account ? [[request.checkAccount(tid, direction, account.user, account.secret)]] : []
  })
  return (await link.exchange(checks)).every(([answer]) => answer!.error === 0 && answer!.numbers[0] === 1)
}

/** A number that is used again has the accounts of the target before, which may be gone already. */
export async function dropAccounts(link: Link, tid: number): Promise<void> {
  for (const [index, direction] of (['incoming', 'outgoing'] as const).entries()) {
    for (;;) {
      const names = (await listAccounts(link, tid))[index]!
      if (names.length === 0) break
      const answers = await link.exchange(names.map(name => [request.deleteAccount(tid, direction, name)]))
      const errors = answers.map(([answer]) => answer!.error).filter(one => one !== 0)
      const [error] = errors.filter(one => one !== errno.enoent)
      if (error !== undefined)
        throw refusal(error, {op: 'target', what: 'the removal of a CHAP account', iqn: `tid ${tid}`})
      if (errors.length === names.length) break
    }
  }
}

/** Incoming and outgoing, of each. */
export async function accountLists(link: Link, tids: number[]): Promise<Map<number, string[][]>> {
  const directions: AccountDirection[] = ['incoming', 'outgoing']
  const wanted = tids.flatMap(tid => directions.map(direction => ({tid, direction})))
  const answers = await link.exchange(wanted.map(({tid, direction}) => [request.listAccounts(tid, direction)]))
  const lists = new Map<number, string[][]>(tids.map(tid => [tid, []]))
  for (const [index, {tid, direction}] of wanted.entries()) {
    let answer = answers[index]![0]!
    while (answer.error === 0 && answer.numbers[0] !== 0) {
      const most = answer.names.length + answer.numbers[0]! + 16
      answer = (await link.exchange([[request.listAccounts(tid, direction, most)]]))[0]![0]!
    }
    lists.get(tid)!.push(answer.error === 0 ? answer.names : [])
  }
  return lists
}

/** Incoming and outgoing. */
async function listAccounts(link: Link, tid: number): Promise<string[][]> {
  return (await accountLists(link, [tid])).get(tid)!
}
