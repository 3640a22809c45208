import {readdir, rmdir, unlink, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {Configfs, configfsRoot, op} from '../../src/targets/configfs.js'

/** Takes away all that the kernel's target has, whoever made it: what a reboot or `targetcli clearconfig` leaves. */
export async function wipe(): Promise<void> {
  const target = join(configfsRoot, 'target')
  const names = async (path: string) => {
    const entries = await readdir(path, {withFileTypes: true}).catch(() => [])
    return entries.filter(entry => entry.isDirectory()).map(({name}) => join(path, name))
  }
  const links = async (path: string) => {
    const entries = await readdir(path, {withFileTypes: true})
    return entries.filter(entry => entry.isSymbolicLink()).map(({name}) => join(path, name))
  }
  const linked = async (path: string) => {
    for (const link of await links(path)) await unlink(link)
    await rmdir(path)
  }
  for (const iqn of (await names(join(target, 'iscsi'))).filter(path => path.includes('/iqn.'))) {
    for (const group of (await names(iqn)).filter(path => path.includes('/tpgt_'))) {
      await writeFile(join(group, 'enable'), '0').catch(() => undefined)
      for (const portal of await names(join(group, 'np'))) await rmdir(portal)
      for (const rule of await names(join(group, 'acls'))) {
        for (const lun of (await names(rule)).filter(path => path.includes('/lun_'))) await linked(lun)
        await rmdir(rule)
      }
      for (const lun of await names(join(group, 'lun'))) await linked(lun)
      await rmdir(group)
    }
    await rmdir(iqn)
  }
  for (const hba of (await names(join(target, 'core'))).filter(path => /\/(iblock|fileio)_\d+$/.test(path))) {
    for (const backstore of await names(hba)) await rmdir(backstore)
    await rmdir(hba)
  }
}

/** All targets and backstores that configfs has, by their names. */
export async function present(): Promise<string[]> {
  const target = join(configfsRoot, 'target')
  const iqns = (await readdir(join(target, 'iscsi'))).filter(name => name.startsWith('iqn.'))
  const hbas = (await readdir(join(target, 'core'))).filter(name => /^(iblock|fileio)_/.test(name))
  const backstores = await Promise.all(hbas.map(hba => readdir(join(target, 'core', hba))))
  return [...iqns, ...backstores.flat().filter(name => !/^hba_(info|mode)$/.test(name))]
}

/** A target as targetcli makes it, with a backstore in the first HBA. */
export async function makeForeignTarget({iqn, path}: {iqn: string; path: string}): Promise<void> {
  const configfs = new Configfs()
  const backstore = 'target/core/fileio_0/foreign'
  const group = `target/iscsi/${iqn}/tpgt_1`
  await configfs.run([
    op.ensureDirectory('target/core/fileio_0'),
    op.mkdir(backstore),
    op.write(`${backstore}/control`, `fd_dev_name=${path},fd_dev_size=16777216`),
    op.write(`${backstore}/udev_path`, path),
    op.write(`${backstore}/enable`, '1'),
    op.mkdir(`target/iscsi/${iqn}`),
    op.mkdir(group),
    op.mkdir(`${group}/lun/lun_0`),
    op.symlink(`${group}/lun/lun_0/foreign`, backstore),
    op.write(`${group}/enable`, '1'),
  ])
  configfs.close()
}
