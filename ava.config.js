// The files that take minutes begin first: else the last of them runs alone. Those are files of the lab, whose machines
// are emulated.
const slowest = [
  'e2e/kernel-path',
  'e2e/kernel-guest',
  'e2e/host-route',
  'volumes/lvm-pools',
  'volumes/lost-pools',
  'volumes/lvm-batches',
  'volumes/lvm',
  'targets/iet',
  'e2e/lvm-scan',
  'initiators/open-iscsi',
  'volumes/lvm-create',
  'volumes/lvm-faults',
  'targets/lio',
  'targets/iet-import',
  'e2e/crash-points',
]

const rank = file => {
  const at = slowest.findIndex(name => file.endsWith(`/dist/test/${name}.test.js`))
  return at < 0 ? slowest.length : at
}

export default {
  files: ['dist/test/**/*.test.js'],
  workerThreads: false,
  concurrency: 2,
  timeout: '10m',
  sortTestFiles: (a, b) => rank(a) - rank(b) || a.localeCompare(b),
}
