import {familyOf} from './address.js'
import {type ErrorCode, type ErrorDetails, StorageError} from './errors.js'
import {checkForeignName, formatPortal} from './iqn.js'
import type {ChapAuth, Portal} from './types.js'

/** Settled arguments for the addon's sessions: native/iscsi/params.h reads them. */
export interface NativeLogin {
  portal: string
  target: string
  initiator: string
  lun: number
  user: string
  secret: string
  targetUser: string
  targetSecret: string
  loginTimeoutMs: number
  commandTimeoutMs: number
  reconnect: boolean
}

/** Where to log in, and as whom. */
export interface IscsiLogin {
  portal: Portal
  /** Absent for discovery. */
  iqn?: string
  lun?: number
  initiatorName: string
  auth?: ChapAuth
  /** Milliseconds for the whole login; default 5,000. */
  timeoutMs?: number
  /** Milliseconds for each command, a login again included; default 10,000. */
  commandTimeoutMs?: number
  /** Log in again where the connection was lost. Default false. */
  reconnect?: boolean
}

// libiscsi cuts longer values off without a word.
const maxChapBytes = 255
const maxTimeoutMs = 3_600_000

/**
 * Checks a login and gives it the form that the addon takes.
 * @throws StorageError NAME_INVALID, INVALID_ARGUMENT. No message holds a secret.
 */
export function nativeLogin(login: IscsiLogin): NativeLogin {
  const {portal, iqn, lun = 0, initiatorName, auth} = login
  if (familyOf(portal.address) === 0 || !isIntegerIn(portal.port, 1, 65535)) {
    throw invalid('A portal is an IP address and a port', {portal})
  }
  if (!isIntegerIn(lun, 0, 255)) throw invalid('A LUN is a whole number from 0 to 255', {lun})
  const {incoming, outgoing} = auth ?? {}
  for (const account of [incoming, outgoing]) {
    if (account && !(isChapText(account.user) && isChapText(account.secret))) {
      throw invalid('A CHAP user and secret have 1 to 255 bytes without control characters', {user: account.user})
    }
  }
  if (outgoing && !incoming) throw invalid('Mutual CHAP needs the credentials of the initiator too', {})
  // RFC 7143, 9.2.1: with one secret for both directions an impostor can let the initiator answer its own challenge.
  if (outgoing && outgoing.secret === incoming!.secret) {
    throw invalid('The two secrets of mutual CHAP must differ (RFC 7143, 9.2.1)', {user: outgoing.user})
  }
  return {
    portal: formatPortal(portal),
    target: iqn === undefined ? '' : checkForeignName(iqn),
    initiator: checkForeignName(initiatorName),
    lun,
    user: incoming?.user ?? '',
    secret: incoming?.secret ?? '',
    targetUser: outgoing?.user ?? '',
    targetSecret: outgoing?.secret ?? '',
    loginTimeoutMs: checkTimeout('timeoutMs', login.timeoutMs ?? 5_000),
    commandTimeoutMs: checkTimeout('commandTimeoutMs', login.commandTimeoutMs ?? 10_000),
    reconnect: login.reconnect ?? false,
  }
}

const codes: Record<string, ErrorCode> = {
  AUTH: 'AUTH_FAILED',
  ETIMEDOUT: 'TIMEOUT',
  ECANCELED: 'CANCELLED',
  ERANGE: 'INVALID_ARGUMENT',
  EAGAIN: 'INITIATOR_UNAVAILABLE',
  ENOMEM: 'INITIATOR_UNAVAILABLE',
  IDENTITY_MISMATCH: 'IDENTITY_MISMATCH',
  IDENTITY_CHANGED: 'IDENTITY_MISMATCH',
}

/** The addon's error as a StorageError; `cause` keeps it, with its `code`, `errno` and `syscall`. */
export function sessionError(cause: unknown, details: ErrorDetails): StorageError {
  const {code = '', errno, message} = cause as {code?: string; errno?: number; message: string}
  return new StorageError(codes[code] ?? 'INITIATOR_FAILED', message, {
    ...details,
    info: {...details.info, reason: code, status: errno},
    cause,
  })
}

function isChapText(text: string): boolean {
  const bytes = Buffer.byteLength(text)
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is refused
  return bytes >= 1 && bytes <= maxChapBytes && !/[\x00-\x1f\x7f]/.test(text)
}

function isIntegerIn(value: number, least: number, most: number): boolean {
  return Number.isInteger(value) && value >= least && value <= most
}

function checkTimeout(name: string, value: number): number {
  if (!isIntegerIn(value, 1, maxTimeoutMs)) {
    throw invalid(`${name} is a whole number of milliseconds from 1 to ${maxTimeoutMs}`, {[name]: value})
  }
  return value
}

function invalid(message: string, info: Record<string, unknown>): StorageError {
  return new StorageError('INVALID_ARGUMENT', message, {op: 'initiator.login', info})
}
