// The data of both engines over iSCSI, byte for byte, against each other and against the file behind the logical unit:
//
//   read-engines ADDRESS:PORT IQN FILE
//
// Prints what it compared. The exit code is 1 where a byte differs or a read fails.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "bench/clock.h"
#include "bench/engine_iscsi.h"
#include "bench/engine_libiscsi.h"
#include "bench/random.h"
#include "sys/unique_fd.h"

namespace lunpath::bench {
namespace {

constexpr uint32_t kDepth = 8;
constexpr uint32_t kLargest = 1 << 20;
constexpr int kRounds = 8;

struct Ranges {
  uint32_t bytes;
  std::vector<uint64_t> offsets;  // kDepth of them
};

bool Complain(const char* engine, const std::string& what) {
  fprintf(stderr, "%s: %s\n", engine, what.c_str());
  return false;
}

template <Engine E>
class Reader {
 public:
  explicit Reader(iscsi::LoginParams login) : engine_(std::move(login)) {}

  bool Open() {
    auto device = engine_.Open();
    if (!device.ok()) return Complain(engine_.name(), device.error().message);
    if (!buffers_.Map(kDepth, kLargest)) return Complain(engine_.name(), "no memory");
    return engine_.Prepare(kDepth, buffers_).ok();
  }

  bool Read(const Ranges& ranges) {
    for (uint32_t slot = 0; slot < kDepth; ++slot) {
      memset(buffers_[slot], 0xa5, kLargest);
      engine_.Queue({.slot = slot,
                     .direction = Direction::kRead,
                     .bytes = ranges.bytes,
                     .offset = ranges.offsets[slot],
                     .data = buffers_[slot]});
    }
    const uint64_t deadline = Clock::Get().Now() + 60 * kNsPerSecond;
    bool good = true;
    for (uint32_t left = kDepth; left > 0;) {
      if (!engine_.Exchange(true, deadline)) return Complain(engine_.name(), engine_.loss().message);
      if (Clock::Get().Now() >= deadline) return Complain(engine_.name(), "no answer");
      engine_.Reap(0, [&](uint32_t, int64_t result, uint64_t) {
        --left;
        if (result != ranges.bytes) good = Complain(engine_.name(), "a result of " + std::to_string(result));
      });
    }
    return good;
  }

  const uint8_t* data(uint32_t slot) const { return buffers_[slot]; }
  void Close() { engine_.Close(); }

 private:
  Buffers buffers_;
  E engine_;
};

// Also what lies behind each range: it must be as it was.
bool Same(const Ranges& ranges, int file, const Reader<IscsiEngine>& ours, const Reader<LibiscsiEngine>& reference) {
  std::vector<uint8_t> expected(kLargest);
  for (uint32_t slot = 0; slot < kDepth; ++slot) {
    memset(expected.data(), 0xa5, kLargest);
    const auto offset = static_cast<off_t>(ranges.offsets[slot]);
    if (pread(file, expected.data(), ranges.bytes, offset) != ranges.bytes)
      return Complain("pread", "the file is short");
    if (memcmp(ours.data(slot), expected.data(), kLargest) != 0) return Complain("iscsi", "other data than the file's");
    if (memcmp(reference.data(slot), expected.data(), kLargest) != 0) {
      return Complain("libiscsi", "other data than the file's");
    }
  }
  return true;
}

bool Compare(const char* portal, const char* target, const char* path) {
  const iscsi::LoginParams login{
      .portal = portal, .target = target, .initiator = "iqn.2025-01.test.lunpath:bench", .lun = 1, .chap = {}};
  const UniqueFd file(open(path, O_RDONLY | O_CLOEXEC));
  const auto size = static_cast<uint64_t>(lseek(file.get(), 0, SEEK_END));
  Reader<IscsiEngine> ours(login);
  Reader<LibiscsiEngine> reference(login);
  if (!ours.Open() || !reference.Open()) return false;
  Random random(1);
  uint64_t reads = 0;
  uint64_t bytes = 0;
  for (const uint32_t block : {512U, 4096U, 16'384U, 65'536U, 100 * 512U, 262'144U, kLargest}) {
    for (int round = 0; round < kRounds; ++round) {
      Ranges ranges{.bytes = block, .offsets = {}};
      for (uint32_t slot = 0; slot < kDepth; ++slot) {
        ranges.offsets.push_back(random.Below((size - block) / 512 + 1) * 512);
      }
      if (!ours.Read(ranges) || !reference.Read(ranges) || !Same(ranges, file.get(), ours, reference)) return false;
      reads += kDepth;
      bytes += uint64_t{kDepth} * block;
    }
  }
  ours.Close();
  reference.Close();
  printf("{\"reads\": %llu, \"bytes\": %llu}\n", static_cast<unsigned long long>(reads),
         static_cast<unsigned long long>(bytes));
  return true;
}

}  // namespace
}  // namespace lunpath::bench

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "read-engines ADDRESS:PORT IQN FILE\n");
    return 2;
  }
  return lunpath::bench::Compare(argv[1], argv[2], argv[3]) ? 0 : 1;
}
