// A histogram of latencies: log-linear, 128 buckets per octave, so that a reported value is within 0.39 % of the true
// one. Merging is exact: buckets are fixed and counts are whole numbers.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace lunpath::bench {

// Below 2^8 a bucket is one nanosecond wide; from there each octave has 128 buckets of equal width.
inline constexpr int kBitsPerOctave = 7;
inline constexpr uint64_t kBucketsPerOctave = 1 << kBitsPerOctave;

constexpr size_t BucketOf(uint64_t ns) {
  const int octave = std::max(static_cast<int>(std::bit_width(ns)) - 1 - kBitsPerOctave, 0);
  return static_cast<size_t>(octave) * kBucketsPerOctave + (ns >> octave);
}

constexpr uint64_t MiddleOfBucket(size_t bucket) {
  if (bucket < 2 * kBucketsPerOctave) return bucket;
  const uint64_t octave = bucket / kBucketsPerOctave - 1;
  const uint64_t low = (bucket - octave * kBucketsPerOctave) << octave;
  return low + (uint64_t{1} << octave) / 2;
}

static_assert(BucketOf(1) == 1 && BucketOf(255) == 255 && BucketOf(256) == 256 && BucketOf(511) == 383);
static_assert(MiddleOfBucket(BucketOf(256)) == 257);
static_assert(MiddleOfBucket(BucketOf(1 << 20)) == (1 << 20) + (1 << 13) / 2);

// One thread at a time.
class Histogram {
 public:
  static constexpr uint64_t kMostNs = 100'000'000'000;  // 100 s; what is longer is counted as overflow
  static constexpr size_t kBuckets = BucketOf(kMostNs) + 1;
  static constexpr int64_t kBytes = kBuckets * sizeof(uint64_t);

  Histogram() : counts_(kBuckets) {}

  void Record(uint64_t ns) {
    ns = std::max<uint64_t>(ns, 1);
    ++count_;
    sum_ns_ += ns;
    min_ns_ = std::min(min_ns_, ns);
    max_ns_ = std::max(max_ns_, ns);
    if (ns > kMostNs) {
      ++overflow_;
    } else {
      ++counts_[BucketOf(ns)];
    }
  }

  void Merge(const Histogram& other) {
    for (size_t i = 0; i < kBuckets; ++i) counts_[i] += other.counts_[i];
    count_ += other.count_;
    overflow_ += other.overflow_;
    sum_ns_ += other.sum_ns_;
    min_ns_ = std::min(min_ns_, other.min_ns_);
    max_ns_ = std::max(max_ns_, other.max_ns_);
  }

  void Clear() {
    if (count_ == 0) return;
    std::fill(counts_.begin(), counts_.end(), 0);
    count_ = overflow_ = sum_ns_ = max_ns_ = 0;
    min_ns_ = UINT64_MAX;
  }

  // All that it holds. Restore(Save()) gives an equal one.
  struct Saved {
    uint64_t overflow = 0;
    uint64_t sum_ns = 0;
    uint64_t min_ns = 0;
    uint64_t max_ns = 0;
    std::vector<std::pair<uint64_t, uint64_t>> buckets{};  // a bucket's middle in nanoseconds, and its count
  };

  Saved Save() const {
    Saved saved{.overflow = overflow_, .sum_ns = sum_ns_, .min_ns = min_ns(), .max_ns = max_ns_};
    for (size_t i = 0; i < kBuckets; ++i) {
      if (counts_[i] > 0) saved.buckets.emplace_back(MiddleOfBucket(i), counts_[i]);
    }
    return saved;
  }

  // False, and nothing changed, where a bucket lies beyond 100 s.
  bool Restore(const Saved& saved) {
    for (const auto& [middle, count] : saved.buckets) {
      if (BucketOf(middle) >= kBuckets) return false;
    }
    Clear();
    count_ = overflow_ = saved.overflow;
    for (const auto& [middle, count] : saved.buckets) {
      counts_[BucketOf(middle)] += count;
      count_ += count;
    }
    sum_ns_ = saved.sum_ns;
    if (count_ > 0) min_ns_ = saved.min_ns;
    max_ns_ = saved.max_ns;
    return true;
  }

  // The nearest-rank percentile, 0 < percent <= 100: the smallest recorded value that at least `percent` of all do not
  // exceed, as the middle of its bucket, never below the minimum or above the maximum. 0 where nothing was recorded.
  uint64_t Percentile(double percent) const {
    if (count_ == 0) return 0;
    const uint64_t rank = Rank(percent, count_);
    uint64_t seen = 0;
    for (size_t i = 0; i < kBuckets; ++i) {
      seen += counts_[i];
      if (seen >= rank) return std::clamp(MiddleOfBucket(i), min_ns_, max_ns_);
    }
    return max_ns_;
  }

  uint64_t count() const { return count_; }
  uint64_t overflow() const { return overflow_; }
  uint64_t min_ns() const { return count_ ? min_ns_ : 0; }
  uint64_t max_ns() const { return max_ns_; }
  double mean_ns() const { return count_ ? static_cast<double>(sum_ns_) / static_cast<double>(count_) : 0; }

 private:
  // In whole numbers, with `percent` in millionths: in floating point 99.9 % of 1,000 values are a little more than
  // 999, and the percentile would be the maximum. src/bench/buckets.ts has the same.
  static uint64_t Rank(double percent, uint64_t count) {
    constexpr uint64_t all = 100'000'000;
    const auto part = static_cast<uint64_t>(std::llround(percent * 1e6));
    const auto rank = (static_cast<unsigned __int128>(part) * count + all - 1) / all;
    return std::clamp<uint64_t>(static_cast<uint64_t>(rank), 1, count);
  }

  std::vector<uint64_t> counts_;
  uint64_t count_ = 0;
  uint64_t overflow_ = 0;
  uint64_t sum_ns_ = 0;
  uint64_t min_ns_ = UINT64_MAX;
  uint64_t max_ns_ = 0;
};

}  // namespace lunpath::bench
