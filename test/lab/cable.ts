import {createSocket, type Socket} from 'node:dgram'
import {once} from 'node:events'
import {l2tp} from './machine.js'

/**
 * A network cable between two machines of the lab. Each end is a UDP socket, to which one machine sends its Ethernet frames
 * (one a datagram) and which gets them to the other; so nothing of this host's network is touched.
 */
export class Cable {
  /** So long a frame is under way. */
  delayMs = 0
  /** The share of the frames that is lost, 0 to 1. */
  loss = 0
  #isCut = false
  readonly #ends: readonly [Socket, Socket]
  /** Where each machine sends from: known from its first frame. */
  readonly #peers: (number | undefined)[] = []

  private constructor(ends: readonly [Socket, Socket]) {
    this.#ends = ends
    for (const [i, end] of ends.entries()) {
      end.on('message', (frame, {port}) => {
        this.#peers[i] = port
        this.#pass(frame, 1 - i)
      })
      // A machine that has ended refuses what comes to it.
      end.on('error', () => undefined)
    }
  }

  static async make(): Promise<Cable> {
    const ends = [createSocket('udp4'), createSocket('udp4')] as const
    for (const end of ends) {
      end.bind(0, l2tp.address)
      await once(end, 'listening')
    }
    return new Cable(ends)
  }

  /** The ports of its ends. */
  get ports(): readonly [number, number] {
    const [one, other] = this.#ends
    return [one.address().port, other.address().port]
  }

  /** Nothing passes any more, what is under way included; nobody is told. */
  cut(): void {
    this.#isCut = true
  }

  mend(): void {
    this.#isCut = false
  }

  close(): void {
    for (const end of this.#ends) end.close()
    this.#isCut = true
  }

  #pass(frame: Buffer, to: number): void {
    if (this.#isCut || Math.random() < this.loss) return
    if (this.delayMs === 0) this.#deliver(frame, to)
    else setTimeout(() => this.#deliver(frame, to), this.delayMs)
  }

  #deliver(frame: Buffer, to: number): void {
    const port = this.#peers[to]
    if (port !== undefined && !this.#isCut) this.#ends[to]!.send(frame, port, l2tp.address)
  }
}
