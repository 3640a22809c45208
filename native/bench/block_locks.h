// The blocks for which an I/O is in flight.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace lunpath::bench {

// As large as what may be in flight, whatever the size of the device. One thread.
class BlockLocks {
 public:
  explicit BlockLocks(uint32_t most)
      : mask_(std::bit_ceil(uint64_t{most} * 4) - 1), shift_(64 - std::popcount(mask_)), slots_(mask_ + 1, kFree) {}

  // False: it is there already.
  bool Add(uint64_t block) {
    uint64_t at = Home(block);
    for (; slots_[at] != kFree; at = (at + 1) & mask_) {
      if (slots_[at] == block) return false;
    }
    slots_[at] = block;
    return true;
  }

  // Of one that was added. What stands behind it moves up, so that no search ends too early (Knuth, The Art of Computer
  // Programming, volume 3, 6.4, algorithm R).
  void Remove(uint64_t block) {
    uint64_t hole = Home(block);
    while (slots_[hole] != block) hole = (hole + 1) & mask_;
    for (uint64_t at = (hole + 1) & mask_; slots_[at] != kFree; at = (at + 1) & mask_) {
      const uint64_t from_home = (at - Home(slots_[at])) & mask_;
      if (from_home < ((at - hole) & mask_)) continue;
      slots_[hole] = slots_[at];
      hole = at;
    }
    slots_[hole] = kFree;
  }

 private:
  static constexpr uint64_t kFree = UINT64_MAX;

  uint64_t Home(uint64_t block) const { return block * 0x9e3779b97f4a7c15 >> shift_; }

  uint64_t mask_;
  int shift_;
  std::vector<uint64_t> slots_;
};

}  // namespace lunpath::bench
