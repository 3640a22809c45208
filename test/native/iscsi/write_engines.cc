// What both engines over iSCSI write, against the file behind the logical unit:
//
//   write-engines ADDRESS:PORT IQN FILE
//
// The same data goes through one to the file's first half and through the other to its second. Prints what was
// negotiated and what was compared. The exit code is 1 where a byte differs, a write fails, or the results do.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "bench/clock.h"
#include "bench/engine_iscsi.h"
#include "bench/engine_libiscsi.h"
#include "bench/random.h"
#include "sys/unique_fd.h"

namespace lunpath::bench {
namespace {

constexpr uint32_t kBlock = 512;
constexpr uint32_t kDepth = 8;
constexpr uint32_t kLargest = 16 << 20;
constexpr int kRounds = 3;

bool Complain(const char* engine, const std::string& what) {
  fprintf(stderr, "%s: %s\n", engine, what.c_str());
  return false;
}

// One I/O of each slot, of `bytes` bytes. The buffers hold what is written, or get what is read.
struct Batch {
  uint32_t bytes;
  std::vector<uint64_t> offsets;
  std::vector<Direction> directions;
};

template <Engine E>
class Client {
 public:
  explicit Client(iscsi::LoginParams login) : engine_(std::move(login)) {}

  bool Open() {
    auto device = engine_.Open();
    if (!device.ok()) return Complain(engine_.name(), device.error().message);
    if (!buffers_.Map(kDepth, kLargest)) return Complain(engine_.name(), "no memory");
    return engine_.Prepare(kDepth, buffers_).ok();
  }

  // The results by slot; empty: there are not all of them.
  std::vector<int64_t> Run(const Batch& batch) {
    const auto count = static_cast<uint32_t>(batch.offsets.size());
    for (uint32_t slot = 0; slot < count; ++slot) {
      engine_.Queue({.slot = slot,
                     .direction = batch.directions[slot],
                     .bytes = batch.bytes,
                     .offset = batch.offsets[slot],
                     .data = buffers_[slot]});
    }
    std::vector<int64_t> results(count);
    const uint64_t deadline = Clock::Get().Now() + 60 * kNsPerSecond;
    for (uint32_t left = count; left > 0;) {
      if (!engine_.Exchange(true, deadline)) {
        Complain(engine_.name(), engine_.loss().message);
        return {};
      }
      if (Clock::Get().Now() >= deadline) {
        Complain(engine_.name(), "no answer");
        return {};
      }
      engine_.Reap(0, [&](uint32_t slot, int64_t result, uint64_t) {
        --left;
        results[slot] = result;
      });
    }
    return results;
  }

  uint8_t* data(uint32_t slot) { return buffers_[slot]; }
  const char* name() const { return engine_.name(); }
  void Close() { engine_.Close(); }

 private:
  Buffers buffers_;
  E engine_;
};

class Comparison {
 public:
  Comparison(const iscsi::LoginParams& login, const char* path)
      : login_(login), file_(open(path, O_RDONLY | O_CLOEXEC)), ours_(login), reference_(login) {}

  bool Run() {
    const auto size = static_cast<uint64_t>(lseek(file_.get(), 0, SEEK_END));
    half_ = size / 2 / kBlock * kBlock;
    expected_.resize(size);
    if (!Read(expected_.data(), size, 0)) return false;
    iscsi::Session session(login_);
    if (auto identity = session.Login(); !identity.ok()) return Complain("login", identity.error().message);
    agreed_ = session.negotiated();
    session.Logout();
    if (!ours_.Open() || !reference_.Open()) return false;
    if (strcmp(ours_.name(), "iscsi") != 0) return Complain(ours_.name(), "fell back: " + agreed_.unusable);
    for (const uint32_t bytes : Sizes()) {
      for (int round = 0; round < kRounds; ++round) {
        if (!WriteBoth(bytes) || !Mix(bytes)) return false;
      }
    }
    if (!BeyondTheEnd(size)) return false;
    ours_.Close();
    reference_.Close();
    std::vector<uint8_t> found(size);
    return Read(found.data(), size, 0) && (found == expected_ || Complain("both", "the file is not as expected"));
  }

  void Print() const {
    printf("{\"immediateData\": %s, \"initialR2t\": %s, \"firstBurst\": %u, \"maxBurst\": %u, \"segment\": %u, ",
           agreed_.immediate_data ? "true" : "false", agreed_.initial_r2t ? "true" : "false", agreed_.first_burst_bytes,
           agreed_.max_burst_bytes, agreed_.max_segment_bytes);
    printf("\"writes\": %llu, \"reads\": %llu}\n", static_cast<unsigned long long>(writes_),
           static_cast<unsigned long long>(reads_));
  }

