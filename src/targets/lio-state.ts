import type {ExportSpec, ObservedTarget, TargetSession} from '../types.js'
import type {Operation, Outcome} from './configfs.js'
import {op} from './configfs.js'
import {
  authAttributes,
  authValues,
  type BackstoreKind,
  backstoreKind,
  backstoreKinds,
  backstorePath,
  groupPath,
  isForAll,
  lunPath,
  rulePath,
  targetPath,
} from './lio-spec.js'

/** What configfs holds of one target, ours or somebody else's. */

export interface BackstoreState {
  /** Below configfs' root: `target/core/fileio_3260/ID`. */
  path: string
  kind: string
  name: string
  enabled: boolean
  volumePath: string
  serial: string
  /** LIO's own description of the device. */
  info: string
}

export interface RuleState {
  name: string
  auth: string[]
  info: string
  /** Mapped LUNs and the links in them. */
  luns: {lun: string; links: string[]; writeProtect: boolean}[]
}

export interface TargetState {
  iqn: string
  /** The volume that was looked for. */
  id: string
  /** False where there is no directory of that name. */
  present: boolean
  groups: string[]
  enabled: boolean
  index: number
  authentication: boolean
  forAll: boolean
  writeProtect: boolean
  auth: string[]
  luns: {lun: string; links: string[]; backstore: BackstoreState | undefined}[]
  rules: RuleState[]
  portals: string[]
  sessions: TargetSession[]
  /** Backstores of ours with that id, linked or not. */
  ours: BackstoreKind[]
}

type Run = (operations: Operation[]) => Promise<Outcome[]>

const attributes = ['authentication', 'generate_node_acls', 'demo_mode_write_protect'] as const

/**
 * Reads all of one target: three batches, of its own subtree and of the backstores below it. `id`: the volume whose
 * backstore is looked for as well, by default the one that the IQN ends with.
 */
export async function readTarget(run: Run, iqn: string, id = idOf(iqn)): Promise<TargetState> {
  const group = groupPath(iqn)
  const [groups, lunNames, ruleNames, portals, enable, ...rest] = await run([
    ...[targetPath(iqn), `${group}/lun`, `${group}/acls`, `${group}/np`].map(path => op.list(path)),
    op.read(`${group}/enable`),
    ...attributes.map(name => op.read(`${group}/attrib/${name}`)),
    ...authAttributes.map(name => op.read(`${group}/auth/${name}`)),
    ...backstoreKinds.map(kind => op.read(`${backstorePath(kind, id)}/enable`)),
    ...sessionOperations(iqn, []),
  ])
  const texts = rest.map(textOf)
  const [authentication, forAll, writeProtect] = texts.splice(0, attributes.length).map(text => text === '1')
  const auth = texts.splice(0, authAttributes.length)
  const ours = backstoreKinds.filter((_, index) => rest[attributes.length + authAttributes.length + index]!.code === '')
  texts.splice(0, backstoreKinds.length)

  const luns = lunNames!.texts
  const names = ruleNames!.texts
  const second = await run([
    ...luns.map(lun => op.links(`${group}/lun/${lun}`)),
    ...names.flatMap(name => [
      op.list(rulePath(iqn, name)),
      op.read(`${rulePath(iqn, name)}/info`),
      ...authAttributes.map(attribute => op.read(`${rulePath(iqn, name)}/auth/${attribute}`)),
    ]),
  ])
  const lunLinks = second.splice(0, luns.length).map(({texts: found}) => found)
  const rules = names.map(name => {
    const [directories, info, ...credentials] = second.splice(0, 2 + authAttributes.length)
    return {
      name,
      info: textOf(info),
      auth: credentials.map(textOf),
      mapped: directories!.texts.filter(directory => /^lun_\d+$/.test(directory)),
    }
  })

  const mapped = rules.flatMap(({name, mapped: lunsOfRule}) => lunsOfRule.map(lun => `${rulePath(iqn, name)}/${lun}`))
  const linked = lunLinks.map(backstoreOf)
  const backstores = linked.flatMap(backstore => backstore ?? [])
  const third = await run([
    ...mapped.flatMap(path => [op.links(path), op.read(`${path}/write_protect`)]),
    ...backstores.flatMap(({path}) =>
      ['enable', 'udev_path', 'wwn/vpd_unit_serial', 'info'].map(name => op.read(`${path}/${name}`)),
    ),
  ])
  const ruleStates = rules.map(({mapped: lunsOfRule, ...rule}) => ({
    ...rule,
    luns: lunsOfRule.map(lun => {
      const [links, protect] = third.splice(0, 2)
      return {lun, links: linkNames(links!.texts), writeProtect: textOf(protect) === '1'}
    }),
  }))
  const backstoreStates = linked.map(backstore => {
    if (!backstore) return undefined
    const [enabled, volumePath, serial, info] = third.splice(0, 4).map(textOf)
    return {
      ...backstore,
      enabled: enabled === '1',
      volumePath: volumePath!,
      serial: serial!.replace(/^T10 VPD Unit Serial Number: /, ''),
      info: info!,
    }
  })
  return {
    iqn,
    id,
    present: groups!.code === '',
    groups: groups!.texts.filter(directory => directory.startsWith('tpgt_')),
    enabled: textOf(enable) === '1',
    index: Number(texts[0] ?? 0),
    authentication: authentication!,
    forAll: forAll!,
    writeProtect: writeProtect!,
    auth,
    luns: luns.map((lun, index) => ({lun, links: linkNames(lunLinks[index]!), backstore: backstoreStates[index]})),
    rules: ruleStates,
    portals: portals!.texts,
    sessions: sessionsOf(
      iqn,
      {count: texts[1] ?? '', dynamic: texts[2] ?? ''},
      rules.map(({name, info}) => ({name, info})),
    ),
    ours,
  }
}

