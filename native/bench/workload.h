// What one thread of a job does next: direction, size and offset of each I/O.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bench/distribution.h"
#include "bench/job.h"
#include "bench/random.h"

namespace lunpath::bench {

// A part of a device, in bytes.
struct Range {
  uint64_t offset = 0;
  uint64_t size = 0;
};

// One thread at a time.
class Workload {
 public:
  struct Io {
    Direction direction;
    uint32_t bytes;
    uint64_t offset;
  };

  // `range` holds at least one I/O of the largest size. Sequential I/O starts at its begin and goes round it; each
  // direction has a position of its own.
  Workload(const TargetSpec& spec, Range range, uint64_t seed)
      : random_(seed),
        range_(range),
        pattern_(spec.pattern),
        unit_(spec.SmallestBlock()),
        places_((range.size - spec.LargestBlock()) / unit_ + 1),
        zipf_(places_, spec.pattern == Pattern::kZipf ? spec.pattern_parameter : 1),
        pareto_(places_, spec.pattern == Pattern::kPareto ? spec.pattern_parameter : 0.5),
        scatter_(places_) {
    double up_to = 0;
    for (Direction direction : kMixed) {
      up_to += spec.mix[direction];
      if (spec.Has(direction)) only_ = direction;
      direction_below_[direction] = ToThreshold(up_to);
      mixed_ = mixed_ || (spec.mix[direction] > 0 && spec.mix[direction] < 100);
      double size_up_to = 0;
      for (const BlockSize& size : spec.block_sizes[direction]) {
        size_up_to += size.percent;
        sizes_[direction].push_back({.below = ToThreshold(size_up_to), .bytes = size.bytes});
      }
    }
  }

  Io Next() {
    const Direction direction = mixed_ ? DrawDirection() : only_;
    const std::vector<Size>& sizes = sizes_[direction];
    const uint32_t bytes = sizes.size() == 1 ? sizes[0].bytes : DrawSize(sizes);
    return {.direction = direction, .bytes = bytes, .offset = range_.offset + DrawPlace(direction, bytes)};
  }

 private:
  struct Size {
    uint64_t below;
    uint32_t bytes;
  };

  static uint64_t ToThreshold(double percent) {
    return percent >= 100 - 1e-9 ? UINT64_MAX : static_cast<uint64_t>(percent / 100 * 0x1p64);
  }

  Direction DrawDirection() {
    const uint64_t drawn = random_.Next();
    for (Direction direction : kMixed) {
      if (drawn < direction_below_[direction]) return direction;
    }
    return only_;
  }

  uint32_t DrawSize(const std::vector<Size>& sizes) {
    const uint64_t drawn = random_.Next();
    for (const Size& size : sizes) {
      if (drawn < size.below) return size.bytes;
    }
    return sizes.back().bytes;
  }

  uint64_t DrawPlace(Direction direction, uint32_t bytes) {
    switch (pattern_) {
      case Pattern::kUniform:
        return random_.Below(places_) * unit_;
      case Pattern::kZipf:
        return scatter_.Place(zipf_.Draw(random_)) * unit_;
      case Pattern::kPareto:
        return scatter_.Place(pareto_.Draw(random_)) * unit_;
      case Pattern::kSequential:
        break;
    }
    uint64_t& position = position_[direction];
    const uint64_t at = position + bytes <= range_.size ? position : 0;
    position = at + bytes;
    return at;
  }

  Random random_;
  Range range_;
  Pattern pattern_;
  uint32_t unit_;
  uint64_t places_;
  Zipf zipf_;
  Pareto pareto_;
  Scatter scatter_;
  Direction only_ = Direction::kRead;
  bool mixed_ = false;
  PerDirection<uint64_t> direction_below_{};
  PerDirection<std::vector<Size>> sizes_{};
  PerDirection<uint64_t> position_{};
};

}  // namespace lunpath::bench
