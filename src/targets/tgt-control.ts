import {StorageError} from '../errors.js'
import {lackAs, loadAddon} from '../native.js'

/** tgtd's own numbers for what a request is about and what it does (tgt 1.0.85, usr/tgtadm.h). */
export const Mode = {system: 0, target: 1, device: 2, portal: 3, lld: 4, session: 5, connection: 6, account: 7} as const
export const Op = {new: 0, delete: 1, show: 2, bind: 3, unbind: 4, update: 5, stats: 6} as const

/** tgtd's errors that are decided upon, by the number in its reply. */
export const TgtError = {
  success: 0,
  noTarget: 4,
  noLun: 5,
  targetExists: 9,
  lunExists: 10,
  ruleExists: 12,
  noRule: 13,
  userExists: 14,
  noUser: 15,
  invalidRequest: 17,
  targetActive: 19,
  lunActive: 20,
} as const

const errorTexts: Record<number, string> = {
  1: 'unknown error',
  2: 'out of memory',
  3: 'the iSCSI driver is not loaded',
  4: 'no such target',
  5: 'no such logical unit',
  6: 'no such session',
  7: 'no such connection',
  9: 'the target number or name is taken',
  10: 'the logical unit exists already',
  12: 'the access rule exists already',
  13: 'no such access rule',
  14: 'the CHAP user exists already',
  15: 'no such CHAP user',
  17: 'the request is invalid, or what it names cannot be opened',
  18: 'the target has an outgoing account already',
  19: 'the target has sessions',
  20: 'the logical unit has commands in flight',
  22: 'not supported',
}

export interface TgtRequest {
  mode: number
  op: number
  tid?: number
  sid?: bigint
  lun?: number
  cid?: number
  /** 0 incoming, 1 outgoing. */
  accountDirection?: number
  /** `key=value,key=value`, made by parameters(). */
  parameters?: string
}

export interface TgtReply {
  error: number
  text: string
}

export interface TgtOutcome {
  /** Answers by sequence, up to and with each sequence's first error. Shorter than asked where the exchange broke off. */
  replies: TgtReply[][]
  /** Process that answered. */
  pid: number
  /** Why the exchange broke off; code ECONNREFUSED, ENOENT, ETIMEDOUT, TGT_CLOSED, TGT_PROTOCOL or TGT_RESTARTED. */
  failure?: Error & {code: string}
}

/** mode, op, tid, sid, lun, cid, accountDirection, parameters. */
type NativeRequest = [number, number, number, bigint, number, number, number, string]
/** pid, answers as error, text, error, text … by sequence, and why it broke off. */
type NativeOutcome = [number, (number | string)[][], (Error & {code: string})?]

interface NativeControl {
  run(sequences: NativeRequest[][], timeoutMs: number, expectedPid: number): Promise<NativeOutcome>
  close(): Promise<void>
}

interface TgtAddon {
  Control: new (socketPath: string) => NativeControl
}

// tgtd's buffer for parameters is 8 KiB, their NUL included.
const maxParameterBytes = 8191
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const unsafe = /[\u0000-\u001f\u007f,]/

/**
 * `key=value,key=value` as tgtd parses it. It knows no quoting: a comma ends a value.
 * @throws TypeError for a value with a comma or a control character; callers have refused those with a better message
 */
export function parameters(values: Record<string, string>): string {
  let text = ''
  for (const key in values) {
    const value = values[key]!
    if (unsafe.test(value)) throw new TypeError(`tgtd cannot take a comma or a control character in ${key}`)
    text += text === '' ? `${key}=${value}` : `,${key}=${value}`
  }
  if (Buffer.byteLength(text) > maxParameterBytes) {
    throw new TypeError(`tgtd takes at most ${maxParameterBytes} bytes of parameters`)
  }
  return text
}

/** What tgtd's error number means. */
export function describeTgtError(error: number): string {
  return errorTexts[error] ?? `error ${error}`
}

/** The native fact behind a refusal of tgtd, for a StorageError's `cause`. */
export function tgtFact(error: number): Error {
  return Object.assign(new Error(`tgtd: ${describeTgtError(error)}`), {code: 'TGT_ERROR', errno: error})
}

/**
 * One tgtd, spoken to over its control socket. Calls run one after the other on a thread of their own, each with a whole
 * list of request sequences: one hop to the thread and back however long the list.
 */
export class TgtControl {
  readonly socketPath: string
  readonly #native: NativeControl
  #closing: Promise<void> | undefined

  constructor(socketPath: string) {
    if (Buffer.byteLength(socketPath) > 107) {
      throw new StorageError('INVALID_ARGUMENT', `The socket path ${socketPath} is longer than 107 bytes (unix(7))`)
    }
    this.socketPath = socketPath
    this.#native = new (loadAddon<TgtAddon>('tgt').Control)(socketPath)
  }

