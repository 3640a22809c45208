// What a run of the tests that was killed whole has left: directories in the temporary folders, and what is below them.
import {lstat, readdir, readFile, readlink, rm, writeFile} from 'node:fs/promises'
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
  /** Containers can share a temporary folder, and the pid says nothing outside its own. */
  pidNamespace: string
}

export async function mark(directory: string): Promise<void> {
  const {startTime = ''} = (await processOf(process.pid)) ?? {}
  const marker: Marker = {
    pid: process.pid,
    startTime,
    bootId: await bootId(),
    pidNamespace: await pidNamespace(),
  }
  await writeFile(join(directory, markerName), JSON.stringify(marker))
}

/**
 * Removes what ended runs have left in a folder: directories that have our marker and belong to this user, and whose process
 * is gone. One that cannot be removed stays, which `tell` is told. @returns the paths of those that are gone
 */
export async function removeLeftovers(
  folder: string,
  tell: (text: string) => void = text => process.stderr.write(`${text}\n`),
): Promise<string[]> {
  const removed: string[] = []
  for (const name of (await readdir(folder)).sort()) {
    const directory = join(folder, name)
    if (!name.startsWith(runPrefix) || !(await isLeft(directory))) continue
    try {
      await removeRun(directory)
      removed.push(directory)
    } catch (error) {
      tell(`${directory}, which a run that was killed has left, stays: ${(error as Error).message}`)
    }
  }
  return removed
}

/**
 * Ends the processes of a run, takes down its mounts and loop devices, and removes its directory.
 * @throws where a process or a mount stays, with nothing removed; or where a file does
 */
export async function removeRun(directory: string): Promise<void> {
  await endProcesses(directory)
  const staying = await processesOf(directory)
  if (staying.length > 0) throw new Error(`its processes do not end: ${staying.map(({pid}) => pid).join(', ')}`)
  await unmount(directory)
  for (const device of await loopDevices(directory)) await run('losetup', ['--detach', device]).catch(() => undefined)
  // The marker goes last: what was removed in part is found again.
  for (const name of await readdir(directory).catch(() => [])) {
    if (name !== markerName) await rm(join(directory, name), {recursive: true, force: true})
  }
  await rm(directory, {recursive: true, force: true})
}

/** By SIGTERM, and by SIGKILL those that stay. */
export async function endProcesses(directory: string): Promise<void> {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    for (let waited = 0; waited < 20; waited++) {
      const found = await processesOf(directory)
      if (found.length === 0) return
      if (waited === 0) for (const one of found) await send(signal, one)
      await new Promise(resolve => setTimeout(resolve, 100))
    }
  }
}

async function send(signal: NodeJS.Signals, {pid, startTime}: Process): Promise<void> {
  if ((await processOf(pid))?.startTime !== startTime) return
  try {
    process.kill(pid, signal)
  } catch {
    // It has ended.
  }
}

async function unmount(directory: string): Promise<void> {
  // What was mounted last lies on top.
  for (const path of (await mountsBelow(directory)).reverse()) {
    await run('umount', ['--lazy', path]).catch(() => undefined)
  }
  // The files there may be anybody's.
  const staying = await mountsBelow(directory)
  if (staying.length > 0) throw new Error(`these mounts cannot be taken down: ${staying.join(', ')}`)
}

/** Mount points below a directory, and those of its loop devices. */
async function mountsBelow(directory: string): Promise<string[]> {
  const loops = await loopDevices(directory)
  const lines = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n').filter(Boolean)
  const mounts = lines.map(line => ({
    path: unescaped(line.split(' ')[4]!),
    device: line.split(' - ')[1]?.split(' ')[1],
  }))
  return mounts.filter(({path, device}) => isBelow(path, directory) || loops.includes(device!)).map(({path}) => path)
}

/** proc(5): mountinfo has blanks and the like as octal numbers. */
function unescaped(path: string): string {
  return path.replace(/\\([0-7]{3})/g, (_, digits) => String.fromCharCode(Number.parseInt(digits, 8)))
}

async function isLeft(directory: string): Promise<boolean> {
  try {
    const own = await lstat(directory)
    const file = await lstat(join(directory, markerName))
    // In a folder that all may write to, others can make what looks alike.
    const uid = process.getuid!()
    if (!own.isDirectory() || own.uid !== uid || !file.isFile() || file.uid !== uid) return false
    const marker = JSON.parse(await readFile(join(directory, markerName), 'utf8')) as Marker
    if (!Number.isSafeInteger(marker.pid) || typeof marker.bootId !== 'string') return false
    if (marker.bootId !== (await bootId())) return true
    if (marker.pidNamespace !== (await pidNamespace())) return false
    const found = await processOf(marker.pid)
    return found?.startTime !== marker.startTime || found.state === 'Z'
  } catch {
    // Without a marker that can be read it is not known to be ours.
    return false
  }
}

async function bootId(): Promise<string> {
  return (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim()
}

function pidNamespace(): Promise<string> {
  return readlink('/proc/self/ns/pid')
}

interface Process {
  pid: number
  state: string
  parent: number
  startTime: string
}

async function processOf(pid: number): Promise<Process | undefined> {
  const line = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '')
  // The name, in brackets, may hold blanks.
  const fields = line.slice(line.lastIndexOf(')') + 2).split(' ')
  return line ? {pid, state: fields[0]!, parent: Number(fields[1]), startTime: fields[19]!} : undefined
}

/** Processes that a run has started, and that have not ended. This one and those that have started it are none. */
async function processesOf(directory: string): Promise<Process[]> {
  const processes = new Map<number, Process>()
  for (const name of await readdir('/proc')) {
    const found = /^\d+$/.test(name) ? await processOf(Number(name)) : undefined
    if (found && found.state !== 'Z') processes.set(found.pid, found)
  }
  for (let pid = process.pid; processes.has(pid); ) {
    const {parent} = processes.get(pid)!
    processes.delete(pid)
    pid = parent
  }
  const found: Process[] = []
  for (const one of processes.values()) if (await belongsTo(directory, one)) found.push(one)
  return found
}

/**
 * A process is known by its environment. One with an environment of its own belongs to the run if its program lies in the
 * directory, or if an argument names something there and it has lost its parent: somebody who looks there has not.
 */
async function belongsTo(directory: string, {pid, parent}: Process): Promise<boolean> {
  const words = async (name: string) => (await readFile(`/proc/${pid}/${name}`, 'utf8').catch(() => '')).split('\0')
  if ((await words('environ')).includes(`${runVariable}=${directory}`)) return true
  if (isBelow(await readlink(`/proc/${pid}/exe`).catch(() => ''), directory)) return true
  if (parent !== 1 || (await lstat(`/proc/${pid}`).catch(() => undefined))?.uid !== process.getuid!()) return false
  return (await words('cmdline')).some(word => `${word}/`.includes(`${directory}/`))
}

async function loopDevices(directory: string): Promise<string[]> {
  const found: string[] = []
  for (const name of await readdir('/sys/block').catch(() => [])) {
    const backing = await readFile(`/sys/block/${name}/loop/backing_file`, 'utf8').catch(() => '')
    if (isBelow(backing.replace(/ \(deleted\)$/m, '').trim(), directory)) found.push(`/dev/${name}`)
  }
  return found
}

function isBelow(path: string, directory: string): boolean {
  return path.startsWith(`${directory}/`)
}
