// The runtime is loaded by now. The servers that a test starts (tgtd, libvirtd, QEMU) must run without it.
delete process.env.LD_PRELOAD
