import test from 'ava'
import {formatRound, KillRounds} from '../fixtures/kill-rounds.js'
import {seed} from '../fixtures/random.js'

/** A few of the rounds of kill -9; `npm run rounds` runs as many as one likes. */
const count = 4

test(`${count} rounds of kill -9 of daemon, libvirtd and tgtd: nothing is lost, left over or doubled`, async t => {
  t.log(`LUNPATH_TEST_SEED=${seed}`)
  const rounds = await KillRounds.start(seed)
  t.teardown(() => rounds.stop())
  for (let number = 0; number < count; number++) {
    const round = await rounds.round(number)
    t.log(formatRound(round))
    t.deepEqual(round.anomalies, [])
  }
  t.true(rounds.blocksChecked > 0, 'no guest has written anything')
})
