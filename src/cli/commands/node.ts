import type {Command} from 'commander'
import type {DiscoveredTarget, ObservedSession} from '../../initiators/driver.js'
import {formatPortal} from '../../iqn.js'
import type {Disk, Domain, Portal, TargetSession} from '../../types.js'
import {printFacts, printJson, printTable} from '../output.js'
import {addChapOption, readChap, withDaemon} from '../session.js'
import {ownerInWords} from './initiator.js'
import {sessionNumber} from './target.js'

interface Status {
  version: string
  pid: number
  state: 'recovering' | 'serving'
  portals: (Portal & {open: boolean; reason: string | null})[]
  initiatorName: string
  unfinished: {
    id: string
    kind: string
    subject: string
    state: string
    startedAt: string
    running: boolean
    waitsFor: string | null
  }[]
  problems: {message: string}[]
}

/** `lunpath discover`, `session list|delete`, `domain list|disks`, `status`, `cancel` */
export function nodeCommands(program: Command): void {
  addChapOption(program.command('discover <portal>').description('ask a portal (HOST[:PORT]) for its targets')).action(
    (portal: string, options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const targets = await call<DiscoveredTarget[]>('POST', '/discover', {portal, auth: await readChap(options)})
        if (json) return printJson(targets)
        printTable(
          targets.flatMap(({iqn, portals}) => portals.map(at => ({iqn, at}))),
          {PORTAL: ({at}) => `${formatPortal(at)},${at.tpgt}`, IQN: ({iqn}) => iqn},
          `${portal} offers no targets to this initiator`,
        )
      }),
  )

  const session = program
    .command('session')
    .description('iSCSI sessions, as the target sees them and as this host’s kernel does')
  session
    .command('delete <iqn> <sid>')
    .description('close a session at the target, where the driver can (IET); its initiator may log in again')
    .action((iqn: string, sid: string, _options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        await call('DELETE', `/sessions/${encodeURIComponent(iqn)}/${sessionNumber(sid)}`)
        if (json) printJson({iqn, sid})
        else process.stdout.write(`closed session ${sid} of ${iqn}\n`)
      }),
    )
  session
    .command('list')
    .description('all sessions')
    .action((_options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const [atTarget, ofKernel] = await Promise.all([
          call<TargetSession[]>('GET', '/sessions'),
          call<ObservedSession[]>('GET', '/initiator/sessions'),
        ])
        if (json) {
          const sided = (side: string, sessions: object[]) => sessions.map(session => ({side, ...session}))
          return printJson([...sided('target', atTarget), ...sided('initiator', ofKernel)])
        }
        const none = 'No sessions.'
        if (atTarget.length > 0 || ofKernel.length === 0) printTable(atTarget, targetColumns, none)
        if (ofKernel.length === 0) return
        process.stdout.write(`${atTarget.length > 0 ? '\n' : ''}Of this host's kernel:\n`)
        printTable(ofKernel, kernelColumns, none)
        for (const {iqn, stuck} of ofKernel.filter(session => session.stuck !== null))
          process.stdout.write(`${iqn} is stuck: ${stuck}\n`)
      }),
    )

  const domain = program.command('domain').description('domains of libvirt')
  domain
    .command('list')
    .description('all domains with their state, as virsh list --all')
    .action((_options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const domains = await call<Domain[]>('GET', '/domains')
        if (json) return printJson(domains)
        printTable(
          domains,
          {ID: ({id}) => id, NAME: ({name}) => name, STATE: ({state}) => state, UUID: ({uuid}) => uuid},
          'No domains.',
        )
      }),
    )
  domain
    .command('disks <domain>')
    .description('the disks of a domain with serial and source')
    .action((name: string, _options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const disks = await call<Disk[]>('GET', `/domains/${encodeURIComponent(name)}/disks`)
        if (json) return printJson(disks)
        printTable(
          disks,
          {
            TARGET: ({target}) => target,
            BUS: ({bus}) => bus,
            SERIAL: ({serial}) => serial,
            LIVE: ({live}) => (live ? 'yes' : 'no'),
            PERSISTENT: ({persistent}) => (persistent ? 'yes' : 'no'),
            SOURCE: ({source}) => describeSource(source),
          },
          `${name} has no disks.`,
        )
      }),
    )

  program
    .command('status')
    .description('the daemon: portals, unfinished operations, problems')
    .action((_options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const status = await call<Status>('GET', '/status')
        if (json) return printJson(status)
        const {version, pid, state, portals, initiatorName, unfinished, problems} = status
        printFacts({
          version,
          process: pid,
          state,
          portals: portals.map(portal => `${formatPortal(portal)}${portal.open ? '' : ' (not open)'}`).join(' '),
          initiator: initiatorName,
          unfinished: unfinished.length,
          problems: problems.length,
        })
        for (const {id, kind, subject, state, startedAt, running, waitsFor} of unfinished) {
          const now = running ? state : `${state}, waiting`
          process.stdout.write(`unfinished: ${kind} of ${subject}, ${now} since ${startedAt} (operation ${id})\n`)
          if (waitsFor !== null) process.stdout.write(`  ${waitsFor}\n`)
        }
        for (const {message} of problems) process.stdout.write(`problem: ${message}\n`)
      }),
    )

  program
    .command('cancel <operation>')
    .description('cancel an unfinished operation that makes something (its id, or its volume), and undo it')
    .addHelpText('after', '\nSee lunpath status. What is being taken away (detach, delete) cannot be cancelled.')
    .action((operation: string, _options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const cancelled = await call<{kind: string; subject: string}>(
          'DELETE',
          `/operations/${encodeURIComponent(operation)}`,
        )
        if (json) return printJson(cancelled)
        process.stdout.write(`cancelled ${cancelled.kind} of ${cancelled.subject}\n`)
      }),
    )
}

const targetColumns = {
  TARGET: ({iqn}: TargetSession) => iqn,
  INITIATOR: ({initiator}: TargetSession) => initiator,
  SID: ({sid}: TargetSession) => sid,
  ADDRESS: ({connections}: TargetSession) => connections.map(({address}) => address).join(','),
  STATE: ({connections}: TargetSession) => connections.map(({state}) => state).join(','),
}

const kernelColumns = {
  TARGET: ({iqn}: ObservedSession) => iqn,
  PORTAL: ({portal, tpgt}: ObservedSession) => `${formatPortal(portal)},${tpgt}`,
  SID: ({sid}: ObservedSession) => sid,
  STATE: ({state, stuck}: ObservedSession) => (stuck === null ? state : `${state}, stuck`),
  DEVICES: ({devices}: ObservedSession) => devices.map(({device, state}) => `${device} (${state})`).join(','),
  OWNER: ({owner}: ObservedSession) => ownerInWords(owner),
}

function describeSource(source: Disk['source']): string {
  switch (source.type) {
    case 'iscsi':
      return `iscsi://${formatPortal(source.portal)}/${source.iqn}/${source.lun}`
    case 'other':
      return source.description
    default:
      return source.path
  }
}