/** The volume's id by which a target of ours is named: the last part of its IQN. */
function idOf(iqn: string): string {
  return iqn.slice(-16)
}

/**
 * True for a target that lunpath has made, or begun to make: each of its LUNs is a backstore of ours, and where it has
 * none yet, the backstore that was made before it is there.
 */
export function isOurs({groups, luns, ours}: TargetState): boolean {
  if (groups.some(group => group !== 'tpgt_1')) return false
  const links = luns.flatMap(({links: names, backstore}) => names.map(() => backstore))
  const isOwn = (backstore: BackstoreState | undefined) =>
    backstore !== undefined && backstoreKinds.some(kind => backstore.path === backstorePath(kind, backstore.name))
  return links.length === 0 ? ours.length > 0 : links.every(isOwn)
}

/** The volume's ids that the target offers, by its links. */
export function linkedIds({luns}: TargetState): string[] {
  return luns.flatMap(({backstore}) => backstore?.name ?? [])
}

/** True where the target offers exactly what the spec says, whatever its rules and portals are. */
export function hasBodyOf(spec: ExportSpec, state: TargetState): boolean {
  const {volume, readOnly, auth} = spec
  const [lun, ...others] = state.luns
  const backstore = lun?.backstore
  if (!state.present || !state.enabled || !backstore || others.length > 0 || lun.lun !== 'lun_1') return false
  const kind = backstoreKind(volume)
  const wanted = authValues(auth)
  const sameAuth = (found: string[]) => found.every((value, index) => value === wanted[index])
  return (
    backstore.path === backstorePath(kind, volume.id) &&
    backstore.enabled &&
    backstore.volumePath === volume.path &&
    backstore.serial === volume.id &&
    isWriteBack(backstore) === (kind === 'fileio' && spec.writeCache === 'back') &&
    state.writeProtect === readOnly &&
    state.authentication === (auth !== undefined) &&
    state.forAll === isForAll(spec) &&
    (!state.forAll || sameAuth(state.auth)) &&
    state.rules.every(
      ({auth: found, luns}) =>
        sameAuth(found) && luns.length === 1 && luns[0]!.links.length === 1 && luns[0]!.writeProtect === readOnly,
    )
  )
}

