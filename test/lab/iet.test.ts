// The double of IET itself: each trap of the interface is shown once, by bytes that are written here and not by the code
// that it is there to test. Numbers, layouts and errors are those that were observed on IET 1.4.20.2.
import {type ChildProcess, spawn} from 'node:child_process'
import {createHash} from 'node:crypto'
import {once} from 'node:events'
import {chmod, mkdir, open, readdir, readFile, rm, stat, truncate, writeFile} from 'node:fs/promises'
import {createInterface} from 'node:readline'
import {setTimeout as sleep} from 'node:timers/promises'
import test, {type ExecutionContext} from 'ava'
import {run} from '../../src/exec.js'
import {Iet, type IetOptions, ietPrograms} from './iet.js'
import {insideLab, lab, labDisk} from './lab.js'

lab.options({deadlineMs: 540_000, disksBytes: [16 * 2 ** 20]})

test.before('the double is compiled', async () => {
  if (!insideLab) await ietPrograms()
})

const code = {
  moduleInfo: 0x40806914,
  addTarget: 0xc1046915,
  delTarget: 0x41046916,
  addVolume: 0x40186918,
  delVolume: 0x40186919,
  delSession: 0x4118691b,
  getSession: 0xc118691c,
  addConn: 0x4028691d,
  delConn: 0x4028691e,
  getConn: 0xc028691f,
  paramSet: 0x40786920,
  paramGet: 0xc0786921,
}

/** Another process that makes calls to the system one by one (iet/raw.c). */
class Raw {
  readonly child: ChildProcess
  readonly #answers: AsyncIterator<string>

  private constructor(child: ChildProcess) {
    this.child = child
    this.#answers = createInterface({input: child.stdout!})[Symbol.asyncIterator]()
  }

  static async start(t: ExecutionContext, {before = [] as string[], cwd = '/'} = {}): Promise<Raw> {
    const {raw} = await ietPrograms()
    const [file, ...args] = [...before, raw]
    const child = spawn(file!, args, {cwd, stdio: ['pipe', 'pipe', 'inherit']})
    // A caller that was killed is told by its answers' end.
    child.stdin!.on('error', () => undefined)
    t.teardown(async () => {
      if (child.exitCode !== null || child.signalCode !== null) return
      const ended = once(child, 'exit')
      child.kill('SIGKILL')
      await ended
    })
    return new Raw(child)
  }

  /** What comes after `ok`, or the name of the error. */
  async call(...words: (string | number)[]): Promise<string> {
    this.child.stdin!.write(`${words.join(' ')}\n`)
    const {value, done} = await this.#answers.next()
    if (done) return 'ended'
    return (value as string).replace(/^(ok|error) ?/, '')
  }

  /** A duplicate of ietd's descriptor of the control device. */
  async duplicate(pid: number): Promise<number> {
    const fd = await this.call('dup', pid, await controlDescriptor(pid))
    if (!/^\d+$/.test(fd)) throw new Error(fd)
    return Number(fd)
  }

  /** The bytes after the call, or the name of the error. */
  async ioctl(fd: number, request: number, bytes: Buffer): Promise<Buffer | string> {
    const answer = await this.call('ioctl', fd, request, bytes.toString('hex'))
    const [result, hex] = answer.split(' ')
    return result === '0' ? Buffer.from(hex!, 'hex') : answer
  }

  async addTarget(fd: number, tid: number, name: string | Buffer): Promise<number | string> {
    const info = Buffer.alloc(260)
    info.writeUInt32LE(tid)
    Buffer.from(name as string).copy(info, 4)
    const after = await this.ioctl(fd, code.addTarget, info)
    return typeof after === 'string' ? after : after.readUInt32LE()
  }

  async addVolume(fd: number, tid: number, lun: number, args: string): Promise<string> {
    return this.call('volume', fd, code.addVolume, tid, lun, args)
  }

  /** A request on ietd's socket; the whole reply, or the name of an error. */
  async request(bytes: Buffer, mostBytes = 4096): Promise<Buffer | string> {
    const fd = await this.call('connect', 110)
    if (!/^\d+$/.test(fd)) return fd
    const written = await this.call('write', fd, bytes.toString('hex'))
    const reply = await this.call('read', fd, mostBytes)
    await this.call('close', fd)
    // Others than root are answered before they have asked, so their request may fail and the answer be there.
    if (reply === '' && !/^\d+$/.test(written)) return written
    return /^[A-Z]/.test(reply) ? reply : Buffer.from(reply, 'hex')
  }
}

async function controlDescriptor(pid: number): Promise<number> {
  const devices = await readFile('/proc/devices', 'utf8')
  const major = Number(/^ *(\d+) ietctl$/m.exec(devices)![1])
  for (const fd of await readdir(`/proc/${pid}/fd`)) {
    const {rdev, mode} = await stat(`/proc/${pid}/fd/${fd}`)
    if ((mode & 0o170000) === 0o020000 && rdev >> 8 === major) return Number(fd)
  }
  throw new Error(`Process ${pid} has no descriptor of the control device`)
}

async function started(t: ExecutionContext, options?: IetOptions): Promise<Iet> {
  const iet = await Iet.start(options)
  t.teardown(() => iet.stop())
  return iet
}

/** IET with one bare caller that has a duplicate of ietd's descriptor. */
async function withDuplicate(t: ExecutionContext, options?: IetOptions) {
  const iet = await started(t, options)
  const raw = await Raw.start(t)
  return {iet, raw, fd: await raw.duplicate(await iet.pid())}
}

const listing = (iet: Iet, name: 'volume' | 'session') => readFile(`${iet.procDir}/${name}`, 'utf8')

function message({rcmnd, tid = 0, sid = 0n, cid = 0, lun = 0, union = Buffer.alloc(0)}: MessageFields): Buffer {
  const bytes = Buffer.alloc(2072)
  bytes.writeUInt32LE(rcmnd)
  bytes.writeUInt32LE(tid, 4)
  bytes.writeBigUInt64LE(sid, 8)
  bytes.writeUInt32LE(cid, 16)
  bytes.writeUInt32LE(lun, 20)
  union.copy(bytes, 24)
  return bytes
}

interface MessageFields {
  rcmnd: number
  tid?: number
  sid?: bigint
  cid?: number
  lun?: number
  union?: Buffer
}

