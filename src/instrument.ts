import type {Logger} from 'pino'
import {hasCode} from './errors.js'

/** Told of each step's end. */
export type StepObserver = (step: {step: string; driver: string; durationMs: number; error: unknown}) => void

/**
 * Wraps the named methods of a driver with a timer and a log line, so that drivers know nothing of metrics and logs.
 * Everything else of the driver is passed through.
 */
export function instrument<D extends {readonly name: string}>(
  driver: D,
  room: string,
  methods: readonly (keyof D & string)[],
  observe: StepObserver,
  log: Logger,
): D {
  const timed = new Set<string | symbol>(methods)
  return new Proxy(driver, {
    get(target, property) {
      const member = Reflect.get(target, property, target) as unknown
      if (typeof member !== 'function') return member
      if (!timed.has(property)) return member.bind(target)
      return async (...args: unknown[]) => {
        const started = process.hrtime.bigint()
        const end = (error: unknown) => {
          const durationMs = Number(process.hrtime.bigint() - started) / 1e6
          const step = `${room}.${String(property)}`
          observe({step, driver: target.name, durationMs, error})
          if (error && !hasCode(error, 'DETACH_PENDING'))
            log.error({step, driver: target.name, durationMs, err: error}, 'step failed')
          else log.debug({step, driver: target.name, durationMs}, 'step')
        }
        try {
          const result = await (member as (...args: unknown[]) => unknown).apply(target, args)
          end(null)
          return result
        } catch (error) {
          end(error)
          throw error
        }
      }
    },
  })
}
