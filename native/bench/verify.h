// Blocks that say what they are, so that a read can tell whether it got what was written last.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "bench/block_locks.h"

namespace lunpath::bench {

// CRC-32C (Castagnoli; RFC 3720, appendix B.4), of `bytes` that are a multiple of 8.
uint32_t Crc32c(const uint8_t* data, size_t bytes);

// The blocks that one thread writes. Which generation of each is on the device is kept in a table of four bytes a
// block, of which only the pages exist that have a block in them that was written. One thread.
class Verifier {
 public:
  struct Params {
    uint64_t offset = 0;
    uint64_t size = 0;         // bytes, a multiple of block_bytes
    uint32_t block_bytes = 0;  // at least 64
    uint64_t seed = 0;
    uint32_t iodepth = 0;      // most I/Os in flight
    uint64_t table_bytes = 0;  // what the table may take; 0: no limit
  };
  explicit Verifier(const Params& params);
  ~Verifier();
  Verifier(const Verifier&) = delete;
  Verifier& operator=(const Verifier&) = delete;

  // One I/O at a time may be in flight for a block: while two are, which one the device does last is open.
  bool Lock(uint64_t offset) { return locks_.Add(Index(offset)); }
  void Unlock(uint64_t offset) { locks_.Remove(Index(offset)); }

  // Whether the table may grow by what a write to this block takes.
  bool HasRoom(uint64_t offset) const { return pages_ < most_pages_ || HasPage(Index(offset)); }

  // Fills `data` with the block's next generation. It counts once Written() was called; Unknown() where the write
  // failed: either generation may be there then.
  void Stamp(uint8_t* data, uint64_t offset) const;
  void Written(uint64_t offset);
  void Unknown(uint64_t offset);

  // Whether this run knows what is there.
  bool Knows(uint64_t offset) const { return IsKnown(Index(offset)); }
  uint32_t Generation(uint64_t offset) const { return generations_[Index(offset)]; }
  // What is wrong with a block that was read, if anything: magic, checksum, offset, generation, seed.
  std::optional<const char*> Check(const uint8_t* data, uint64_t offset) const;

  // The next block from `offset` on whose content is known.
  std::optional<uint64_t> NextKnown(uint64_t offset) const;

  bool valid() const { return generations_ != nullptr; }

 private:
  static constexpr uint32_t kUnknown = UINT32_MAX;
  static constexpr size_t kPageBytes = 4096;
  static constexpr uint64_t kPerPage = kPageBytes / sizeof(uint32_t);

  uint64_t Index(uint64_t offset) const { return (offset - offset_) / block_bytes_; }
  bool HasPage(uint64_t index) const { return (has_page_[index / kPerPage / 64] >> index / kPerPage % 64 & 1) != 0; }
  // A page that no block was written in is not looked at: the kernel would make it.
  bool IsKnown(uint64_t index) const { return HasPage(index) && generations_[index] - 1 < kUnknown - 1; }
  void Set(uint64_t index, uint32_t generation);

  uint64_t offset_;
  uint64_t blocks_;
  uint32_t block_bytes_;
  uint64_t seed_;
  uint32_t* generations_ = nullptr;  // 0: not written by this run
  std::vector<uint64_t> has_page_;   // a bit for each page of the table
  uint64_t pages_ = 0;
  uint64_t most_pages_ = UINT64_MAX;
  BlockLocks locks_;
};

}  // namespace lunpath::bench
