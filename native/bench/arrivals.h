// When the I/Os of an open loop are due: a schedule that does not know the device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "bench/job.h"
#include "bench/random.h"

namespace lunpath::bench {

// Deadlines in nanoseconds since the run's begin, in floating point: whole units of the clock would add up to a wrong
// rate. A copy goes on by itself with the same deadlines.
class Arrivals {
 public:
  // `phase` (0 … 1) shifts a fixed rate by this part of its interval, so that threads do not fire together.
  Arrivals(Pace pace, double per_second, double phase, uint64_t seed)
      : poisson_(pace == Pace::kPoisson),
        interval_ns_(1e9 / per_second),
        first_ns_(phase * interval_ns_),
        random_(seed) {
    if (poisson_) {
      next_ns_ = Gap();
    } else {
      next_ns_ = first_ns_;
    }
  }

  double next_ns() const { return next_ns_; }

  void Advance() {
    ++index_;
    // A product in place of a sum: errors do not add up over a day.
    next_ns_ = poisson_ ? next_ns_ + Gap() : first_ns_ + static_cast<double>(index_) * interval_ns_;
  }

  // Goes on to the first that is not before `end_ns`, and says how many it has passed. At a fixed rate that takes no
  // time; of a Poisson process each has to be drawn, so no more than `most_drawn` are.
  uint64_t SkipBefore(double end_ns, uint64_t most_drawn) {
    const uint64_t before = index_;
    if (poisson_) {
      while (next_ns_ < end_ns && index_ - before < most_drawn) Advance();
      return index_ - before;
    }
    const auto at = [this](uint64_t index) { return first_ns_ + static_cast<double>(index) * interval_ns_; };
    uint64_t index = index_;
    if (next_ns_ < end_ns) index = std::max(index, static_cast<uint64_t>((end_ns - first_ns_) / interval_ns_));
    // The quotient is rounded, the deadlines are what counts.
    while (index > before && at(index - 1) >= end_ns) --index;
    while (at(index) < end_ns) ++index;
    index_ = index;
    next_ns_ = at(index);
    return index - before;
  }

  // How many more are to be expected before `end_ns`, this one included.
  uint64_t ExpectedBefore(double end_ns) const {
    if (next_ns_ >= end_ns) return 0;
    return 1 + static_cast<uint64_t>((end_ns - next_ns_) / interval_ns_);
  }

 private:
  // Exponential: the gaps of a Poisson process. 1 − u is never 0.
  double Gap() { return -std::log(1 - random_.Unit()) * interval_ns_; }

  bool poisson_;
  double interval_ns_;
  double first_ns_;
  Random random_;
  uint64_t index_ = 0;
  double next_ns_ = 0;
};

}  // namespace lunpath::bench
