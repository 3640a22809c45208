/** What a job does, in fio's words (fio(1), readwrite=). */
export const patterns = [
  'read',
  'write',
  'trim',
  'randread',
  'randwrite',
  'randtrim',
  'rw',
  'readwrite',
  'randrw',
] as const
export type Pattern = (typeof patterns)[number]

export const defaultPattern: Pattern & 'randread' = 'randread'
