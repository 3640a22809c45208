import {existsSync, readdirSync, readFileSync} from 'node:fs'

/**
 * The path, inside the machine, of its disk of that number, which begins at 1: /dev/vda under QEMU, /dev/ubda under User
 * Mode Linux.
 */
export function diskOfLab(number: number): string {
  const serial = `lab-disk-${number}`
  const block = '/sys/block'
  const name = readdirSync(block).find(device => {
    const file = `${block}/${device}/serial`
    return existsSync(file) && readFileSync(file, 'utf8').trim() === serial
  })
  if (!name) throw new Error(`The lab has no disk ${number}: its options, disksBytes, say how many there are`)
  return `/dev/${name}`
}
