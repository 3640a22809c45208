// Blocks that say what they are, so that a read can tell whether it got what was written last.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace lunpath::bench {

// CRC-32C (Castagnoli; RFC 3720, appendix B.4), of `bytes` that are a multiple of 8.
uint32_t Crc32c(const uint8_t* data, size_t bytes);

// The blocks that one thread writes. Which generation of each is on the device is kept in memory: four bytes a block,
// and only where blocks were written. One thread.
class Verifier {
 public:
  // `size` is in bytes, a multiple of `block_bytes`, which holds at least 64.
  Verifier(uint64_t offset, uint64_t size, uint32_t block_bytes, uint64_t seed);
  ~Verifier();
  Verifier(const Verifier&) = delete;
  Verifier& operator=(const Verifier&) = delete;

  // One I/O at a time may be in flight for a block: while two are, which one the device does last is open.
  bool Lock(uint64_t offset);
  void Unlock(uint64_t offset);

  // Fills `data` with the block's next generation. It counts once Written() was called; Unknown() where the write
  // failed: either generation may be there then.
  void Stamp(uint8_t* data, uint64_t offset) const;
  void Written(uint64_t offset);
  void Unknown(uint64_t offset);

  // Whether this run knows what is there.
  bool Knows(uint64_t offset) const { return generations_[Index(offset)] - 1 < kUnknown - 1; }
  uint32_t Generation(uint64_t offset) const { return generations_[Index(offset)]; }
  // What is wrong with a block that was read, if anything: magic, checksum, offset, generation, seed.
  std::optional<const char*> Check(const uint8_t* data, uint64_t offset) const;

  // The next block from `offset` on whose content is known.
  std::optional<uint64_t> NextKnown(uint64_t offset) const;

  bool valid() const { return generations_ != nullptr; }

 private:
  static constexpr uint32_t kUnknown = UINT32_MAX;

  uint64_t Index(uint64_t offset) const { return (offset - offset_) / block_bytes_; }

  uint64_t offset_;
  uint64_t blocks_;
  uint32_t block_bytes_;
  uint64_t seed_;
  uint32_t* generations_ = nullptr;  // 0: not written by this run
  std::vector<bool> locked_;
};

}  // namespace lunpath::bench
