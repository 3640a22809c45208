import {readFile} from 'node:fs/promises'
import {isIP} from 'node:net'
import {hostname} from 'node:os'
import type {Static} from '@sinclair/typebox'
import {isWildcard} from './address.js'
import {defaultConfigPath, defaultSocket} from './defaults.js'
import {StorageError} from './errors.js'
import {checkForeignName, foldIscsiName, parseOfferedPortal, parsePortal} from './iqn.js'
import {parseToml as parse, Type, Value} from './packages/daemon.js'
import {accessDirectories} from './targets/iet-access.js'
import {ietdSocket, ietProcDirectory} from './targets/iet-names.js'
import {blockSizes} from './targets/iet-spec.js'
import {checkLvmName} from './volumes/lvm-grammar.js'
import type {WipePolicy} from './volumes/wipe.js'

const strict = {additionalProperties: false} as const

const lvmPoolSchema = Type.Object(
  {
    /** The volume group. */
    group: Type.String(),
    /** The pool's name; default: the group's. */
    name: Type.Optional(Type.String({minLength: 1, maxLength: 63, pattern: '^[A-Za-z0-9_+][A-Za-z0-9_.+-]*$'})),
    /** A thin pool in the group: with one, volumes are thin unless they are preallocated. */
    thinPool: Type.Optional(Type.String()),
    /** How many times the thin pool's size may be promised. */
    overcommit: Type.Optional(Type.Number({exclusiveMinimum: 0, maximum: 1000})),
    /** What becomes of the data of deleted volumes that are not thin. */
    wipe: Type.Optional(Type.Union(['zero', 'discard', 'none'].map(policy => Type.Literal(policy as WipePolicy)))),
    /** Percent of the thin pool's data or metadata space in use from which on nothing thin is made or grown. */
    thinLimit: Type.Optional(Type.Number({exclusiveMinimum: 0, maximum: 100})),
  },
  strict,
)

/** The configuration file, TOML. Every key has a default, so that an absent file is a working configuration. */
export const configSchema = Type.Object(
  {
    daemon: Type.Object(
      {
        /** Where the store and the private files of managed daemons lie. */
        directory: Type.String({default: '/var/lib/lunpath'}),
        /** The API's unix socket, mode 0600. */
        socket: Type.String({default: defaultSocket}),
        logLevel: Type.Union(
          ['trace', 'debug', 'info', 'warn', 'error'].map(level => Type.Literal(level)),
          {default: 'info'},
        ),
      },
      {...strict, default: {}},
    ),
    volumes: Type.Object(
      {
        /** Directory of the pool of file volumes; default: DIRECTORY/volumes. */
        directory: Type.Optional(Type.String()),
        /** How many times the file system's size may be promised to sparse volumes. */
        overcommit: Type.Number({default: 1, exclusiveMinimum: 0, maximum: 1000}),
        /** The pool of volumes for which none is named: `default` is the pool of files. */
        defaultPool: Type.String({default: 'default'}),
        /** Pools in volume groups of LVM, beside those that `pool create` has made. */
        lvm: Type.Array(lvmPoolSchema, {default: []}),
        /** IQNs of a SAN's targets, on whose disks pools in LVM may lie. LVM looks at no other disk of an iSCSI session. */
        sanTargets: Type.Array(Type.String(), {default: []}),
      },
      {...strict, default: {}},
    ),
    targets: Type.Object(
      {
        /** `tgt`: a daemon in user space. `lio`: the kernel's own target. `iet`: the iSCSI Enterprise Target. */
        driver: Type.Union([Type.Literal('tgt'), Type.Literal('lio'), Type.Literal('iet')], {default: 'tgt'}),
        /** True: lunpath starts and supervises a tgtd of its own. False: it uses the one that answers at `socket`. */
        managed: Type.Boolean({default: true}),
        /** Control socket of a tgtd that is not managed. */
        socket: Type.String({default: '/var/run/tgtd/socket.0'}),
        /** Where initiators log in: ADDRESS:PORT, IPv6 in brackets. */
        portals: Type.Array(Type.String(), {default: ['127.0.0.1:3260'], minItems: 1}),
        /** LIO: the network namespace, by its name in `ip netns`, whose addresses the portals are. */
        networkNamespace: Type.Optional(Type.String({pattern: '^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,62}$'})),
        iqnPrefix: Type.String({default: 'iqn.2026-01.io.lunpath'}),
        /** The managed tgtd, or LIO's targets, end with the daemon. For demonstrations and tests: guests lose their disks. */
        endWithDaemon: Type.Boolean({default: false}),
      },
      {...strict, default: {}},
    ),
    iet: Type.Object(
      {
        /** The abstract name of ietd's socket. */
        socket: Type.String({default: ietdSocket, minLength: 1, maxLength: 107}),
        /** Where the module shows its targets. */
        procDir: Type.String({default: ietProcDirectory}),
        /** False: initiators.allow is never written, and exports that ask for access rules are refused. */
        accessFiles: Type.Boolean({default: true}),
        /** Where ietd looks for initiators.allow: the first directory that has it. */
        accessDirs: Type.Array(Type.String(), {default: [...accessDirectories], minItems: 1}),
        /** Bytes of a logical block. */
        blockSize: Type.Union(
          blockSizes.map(size => Type.Literal(size)),
          {default: 512},
        ),
        /** Whether I/O of block devices goes around the page cache (`blockio`) or through it (`fileio`). */
        blockDevices: Type.Union([Type.Literal('blockio'), Type.Literal('fileio')], {default: 'blockio'}),
        /** File with the CHAP credentials that discovery asks for, in the form of --chap-file. */
        discoveryChapFile: Type.Optional(Type.String()),
      },
      {...strict, default: {}},
    ),
    initiator: Type.Object(
      {
        /** The name that QEMU and lunpath log in with on this node. Default: the prefix, `:`, the host's name. */
        name: Type.Optional(Type.String()),
        timeoutMs: Type.Integer({default: 15_000, minimum: 100}),
        /** Who logs in for a disk where the request does not say: QEMU itself, or this host's kernel (open-iscsi). */
        route: Type.Union([Type.Literal('qemu'), Type.Literal('host')], {default: 'qemu'}),
      },
      {...strict, default: {}},
    ),
    compute: Type.Object({uri: Type.String({default: 'qemu:///system'})}, {...strict, default: {}}),
    metrics: Type.Object(
      {
        /** ADDRESS:PORT of /metrics; an empty string switches it off. */
        listen: Type.String({default: '127.0.0.1:9723'}),
        /** How often tgtd's counters are read, in ms: they are lost when a session ends between two readings. */
        intervalMs: Type.Integer({default: 1000, minimum: 100}),
      },
      {...strict, default: {}},
    ),
  },
  strict,
)

