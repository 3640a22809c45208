// Which blocks a job reads, in which order.
#pragma once

#include <cstdint>

namespace lunpath::bench {

// Offsets of whole blocks in a range: one after the other, or uniform from a seeded generator (SplitMix64: Steele, Lea,
// Flood, "Fast splittable pseudorandom number generators", 2014). The same seed gives the same offsets.
class Offsets {
 public:
  // `size` holds at least one block.
  Offsets(bool random, uint64_t offset, uint64_t size, uint32_t bs, uint64_t seed)
      : random_(random), offset_(offset), blocks_(size / bs), bs_(bs), state_(seed) {}

  uint64_t Next() {
    uint64_t block;
    if (random_) {
      // Multiply-shift in place of a modulo: no division per I/O; the bias is below blocks / 2^64.
      block = static_cast<uint64_t>(static_cast<unsigned __int128>(Random()) * blocks_ >> 64);
    } else {
      block = next_;
      next_ = next_ + 1 == blocks_ ? 0 : next_ + 1;
    }
    return offset_ + block * bs_;
  }

 private:
  uint64_t Random() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }

  bool random_;
  uint64_t offset_;
  uint64_t blocks_;
  uint32_t bs_;
  uint64_t state_;
  uint64_t next_ = 0;
};

}  // namespace lunpath::bench
