import {fsync} from 'node:fs'
import {promisify} from 'node:util'

const fsyncFd = promisify(fsync)

/**
 * Makes changes of directory entries durable, many with one fsync: a call that arrives while an fsync runs shares the
 * next one with all others that arrive meanwhile. It never shares the running one, which may have begun before the
 * caller's change.
 */
export class DirectorySync {
  readonly #fd: number
  #running: Promise<void> | undefined
  #next: Promise<void> | undefined

  /** `fd`: an open descriptor of the directory, which stays the caller's to close. */
  constructor(fd: number) {
    this.#fd = fd
  }

  /** Resolves when all changes made before the call are durable. */
  sync(): Promise<void> {
    if (this.#running === undefined) return this.#start()
    this.#next ??= this.#running.then(
      () => this.#start(),
      () => this.#start(),
    )
    return this.#next
  }

  #start(): Promise<void> {
    this.#next = undefined
    const running = fsyncFd(this.#fd).finally(() => {
      if (this.#running === running) this.#running = undefined
    })
    this.#running = running
    return running
  }
}
