import test from 'ava'
import {
  IetListingError,
  type IetTargetSessions,
  type IetTargetVolumes,
  parseSessions,
  parseVolumes,
} from '../../src/targets/iet-procfs.js'
import {generator, pick, seed} from '../fixtures/random.js'

test('a listing of volumes', t => {
  const text = `tid:2 name:iqn.2001-04.com.example:disk.b
	lun:0 state:0 iotype:nullio iomode:wt blocks:134217728 blocksize:512
tid:1 name:iqn.2001-04.com.example:disk.a
	lun:0 state:0 iotype:fileio iomode:wt blocks:32768 blocksize:512 path:/run/f0.img
	lun:5 state:1 iotype:fileio iomode:ro blocks:2048 blocksize:4096 path:/run/f1.img
	lun:7 state:0 iotype:blockio iomode:wt blocks:24576 blocksize:512 path:/dev/a disk: one
tid:4294967295 name:iqn.2001-04.com.example:empty
`
  const volume = {deleted: false, ioType: 'fileio', ioMode: 'wt', blockSizeBytes: 512}
  t.deepEqual(parseVolumes(text), [
    {
      tid: 2,
      iqn: 'iqn.2001-04.com.example:disk.b',
      volumes: [{...volume, lun: 0, ioType: 'nullio', blocks: 134_217_728, path: ''}],
    },
    {
      tid: 1,
      iqn: 'iqn.2001-04.com.example:disk.a',
      volumes: [
        {...volume, lun: 0, blocks: 32_768, path: '/run/f0.img'},
        {...volume, lun: 5, deleted: true, ioMode: 'ro', blocks: 2048, blockSizeBytes: 4096, path: '/run/f1.img'},
        {...volume, lun: 7, ioType: 'blockio', blocks: 24_576, path: '/dev/a disk: one'},
      ],
    },
    {tid: 4_294_967_295, iqn: 'iqn.2001-04.com.example:empty', volumes: []},
  ] as IetTargetVolumes[])
  t.deepEqual(parseVolumes(''), [])
})

test('1.4.18 and 1.4.19 show no blocks', t => {
  const text =
    'tid:1 name:a\n\tlun:0 state:0 iotype:fileio iomode:wt path:/a\n\tlun:1 state:0 iotype:nullio iomode:wt\n'
  const [target] = parseVolumes(text)
  t.deepEqual(
    target!.volumes.map(({blocks, path}) => [blocks, path]),
    [
      [undefined, '/a'],
      [undefined, ''],
    ],
  )
})

test('a listing of sessions', t => {
  const text = `tid:1 name:iqn.2001-04.com.example:disk.a
	sid:18446744073709551615 initiator:iqn.2020-01.test:two1
		cid:0 ip:127.0.0.1 state:active hd:none dd:none
		cid:1 ip:[0000:0000:0000:0000:0000:0000:0000:0001] state:closing hd:crc32c dd:none
	sid:1407375538128000 initiator:iqn.2020-01.test:one1
tid:7 name:iqn.2001-04.com.example:idle
`
  const connection = {cid: 0, address: '127.0.0.1', state: 'active', headerDigest: false, dataDigest: false}
  t.deepEqual(parseSessions(text), [
    {
      tid: 1,
      iqn: 'iqn.2001-04.com.example:disk.a',
      sessions: [
        {
          sid: 2n ** 64n - 1n,
          initiator: 'iqn.2020-01.test:two1',
          connections: [connection, {...connection, cid: 1, address: '::1', state: 'closing', headerDigest: true}],
        },
        {sid: 1_407_375_538_128_000n, initiator: 'iqn.2020-01.test:one1', connections: []},
      ],
    },
    {tid: 7, iqn: 'iqn.2001-04.com.example:idle', sessions: []},
  ] as IetTargetSessions[])
})

