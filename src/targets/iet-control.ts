import {StorageError} from '../errors.js'
import {lackAs, loadAddon} from '../native.js'
import {ietdSocket} from './iet-names.js'
import {sessionKeys, targetKeys} from './iet-parameters.js'

/** ietd's own numbers for what a request does (native/iet/abi.h). */
const Command = {
  targetNew: 0,
  targetDelete: 1,
  targetUpdate: 2,
  targetShow: 3,
  targetRedirect: 4,
  sessionDelete: 6,
  sessionShow: 8,
  connectionDelete: 10,
  lunNew: 13,
  lunDelete: 14,
  accountNew: 17,
  accountDelete: 18,
  accountShow: 20,
  systemShow: 24,
  accountList: 25,
} as const

/** The order of CallKind in native/iet/control.h. */
const CallKind = {
  moduleInfo: 0,
  addTarget: 1,
  addVolume: 2,
  deleteVolume: 3,
  sessionInfo: 4,
  connectionInfo: 5,
  parameterSet: 6,
  parameterGet: 7,
} as const

export type AccountDirection = 'incoming' | 'outgoing'
export type ParameterType = 'session' | 'target'

interface Fields {
  kind: number
  tid?: number
  sid?: bigint
  cid?: number
  lun?: number
  /** A name, a volume's arguments, a redirection. */
  text?: string
  /** Of an account. It appears in no error. */
  secret?: string
  direction?: AccountDirection
  /** Names that a list of accounts has room for. */
  most?: number
  type?: ParameterType
  /** A bit for each key that is meant. */
  partial?: number
  values?: number[]
  /** The errno with which its sequence goes on; default 0, success. */
  wanted?: number
}

/** A request to ietd over its socket. */
export type IetRequest = Fields & {readonly over: 'socket'}
/** A call on the control device; `instead` is the request that does the same where the device is not to be had. */
export type IetCall = Fields & {readonly over: 'device'; instead?: IetRequest}

export interface IetAnswer {
  /** errno; 0 is success. */
  error: number
  /** Of a new target. */
  tid: number
  /**
   * Parameters in the order of their keys; of a list of accounts how many there was no room for; of a session
   * exp_cmd_sn and max_cmd_sn; of a connection cid, stat_sn and exp_stat_sn.
   */
  numbers: number[]
  /** Accounts; of the module its version. */
  names: string[]
}

export interface IetOutcome {
  /** Answers by sequence, up to and with each sequence's first one that was not wanted, an error as a rule. Shorter than asked where it broke off. */
  answers: IetAnswer[][]
  /** Process that listens at the socket. */
  pid: number
  /** Why it broke off; native/iet/ietd.h and control.h list the codes. */
  failure?: Error & {code: string}
}

/** kind, tid, sid, cid, lun, text, type, partial, values, secret, direction, most, wanted; calls have the first nine. */
type NativeFields = [
  ...[number, number, bigint, number, number, string, number, number, number[]],
  ...[string, number, number, number],
]
type NativeAnswer = [number, number, number[], string[]]
type NativeOutcome = [number, NativeAnswer[][], (Error & {code: string})?]

interface NativeControl {
  exchange(sequences: NativeFields[][], timeoutMs: number, expectedPid: number): Promise<NativeOutcome>
  call(id: number, sequences: NativeFields[][], timeoutMs: number, expectedPid: number): Promise<NativeOutcome>
  read(id: number, path: string, until: string): Promise<string | (Error & {code: string})>
  stop(id: number): number
  close(): void
}

// Bytes that a field takes beside its NUL.
const maxNameBytes = 255
const maxArgumentBytes = 2047
const maxRedirectBytes = 1060
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const unsafe = /[\u0000-\u001f\u007f]/

/** @throws TypeError for a text that does not fit or would forge lines; callers have refused it with a better message */
function checked(text: string, maxBytes: number): string {
  if (unsafe.test(text)) throw new TypeError('IET cannot take a control character')
  if (Buffer.byteLength(text) > maxBytes) throw new TypeError(`IET takes at most ${maxBytes} bytes here`)
  return text
}

