// Calls on devices that hang: named pipes stand for sysfs attributes, since an open for writing waits for a reader.
import {execFileSync} from 'node:child_process'
import {constants} from 'node:fs'
import {mkdtemp, open, readFile, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import test, {type ExecutionContext} from 'ava'
import {KernelIo} from '../../src/initiators/kernel-io.js'

const hung = {iqn: 'iqn.2026-01.test.lunpath:hung', timeoutMs: 200}

interface Kernel {
  io: KernelIo
  /** A file in place of an attribute. */
  attribute(name: string): Promise<string>
  /** Makes `count` writes that hang if they begin, and waits until their callers have given up. */
  hang(count: number): Promise<string[]>
}

async function kernel(t: ExecutionContext): Promise<Kernel> {
  const directory = await mkdtemp(join(tmpdir(), 'kernel-io-'))
  const io = new KernelIo()
  const pipes: string[] = []
  t.teardown(async () => {
    io.close()
    // A reader that comes and goes ends the wait of a writer (fifo(7)), and itself waits for nobody.
    for (const pipe of pipes) await (await open(pipe, constants.O_RDONLY | constants.O_NONBLOCK)).close()
    await rm(directory, {recursive: true})
  })
  return {
    io,
    async attribute(name) {
      const path = join(directory, name)
      await writeFile(path, '')
      return path
    },
    async hang(count) {
      const made = Array.from({length: count}, (_, index) => join(directory, `pipe-${index}`))
      execFileSync('mkfifo', made)
      pipes.push(...made)
      await Promise.all(made.map(pipe => t.throwsAsync(io.writeAttribute(pipe, '1', hung), {code: 'TIMEOUT'})))
      return made
    },
  }
}

test('a write that was given up before it began is never made', async t => {
  const {io, attribute, hang} = await kernel(t)
  const pipes = await hang(16)
  const path = await attribute('delete')
  const given = await t.throwsAsync(io.writeAttribute(path, '1', hung), {code: 'TIMEOUT'})
  for (const pipe of pipes.slice(0, 4)) t.is(await readFile(pipe, 'utf8'), '1')
  // The target is served again, and by now the write that was given up would have been made.
  const later = await attribute('rescan')
  await io.writeAttribute(later, '2', {...hung, timeoutMs: 60_000})
  t.is(await readFile(later, 'utf8'), '2')
  t.is(await readFile(path, 'utf8'), '')
  t.regex(given!.message, /not begun/)
})

test('sixteen calls that hang on one target hold back no other target', async t => {
  const {io, attribute, hang} = await kernel(t)
  await hang(16)
  const path = await attribute('scan')
  await io.writeAttribute(path, '0 0 1', {iqn: 'iqn.2026-01.test.lunpath:well', timeoutMs: 20_000})
  t.is(await readFile(path, 'utf8'), '0 0 1')
})
