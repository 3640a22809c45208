// The runtime is loaded by now. The servers that a test starts (tgtd, libvirtd, QEMU) must run without it; the Node
// processes that it starts need it again (test/fixtures/node-environment.ts).
process.env.LUNPATH_TEST_PRELOAD = process.env.LD_PRELOAD
delete process.env.LD_PRELOAD