/** Makes the requests over the socket; each is one line of the protocol. */
export const request = {
  /** `tid` 0: the kernel takes the next free one, which is in the answer. */
  newTarget: (tid: number, iqn: string) => socket({kind: Command.targetNew, tid, text: checked(iqn, maxNameBytes)}),
  deleteTarget: (tid: number) => socket({kind: Command.targetDelete, tid}),
  /** `ADDRESS[:PORT]`; an empty one ends the redirection. */
  redirect: (tid: number, to: string) =>
    socket({kind: Command.targetRedirect, tid, text: checked(to, maxRedirectBytes)}),
  /**
   * Whether ietd knows a number; its sequence goes on where it does not, with ENOENT. Of numbers alone that the kernel has not: the
   * question is a redirection to nowhere, which ends one that is set.
   */
  isKnown: (tid: number) => socket({kind: Command.targetRedirect, tid, wanted: enoent}),
  newAccount: (tid: number, direction: AccountDirection, user: string, secret: string) =>
    socket({
      kind: Command.accountNew,
      tid,
      direction,
      text: checked(user, maxNameBytes),
      secret: checked(secret, maxNameBytes),
    }),
  deleteAccount: (tid: number, direction: AccountDirection, user: string) =>
    socket({kind: Command.accountDelete, tid, direction, text: user}),
  /** Whether the account's secret is this one: the only number of the answer is 1. The other secret is not told. */
  checkAccount: (tid: number, direction: AccountDirection, user: string, secret: string) =>
    socket({kind: Command.accountShow, tid, direction, text: user, secret}),
  listAccounts: (tid: number, direction: AccountDirection, most = 16) =>
    socket({kind: Command.accountList, tid, direction, most}),
  deleteSession: (tid: number, sid: bigint) => socket({kind: Command.sessionDelete, tid, sid}),
  deleteConnection: (tid: number, sid: bigint, cid: number) => socket({kind: Command.connectionDelete, tid, sid, cid}),
  /** Does nothing, but that ietd answers. */
  nothing: () => socket({kind: Command.systemShow}),
}

/** Makes the calls on the device. */
export const call = {
  moduleInfo: () => device({kind: CallKind.moduleInfo}),
  /** Makes a target known to the kernel again that ietd still lists. ietd learns of no other that is made this way. */
  addTarget: (tid: number, iqn: string) => device({kind: CallKind.addTarget, tid, text: checked(iqn, maxNameBytes)}),
  addVolume: (tid: number, lun: number, args: string) =>
    device({
      kind: CallKind.addVolume,
      tid,
      lun,
      text: checked(args, maxArgumentBytes),
      instead: socket({kind: Command.lunNew, tid, lun, text: args}),
    }),
  deleteVolume: (tid: number, lun: number) =>
    device({kind: CallKind.deleteVolume, tid, lun, instead: socket({kind: Command.lunDelete, tid, lun})}),
  sessionInfo: (tid: number, sid: bigint) => device({kind: CallKind.sessionInfo, tid, sid}),
  connectionInfo: (tid: number, sid: bigint, cid: number) => device({kind: CallKind.connectionInfo, tid, sid, cid}),
  /** `sid` 0: the target's defaults. Values by key; only those that are named are set. */
  setParameters: (tid: number, sid: bigint, type: ParameterType, values: ReadonlyMap<string, number>) => {
    const keys = keysOf(type)
    const partial = keys.reduce((bits, key, index) => (values.has(key) ? bits | (1 << index) : bits), 0)
    // To IET no bit at all means every key.
    if (partial === 0) throw new TypeError('No parameter is named')
    const fields = {tid, sid, type, partial, values: keys.map(key => values.get(key) ?? 0)}
    return device({
      kind: CallKind.parameterSet,
      ...fields,
      instead: socket({kind: Command.targetUpdate, ...fields}),
    })
  },
  getParameters: (tid: number, sid: bigint, type: ParameterType) =>
    device({
      kind: CallKind.parameterGet,
      tid,
      sid,
      type,
      instead: socket({kind: type === 'session' ? Command.sessionShow : Command.targetShow, tid, sid, type}),
    }),
}

