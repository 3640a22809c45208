import {join} from 'node:path'
import {getSystemErrorMap} from 'node:util'
import {StorageError} from '../errors.js'
import {loadAddon} from '../native.js'

/** One system call on configfs. Paths are below its root; errors whose names are `tolerated` do not end the batch. */
export interface Operation {
  call: 'mkdir' | 'rmdir' | 'write' | 'symlink' | 'unlink' | 'read' | 'list' | 'links'
  path: string
  /** What `write` writes; it may be a secret and is in no error. Where `symlink` points, below the root. */
  value?: string
  tolerated?: string[]
}

/** What came of it. `code`: the name of a tolerated error; empty where it succeeded. */
export interface Outcome {
  code: string
  /** `read`: the content without the newline at its end. `list`: directories. `links`: name, target, name, target … */
  texts: string[]
}

interface NativeRunner {
  run(
    id: number,
    operations: Operation[],
  ): Promise<{code?: string; errno?: number; syscall?: string; texts: string[]}[]>
  stop(id: number): number
  close(): void
}

/** The operations as configfs has them: a directory is an object, a file an attribute, a link a reference. */
export const op = {
  /** Fails where the directory is there. */
  mkdir: (path: string): Operation => ({call: 'mkdir', path}),
  ensureDirectory: (path: string): Operation => ({call: 'mkdir', path, tolerated: ['EEXIST']}),
  write: (path: string, value: string, tolerated?: string[]): Operation => ({call: 'write', path, value, tolerated}),
  symlink: (path: string, value: string): Operation => ({call: 'symlink', path, value}),
  rmdir: (path: string): Operation => ({call: 'rmdir', path, tolerated: ['ENOENT']}),
  unlink: (path: string): Operation => ({call: 'unlink', path, tolerated: ['ENOENT']}),
  /** ENODEV is what an attribute says whose object has just gone. */
  read: (path: string): Operation => ({call: 'read', path, tolerated: ['ENOENT', 'ENODEV']}),
  list: (path: string): Operation => ({call: 'list', path, tolerated: ['ENOENT']}),
  links: (path: string): Operation => ({call: 'links', path, tolerated: ['ENOENT']}),
}

/** Where configfs is mounted on every system that we know (the kernel's Documentation/filesystems/configfs.rst). */
export const configfsRoot = '/sys/kernel/config'

/** A system call that failed, or that did not end in time (ETIMEDOUT). */
export class ConfigfsError extends Error {
  readonly code: string
  readonly errno: number
  readonly syscall: string
  /** Below the root. */
  readonly path: string
  /** The position of the operation in its batch: those before it took effect. */
  readonly index: number

  constructor(
    {path}: Operation,
    index: number,
    {code, errno, syscall}: {code: string; errno: number; syscall: string},
  ) {
    super(`${syscall} ${path}: ${getSystemErrorMap().get(-errno)?.[1] ?? code}`)
    this.name = 'ConfigfsError'
    this.code = code
    this.errno = errno
    this.syscall = syscall
    this.path = path
    this.index = index
  }
}

const etimedout = 110

/**
 * Batches of system calls on configfs. Each batch is one job on a thread of its own, so that nothing here waits for the
 * kernel, and batches for different objects run at once. Values are written as they are: who calls has checked them.
 */
export class Configfs {
  readonly #root: string
  readonly #timeoutMs: number
  readonly #networkNamespace: string
  #runner: NativeRunner | undefined
  #lastId = 0

  /** `networkNamespace`: path of the one in which all is done, and so the one of the portals. */
  constructor({
    root = configfsRoot,
    timeoutMs = 30_000,
    networkNamespace = '',
  }: {root?: string; timeoutMs?: number; networkNamespace?: string} = {}) {
    this.#root = root
    this.#networkNamespace = networkNamespace
    this.#timeoutMs = timeoutMs
  }

  /**
   * Runs the operations in order and gives their outcomes. @throws ConfigfsError at the first that fails with an error
   * that it does not tolerate; ETIMEDOUT where one does not end: it may still take effect, those behind it do not.
   * TARGET_UNAVAILABLE where nothing was begun: no thread or no memory for it, no such network namespace
   */
  async run(operations: Operation[]): Promise<Outcome[]> {
    if (operations.length === 0) return []
    this.#runner ??= new (loadAddon<{Runner: new (network: string) => NativeRunner}>('configfs').Runner)(
      this.#networkNamespace,
    )
    const runner = this.#runner
    const id = ++this.#lastId
    const absolute = operations.map(operation => ({
      ...operation,
      path: join(this.#root, operation.path),
      ...(operation.call === 'symlink' && {value: join(this.#root, operation.value!)}),
    }))
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        const index = Math.max(0, runner.stop(id))
        const {call} = operations[index]!
        reject(new ConfigfsError(operations[index]!, index, {code: 'ETIMEDOUT', errno: etimedout, syscall: call}))
      }, this.#timeoutMs)
    })
    try {
      const outcomes = await Promise.race([runner.run(id, absolute).catch(refuse), late])
      const last = outcomes.at(-1)
      const index = outcomes.length - 1
      if (last?.code && !operations[index]!.tolerated?.includes(last.code)) {
        throw new ConfigfsError(operations[index]!, index, {
          code: last.code,
          errno: last.errno!,
          syscall: last.syscall!,
        })
      }
      return outcomes.map(({code = '', texts}, at) => ({
        code,
        texts: operations[at]!.call === 'read' ? texts.map(text => text.replace(/\n$/, '')) : texts,
      }))
    } finally {
      clearTimeout(timer)
    }
  }

  /** Later batches are refused. What hangs in the kernel keeps nothing waiting. */
  close(): void {
    this.#runner?.close()
  }
}

function refuse(cause: Error & {code?: string}): never {
  if (cause.code === 'ERR_CLOSED') throw cause
  throw new StorageError('TARGET_UNAVAILABLE', `The kernel's target cannot be used: ${cause.message}`, {
    op: 'target',
    info: {errno: cause.code},
    cause,
  })
}

/** The operations that take back what these have made, in reverse. What was written goes with the object. */
export function undoing(operations: Operation[]): Operation[] {
  return operations
    .flatMap(({call, path, tolerated}) => {
      if (call === 'symlink') return [op.unlink(path)]
      return call === 'mkdir' && !tolerated?.includes('EEXIST') ? [op.rmdir(path)] : []
    })
    .reverse()
}
