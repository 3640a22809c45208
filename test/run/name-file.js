// Loaded into the process of each test file (observed.js): by this variable what the file starts finds its logs (logs.ts).
import test from 'ava'

process.env.LUNPATH_TEST_FILE = test.meta.file
