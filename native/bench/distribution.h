// Which block of a range an I/O goes to, where not all are alike.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numeric>

#include "bench/random.h"

namespace lunpath::bench {

// Ranks 1 … n with probability proportional to rank^−theta, in constant time and memory for any n: rejection-inversion
// (Hörmann, Derflinger, "Rejection-inversion to generate variates from monotone discrete distributions", 1996).
class Zipf {
 public:
  Zipf(uint64_t n, double theta)
      : n_(static_cast<double>(n)),
        theta_(theta),
        area_to_first_(Area(1.5) - 1),
        area_to_last_(Area(n_ + 0.5)),
        always_accepted_(2 - InverseArea(Area(2.5) - Weight(2))) {}

  uint64_t Draw(Random& random) const {
    for (;;) {
      const double area = area_to_last_ + random.Unit() * (area_to_first_ - area_to_last_);
      const double x = InverseArea(area);
      const double rank = std::clamp(std::floor(x + 0.5), 1.0, n_);
      if (rank - x <= always_accepted_ || area >= Area(rank + 0.5) - Weight(rank)) return static_cast<uint64_t>(rank);
    }
  }

 private:
  double Weight(double x) const { return std::exp(-theta_ * std::log(x)); }

  // The integral of Weight from 1 to x, written so that it is exact also near theta = 1.
  double Area(double x) const {
    const double log_x = std::log(x);
    const double t = (1 - theta_) * log_x;
    return (std::abs(t) > 1e-8 ? std::expm1(t) / t : 1 + t / 2) * log_x;
  }

  double InverseArea(double area) const {
    const double t = std::max((1 - theta_) * area, -1.0);
    return std::exp((std::abs(t) > 1e-8 ? std::log1p(t) / t : 1 - t / 2) * area);
  }

  double n_;
  double theta_;
  double area_to_first_;
  double area_to_last_;
  double always_accepted_;
};

// Of all draws the share 1 − h falls on the first h of the ranks, and so on within them: self-similar (Gray et al.,
// "Quickly generating billion-record synthetic databases", 1994).
class Pareto {
 public:
  Pareto(uint64_t n, double h) : n_(n), power_(std::log(h) / std::log(1 - h)) {}

  // 1 … n
  uint64_t Draw(Random& random) const {
    return std::min(static_cast<uint64_t>(static_cast<double>(n_) * std::pow(random.Unit(), power_)), n_ - 1) + 1;
  }

 private:
  uint64_t n_;
  double power_;
};

// Spreads ranks over 0 … n − 1, one to one, so that the popular ones are no neighbours: steps of the golden section.
class Scatter {
 public:
  explicit Scatter(uint64_t n) : n_(n), step_(std::max<uint64_t>(static_cast<uint64_t>(0.6180339887 * n), 1)) {
    while (std::gcd(step_, n_) != 1) ++step_;
  }

  uint64_t Place(uint64_t rank) const {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(rank) * step_ % n_);
  }

 private:
  uint64_t n_;
  uint64_t step_;
};

// 0 … n − 1 in an order that looks drawn, each once before any comes again; each round has another order. The states of
// a linear congruential generator of full period over the next power of two, scrambled one to one; those from n on are
// skipped, at most every other one on average.
class Shuffle {
 public:
  explicit Shuffle(uint64_t n) : n_(n), mask_(std::bit_ceil(n) - 1), shift_(std::bit_width(mask_) / 2 + 1) {}

  uint64_t Next(Random& random) {
    if (left_ == 0) BeginRound(random);
    --left_;
    for (;;) {
      state_ = (state_ * 6364136223846793005 + increment_) & mask_;
      const uint64_t place = Scramble(state_);
      if (place < n_) return place;
    }
  }

 private:
  void BeginRound(Random& random) {
    left_ = n_;
    state_ = random.Next() & mask_;
    increment_ = random.Next() | 1;
    key_ = random.Next() & mask_;
  }

  // Each step can be undone within the mask, so that no two states have one place.
  uint64_t Scramble(uint64_t x) const {
    x ^= key_;
    x = (x ^ x >> shift_) * 0xbf58476d1ce4e5b9 & mask_;
    x = (x ^ x >> shift_) * 0x94d049bb133111eb & mask_;
    return x ^ x >> shift_;
  }

  uint64_t n_;
  uint64_t mask_;
  int shift_;
  uint64_t left_ = 0;
  uint64_t state_ = 0;
  uint64_t increment_ = 1;
  uint64_t key_ = 0;
};

}  // namespace lunpath::bench