const volumeHead = 'tid:1 name:iqn.2001-04.com.example:a\n'
const badVolumes: Record<string, string> = {
  'no newline at its end': 'tid:1 name:a',
  'a cut-off line': `${volumeHead}\tlun:0 state:0 iotype:fil\n`,
  'a line of no target': '\tlun:0 state:0 iotype:nullio iomode:wt blocks:1 blocksize:512\n',
  'a target twice': `${volumeHead}${volumeHead}`,
  'a number twice': `${volumeHead}tid:1 name:iqn.2001-04.com.example:b\n`,
  'a name twice': `${volumeHead}tid:2 name:iqn.2001-04.com.example:a\n`,
  'tid 0': 'tid:0 name:a\n',
  'a tid of 33 bits': 'tid:4294967296 name:a\n',
  'a tid with a zero before it': 'tid:01 name:a\n',
  'no name': 'tid:1 name:\n',
  'a name of 256 bytes': `tid:1 name:${'a'.repeat(256)}\n`,
  'an empty line': `${volumeHead}\n`,
  'a carriage return': 'tid:1 name:a\r\n',
  'an escape': 'tid:1 name:a\u001b[2J\n',
  'a tab in a name': 'tid:1 name:a\tb\n',
  'a LUN twice': `${volumeHead}${'\tlun:0 state:0 iotype:nullio iomode:wt blocks:1 blocksize:512\n'.repeat(2)}`,
  'a LUN beyond 0x3fff': `${volumeHead}\tlun:16384 state:0 iotype:nullio iomode:wt blocks:1 blocksize:512\n`,
  'state 2': `${volumeHead}\tlun:0 state:2 iotype:nullio iomode:wt blocks:1 blocksize:512\n`,
  'another type': `${volumeHead}\tlun:0 state:0 iotype:tape iomode:wt blocks:1 blocksize:512 path:/a\n`,
  'another mode': `${volumeHead}\tlun:0 state:0 iotype:fileio iomode:rw blocks:1 blocksize:512 path:/a\n`,
  'a block size of 513': `${volumeHead}\tlun:0 state:0 iotype:fileio iomode:wt blocks:1 blocksize:513 path:/a\n`,
  'blocks beyond 2^53': `${volumeHead}\tlun:0 state:0 iotype:nullio iomode:wt blocks:9007199254740993 blocksize:512\n`,
  'nullio with a path': `${volumeHead}\tlun:0 state:0 iotype:nullio iomode:wt blocks:1 blocksize:512 path:/a\n`,
  'fileio without a path': `${volumeHead}\tlun:0 state:0 iotype:fileio iomode:wt blocks:1 blocksize:512\n`,
  'blocks without a block size': `${volumeHead}\tlun:0 state:0 iotype:fileio iomode:wt blocks:1 path:/a\n`,
  'a path that forges a target': `${volumeHead}\tlun:0 state:0 iotype:fileio iomode:wt blocks:1 blocksize:512 path:/a\ntid:1 name:b\n`,
}

for (const [what, text] of Object.entries(badVolumes)) {
  test(`volumes: ${what} is an error`, t => {
    t.throws(() => parseVolumes(text), {instanceOf: IetListingError})
  })
}

