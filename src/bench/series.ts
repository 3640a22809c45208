import type {Histogram, NativeSample} from './native.js'
import {responseOf, type SeriesPoint} from './result.js'

const mostPoints = 1000

/**
 * The time series of a run: one point for each sample, or for as many as keep it at about a thousand points. Samples are
 * put together by merging their histograms, so that a percentile is that of the interval and no mean of percentiles.
 */
export class SeriesRecorder {
  readonly points: SeriesPoint[] = []
  readonly #newHistogram: () => Histogram
  readonly #leastNs: number
  readonly #share: number
  #open: {point: SeriesPoint; latency: Histogram; flushes: Histogram | undefined} | undefined

  /** `runMs` undefined: it is not known how long the run lasts. Then intervals grow with it: each a hundredth of what has passed. */
  constructor(newHistogram: () => Histogram, {runMs, sampleMs}: {runMs: number | undefined; sampleMs: number}) {
    this.#newHistogram = newHistogram
    this.#leastNs = Math.max(sampleMs, (runMs ?? 0) / mostPoints) * 1e6
    this.#share = runMs === undefined ? 1 / 100 : 0
  }

  add({fromNs, toNs, phase, total}: NativeSample): void {
    if (this.#open && this.#open.point.phase !== phase) this.end()
    this.#open ??= {
      point: {
        fromSeconds: fromNs / 1e9,
        toSeconds: 0,
        phase,
        ios: 0,
        bytes: 0,
        errors: 0,
        p50Ns: 0,
        p99Ns: 0,
        maxNs: 0,
      },
      latency: this.#newHistogram(),
      flushes: total.flush && this.#newHistogram(),
    }
    const {point, latency, flushes} = this.#open
    point.toSeconds = toNs / 1e9
    point.errors += total.errors
    for (const {ios, bytes} of Object.values(total.directions)) {
      point.ios += ios
      point.bytes += bytes
    }
    latency.merge(responseOf(total, this.#newHistogram))
    if (total.flush) flushes?.merge(total.flush.response)
    // Half a sample of slack: ticks come a little early and late.
    const intervalNs = Math.max(this.#leastNs, fromNs * this.#share)
    if ((point.toSeconds - point.fromSeconds) * 1e9 >= intervalNs * 0.95) this.end()
  }

  /** Closes the interval that is open. */
  end(): void {
    if (!this.#open) return
    const {point, latency, flushes} = this.#open
    this.#open = undefined
    point.p50Ns = latency.percentile(50)
    point.p99Ns = latency.percentile(99)
    point.maxNs = latency.maxNs
    if (flushes)
      point.flush = {
        count: flushes.count,
        p50Ns: flushes.percentile(50),
        p99Ns: flushes.percentile(99),
        maxNs: flushes.maxNs,
      }
    this.points.push(point)
  }
}
