// What a run of the tests has done so far, from ava's events: which files run, since when, and how each ended.

/** What is looked at of ava's StateChangeEvent. */
export interface RunEvent {
  type: string
  testFile?: string
  forcedExit?: boolean
  /** After type `stats`. */
  stats?: {files: number}
}

export interface EndedFile {
  file: string
  seconds: number
  failed: boolean
}

const failures = new Set([
  'test-failed',
  'hook-failed',
  'uncaught-exception',
  'unhandled-rejection',
  'process-exit',
  'internal-error',
  'missing-ava-import',
  'worker-failed',
])

export class Progress {
  readonly ended: EndedFile[] = []
  /** Of this run; 0 before ava has told. */
  fileCount = 0
  readonly #beganMs = new Map<string, number>()
  readonly #failed = new Set<string>()
  readonly #startMs: number
  /** When files ended in whose places none is seen yet. */
  readonly #freedMs: number[] = []

  constructor(startMs: number) {
    this.#startMs = startMs
  }

  /** @returns the file that has ended by this event */
  take(event: RunEvent, nowMs: number): EndedFile | undefined {
    if (event.stats) this.fileCount = event.stats.files
    const {testFile: file, type} = event
    if (!file) return undefined
    if (!this.#beganMs.has(file)) {
      // A worker that hangs after it has been ended may still say something.
      if (this.ended.some(other => other.file === file)) return undefined
      // A file is heard of when it has been loaded. It began when it got its place, which is at once when that was free.
      this.#beganMs.set(file, this.#freedMs.shift() ?? this.#startMs)
    }
    if (failures.has(type) || event.forcedExit) this.#failed.add(file)
    if (type !== 'worker-finished' && type !== 'worker-failed') return undefined
    const ended = {file, seconds: this.#since(file, nowMs), failed: this.#failed.has(file)}
    this.#beganMs.delete(file)
    this.#freedMs.push(nowMs)
    this.ended.push(ended)
    return ended
  }

  /** Those that are heard of and have not ended. */
  running(nowMs: number): {file: string; seconds: number}[] {
    return [...this.#beganMs.keys()].map(file => ({file, seconds: this.#since(file, nowMs)}))
  }

  slowest(count: number): EndedFile[] {
    return [...this.ended].sort((a, b) => b.seconds - a.seconds).slice(0, count)
  }

  #since(file: string, nowMs: number): number {
    return (nowMs - this.#beganMs.get(file)!) / 1000
  }
}
