import {readFile} from 'node:fs/promises'
import {StorageError} from '../errors.js'
import {formatPortal} from '../iqn.js'
import {portalHolders} from '../port-holders.js'
import type {Portal} from '../types.js'
import {call, type IetControl, request} from './iet-control.js'
import {errno, unavailable} from './iet-link.js'
import {supportedIet} from './iet-names.js'
import type {IetTargetVolumes} from './iet-procfs.js'

/** What is looked at before a driver uses an IET. */

/** @throws TARGET_UNAVAILABLE */
export async function ietdPid(control: IetControl, timeoutMs: number): Promise<number> {
  const {pid, answers, failure} = await control.exchange([[request.nothing()]], {timeoutMs})
  if (failure) throw unavailable(control.socketName, failure)
  if (answers[0]?.[0]?.error === errno.eperm) {
    throw new StorageError('TARGET_UNAVAILABLE', 'ietd lets nobody but root in: run the daemon as root', {
      op: 'target.open',
    })
  }
  return pid
}

/** Gives the version, where IET tells it. 1.4.18 and 1.4.19 have other request numbers. @throws UNSUPPORTED */
export async function refuseOtherVersions(
  control: IetControl,
  targets: IetTargetVolumes[],
  {pid, timeoutMs}: {pid: number; timeoutMs: number},
): Promise<string | undefined> {
  const {answers, failure} = await control.call([[call.moduleInfo()]], {timeoutMs, expectedPid: pid})
  if (failure) throw unavailable(control.socketName, failure)
  const said = answers[0]?.[0]
  const version = (said?.error === 0 ? said.names[0] : undefined) ?? (await moduleVersion())
  const showsNoBlocks = targets.some(({volumes}) => volumes.some(({blocks}) => blocks === undefined))
  const isRefused = said?.error !== 0 && said?.error !== errno.enosys
  const isKnown = version === undefined ? !isRefused : supportedIet.test(version)
  if (isKnown && !isRefused && !showsNoBlocks) return version
  const found = version ?? (showsNoBlocks ? 'of 1.4.18 or 1.4.19' : 'older than 1.4.20')
  throw new StorageError(
    'UNSUPPORTED',
    `The IET of this machine is ${found}: lunpath knows the interface of 1.4.20 to 1.4.20.3. Install 1.4.20.2, or use targets.driver = "lio" or "tgt"`,
    {op: 'target.open', info: {version: version ?? null}},
  )
}

export async function refusePortalsOfOthers(portals: Portal[], ietd: number): Promise<void> {
  for (const portal of portals) {
    const holder = (await portalHolders(portal, {dualStack: false})).find(
      ({pid, command}) => pid !== ietd && command !== 'ietd',
    )
    if (!holder) continue
    throw new StorageError(
      'PORTAL_IN_USE',
      `${formatPortal(portal)} is held by process ${holder.pid} (${holder.command}), not by ietd`,
      {op: 'target.open', info: {portal: formatPortal(portal), pid: holder.pid, process: holder.command}},
    )
  }
}

/** The version of the loaded module, where it says so. */
async function moduleVersion(): Promise<string | undefined> {
  const text = await readFile('/sys/module/iscsi_trgt/version', 'utf8').catch(() => '')
  return text.trim() || undefined
}
