import {StorageError} from './errors.js'

const units: Record<string, number> = {
  '': 1,
  b: 1,
  k: 2 ** 10,
  m: 2 ** 20,
  g: 2 ** 30,
  t: 2 ** 40,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
  tib: 2 ** 40,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  tb: 1e12,
}

/** Bytes in a sector: every size in lunpath is a multiple of it. */
export const sectorBytes = 512

/** Checks a size in bytes: a positive multiple of 512 that a JS number holds exactly. @throws SIZE_INVALID */
export function checkSize(bytes: number): number {
  if (!Number.isSafeInteger(bytes) || bytes <= 0) {
    throw new StorageError('SIZE_INVALID', `A size must be a positive whole number of bytes, not ${bytes}`, {
      info: {sizeBytes: bytes},
    })
  }
  if (bytes % sectorBytes !== 0) throw noSectors(bytes)
  return bytes
}

function noSectors(bytes: number, remedy = ''): StorageError {
  return new StorageError(
    'SIZE_INVALID',
    `A size must be a multiple of ${sectorBytes} bytes (one sector), and ${bytes} is not${remedy}`,
    {info: {sizeBytes: bytes}},
  )
}

/**
 * Reads a size as people write it: `2GiB`, `2G` (the same), `512MB` (powers of ten), `4096`.
 * @throws SIZE_INVALID
 */
export function parseSize(text: string): number {
  const match = /^(-?\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(text.trim())
  const unit = match ? units[match[2]!.toLowerCase()] : undefined
  if (!match || unit === undefined) {
    const near = nearestSpelling(text)
    throw new StorageError(
      'SIZE_INVALID',
      `${JSON.stringify(text)} is not a size: expected a number with an optional unit, as 2GiB or 512MB${near === undefined ? '' : `. Did you mean ${near}?`}`,
      {info: {size: text}},
    )
  }
  const bytes = Number(match[1]) * unit
  if (bytes > 0 && bytes % sectorBytes !== 0 && Number.isSafeInteger(Math.ceil(bytes))) {
    throw noSectors(bytes, `: give ${nearestSizes(text, bytes).join(' or ')}`)
  }
  return checkSize(bytes)
}

/** For what is written as other programs write it: `5Gi`, `10 gigabytes`, `1,5G`, `2P`. */
function nearestSpelling(text: string): string | undefined {
  const [, number, decimals = '', letter] = /^(\d+)(?:[.,](\d+))?\s*([kmgtp])[a-z]*$/i.exec(text.trim()) ?? []
  if (number === undefined) return undefined
  const value = decimals === '' ? number : `${number}.${decimals}`
  const unit = letter!.toLowerCase()
  const near = unit === 'p' ? `${Number(value) * 1024}TiB` : `${value}${unit.toUpperCase()}iB`
  return isSize(near) ? near : undefined
}

/** Whole sectors near a size: the same number in units of 1024, where it was in units of 1000, and the next one. */
function nearestSizes(text: string, bytes: number): string[] {
  const binary = text.trim().replace(/([kmgt])b$/i, (_, letter: string) => `${letter.toUpperCase()}iB`)
  const next = String(Math.ceil(bytes / sectorBytes) * sectorBytes)
  return binary !== text.trim() && isSize(binary) ? [binary, next] : [next]
}

function isSize(text: string): boolean {
  const [, number, unit] = /^(\d+(?:\.\d+)?)([a-z]*)$/i.exec(text) ?? []
  const bytes = Number(number) * (units[unit?.toLowerCase() ?? ''] ?? Number.NaN)
  return Number.isSafeInteger(bytes) && bytes > 0 && bytes % sectorBytes === 0
}

/** Bytes as people read them: `2 GiB`, `1.5 GiB`, `512 B`. */
export function formatSize(bytes: number): string {
  const names = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']
  let value = bytes
  let index = 0
  while (value >= 1024 && index < names.length - 1) {
    value /= 1024
    index++
  }
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${names[index]}`
}
