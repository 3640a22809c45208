// The thread on which libvirt delivers events.
#pragma once

namespace lunpath::libvirt {

// Starts, once per process, a thread that runs libvirt's default event loop with all signals blocked. It must run
// before the first connection is opened: libvirt binds a connection to the event loop that it finds then. The thread
// lasts as long as the process (libvirt has no way to take an event loop back). Any thread may call it.
void EnsureEventLoop();

}  // namespace lunpath::libvirt
