// When the I/Os of an open loop are due: a schedule that does not know the device.
#pragma once

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