const errorOf = (reply: Buffer | string) => (typeof reply === 'string' ? reply : reply.readInt32LE(2072))
const nameUnion = (name: string) => Buffer.from(`${name}\0`)

lab('1. the device, its number and its version are where IET has them', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  t.deepEqual((await readdir(iet.procDir)).sort(), ['session', 'volume'])
  t.is(await listing(iet, 'volume'), '')
  t.is(await listing(iet, 'session'), '')
  // GET_MODULE_INFO is coded as if it read, and writes all the same.
  const info = (await raw.ioctl(fd, code.moduleInfo, Buffer.alloc(128, 0xff))) as Buffer
  t.is(info.toString('latin1').replace(/\0+$/, ''), '1.4.20.2')
})

lab('2. targets, volumes and the listing in the order of IET', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  await writeFile('/run/f0.img', Buffer.alloc(2 ** 24))
  await writeFile('/run/f1.img', Buffer.alloc(2 ** 23))
  await run('modprobe', ['loop'])
  t.is(await raw.addTarget(fd, 0, 'iqn.2001-04.com.example:disk.a'), 1)
  t.is(await raw.addTarget(fd, 0, 'iqn.2001-04.com.example:disk.b'), 2)
  t.is(await raw.addVolume(fd, 1, 0, 'Path=/run/f0.img,Type=fileio'), '0')
  t.is(await raw.addVolume(fd, 1, 5, 'path=/run/f1.img,TYPE=fileio,IOMode=ro,BlockSize=4096'), '0')
  t.is(await raw.addVolume(fd, 1, 7, `Type=blockio,Path=${labDisk(1)}`), '0')
  t.is(await raw.addVolume(fd, 2, 0, 'Type=nullio'), '0')
  t.is(
    await listing(iet, 'volume'),
    `tid:2 name:iqn.2001-04.com.example:disk.b
	lun:0 state:0 iotype:nullio iomode:wt blocks:134217728 blocksize:512
tid:1 name:iqn.2001-04.com.example:disk.a
	lun:0 state:0 iotype:fileio iomode:wt blocks:32768 blocksize:512 path:/run/f0.img
	lun:5 state:0 iotype:fileio iomode:ro blocks:2048 blocksize:4096 path:/run/f1.img
	lun:7 state:0 iotype:blockio iomode:wt blocks:32768 blocksize:512 path:${labDisk(1)}
`,
  )
  t.is(
    await listing(iet, 'session'),
    'tid:2 name:iqn.2001-04.com.example:disk.b\ntid:1 name:iqn.2001-04.com.example:disk.a\n',
  )
})

lab('3. ietd creates a target, tells its tid, adds a LUN and deletes it', async t => {
  const iet = await started(t)
  const raw = await Raw.start(t)
  const name = 'iqn.2001-04.com.example:disk.a'
  const made = (await raw.request(message({rcmnd: 0, union: nameUnion(name)}))) as Buffer
  t.is(errorOf(made), 0)
  t.is(made.readUInt32LE(4), 1)
  t.is(errorOf(await raw.request(message({rcmnd: 13, tid: 1, lun: 1, union: nameUnion('Type=nullio')}))), 0)
  t.regex(await listing(iet, 'volume'), /\tlun:1 state:0 iotype:nullio/)
  t.is(errorOf(await raw.request(message({rcmnd: 1, tid: 1}))), 0)
  t.is(await listing(iet, 'volume'), '')
})

const nameA = 'iqn.2001-04.com.example:disk.a'
const nameB = 'iqn.2001-04.com.example:disk.b'

lab('4. each close of any open of the device deletes every target and starts their numbers anew', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  const {rdev} = await stat(iet.device)
  await run('mknod', ['/run/other', 'c', String(rdev >> 8), String(rdev & 0xff)])
  t.teardown(() => rm('/run/other'))
  const pid = await iet.pid()
  const ways = [
    [iet.device, 'r'],
    [iet.device, 'w'],
    ['/run/other', 'r'],
    [`/proc/${pid}/fd/${await controlDescriptor(pid)}`, 'w'],
  ]
  for (const [path, mode] of ways) {
    t.is(await raw.addTarget(fd, 0, nameA), 1)
    t.is(await raw.addTarget(fd, 0, nameB), 2)
    const opened = await raw.call('open', path!, mode!)
    t.not(await listing(iet, 'volume'), '', 'the open alone')
    t.is(await raw.call('close', opened), '0')
    t.is(await listing(iet, 'volume'), '', `${path} ${mode}`)
  }
  t.is(await raw.addTarget(fd, 0, nameA), 1)
  await run('cat', [iet.device], {accept: [1]})
  t.is(await listing(iet, 'volume'), '')
  t.like(await iet.moduleState(), {wipes: 5, opens: 6, releases: 5})
})

lab('5. O_PATH, stat, a duplicate and a forked duplicate keep the targets', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  t.is(await raw.addTarget(fd, 0, nameA), 1)
  await raw.call('close', await raw.call('open', iet.device, 'p'))
  await stat(iet.device)
  await run('chmod', ['600', iet.device])
  t.is(await raw.call('fork'), '0')
  t.is(await raw.call('close', fd), '0')
  t.is(await listing(iet, 'volume'), `tid:1 name:${nameA}\n`)
  t.like(await iet.moduleState(), {wipes: 0, releases: 0})
})

lab('6. a duplicate that outlives ietd keeps the old targets, and takes those of the next ietd with it', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  t.is(errorOf(await raw.request(message({rcmnd: 0, union: nameUnion(nameA)}))), 0)
  await iet.killDaemon()
  await iet.startDaemon()
  t.is(await listing(iet, 'volume'), `tid:1 name:${nameA}\n`)
  t.deepEqual((await iet.daemonState()).targets, [])
  t.is(errorOf(await raw.request(message({rcmnd: 0, union: nameUnion(nameB)}))), 0)
  t.is(await raw.call('close', fd), '0')
  t.is(await listing(iet, 'volume'), '')
  t.is((await iet.daemonState()).targets.length, 1)
})

