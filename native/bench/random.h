// The random numbers of a run. The same seed gives the same numbers.
#pragma once

#include <cstdint>

namespace lunpath::bench {

// SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014. One thread at a time.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }

  // 0 … bound − 1. Multiply-shift in place of a modulo: no division per I/O; the bias is below bound / 2^64.
  uint64_t Below(uint64_t bound) { return static_cast<uint64_t>(static_cast<unsigned __int128>(Next()) * bound >> 64); }

  // 0 <= x < 1, with 53 bits.
  double Unit() { return static_cast<double>(Next() >> 11) * 0x1p-53; }

 private:
  uint64_t state_;
};

}  // namespace lunpath::bench
