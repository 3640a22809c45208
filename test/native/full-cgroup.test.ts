// No thread to be had: a cgroup whose pids limit is reached, with the process in it. What asked for one is refused; the
// process goes on, and serves the same call as soon as there is room.
import test, {type ExecutionContext} from 'ava'
import {temporaryDirectory} from '../contract/targets.js'
import {AddonCalls} from '../fixtures/addon-process.js'
import {PidsCgroup} from '../fixtures/pids-cgroup.js'

/** A process for the calls of one addon, with a cgroup of its own. */
async function crowded(t: ExecutionContext, name: string): Promise<{calls: AddonCalls; cgroup: PidsCgroup}> {
  const calls = await AddonCalls.start(name, await temporaryDirectory(t))
  t.teardown(() => calls.end())
  const cgroup = await PidsCgroup.make()
  t.teardown(async () => {
    await calls.end()
    await cgroup.remove()
  })
  await cgroup.add(calls.pid)
  return {calls, cgroup}
}

/** What the calls end with where there is a thread for them. */
const expected: Record<string, string> = {
  tgt: 'ENOENT',
  'iet over its socket': 'ECONNREFUSED',
  'iet, a listing': 'ENOENT',
  configfs: 'ok',
  file: 'ok',
  'file, a wipe': 'EBADF',
  net: 'ENOENT',
  iscsi: 'ECONNREFUSED',
  libvirt: 'ok',
}

for (const [name, outcome] of Object.entries(expected)) {
  test.serial(`${name}: eight calls at once without a thread are refused, and done once there is one`, async t => {
    const {calls, cgroup} = await crowded(t, name)
    await cgroup.leaveRoomFor(0)
    t.deepEqual(await calls.make(8), Array(8).fill('EAGAIN'))
    await cgroup.free()
    t.deepEqual(await calls.make(8), Array(8).fill(outcome))
  })
}

test.serial('calls for which there are fewer threads than usual are all done', async t => {
  const {calls, cgroup} = await crowded(t, 'configfs')
  t.deepEqual(await calls.make(1), ['ok'])
  await cgroup.leaveRoomFor(0)
  t.deepEqual(await calls.make(8), Array(8).fill('ok'))
})

test.serial("libvirt's events: without a thread for them there is no connection, and one later", async t => {
  const {calls, cgroup} = await crowded(t, 'libvirt')
  // For the call itself.
  await cgroup.leaveRoomFor(1)
  t.deepEqual(await calls.make(1), ['EAGAIN'])
  await cgroup.free()
  t.deepEqual(await calls.make(1), ['ok'])
})

test.serial('a connection to libvirt that nobody keeps is collected without a thread for its end', async t => {
  const {calls, cgroup} = await crowded(t, 'libvirt')
  t.deepEqual(await calls.make(8), Array(8).fill('ok'))
  await cgroup.leaveRoomFor(0)
  await calls.forget()
  t.pass()
})
