/**
 * The package's API. A program either runs the daemon in its own process (`Daemon`), speaks to a running one
 * (`ApiClient`), or uses a driver by itself.
 */
export {ApiClient, type CallOptions} from './api/client.js'
export * as bench from './bench/index.js'
export type {AttachSpec, ComputeDriver, DetachOptions} from './compute/driver.js'
export {LibvirtDriver} from './compute/libvirt.js'
export {type Config, type PartialConfig, readConfig, settleConfig} from './config.js'
export {Daemon, type DaemonOptions} from './daemon.js'
export {type Check, examine} from './doctor.js'
export {type ErrorCode, errorCodes, StorageError} from './errors.js'
export type {
  ConnectSpec,
  DiscoveredTarget,
  HostInitiator,
  IscsiSession,
  LoginSpec,
  SessionInitiator,
} from './initiators/driver.js'
export {LibiscsiInitiator} from './initiators/libiscsi.js'
export {OpenIscsiInitiator} from './initiators/open-iscsi.js'
export {formatSize, parseSize} from './size.js'
export type {TargetDriver} from './targets/driver.js'
export {LioDriver} from './targets/lio.js'
export {TgtDriver} from './targets/tgt.js'
export type * from './types.js'
export type {VolumeDriver} from './volumes/driver.js'
export {FileVolumeDriver} from './volumes/file.js'