lab(
  '7. after a wipe ietd still lists the targets, a new one takes over the number, and both can be mended',
  async t => {
    const {iet, raw, fd} = await withDuplicate(t)
    const create = (name: string) => raw.request(message({rcmnd: 0, union: nameUnion(name)}))
    const initiator = 'iqn.2020-01.test:one'
    t.is(errorOf(await create(nameA)), 0)
    t.is((await iet.login(nameA, {initiator})).status, 'ok')
    await iet.wipe()

    t.deepEqual(await iet.discover({initiator}), [nameA])
    t.is((await iet.login(nameA, {initiator})).status, '0x0201')
    const typed = Buffer.alloc(716)
    typed.writeUInt32LE(1, 512)
    t.is(errorOf(await raw.request(message({rcmnd: 3, tid: 1, union: typed}))), -2)
    t.is(errorOf(await raw.request(message({rcmnd: 1, tid: 1}))), -2)
    t.is(errorOf(await create(nameA)), -22)
    t.is(errorOf(await create(nameA.toUpperCase())), -22)

    const made = (await create(nameB)) as Buffer
    t.deepEqual([errorOf(made), made.readUInt32LE(4)], [0, 1])
    t.like(await iet.login(nameA, {initiator}), {status: 'ok', tid: 1})
    t.regex(await listing(iet, 'session'), new RegExp(`^tid:1 name:${nameB}\n\tsid:\\d+ initiator:${initiator}\n`))

    await iet.wipe()
    t.is(await raw.addTarget(fd, 1, nameA), 1)
    t.is(errorOf(await raw.request(message({rcmnd: 1, tid: 1}))), 0)
    t.deepEqual(
      (await iet.daemonState()).targets.map(({name}) => name),
      [nameB],
    )
  },
)

lab('8. ietd does not learn of a target that an ioctl made', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  t.is(await raw.addTarget(fd, 7, nameA), 7)
  const initiator = 'iqn.2020-01.test:one'
  t.deepEqual(await iet.discover({initiator}), [])
  t.is((await iet.login(nameA, {initiator})).status, '0x0203')
  t.is(errorOf(await raw.request(message({rcmnd: 1, tid: 7}))), -2)
  t.is(errorOf(await raw.request(message({rcmnd: 0, union: nameUnion(nameA)}))), -17)
  t.is(errorOf(await raw.request(message({rcmnd: 0, tid: 7, union: nameUnion(nameB)}))), -17)
  // And the other way round: ietd goes on to list a target that an ioctl deleted.
  t.is(errorOf(await raw.request(message({rcmnd: 0, union: nameUnion(nameB)}))), 0)
  const info = Buffer.alloc(260)
  info.writeUInt32LE(1)
  t.not(typeof (await raw.ioctl(fd, code.delTarget, info)), 'string')
  t.deepEqual(await iet.discover({initiator}), [nameB])
})

lab('9. which names and numbers the module takes', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  t.is(await raw.addTarget(fd, 0, ''), 'EINVAL')
  t.is(await raw.addTarget(fd, 0xffffffff, nameA), 0xffffffff)
  t.is(await raw.addTarget(fd, 0xffffffff, nameB), 'EEXIST')
  t.is(await raw.addTarget(fd, 0, nameA), 'EEXIST')
  t.is(await raw.addTarget(fd, 0, nameA.toUpperCase()), 1)
  t.is(await raw.addTarget(fd, 3, 'two words, ünïcode'), 3)
  t.is(await raw.addTarget(fd, 0, Buffer.alloc(256, 'x')), 2)
  t.is(await raw.addTarget(fd, 0, 'real\ntid:9 name:forged'), 4)
  const lines = (await listing(iet, 'volume')).split('\n')
  t.deepEqual(lines.slice(0, 3), ['tid:4 name:real', 'tid:9 name:forged', `tid:2 name:${'x'.repeat(255)}`])
})

lab('10. errors of requests', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  t.is(await raw.addTarget(fd, 1, nameA), 1)
  const known = Buffer.alloc(300)
  known.writeUInt32LE(1)
  const unknown = Buffer.alloc(300)
  unknown.writeUInt32LE(2)
  for (const request of Object.values(code)) {
    if (request === code.moduleInfo || request === code.addTarget) continue
    t.is(await raw.ioctl(fd, request, unknown), 'ENOENT', request.toString(16))
  }
  t.is(await raw.ioctl(fd, 0x40046917, unknown), 'ENOENT')
  t.is(await raw.ioctl(fd, 0x40046917, known), 'EINVAL')
  for (const request of [...Object.values(code), 0x40046917]) {
    t.is(await raw.call('pointer', fd, request, 8), 'EFAULT', request.toString(16))
  }
  // Unknown: a session, for each request that names one.
  for (const request of [code.delSession, code.getSession, code.delConn, code.getConn]) {
    t.is(await raw.ioctl(fd, request, known), 'ENOENT', request.toString(16))
  }
  t.is(await raw.addVolume(fd, 1, 0x3fff, 'Type=nullio'), '0')
  t.is(await raw.addVolume(fd, 1, 0x4000, 'Type=nullio'), 'EINVAL')
  t.is(await raw.addVolume(fd, 1, 0x3fff, 'bogus'), 'EEXIST')
  t.is(await raw.ioctl(fd, code.delVolume, known), 'ENOENT')
  const fourMiB = 4 * 2 ** 20
  t.is(await raw.call('arguments', fd, code.addVolume, 1, 8, fourMiB - 1), 'EFAULT')
  t.is(await raw.call('arguments', fd, code.addVolume, 1, 8, fourMiB), 'ENOMEM')
  t.is((await iet.moduleState()).targets[0]!.volumes.length, 1)
})

