// The last line of a terminal, which is there until something else is written.
type Write = typeof process.stdout.write

export class StatusLine {
  readonly #write: Write
  readonly #undo: (() => void)[] = []
  #shown = false

  constructor() {
    const {stdout, stderr} = process
    this.#write = stdout.write.bind(stdout) as Write
    for (const stream of [stdout, stderr]) {
      if (!stream.isTTY) continue
      const {write} = stream
      stream.write = ((...args: Parameters<Write>) => {
        this.#erase()
        return Reflect.apply(write, stream, args)
      }) as Write
      this.#undo.push(() => {
        stream.write = write
      })
    }
  }

  show(text: string): void {
    this.#erase()
    // What is longer than the line would be wrapped, and not be erased.
    this.#write(text.slice(0, (process.stdout.columns || 80) - 1))
    this.#shown = true
  }

  end(): void {
    this.#erase()
    for (const undo of this.#undo.splice(0)) undo()
  }

  #erase(): void {
    if (!this.#shown) return
    this.#shown = false
    // To the line's first column, and the line is empty (ECMA-48, EL).
    this.#write('\r\x1b[2K')
  }
}
