/**
 * Every code that a lunpath error can carry, with the HTTP status of the API's answer. Codes are stable; messages may
 * change. Each has a heading in docs/errors.md that says what the operator does next.
 */
export const errorCodes = {
  INVALID_ARGUMENT: 400,
  NAME_INVALID: 400,
  SIZE_INVALID: 400,
  TOKEN_CONFLICT: 409,
  NOT_FOUND: 404,
  VOLUME_NOT_FOUND: 404,
  VOLUME_EXISTS: 409,
  VOLUME_IN_USE: 409,
  VOLUME_IMPORTED: 409,
  VOLUME_MISSING: 409,
  POOL_FULL: 507,
  POOL_UNUSABLE: 500,
  POOL_IN_USE: 409,
  DEVICE_IN_USE: 409,
  EXPORT_NOT_FOUND: 404,
  EXPORT_EXISTS: 409,
  TARGET_EXISTS: 409,
  TARGET_IN_USE: 409,
  TARGET_FAILED: 502,
  TARGET_UNAVAILABLE: 503,
  PORTAL_IN_USE: 409,
  NODE_FOREIGN: 409,
  INITIATOR_FAILED: 502,
  INITIATOR_UNAVAILABLE: 503,
  AUTH_FAILED: 502,
  IDENTITY_MISMATCH: 502,
  DOMAIN_NOT_FOUND: 404,
  DOMAIN_INACTIVE: 409,
  ATTACHMENT_NOT_FOUND: 404,
  ATTACHMENT_EXISTS: 409,
  DISK_TARGET_IN_USE: 409,
  DETACH_PENDING: 409,
  COMPUTE_FAILED: 502,
  COMPUTE_UNAVAILABLE: 503,
  CONFLICT: 409,
  TIMEOUT: 504,
  CANCELLED: 499,
  STORE_CORRUPT: 500,
  STORE_TOO_NEW: 500,
  STORE_LOCKED: 500,
  STORE_FAILED: 500,
  DAEMON_UNREACHABLE: 503,
  DAEMON_STARTING: 503,
  COMMAND_FAILED: 502,
  DEPENDENCY_MISSING: 501,
  UNSUPPORTED: 501,
  INTERNAL: 500,
} as const

export type ErrorCode = keyof typeof errorCodes

/**
 * Failures that are final: the request itself is refused, and no retry of it can succeed. A token keeps its answer only where
 * that is a success or one of these. All other failures depend on the world (a daemon that is down, a name that is taken, a
 * client that went away), and there a retry with the same token does the work.
 */
const finalCodes: ReadonlySet<string> = new Set<ErrorCode>([
  'INVALID_ARGUMENT',
  'NAME_INVALID',
  'SIZE_INVALID',
  'VOLUME_IMPORTED',
  'UNSUPPORTED',
])

/** True where a token keeps this failure. */
export function isFinal(code: string): boolean {
  return finalCodes.has(code)
}

export interface ErrorDetails {
  /** The step that failed: `volume.create`, `target.export`, `compute.attach`. */
  op?: string
  /** Facts for programs: ids, names, numbers. Never a secret. */
  info?: Record<string, unknown>
  /** The original fact: an errno with its system call, tgtd's error, libvirt's code and domain. */
  cause?: unknown
}

/** A failure that the operator can act on. `code` is stable, the message is for people, `cause` keeps the source. */
export class StorageError extends Error {
  readonly code: ErrorCode
  readonly op: string | undefined
  readonly info: Record<string, unknown>

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : {cause: details.cause})
    this.name = 'StorageError'
    this.code = code
    this.op = details.op
    this.info = details.info ?? {}
  }

  /** HTTP status of the API's answer. */
  get status(): number {
    return errorCodes[this.code]
  }
}

/** True for a StorageError with one of these codes. */
export function hasCode(error: unknown, ...codes: ErrorCode[]): error is StorageError {
  return error instanceof StorageError && codes.includes(error.code)
}

/** The native facts of an error (errno, libvirt code …) in a form that can be put into JSON. */
export function nativeFacts(error: unknown): Record<string, unknown> | undefined {
  if (!(error instanceof Error)) return undefined
  const facts: Record<string, unknown> = {message: error.message}
  for (const key of ['code', 'errno', 'syscall', 'domain'] as const) {
    const value = (error as unknown as Record<string, unknown>)[key]
    if (typeof value === 'string' || typeof value === 'number') facts[key] = value
  }
  return facts
}

/** For catch(): undefined in place of an error of the system with one of these codes, as `ENOENT`; throws any other. */
export function ignoreErrno(...codes: string[]): (error: NodeJS.ErrnoException) => undefined {
  return error => {
    if (!codes.includes(error.code!)) throw error
    return undefined
  }
}
