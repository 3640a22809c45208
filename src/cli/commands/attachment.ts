import {type Command, Option} from 'commander'
import {parseSize} from '../../size.js'
import type {Disk, Export, Volume} from '../../types.js'
import {endProgress, printJson, printTable, showProgress, unflushed} from '../output.js'
import {addChapOption, positiveSeconds, readChap, requireOne, withDaemon} from '../session.js'

interface Listed {
  id: string
  domain: string
  target: string
  bus: string
  iqn: string | null
  source: {path?: string}
  state: string
  persistent: boolean
}

/** `lunpath attach`, `lunpath detach`, `lunpath attachment list` */
export function attachmentCommands(program: Command): void {
  addChapOption(
    program
      .command('attach <domain> [target]')
      .description('give a running domain a disk: a volume (made here with --size), or any device or file')
      .option('--volume <volume>', 'a volume that exists, by id or name')
      .option('--size <size>', 'or a new one of this size', parseSize)
      .option('--device <path>', 'or this block device or image file, as it is')
      .option('--name <name>', 'a name for the new volume')
      .option('--pool <pool>', 'the pool for the new volume')
      .addOption(new Option('--bus <bus>', 'the disk’s bus').choices(['virtio', 'scsi']).default('virtio'))
      .addOption(
        new Option('--route <route>', 'who logs in: QEMU, or this host’s kernel (default: as configured)').choices([
          'qemu',
          'host',
        ]),
      )
      .addOption(
        new Option('--format <format>', 'what the file of --device is (default: raw)').choices(['raw', 'qcow2']),
      )
      .option('--read-only', 'the guest may only read')
      .option('--shared', 'allow others to use the same disk at the same time; without it a disk in use is refused')
      .option('--force', 'with --route host: replace a node record or a lost session that another tool has made')
      .option('--persistent', 'also in the domain’s definition, for its next start')
      .option('--write-back', 'the new export acknowledges writes before they are on stable storage')
      .addHelpText(
        'after',
        `
TARGET is libvirt's name of the disk (vdb, sdc); the first free one where none is given. The guest may
name it otherwise: look for its serial, /dev/disk/by-id/virtio-SERIAL.

A disk that somebody uses already is refused: another VM, a session at the target, a mount, swap, LVM,
a loop device or a process that writes. --shared is for guests that share a disk knowingly, as cluster
file systems do: everything else loses data on it.

--name and --pool go with --size. --write-back and --chap-file are for the export that is made here: a volume
that is exported already keeps its settings, and a device has none. What does not go together is refused.

Examples:
  lunpath attach vm1 --size 2GiB
  lunpath attach vm1 vdb --volume db1 --persistent
  lunpath attach vm1 --volume db2 --chap-file ./chap
  lunpath attach vm1 --volume db3 --route host
  lunpath attach vm1 vdc --device /dev/disk/by-id/...`,
      ),
  ).action((domain: string, target: string | undefined, options, command: Command) => {
    requireOne(options, ['volume', 'size', 'device'])
    return withDaemon(command, async ({call, json}) => {
      const {volume, size, device, format, name, pool, bus, route, force} = options
      const {readOnly, shared, persistent, writeBack} = options
      const auth = await readChap(options)
      const writeCache = writeBack ? 'back' : undefined
      const disk = {domain, target, device, format, bus, route, force, readOnly, shared, persistent}
      const body = {...disk, volume, sizeBytes: size, name, pool, writeCache, auth}
      const made = await call<{volume: Volume | null; export: Export | null; disk: Disk}>('POST', '/attachments', body)
      if (json) return printJson(made)
      const {alias, serial, target: given} = made.disk
      process.stdout.write(`${domain}: ${given}  serial ${serial}  (${alias})\n`)
      process.stdout.write(`Take it back with: lunpath detach ${serial}\n`)
    })
  })

  program
    .command('detach <attachment> [target]')
    .description('take a disk back, by volume id or name, or by DOMAIN and TARGET; the volume stays')
    .option(
      '--timeout <seconds>',
      'how long to wait for the guest’s release (default: 20; a day at most)',
      positiveSeconds,
    )
    .option('--force', 'end sessions that stay at the target after the guest has released the disk')
    .addHelpText(
      'after',
      `
A guest that does not answer keeps its disk: exit code 6, and the attachment shows as detaching. The
request stands; the same command waits again. Nor does the export go while somebody is logged in to it, as
a VM on another host after a migration: --force ends that session.

On the host route the disk is flushed before it goes. One that takes no flush goes too: the answer says
that data may be lost, with --json as "flushed": false. The exit code is 0.

Examples:
  lunpath detach 0123456789abcdef
  lunpath detach vm1 vdb --timeout 60`,
    )
    .action((key: string, target: string | undefined, {timeout, force}, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const query = new URLSearchParams({
          ...(timeout === undefined ? {} : {timeoutMs: String(Math.round(timeout * 1000))}),
          ...(force ? {force: 'true'} : {}),
        })
        const [first, second] = [key, target ?? ''].map(encodeURIComponent)
        const path = target === undefined ? `/attachments/${first}` : `/domains/${first}/disks/${second}`
        showProgress('waiting until the guest has released the disk')
        const ended = await call<{flushed?: boolean}>('DELETE', `${path}?${query}`).finally(endProgress)
        if (json) return printJson(ended)
        process.stdout.write(`detached ${[key, target].filter(Boolean).join(' ')}\n`)
        if (ended.flushed === false) process.stderr.write(unflushed)
      }),
    )

  program
    .command('attachment')
    .description('disks that lunpath has attached')
    .command('list')
    .description('all of them, with what is seen of them now')
    .action((_options, command: Command) =>
      withDaemon(command, async ({call, json}) => {
        const listed = await call<Listed[]>('GET', '/attachments')
        if (json) return printJson(listed)
        printTable(
          listed,
          {
            ID: ({id}) => id,
            DOMAIN: ({domain}) => domain,
            TARGET: ({target}) => target,
            BUS: ({bus}) => bus,
            STATE: ({state}) => state,
            PERSISTENT: ({persistent}) => (persistent ? 'yes' : 'no'),
            SOURCE: ({iqn, source}) => iqn ?? source.path ?? null,
          },
          'No attachments. Make one with: lunpath attach DOMAIN --size 2GiB',
        )
      }),
    )
}
