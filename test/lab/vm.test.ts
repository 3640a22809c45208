import {type ChildProcess, execFile, spawn} from 'node:child_process'
import {once} from 'node:events'
import {readdir, readFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {relative} from 'node:path'
import {promisify} from 'node:util'
import test from 'ava'
import {packageRoot} from '../../src/native.js'
import {LabError, type LabOptions, runInLab} from './vm.js'

const MiB = 2 ** 20

/** Process ids of the QEMUs that a process of ours started. */
async function qemusOf(parent: number): Promise<number[]> {
  const found: number[] = []
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const stat = await readFile(`/proc/${name}/stat`, 'utf8').catch(() => '')
    // The name of the program, then state and parent (proc(5)).
    const [, program, parentOfIt] = /\((.*)\) \S (\d+)/.exec(stat) ?? []
    if (program?.startsWith('qemu-system') && Number(parentOfIt) === parent) found.push(Number(name))
  }
  return found
}

/** The deadline is what a broken lab would take; how long these tests take says nothing. */
async function failureOf(command: string[], options: LabOptions): Promise<LabError> {
  try {
    const code = await runInLab(command, options)
    throw new Error(`the lab ended with exit code ${code}`)
  } catch (error) {
    if (error instanceof LabError) return error
    throw error
  }
}

test.serial('1. a command gets its arguments, and its output and exit code come back', async t => {
  let stdout = ''
  let stderr = ''
  const awkward = ['', 'a b', "it's", '"$HOME"', 'line\nbreak\n', 'ünï']
  const script = `
    printf '<%s>' "$@"
    printf '%s;' "$NAMED" "$(cat /sys/block/vdb/serial)" "$(cat /sys/block/vda/size)" "$(cat /sys/module/loop/initstate)"
    ls /tmp /run/lock
    sleep 1000 &
    seq 100000 >&2
    exit 7`
  const code = await runInLab(['bash', '-c', script, 'bash', ...awkward], {
    disksBytes: [4 * MiB, MiB],
    modules: ['loop'],
    environment: {NAMED: "the value's"},
    onStdout: chunk => {
      stdout += chunk.toString()
    },
    onStderr: chunk => {
      stderr += chunk.toString()
    },
  })
  t.is(code, 7)
  // /tmp is empty but for the checkout, where that lies there.
  const [below] = relative('/tmp', packageRoot()).split('/')
  const inTmp = below === '..' ? '' : `${below}\n`
  const words = awkward.map(word => `<${word}>`).join('')
  t.is(stdout, `${words}the value's;lab-disk-2;8192;live;/run/lock:\n\n/tmp:\n${inTmp}`)
  t.is(stderr.trim().split('\n').length, 100_000)
  t.true(stderr.endsWith('\n100000\n'))
  t.deepEqual(await qemusOf(process.pid), [])
})

test.serial('2. a kernel panic ends it at once, with what the kernel said', async t => {
  const error = await failureOf(['sh', '-c', 'echo c >/proc/sysrq-trigger; sleep 1000'], {})
  t.is(error.code, 'LAB_CRASHED')
  t.regex(error.message, /crashed before sh had ended/)
  t.regex(error.console, /Kernel panic - not syncing/)
  t.deepEqual(await qemusOf(process.pid), [])
})

test.serial('3. a deadline ends it', async t => {
  const error = await failureOf(['sleep', '1000'], {deadlineMs: 300})
  t.is(error.code, 'LAB_DEADLINE')
  t.deepEqual(await qemusOf(process.pid), [])
})

test.serial('4. a signal ends it', async t => {
  const abort = new AbortController()
  const ended = failureOf(['sleep', '1000'], {signal: abort.signal, onConsole: () => abort.abort()})
  t.is((await ended).code, 'LAB_CANCELLED')
  t.deepEqual(await qemusOf(process.pid), [])
})

test.serial('5. what cannot be set up says why', async t => {
  const error = await failureOf(['true'], {modules: ['no_such_module']})
  t.is(error.code, 'LAB_SETUP')
  t.regex(error.message, /modprobe no_such_module: .*not found/)
})

/** The command for people, as soon as its kernel has said something. */
async function startedCli(...args: string[]): Promise<{cli: ChildProcess; ended: Promise<unknown[]>; qemu: number}> {
  const cli = spawn(process.execPath, ['dist/test/lab/main.js', '--console', ...args], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const ended = once(cli, 'exit')
  await once(cli.stderr!, 'data')
  cli.stderr!.resume()
  const [qemu] = await qemusOf(cli.pid!)
  return {cli, ended, qemu: qemu!}
}

/** Settles when the process is gone; one that stays fails the test by ava's own timeout. */
async function gone(pid: number): Promise<void> {
  const ended = async () => /^\S+ \(.*\) Z/.test(await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '1 () Z'))
  while (!(await ended())) await new Promise(resolve => setTimeout(resolve, 20))
}

test.serial('6. Ctrl-C and SIGKILL of the command leave no QEMU and no file', async t => {
  const files = async () => (await readdir(tmpdir())).filter(name => name.startsWith('lp-lab-'))
  const before = await files()
  const interrupted = await startedCli('--disk', '1MiB', 'sleep', '1000')
  t.truthy(interrupted.qemu)
  interrupted.cli.kill('SIGINT')
  t.deepEqual(await interrupted.ended, [130, null])
  await gone(interrupted.qemu)

  const killed = await startedCli('--disk', '1MiB', 'sleep', '1000')
  t.truthy(killed.qemu)
  killed.cli.kill('SIGKILL')
  t.deepEqual(await killed.ended, [null, 'SIGKILL'])
  await gone(killed.qemu)
  t.deepEqual(await files(), before)
})

test.serial('7. lab() gives each test the outcome that it had in the VM, and a crash fails the rest', async t => {
  const cli = 'node_modules/ava/entrypoints/cli.mjs'
  const args = [cli, '--config', 'test/lab/outcomes.config.js', '--tap']
  const {code, stdout} = (await promisify(execFile)(process.execPath, args).catch(error => error)) as {
    code?: number
    stdout: string
  }
  t.is(code, 1)
  const lines = stdout.split('\n').filter(line => /^(not )?ok /.test(line))
  const outcomes = Object.fromEntries(
    lines.map(line => {
      const [, outcome, title] = /^((?:not )?ok) \d+ - (.*)$/.exec(line)!
      return [title, outcome]
    }),
  )
  t.deepEqual(outcomes, {
    passes: 'ok',
    'fails by an assertion': 'not ok',
    'throws an error': 'not ok',
    'fails in a teardown': 'not ok',
    'is skipped # SKIP': 'ok',
    'runs here': 'ok',
    'panics the kernel': 'not ok',
    'comes after the panic': 'not ok',
    'the lab ends well': 'not ok',
  })
  t.regex(stdout, /Linux 6\.\d+/)
  t.regex(stdout, /message: ['"]?2 is not 3/)
  t.regex(stdout, /an error of the test/)
  t.regex(stdout, /Kernel panic - not syncing/)
})
