import {execFile} from 'node:child_process'
import {promisify} from 'node:util'
import {LibiscsiInitiator} from '../../src/initiators/libiscsi.js'
import {formatPortal} from '../../src/iqn.js'
import type {ChapAuth, Portal} from '../../src/types.js'

const run = promisify(execFile)

export const overwrittenBytes = 4096

export interface LoginRequest {
  portal: Portal
  iqn: string
  initiator: string
  auth?: ChapAuth
}

/** What an initiator reads once it is logged in. */
export interface LoginResult {
  /** Undefined where the initiator cannot show it: iscsi-inq prints a binary designator as text. */
  wwid?: string
  serial: string
  vendor: string
  sizeBytes: number
}

/** Logs in, reads LUN 1's identity and logs out. Rejects where the target refuses. */
export type Login = (request: LoginRequest) => Promise<LoginResult>

/** Names and portals that SendTargets discovery gives. */
export type Discover = (portal: Portal, initiator: string) => Promise<{iqn: string; portal: string}[]>

/** libiscsi's tools take the mutual credentials from the environment (iscsi_parse_url). */
function environment(auth: ChapAuth | undefined): NodeJS.ProcessEnv {
  return {
    PATH: process.env.PATH,
    LC_ALL: 'C',
    ...(auth && {LIBISCSI_CHAP_USERNAME: auth.incoming.user, LIBISCSI_CHAP_PASSWORD: auth.incoming.secret}),
    ...(auth?.outgoing && {
      LIBISCSI_CHAP_TARGET_USERNAME: auth.outgoing.user,
      LIBISCSI_CHAP_TARGET_PASSWORD: auth.outgoing.secret,
    }),
  }
}

export function iscsiUrl(portal: Portal, iqn = '', lun?: number): string {
  return `iscsi://${formatPortal(portal)}/${iqn}${lun === undefined ? '' : `/${lun}`}`
}

async function tool(name: string, args: string[], auth?: ChapAuth): Promise<string> {
  const {stdout, stderr} = await run(name, args, {env: environment(auth), timeout: 20_000})
  if (/failed|error/i.test(stderr)) throw new Error(stderr.trim())
  return stdout
}

function line(text: string, name: string): string {
  const found = new RegExp(`^\\s*${name}:\\s*(.*?)\\s*$`, 'm').exec(text)
  if (!found) throw new Error(`no ${name} in: ${text}`)
  return found[1]!
}

export const login: Login = async ({portal, iqn, initiator, auth}) => {
  const url = iscsiUrl(portal, iqn, 1)
  const inquiry = (page?: string) =>
    tool('iscsi-inq', ['-i', initiator, ...(page ? ['-e', '1', '-c', page] : []), url], auth)
  const standard = await inquiry()
  const serial = line(await inquiry('128'), 'Unit Serial Number')
    .replace(/^\[|\]$/g, '')
    .trim()
  const capacity = await tool('iscsi-readcapacity16', ['-i', initiator, url], auth)
  return {
    serial,
    vendor: line(standard, 'Vendor'),
    sizeBytes: Number(line(capacity, 'Total size')),
  }
}

export const discover: Discover = async (portal, initiator) => {
  const text = await tool('iscsi-ls', ['-i', initiator, iscsiUrl(portal)])
  return [...text.matchAll(/^Target:(\S+) Portal:(\S+?),\d+/gm)].map(match => ({iqn: match[1]!, portal: match[2]!}))
}

/**
 * Tries to overwrite the first 4 KiB of LUN 1; false where the target answers that it does not let it. No more than that: IET
 * never answers a write to a read-only LUN that is larger than its immediate data.
 */
export async function overwrite(portal: Portal, iqn: string, initiatorName: string): Promise<boolean> {
  const session = await new LibiscsiInitiator().connect({portal, iqn, lun: 1, initiatorName})
  try {
    await session.write(0, Buffer.alloc(overwrittenBytes, 0x5a))
    return true
  } catch (error) {
    if (((error as Error).cause as NodeJS.ErrnoException | undefined)?.code !== 'SCSI_SENSE') throw error
    return false
  } finally {
    await session.close()
  }
}