const sessionHead = `${volumeHead}\tsid:5 initiator:i\n`
const badSessions: Record<string, string> = {
  'a session of no target': '\tsid:5 initiator:i\n',
  'a connection of no session': `${volumeHead}\t\tcid:0 ip:127.0.0.1 state:active hd:none dd:none\n`,
  'a session twice': `${sessionHead}\tsid:5 initiator:j\n`,
  'a sid of 65 bits': `${volumeHead}\tsid:18446744073709551616 initiator:i\n`,
  'a sid that is none': `${volumeHead}\tsid:-1 initiator:i\n`,
  'no initiator': `${volumeHead}\tsid:5 initiator:\n`,
  'a connection twice': `${sessionHead}${'\t\tcid:0 ip:127.0.0.1 state:active hd:none dd:none\n'.repeat(2)}`,
  'a cid of 17 bits': `${sessionHead}\t\tcid:65536 ip:127.0.0.1 state:active hd:none dd:none\n`,
  'an address that is none': `${sessionHead}\t\tcid:0 ip:127.0.0.256 state:active hd:none dd:none\n`,
  'IPv6 without brackets': `${sessionHead}\t\tcid:0 ip:::1 state:active hd:none dd:none\n`,
  'seven groups': `${sessionHead}\t\tcid:0 ip:[${Array(7).fill('0000').join(':')}] state:active hd:none dd:none\n`,
  'a state that is none': `${sessionHead}\t\tcid:0 ip:127.0.0.1 state:open hd:none dd:none\n`,
  'another digest': `${sessionHead}\t\tcid:0 ip:127.0.0.1 state:active hd:md5 dd:none\n`,
  'something behind the line': `${sessionHead}\t\tcid:0 ip:127.0.0.1 state:active hd:none dd:none x\n`,
}

for (const [what, text] of Object.entries(badSessions)) {
  test(`sessions: ${what} is an error`, t => {
    t.throws(() => parseSessions(text), {instanceOf: IetListingError})
  })
}

/** What the kernel prints, written here from its description alone. */
function printVolumes(targets: IetTargetVolumes[]): string {
  return targets
    .map(({tid, iqn, volumes}) => {
      const lines = volumes.map(one => {
        const blocks = one.blocks === undefined ? '' : ` blocks:${one.blocks} blocksize:${one.blockSizeBytes}`
        const path = one.path === '' ? '' : ` path:${one.path}`
        return `\tlun:${one.lun} state:${one.deleted ? 1 : 0} iotype:${one.ioType} iomode:${one.ioMode}${blocks}${path}\n`
      })
      return `tid:${tid} name:${iqn}\n${lines.join('')}`
    })
    .join('')
}

function printSessions(targets: IetTargetSessions[]): string {
  const digest = (on: boolean) => (on ? 'crc32c' : 'none')
  return targets
    .map(({tid, iqn, sessions}) => {
      const lines = sessions.map(({sid, initiator, connections}) => {
        const inner = connections.map(
          one =>
            `\t\tcid:${one.cid} ip:${printAddress(one.address)} state:${one.state} hd:${digest(one.headerDigest)} dd:${digest(one.dataDigest)}\n`,
        )
        return `\tsid:${sid} initiator:${initiator}\n${inner.join('')}`
      })
      return `tid:${tid} name:${iqn}\n${lines.join('')}`
    })
    .join('')
}

function printAddress(address: string): string {
  if (!address.includes(':')) return address
  const [left = '', right] = address.split('::')
  const groups = (text: string) => (text === '' ? [] : text.split(':'))
  const before = groups(left)
  const after = groups(right ?? '')
  const zeros = right === undefined ? [] : Array(8 - before.length - after.length).fill('0')
  return `[${[...before, ...zeros, ...after].map(group => group.padStart(4, '0')).join(':')}]`
}

const letters = [...'abcdefghijklmnopqrstuvwxyz0123456789.-: /=,\\"éß漢[]%']

class Maker {
  readonly #random: () => number

  constructor(from: number) {
    this.#random = generator(from)
  }