function isWriteBack({kind, info}: BackstoreState): boolean {
  return kind === 'fileio' && info.includes('Mode: Buffered-WCE')
}

/** The size as LIO has it; undefined for block devices, whose size is the device's. */
export function sizeInInfo(info: string): number | undefined {
  const size = /Size: (\d+)/.exec(info)?.[1]
  return size === undefined ? undefined : Number(size)
}

/** `MAJOR:MINOR` of a block device that LIO has claimed. */
export function deviceInInfo(info: string): string | undefined {
  const found = /Major: (\d+)\s+Minor: (\d+)/.exec(info)
  return found ? `${found[1]}:${found[2]}` : undefined
}

/** What sessionsOf() needs of a target: its number, the count of sessions, those without a rule, those of each rule. */
export function sessionOperations(iqn: string, names: string[]): Operation[] {
  const instance = `${targetPath(iqn)}/fabric_statistics/iscsi_instance`
  return [
    op.read(`${instance}/inst`),
    op.read(`${instance}/sessions`),
    op.read(`${groupPath(iqn)}/dynamic_sessions`),
    ...names.map(name => op.read(`${rulePath(iqn, name)}/info`)),
  ]
}

/**
 * The sessions of a target. A rule's `info` shows its latest session alone, and sessions that came in without a rule are
 * known by their initiators' names: what is not known stays empty, and the number of sessions is right all the same.
 */
export function sessionsOf(
  iqn: string,
  {count, dynamic}: {count: string; dynamic: string},
  rules: {name: string; info: string}[],
): TargetSession[] {
  const shown = rules.flatMap(({name, info}) => parseSession(iqn, name, info) ?? [])
  const unshown = (initiator: string): TargetSession => ({iqn, initiator, sid: '', connections: []})
  const sessions = [
    ...shown,
    ...dynamic
      .split(/[\0\n]+/)
      .filter(Boolean)
      .map(unshown),
  ]
  const initiators = new Set(sessions.map(({initiator}) => initiator))
  const hidden = Math.max(0, Number(count) - sessions.length)
  const [only = ''] = initiators.size === 1 ? initiators : []
  return [...sessions, ...Array.from({length: hidden}, () => unshown(only))]
}

/** drivers/target/iscsi/iscsi_target_configfs.c, lio_target_nacl_info_show. */
export function parseSession(iqn: string, initiator: string, info: string): TargetSession | undefined {
  const sid = /^LIO Session ID: (\d+)/m.exec(info)?.[1]
  if (sid === undefined) return undefined
  const connections = [...info.matchAll(/CID: (\d+)\s+Connection State: (\S+)\s+Address (\S+)/g)]
  return {
    iqn,
    initiator,
    sid,
    connections: connections.map(([, cid, state, address]) => ({
      cid: Number(cid),
      address: address!.replace(/^\[|\]$/g, ''),
      state: state!.replace(/^TARG_CONN_STATE_/, '').toLowerCase(),
    })),
  }
}

/** As the room's interface has it. `sizeBytes` are given: for block devices they are not in configfs. */
export function observed(state: TargetState, sizesBytes: Map<string, number>): ObservedTarget {
  const users = new Set([state.auth[0]!, ...state.rules.map(({auth}) => auth[0]!)])
  return {
    iqn: state.iqn,
    tid: state.index,
    luns: state.luns.flatMap(({lun, backstore}) =>
      backstore
        ? [
            {
              lun: Number(lun.slice('lun_'.length)),
              path: backstore.volumePath,
              sizeBytes: sizesBytes.get(backstore.path) ?? 0,
              serial: backstore.serial,
              scsiId: backstore.serial,
              readOnly: state.writeProtect,
              online: backstore.enabled && state.enabled,
            },
          ]
        : [],
    ),
    access: {addresses: state.forAll ? ['ALL'] : [], names: state.rules.map(({name}) => name)},
    accounts: [...users].filter(user => user !== ''),
    sessions: state.sessions,
  }
}

