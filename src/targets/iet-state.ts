import {readFile, stat} from 'node:fs/promises'
import {join} from 'node:path'
import {call, IetControl, type IetWay, request} from './iet-control.js'

/** What is there of IET, without a change: for doctor. */
export interface IetState {
  /** The module shows its listings. */
  module: boolean
  /** As the module says it; null where it does not. */
  version: string | null
  /** Of ietd; null where nobody answers, or lets nobody in. */
  ietd: {pid: number; way: IetWay} | null
  /** Why there is no ietd. */
  reason: string | null
  /** Files beside initiators.allow that have a say in who may log in. */
  denyFile: string | null
  targetsFile: string | null
}

const timeoutMs = 5_000
const eperm = 1

export async function ietState({
  socketName,
  procDirectory,
  accessDirectories,
}: {
  socketName: string
  procDirectory: string
  accessDirectories: readonly string[]
}): Promise<IetState> {
  const control = new IetControl({socketName})
  try {
    const [module, said, asked, denyFile, targetsFile] = await Promise.all([
      control.read(join(procDirectory, 'volume'), {timeoutMs}).then(
        () => true,
        () => false,
      ),
      readFile('/sys/module/iscsi_trgt/version', 'utf8').catch(() => ''),
      control.exchange([[request.nothing()]], {timeoutMs}),
      firstOf(accessDirectories, 'initiators.deny'),
      firstOf(accessDirectories, 'targets.allow'),
    ])
    const found = {module, version: said.trim() || null, denyFile, targetsFile}
    if (asked.failure) return {...found, ietd: null, reason: asked.failure.message}
    if (asked.answers[0]?.[0]?.error === eperm) return {...found, ietd: null, reason: 'ietd lets nobody but root in'}
    const {answers, pid} = await control.call([[call.moduleInfo()]], {timeoutMs})
    const [answer] = answers[0] ?? []
    const version = (answer?.error === 0 ? answer.names[0] : undefined) ?? found.version
    return {...found, version, ietd: {pid, way: control.way ?? {way: 'socket', reason: null}}, reason: null}
  } finally {
    control.close()
  }
}

async function firstOf(directories: readonly string[], name: string): Promise<string | null> {
  for (const directory of directories) {
    const file = join(directory, name)
    if (await stat(file).catch(() => undefined)) return file
  }
  return null
}