  below(limit: number): number {
    return Math.floor(this.#random() * limit)
  }
  one<T>(items: T[]): T {
    return pick(this.#random, items)!
  }
  text(maxLength: number): string {
    return Array.from({length: 1 + this.below(maxLength)}, () => this.one(letters)).join('')
  }
  several<T>(limit: number, make: (index: number) => T): T[] {
    return Array.from({length: this.below(limit)}, (_, index) => make(index))
  }
  sid(): bigint {
    return this.several(9, () => BigInt(this.below(256))).reduce((sum, byte) => sum * 256n + byte, 0n) % 2n ** 64n
  }
  address(): string {
    if (this.one([true, false])) return Array.from({length: 4}, () => this.below(256)).join('.')
    const groups = Array.from({length: 8}, () => this.one(['0', '0', this.below(65_536).toString(16)]))
    return new URL(`http://[${groups.join(':')}]`).hostname.slice(1, -1)
  }

  volumes(): IetTargetVolumes[] {
    const old = this.one([true, false, false])
    return this.several(30, index => ({
      tid: 1 + index * 7 + this.below(7),
      iqn: `${this.text(60)}${index}`,
      volumes: this.several(6, lun => {
        const ioType = this.one<'fileio' | 'blockio' | 'nullio'>(['fileio', 'blockio', 'nullio'])
        return {
          lun: lun * 2700 + this.below(2700),
          deleted: this.one([true, false]),
          ioType,
          ioMode: this.one<'wt' | 'wb' | 'ro'>(['wt', 'wb', 'ro']),
          blocks: old ? undefined : this.one([0, 1, 2 ** 53 - 1, this.below(2 ** 40)]),
          blockSizeBytes: old ? undefined : this.one([512, 1024, 2048, 4096]),
          path: ioType === 'nullio' ? '' : `/${this.text(100)}`,
        }
      }),
    }))
  }

  sessions(): IetTargetSessions[] {
    return this.several(20, index => {
      const sids = new Set(this.several(6, () => this.sid()))
      return {
        tid: 1 + index,
        iqn: `${this.text(60)}${index}`,
        sessions: [...sids].map(sid => ({
          sid,
          initiator: this.text(223).slice(0, 120),
          connections: this.several(3, cid => ({
            cid,
            address: this.address(),
            state: this.one<'active' | 'closing' | 'unknown'>(['active', 'closing', 'unknown']),
            headerDigest: this.one([true, false]),
            dataDigest: this.one([true, false]),
          })),
        })),
      }
    })
  }

  /** Cuts, doubles, changes and swaps pieces. */
  damage(text: string): string {
    let damaged = text
    for (let i = 1 + this.below(4); i > 0; i--) {
      const at = this.below(damaged.length + 1)
      const length = this.below(12)
      const insert = this.one([
        '',
        '\n',
        '\t',
        '0',
        ' ',
        'tid:1 name:x\n',
        '\u0000',
        '\ufffd',
        '9'.repeat(12),
        '-',
        damaged.slice(at, at + 40),
      ])
      damaged = damaged.slice(0, at) + insert + damaged.slice(at + length)
    }
    return damaged
  }
}

const rounds = Number(process.env.LUNPATH_TEST_ROUNDS ?? 1_000)

test('whatever is printed is read back, and nothing else', t => {
  t.log(`seed ${seed}`)
  const maker = new Maker(seed)
  for (let i = 0; i < rounds; i++) {
    const volumes = maker.volumes()
    t.deepEqual(parseVolumes(printVolumes(volumes)), volumes)
    const sessions = maker.sessions()
    t.deepEqual(parseSessions(printSessions(sessions)), sessions)
  }
})

test('what is damaged is refused in words, or printed again it is the same', t => {
  t.log(`seed ${seed}`)
  const maker = new Maker(seed + 1)
  let refused = 0
  let taken = 0
  const look = <T>(text: string, parse: (text: string) => T, print: (parsed: T) => string) => {
    let parsed: T
    try {
      parsed = parse(text)
    } catch (error) {
      refused++
      if (!(error instanceof IetListingError)) throw error
      return
    }
    taken++
    if (print(parsed) !== text) t.is(print(parsed), text)
  }
  for (let i = 0; i < rounds; i++) {
    look(maker.damage(printVolumes(maker.volumes())), parseVolumes, printVolumes)
    look(maker.damage(printSessions(maker.sessions())), parseSessions, printSessions)
  }
  t.log(`${refused} refused, ${taken} taken`)
  t.true(refused > rounds / 2 && taken > rounds / 100)
})
