import {createServer, type Server} from 'node:http'
import {StorageError} from '../errors.js'
import type {StepObserver} from '../instrument.js'
import {formatPortal} from '../iqn.js'
import {collectDefaultMetrics, Gauge, Histogram, Registry} from '../packages/daemon.js'
import type {Portal} from '../types.js'

/** A source of figures that is read at each scrape. */
export interface Collector {
  name: string
  /** Reads all figures, then sets the registry's families in one go. */
  collect(): Promise<void>
  /** After a reading that failed: takes away what is not known any more. Counters stay, since they never fall. */
  clear(): void
}

// Prometheus itself gives up after 10 s by default.
const deadlineMs = 4_000

// prom-client gives these gauges the ending of a counter, which promtool refuses; they repeat others, by type.
const misnamed = ['nodejs_active_handles_total', 'nodejs_active_requests_total', 'nodejs_active_resources_total']

/** The service's metrics and their HTTP listener, which is apart from the API. */
export class Metrics {
  readonly registry = new Registry()
  readonly #collectors: Collector[] = []
  readonly #steps = new Histogram({
    name: 'lunpath_step_duration_seconds',
    help: 'How long a step of the path took.',
    labelNames: ['step', 'driver'],
    buckets: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
    registers: [this.registry],
  })
  readonly #duration = new Gauge({
    name: 'iscsi_exporter_collector_duration_seconds',
    help: 'How long the last reading took.',
    labelNames: ['collector'],
    registers: [this.registry],
  })
  readonly #success = new Gauge({
    name: 'iscsi_exporter_collector_success',
    help: '1 where the last reading worked; where it is 0, its gauges are left out and its counters stand still.',
    labelNames: ['collector'],
    registers: [this.registry],
  })
  readonly #running = new Map<Collector, Promise<boolean>>()
  readonly #failing = new Set<string>()
  /** Told when a collector begins to fail, with the reason, and with null when it works again. */
  onFailure: ((collector: string, reason: string | null) => void) | undefined
  #reading: Promise<string> | undefined
  #server: Server | undefined

  constructor() {
    collectDefaultMetrics({register: this.registry})
    for (const name of misnamed) this.registry.removeSingleMetric(name)
  }

  readonly observeStep: StepObserver = ({step, driver, durationMs}) => {
    this.#steps.observe({step, driver}, durationMs / 1000)
  }

  add(collector: Collector): void {
    this.#collectors.push(collector)
  }

  /**
   * The exposition (Prometheus text format 0.0.4), after a reading of all collectors; one that has not ended within 4 s
   * counts as failed. Callers at the same time share one reading.
   */
  text(): Promise<string> {
    this.#reading ??= this.#read().finally(() => {
      this.#reading = undefined
    })
    return this.#reading
  }

  async #read(): Promise<string> {
    await Promise.all(this.#collectors.map(collector => this.#collect(collector)))
    return this.registry.metrics()
  }

  async #collect(collector: Collector): Promise<void> {
    const end = this.#duration.startTimer({collector: collector.name})
    const late = AbortSignal.timeout(deadlineMs)
    const worked = await Promise.race([
      this.#run(collector),
      new Promise<false>(resolve => late.addEventListener('abort', () => resolve(false))),
    ])
    end()
    if (!worked) collector.clear()
    if (late.aborted && !worked) this.#tell(collector.name, `it has not ended within ${deadlineMs} ms`)
    if (worked) this.#tell(collector.name, null)
    this.#success.set({collector: collector.name}, worked ? 1 : 0)
  }

  /** A reading that hangs is waited for again, not begun again. */
  #run(collector: Collector): Promise<boolean> {
    const running =
      this.#running.get(collector) ??
      collector
        .collect()
        .then(
          () => true,
          (error: Error) => {
            this.#tell(collector.name, error.message)
            return false
          },
        )
        .finally(() => this.#running.delete(collector))
    this.#running.set(collector, running)
    return running
  }

  #tell(name: string, reason: string | null): void {
    if (!this.onFailure || this.#failing.has(name) === (reason !== null)) return
    if (reason === null) this.#failing.delete(name)
    else this.#failing.add(name)
    this.onFailure(name, reason)
  }

  /** Serves GET /metrics. @throws PORTAL_IN_USE where the port is taken */
  async listen(at: Portal): Promise<void> {
    const server = createServer((request, response) => {
      if (request.method !== 'GET' || request.url?.split('?')[0] !== '/metrics') {
        response.writeHead(404, {'content-type': 'text/plain'}).end('GET /metrics is all there is here\n')
        return
      }
      this.text().then(
        text => response.writeHead(200, {'content-type': this.registry.contentType}).end(text),
        () => response.writeHead(500).end(),
      )
    })
    await new Promise<void>((resolve, reject) => {
      server.once('error', (cause: NodeJS.ErrnoException) =>
        reject(
          new StorageError(
            'PORTAL_IN_USE',
            `/metrics cannot listen on ${formatPortal(at)}: ${cause.message}. Set metrics.listen to another ADDRESS:PORT, or to "" for none`,
            {
              op: 'metrics.listen',
              cause,
            },
          ),
        ),
      )
      server.listen(at.port, at.address, resolve)
    })
    this.#server = server
  }

  async close(): Promise<void> {
    const server = this.#server
    this.#server = undefined
    if (!server) return
    server.closeAllConnections()
    await new Promise(resolve => server.close(resolve))
  }
}
