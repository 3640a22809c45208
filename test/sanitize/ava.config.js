// The tests that drive the addons, with the addons built under AddressSanitizer and UndefinedBehaviorSanitizer.
// `npm run test:sanitize` builds them first.
import {execFileSync} from 'node:child_process'
import {fileURLToPath} from 'node:url'
import {observed} from '../run/observed.js'

const directory = fileURLToPath(new URL('../../.cache/sanitize/build/Release', import.meta.url))
const runtime = execFileSync('g++', ['-print-file-name=libasan.so'], {encoding: 'utf8'}).trim()

// The tests of native code: each addon's own, the benchmark's engines, and answers of a hostile target. What the drivers do
// with the addons is the same calls over again.
// What read-path and write-path run has its own sanitizers.
const engines = ['engines', 'flush', 'histogram', 'lifetime', 'open-loop', 'run', 'verify', 'write-engine']

export default {
  ...observed,
  files: [
    'dist/test/native/**/*.test.js',
    ...engines.map(name => `dist/test/bench/${name}.test.js`),
    // The only ones that drive the addons of configfs, of the kernel's disks, of libiscsi's sessions and discovery, and of files; and
    // much of libvirt's.
    'dist/test/compute/libvirt.test.js',
    'dist/test/targets/configfs.test.js',
    'dist/test/initiators/kernel-io.test.js',
    'dist/test/initiators/identity.test.js',
    'dist/test/initiators/libiscsi.test.js',
    'dist/test/targets/iet-access.test.js',
    // The sanitizers end a process that lacks memory.
    '!dist/test/native/out-of-memory.test.js',
    // No addon is loaded.
    '!dist/test/native/old-headers.test.js',
    '!dist/test/native/hardening.test.js',
  ],
  concurrency: 3,
  timeout: '8m',
  environmentVariables: {
    LUNPATH_ADDON_DIR: directory,
    // Node itself is not instrumented, so the runtime has to be there before the first addon; and libtirpc before that, since
    // the runtime looks for the XDR functions, which libvirt calls, only when it starts (a null call otherwise).
    LD_PRELOAD: `${runtime}:libtirpc.so.3`,
    // Node frees little at its end, which would all be reported.
    ASAN_OPTIONS: 'detect_leaks=0:halt_on_error=1',
    UBSAN_OPTIONS: 'halt_on_error=1:print_stacktrace=1',
  },
  require: [...observed.require, './test/sanitize/forget-preload.js'],
}
