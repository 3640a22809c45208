import {type ChildProcess, execFile, spawn} from 'node:child_process'
import {once} from 'node:events'
import {cp, mkdtemp, readdir, readFile, rm, symlink} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join, relative} from 'node:path'
import {promisify} from 'node:util'
import test from 'ava'
import {run} from '../../src/exec.js'
import {packageRoot} from '../../src/native.js'
import {testProgram} from '../fixtures/errno-fs.js'
import {LabError, type LabOptions, runInLab} from './vm.js'

const MiB = 2 ** 20

/** Process ids of what runs of the machines that a process of ours started: each leads a session of its own. */
async function machinesOf(parent: number): Promise<number[]> {
  const all: {pid: number; parent: number; session: number}[] = []
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const stat = await readFile(`/proc/${name}/stat`, 'utf8').catch(() => '')
    // Behind the program's name: state, parent, group, session (proc(5)). One that has ended is of no interest.
    const [, state, parentOfIt, session] = /\) (\S) (\d+) \d+ (\d+)/.exec(stat) ?? []
    if (state && state !== 'Z') all.push({pid: Number(name), parent: Number(parentOfIt), session: Number(session)})
  }
  const leaders = all.filter(process => process.parent === parent && process.session === process.pid)
  return all.filter(({session}) => leaders.some(({pid}) => pid === session)).map(({pid}) => pid)
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

