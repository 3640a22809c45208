// The tests that drive the addons, with the addons built under AddressSanitizer and UndefinedBehaviorSanitizer.
// `npm run test:sanitize` builds them first.
import {execFileSync} from 'node:child_process'
import {fileURLToPath} from 'node:url'

const directory = fileURLToPath(new URL('../../.cache/sanitize/build/Release', import.meta.url))
const runtime = execFileSync('g++', ['-print-file-name=libasan.so'], {encoding: 'utf8'}).trim()

export default {
  files: [
    ...['native', 'targets', 'initiators', 'compute', 'bench'].map(room => `dist/test/${room}/**/*.test.js`),
    // In the lab the ordinary build is what runs.
    '!dist/test/targets/lio.test.js',
    '!dist/test/initiators/open-iscsi.test.js',
    '!dist/test/targets/iet.test.js',
    '!dist/test/targets/iet-import.test.js',
    '!dist/test/bench/safety.test.js',
    // The sanitizers end a process that lacks memory.
    '!dist/test/native/out-of-memory.test.js',
    // No addon is loaded.
    '!dist/test/native/old-headers.test.js',
    '!dist/test/native/hardening.test.js',
  ],
  workerThreads: false,
  concurrency: 2,
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
  require: ['./test/sanitize/forget-preload.js'],
}
