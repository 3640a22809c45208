// Tells of a run of the tests, in ava's own process: the seconds of each file as it ends, which files run, and at the end
// the slowest and where logs are. Each is a line of standard output with a # before it, so that it is a comment in TAP.
import type {ObservedRun} from 'ava/internal'
import {logsToSee, removeLogsOf} from './logs.js'
import {type EndedFile, Progress} from './progress.js'
import {nameOf, record} from './seconds.js'
import {StatusLine} from './status-line.js'

/** Set where a run's seconds are put into the table. */
export const recordVariable = 'LUNPATH_TEST_RECORD'

const slowestShown = 10
/** Without a terminal the files that run are named after so long a silence. */
const silenceMs = 60_000

const say = (line: string) => process.stdout.write(`# ${line}\n`)
const column = (seconds: number) => `${seconds.toFixed(1).padStart(6)} s`

export async function observeRun({events}: ObservedRun): Promise<void> {
  const progress = new Progress(performance.now())
  const status = process.stdout.isTTY ? new StatusLine() : undefined
  let toldMs = performance.now()
  const tick = () => {
    const nowMs = performance.now()
    if (status) status.show(running(progress, nowMs))
    else if (nowMs - toldMs > silenceMs && progress.running(nowMs).length > 0) {
      toldMs = nowMs
      say(running(progress, nowMs))
    }
  }
  const timer = setInterval(tick, 1000).unref()
  // Behind what the reporter says of the whole, and also where ava is interrupted.
  process.once('exit', () => {
    status?.end()
    sayEnd(progress)
  })
  for await (const event of events) {
    const nowMs = performance.now()
    const ended = progress.take(event, nowMs)
    if (!ended) continue
    toldMs = nowMs
    sayEnded(ended, progress)
  }
  clearInterval(timer)
  status?.end()
}

function running(progress: Progress, nowMs: number): string {
  const files = progress.running(nowMs).map(({file, seconds}) => `${nameOf(file)} ${Math.round(seconds)} s`)
  return `${progress.ended.length} of ${progress.fileCount} files; running: ${files.join(', ')}`
}

function sayEnded({file, seconds, failed}: EndedFile, progress: Progress): void {
  const count = `${progress.ended.length} of ${progress.fileCount}`
  const outcome = failed ? `  failed${logsPhrase(file)}` : ''
  say(`${column(seconds)}  ${nameOf(file)} (${count})${outcome}`)
  if (!failed) removeLogsOf(file)
}

function logsPhrase(file: string): string {
  const logs = logsToSee(file)
  return logs ? `; its logs are in ${logs}` : ''
}

function sayEnd(progress: Progress): void {
  const slowest = progress.slowest(slowestShown)
  if (slowest.length > 1) {
    say(`the slowest of ${progress.ended.length} files:`)
    for (const {file, seconds} of slowest) say(`${column(seconds)}  ${nameOf(file)}`)
  }
  for (const {file} of progress.running(performance.now())) say(`not ended: ${nameOf(file)}${logsPhrase(file)}`)
  for (const {file} of progress.ended.filter(({failed}) => failed)) say(`failed: ${nameOf(file)}${logsPhrase(file)}`)
  if (process.env[recordVariable] !== '1') return
  // One that failed may have ended early.
  const good = progress.ended.filter(({failed}) => !failed).map(({file, seconds}) => [nameOf(file), seconds] as const)
  say(`test/seconds.json has the seconds of ${record(Object.fromEntries(good))} files now`)
}
