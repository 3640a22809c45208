/** The abstract socket of every ietd, one per network namespace. */
export const ietdSocket = 'IET_ABSTRACT_NAMESPACE'
/** Where the kernel shows IET's targets, in the initial network namespace alone. */
export const ietProcDirectory = '/proc/net/iet'
/** Releases whose interface is known; `trunk` is what 1.4.20.3+svn says of itself. */
export const supportedIet = /^(1\.4\.20(\.\d+)?(\+svn.*)?|trunk)$/

/** Whether the ietd of that version looks for sessions before it deletes a target. */
export function keepsTargetsInUse(version: string): boolean {
  return !/^1\.4\.20(\.1)?$/.test(version)
}