lab('11. what ADD_VOLUME takes and refuses', async t => {
  const {raw, fd} = await withDuplicate(t)
  await writeFile('/run/f.img', Buffer.alloc(2 ** 20))
  t.is(await raw.addTarget(fd, 1, nameA), 1)
  const refused: Record<string, string> = {
    'Type=bogus,Path=/run/f.img': 'ENOENT',
    'Type=FILEIO,Path=/run/f.img': 'ENOENT',
    'Type=fileio': 'EINVAL',
    'Type=fileio,Path=': 'EINVAL',
    'Path=/run/f.img,Path=/run/f.img': 'EINVAL',
    'Path=/run/f.img,Colour=red': 'EINVAL',
    'Path=/run/f.img, Type=fileio': 'EINVAL',
    'Path=/run/f.img ,Type=fileio': 'ENOENT',
    'Path=/run/none.img': 'ENOENT',
    'Path=/run': 'EISDIR',
    'Path=/dev/null': 'EINVAL',
    'Path=/dev/ietctl': 'EINVAL',
    'Type=blockio,Path=/run/f.img': 'ENOTBLK',
    'Type=nullio,IOMode=ro': 'EINVAL',
    'Type=nullio,Path=/run/f.img': 'EINVAL',
    'Type=nullio,Sectors=many': 'EINVAL',
    'Path=/run/f.img,Sectors=8': 'EINVAL',
    'Path=/run/f.img,IOMode=rw': 'EINVAL',
    'Path=/run/f.img,BlockSize=513': 'EINVAL',
    'Path=/run/f.img,BlockSize=256': 'EINVAL',
    'Path=/run/f.img,BlockSize=8192': 'EINVAL',
    'Path=/run/f.img,ScsiId=12345678901234567': 'EINVAL',
    [`Path=/run/f.img,ScsiSN=${'1'.repeat(33)}`]: 'EINVAL',
    'Path=/run/f.img,ScsiSN=\u0001': 'EINVAL',
  }
  for (const [args, error] of Object.entries(refused)) t.is(await raw.addVolume(fd, 1, 1, args), error, args)
  const taken = [
    'Path=/run/f.img',
    'pAtH=/run/f.img,tYpE=fileio,iomode=wb,BLOCKSIZE=4096',
    `Path=${labDisk(1)},Type=fileio`,
    'BlockSize=4096,Type=nullio,Sectors=8',
    `Path=/run/f.img,ScsiId=1234567890123456,ScsiSN=${'1'.repeat(32)}`,
  ]
  for (const [lun, args] of taken.entries()) t.is(await raw.addVolume(fd, 1, lun, args), '0', args)
})

lab('12. errors are masked by what comes after them', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  await writeFile('/run/f.img', Buffer.alloc(2 ** 20))
  t.is(await raw.addTarget(fd, 1, nameA), 1)
  const masking = ['ScsiId=abc', 'ScsiSN=abc', 'IOMode=ro', 'BlockSize=1024']
  for (const [lun, item] of masking.entries()) {
    t.is(await raw.addVolume(fd, 1, lun, `Type=bogus,${item},Path=/run/f.img`), '0', item)
  }
  t.is(await raw.addVolume(fd, 1, 9, 'ScsiId=abc,Path=/run/f.img,Type=bogus'), 'ENOENT')
  for (const line of (await listing(iet, 'volume')).split('\n').slice(1, -1)) t.regex(line, /iotype:fileio/)
  const volumes = (await iet.moduleState()).targets[0]!.volumes
  t.is(volumes[0]!.scsiId, Buffer.from('abc').toString('hex'))
  t.is(volumes[1]!.scsiSn, 'abc')
  // md5sum of the name and four zero bytes.
  t.is(volumes[0]!.scsiSn, createHash('md5').update(`${nameA}\0\0\0\0`).digest('hex'))
})

lab('13. a path is resolved for the caller, over the socket for ietd, and the size stays what it was', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  await mkdir('/run/jail/run', {recursive: true})
  await writeFile('/run/jail/run/inside.img', Buffer.alloc(2 ** 20))
  await writeFile('/run/secret.img', Buffer.alloc(2 ** 20), {mode: 0o600})
  await writeFile('/run/open.img', Buffer.alloc(2 ** 20))
  await chmod('/run/open.img', 0o666)
  t.is(await raw.addTarget(fd, 1, nameA), 1)

  const elsewhere = await Raw.start(t, {cwd: '/run'})
  const copy = await elsewhere.duplicate(await iet.pid())
  t.is(await elsewhere.addVolume(copy, 1, 0, 'Path=open.img'), '0')
  t.is(await raw.addVolume(fd, 1, 1, 'Path=open.img'), 'ENOENT')
  t.is(await elsewhere.call('chroot', '/run/jail'), '0')
  t.is(await elsewhere.addVolume(copy, 1, 1, 'Path=/run/inside.img'), '0')

  // The ioctl itself asks for no right: an inherited descriptor is enough.
  t.is(await raw.call('user', 65534), '0')
  t.is(await raw.addVolume(fd, 1, 2, 'Path=/run/secret.img'), 'EACCES')
  t.is(await raw.addVolume(fd, 1, 2, 'Path=/run/open.img'), '0')

  const root = await Raw.start(t, {cwd: '/run'})
  const overSocket = (lun: number, args: string) =>
    root.request(message({rcmnd: 13, tid: 1, lun, union: nameUnion(args)}))
  t.is(errorOf(await overSocket(3, 'Path=open.img')), -2)
  t.is(errorOf(await overSocket(3, 'Path=run/secret.img')), 0)

  await truncate('/run/open.img', 2 ** 21)
  t.regex(await listing(iet, 'volume'), /lun:2 .* blocks:2048 /)
  const info = Buffer.alloc(24)
  info.writeUInt32LE(1)
  info.writeUInt32LE(2, 4)
  t.not(typeof (await raw.ioctl(fd, code.delVolume, info)), 'string')
  t.is(await raw.addVolume(fd, 1, 2, 'Path=/run/open.img'), '0')
  t.regex(await listing(iet, 'volume'), /lun:2 .* blocks:4096 /)
})

lab('14. a LUN that is deleted in use stays in state 1, and a second deletion miscounts', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  t.is(await raw.addTarget(fd, 1, nameA), 1)
  t.is(await raw.addVolume(fd, 1, 0, 'Type=nullio'), '0')
  t.is(await raw.addVolume(fd, 1, 1, 'Type=nullio'), '0')
  await iet.setBusy(1, 0, true)
  const info = Buffer.alloc(24)
  info.writeUInt32LE(1)
  t.not(typeof (await raw.ioctl(fd, code.delVolume, info)), 'string')
  t.regex(await listing(iet, 'volume'), /\tlun:0 state:1 iotype:nullio/)
  t.is(await raw.addVolume(fd, 1, 0, 'Type=nullio'), 'EEXIST')
  t.is((await iet.moduleState()).targets[0]!.lunCount, 1)
  t.not(typeof (await raw.ioctl(fd, code.delVolume, info)), 'string')
  t.is((await iet.moduleState()).targets[0]!.lunCount, 0)
  await iet.setBusy(1, 0, false)
  t.notRegex(await listing(iet, 'volume'), /lun:0/)
  t.is(await raw.addVolume(fd, 1, 0, 'Type=nullio'), '0')
})

const sessionDefaults = [1, 1, 1, 8192, 8192, 262144, 65536, 2, 20, 1, 1, 1, 0, 1, 1, 0, 0, 2048, 2048]

