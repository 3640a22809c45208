import {StorageError} from '../errors.js'
import {parseSize, sectorBytes} from '../size.js'

/** How one source writes sizes and times: a job file of fio differs from lunpath's own words. */
export interface Grammar {
  /** Bytes; 0 is allowed. @throws SIZE_INVALID */
  size(text: string): number
}

export const ourGrammar: Grammar = {size: text => (/^0\s*[a-z]*$/i.test(text.trim()) ? 0 : parseSize(text))}

const fioUnits: Record<string, number> = {}
for (const [power, letter] of ['', 'k', 'm', 'g', 't', 'p'].entries()) {
  // With kb_base=1024, fio's default, "kib" is a thousand and all else 1,024 (parse.c, __get_mult_bytes; tried with 3.33).
  for (const ending of ['', 'b', 'i']) fioUnits[`${letter}${ending}`] = 1024 ** power
  fioUnits[`${letter}ib`] = 1000 ** power
}
delete fioUnits.i
delete fioUnits.ib

export const fioGrammar: Grammar = {
  size(text) {
    const bytes = fioNumber(text)
    if (bytes === undefined)
      throw new StorageError('SIZE_INVALID', `${JSON.stringify(text)} is not a size in fio's grammar`, {
        info: {size: text},
      })
    if (bytes % sectorBytes !== 0)
      throw new StorageError('SIZE_INVALID', `${text} is ${bytes} bytes, which is no multiple of ${sectorBytes}`, {
        info: {size: text},
      })
    return bytes
  },
}

/** A whole number as fio writes it: decimal or hexadecimal, with a unit. Undefined for all else, and beyond 2^53. */
export function fioNumber(text: string): number | undefined {
  const match = /^(0x[0-9a-f]+|\d+)([a-z]*)$/i.exec(text.trim())
  const unit = match ? fioUnits[match[2]!.toLowerCase()] : undefined
  const number = match && unit !== undefined ? Number(match[1]) * unit : undefined
  return Number.isSafeInteger(number) ? number : undefined
}

/** `40%` as 40: from 1 to `most`. Undefined where the text is no such percentage. */
export function parsePercent(text: string, most = 100): number | undefined {
  const [, digits] = /^(\d{1,9})\s*%$/.exec(text.trim()) ?? []
  const percent = Number(digits)
  return percent >= 1 && percent <= most ? percent : undefined
}

const microseconds: Record<string, number> = {
  us: 1,
  usec: 1,
  ms: 1e3,
  msec: 1e3,
  s: 1e6,
  sec: 1e6,
  m: 60e6,
  min: 60e6,
  h: 3600e6,
  d: 86_400e6,
}

/** Microseconds of a time in fio's words: `30`, `500ms`, `2m`. A number alone is in `unit`. Undefined where it is none. */
export function parseTime(text: string, unit: 's' | 'us'): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(text.trim())
  const factor = match && microseconds[match[2]!.toLowerCase() || unit]
  return factor ? Number(match[1]) * factor : undefined
}
