import {CallSlots} from '../call-slots.js'
import {loadAddon} from '../native.js'

/** A domain as the addon describes it; `state` is libvirt's virDomainState. */
export interface NativeDomain {
  name: string
  uuid: string
  id: number | null
  state: number
  persistent: boolean
}

export type LibvirtEvent =
  | {kind: 'lifecycle'; domain: string; uuid: string; event: number; detail: number}
  | {kind: 'deviceRemoved' | 'deviceRemovalFailed'; domain: string; uuid: string; alias: string}
  | {kind: 'closed'; reason: number}

/** virDomainDeviceModifyFlags */
export const affectLive = 1
export const affectConfig = 2

/**
 * One connection to libvirt, as native/libvirt offers it. It cannot be opened again: make a new one. Rejections are
 * Errors with `code` VIR_ERR, libvirt's code as `errno`, its domain, and the failed function as `syscall`.
 * `domain` is a name or a UUID everywhere.
 */
export interface LibvirtConnection {
  open(uri: string): Promise<void>
  /** Waits for pending calls; safe to call twice and before open. */
  close(): Promise<void>
  /** For a peer that hangs: later calls reject, pending ones no longer keep the process alive. */
  abandon(): void
  isAlive(): Promise<boolean>
  domains(): Promise<NativeDomain[]>
  domain(domain: string): Promise<NativeDomain>
  /** The definition in force, whose root has an id while the domain is active. */
  xml(domain: string): Promise<string>
  /** The definition that the next start takes; null while the domain is transient. */
  inactiveXml(domain: string): Promise<string | null>
  defineXml(xml: string): Promise<NativeDomain>
  createXml(xml: string): Promise<NativeDomain>
  start(domain: string): Promise<void>
  destroy(domain: string): Promise<void>
  undefine(domain: string): Promise<void>
  suspend(domain: string): Promise<void>
  resume(domain: string): Promise<void>
  attachDevice(domain: string, xml: string, flags: number): Promise<void>
  /** Only asks for the removal; `deviceRemoved` tells that it has happened. */
  detachAlias(domain: string, alias: string, flags: number): Promise<void>
  blockResize(domain: string, disk: string, sizeBytes: number): Promise<void>
  blockStats(
    domain: string,
    disk: string,
  ): Promise<{
    readRequests: number
    readBytes: number
    writeRequests: number
    writtenBytes: number
    errors: number
  }>
  /** Returns the UUID. */
  defineSecret(xml: string): Promise<string>
  setSecret(uuid: string, value: Uint8Array): Promise<void>
  undefineSecret(uuid: string): Promise<void>
  /** The UUID of the iSCSI secret with this usage. */
  findSecret(usage: string): Promise<string | null>
}

/** The threads of a connection (kThreads in native/libvirt/binding.cc). */
const threads = 4
const slots = new WeakMap<LibvirtConnection, CallSlots>()

function slotsOf(connection: LibvirtConnection): CallSlots {
  const known = slots.get(connection) ?? new CallSlots({total: threads})
  slots.set(connection, known)
  return known
}

/**
 * A connection whose calls begin only while the signal is not aborted. A call of several steps that was given up stops
 * before its next one, and a call that still waits for a thread never begins.
 */
export function whileWanted(connection: LibvirtConnection, signal: AbortSignal): LibvirtConnection {
  return new Proxy(connection, {
    get: (target, name) => {
      const method = Reflect.get(target, name) as (...args: unknown[]) => Promise<unknown>
      return (...args: unknown[]) => slotsOf(target).run('', signal, () => method.apply(target, args))
    },
  })
}

/** Closes a connection after the calls that came before. */
export async function closeInTurn(connection: LibvirtConnection): Promise<void> {
  await slotsOf(connection).idle()
  await connection.close()
}

/** @throws StorageError DEPENDENCY_MISSING */
export function newConnection(onEvent: (event: LibvirtEvent) => void): LibvirtConnection {
  const {Connection} = loadAddon<{Connection: new (listener: (event: LibvirtEvent) => void) => LibvirtConnection}>(
    'libvirt',
  )
  return new Connection(onEvent)
}