function keysOf(type: ParameterType): readonly string[] {
  return type === 'session' ? sessionKeys : targetKeys
}

function socket(fields: Fields): IetRequest {
  return {...fields, over: 'socket'}
}

function device(fields: Fields & {instead?: IetRequest}): IetCall {
  return {...fields, over: 'device'}
}

/** How calls are made: over a duplicate of ietd's descriptor, or all over its socket, and then why. */
export interface IetWay {
  way: 'device' | 'socket'
  /** Null with the device. */
  reason: string | null
}

/** A failure that says that the device cannot be had, and that nothing was called. */
const deviceIsNotToBeHad = ['ENOSYS', 'EPERM', 'EACCES', 'EINVAL', 'IET_NO_DEVICE', 'IET_NO_OWNER']

const enoent = 2
const enosys = 38
const stopEveryMs = 100
const stopForMs = 1_000

/**
 * One ietd, spoken to over its socket, and the kernel's part of IET, spoken to over ietd's descriptor. Requests run one
 * after the other; calls and readings on threads of their own, since the kernel may let them wait for ever.
 */
export class IetControl {
  readonly socketName: string
  readonly #native: NativeControl
  #lastId = 0
  #way: IetWay | undefined
  /** The ietd for which that way was found. */
  #wayPid = 0

  constructor({socketName = ietdSocket}: {socketName?: string} = {}) {
    if (socketName === '' || Buffer.byteLength(socketName) > 107) {
      throw new StorageError('INVALID_ARGUMENT', `The socket's name ${socketName} has not 1 to 107 bytes (unix(7))`)
    }
    this.socketName = socketName
    this.#native = new (loadAddon<{Control: new (name: string) => NativeControl}>('iet').Control)(socketName)
  }

  /** As the last call found it; undefined before the first. */
  get way(): IetWay | undefined {
    return this.#way
  }

  /**
   * Sends sequences of requests; a sequence ends at its first answer that is not wanted, the others go on. Never rejects for what ietd or the
   * socket did. `timeoutMs` counts from now, the wait for earlier requests included. With `expectedPid` ≠ 0 nothing is
   * sent to another process than that.
   */
  async exchange(
    sequences: IetRequest[][],
    {timeoutMs, expectedPid = 0}: {timeoutMs: number; expectedPid?: number},
  ): Promise<IetOutcome> {
    return toOutcome(
      await this.#native
        .exchange(
          sequences.map(all => all.map(toNative)),
          timeoutMs,
          expectedPid,
        )
        .catch(refuse),
    )
  }