const behaves = test.macro<[LabOptions]>(async (t, machine) => {
  let stdout = ''
  let stderr = ''
  const awkward = ['', 'a b', "it's", '"$HOME"', 'line\nbreak\n', 'ünï']
  const script = `
    printf '<%s>' "$@"
    printf '%s;' "$NAMED" "$(cat /sys/block/{ubd,vd}b/serial 2>/dev/null)" "$(cat /sys/block/{ubd,vd}a/size 2>/dev/null)" "$(cat /sys/module/loop/initstate)"
    ls /tmp /run/lock
    sleep 1000 &
    seq 100000 >&2
    exit 7`
  const code = await runInLab(['bash', '-c', script, 'bash', ...awkward], {
    ...machine,
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
  t.deepEqual(await machinesOf(process.pid), [])
})

test.serial('1. a command gets its arguments, and its output and exit code come back', behaves, {})
test.serial('1. a command gets its arguments, and its output and exit code come back, from QEMU', behaves, {
  machine: 'qemu',
})

const panics = test.macro<[LabOptions]>(async (t, machine) => {
  const error = await failureOf(['sh', '-c', 'echo c >/proc/sysrq-trigger; sleep 1000'], machine)
  t.is(error.code, 'LAB_CRASHED')
  t.regex(error.message, /crashed before sh had ended/)
  t.regex(error.console, /Kernel panic - not syncing/)
  t.deepEqual(await machinesOf(process.pid), [])
})

test.serial('2. a kernel panic ends it at once, with what the kernel said', panics, {})
test.serial('2. a kernel panic ends QEMU at once, with what the kernel said', panics, {machine: 'qemu'})

test.serial('3. a deadline ends it', async t => {
  const error = await failureOf(['sleep', '1000'], {deadlineMs: 300})
  t.is(error.code, 'LAB_DEADLINE')
  t.deepEqual(await machinesOf(process.pid), [])
})

test.serial('4. a signal ends it', async t => {
  const abort = new AbortController()
  const ended = failureOf(['sleep', '1000'], {signal: abort.signal, onConsole: () => abort.abort()})
  t.is((await ended).code, 'LAB_CANCELLED')
  t.deepEqual(await machinesOf(process.pid), [])
})

test.serial('5. what cannot be set up says why', async t => {
  const error = await failureOf(['true'], {modules: ['no_such_module']})
  t.is(error.code, 'LAB_SETUP')
  t.regex(error.message, /modprobe no_such_module: .*not found/)
})

/** The command for people, as soon as its kernel has said something. */
async function startedCli(
  ...args: string[]
): Promise<{cli: ChildProcess; ended: Promise<unknown[]>; machine: number[]}> {
  const cli = spawn(process.execPath, ['dist/test/lab/main.js', '--console', ...args], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  const ended = once(cli, 'exit')
  await once(cli.stderr!, 'data')
  cli.stderr!.resume()
  return {cli, ended, machine: await machinesOf(cli.pid!)}
}

/** Settles when the processes are gone; one that stays fails the test by ava's own timeout. */
async function gone(pids: number[]): Promise<void> {
  const ended = async (pid: number) =>
    /^\S+ \(.*\) Z/.test(await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '1 () Z'))
  for (const pid of pids) while (!(await ended(pid))) await new Promise(resolve => setTimeout(resolve, 20))
}

const leavesNothing = test.macro<string[]>(async (t, ...args) => {
  const files = async () => (await readdir(tmpdir())).filter(name => name.startsWith('lp-lab-'))
  const before = await files()
  const interrupted = await startedCli(...args, '--disk', '1MiB', 'sleep', '1000')
  t.true(interrupted.machine.length > 0)
  interrupted.cli.kill('SIGINT')
  t.deepEqual(await interrupted.ended, [130, null])
  await gone(interrupted.machine)

  const killed = await startedCli(...args, '--disk', '1MiB', 'sleep', '1000')
  t.true(killed.machine.length > 0)
  killed.cli.kill('SIGKILL')
  t.deepEqual(await killed.ended, [null, 'SIGKILL'])
  await gone(killed.machine)
  t.deepEqual(await files(), before)
})
test.serial('6. Ctrl-C and SIGKILL of the command leave no machine and no file', leavesNothing)
test.serial('6. Ctrl-C and SIGKILL of the command leave no QEMU and no file', leavesNothing, '--machine', 'qemu')

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

test.serial('8. where User Mode Linux cannot run, QEMU does, and says why', async t => {
  const lab = ['dist/test/lab/main.js', '--', 'uname', '-r']
  const {stdout, stderr} = await run(await testProgram('forbid'), ['ptrace', '--', process.execPath, ...lab])
  t.regex(stdout, /-amd64\n$/)
  t.regex(stderr, /^lab: QEMU runs the command, since:\nUser Mode Linux ended before it had come up\n(.|\n)*ptrace/)
  const named = run(await testProgram('forbid'), [
    'ptrace',
    '--',
    process.execPath,
    'dist/test/lab/main.js',
    '--machine',
    'uml',
    'true',
  ])
  t.regex((await t.throwsAsync(named))!.message, /status 125: lab: User Mode Linux ended before/)
})

test.serial('9. the machine is the one that is wanted, and one that cannot be is refused', async t => {
  const kernelOf = async (options: LabOptions) => {
    let release = ''
    const onStdout = (chunk: Buffer) => {
      release += chunk
    }
    t.is(await runInLab(['sh', '-c', 'nproc; uname -r'], {...options, onStdout}), 0)
    return release
  }
  t.regex(await kernelOf({cpus: 2}), /^2\n.*-amd64\n$/)
  await t.throwsAsync(runInLab(['true'], {machine: 'uml', cpus: 2}), {
    instanceOf: TypeError,
    message: /has 1 processor/,
  })
  await t.throwsAsync(runInLab(['true'], {machine: 'bochs' as 'uml'}), {instanceOf: TypeError, message: /uml, qemu/})
})

test.serial('10. a checkout below /tmp, which the lab hides, has a lab too', async t => {
  const checkout = await mkdtemp(join(tmpdir(), 'checkout-'))
  t.teardown(() => rm(checkout, {recursive: true}))
  for (const part of ['package.json', 'scripts', 'dist', '.cache/lab'])
    await cp(join(packageRoot(), part), join(checkout, part), {recursive: true, preserveTimestamps: true})
  await symlink(join(packageRoot(), 'node_modules'), join(checkout, 'node_modules'))
  const inCheckout = ['--chdir', checkout, process.execPath, 'dist/test/lab/main.js']
  const {stdout} = await run('env', [...inCheckout, 'sh', '-c', 'pwd; head -n 2 package.json'], {timeoutMs: 120_000})
  t.is(stdout, `${checkout}\n{\n  "name": "lunpath",\n`)
})
