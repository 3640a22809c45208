import {StorageError} from './errors.js'
import type {ChapAuth, ChapCredentials} from './types.js'

/** What every target driver and initiator takes. */
const maxLength = 128
/** RFC 7143, 9.2.1: a CHAP secret needs at least 96 random bits, which twelve characters can hold. */
const minSecretLength = 12

/**
 * Checks CHAP credentials before they reach a target. A message never quotes a secret.
 * @throws INVALID_ARGUMENT
 */
export function checkChap({incoming, outgoing}: ChapAuth): void {
  checkCredentials('incoming', incoming)
  if (!outgoing) return
  checkCredentials('outgoing', outgoing)
  if (outgoing.secret === incoming.secret) {
    throw new StorageError(
      'INVALID_ARGUMENT',
      'The two CHAP secrets must differ, else either side can be made to answer for the other (RFC 7143, 9.2.1)',
    )
  }
}

function checkCredentials(direction: string, {user, secret}: ChapCredentials): void {
  if (!/^[\x21-\x2b\x2d-\x7e]+$/.test(user) || user.length > maxLength) {
    throw new StorageError(
      'INVALID_ARGUMENT',
      `The ${direction} CHAP user must be 1 to ${maxLength} printable characters without blanks and commas`,
    )
  }
  if (!/^[\x21-\x2b\x2d-\x7e]*$/.test(secret) || secret.length < minSecretLength || secret.length > maxLength) {
    throw new StorageError(
      'INVALID_ARGUMENT',
      `The ${direction} CHAP secret must be ${minSecretLength} to ${maxLength} printable characters without blanks and commas`,
    )
  }
}

/**
 * Reads the text of a CHAP file: lines `user=…`, `secret=…` and, for mutual CHAP, `target-user=…`, `target-secret=…`.
 * @throws INVALID_ARGUMENT, which never quotes the file
 */
export function parseChapFile(text: string): ChapAuth {
  const values = new Map<string, string>()
  for (const line of text.split('\n').filter(line => line.trim() !== '')) {
    const [, key, value] = /^\s*(user|secret|target-user|target-secret)\s*=\s*(.*?)\s*$/.exec(line) ?? []
    if (key === undefined || value === undefined) {
      throw new StorageError(
        'INVALID_ARGUMENT',
        'The CHAP file has a line that is none of user=, secret=, target-user=, target-secret=',
      )
    }
    values.set(key, value)
  }
  const incoming = {user: values.get('user') ?? '', secret: values.get('secret') ?? ''}
  const targetUser = values.get('target-user')
  const targetSecret = values.get('target-secret')
  if (targetUser === undefined && targetSecret === undefined) return {incoming}
  return {incoming, outgoing: {user: targetUser ?? '', secret: targetSecret ?? ''}}
}
