import {formatNs} from '../bench/report.js'

export interface StepReport {
  step: string
  durationMs: number
  /** What the step found, for programs. */
  facts: Record<string, unknown>
}

export type Announce = (report: StepReport, line: string) => void

/** What a step says when it has ended: a sentence for people, facts for programs. */
export interface StepResult {
  line: string
  facts?: Record<string, unknown>
}

/** Runs steps one after the other, each with its duration; after a cancellation the next one does not begin. */
export class Stepper {
  readonly reports: StepReport[] = []
  readonly #signal: AbortSignal
  readonly #announce: Announce

  constructor(signal: AbortSignal, announce: Announce) {
    this.#signal = signal
    this.#announce = announce
  }

  async run(step: string, work: () => Promise<StepResult>): Promise<void> {
    this.#signal.throwIfAborted()
    const started = process.hrtime.bigint()
    const {line, facts = {}} = await this.#unlessCancelled(work())
    const report = {step, durationMs: Number(process.hrtime.bigint() - started) / 1e6, facts}
    this.reports.push(report)
    this.#announce(report, line)
  }

  async #unlessCancelled<T>(work: Promise<T>): Promise<T> {
    let onAbort: (() => void) | undefined
    const cancelled = new Promise<never>((_resolve, reject) => {
      onAbort = () => reject(this.#signal.reason)
      this.#signal.addEventListener('abort', onAbort, {once: true})
    })
    work.catch(() => {})
    return Promise.race([work, cancelled]).finally(() => this.#signal.removeEventListener('abort', onAbort!))
  }
}

export function formatStep({step, durationMs}: StepReport, line: string): string {
  return `${step.padEnd(12)} ${formatNs(durationMs * 1e6).padStart(8)}  ${line}`
}
