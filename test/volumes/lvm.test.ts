// Volumes in LVM: the contract, thick and thin, and what is special to LVM.
import {volumeContract} from '../contract/volumes.js'
import {lab, labDisk} from '../lab/lab.js'
import {TestGroup} from './lvm-group.js'

const MiB = 2 ** 20

lab.options({
  disksBytes: [3072 * MiB],
  modules: ['dm-mod', 'dm-thin-pool', 'dm-snapshot', 'loop'],
  deadlineMs: 540_000,
})

let made: Promise<TestGroup> | undefined
/** One group for all tests of the file: each leaves it empty. */
const group = () => {
  made ??= TestGroup.make('lab-1', labDisk(1), {name: 'thin', size: '1g'})
  return made
}

for (const thinPool of [undefined, 'thin']) {
  volumeContract(
    thinPool ? 'lvm thin' : 'lvm thick',
    async (t, {limitBytes}) => {
      const own = await group()
      t.teardown(() => own.empty())
      const [row] = await own.run('vgs', '--units', 'b', '--nosuffix', '-o', 'vg_size', own.name)
      // Half a byte more keeps the product from being rounded down to one less.
      const overcommitRatio = (limitBytes + 0.5) / Number(row!.vg_size)
      const make = () => own.driver({thinPool, overcommitRatio, pool: thinPool ?? 'thick'})
      return {driver: make(), again: make}
    },
    {declare: lab, rounds: 2},
  )
}
