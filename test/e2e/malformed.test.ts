import {once} from 'node:events'
import {readdir, writeFile} from 'node:fs/promises'
import {join} from 'node:path'
import test from 'ava'
import {errorCodes} from '../../src/errors.js'
import {PrivateLibvirtd} from '../../src/sandbox/libvirtd.js'
import {start, until} from '../fixtures/cli.js'
import {type Malformed, malformed} from '../fixtures/malformed.js'
import {Node} from '../fixtures/node.js'
import {generator, seed} from '../fixtures/random.js'
import {type RawAnswer, RawClient} from '../fixtures/raw-http.js'

/** A daemon under whatever a client may send: it answers each in the documented form, and nothing has happened. */

const requests = 4_000
const atOnce = 16
const longestMs = 60_000

/** What is wrong with an answer; undefined where it is as documented. */
function faultOf({status, contentType, body}: RawAnswer, {cutOff, mayRead}: Malformed): string | undefined {
  if (status === 0) return cutOff ? undefined : 'no answer'
  if (!contentType.startsWith('application/json')) return `the type ${contentType}`
  let answer: {error?: {code: keyof typeof errorCodes; message: unknown}}
  try {
    answer = JSON.parse(body) as typeof answer
  } catch {
    return 'no JSON'
  }
  if (status < 400) return mayRead ? undefined : 'success'
  const {error, ...others} = answer
  if (!error || Object.keys(others).length > 0) return 'another form'
  const unknown = Object.keys(error).find(key => !['code', 'message', 'op', 'info', 'cause'].includes(key))
  if (unknown !== undefined) return `a member ${unknown}`
  if (typeof error.message !== 'string' || error.message === '') return 'no message'
  if (errorCodes[error.code] !== status) return `the status ${status} for ${error.code}`
  return error.code === 'INTERNAL' ? 'an error that nobody foresaw' : undefined
}

async function ask(socket: string, {bytes, cutOff}: Malformed): Promise<RawAnswer> {
  const client = (await RawClient.connect(socket)).send(bytes)
  if (cutOff) client.socket.end()
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${longestMs} ms`)), longestMs)
  })
  try {
    return await Promise.race([client.answer(), late])
  } finally {
    clearTimeout(timer)
    client.socket.destroy()
  }
}

test(`${requests} malformed requests: an answer in the documented form for each, and nothing has changed`, async t => {
  const libvirtd = new PrivateLibvirtd()
  t.teardown(() => libvirtd.stop())
  await libvirtd.start()
  const node = await Node.make()
  t.teardown(() => node.stop())
  const {directory, socket, portal, metricsPort} = node
  const config = join(directory, 'lunpath.toml')
  const lines = [
    `[daemon]\ndirectory = "${directory}"\nsocket = "${socket}"`,
    `[targets]\nportals = ["${portal}"]\nendWithDaemon = true`,
    `[compute]\nuri = "${libvirtd.uri}"`,
    `[metrics]\nlisten = "127.0.0.1:${metricsPort}"`,
  ]
  await writeFile(config, lines.join('\n'))
  const daemon = start(['serve', '--config', config])
  t.teardown(() => daemon.child.kill('SIGKILL'))
  await until('it serves', () => daemon.output.stdout.includes('"serving"'))

  await node.api.call('POST', '/volumes', {sizeBytes: 1 << 20, name: 'kept'}, {token: 'used'})
  await node.api.call('POST', '/exports', {sizeBytes: 1 << 20, name: 'offered'})
  const world = async () => ({
    volumes: await node.api.call('GET', '/volumes'),
    exports: await node.api.call('GET', '/exports'),
    attachments: await node.api.call('GET', '/attachments'),
    targets: await node.api.call('GET', '/targets'),
    status: await node.api.call('GET', '/status'),
    files: (await readdir(join(directory, 'volumes'))).sort(),
  })
  const before = await world()

  t.log(`LUNPATH_TEST_SEED=${seed}`)
  const random = generator(seed)
  const all = Array.from({length: requests}, () => malformed(random))
  const faults: string[] = []
  const codes = new Map<string, number>()
  const waiting = all.values()
  const worker = async () => {
    for (const request of waiting) {
      const answer = await ask(socket, request).catch(error => (error as Error).message)
      const fault = typeof answer === 'string' ? answer : faultOf(answer, request)
      const [code] = typeof answer === 'string' ? [] : (/"code":"[A-Z_]+"/.exec(answer.body) ?? [])
      codes.set(code ?? 'none', (codes.get(code ?? 'none') ?? 0) + 1)
      const given = typeof answer === 'string' ? '' : `: ${answer.status} ${answer.body.slice(0, 300)}`
      if (fault !== undefined)
        faults.push(
          `${request.what}: ${JSON.stringify(request.bytes.toString('latin1').slice(0, 300))}: ${fault}${given}`,
        )
    }
  }
  await Promise.all(Array.from({length: atOnce}, worker))
  t.log(Object.fromEntries(codes))
  t.deepEqual(faults.slice(0, 5), [], `${faults.length} answers are not as documented`)

  t.is(daemon.child.exitCode, null)
  t.deepEqual(await world(), before)
  const half = (await RawClient.connect(socket)).send(
    'POST /v1/volumes HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{',
  )
  node.api.close()
  daemon.child.kill('SIGTERM')
  if (!half.socket.closed) await once(half.socket, 'close')
  const {exitCode, stderr} = await daemon.ended
  t.deepEqual({exitCode, stderr}, {exitCode: 0, stderr: ''})
})
