import type {FastifyInstance, FastifyReply, FastifyRequest} from 'fastify'
import {ownerOf, proveWritable, resolveTargets} from '../../attach/bench-targets.js'
import {type BenchJob, settleJob} from '../../bench/job.js'
import {JobSchema, type JobSpec} from '../../bench/job-schema.js'
import type {RoundOptions} from '../../bench/rounds.js'
import {type BenchRun, type StartOptions, start} from '../../bench/run.js'
import type {RunningBench} from '../../bench/running.js'
import {untilSteady} from '../../bench/steady-run.js'
import {sweep} from '../../bench/sweep.js'
import {StorageError} from '../../errors.js'
import type {Service} from '../../service.js'
import type {KeptReport} from '../../state/bench-results.js'
import {answerInLines, formOf, lineSender, type SendLine} from '../lines.js'
import {LabelQuery} from '../schema.js'
import {askedOfLongWork, whenGone, whenStopping} from '../server.js'

/** Benchmarks: run one, look on, and what is kept of them. */
export function benchRoutes({operations, benches, benchResults}: Service) {
  const {rooms} = operations

  return async (api: FastifyInstance) => {
    api.post<{Body: JobSpec}>('/bench', {schema: {body: JobSchema}}, async (request, reply) => {
      const spec = request.body
      const {signal} = askedOfLongWork(request, reply)
      const {targets, facts, written} = resolveTargets(rooms, spec)
      const unlock = operations.claim(...written.map(({volume}) => volume.id))
      try {
        for (const one of written) await proveWritable(rooms, one)
        const options: StartOptions = {signal, facts, ownedBy: (path, stats) => ownerOf(rooms, path, stats)}
        const job = jobOf(spec, targets)
        settleJob(job)
        await answerInLines(reply, formOf(request), sendLine => run(spec, job, options, sendLine))
      } finally {
        unlock()
      }
    })

    api.get('/bench/running', async () => benches.list())
    api.get('/bench/events', async (request, reply) => watchAll(request, reply))

    api.get<{Querystring: {label?: string}}>('/bench/results', {schema: {querystring: LabelQuery}}, async ({query}) =>
      benchResults.list(query.label),
    )
    api.get<{Params: {id: string}}>('/bench/results/:id', async ({params}) => benchResults.read(params.id))
    api.delete<{Params: {id: string}}>('/bench/results/:id', async ({params}, reply) => {
      await benchResults.delete(params.id)
      return reply.status(204).send()
    })
  }

  /** Samples go out as they come; a client that is slow to read misses some. */
  async function run(spec: JobSpec, job: BenchJob, options: StartOptions, sendLine: SendLine) {
    const watched: Promise<void>[] = []
    const watch = (run: BenchRun, step: string) => {
      const name = spec.name ?? 'bench'
      watched.push(benches.watch(run, {name, step}, sample => sendLine({sample})))
    }
    const onRun: RoundOptions['onRun'] = (run, step) => {
      sendLine({step})
      watch(run, step.label)
    }
    const report = await measure(spec, job, {...options, onRun}, run => watch(run, ''))
    await Promise.all(watched)
    const id = spec.keep === false ? null : await benchResults.keep(report, spec.label ?? null)
    return {id, ...report}
  }

  /** Samples of all benchmarks, as server-sent events, until the client goes, or until it does not read any more. */
  function watchAll(request: FastifyRequest, reply: FastifyReply): void {
    const {sendLine} = lineSender(reply, 'events')
    const show = (value: object) => {
      if (!sendLine(value)) reply.raw.destroy()
    }
    const onSample = (running: RunningBench) => show({sample: running})
    const onEnd = (ended: Pick<RunningBench, 'number' | 'name'>) => show({end: ended})
    show({running: benches.list()})
    benches.on('sample', onSample)
    benches.on('end', onEnd)
    whenGone(reply, () => {
      benches.off('sample', onSample)
      benches.off('end', onEnd)
    })
    whenStopping(request, reply, () => reply.raw.end())
  }
}

async function measure(
  spec: JobSpec,
  job: BenchJob,
  options: RoundOptions,
  onSingle: (run: BenchRun) => void,
): Promise<KeptReport> {
  if (spec.sweep) return sweep(job, spec.sweep.over, spec.sweep.values, options)
  if (spec.steady) return untilSteady(job, {...options, rounds: spec.steady.rounds})
  const run = start(job, options)
  onSingle(run)
  return run.result
}

/** What a job says of itself and of all its targets: what names a target is looked up, and the rest is the daemon's. */
function jobOf(spec: JobSpec, target: BenchJob['target']): BenchJob {
  const {volume: _v, filename: _f, ioengine: _i, direct: _d, sync: _s, sizeBytes: _b, writeTo: _w, ...rest} = spec
  const {sweep: bySweep, steady, label: _l, keep: _k, target: _t, ...job} = rest
  if (bySweep && steady)
    throw new StorageError('INVALID_ARGUMENT', 'A job has a sweep or goes on until steady, not both')
  return {...job, target}
}
