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
        units_(UnitsOf(spec)),
        places_of_(PlacesOf(spec, range, units_)),
        step_(spec.order.step),
        run_ios_(spec.order.run_ios),
        run_stays_(spec.order.run_stays),
        random_percent_(spec.order.random_percent),
        all_drawn_(spec.order.run_ios == 1 && spec.order.random_percent == 100),
        until_drawn_(1),
        places_(*std::max_element(places_of_.begin(), places_of_.end())),
        zipf_(places_, spec.pattern == Pattern::kZipf ? spec.pattern_parameter : 1),
        pareto_(places_, spec.pattern == Pattern::kPareto ? spec.pattern_parameter : 0.5),
        scatter_(places_),
        shuffle_(places_) {
    AddZones(spec.zones);
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

  struct ZoneOfPlaces {
    uint64_t below;
    uint64_t first;
    uint64_t count;
  };

  static PerDirection<uint32_t> UnitsOf(const TargetSpec& spec) {
    PerDirection<uint32_t> units{};
    for (Direction direction : kMixed) {
      if (spec.Has(direction))
        units[direction] = spec.order.align != 0 ? spec.order.align : spec.SmallestBlock(direction);
    }
    return units;
  }

  static PerDirection<uint64_t> PlacesOf(const TargetSpec& spec, Range range, const PerDirection<uint32_t>& units) {
    PerDirection<uint64_t> places{};
    for (Direction direction : kMixed) {
      if (spec.Has(direction)) places[direction] = (range.size - spec.LargestBlock(direction)) / units[direction] + 1;
    }
    return places;
  }

  void AddZones(const std::vector<Zone>& zones) {
    double up_to = 0;
    for (const Zone& zone : zones) {
      up_to += zone.percent;
      const uint64_t first = Share(zone.from_percent);
      zones_.push_back({.below = ToThreshold(up_to),
                        .first = std::min(first, places_ - 1),
                        .count = std::max<uint64_t>(Share(zone.to_percent) - first, 1)});
    }
  }

  uint64_t Share(uint32_t percent) const {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(places_) * percent / 100);
  }

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
    const auto found =
        std::partition_point(sizes.begin(), sizes.end(), [&](const Size& size) { return size.below <= drawn; });
    return found == sizes.end() ? sizes.back().bytes : found->bytes;
  }

  uint64_t DrawPlace(Direction direction, uint32_t bytes) {
    if (pattern_ != Pattern::kSequential && all_drawn_) return DrawAligned(direction);
    uint64_t& end = end_[direction];
    const uint64_t at = pattern_ == Pattern::kSequential ? NextInOrder(end, bytes) : NextOfRun(direction, bytes);
    start_[direction] = at;
    end = at + bytes;
    return at;
  }

  // As fio: the step is not made before the first I/O, and the first one of a way back is a step before the end.
  uint64_t NextInOrder(uint64_t end, uint32_t bytes) const {
    const uint64_t at = end == 0 ? 0 : end + static_cast<uint64_t>(step_);
    if (at < range_.size && at + bytes <= range_.size) return at;
    if (step_ >= 0) return 0;
    const uint64_t back = range_.size - std::min(range_.size, static_cast<uint64_t>(-step_));
    return std::min(back, range_.size - bytes);
  }

  uint64_t NextOfRun(Direction direction, uint32_t bytes) {
    const bool is_last = --until_drawn_ == 0;
    if (is_last) until_drawn_ = run_ios_;
    if (!is_last && run_stays_ && start_[direction] + bytes <= range_.size) return start_[direction];
    const bool drawn = is_last && (random_percent_ == 100 || random_.Below(100) < random_percent_);
    return drawn || end_[direction] + bytes > range_.size ? DrawAligned(direction) : end_[direction];
  }

  // As fio: each direction has offsets that are multiples of its own smallest block.
  uint64_t DrawAligned(Direction direction) {
    uint64_t place = DrawRandomPlace();
    const uint64_t places = places_of_[direction];
    if (places != places_) [[unlikely]]
      place = static_cast<uint64_t>(static_cast<unsigned __int128>(place) * places / places_);
    return place * units_[direction];
  }

  uint64_t DrawRandomPlace() {
    switch (pattern_) {
      case Pattern::kUniform:
        return random_.Below(places_);
      case Pattern::kShuffled:
        return shuffle_.Next(random_);
      case Pattern::kZipf:
        return scatter_.Place(zipf_.Draw(random_));
      case Pattern::kPareto:
        return scatter_.Place(pareto_.Draw(random_));
      case Pattern::kZoned:
        return DrawInZone();
      case Pattern::kSequential:
        break;
    }
    return 0;
  }

  uint64_t DrawInZone() {
    const uint64_t drawn = random_.Next();
    const ZoneOfPlaces* zone = &zones_.back();
    for (const ZoneOfPlaces& one : zones_) {
      if (drawn >= one.below) continue;
      zone = &one;
      break;
    }
    return std::min(zone->first + random_.Below(zone->count), places_ - 1);
  }

  Random random_;
  Range range_;
  Pattern pattern_;
  PerDirection<uint32_t> units_;      // of which its random offsets are multiples
  PerDirection<uint64_t> places_of_;  // how many offsets there are for it
  int64_t step_;
  uint32_t run_ios_;
  bool run_stays_;
  uint32_t random_percent_;
  bool all_drawn_;
  uint32_t until_drawn_;
  uint64_t places_;
  Zipf zipf_;
  Pareto pareto_;
  Scatter scatter_;
  Shuffle shuffle_;
  std::vector<ZoneOfPlaces> zones_;
  Direction only_ = Direction::kRead;
  bool mixed_ = false;
  PerDirection<uint64_t> direction_below_{};
  PerDirection<std::vector<Size>> sizes_{};
  // Of the last I/O of each direction, from the begin of the range.
  PerDirection<uint64_t> start_{};
  PerDirection<uint64_t> end_{};
};

}  // namespace lunpath::bench