/** `partial` is a set of keys, one bit each; `values` are at their keys. */
function params({tid = 1, sid = 0n, type = 0, partial = 0, values = {} as Record<number, number>}): Buffer {
  const bytes = Buffer.alloc(120)
  bytes.writeUInt32LE(tid)
  bytes.writeBigUInt64LE(sid, 8)
  bytes.writeUInt32LE(type, 16)
  bytes.writeUInt32LE(partial, 20)
  for (const [key, value] of Object.entries(values))
    bytes.writeUInt32LE(value, (type === 0 ? 24 : 100) + 4 * Number(key))
  return bytes
}

const words = (bytes: Buffer | string, from: number, count: number) =>
  Array.from({length: count}, (_, i) => (bytes as Buffer).readUInt32LE(from + 4 * i))

lab('15. parameters: defaults, single keys, silent clamping, one array at a time', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  t.is(await raw.addTarget(fd, 1, nameA), 1)
  const get = (fields: Parameters<typeof params>[0]) => raw.ioctl(fd, code.paramGet, params(fields))
  const set = async (fields: Parameters<typeof params>[0]) => {
    const after = await raw.ioctl(fd, code.paramSet, params(fields))
    return typeof after === 'string' ? after : 'set'
  }
  const session = await get({})
  t.deepEqual(words(session, 24, 19), sessionDefaults)
  t.deepEqual(words(session, 100, 5), [0, 0, 0, 0, 0])
  const target = await get({type: 1})
  t.deepEqual(words(target, 24, 19), Array(19).fill(0))
  t.deepEqual(words(target, 100, 5), [8, 0, 32, 0, 0])

  t.is(await set({partial: 1 << 5, values: {5: 131072, 6: 1}}), 'set')
  t.deepEqual(words(await get({}), 24, 19), [...sessionDefaults.slice(0, 5), 131072, ...sessionDefaults.slice(6)])
  t.is(await set({type: 1, partial: 1, values: {0: 999}}), 'set')
  t.deepEqual(words(await get({type: 1}), 100, 5), [1, 0, 32, 0, 0])
  // All keys, of which those that are zero are below their least.
  t.is(await set({type: 1, values: {0: 16, 3: 10}}), 'set')
  t.deepEqual(words(await get({type: 1}), 100, 5), [16, 0, 1, 10, 0])
  t.is(await set({type: 2}), 'EINVAL')
  t.is(await get({type: 2}), 'EINVAL')
  t.is(await set({sid: 5n}), 'ENOENT')

  // A session has what was the default at its login, until its own are set.
  await iet.addSession(1, {sid: 2n ** 63n + 1n, initiator: 'iqn.2020-01.test:one'})
  t.is(words(await get({sid: 2n ** 63n + 1n}), 24, 19)[5], 131072)
  t.is(await set({sid: 2n ** 63n + 1n, partial: 1 << 5, values: {5: 65536}}), 'set')
  t.is(words(await get({sid: 2n ** 63n + 1n}), 24, 19)[5], 65536)
  t.is(words(await get({}), 24, 19)[5], 131072)
})

lab('16. sessions and connections: listed newest first, read, and ended in each way', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  t.is(errorOf(await raw.request(message({rcmnd: 0, union: nameUnion(nameA)}))), 0)
  const [one, two] = [1407375538128000n, 1688850662744448n]
  await iet.addSession(1, {sid: one, initiator: 'iqn.2020-01.test:one1'})
  await iet.addConnection(1, one, {headerDigest: 'crc32c', dataDigest: 'crc32c'})
  await iet.addSession(1, {sid: two, initiator: 'iqn.2020-01.test:two1'})
  await iet.addConnection(1, two, {cid: 1, address: '::1', state: 'closing'})
  t.is(
    await listing(iet, 'session'),
    `tid:1 name:${nameA}
	sid:1688850662744448 initiator:iqn.2020-01.test:two1
		cid:1 ip:[0000:0000:0000:0000:0000:0000:0000:0001] state:closing hd:none dd:none
	sid:1407375538128000 initiator:iqn.2020-01.test:one1
		cid:0 ip:127.0.0.1 state:active hd:crc32c dd:crc32c
`,
  )
  const session = Buffer.alloc(280, 0xee)
  session.writeUInt32LE(1)
  session.writeBigUInt64LE(one, 8)
  const read = (await raw.ioctl(fd, code.getSession, session)) as Buffer
  t.deepEqual(read.subarray(0, 272), session.subarray(0, 272))
  t.notDeepEqual(read.subarray(272), session.subarray(272))

  const connection = Buffer.alloc(40)
  connection.writeUInt32LE(1)
  connection.writeBigUInt64LE(two, 8)
  t.is(await raw.ioctl(fd, code.delConn, connection), 'EEXIST', 'a connection that is not there')
  connection.writeUInt32LE(1, 16)
  const asked = (await raw.ioctl(fd, code.getConn, connection)) as Buffer
  t.is(asked.readUInt32LE(16), 1)
  t.deepEqual(asked.subarray(28), connection.subarray(28))

  t.is(errorOf(await raw.request(message({rcmnd: 1, tid: 1}))), -16)
  t.is(errorOf(await raw.request(message({rcmnd: 10, tid: 1, sid: two, cid: 9}))), -17)
  t.is(errorOf(await raw.request(message({rcmnd: 10, tid: 1, sid: two, cid: 1}))), 0)
  t.is(errorOf(await raw.request(message({rcmnd: 6, tid: 1, sid: two}))), -2)
  t.is(errorOf(await raw.request(message({rcmnd: 6, tid: 1, sid: one}))), 0)
  t.is(await listing(iet, 'session'), `tid:1 name:${nameA}\n`)

  await iet.addSession(1, {sid: one, initiator: 'iqn.2020-01.test:one1'})
  t.is(await listing(iet, 'session'), `tid:1 name:${nameA}\n\tsid:${one} initiator:iqn.2020-01.test:one1\n`)
  const target = Buffer.alloc(260)
  target.writeUInt32LE(1)
  t.not(typeof (await raw.ioctl(fd, code.delTarget, target)), 'string', 'by ioctl, with a live session')
  t.is(await listing(iet, 'session'), '')
})

