// The thread on which libvirt delivers events.
#pragma once

#include "sys/result.h"

namespace lunpath::libvirt {

// Starts, once per process, a thread that runs libvirt's default event loop with all signals blocked. It must run
// before the first connection is opened: libvirt binds a connection to the event loop that it finds then. The thread
// lasts as long as the process (libvirt has no way to take an event loop back). EAGAIN where there is
// no thread to be had: the next call tries again. Any thread may call it.
Status EnsureEventLoop();

}  // namespace lunpath::libvirt