  /**
   * Runs the sequences in order; a sequence ends at its first error, the others go on. Never rejects for what tgtd or
   * the socket did: see TgtOutcome. `timeoutMs` counts from now, the wait for earlier calls included. With
   * `expectedPid` ≠ 0 nothing is sent to another process than that. @throws TARGET_UNAVAILABLE where this process has no
   * thread or no memory for it
   */
  async run(sequences: TgtRequest[][], options: {timeoutMs: number; expectedPid?: number}): Promise<TgtOutcome> {
    const requests = sequences.map(sequence => sequence.map(toNative))
    const [pid, answers, failure] = await this.#native
      .run(requests, options.timeoutMs, options.expectedPid ?? 0)
      .catch(error => {
        throw lackAs('TARGET_UNAVAILABLE', 'target', error)
      })
    return {pid, replies: answers.map(toReplies), failure}
  }

  /** Waits for what is running; later calls reject with ERR_CLOSED. */
  close(): Promise<void> {
    this.#closing ??= this.#native.close()
    return this.#closing
  }
}

function toNative(request: TgtRequest): NativeRequest {
  const {mode, op, tid = 0, sid = 0n, lun = 0, cid = 0, accountDirection = 0, parameters = ''} = request
  return [mode, op, tid, sid, lun, cid, accountDirection, parameters]
}

function toReplies(answers: (number | string)[]): TgtReply[] {
  const replies: TgtReply[] = []
  for (let i = 0; i < answers.length; i += 2) {
    replies.push({error: answers[i] as number, text: answers[i + 1] as string})
  }
  return replies
}

/** Makes the requests; each is one line of the protocol. */
export const request = {
  newTarget: (tid: number, iqn: string): TgtRequest => ({
    mode: Mode.target,
    op: Op.new,
    tid,
    parameters: parameters({targetname: iqn}),
  }),
  deleteTarget: (tid: number): TgtRequest => ({mode: Mode.target, op: Op.delete, tid}),
  showTargets: (): TgtRequest => ({mode: Mode.target, op: Op.show, tid: -1}),
  newLun: (tid: number, lun: number, path: string): TgtRequest => ({
    mode: Mode.device,
    op: Op.new,
    tid,
    lun,
    parameters: parameters({path, bstype: 'rdwr'}),
  }),
  updateLun: (tid: number, lun: number, values: Record<string, string>): TgtRequest => ({
    mode: Mode.device,
    op: Op.update,
    tid,
    lun,
    parameters: parameters(values),
  }),
  deleteLun: (tid: number, lun: number): TgtRequest => ({mode: Mode.device, op: Op.delete, tid, lun}),
  lunStatistics: (tid: number, lun: number): TgtRequest => ({mode: Mode.device, op: Op.stats, tid, lun}),
  allStatistics: (): TgtRequest => ({mode: Mode.system, op: Op.stats}),
  bind: (tid: number, rule: string): TgtRequest => ({mode: Mode.target, op: Op.bind, tid, parameters: ruleText(rule)}),
  unbind: (tid: number, rule: string): TgtRequest => ({
    mode: Mode.target,
    op: Op.unbind,
    tid,
    parameters: ruleText(rule),
  }),
  showConnections: (tid: number): TgtRequest => ({mode: Mode.connection, op: Op.show, tid}),
  deleteConnection: (tid: number, sid: string, cid: number): TgtRequest => ({
    mode: Mode.connection,
    op: Op.delete,
    tid,
    sid: BigInt(sid),
    cid,
  }),
  newAccount: (user: string, password: string): TgtRequest => ({
    mode: Mode.account,
    op: Op.new,
    parameters: parameters({user, password}),
  }),
  deleteAccount: (user: string): TgtRequest => ({mode: Mode.account, op: Op.delete, parameters: parameters({user})}),
  bindAccount: (tid: number, user: string, outgoing: boolean): TgtRequest => ({
    mode: Mode.account,
    op: Op.bind,
    tid,
    accountDirection: outgoing ? 1 : 0,
    parameters: parameters({user}),
  }),
  showAccounts: (): TgtRequest => ({mode: Mode.account, op: Op.show}),
  newPortal: (portal: string): TgtRequest => ({mode: Mode.portal, op: Op.new, parameters: parameters({portal})}),
  deletePortal: (portal: string): TgtRequest => ({mode: Mode.portal, op: Op.delete, parameters: parameters({portal})}),
  showPortals: (): TgtRequest => ({mode: Mode.portal, op: Op.show}),
}

function ruleText(rule: string): string {
  return parameters(isNameRule(rule) ? {'initiator-name': rule} : {'initiator-address': rule})
}

/** tgtd lists rules by address and by name alike; names are told by their iSCSI type. */
export function isNameRule(rule: string): boolean {
  return /^(iqn|eui|naa)\./i.test(rule)
}
