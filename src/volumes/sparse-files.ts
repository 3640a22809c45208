import {loadAddon} from '../native.js'

interface FileAddon {
  /** `files` is name, size in bytes, name, size …; answers what failed, by file. */
  FileMaker: new () => {createSparse(directory: string, files: (string | number)[]): Promise<(Error | undefined)[]>}
}

interface Waiting {
  name: string
  sizeBytes: number
  settle: (error: Error | undefined) => void
}

/**
 * Makes sparse files in one directory, each durable with its name. Those that are asked for while others are in the
 * making go together into the next round, which costs the disk as much as a single one does.
 */
export class SparseFiles {
  readonly #directory: string
  readonly #maker = new (loadAddon<FileAddon>('file').FileMaker)()
  #waiting: Waiting[] = []
  #making = false

  constructor(directory: string) {
    this.#directory = directory
  }

  /** @throws the errno of what failed, EEXIST where the name is taken. Nothing of it is there then. */
  create(name: string, sizeBytes: number): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({name, sizeBytes, settle: error => (error ? reject(error) : resolve())})
      if (!this.#making) void this.#makeAll()
    })
  }

  async #makeAll(): Promise<void> {
    this.#making = true
    while (this.#waiting.length > 0) {
      const round = this.#waiting
      this.#waiting = []
      const files = round.flatMap(({name, sizeBytes}) => [name, sizeBytes])
      const failures = await this.#maker.createSparse(this.#directory, files).catch(error => round.map(() => error))
      round.forEach(({settle}, index) => {
        settle(failures[index])
      })
    }
    this.#making = false
  }
}
