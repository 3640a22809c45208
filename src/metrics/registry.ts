import {createServer, type Server} from 'node:http'
import {collectDefaultMetrics, Gauge, Histogram, Registry} from 'prom-client'
import {StorageError} from '../errors.js'
import type {StepObserver} from '../instrument.js'
import {formatPortal} from '../iqn.js'
import type {Portal} from '../types.js'

/** A source of figures that is read at each scrape. */
export interface Collector {
  name: string
  /** Reads the figures into the registry's families. */
  collect(): Promise<void>
}

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
    help: '1 where the last reading worked; where it is 0, the families of that collector are stale.',
    labelNames: ['collector'],
    registers: [this.registry],
  })
  #server: Server | undefined

  constructor() {
    collectDefaultMetrics({register: this.registry})
  }

  readonly observeStep: StepObserver = ({step, driver, durationMs}) => {
    this.#steps.observe({step, driver}, durationMs / 1000)
  }

  add(collector: Collector): void {
    this.#collectors.push(collector)
  }

  /** The exposition (Prometheus text format 0.0.4), after a reading of all collectors. */
  async text(): Promise<string> {
    await Promise.all(this.#collectors.map(collector => this.#collect(collector)))
    return this.registry.metrics()
  }

  async #collect(collector: Collector): Promise<void> {
    const end = this.#duration.startTimer({collector: collector.name})
    const worked = await collector.collect().then(
      () => 1,
      () => 0,
    )
    end()
    this.#success.set({collector: collector.name}, worked)
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
