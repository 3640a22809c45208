#include "bench/verify.h"

#include <sys/mman.h>

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

#include "bench/random.h"

namespace lunpath::bench {
namespace {

constexpr uint64_t kMagic = 0x314b4c4248504e4c;  // "LNPHBLK1"

struct Header {
  uint64_t magic;
  uint64_t offset;
  uint64_t seed;
  uint32_t generation;
  uint32_t checksum;  // over the whole block, with zeros here
};

static_assert(sizeof(Header) == 32);

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < table.size(); ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ ((value & 1) != 0 ? 0x82f63b78 : 0);
    table[i] = value;
  }
  return table;
}

constexpr auto kTable = MakeTable();

uint32_t CrcByTable(uint32_t crc, const uint8_t* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) crc = crc >> 8 ^ kTable[(crc ^ data[i]) & 0xff];
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t CrcByInstruction(uint32_t crc, const uint8_t* data, size_t bytes) {
  uint64_t wide = crc;
  for (size_t i = 0; i < bytes; i += 8) {
    uint64_t word;
    memcpy(&word, data + i, sizeof word);
    wide = _mm_crc32_u64(wide, word);
  }
  return static_cast<uint32_t>(wide);
}
#endif

uint32_t Update(uint32_t crc, const uint8_t* data, size_t bytes) {
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;
  if (has_instruction) return CrcByInstruction(crc, data, bytes);
#endif
  return CrcByTable(crc, data, bytes);
}

uint32_t ChecksumOf(Header header, const uint8_t* data, size_t bytes) {
  header.checksum = 0;
  const auto whole = std::bit_cast<std::array<uint8_t, sizeof header>>(header);
  return ~Update(Update(UINT32_MAX, whole.data(), whole.size()), data + sizeof header, bytes - sizeof header);
}

}  // namespace

uint32_t Crc32c(const uint8_t* data, size_t bytes) { return ~Update(UINT32_MAX, data, bytes); }

Verifier::Verifier(const Params& params)
    : offset_(params.offset),
      blocks_(params.size / params.block_bytes),
      block_bytes_(params.block_bytes),
      seed_(params.seed),
      has_page_(blocks_ / kPerPage / 64 + 1),
      locks_(params.iodepth) {
  const size_t bytes = blocks_ * sizeof(uint32_t);
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return;
  generations_ = static_cast<uint32_t*>(mapped);
  if (params.table_bytes == 0 || bytes <= params.table_bytes) return;
  // A huge page would come for each block. A page far from all others takes one of page tables too.
  madvise(mapped, bytes, MADV_NOHUGEPAGE);
  most_pages_ = params.table_bytes / (2 * kPageBytes);
}

Verifier::~Verifier() {
  if (generations_) munmap(generations_, blocks_ * sizeof(uint32_t));
}

void Verifier::Stamp(uint8_t* data, uint64_t offset) const {
  const uint32_t before = generations_[Index(offset)];
  Header header{.magic = kMagic,
                .offset = offset,
                .seed = seed_,
                .generation = before == kUnknown ? 1 : before + 1,
                .checksum = 0};
  Random random(seed_ ^ offset ^ uint64_t{header.generation} << 40);
  for (size_t at = sizeof header; at + 8 <= block_bytes_; at += 8) {
    const uint64_t word = random.Next();
    memcpy(data + at, &word, sizeof word);
  }
  header.checksum = ChecksumOf(header, data, block_bytes_);
  memcpy(data, &header, sizeof header);
}

void Verifier::Set(uint64_t index, uint32_t generation) {
  generations_[index] = generation;
  if (HasPage(index)) [[likely]]
    return;
  has_page_[index / kPerPage / 64] |= uint64_t{1} << index / kPerPage % 64;
  ++pages_;
}

void Verifier::Written(uint64_t offset) {
  const uint64_t index = Index(offset);
  const uint32_t before = generations_[index];
  Set(index, before == kUnknown ? 1 : before + 1);
}

void Verifier::Unknown(uint64_t offset) { Set(Index(offset), kUnknown); }

std::optional<const char*> Verifier::Check(const uint8_t* data, uint64_t offset) const {
  Header header;
  memcpy(&header, data, sizeof header);
  if (header.magic != kMagic) return "magic";
  if (header.checksum != ChecksumOf(header, data, block_bytes_)) return "checksum";
  if (header.offset != offset) return "offset";
  if (header.seed != seed_) return "seed";
  if (header.generation != Generation(offset)) return "generation";
  return std::nullopt;
}

std::optional<uint64_t> Verifier::NextKnown(uint64_t offset) const {
  constexpr uint64_t per_word = kPerPage * 64;
  for (uint64_t index = Index(offset); index < blocks_;) {
    if (has_page_[index / per_word] == 0) {
      index = (index / per_word + 1) * per_word;
    } else if (!HasPage(index)) {
      index = (index / kPerPage + 1) * kPerPage;
    } else if (IsKnown(index)) {
      return offset_ + index * block_bytes_;
    } else {
      ++index;
    }
  }
  return std::nullopt;
}

}  // namespace lunpath::bench