lab('17. a listing comes in pieces of some 4 KiB that end where a target ends', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  for (let i = 1; i <= 79; i++) t.is(await raw.addTarget(fd, 0, `${nameA}${String(i).padStart(70, '0')}`), i)
  for (let lun = 0; lun < 70; lun++) t.is(await raw.addVolume(fd, 1, lun, 'Type=nullio'), '0')
  const file = await open(`${iet.procDir}/volume`)
  t.teardown(() => file.close())
  const piece = async () => {
    const {buffer, bytesRead} = await file.read(Buffer.alloc(65536))
    return buffer.subarray(0, bytesRead).toString()
  }
  const first = await piece()
  t.true(first.length > 3900 && first.length < 4096, String(first.length))
  t.true(first.endsWith('\n'))
  const next = (text: string) => Number(/^tid:(\d+)/.exec(text)![1])
  const last = Number([...first.matchAll(/^tid:(\d+)/gm)].at(-1)![1])

  // A target that is gone between two reads moves the others up: one is skipped.
  const newest = Buffer.alloc(260)
  newest.writeUInt32LE(79)
  t.not(typeof (await raw.ioctl(fd, code.delTarget, newest)), 'string')
  const second = await piece()
  t.is(next(second), last - 2)
  // One that has come since moves them down: one is repeated.
  const lastOfSecond = Number([...second.matchAll(/^tid:(\d+)/gm)].at(-1)![1])
  t.is(await raw.addTarget(fd, 0, nameB), 80)
  const third = await piece()
  t.is(next(third), lastOfSecond)
  // A target that does not fit into 4 KiB comes as a whole.
  const large = await piece()
  t.is(next(large), 1)
  t.true(large.length > 4096, String(large.length))
  t.is(await piece(), '')
  t.is((await listing(iet, 'volume')).match(/^tid:/gm)!.length, 79)
})

/** Until `condition` holds; a test that waits in vain ends with the file's deadline. */
async function until(condition: () => Promise<boolean>): Promise<void> {
  while (!(await condition())) await sleep(20)
}

lab('18. a call that hangs withstands SIGKILL, and those behind it end by a signal', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  const stuck = await Raw.start(t)
  const reader = await Raw.start(t)
  const copy = await stuck.duplicate(await iet.pid())
  t.is(await raw.addTarget(fd, 1, nameA), 1)
  await iet.addSession(1, {sid: 5n, initiator: 'iqn.2020-01.test:one'})
  const session = Buffer.alloc(280)
  session.writeUInt32LE(1)
  session.writeBigUInt64LE(5n, 8)

  await iet.hangNext('DEL_SESSION')
  const hanging = stuck.ioctl(copy, code.delSession, session)
  await until(async () => (await iet.moduleState()).hanging)
  const waiting = raw.ioctl(fd, code.getSession, session)
  const opened = await reader.call('open', `${iet.procDir}/session`, 'r')
  const reading = reader.call('read', opened, 65536)
  await until(async () => (await iet.moduleState()).waiting === 2)
  raw.child.kill('SIGUSR1')
  t.is(await waiting, 'EINTR')
  // The listing is cut off without a word.
  reader.child.kill('SIGUSR1')
  t.is(await reading, '')

  stuck.child.kill('SIGKILL')
  await sleep(500)
  t.regex(await readFile(`/proc/${stuck.child.pid}/stat`, 'utf8'), /\) D /)
  const ended = once(stuck.child, 'exit')
  await iet.resume()
  await ended
  t.is(await hanging, 'ended')
  t.is(await listing(iet, 'session'), `tid:1 name:${nameA}\n`)
})

lab('19. a slow module makes calls wait for each other', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  await iet.slowModule(300)
  const from = performance.now()
  t.is(await raw.addTarget(fd, 0, nameA), 1)
  t.true(performance.now() - from >= 300)
  await iet.slowModule(0)
})

lab('20. the socket: its address, whole requests, no-ops, and what is too many', async t => {
  const {iet, raw} = await withDuplicate(t)
  const short = 2 + 1 + 'IET_ABSTRACT_NAMESPACE'.length
  t.is(await raw.call('connect', short), 'ECONNREFUSED')
  t.is(await raw.call('connect', 109), 'ECONNREFUSED')

  t.is((await raw.request(Buffer.alloc(2071))).length, 0, 'a request that is cut off gets no answer')
  const noop = message({rcmnd: 24, tid: 4711, union: Buffer.alloc(2048, 0x5a)})
  const reply = (await raw.request(noop)) as Buffer
  t.is(reply.length, 2076)
  t.deepEqual(reply.subarray(0, 2072), noop)
  t.is(errorOf(reply), 0)
  for (const rcmnd of [15, 16, 19, 24, 26, 4711]) {
    t.is(errorOf(await raw.request(message({rcmnd, tid: 4711}))), 0, String(rcmnd))
  }
  const longest = Buffer.from(`Path=/run/${'x'.repeat(2037)}\0`)
  t.is(longest.length, 2048)
  t.is(errorOf(await raw.request(message({rcmnd: 0, union: nameUnion(nameA)}))), 0)
  t.is(errorOf(await raw.request(message({rcmnd: 13, tid: 1, union: longest}))), -36, 'ENAMETOOLONG, of the whole path')

  // The first stops ietd, and 33 more have room in its queue.
  const connections = [await raw.call('connect', 110)]
  const discovery = iet.discover({initiator: 'iqn.2020-01.test:one'})
  t.is(await Promise.race([discovery, sleep(500, 'blocked')]), 'blocked')
  for (let i = 0; i < 33; i++) connections.push(await raw.call('connect', 110))
  t.true(connections.every(fd => /^\d+$/.test(fd)))
  t.is(await raw.call('connect', 110), 'EAGAIN')
  for (const fd of connections) await raw.call('close', fd)
  t.deepEqual(await discovery, [nameA])
})

