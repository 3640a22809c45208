import {type Command, InvalidArgumentError} from 'commander'
import type {NodeRecord} from '../../initiators/node-record.js'
import {formatPortal, parseTaggedPortal} from '../../iqn.js'
import {formatSize, parseSize} from '../../size.js'
import type {Device} from '../../types.js'
import {printFacts, printJson, printTable, unflushed} from '../output.js'
import {addChapOption, readChap, withDaemon} from '../session.js'

/** `lunpath connect`, `disconnect`, `node list`, `node delete`: the kernel's initiator by hand. */
export function initiatorCommands(program: Command): void {
  addChapOption(
    program
      .command('connect <iqn>')
      .description('log this host’s kernel in to a target; its disk becomes a block device here')
      .requiredOption(
        '--portal <portal...>',
        'HOST[:PORT][,TPGT], as discover shows it; several are several paths',
        portal,
      )
      .option('--lun <lun>', 'the disk’s number in the target', lunNumber, 1)
      .option('--serial <serial>', 'refuse a disk with another serial (a volume’s serial is its id)')
      .option('--wwid <wwid>', 'refuse a disk with another WWID')
      .option('--size <size>', 'refuse a disk of another size', parseSize)
      .option('--force', 'replace a node record or a lost session that another tool has made')
      .addHelpText(
        'after',
        `
It stays connected until lunpath disconnect, or the host's end. Needs open-iscsi: lunpath doctor.
A session that another tool has made with the target serves as it is. The IQN is taken as it is spelled.

Examples:
  lunpath discover 10.0.0.5
  lunpath connect iqn.2026-01.io.lunpath:0123456789abcdef --portal 10.0.0.5 --serial 0123456789abcdef
  lunpath connect iqn.2004-04.com.example:NAS-1:disk --portal nas.example --portal '[fe80::1%eth0]' --lun 0`,
      ),
  ).action((iqn: string, options, command: Command) =>
    withDaemon(command, async ({call, json}) => {
      const {portal: portals, lun, serial, wwid, size: sizeBytes, force} = options
      const expected = {serial, wwid, sizeBytes}
      const auth = await readChap(options)
      const device = await call<Device>('POST', '/initiator/connections', {iqn, portals, lun, auth, expected, force})
      if (json) return printJson(device)
      printFacts({
        device: device.path,
        'stable name': device.stablePath,
        serial: device.serial,
        WWID: device.wwid,
        size: formatSize(device.sizeBytes),
        paths: device.paths.map(one => `${one.device} (${formatPortal(one.portal)})`).join(', '),
      })
      if (device.multipath === 'first-path')
        process.stderr.write('multipathd has not joined the paths: the device is the first of them alone\n')
      for (const missing of device.missingPortals)
        process.stderr.write(`There is no session at ${formatPortal(missing)}\n`)
    }),
  )

  program
    .command('disconnect <iqn>')
    .description('flush and remove the disks of a target, log out and forget its node record')
    .option('--force', 'also if a disk is mounted, held or open for writing, or another tool has made the session')
    .addHelpText(
      'after',
      '\nA target that is not connected is success. Disks of guests are refused: lunpath detach. Node records of other\ntools stay: lunpath node delete.',
    )
    .action((iqn: string, {force}, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const query = force ? '?force=true' : ''
        const path = `/initiator/connections/${encodeURIComponent(iqn)}${query}`
        const {flushed} = await call<{flushed: boolean}>('DELETE', path)
        if (json) return printJson({iqn, flushed})
        process.stdout.write(`disconnected ${iqn}\n`)
        if (!flushed) process.stderr.write(unflushed)
      }),
    )

  const node = program.command('node').description('records of targets that this host’s kernel can log in to')
  node
    .command('list')
    .description('all node records, as iscsiadm -m node')
    .action((_options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const records = await call<NodeRecord[]>('GET', '/initiator/nodes')
        if (json) return printJson(records)
        printTable(
          records,
          {
            PORTAL: ({portal: at, tpgt}) => `${formatPortal(at)},${tpgt}`,
            IQN: ({iqn}) => iqn,
            STARTUP: ({startup}) => startup,
            CHAP: ({hasAuth}) => (hasAuth ? 'yes' : 'no'),
            OWNER: ({owner}) => ownerInWords(owner ?? 'other'),
          },
          'No node records.',
        )
      }),
    )
  node
    .command('delete <iqn>')
    .description('delete the records of a target that is not logged in')
    .option('--portal <portal>', 'only the one of this portal')
    .action((iqn: string, {portal: at}, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const query = at === undefined ? '' : `?portal=${encodeURIComponent(at)}`
        const deleted = await call<NodeRecord[]>('DELETE', `/initiator/nodes/${encodeURIComponent(iqn)}${query}`)
        if (json) return printJson(deleted)
        for (const record of deleted)
          process.stdout.write(`deleted ${formatPortal(record.portal)},${record.tpgt} ${record.iqn}\n`)
      }),
    )
}

export function ownerInWords(owner: string): string {
  return {attach: 'lunpath', hand: 'lunpath connect'}[owner] ?? owner
}

function portal(text: string, earlier: string[] = []): string[] {
  try {
    parseTaggedPortal(text)
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message)
  }
  return [...earlier, text]
}

function lunNumber(text: string): number {
  const lun = Number(text)
  if (!/^\d+$/.test(text) || lun > 255) throw new InvalidArgumentError('expected a whole number from 0 to 255')
  return lun
}