 private:
  // At and around each length that was negotiated.
  std::set<uint32_t> Sizes() const {
    std::set<uint32_t> sizes{512, 4096, 65'536, 100 * kBlock, 1 << 20, kLargest};
    for (const uint32_t length : {agreed_.max_segment_bytes, agreed_.first_burst_bytes, agreed_.max_burst_bytes,
                                  agreed_.first_burst_bytes + agreed_.max_burst_bytes}) {
      const uint32_t blocks = length / kBlock;
      for (const uint32_t near : {blocks - 1, blocks, blocks + 1}) sizes.insert(near * kBlock);
    }
    sizes.erase(0);
    sizes.erase(sizes.upper_bound(static_cast<uint32_t>(std::min<uint64_t>(kLargest, half_))), sizes.end());
    return sizes;
  }

  // Places in a half that do not touch each other, as many as there are slots or as fit.
  std::vector<uint64_t> Places(uint32_t bytes) {
    const uint64_t count = std::min<uint64_t>(kDepth, half_ / bytes);
    const uint64_t share = half_ / count / kBlock * kBlock;
    std::vector<uint64_t> places;
    for (uint64_t i = 0; i < count; ++i) {
      places.push_back(i * share + random_.Below((share - bytes) / kBlock + 1) * kBlock);
    }
    return places;
  }

  void Fill(uint8_t* data, uint32_t bytes) {
    for (uint32_t at = 0; at < bytes; at += 8) {
      const uint64_t word = random_.Next();
      memcpy(data + at, &word, 8);
    }
  }

  bool Read(uint8_t* into, uint64_t bytes, uint64_t offset) const {
    for (uint64_t at = 0; at < bytes;) {
      const ssize_t got = pread(file_.get(), into + at, bytes - at, static_cast<off_t>(offset + at));
      if (got <= 0) return Complain("pread", "the file is short");
      at += static_cast<uint64_t>(got);
    }
    return true;
  }

  // Also what lies beside it: it must be as it was.
  bool IsInFile(uint64_t offset, uint32_t bytes) const {
    const uint64_t begin = offset - std::min<uint64_t>(offset, kBlock);
    const uint64_t end = std::min<uint64_t>(offset + bytes + kBlock, expected_.size());
    std::vector<uint8_t> found(end - begin);
    return Read(found.data(), found.size(), begin) && memcmp(found.data(), expected_.data() + begin, found.size()) == 0;
  }

  bool WriteBoth(uint32_t bytes) {
    Batch batch{.bytes = bytes, .offsets = Places(bytes), .directions = {}};
    batch.directions.assign(batch.offsets.size(), Direction::kWrite);
    Batch other = batch;
    for (uint32_t slot = 0; slot < batch.offsets.size(); ++slot) {
      other.offsets[slot] += half_;
      Fill(ours_.data(slot), bytes);
      memcpy(reference_.data(slot), ours_.data(slot), bytes);
      for (const uint64_t offset : {batch.offsets[slot], other.offsets[slot]}) {
        memcpy(expected_.data() + offset, ours_.data(slot), bytes);
      }
    }
    const auto results = ours_.Run(batch);
    if (results.empty() || results != reference_.Run(other)) return Complain("both", "the results differ");
    for (uint32_t slot = 0; slot < batch.offsets.size(); ++slot) {
      if (results[slot] != bytes) return Complain("both", "a result of " + std::to_string(results[slot]));
      if (!IsInFile(batch.offsets[slot], bytes)) return Complain("iscsi", "other data in the file than was written");
      if (!IsInFile(other.offsets[slot], bytes)) return Complain("libiscsi", "other data in the file than was written");
      ++writes_;
    }
    return true;
  }

  // Writes to the first half while the second is read, on one connection.
  bool Mix(uint32_t bytes) {
    Batch batch{.bytes = bytes, .offsets = Places(bytes), .directions = {}};
    for (uint32_t slot = 0; slot < batch.offsets.size(); ++slot) {
      const bool reads = slot % 2 == 1;
      batch.directions.push_back(reads ? Direction::kRead : Direction::kWrite);
      if (reads) {
        batch.offsets[slot] += half_;
      } else {
        Fill(ours_.data(slot), bytes);
        memcpy(expected_.data() + batch.offsets[slot], ours_.data(slot), bytes);
      }
    }
    const auto results = ours_.Run(batch);
    for (uint32_t slot = 0; slot < batch.offsets.size(); ++slot) {
      if (results.empty() || results[slot] != bytes) return Complain("iscsi", "a result that is not all");
      if (memcmp(ours_.data(slot), expected_.data() + batch.offsets[slot], bytes) != 0) {
        return Complain("iscsi", "other data was read than there is");
      }
      if (!IsInFile(batch.offsets[slot], bytes)) return Complain("iscsi", "other data in the file than was written");
      ++(slot % 2 == 1 ? reads_ : writes_);
    }
    return true;
  }

  // The target refuses before, or while, the data comes. All that went with it is taken, and the session goes on.
  bool BeyondTheEnd(uint64_t size) {
    for (const uint32_t bytes : {4096U, 65'536U, 1U << 20}) {
      Batch batch{.bytes = bytes, .offsets = {size, 0, size + kLargest}, .directions = {}};
      batch.directions.assign(3, Direction::kWrite);
      for (uint32_t slot = 0; slot < 3; ++slot) memset(ours_.data(slot), static_cast<int>(slot), bytes);
      memcpy(expected_.data(), ours_.data(1), bytes);
      const auto results = ours_.Run(batch);
      batch.offsets[1] = half_;
      memcpy(reference_.data(1), expected_.data() + half_, bytes);
      if (results.empty() || results != reference_.Run(batch)) return Complain("both", "the failures differ");
      if (results[0] >= 0 || results[1] != bytes) return Complain("iscsi", "a write beyond the end was taken");
    }
    return true;
  }

  const iscsi::LoginParams login_;
  const UniqueFd file_;
  Client<IscsiEngine> ours_;
  Client<LibiscsiEngine> reference_;
  iscsi::Negotiated agreed_;
  uint64_t half_ = 0;
  std::vector<uint8_t> expected_;  // the whole file
  Random random_{1};
  uint64_t writes_ = 0;
  uint64_t reads_ = 0;
};

}  // namespace
}  // namespace lunpath::bench

int main(int argc, char** argv) {
  using namespace lunpath;
  if (argc != 4) {
    fprintf(stderr, "write-engines ADDRESS:PORT IQN FILE\n");
    return 2;
  }
  const iscsi::LoginParams login{
      .portal = argv[1], .target = argv[2], .initiator = "iqn.2025-01.test.lunpath:bench", .lun = 1, .chap = {}};
  bench::Comparison comparison(login, argv[3]);
  if (!comparison.Run()) return 1;
  comparison.Print();
  return 0;
}
