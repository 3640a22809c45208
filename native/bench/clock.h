// The clock of a run: the processor's time stamp counter where the kernel trusts it too, else CLOCK_MONOTONIC.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#include "sys/clock.h"

namespace lunpath::bench {

inline constexpr uint64_t kNever = UINT64_MAX;

// Any thread. Times of one process's clock can be compared with each other, not with CLOCK_MONOTONIC: the two drift
// apart by the error of the calibration, some ten millionths.
class Clock {
 public:
  // Measures the counter against CLOCK_MONOTONIC, for 2 ms, when it is first called in the process.
  static const Clock& Get();

  // Nanoseconds.
  uint64_t Now() const {
#if defined(__x86_64__)
    if (ns_per_tick_ != 0) {
      const auto ticks = static_cast<unsigned __int128>(__rdtsc() - base_ticks_);
      return base_ns_ + static_cast<uint64_t>(ticks * ns_per_tick_ >> kFractionBits);
    }
#endif
    return NowNs();
  }

  bool is_tsc() const { return ns_per_tick_ != 0; }

 private:
  static constexpr int kFractionBits = 40;

  Clock();

  uint64_t ns_per_tick_ = 0;  // fixed point; 0: CLOCK_MONOTONIC
  uint64_t base_ticks_ = 0;
  uint64_t base_ns_ = 0;
};

}  // namespace lunpath::bench
