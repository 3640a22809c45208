import {StorageError} from '../errors.js'

/** LVM's own limit for a name is 127 (lvm(8)); a device's name holds the group's and the volume's, with each `-` twice. */
const maxNameLength = 63

/** `lvm` splits a line into at most this many words (MAX_ARGS in lvm2's tools/lvm2cmdline.h), the command being one. */
const maxWords = 64

/**
 * A name of a volume group or a thin pool that is handed to LVM: letters, digits, `_`, `.`, `+` and `-`, not beginning
 * with `-` or `.`, as lvm(8) has it. @throws NAME_INVALID
 */
export function checkLvmName(name: string, what: 'volume group' | 'thin pool'): string {
  if (name.length <= maxNameLength && /^[A-Za-z0-9_+][A-Za-z0-9_.+-]*$/.test(name)) return name
  throw new StorageError(
    'NAME_INVALID',
    `${JSON.stringify(name.slice(0, 80))} is no name for a ${what}: 1 to ${maxNameLength} letters, digits, "_", ".", "+" or "-", beginning with none of the last three but "+"`,
    {info: {name: name.slice(0, 256)}},
  )
}

/**
 * One line for the `lvm` shell. The shell knows quotes and comments; no word of ours needs them, so a word outside of a
 * plain set of characters is refused and nothing is ever quoted. `--yes` comes first: a question would be answered by
 * the next line.
 */
export function shellLine([command, ...words]: readonly string[]): string {
  if (command === undefined || !/^[a-z]+$/.test(command)) {
    throw new TypeError(`${JSON.stringify(command)} is no command of LVM`)
  }
  const odd = words.find(word => !/^[A-Za-z0-9_.+:=/@,%-]+$/.test(word))
  if (odd !== undefined) throw new TypeError(`${JSON.stringify(odd)} cannot be a word of an LVM command`)
  if (words.length + 2 > maxWords) throw new TypeError(`An LVM command has at most ${maxWords} words`)
  return [command, '--yes', ...words].join(' ')
}
