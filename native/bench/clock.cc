#include "bench/clock.h"

#include <cmath>
#include <fstream>
#include <string>

namespace lunpath::bench {

#if defined(__x86_64__)
namespace {

constexpr uint64_t kWindowNs = kNsPerMs;
constexpr double kMostDisagreement = 500e-6;

// constant_tsc: it does not change with the frequency; nonstop_tsc: it does not stop in deep sleep (Intel SDM, volume
// 3, "Invariant TSC").
bool CounterIsInvariant() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (!line.starts_with("flags")) continue;
    line += ' ';
    return line.find(" constant_tsc ") != std::string::npos && line.find(" nonstop_tsc ") != std::string::npos;
  }
  return false;
}

// The kernel watches the counter and leaves it where the processors do not agree or another clock shows it to drift
// (kernel/time/clocksource.c, clocksource_watchdog); then it is nothing to measure by.
bool KernelUsesCounter() {
  std::string current;
  std::ifstream("/sys/devices/system/clocksource/clocksource0/current_clocksource") >> current;
  return current == "tsc";
}

struct Moment {
  uint64_t ticks;
  uint64_t ns;
};

// Both clocks at one moment: of some tries the one in which least time passed between the two readings of the counter.
Moment ReadBoth() {
  Moment best{};
  uint64_t shortest = UINT64_MAX;
  for (int i = 0; i < 8; ++i) {
    const uint64_t before = __rdtsc();
    const uint64_t ns = NowNs();
    const uint64_t took = __rdtsc() - before;
    if (took >= shortest) continue;
    shortest = took;
    best = {.ticks = before + took / 2, .ns = ns};
  }
  return best;
}

Moment ReadBothAfter(uint64_t ns) {
  while (NowNs() < ns) __builtin_ia32_pause();
  return ReadBoth();
}

double NsPerTick(const Moment& from, const Moment& to) {
  return static_cast<double>(to.ns - from.ns) / static_cast<double>(to.ticks - from.ticks);
}

}  // namespace

Clock::Clock() {
  if (!CounterIsInvariant() || !KernelUsesCounter()) return;
  const Moment first = ReadBoth();
  const Moment second = ReadBothAfter(first.ns + kWindowNs);
  const Moment third = ReadBothAfter(second.ns + kWindowNs);
  const double whole = NsPerTick(first, third);
  if (std::abs(NsPerTick(first, second) - NsPerTick(second, third)) > whole * kMostDisagreement) return;
  ns_per_tick_ = static_cast<uint64_t>(std::ldexp(whole, kFractionBits));
  base_ticks_ = first.ticks;
  base_ns_ = first.ns;
}
#else
Clock::Clock() = default;
#endif

const Clock& Clock::Get() {
  static const Clock clock;
  return clock;
}

}  // namespace lunpath::bench
