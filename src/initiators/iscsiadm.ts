import {readFile} from 'node:fs/promises'
import {type ErrorCode, hasCode, StorageError} from '../errors.js'
import {run} from '../exec.js'

/** iscsiadm's exit statuses that are answers and not failures (open-iscsi, include/iscsi_err.h). */
export const databaseError = 6
export const sessionExists = 15
export const nothingFound = 21
/** iscsid is trying to bring the session back, and does not log out meanwhile. */
export const reconnecting = 32

/** iscsiadm's exit statuses with a code of their own; all others are INITIATOR_FAILED. */
const codes: Record<number, {code: ErrorCode; means: string}> = {
  4: {code: 'INITIATOR_FAILED', means: 'the connection to the portal failed'},
  5: {code: 'INITIATOR_FAILED', means: 'the login failed'},
  6: {code: 'INITIATOR_FAILED', means: 'the node record could not be read'},
  8: {code: 'TIMEOUT', means: 'the portal did not answer in time'},
  11: {code: 'TIMEOUT', means: 'the target did not answer in time, or refused a discovery'},
  12: {code: 'DEPENDENCY_MISSING', means: 'the kernel has no iSCSI transport: modprobe iscsi_tcp'},
  13: {code: 'INITIATOR_FAILED', means: 'only root may log in'},
  18: {code: 'INITIATOR_UNAVAILABLE', means: 'iscsid broke the conversation off'},
  19: {
    code: 'INITIATOR_FAILED',
    means: 'the target refused the login for good: is it there, and is this initiator let in?',
  },
  20: {code: 'INITIATOR_UNAVAILABLE', means: 'iscsid does not answer'},
  21: {code: 'INITIATOR_FAILED', means: 'there is no such record or session'},
  22: {code: 'DEPENDENCY_MISSING', means: 'sysfs has no iSCSI transport: modprobe iscsi_tcp'},
  24: {code: 'AUTH_FAILED', means: 'CHAP was refused'},
  32: {code: 'INITIATOR_FAILED', means: 'the connection is lost, and iscsid tries to bring it back'},
}

export interface IscsiadmOptions {
  op: string
  timeoutMs: number
  info: Record<string, unknown>
  accept?: readonly number[]
}

/**
 * Runs iscsiadm. Nothing secret is among its arguments: it reads node records from files.
 * @throws AUTH_FAILED, INITIATOR_FAILED, INITIATOR_UNAVAILABLE, DEPENDENCY_MISSING, TIMEOUT
 */
export async function iscsiadm(args: string[], {op, timeoutMs, info, accept = []}: IscsiadmOptions): Promise<number> {
  try {
    return (await run('iscsiadm', args, {timeoutMs, accept: [0, ...accept]})).code
  } catch (cause) {
    throw iscsiadmError(cause, op, info)
  }
}

export function iscsiadmError(cause: unknown, op: string, info: Record<string, unknown>): StorageError {
  if (hasCode(cause, 'DEPENDENCY_MISSING')) {
    return new StorageError('DEPENDENCY_MISSING', 'iscsiadm cannot be run: apt-get install open-iscsi', {
      op,
      info,
      cause,
    })
  }
  if (!hasCode(cause, 'COMMAND_FAILED')) {
    const {code, message} = cause as StorageError
    return new StorageError(code, message, {op, info: {...info, ...(cause as StorageError).info}, cause})
  }
  const status = cause.info.exitCode as number | null
  const known = status === null ? undefined : codes[status]
  const said = String(cause.info.stderr ?? '').replaceAll(/\s*\n\s*/g, '; ')
  const target = typeof info.iqn === 'string' ? ` ${info.iqn}` : ''
  const message = `${op}${target}: ${known?.means ?? `iscsiadm ended with status ${status}`}${said ? ` (${said})` : ''}`
  return new StorageError(known?.code ?? 'INITIATOR_FAILED', message, {op, info: {...info, exitCode: status}, cause})
}

export const initiatorNameFile = '/etc/iscsi/initiatorname.iscsi'

/** The name that iscsid logs in with where a node record has none (iscsid(8), `-i`). */
export async function hostInitiatorName(): Promise<string | undefined> {
  const text = await readFile(initiatorNameFile, 'utf8').catch(() => '')
  return /^\s*InitiatorName\s*=\s*(\S+)\s*$/m.exec(text)?.[1]
}

/** Without iscsid, iscsiadm tries for minutes: its socket, or systemd's in its place, is looked for first. */
export async function iscsidListens(): Promise<boolean> {
  return listens(/^ISCSIADM_ABSTRACT_NAMESPACE/)
}

export async function multipathdListens(): Promise<boolean> {
  return listens(/^\/org\/kernel\/linux\/storage\/multipathd/)
}

/** Whether anybody listens on an abstract unix socket of this name (proc(5), /proc/net/unix; SO_ACCEPTCON is 0x10000). */
async function listens(name: RegExp): Promise<boolean> {
  const lines = (await readFile('/proc/net/unix', 'latin1').catch(() => '')).split('\n')
  return lines.some(line => {
    const [, , , flags, , , , path] = line.trim().split(/\s+/)
    return path?.startsWith('@') && name.test(path.slice(1)) && (Number.parseInt(flags!, 16) & 0x10000) !== 0
  })
}

/** The installed version, `2.1.8`; undefined where there is none. */
export async function iscsiadmVersion(): Promise<string | undefined> {
  try {
    const {stdout} = await run('iscsiadm', ['--version'], {timeoutMs: 10_000})
    return /(\d+(?:\.\d+)+(?:-\d+)?)/.exec(stdout)?.[1]
  } catch {
    return undefined
  }
}