export type Config = Static<typeof configSchema> & {
  volumes: {directory: string}
  initiator: {name: string}
}

/** Recursive optional: what a caller may leave out. */
export type PartialConfig = {[K in keyof Config]?: Partial<Config[K]>}

/** Fills in the defaults and checks every value. @throws INVALID_ARGUMENT that names the key */
export function settleConfig(given: PartialConfig = {}): Config {
  const config = Value.Default(configSchema, structuredClone(given)) as Config
  const [problem] = Value.Errors(configSchema, config)
  if (problem) {
    const key = problem.path.slice(1).replaceAll('/', '.') || 'the file'
    throw new StorageError('INVALID_ARGUMENT', `Configuration: ${key}: ${problem.message}`, {op: 'config', info: {key}})
  }
  config.volumes.directory ??= `${config.daemon.directory}/volumes`
  config.targets.iqnPrefix = foldIscsiName(config.targets.iqnPrefix)
  config.initiator.name = foldIscsiName(config.initiator.name ?? `${config.targets.iqnPrefix}:${hostLabel()}`)
  checkPools(config.volumes)
  for (const iqn of config.volumes.sanTargets) checkForeignName(iqn)
  checkPortals(config.targets)
  if (config.targets.networkNamespace !== undefined && config.targets.driver !== 'lio') {
    throw new StorageError(
      'INVALID_ARGUMENT',
      'Configuration: targets.networkNamespace is for LIO: start a tgtd in its namespace yourself and name its targets.socket',
      {op: 'config', info: {key: 'targets.networkNamespace'}},
    )
  }
  if (config.metrics.listen !== '') parsePortal(config.metrics.listen)
  return config
}

/** @throws NAME_INVALID; INVALID_ARGUMENT for all addresses of a network namespace, of which lunpath sees none */
function checkPortals({portals, networkNamespace}: Config['targets']): void {
  const all = portals.map(parseOfferedPortal).find(({address}) => isWildcard(address))
  if (all === undefined || networkNamespace === undefined) return
  throw new StorageError(
    'INVALID_ARGUMENT',
    `Configuration: targets.portals: ${all.address} stands for all addresses of the network namespace ${networkNamespace}: name the ones that initiators reach`,
    {op: 'config', info: {key: 'targets.portals', networkNamespace}},
  )
}

/** @throws INVALID_ARGUMENT where two pools have one name; NAME_INVALID */
function checkPools({lvm}: Config['volumes']): void {
  const names = new Set(['default'])
  for (const {group, name = group, thinPool} of lvm) {
    checkLvmName(group, 'volume group')
    if (thinPool !== undefined) checkLvmName(thinPool, 'thin pool')
    if (names.has(name)) {
      throw new StorageError('INVALID_ARGUMENT', `Configuration: volumes.lvm: two pools are named ${name}`, {
        op: 'config',
        info: {key: 'volumes.lvm', pool: name},
      })
    }
    names.add(name)
  }
}

/** The host's name in the characters of an iSCSI name. */
function hostLabel(): string {
  const label = hostname()
    .toLowerCase()
    .replaceAll(/[^a-z0-9.-]/g, '-')
    .replaceAll(/\.{2,}/g, '.')
  return isIP(label) === 0 && label !== '' ? label : 'node'
}

/**
 * Reads a configuration file. The default one may be absent; one that was named must be there.
 * @throws INVALID_ARGUMENT
 */
export async function readConfig(path?: string): Promise<Config> {
  const file = path ?? defaultConfigPath
  const text = await readFile(file, 'utf8').catch((cause: NodeJS.ErrnoException) => {
    if (path === undefined && cause.code === 'ENOENT') return ''
    throw new StorageError('INVALID_ARGUMENT', `The configuration file ${file} cannot be read: ${cause.message}`, {
      op: 'config',
      cause,
    })
  })
  try {
    return settleConfig(parse(text) as PartialConfig)
  } catch (cause) {
    if (cause instanceof StorageError) throw cause
    throw new StorageError(
      'INVALID_ARGUMENT',
      `The configuration file ${file} is not TOML: ${(cause as Error).message}`,
      {op: 'config', cause},
    )
  }
}
