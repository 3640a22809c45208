import type {FastifyServerOptions} from 'fastify'
import {AjvCompiler, SerializerSelector} from '../packages/daemon.js'

type Compilers = NonNullable<NonNullable<FastifyServerOptions['schemaController']>['compilersFactory']>

// What fastify compiles has no narrower type.
type Compiled = ((data: unknown, ...rest: unknown[]) => unknown) & {errors?: unknown}
type Factory = (schemas: unknown, options: unknown) => (route: unknown) => Compiled

/**
 * fastify's own compilers of schemas, but for when they work: a route's validator and serializer are made for its first
 * request. All at once they keep the daemon from being ready for 0.2 s, in which no export that a target has lost comes
 * back.
 */
export function lazyCompilers(): Compilers {
  return {
    buildValidator: lazily(AjvCompiler() as Factory) as Compilers['buildValidator'],
    buildSerializer: lazily(SerializerSelector() as Factory) as Compilers['buildSerializer'],
  }
}

function lazily(factory: Factory): Factory {
  return (schemas, options) => route => {
    let compiled: Compiled | undefined
    const lazy: Compiled = (data, ...rest) => {
      compiled ??= factory(schemas, options)(route)
      const result = compiled(data, ...rest)
      // A validator leaves what it found on itself.
      lazy.errors = compiled.errors
      return result
    }
    return lazy
  }
}
