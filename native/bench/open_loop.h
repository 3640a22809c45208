// The arrivals of one thread in open loop, and to whom their delays are due.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>

#include "bench/arrivals.h"
#include "bench/figures.h"
#include "sys/clock.h"

namespace lunpath::bench {

// One thread at a time. Times are the run's clock.
class OpenLoop {
 public:
  explicit OpenLoop(const Arrivals& arrivals) : next_(arrivals), ahead_(arrivals) {}

  // Arrivals count from `run_begin` on; those before it are the ramp's.
  void Begin(uint64_t start, uint64_t run_begin, uint64_t run_end) {
    start_ = start;
    run_begin_ = run_begin;
    end_ns_ = static_cast<double>(run_end - start);
  }

  // When the next I/O is meant to start; nothing where no more is before the run's end.
  std::optional<uint64_t> Due() const {
    if (next_.next_ns() >= end_ns_) return std::nullopt;
    return start_ + static_cast<uint64_t>(next_.next_ns());
  }

  // The one that is due was submitted. While it waited for another I/O to be answered, its delay is the device's; else
  // it is ours.
  void Submitted(uint64_t now, OpenLoopFigures* figures) {
    const uint64_t intended = start_ + static_cast<uint64_t>(next_.next_ns());
    next_.Advance();
    const bool waited = backlog_ > 0;
    if (waited) --backlog_;
    if (intended < run_begin_) return;
    ++figures->arrivals;
    if (waited) return;
    figures->max_generator_lag_ns = std::max(figures->max_generator_lag_ns, now - intended);
    if (now - intended > kLateNs) ++figures->late_arrivals;
  }

  // All that may be in flight are, and more are due.
  void Blocked(uint64_t now, OpenLoopFigures* figures) {
    if (backlog_ == 0) ahead_ = next_;
    const double until = std::min(std::nextafter(static_cast<double>(now - start_), end_ns_), end_ns_);
    backlog_ += ahead_.SkipBefore(until, kMostDrawn);
    figures->max_backlog = std::max(figures->max_backlog, backlog_);
  }

  // Those that are left will not be submitted. Where they are too many to be drawn, the expected number stands for
  // them.
  void GiveUp(OpenLoopFigures* figures) {
    const uint64_t drawn = next_.SkipBefore(end_ns_, kMostDrawn);
    const uint64_t left = drawn + next_.ExpectedBefore(end_ns_);
    end_ns_ = 0;
    figures->unsubmitted += left;
    figures->arrivals += left;
  }

 private:
  static constexpr uint64_t kLateNs = kNsPerMs;
  // At a time, of a Poisson schedule: some milliseconds, in which the supervisor does not get at the worker's figures.
  static constexpr uint64_t kMostDrawn = 1 << 18;

  Arrivals next_;
  Arrivals ahead_;  // while there is a backlog: the first that is not in it
  uint64_t backlog_ = 0;
  uint64_t start_ = 0;
  uint64_t run_begin_ = 0;
  double end_ns_ = 0;
};

}  // namespace lunpath::bench
