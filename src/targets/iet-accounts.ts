import {isDeepStrictEqual} from 'node:util'
import {StorageError} from '../errors.js'
import type {ChapAuth} from '../types.js'
import {type AccountDirection, request} from './iet-control.js'
import {type Link, refusal, type TargetKey} from './iet-link.js'

/** CHAP accounts of targets, over ietd's socket. `tid` 0 is discovery. */

/** Only under a rule that lets nobody in, or where it does not matter: for a moment there are none. */
export async function setAccounts(link: Link, {iqn, tid}: TargetKey, auth: ChapAuth | undefined): Promise<void> {
  await dropAccounts(link, tid)
  const wanted = (['incoming', 'outgoing'] as const).flatMap(direction => {
    const account = auth?.[direction]
    return account ? [{direction, ...account}] : []
  })
  const answers = await link.exchange(
    wanted.map(({direction, user, secret}) => [request.newAccount(tid, direction, user, secret)]),
  )
  const error = answers.map(([answer]) => answer!.error).find(one => one !== 0)
  if (error !== undefined) throw refusal(error, {op: 'target.export', what: 'the CHAP account', iqn})
  const [incoming, outgoing] = await listAccounts(link, tid)
  const present = [incoming, outgoing].map(names => names!.join())
  if (!isDeepStrictEqual(present, [auth?.incoming.user ?? '', auth?.outgoing?.user ?? ''])) {
    throw new StorageError('TARGET_FAILED', `ietd has other CHAP accounts for ${iqn} than it was given`, {
      op: 'target.export',
      info: {iqn, tid},
    })
  }
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

/** A number that is used again has the accounts of the target before. */
export async function dropAccounts(link: Link, tid: number): Promise<void> {
  for (const [index, direction] of (['incoming', 'outgoing'] as const).entries()) {
    for (;;) {
      const names = (await listAccounts(link, tid))[index]!
      if (names.length === 0) break
      const answers = await link.exchange(names.map(name => [request.deleteAccount(tid, direction, name)]))
      const error = answers.map(([answer]) => answer!.error).find(one => one !== 0)
      if (error !== undefined)
        throw refusal(error, {op: 'target', what: 'the removal of a CHAP account', iqn: `tid ${tid}`})
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