/** What takes a target of ours away, from any state that it may be in. */
export function removal({iqn, enabled, luns, rules, portals, present, groups}: TargetState): Operation[] {
  const group = groupPath(iqn)
  const directory = (path: string, links: string[]) => [
    ...links.map(link => op.unlink(`${path}/${link}`)),
    op.rmdir(path),
  ]
  return [
    // It closes the sessions and waits for the commands that they have in flight.
    ...(enabled ? [op.write(`${group}/enable`, '0')] : []),
    ...portals.map(portal => op.rmdir(`${group}/np/${portal}`)),
    ...rules.flatMap(({name, luns: mapped}) => [
      ...mapped.flatMap(({lun, links}) => directory(`${rulePath(iqn, name)}/${lun}`, links)),
      op.rmdir(rulePath(iqn, name)),
    ]),
    ...luns.flatMap(({lun, links}) => directory(`${group}/lun/${lun}`, links)),
    ...(groups.length > 0 ? [op.rmdir(group)] : []),
    ...(present ? [op.rmdir(targetPath(iqn))] : []),
  ]
}

/** The backstore that the links of a LUN lead to: `../../…/target/core/fileio_3260/NAME`. */
function backstoreOf(links: string[]): Pick<BackstoreState, 'path' | 'kind' | 'name'> | undefined {
  const found = /(target\/core\/([a-z]+)_\d+\/([^/]+))$/.exec(links[1] ?? '')
  return found ? {path: found[1]!, kind: found[2]!, name: found[3]!} : undefined
}

function linkNames(links: string[]): string[] {
  return links.filter((_, index) => index % 2 === 0)
}

function textOf(outcome: Outcome | undefined): string {
  return outcome?.texts[0] ?? ''
}

/** For a look at a target that is known: whether it is there and whole, and its sessions. */
export function lookOperations(iqn: string, names: string[]): Operation[] {
  return [op.read(`${groupPath(iqn)}/enable`), op.links(lunPath(iqn)), ...sessionOperations(iqn, names)]
}

/** For a look at what others may have changed in a target that is there. */
export function auditOperations(iqn: string): Operation[] {
  const group = groupPath(iqn)
  return [op.read(`${group}/enable`), op.links(lunPath(iqn)), op.list(`${group}/np`), op.list(`${group}/acls`)]
}

/** What auditOperations() found; takes its outcomes off the front. */
export function takeAudit(outcomes: Outcome[]): {isWhole: boolean; portals: string[]; rules: string[]} {
  const [enable, links, portals, rules] = outcomes.splice(0, 4)
  return {
    isWhole: textOf(enable) === '1' && links!.texts.length > 0,
    portals: portals!.texts,
    rules: rules!.texts,
  }
}

export interface Look {
  present: boolean
  enabled: boolean
  hasLun: boolean
  index: number
  sessions: TargetSession[]
}

/** What lookOperations() found; takes its outcomes off the front. */
export function takeLook(iqn: string, names: string[], outcomes: Outcome[]): Look {
  const [enable, links, inst, count, dynamic, ...infos] = outcomes.splice(0, 5 + names.length)
  return {
    present: enable!.code === '',
    enabled: textOf(enable) === '1',
    hasLun: links!.texts.length > 0,
    index: Number(textOf(inst)),
    sessions: sessionsOf(
      iqn,
      {count: textOf(count), dynamic: textOf(dynamic)},
      infos.map((info, index) => ({name: names[index]!, info: textOf(info)})),
    ),
  }
}
