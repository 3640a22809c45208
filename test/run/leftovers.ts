// What a run of the tests that was killed whole has left: directories in the temporary folders, and what is below them.
import {existsSync} from 'node:fs'
import {readdir, readFile, rm, stat, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import {run} from '../../src/exec.js'

/** The variable by which processes of a run are known: its directory. */
export const runVariable = 'LUNPATH_TEST_RUN'

/** In each directory of a run: by whom it was made. */
const markerName = '.lunpath-test-run'
/** Directories of runs are named so, whoever made them. */
export const runPrefix = 'lpt.'

interface Marker {
  pid: number
  /** In ticks since the boot, field 22 of /proc/PID/stat (proc(5)): a pid may be another process's by now. */
  startTime: string
  bootId: string
}

export async function mark(directory: string): Promise<void> {
  const marker = {pid: process.pid, startTime: await startTimeOf(process.pid), bootId: await bootId()}
  await writeFile(join(directory, markerName), JSON.stringify(marker))
}

/**
 * Removes what ended runs have left in a folder: directories that have our marker and belong to this user, and whose process
 * is gone. @returns their paths
 */
export async function removeLeftovers(folder: string): Promise<string[]> {
  const removed: string[] = []
  for (const name of await readdir(folder)) {
    const directory = join(folder, name)
    if (!name.startsWith(runPrefix) || !(await isLeft(directory))) continue
    await removeRun(directory)
    removed.push(directory)
  }
  return removed
}

/** Ends the processes of a run, takes down its mounts and loop devices, and removes its directory. */
export async function removeRun(directory: string): Promise<void> {
  await endProcesses(directory)
  const mounts = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n').map(line => line.split(' ')[4] ?? '')
  for (const mount of mounts.filter(path => isBelow(path, directory)).reverse()) {
    await run('umount', ['--lazy', mount]).catch(() => undefined)
  }
  for (const device of await loopDevices(directory)) await run('losetup', ['--detach', device]).catch(() => undefined)
  await rm(directory, {recursive: true, force: true})
}

/** By SIGTERM, and by SIGKILL those that stay. */
export async function endProcesses(directory: string): Promise<void> {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    for (let waited = 0; waited < 20; waited++) {
      const pids = await processesOf(directory)
      if (pids.length === 0) return
      if (waited === 0) {
        for (const pid of pids) {
          try {
            process.kill(pid, signal)
          } catch {
            // It has ended.
          }
        }
      }
      await new Promise(resolve => setTimeout(resolve, 100))
    }
  }
}

async function isLeft(directory: string): Promise<boolean> {
  try {
    const marker = JSON.parse(await readFile(join(directory, markerName), 'utf8')) as Marker
    if ((await stat(directory)).uid !== process.getuid!()) return false
    if (marker.bootId !== (await bootId())) return true
    return !existsSync(`/proc/${marker.pid}`) || (await startTimeOf(marker.pid)) !== marker.startTime
  } catch {
    // Without a marker that can be read it is not known to be ours.
    return false
  }
}

async function bootId(): Promise<string> {
  return (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim()
}

async function startTimeOf(pid: number): Promise<string> {
  const line = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '')
  // The name, in brackets, may hold blanks.
  return line.slice(line.lastIndexOf(')') + 2).split(' ')[19] ?? ''
}

/** Those whose environment has the run's directory: what is started without it ends with its parent. */
async function processesOf(directory: string): Promise<number[]> {
  const found: number[] = []
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name) || Number(name) === process.pid) continue
    const environment = await readFile(`/proc/${name}/environ`, 'utf8').catch(() => '')
    if (environment.split('\0').includes(`${runVariable}=${directory}`)) found.push(Number(name))
  }
  return found
}

async function loopDevices(directory: string): Promise<string[]> {
  const found: string[] = []
  for (const name of await readdir('/sys/block')) {
    const backing = await readFile(`/sys/block/${name}/loop/backing_file`, 'utf8').catch(() => '')
    if (isBelow(backing.replace(/ \(deleted\)$/m, '').trim(), directory)) found.push(`/dev/${name}`)
  }
  return found
}

function isBelow(path: string, directory: string): boolean {
  return path.startsWith(`${directory}/`)
}