lab('21. others than root get EPERM, and with it what root had asked for', async t => {
  const iet = await started(t)
  const root = await Raw.start(t)
  const user = await Raw.start(t, {before: ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups']})
  const group = await Raw.start(t, {before: ['setpriv', '--regid=65534', '--clear-groups']})
  const account = Buffer.alloc(516)
  account.write('guest', 4)
  account.write('a-secret-of-root', 260)
  t.is(errorOf(await root.request(message({rcmnd: 17, union: account}))), 0)
  for (const other of [user, group]) {
    const reply = (await other.request(message({rcmnd: 24}))) as Buffer
    t.is(reply.length, 2076)
    t.is(errorOf(reply), -1)
    t.true(reply.includes('a-secret-of-root'))
  }
  t.is((await iet.daemonState()).refused, 2)
})

lab('22. accounts: of any target, the newest counts, one outgoing, secrets in clear', async t => {
  const iet = await started(t)
  const raw = await Raw.start(t)
  const request = async (rcmnd: number, tid: number, {direction = 0, name = '', pass = ''}) => {
    const account = Buffer.alloc(516)
    account.writeUInt32LE(direction)
    account.write(name, 4)
    account.write(pass, 260)
    return (await raw.request(message({rcmnd, tid, union: account}))) as Buffer
  }
  const initiator = 'iqn.2020-01.test:one'
  t.is(errorOf(await raw.request(message({rcmnd: 0, union: nameUnion(nameA)}))), 0)
  t.is(errorOf(await request(17, 4711, {name: 'nobody', pass: 'x'})), 0, 'a target that is not there')
  t.is(errorOf(await request(17, 1, {name: 'guest', pass: 'old'})), 0)
  t.is(errorOf(await request(17, 1, {name: 'guest', pass: 'new'})), 0)
  t.is((await iet.login(nameA, {initiator, user: 'guest', secret: 'old'})).status, '0x0201')
  t.is((await iet.login(nameA, {initiator})).status, '0x0201')
  t.is((await iet.login(nameA, {initiator, user: 'guest', secret: 'new'})).status, 'ok')
  const shown = await request(20, 1, {name: 'guest'})
  t.is(errorOf(shown), 0)
  t.is(shown.subarray(24 + 260, 24 + 260 + 4).toString(), 'new\0')
  t.is(errorOf(await request(20, 1, {name: 'stranger'})), -2)

  t.is(errorOf(await request(17, 1, {direction: 1, name: 'first'})), 0)
  t.is(errorOf(await request(17, 1, {direction: 1, name: 'second'})), 0)
  t.is(errorOf(await request(20, 1, {direction: 1, name: 'first'})), -2)
  t.is(errorOf(await request(20, 1, {direction: 1, name: 'second'})), 0)

  t.is(errorOf(await request(17, 0, {name: 'finder', pass: 'p'})), 0)
  t.deepEqual(await iet.discover({initiator}), [])
  t.deepEqual(await iet.discover({initiator, user: 'finder', secret: 'p'}), [nameA])

  const list = Buffer.alloc(516)
  list.writeUInt32LE(300, 4)
  const listed = (await raw.request(message({rcmnd: 25, tid: 1, union: list}))) as Buffer
  t.is(listed.length, 2076 + 300)
  t.deepEqual([listed.readUInt32LE(24 + 8), listed.readUInt32LE(24 + 12)], [1, 1])
  t.is(listed.subarray(2076, 2076 + 6).toString(), 'guest\0')

  t.is(errorOf(await request(18, 1, {name: 'guest'})), 0)
  t.is((await iet.login(nameA, {initiator, user: 'guest', secret: 'old'})).status, 'ok', 'the older is left')
  t.is(errorOf(await request(18, 1, {name: 'guest'})), 0)
  t.is(errorOf(await request(18, 1, {name: 'guest'})), -2)
})

lab('23. parameters and redirection over the socket', async t => {
  const iet = await started(t)
  const raw = await Raw.start(t)
  t.is(errorOf(await raw.request(message({rcmnd: 0, union: nameUnion(nameA)}))), 0)
  const update = Buffer.alloc(716)
  update.writeUInt32LE(3, 512)
  update.writeUInt32LE(1 << 6, 516)
  update.writeUInt32LE(1, 520)
  update.writeUInt32LE(131072, 524 + 8 * 6 + 4)
  update.writeUInt32LE(999, 676 + 4)
  t.is(errorOf(await raw.request(message({rcmnd: 2, tid: 1, union: update}))), 0)
  const show = Buffer.alloc(716)
  show.writeUInt32LE(3, 512)
  const shown = (await raw.request(message({rcmnd: 3, tid: 1, union: show}))) as Buffer
  const value = (at: number) => shown.readUInt32LE(24 + at + 4)
  t.deepEqual(
    Array.from({length: 19}, (_, key) => value(524 + 8 * key)),
    [...sessionDefaults.slice(0, 6), 131072, ...sessionDefaults.slice(7)],
  )
  t.deepEqual(
    Array.from({length: 5}, (_, key) => value(676 + 8 * key)),
    [1, 0, 32, 0, 0],
  )
  t.is(errorOf(await raw.request(message({rcmnd: 4, tid: 2, union: nameUnion('10.0.0.9:3260')}))), -2)
  t.is(errorOf(await raw.request(message({rcmnd: 4, tid: 1, union: nameUnion('10.0.0.9:3260')}))), 0)
  const {status} = await iet.login(nameA, {initiator: 'iqn.2020-01.test:one'})
  t.is(status, 'redirect 10.0.0.9:3260')
})

lab('24. initiators.allow is read at each login, and its first line for a target decides', async t => {
  const iet = await started(t)
  const raw = await Raw.start(t)
  t.is(errorOf(await raw.request(message({rcmnd: 0, union: nameUnion(nameA)}))), 0)
  const initiator = 'iqn.2020-01.test:one'
  const allowed = async (text: string, {name = initiator, address = '192.168.1.5'} = {}) => {
    await writeFile(`${iet.configDir}/initiators.allow`, text)
    const login = await iet.login(nameA, {initiator: name, address})
    const names = await iet.discover({initiator: name, address})
    if (login.status === 'ok') await iet.endSession(login.tid!, BigInt(login.sid!))
    t.is(names.length, login.status === 'ok' ? 1 : 0, 'discovery as login')
    t.true(['ok', 'denied'].includes(login.status), login.status)
    return login.status === 'ok'
  }
  const line = (list: string) => `${nameA} ${list}\n`
  t.is((await iet.login(nameA, {initiator})).status, 'ok', 'no file')
  t.false(await allowed(''))
  t.false(await allowed(`${nameB} ALL\n`))
  t.true(await allowed('# a comment\nALL ALL\n'))
  t.true(await allowed(line('ALL')))
  t.false(await allowed(`${line('10.0.0.1')}ALL ALL\n`))
  t.true(await allowed(`ALL ALL\n${line('10.0.0.1')}`))
  t.true(await allowed(line('10.0.0.1, 192.168.1.5')))
  t.true(await allowed(line('192.168.0.0/16')))
  t.true(await allowed(line('192.168.0.0/255.255.0.0')))
  t.false(await allowed(line('192.168.0.0/24')))
  t.true(await allowed(line('[fd00::]/8'), {address: 'fd00::7'}))
  t.false(await allowed(line('[fd00::]/8'), {address: 'fe80::7'}))
  t.true(await allowed(line('iqn\\.2020-01\\.test:one')))
  t.true(await allowed(line('iqn.2020-01.test:one'), {name: 'iqnx2020-01xtest:one'}))
  t.false(await allowed(line('2020-01.test:one')))
  t.true(await allowed(line('iqn.2020-01.*')))
  t.false(await allowed(line('ALL').trimEnd()), 'no newline at its end')
  t.false(await allowed(line(`${'x'.repeat(8191)},ALL`)))
})

lab('25. the end of ietd is the end of all targets, and its next start brings those of ietd.conf', async t => {
  const configuration = `Target ${nameA}\n\tLun 1 Type=nullio\n\tIncomingUser guest secret\n`
  const iet = await started(t, {configuration, configDir: '/etc/iet', pidFile: '/run/ietd.pid'})
  t.teardown(() => rm('/etc/iet', {recursive: true}))
  const raw = await Raw.start(t)
  const initial = await listing(iet, 'volume')
  t.is(initial, `tid:1 name:${nameA}\n\tlun:1 state:0 iotype:nullio iomode:wt blocks:134217728 blocksize:512\n`)
  for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
    t.is(errorOf(await raw.request(message({rcmnd: 0, union: nameUnion(nameB)}))), 0)
    const before = await iet.pid()
    await iet.killDaemon(signal)
    t.is(await listing(iet, 'volume'), '')
    t.is(await raw.call('connect', 110), 'ECONNREFUSED')
    await iet.startDaemon()
    t.not(await iet.pid(), before)
    t.is(await listing(iet, 'volume'), initial)
    t.like((await iet.daemonState()).accounts, [{tid: 1, name: 'guest'}])
  }
})

lab('26. SO_PEERCRED and a second ietd, by version', async t => {
  for (const version of ['1.4.20.2', '1.4.20.1'] as const) {
    const iet = await Iet.start({version})
    const raw = await Raw.start(t)
    try {
      t.is(errorOf(await raw.request(message({rcmnd: 0, union: nameUnion(nameA)}))), 0)
      const fd = await raw.call('connect', 110)
      const peer = Number(await raw.call('peer', fd))
      await raw.call('close', fd)
      const alive = await stat(`/proc/${peer}`).catch(() => undefined)
      if (version === '1.4.20.2') t.is(peer, await iet.pid())
      else t.is(alive, undefined, 'the process that listened before it forked')

      await iet.addSession(1, {sid: 5n, initiator: 'iqn.2020-01.test:one'})
      t.is(errorOf(await raw.request(message({rcmnd: 1, tid: 1}))), version === '1.4.20.2' ? -16 : 0)
      t.is(errorOf(await raw.request(message({rcmnd: 0, union: nameUnion(nameB)}))), 0)
      await iet.startSecondDaemon()
      const kept = (await listing(iet, 'volume')) !== ''
      t.is(kept, version === '1.4.20.2')
    } finally {
      await iet.stop()
    }
  }
})

lab('27. 1.4.19 has other numbers and no blocks in its listing, and 1.4.20.3 keeps no retain time', async t => {
  const old = await Iet.start({version: '1.4.19', configuration: `Target ${nameA}\n\tLun 0 Type=nullio\n`})
  try {
    const raw = await Raw.start(t)
    const fd = await raw.duplicate(await old.pid())
    t.is(await listing(old, 'volume'), `tid:1 name:${nameA}\n\tlun:0 state:0 iotype:nullio iomode:wt\n`)
    t.is(await raw.ioctl(fd, code.moduleInfo, Buffer.alloc(128)), 'ENOENT')
    t.is(await raw.addVolume(fd, 1, 1, 'Type=nullio'), 'EINVAL')
  } finally {
    await old.stop()
  }
  const {raw, fd} = await withDuplicate(t, {version: 'trunk'})
  const info = (await raw.ioctl(fd, code.moduleInfo, Buffer.alloc(128))) as Buffer
  t.is(info.toString('latin1').replace(/\0+$/, ''), 'trunk')
  t.is(await raw.addTarget(fd, 1, nameA), 1)
  const retain = async () => words(await raw.ioctl(fd, code.paramGet, params({})), 24, 19)[8]
  t.is(await retain(), 0)
  t.not(typeof (await raw.ioctl(fd, code.paramSet, params({partial: 1 << 8, values: {8: 20}}))), 'string')
  t.is(await retain(), 0)
})

lab('28. answers can be made short, long, of another, huge, late or none at all', async t => {
  const iet = await started(t)
  const raw = await Raw.start(t)
  const noop = message({rcmnd: 24})
  const lengths = {close: 0, short: 100, long: 2076 + 64}
  for (const [manner, length] of Object.entries(lengths)) {
    await iet.answer(manner as keyof typeof lengths)
    t.is((await raw.request(noop)).length, length, manner)
  }
  await iet.answer('echo')
  t.not(((await raw.request(noop)) as Buffer).readUInt32LE(), 24)
  await iet.answer('huge')
  t.is((await raw.request(noop, 100_000)).length, 100_000)
  await iet.answer('normal', {delayMs: 300})
  const from = performance.now()
  t.is(errorOf(await raw.request(noop)), 0)
  t.true(performance.now() - from >= 300)
  await iet.answer('never')
  const patient = await Raw.start(t)
  const unanswered = patient.request(noop)
  t.is(await Promise.race([unanswered, sleep(300, 'nothing')]), 'nothing')
  t.is(errorOf(await raw.request(noop)), 0, 'the next is served as always')
})

lab('29. ADD_CONN ends its caller, where a kernel would oops', async t => {
  const {iet, raw, fd} = await withDuplicate(t)
  t.is(await raw.addTarget(fd, 1, nameA), 1)
  const connection = Buffer.alloc(40)
  connection.writeUInt32LE(1)
  connection.writeInt32LE(-1, 36)
  t.is(await raw.ioctl(fd, code.addConn, connection), 'ended')
  t.is((await iet.moduleState()).oopses, 1)
})
