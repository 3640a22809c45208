// A benchmark job as the core takes it: settled and checked by JS (src/bench/native.ts says what each value means).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "iscsi/session.h"

namespace lunpath::bench {

// What an I/O does. A flush moves nothing, is in no mix, and is counted apart: it comes after so many writes.
enum class Direction : uint8_t { kRead, kWrite, kTrim, kFlush };
inline constexpr size_t kDirections = 4;
inline constexpr std::array kMixed{Direction::kRead, Direction::kWrite, Direction::kTrim};
inline constexpr std::array kEachDirection{Direction::kRead, Direction::kWrite, Direction::kTrim, Direction::kFlush};

constexpr const char* NameOf(Direction direction) {
  constexpr std::array names{"read", "write", "trim", "flush"};
  return names[static_cast<size_t>(direction)];
}

template <class T>
class PerDirection : public std::array<T, kDirections> {
 public:
  using Base = std::array<T, kDirections>;
  T& operator[](Direction direction) { return Base::operator[](static_cast<size_t>(direction)); }
  const T& operator[](Direction direction) const { return Base::operator[](static_cast<size_t>(direction)); }
};

enum class EngineKind : uint8_t { kAuto, kUring, kLibaio, kPread, kIscsi, kLibiscsi, kNull };

struct PathDevice {
  std::string path;
  bool direct = false;
  bool exclusive = false;
  int sync_flag = 0;  // O_SYNC, O_DSYNC, or none
  // What fstat() must say of what was opened; -1: anything.
  int64_t expected_rdev = -1;
  int64_t expected_dev = -1;
  int64_t expected_ino = -1;
};

struct IscsiDevice {
  iscsi::LoginParams login;
};

struct NullDevice {
  uint64_t size_bytes = 0;
};

struct BlockSize {
  uint32_t bytes = 4096;
  double percent = 100;
};

// A part of the range, in percents of it, and the percentage of the I/Os that go there.
struct Zone {
  double percent = 0;
  uint32_t from_percent = 0;
  uint32_t to_percent = 0;
};

enum class Pattern : uint8_t { kSequential, kUniform, kShuffled, kZipf, kPareto, kZoned };
enum class Pace : uint8_t { kClosed, kFixed, kPoisson };

// Where I/Os go, beside their pattern.
struct Order {
  int64_t step = 0;               // sequential: bytes from the end of an I/O to the begin of the next one
  uint32_t align = 0;             // random offsets are multiples of it; 0: of the smallest block of their direction
  uint32_t run_ios = 1;           // random: one of so many is drawn, and the others come after the one before
  uint32_t random_percent = 100;  // of those that are drawn; the others come after the one before, too
  bool run_stays = false;         // those that come after the one before repeat it
};

struct TargetSpec {
  std::variant<PathDevice, IscsiDevice, NullDevice> device;
  EngineKind engine = EngineKind::kAuto;
  PerDirection<double> mix{};  // percent
  Pattern pattern = Pattern::kUniform;
  double pattern_parameter = 0;  // zipf's theta, pareto's h
  std::vector<Zone> zones{};
  Order order{};
  PerDirection<std::vector<BlockSize>> block_sizes{};
  uint32_t iodepth = 1;
  uint32_t numjobs = 1;
  // The range: bytes, or percents of the device where those are not 0. A size of 0: up to the device's end.
  uint64_t offset = 0;
  uint64_t size = 0;
  uint32_t offset_percent = 0;
  uint32_t size_percent = 0;
  uint64_t start_delay_ns = 0;    // after the begin of the run; its ramp and its runtime begin then
  uint64_t offset_increment = 0;  // bytes by which each thread's range begins after that of the one before it
  // After so much a thread ends, the ramp not counted; 0: it goes on until the runtime is over.
  uint64_t stop_bytes = 0;
  uint64_t stop_percent = 0;  // of its range
  uint64_t stop_ios = 0;
  // After so many writes of a thread a flush follows; 0: none. Of two that are due at once the first is done.
  uint64_t fsync = 0;
  uint64_t fdatasync = 0;
  Pace pace = Pace::kClosed;
  double iops = 0;  // of all threads together
  uint64_t think_ns = 0;
  uint32_t think_blocks = 1;
  bool verify = false;
  uint64_t errors_allowed = 0;  // one more of them ends the run
  std::string expected_wwid{};
  std::string expected_serial{};
  uint64_t expected_size = 0;

  bool bounded() const { return stop_bytes > 0 || stop_percent > 0 || stop_ios > 0; }
  bool flushes() const { return fsync > 0 || fdatasync > 0; }
  bool Has(Direction direction) const { return direction == Direction::kFlush ? flushes() : mix[direction] > 0; }
  bool writes() const { return Has(Direction::kWrite) || Has(Direction::kTrim); }
  uint32_t LargestBlock() const;
  uint32_t SmallestBlock() const;
  uint32_t LargestBlock(Direction direction) const;
  uint32_t SmallestBlock(Direction direction) const;
};

struct JobSpec {
  std::vector<TargetSpec> targets{};
  uint64_t runtime_ns = 0;
  uint64_t ramp_ns = 0;
  uint64_t stuck_ns = 0;
  uint64_t sample_ns = 0;
  uint64_t seed = 0;
  uint64_t verify_table_bytes = 0;  // of each thread that verifies; 0: no limit
};

inline uint32_t TargetSpec::LargestBlock() const {
  uint32_t largest = 0;
  for (Direction direction : kEachDirection) largest = std::max(largest, LargestBlock(direction));
  return largest;
}

inline uint32_t TargetSpec::SmallestBlock() const {
  uint32_t smallest = UINT32_MAX;
  for (Direction direction : kEachDirection) smallest = std::min(smallest, SmallestBlock(direction));
  return smallest;
}

inline uint32_t TargetSpec::LargestBlock(Direction direction) const {
  uint32_t largest = 0;
  for (const BlockSize& size : block_sizes[direction]) largest = std::max(largest, size.bytes);
  return largest;
}

inline uint32_t TargetSpec::SmallestBlock(Direction direction) const {
  uint32_t smallest = UINT32_MAX;
  for (const BlockSize& size : block_sizes[direction]) smallest = std::min(smallest, size.bytes);
  return smallest;
}

}  // namespace lunpath::bench
