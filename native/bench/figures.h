// What a run counts: for each thread while it runs, merged for targets and in total afterwards.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bench/histogram.h"
#include "bench/job.h"
#include "sys/result.h"

namespace lunpath::bench {

struct DirectionFigures {
  uint64_t bytes = 0;
  uint64_t short_ios = 0;
  Histogram service{};   // submitted to completed
  Histogram response{};  // intended start to completed

  void Merge(const DirectionFigures& other) {
    bytes += other.bytes;
    short_ios += other.short_ios;
    service.Merge(other.service);
    response.Merge(other.response);
  }
  void Clear() {
    bytes = short_ios = 0;
    service.Clear();
    response.Clear();
  }
};

struct Figures {
  PerDirection<std::optional<DirectionFigures>> directions{};
  uint64_t errors = 0;

  Figures() = default;
  explicit Figures(const TargetSpec& spec) {
    for (Direction direction : kEachDirection) {
      if (spec.Has(direction)) directions[direction].emplace();
    }
  }

  void Merge(const Figures& other) {
    errors += other.errors;
    for (Direction direction : kEachDirection) {
      if (!other.directions[direction]) continue;
      if (!directions[direction]) directions[direction].emplace();
      directions[direction]->Merge(*other.directions[direction]);
    }
  }
  void Clear() {
    errors = 0;
    for (auto& direction : directions) {
      if (direction) direction->Clear();
    }
  }
  // In closed loop an I/O is meant to start when it is submitted: only one of the two has been recorded.
  void ServiceIsResponse() {
    for (auto& direction : directions) {
      if (direction) direction->response = direction->service;
    }
  }
  // Flushes are none.
  uint64_t ios() const {
    uint64_t sum = 0;
    for (Direction direction : kMixed) sum += directions[direction] ? directions[direction]->service.count() : 0;
    return sum;
  }
};

// Errors by direction and code, with the offsets of the first ones.
class ErrorTally {
 public:
  static constexpr size_t kFirst = 16;

  struct Entry {
    Error error;
    uint64_t count = 0;
    std::vector<uint64_t> first_offsets{};
  };
  using Entries = std::map<std::pair<Direction, int64_t>, Entry>;

  void Add(Direction direction, int64_t result, uint64_t offset, const Error& error) {
    Entry& entry = entries_[{direction, result}];
    if (entry.count++ == 0) entry.error = error;
    if (direction != Direction::kFlush && entry.first_offsets.size() < kFirst) entry.first_offsets.push_back(offset);
  }
  void Merge(const ErrorTally& other) {
    for (const auto& [key, theirs] : other.entries_) {
      Entry& entry = entries_[key];
      if (entry.count == 0) entry.error = theirs.error;
      entry.count += theirs.count;
      for (uint64_t offset : theirs.first_offsets) {
        if (entry.first_offsets.size() < kFirst) entry.first_offsets.push_back(offset);
      }
    }
  }
  const Entries& entries() const { return entries_; }

 private:
  Entries entries_;
};

struct OpenLoopFigures {
  uint64_t arrivals = 0;
  uint64_t max_backlog = 0;
  uint64_t unsubmitted = 0;
  uint64_t max_generator_lag_ns = 0;
  uint64_t late_arrivals = 0;

  void Merge(const OpenLoopFigures& other) {
    arrivals += other.arrivals;
    max_backlog = std::max(max_backlog, other.max_backlog);
    unsubmitted += other.unsubmitted;
    max_generator_lag_ns = std::max(max_generator_lag_ns, other.max_generator_lag_ns);
    late_arrivals += other.late_arrivals;
  }
  bool generator_behind() const { return late_arrivals * 100 > arrivals; }
};

struct VerifyFigures {
  struct Failure {
    uint64_t offset;
    uint32_t expected_generation;
    const char* reason;
  };

  uint64_t verified = 0;
  uint64_t failures = 0;
  std::vector<Failure> first_failures{};

  void Merge(const VerifyFigures& other) {
    verified += other.verified;
    failures += other.failures;
    for (const Failure& failure : other.first_failures) {
      if (first_failures.size() < ErrorTally::kFirst) first_failures.push_back(failure);
    }
  }
};

// Ascending: of several the highest counts.
enum class RunState : uint8_t { kFinished, kCancelled, kFailed, kStuck, kDeviceLost };

}  // namespace lunpath::bench
