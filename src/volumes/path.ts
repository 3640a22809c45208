import {isAbsolute, normalize} from 'node:path'
import {StorageError} from '../errors.js'

/**
 * Returns `path` where every room can carry it: absolute, normal (no `..`, no `//`), no control characters, no comma.
 * tgt takes its parameters as one `key=value,key=value` string that has no escape, and libvirt's XML has no control
 * characters. @throws NAME_INVALID
 */
export function checkBackingPath(path: string): string {
  const reason = objection(path)
  if (reason === undefined) return path
  throw new StorageError('NAME_INVALID', `The path ${JSON.stringify(path.slice(0, 200))} ${reason}`, {
    info: {path: path.slice(0, 4096)},
  })
}

function objection(path: string): string | undefined {
  if (!isAbsolute(path)) return 'is not absolute'
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is refused
  if (/[\u0000-\u001f\u007f\ufffd]/.test(path)) return 'holds a control character or bytes that are not UTF-8'
  if (path.includes(',')) return 'holds a comma, which a tgt parameter cannot carry'
  if (Buffer.byteLength(path) > 1024) return 'is longer than 1024 bytes'
  const plain = normalize(path)
  if (plain !== path) return `is not in its normal form ${JSON.stringify(plain.slice(0, 200))}`
  return undefined
}
