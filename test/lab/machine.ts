import {join} from 'node:path'
import {packageRoot} from '../../src/native.js'
import type {LabOptions} from './vm.js'

/** What vm.ts needs to know of a kind of machine: how it is started, and nothing of what goes on in it. */
export interface Machine {
  /** For people. */
  readonly title: string
  /** The processors that it can have at most. */
  readonly mostCpus: number
  /** So long it can take until it talks to us, on a busy machine. */
  readonly readyMs: number
  /** Without these its disks are not there. */
  readonly diskModules: readonly string[]
  readonly networkModules: readonly string[]
  /** What keeps it from running here, in words for people, with what to do about it; undefined where nothing is known to. */
  missing(): string | undefined
  start(options: LabOptions, layout: Layout): Promise<Start>
}

export type MachineName = 'uml' | 'qemu'

/** The descriptors that it inherits: 0 to 2 are its own, then come the channels, each one end of a socket pair, and the disks. */
export interface Layout {
  channels: readonly ChannelName[]
  disks: readonly number[]
}

export interface Start {
  file: string
  args: string[]
  environment?: NodeJS.ProcessEnv
  /** To be called when it has ended. */
  release?: () => void
}

export const firstChannel = 3

/**
 * The kernel's messages; the conversation with scripts/lab-init; what the command writes; and, for a command on a terminal
 * or with an input, that.
 */
export type ChannelName = 'console' | 'control' | 'stdout' | 'stderr' | 'duplex'

/** Of a machine of which nothing else is said. */
export const defaultMemoryMiB = 1024

/** Its frames go to and fro in UDP datagrams on loopback as L2TPv3 (RFC 3931, 4.1.2), of one session and without a cookie. */
export const l2tp = {address: '127.0.0.1', session: 1} as const

/** Where the frames of a cable go, in the words that both machines have for it. The port they come from is any. */
export const l2tpEnds = (port: number) => `src=${l2tp.address},srcport=0,dst=${l2tp.address},dstport=${port}`

/** Made by scripts/lab-image. */
export const labDirectory = (): string => join(packageRoot(), '.cache', 'lab')

/** Of a machine with this address on its cable; locally administered. */
export function macOf(address: string): string {
  const bytes = address.split('/')[0]!.split('.').map(Number)
  return ['02', '00', ...bytes.map(byte => byte.toString(16).padStart(2, '0'))].join(':')
}
