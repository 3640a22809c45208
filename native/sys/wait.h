// Waiting for a descriptor until a deadline.
#pragma once

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace lunpath {

// Whole milliseconds until `deadline`, rounded up; 0 when it has passed. Any thread.
inline int MillisecondsLeft(std::chrono::steady_clock::time_point deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

// Blocks until `events` (poll(2)) come: true. False at the deadline. Signals do not end it. Any thread.
inline bool Wait(int fd, short events, std::chrono::steady_clock::time_point deadline) {
  for (;;) {
    pollfd entry{.fd = fd, .events = events, .revents = 0};
    const int left = MillisecondsLeft(deadline);
    const int ready = poll(&entry, 1, left);
    if (ready > 0) return true;
    if (ready == 0 && left == 0) return false;
  }
}

}  // namespace lunpath