  /**
   * Makes sequences of calls, over the device where it can be had, else over the socket. The device is tried anew when
   * another ietd runs. Failures are those of exchange(), and `ETIMEDOUT`: a call was interrupted, or never began;
   * `IET_STUCK`: one does not end, nobody knows whether it will, and a duplicate of ietd's descriptor stays open.
   */
  async call(
    sequences: IetCall[][],
    {timeoutMs, expectedPid = 0}: {timeoutMs: number; expectedPid?: number},
  ): Promise<IetOutcome> {
    if (this.#way?.way === 'socket' && expectedPid !== 0 && expectedPid === this.#wayPid) {
      return this.#callOverSocket(sequences, {timeoutMs, expectedPid})
    }
    const id = ++this.#lastId
    const native = this.#native.call(
      id,
      sequences.map(all => all.map(toNative)),
      timeoutMs,
      expectedPid,
    )
    const outcome = await this.#untilDeadline(id, native, timeoutMs)
    if (outcome instanceof Error) return {answers: [], pid: 0, failure: outcome}
    const {failure, pid} = toOutcome(outcome)
    if (!failure) {
      this.#way = {way: 'device', reason: null}
      this.#wayPid = pid
      return toOutcome(outcome)
    }
    if (!deviceIsNotToBeHad.includes(failure.code)) return toOutcome(outcome)
    const instead = await this.#callOverSocket(sequences, {timeoutMs, expectedPid})
    this.#way = {way: 'socket', reason: failure.message}
    this.#wayPid = instead.pid
    return instead
  }

  /**
   * One pass over a listing; with `until` it ends once that text has been seen. @throws an errno of open(2) or read(2);
   * ETIMEDOUT, IET_STUCK
   */
  async read(path: string, {timeoutMs, until = ''}: {timeoutMs: number; until?: string}): Promise<string> {
    const id = ++this.#lastId
    const text = await this.#untilDeadline(id, this.#native.read(id, path, until), timeoutMs)
    if (text instanceof Error) throw text
    return text
  }

  /** Later calls are refused with ERR_CLOSED. What hangs keeps nothing waiting. */
  close(): void {
    this.#native.close()
  }

  /** What cannot be asked over the socket gets ENOSYS, and ends its sequence. */
  async #callOverSocket(
    sequences: IetCall[][],
    options: {timeoutMs: number; expectedPid: number},
  ): Promise<IetOutcome> {
    const requests = sequences.map(calls => {
      const unknown = calls.findIndex(({instead}) => instead === undefined)
      return calls.slice(0, unknown < 0 ? calls.length : unknown).map(({instead}) => instead!)
    })
    const {answers, ...outcome} = await this.exchange(requests, options)
    const refusal: IetAnswer = {error: enosys, tid: 0, numbers: [], names: []}
    return {
      ...outcome,
      answers: answers.map((all, index) => {
        const asked = requests[index]!.length
        const isRefused = asked < sequences[index]!.length && all.length === asked && !all.at(-1)?.error
        return isRefused ? [...all, refusal] : all
      }),
    }
  }

  /** What hangs in the kernel is interrupted at the deadline, and given up where that does not help. */
  async #untilDeadline<T>(id: number, task: Promise<T>, timeoutMs: number): Promise<T | (Error & {code: string})> {
    let settled = false
    let timer: NodeJS.Timeout | undefined
    let interrupted = false
    const late = new Promise<Error & {code: string}>(resolve => {
      const giveUpAt = timeoutMs + stopForMs
      const stop = (afterMs: number) => {
        if (settled) return
        if (afterMs >= giveUpAt) return resolve(stuck(timeoutMs))
        interrupted = true
        this.#native.stop(id)
        timer = setTimeout(stop, stopEveryMs, afterMs + stopEveryMs)
      }
      timer = setTimeout(stop, timeoutMs, timeoutMs)
    })
    try {
      const result = await Promise.race([task.catch(refuse), late])
      const failure = Array.isArray(result) ? (result as NativeOutcome)[2] : result
      const gaveUp = failure instanceof Error && (failure as NodeJS.ErrnoException).code === 'ECANCELED'
      return interrupted && gaveUp ? timedOut(timeoutMs) : result
    } finally {
      settled = true
      clearTimeout(timer)
    }
  }
}

/** @throws TARGET_UNAVAILABLE where this process has no thread or no memory for a call */
function refuse(error: unknown): never {
  throw lackAs('TARGET_UNAVAILABLE', 'target', error)
}

function timedOut(timeoutMs: number): Error & {code: string} {
  return Object.assign(new Error(`IET did not end a call within ${timeoutMs} ms: it was interrupted`), {
    code: 'ETIMEDOUT',
  })
}

function stuck(timeoutMs: number): Error & {code: string} {
  const message = `A call of IET's kernel module hangs: it did not end within ${timeoutMs} ms, and cannot be interrupted`
  return Object.assign(new Error(message), {code: 'IET_STUCK'})
}

function toNative(fields: Fields): NativeFields {
  const {kind, tid = 0, sid = 0n, cid = 0, lun = 0, text = '', type = 'session', partial = 0, values = []} = fields
  const {secret = '', direction = 'incoming', most = 0, wanted = 0} = fields
  return [
    kind,
    tid,
    sid,
    cid,
    lun,
    text,
    type === 'session' ? 0 : 1,
    partial,
    values,
    secret,
    direction === 'incoming' ? 0 : 1,
    most,
    wanted,
  ]
}

function toOutcome([pid, answers, failure]: NativeOutcome): IetOutcome {
  return {
    pid,
    answers: answers.map(all => all.map(([error, tid, numbers, names]) => ({error, tid, numbers, names}))),
    failure,
  }
}
