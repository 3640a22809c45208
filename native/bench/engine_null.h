// An engine that does nothing at once: what a run costs besides its I/O.
#pragma once

#include <time.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "bench/clock.h"
#include "bench/engine.h"

namespace lunpath::bench {

class NullEngine {
 public:
  explicit NullEngine(uint64_t size_bytes) : size_bytes_(size_bytes) {}

  const char* name() const { return "null"; }
  Result<DeviceFacts> Open() { return DeviceFacts{.size_bytes = size_bytes_}; }
  Status Prepare(uint32_t iodepth, const Buffers&) {
    done_ = std::make_unique<Done[]>(iodepth);
    return Nothing{};
  }
  std::vector<std::string> flags() const { return {}; }

  void Queue(const Request& request) { done_[count_++] = {.slot = request.slot, .bytes = request.bytes}; }

  bool Exchange(bool wait, uint64_t deadline) {
    if (!wait || count_ > 0) return true;
    // Nothing wakes it but time.
    constexpr uint64_t longest = 5 * kNsPerMs;
    const uint64_t now = Clock::Get().Now();
    if (deadline > now) {
      const timespec pause{.tv_sec = 0, .tv_nsec = static_cast<long>(std::min(deadline - now, longest))};
      nanosleep(&pause, nullptr);
    }
    return true;
  }

  template <class OnDone>
  void Reap(uint64_t now, OnDone done) {
    const uint32_t count = std::exchange(count_, 0);
    for (uint32_t i = 0; i < count; ++i) done(done_[i].slot, done_[i].bytes, now);
  }

  Error loss() const { return {}; }
  void CancelAll() {}
  Error Describe(int64_t) const { return {}; }
  bool IsGone(int64_t) { return false; }
  uint64_t HelpersCpuNs() const { return 0; }
  uint64_t KernelThreadsCpuNs() const { return 0; }
  void Close() {}
  void Abandon() {}
  void Wake() {}

 private:
  struct Done {
    uint32_t slot;
    uint32_t bytes;
  };

  uint64_t size_bytes_;
  std::unique_ptr<Done[]> done_;
  uint32_t count_ = 0;
};

}  // namespace lunpath::bench
